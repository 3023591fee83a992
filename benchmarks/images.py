"""Images and volumes on grids: time, peak memory, and the marginal error as independent code measures it.

    python benchmarks/images.py                           # all cells, a few minutes
    python benchmarks/images.py --cells photos:256:1e-3:1e-6

Every cell is solved in a process of its own, so that the peak of the memory is its own. `photos` are the two of scikit-learn in
grey, cut to squares; in `dark` ones a third of the pixels is black. `smooth` and `volume` are random densities in two and three
dimensions. Pixels are 1 / size apart, reg is absolute. The error is the L1 error of both marginals, from direct sums in NumPy of
the returned potentials over random rows and columns.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
from scipy.ndimage import gaussian_filter

from otbilevel import Grid, solve_ot

CELLS = (
    *(f"photos:64:{reg}:1e-9" for reg in ("1e-3", "2e-4")),
    *(f"{kind}:256:{reg}:{tol}" for kind in ("photos", "dark", "smooth") for reg in ("1e-3", "2e-4") for tol in ("1e-4", "1e-6")),
    *(f"photos:256:{reg}:1e-9" for reg in ("1e-3", "2e-4")),
    *(f"volume:24:{reg}:1e-9" for reg in ("1e-3", "2e-4")),
)
SAMPLE = 1000
ROWS_AT_ONCE = 64


def photos(size: int) -> list[np.ndarray]:
    """A temple and a flower, in grey."""
    from sklearn.datasets import load_sample_images  # noqa: PLC0415 -- not every cell needs it

    images = []
    for photo in load_sample_images().images:
        grey = photo.mean(axis=2)
        factor = min(grey.shape) // size
        top, left = ((length - factor * size) // 2 for length in grey.shape)
        square = grey[top : top + factor * size, left : left + factor * size]
        images.append(square.reshape(size, factor, size, factor).mean(axis=(1, 3)) + 1e-3)
    return images


def densities(size: int, d: int) -> list[np.ndarray]:
    """Two random densities on the torus."""
    images = []
    for seed in range(2):
        noise = gaussian_filter(np.random.default_rng(seed).standard_normal((size,) * d), size / 9, mode="wrap")
        images.append(np.exp(2 * noise / noise.std()))
    return images


def images(kind: str, size: int) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Flat weights of mass 1, and the shape of the grid."""
    pair = photos(size) if kind in ("photos", "dark") else densities(size, {"smooth": 2, "volume": 3}[kind])
    if kind == "dark":
        pair = [np.where(image < np.quantile(image, 1 / 3), 0.0, image) for image in pair]
    a, b = (image.ravel() / image.sum() for image in pair)
    return a, b, pair[0].shape


def marginal_error(f: np.ndarray, g: np.ndarray, a: np.ndarray, b: np.ndarray, shape: tuple[int, ...], reg: float) -> float:
    """L1 error of the row sums, by direct sums over random rows that are drawn from a."""
    rng = np.random.default_rng(1)
    chosen = rng.choice(len(a), SAMPLE, p=a)
    points = np.stack(np.unravel_index(np.arange(len(a)), shape), axis=1) / max(shape)
    with np.errstate(divide="ignore"):
        column = (g / reg + np.log(b))[None, :]
    total = 0.0
    for rows in np.split(chosen, range(ROWS_AT_ONCE, SAMPLE, ROWS_AT_ONCE)):
        cost = sum((points[rows, None, k] - points[None, :, k]) ** 2 for k in range(points.shape[1]))
        total += float(np.abs(np.exp(f[rows, None] / reg + column - cost / reg).sum(axis=1) - 1.0).sum())
    return total / SAMPLE


def measure(kind: str, size: int, reg: float, tol: float) -> dict[str, float]:
    """Solve one cell."""
    a, b, shape = images(kind, size)
    start = time.perf_counter()
    result = solve_ot(a, b, Grid(shape), reg=reg, tol=tol)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    error = marginal_error(result.f, result.g, a, b, shape, reg) + marginal_error(result.g, result.f, b, a, shape, reg)
    return {
        "seconds": seconds,
        "peak": peak,
        "error": error,
        "certified": result.marginal_error,
        "nsweep": result.nsweep,
        "nproduct": result.nproduct,
    }


def main() -> int:
    """Print the table; the exit status is 1 when a cell misses its tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="KIND:SIZE:REG:TOL")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        kind, size, reg, tol = arguments.one.split(":")
        print(json.dumps(measure(kind, int(size), float(reg), float(tol))))
        return 0
    print("| images | side | reg | tol | seconds | peak MiB | error (sample) | marginal_error | sweeps | products |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    missed = False
    for cell in arguments.cells:
        kind, size, reg, tol = cell.split(":")
        output = subprocess.run([sys.executable, __file__, "--one", cell], check=True, capture_output=True, text=True)
        r = json.loads(output.stdout)
        missed |= not r["error"] <= 1.5 * float(tol)  # a sample
        print(
            f"| {kind} | {size} | {reg} | {tol} | {r['seconds']:.2f} | {r['peak']:.0f} | {r['error']:.1e} | {r['certified']:.1e} "
            f"| {r['nsweep']} | {r['nproduct']} |",
            flush=True,
        )
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
