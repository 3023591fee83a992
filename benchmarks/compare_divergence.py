"""Race of the Sinkhorn divergence with geomloss and POT, in one process: times over ours beside errors, as a table.

    OMP_NUM_THREADS=1 python benchmarks/compare_divergence.py --sizes 200 1000

geomloss and POT come from the dependency group `test`. Solvers take turns, and the least of some runs counts. Errors are those for
the cost |x - y|^2, against a run of ours with a tolerance of 1e-12; POT's function combines transport costs, and is compared with
that combination.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings

import numpy as np
import ot
import torch
from geomloss import SamplesLoss

from otbilevel.ot import sinkhorn_divergence


def contenders(x, y, blur, scalings, pot_tol):
    """Functions by name, each with the value that it should return."""
    reg = 2 * blur**2
    truth = sinkhorn_divergence(None, None, x, y, reg=reg, tol=1e-12)
    tensors = torch.tensor(x), torch.tensor(y)
    found = {"otbilevel": (lambda: sinkhorn_divergence(None, None, x, y, reg=reg).value, truth.value)}
    for scaling in scalings:
        loss = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=scaling, backend="tensorized")
        found[f"geomloss {scaling:g}"] = (lambda loss=loss: 2 * float(loss(*tensors)), truth.value)
    found["POT"] = (
        lambda: float(ot.bregman.empirical_sinkhorn_divergence(x, y, reg, numIterMax=20_000, stopThr=pot_tol, warn=False)),
        max(truth.value_linear, 0.0),
    )
    return found


def race(functions, repeats):
    """The least seconds and the last value of each."""
    seconds, values = [np.inf] * len(functions), [np.nan] * len(functions)
    for _ in range(repeats):
        for k, function in enumerate(functions):
            start = time.perf_counter()
            values[k] = function()
            seconds[k] = min(seconds[k], time.perf_counter() - start)
    return seconds, values


def main() -> int:
    """Print the table; the exit status is 1 where POT is ahead by more than noise, or ours is not accurate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 10])
    parser.add_argument("--blurs", type=float, nargs="+", default=[0.5, 0.1, 0.05])
    parser.add_argument("--scalings", type=float, nargs="+", default=[0.5, 0.9])
    parser.add_argument("--pot-tol", type=float, default=1e-9)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # POT divides by zeros where it underflows
    rng, ratios, good = np.random.default_rng(0), [], True
    peers = [*(f"geomloss, scaling {scaling:g}" for scaling in options.scalings), "POT"]
    print(f"| n | d | blur | ours, ms | {' | '.join(f'{name} (error)' for name in peers)} |")
    print(f"|{'---|' * (4 + len(peers))}")
    for n in options.sizes:
        for dim in options.dims:
            x, y = rng.random((n, dim)), 0.9 * rng.random((n, dim)) + 0.2
            for blur in options.blurs:
                entries = contenders(x, y, blur, options.scalings, options.pot_tol)
                seconds, values = race([function for function, _ in entries.values()], options.repeats)
                errors = [abs(value - truth) for value, (_, truth) in zip(values, entries.values(), strict=True)]
                cells = " | ".join(f"{t / seconds[0]:.1f} ({e:.0e})" for t, e in zip(seconds[1:], errors[1:], strict=True))
                print(f"| {n} | {dim} | {blur:g} | {1e3 * seconds[0]:.1f} | {cells} |", flush=True)
                ratios.append(seconds[-1] / seconds[0])
                good &= errors[0] <= 1e-10
    mean = np.exp(np.mean(np.log(ratios)))
    print(f"\nPOT over ours: smallest ratio {min(ratios):.2f}, geometric mean {mean:.1f}, {len(ratios)} cells")
    return int(not good or min(ratios) < 0.9)


if __name__ == "__main__":
    sys.exit(main())
