"""Race the barycentres of `otbilevel.ot` against POT at equal accuracy, side by side in one process::

    python benchmarks/compare_barycenters.py --quick      # some minutes
    python benchmarks/compare_barycenters.py

Both get the same arrays, in turns, and the fastest of several turns counts. Both run at the loosest of their thresholds (a factor
of 10 apart) that is accurate enough. The accuracy is measured outside the clock:

* on fixed supports by ||b - b*||_1 <= 1e-7, with b* ours at a tolerance of 1e-11; where POT converges, its agreement checks b*;
* of debiased barycentres by the objective sum_k w_k OT(a_k, b) - OT(b, b) / 2 over that of a run of ours at a tolerance of 1e-6,
  as b itself is hardly determined: at most 1e-6. Plain NumPy computes it in the log domain;
* where points move, by their distance from those of a run of ours at a tolerance of 1e-7, root mean square relative to the spread:
  at most 1e-3. Either stops when an iteration moves them by less than 1e-5 of the spread (exact transport: at the fixed point).

"x": POT does not get there within its iterations (10,000; 1000 for images), or a minute; "nan": it overflows or divides by 0.
Weights are uniform, as POT's "sinkhorn" (up to 0.9.7) is wrong with others (PythonOT/POT#870). The exit status is 1 when ours
misses the accuracy, or is slower than POT by more than noise.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ot as pot
from scipy.special import logsumexp

from otbilevel.ot import Grid, barycenter, free_support_barycenter

ACCURACY = 1e-7
DEBIASED_ACCURACY = 1e-6
TURNS = 5
NOISE = 0.9
"""Ratios from here to 1 may be noise: speeds of machines vary by more than that within minutes."""
PATIENCE = 60.0
"""Seconds of POT in a cell after which no smaller threshold is tried."""


@dataclass
class Cell:
    """A problem, and how to solve it by either."""

    name: str
    ours: Callable[[float], Any]
    theirs: Callable[[float], np.ndarray]
    error: Callable[[np.ndarray], float]
    answer: Callable[[Any], np.ndarray]
    accuracy: float
    tols: tuple[float, ...]
    thresholds: tuple[float, ...]


def histograms(kind: str, n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """k histograms and their squared distances, scaled to [0, 1]."""
    rng = np.random.default_rng(seed)
    if kind == "gauss":
        x = np.linspace(0, 1, n)[:, None]
        centres, widths = rng.uniform(0.15, 0.85, k), rng.uniform(0.03, 0.1, k)
        A = np.exp(-0.5 * ((x.T - centres[:, None]) / widths[:, None]) ** 2)
    else:
        x = rng.random((n, 2)) if kind == "cloud" else np.linspace(0, 1, n)[:, None]
        A = rng.dirichlet(np.full(n, 0.5), k) + 1e-9
    C = ((x[:, None, :] - x[None, :, :]) ** 2).sum(-1)
    return A / A.sum(axis=1, keepdims=True), C / C.max()


def images(n: int) -> np.ndarray:
    """A disc, a square, two discs and a ring."""
    y, x = np.mgrid[0:n, 0:n] / (n - 1)
    radius = np.hypot(x - 0.5, y - 0.5)
    two = (np.hypot(x - 0.3, y - 0.3) < 0.18) | (np.hypot(x - 0.7, y - 0.7) < 0.18)
    shapes = [radius < 0.35, (abs(x - 0.5) < 0.3) & (abs(y - 0.5) < 0.3), two, (radius < 0.4) & (radius > 0.25)]
    A = np.array(shapes, dtype=np.float64)
    return A / A.sum(axis=(1, 2), keepdims=True)


def fixed(kind: str, n: int, k: int, reg: float, method: str) -> Cell:
    """On one support, against ``ot.bregman.barycenter``."""
    A, C = histograms(kind, n, k)
    best = barycenter(A, C, reg=reg, tol=1e-11).barycenter

    def theirs(threshold: float) -> np.ndarray:
        return pot.bregman.barycenter(A.T, C, reg, method=method, stopThr=threshold, numItermax=10_000, warn=False)

    return Cell(
        f"{kind} n={n} k={k} reg={reg:g}" + (f" ({method})" if method != "sinkhorn" else ""),
        lambda tol: barycenter(A, C, reg=reg, tol=tol),
        theirs,
        lambda b: float(np.abs(b - best).sum()),
        lambda result: result.barycenter,
        ACCURACY,
        tuple(10.0**-p for p in range(4, 10)),
        tuple(10.0**-p for p in range(4, 14)),
    )


def picture(n: int, reg: float, method: str) -> Cell:
    """Images, against ``ot.bregman.convolutional_barycenter2d``."""
    A, grid = images(n), Grid([np.linspace(0, 1, n)] * 2)  # POT's coordinates
    best = barycenter(A, grid, reg=reg, tol=1e-11).barycenter

    def theirs(threshold: float) -> np.ndarray:
        return pot.bregman.convolutional_barycenter2d(
            A, reg, method=method, stopThr=threshold, stabThr=1e-300, numItermax=1000, warn=False
        )

    return Cell(
        f"images {n}x{n} k=4 reg={reg:g}" + (f" ({method})" if method != "sinkhorn" else ""),
        lambda tol: barycenter(A, grid, reg=reg, tol=tol),
        theirs,
        lambda b: float(np.abs(b - best).sum()),
        lambda result: result.barycenter,
        ACCURACY,
        tuple(10.0**-p for p in range(4, 10)),
        tuple(10.0**-p for p in range(4, 12)),
    )


def objective(A: np.ndarray, C: np.ndarray, reg: float, b: np.ndarray) -> float:
    """sum_k OT(a_k, b) / k - OT(b, b) / 2 by Sinkhorn's method in the log domain; no code of either library."""
    M, b = -C / reg, np.maximum(b, 0) / b.sum()
    with np.errstate(divide="ignore"):
        log_b, logs = np.log(b), np.log(A)
    f = h = np.zeros(len(b))
    total = 0.0
    for _ in range(200):
        h = 0.5 * (h - logsumexp(M + (h + log_b)[None, :], axis=1))
    for log_a in logs:
        g = np.zeros(len(b))
        for _ in range(1000):
            f = -logsumexp(M + (g + log_b)[None, :], axis=1)
            new = -logsumexp(M.T + (f + log_a)[None, :], axis=1)
            if np.max(np.abs(new - g)) < 1e-11:
                break
            g = new
        total += reg * (np.exp(log_a) @ f + b @ g) / len(A)
    return total - reg * float(b @ h)


def debiased(kind: str, n: int, k: int, reg: float) -> Cell:
    """Sinkhorn divergences, against ``ot.bregman.barycenter_debiased``."""
    A, C = histograms(kind, n, k)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best = objective(A, C, reg, barycenter(A, C, reg=reg, debias=True, tol=1e-6, max_iter=3000).barycenter)

    def theirs(threshold: float) -> np.ndarray:
        return pot.bregman.barycenter_debiased(A.T, C, reg, stopThr=threshold, numItermax=10_000, warn=False)

    return Cell(
        f"debiased {kind} n={n} k={k} reg={reg:g}",
        lambda tol: barycenter(A, C, reg=reg, debias=True, tol=tol),
        theirs,
        lambda b: objective(A, C, reg, b) - best,
        lambda result: result.barycenter,
        DEBIASED_ACCURACY,
        (1e-3, 1e-4, 1e-5),
        tuple(10.0**-p for p in range(3, 12)),
    )


def free(n: int, m: int, k: int, d: int, reg: float | None) -> Cell:
    """Moving points, against ``ot.lp.free_support_barycenter`` and ``ot.bregman.free_support_sinkhorn_barycenter``."""
    rng = np.random.default_rng(1)
    X = [rng.normal(size=(m, d)) * s + rng.normal(size=d) for s in rng.uniform(0.5, 1.5, k)]
    a = [rng.dirichlet(np.ones(m)) for _ in X]
    init = rng.normal(size=(n, d))
    start = {"init": init} if reg is None else {"init": init, "reg": reg}
    best = free_support_barycenter(X, a, tol=1e-7, max_iter=3000, **start).points
    pooled = np.concatenate(X)
    scale = np.sqrt(np.mean(np.sum((pooled - pooled.mean(0)) ** 2, axis=1)))

    def theirs(threshold: float) -> np.ndarray:
        if reg is None:
            return pot.lp.free_support_barycenter(X, a, init, numItermax=1000, stopThr=1e-24)
        square = n * (threshold * scale) ** 2
        return pot.bregman.free_support_sinkhorn_barycenter(
            X, a, init, reg, numItermax=1000, stopThr=square, numInnerItermax=10_000, warn=False
        )

    return Cell(
        f"free n={n} m={m} k={k} d={d} " + ("exact" if reg is None else f"reg={reg:g}"),
        lambda tol: free_support_barycenter(X, a, tol=tol, max_iter=3000, **start),
        theirs,
        lambda points: float(np.sqrt(np.mean(np.sum((points - best) ** 2, axis=1))) / scale),
        lambda result: result.points,
        1e-3,
        (1e-5,),
        (1e-5,),
    )


def cells(*, quick: bool) -> Iterator[Cell]:
    """All of them, made one at a time."""
    for kind in ("gauss", "random", "cloud"):
        for n, k in ((200, 2), (200, 8)) if quick else ((100, 2), (200, 8), (500, 5), (1000, 10)):
            for reg in (0.1, 1e-2, 2e-3):
                yield fixed(kind, n, k, reg, "sinkhorn")
    for reg in (1e-3, 2e-4):
        for method in ("sinkhorn", "sinkhorn_stabilized", "sinkhorn_log"):
            yield fixed("gauss", 200, 3, reg, method)
    for n in (64,) if quick else (64, 128):
        for reg in (2e-2, 4e-3, 1e-3):
            yield picture(n, reg, "sinkhorn")
    yield picture(32, 3e-4, "sinkhorn_log")
    for kind in ("gauss", "random"):
        for reg in (5e-2, 1e-2, 3e-3):
            yield debiased(kind, 200, 3, reg)
    yield free(50, 80, 3, 2, None)
    yield free(200, 300, 3, 2, None)
    yield free(50, 80, 3, 2, 3.0)
    yield free(200, 300, 3, 2, 3.0)


def fastest(call: Callable[[], Any], turns: int) -> tuple[float, Any]:
    """Seconds of the fastest of several calls, and what the last one returned."""
    best, answer = np.inf, None
    for _ in range(turns):
        start = time.perf_counter()
        answer = call()
        best = min(best, time.perf_counter() - start)
    return best, answer


def accurate(solve: Callable[[float], np.ndarray], settings: tuple[float, ...], cell: Cell) -> tuple[float | None, float]:
    """The loosest setting that is accurate enough, None if there is none, and the error reached."""
    error, since = np.inf, time.perf_counter()
    for setting in settings:
        answer = solve(setting)
        error = cell.error(answer) if np.all(np.isfinite(answer)) else np.nan
        if error <= cell.accuracy:
            return setting, error
        if np.isnan(error) or time.perf_counter() - since > PATIENCE:
            break
    return None, error


def race(cell: Cell, turns: int) -> float:
    """Print a row of the table; return POT's time over ours, infinite where POT is not accurate, 0 where ours is not."""
    tol, error = accurate(lambda tol: cell.answer(cell.ours(tol)), cell.tols, cell)
    threshold, their_error = accurate(cell.theirs, cell.thresholds, cell)
    mine = theirs = np.inf
    long = fastest(lambda: cell.ours(tol or cell.tols[-1]), 1)[0] > 1.0
    for _ in range(1 if long else turns):
        mine = min(mine, fastest(lambda: cell.ours(tol or cell.tols[-1]), 1)[0])
        if threshold is not None:
            theirs = min(theirs, fastest(lambda: cell.theirs(threshold), 1)[0])
    shown = f"{1e3 * theirs:10.1f}" if threshold is not None else f"{'nan' if np.isnan(their_error) else 'x':>10}"
    ratio = f"{theirs / mine:7.1f}" if threshold is not None else f"{'-':>7}"
    print(f"| {cell.name:47} | {1e3 * mine:9.1f} | {shown} | {ratio} | {error:8.1e} | {their_error:8.1e} |", flush=True)
    if tol is None:
        return 0.0
    return np.inf if threshold is None else theirs / mine


def main() -> int:
    """Print the table; the exit status is 1 where POT is ahead or ours is not accurate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--turns", type=int, default=TURNS, help="solves of each in a cell (default: %(default)s)")
    arguments = parser.parse_args()
    print(f"| {'problem':47} | {'ours, ms':>9} | {'POT, ms':>10} | {'ratio':>7} | {'error':>8} | {'of POT':>8} |")
    print(f"|{'---|' * 6}")
    ratios = []
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for cell in cells(quick=arguments.quick):
            if arguments.only in cell.name:
                ratios.append(race(cell, arguments.turns))
    finite = [ratio for ratio in ratios if np.isfinite(ratio)]
    if finite:
        mean = np.exp(np.mean(np.log(np.maximum(finite, 1e-9))))
        print(f"\nsmallest ratio {min(finite):.2f}, geometric mean {mean:.1f}, {len(ratios)} cells")
    return int(min(ratios, default=1.0) < NOISE)


if __name__ == "__main__":
    sys.exit(main())
