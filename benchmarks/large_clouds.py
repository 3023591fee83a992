"""Clouds too large for a matrix: time, peak memory, and the marginal error as independent code measures it.

    python benchmarks/large_clouds.py                     # all cells, some minutes
    python benchmarks/large_clouds.py --cells 100000:2:1e-2:1e-9

Every cell is solved in a process of its own, so that the peak of the memory is its own. The clouds are Gaussian: x standard normal,
y with its mean shifted by 1/sqrt(d) in each coordinate, and deviations from 0.7 to 1.3; reg is relative to the largest cost.
The error is the L1 error of both marginals, from direct sums in NumPy of the returned potentials over random rows and columns.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from otbilevel import PointCloud, solve_ot

CELLS = ("100000:2:1e-2:1e-9", "100000:3:1e-2:1e-6", "100000:2:1e-3:1e-6", "1000000:2:1e-2:1e-4")
SAMPLE = 2000
PAIRS_AT_ONCE = 10_000_000


def clouds(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The two clouds."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), 1 / np.sqrt(d) + rng.standard_normal((n, d)) * np.linspace(0.7, 1.3, d)


def marginal_error(x: np.ndarray, y: np.ndarray, f: np.ndarray, g: np.ndarray, reg: float) -> float:
    """L1 error of the sums over y for random points of x: mean |sum_j b_j exp((f_i + g_j - C_ij)/reg) - 1| for uniform weights."""
    chosen = np.random.default_rng(1).choice(len(x), min(SAMPLE, len(x)), replace=False)
    step, total = max(1, PAIRS_AT_ONCE // len(y)), 0.0
    for rows in np.split(chosen, range(step, len(chosen), step)):
        exponents = f[rows, None] + g[None, :]
        for k in range(x.shape[1]):
            exponents -= (x[rows, None, k] - y[None, :, k]) ** 2
        total += float(np.abs(np.exp(exponents / reg).mean(axis=1) - 1.0).sum())
    return total / len(chosen)


def measure(n: int, d: int, relative_reg: float, tol: float) -> dict[str, object]:
    """Solve one cell."""
    few = PointCloud(*clouds(5000, d))
    solve_ot(None, None, few, reg=few.bounds[1] * relative_reg, tol=tol, method="sns")  # compiles
    x, y = clouds(n, d)
    start = time.perf_counter()
    cloud = PointCloud(x, y)
    result = solve_ot(None, None, cloud, reg=cloud.bounds[1] * relative_reg, tol=tol, method="sns")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    both = ((x, y, result.f, result.g), (y, x, result.g, result.f))
    error = sum(marginal_error(*side, result.reg) for side in both)
    return {
        "seconds": seconds,
        "peak": peak,
        "error": error,
        "certified": result.marginal_error,
        "nsweep": result.nsweep,
        "nit": result.nit,
    }


def main() -> int:
    """Print the table; the exit status is 1 when a cell misses its tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="N:D:REG:TOL")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        n, d, reg, tol = arguments.one.split(":")
        print(json.dumps(measure(int(n), int(d), float(reg), float(tol))))
        return 0
    print("| n = m | d | reg / range | tol | seconds | peak GiB | error (sample) | marginal_error | sweeps | iterations |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    missed = False
    for cell in arguments.cells:
        n, d, reg, tol = cell.split(":")
        output = subprocess.run([sys.executable, __file__, "--one", cell], check=True, capture_output=True, text=True)
        r = json.loads(output.stdout)
        missed |= not r["error"] <= float(tol)
        print(
            f"| {int(n):,} | {d} | {reg} | {tol} | {r['seconds']:.1f} | {r['peak']:.2f} | {r['error']:.1e} | {r['certified']:.1e} "
            f"| {r['nsweep']} | {r['nit']} |",
            flush=True,
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
