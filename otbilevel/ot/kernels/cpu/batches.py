"""Stacks of problems in compiled code, problems shared out over threads: see `batch`."""

from __future__ import annotations

from typing import Any

import numpy as np

from otbilevel._core.array import readonly
from otbilevel.ot.kernels.cpu import batch
from otbilevel.ot.kernels.cpu.threads import over_problems

READS_COSTS = True
"""Whether `solve_batch` finds the extremes of the costs by itself, without a pass of its own over the memory."""
_SWEEPS_PER_PROBLEM = 10
"""About how many a problem takes, passes included."""


def bounds(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The smallest entry of each matrix (NaN if one is), the largest finite one, and whether one is +inf."""
    count, size = len(costs), costs[0].size
    lows, highs, forbids = np.empty(count), np.empty(count), np.zeros(count, np.bool_)
    over_problems(batch.bounds, count, count * size // 5, readonly(costs), lows, highs, forbids)
    return lows, highs, forbids


def solve_batch(
    costs: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    reg: np.ndarray,
    extremes: tuple[np.ndarray, np.ndarray] | None,
    tol: float,
    max_iter: int,
    g: np.ndarray,
    *,
    warm: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """Solve a stack; g is where problems start if `warm`. Returns f, g, counts, figures, and the extremes of the costs.

    Without `extremes` these are found, for each problem; None when something is amiss with one (see `batch.solve_problems`): then
    nothing is solved.
    """
    count, n, m = len(a), costs.shape[1], costs.shape[2]
    f, g, counts, figures = np.zeros((count, n)), g.copy(), np.zeros((count, 3), np.int64), np.zeros((count, 4))
    lows, highs = (np.zeros(count), np.zeros(count)) if extremes is None else (np.array(v) for v in extremes)
    work, unread, stop = count * n * m * _SWEEPS_PER_PROBLEM, extremes is None, np.zeros(1, np.bool_)
    arguments = (readonly(costs), a, b, reg, unread, lows, highs, stop, tol, max_iter, warm, f, g, counts, figures)
    over_problems(batch.solve_problems, count, work, *arguments)
    return f, g, counts, figures, None if stop[0] else (lows, highs)


def plans(costs: np.ndarray, f: np.ndarray, g: np.ndarray, reg: np.ndarray, a: np.ndarray, dtype: Any) -> np.ndarray:
    """a_i exp((f_i + g_j - C_ij)/reg) of each problem."""
    count, n, m = len(a), costs.shape[1], costs.shape[2]
    out = np.empty((count, n, m), dtype)
    over_problems(batch.plans, count, count * n * m, readonly(costs), f, g, reg, a, out)
    return out
