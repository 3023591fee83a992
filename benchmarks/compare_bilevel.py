"""Random coupled quadratic bilevel problems: LV-HBA by default against a program with the lower level's optimality conditions.

    OMP_NUM_THREADS=1 python benchmarks/compare_bilevel.py

The reference is SciPy's SLSQP from several starts, with second derivatives of the lower level, which LV-HBA does not get. Columns:
F of both, their relative difference (below 0 ours is better), the lower-level gap of ours as it says and as SLSQP and trust-constr
find it, seconds of both.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings

import numpy as np

from otbilevel import minimize_bilevel
from otbilevel.testing import independent_lower_gap, random_coupled_qp


def main() -> int:
    """Print the table; the exit status is 1 where ours is behind by more than is promised, or claims what is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 5, 10, 20, 50])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--starts", type=int, default=10, help="of the reference")
    given, bad = parser.parse_args(), 0
    print(f"{'n = m':>6}{'seed':>5}{'ours':>12}{'reference':>12}{'difference':>12}{'gap':>10}{'SciPy':>10}{'s':>8}{'s':>8}")
    for n in given.sizes:
        for seed in range(given.seeds):
            problem = random_coupled_qp(n, min(n, 30) + (n == 2), seed)
            start = time.perf_counter()
            result = minimize_bilevel(problem.upper, problem.lower, np.zeros(n), np.zeros(n), **problem.settings)
            ours = time.perf_counter() - start
            start = time.perf_counter()
            reference = problem.reference(given.starts, seed)
            theirs = time.perf_counter() - start
            difference = (result.fun - reference) / max(abs(reference), 1e-3) if np.isfinite(reference) else -np.inf
            settings = {name: problem.settings[name] for name in ("constraints", "bounds_y") if name in problem.settings}
            gap = independent_lower_gap(problem.lower, result.x, result.y, **settings)
            bad += not result.success or max(gap, result.lower_gap) > 1e-6 or difference > (1e-3 if n <= 10 else 0.05)
            shown = f"{n:>6}{seed:>5}{result.fun:>12.5f}{reference:>12.5f}{difference:>12.1e}{result.lower_gap:>10.0e}{gap:>10.0e}"
            print(f"{shown}{ours:>8.2f}{theirs:>8.2f}{'' if result.success else '  ' + result.message}", flush=True)
    print(f"{bad} behind, or not solved")
    return 1 if bad else 0


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.exit(main())
