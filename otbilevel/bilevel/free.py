"""Lower levels without constraints: their solution, and the proof that it is one."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize

from otbilevel.bilevel.task import Task

SAMPLES = 4
"""Points around the start, at which lengths are measured."""


def lower_solution(task: Task, x: np.ndarray, y: np.ndarray, tol: float) -> np.ndarray:
    """The lower solution from y, its gradient at most `tol` times as large as at the start of the task."""
    lower, n = task.problem.lower, task.problem.n
    scale = max(1e-12, float(np.linalg.norm(lower.gradient(task.start)[n:])))
    found = minimize(
        lambda v: lower.value(np.concatenate([x, v])),
        y,
        jac=lambda v: lower.gradient(np.concatenate([x, v]))[n:],
        method="L-BFGS-B",
        options={"maxiter": 2000, "maxcor": 20, "ftol": 0.0, "gtol": tol * scale / math.sqrt(y.size)},
    )
    return np.asarray(found.x)


def free_gap(task: Task, w: np.ndarray) -> float:
    """f minus the lower optimum, from the start of the task instead of from y; infinite when that fails."""
    n, lower = task.problem.n, task.problem.lower
    try:
        best = lower_solution(task, w[:n], task.start[n:], 1e-11)
        gap = lower.value(w) - lower.value(np.concatenate([w[:n], best]))
    except FloatingPointError:
        return math.inf
    return max(gap, 0.0) if math.isfinite(gap) else math.inf


def unit(task: Task) -> float:
    """The length of the lower level's gradient in y around the start."""
    points = task.problem.around(task.start, np.random.default_rng(0), SAMPLES, jacobians=False)
    try:
        return 1.0 / task.problem.factors(points)[1]
    except FloatingPointError:  # of the start itself
        return math.inf


def require_free(task: Task) -> None:
    """Raise a ValueError when there are constraints, or bounds of y."""
    problem = task.problem
    bounded = np.isfinite(problem.low[problem.n :]).any() or np.isfinite(problem.high[problem.n :]).any()
    if problem.lower_rows.count or problem.upper_rows.count or bounded:
        msg = f'method="{task.method}" takes no constraints and no bounds_y, as the lower level must be free: use method="lv-hba"'
        raise ValueError(msg)
