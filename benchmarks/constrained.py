"""Constrained transport: time beside the unconstrained solve and beside HiGHS.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/constrained.py [--sizes 200 500 1000] [--highs 200]

Solves of one line are interleaved, and the least of some times is taken.
"""

import argparse
import time
from functools import partial

import numpy as np

from otbilevel import solve_ot
from otbilevel.ot import PlanConstraint, martingale, separable


def problem(n, seed=0):
    """Two clouds in the plane, the second one further spread out, and constraints on plans between them."""
    rng = np.random.default_rng(seed)
    x, y = rng.random((n, 2)), rng.random((n, 2))
    y = 1.5 * (y - y.mean(0)) + x.mean(0)
    C = ((x[:, None] - y) ** 2).sum(-1)
    free = solve_ot(None, None, C, reg=1e-3 * C.max())

    def now(D):
        return float((D * free.plan).sum())

    swapped = np.outer(x[:, 0], y[:, 1]), np.outer(x[:, 1], y[:, 0])
    far = np.abs(x[:, None] - y).transpose(2, 0, 1)
    groups = rng.integers(0, 4, n)
    constraints = {
        "3 separable": separable(
            np.stack([x[:, 0], x[:, 1], x[:, 0]]),
            np.stack([y[:, 1], y[:, 0], y[:, 0] ** 2]),
            lb=[now(swapped[0]) + 0.01, -np.inf, -np.inf],
            ub=[now(swapped[0]) + 0.01, now(swapped[1]) - 0.005, np.inf],
        ),
        "2 dense": PlanConstraint(far, ub=[now(far[0]) - 0.003, now(far[1]) + 0.1]),
        "8 grouped": martingale(x, y, groups=groups),
    }
    return C, constraints


def race(calls, repeats=5):
    """The least time of each call, in turn."""
    best = [np.inf] * len(calls)
    for _ in range(repeats):
        for k, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[k] = min(best[k], time.perf_counter() - start)
    return best


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 500, 1000])
    parser.add_argument("--highs", type=int, default=200, help="the largest size that HiGHS solves")
    arguments = parser.parse_args()
    print("| n = m | constraints | reg / range | seconds | / unconstrained | HiGHS, seconds | value - optimum, / range |")
    print("|---|---|---|---|---|---|---|")
    for n in arguments.sizes:
        C, constraints = problem(n)
        for name, constraint in constraints.items():
            seconds, optimum = "", None
            if n <= arguments.highs:
                start = time.perf_counter()
                optimum = solve_ot(None, None, C, method="exact", constraints=constraint).value
                seconds = f"{time.perf_counter() - start:.2f}"
            for share in (1e-2, 1e-3):
                reg = share * (C.max() - C.min())
                result = solve_ot(None, None, C, reg=reg, constraints=constraint)
                assert result.success, result.message
                with_, without = race([partial(solve_ot, None, None, C, reg=reg, constraints=given) for given in (constraint, ())])
                bias = "" if optimum is None else f"{(result.value_linear - optimum) / (C.max() - C.min()):.1e}"
                print(f"| {n} | {name} | {share:g} | {with_:.3f} | {with_ / without:.1f} | {seconds} | {bias} |", flush=True)


if __name__ == "__main__":
    main()
