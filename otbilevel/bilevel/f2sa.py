"""The fully first-order method F2SA, for lower levels without constraints: no second derivatives, not even their products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from otbilevel._core import validate
from otbilevel.bilevel.free import free_gap, lower_solution, require_free, unit
from otbilevel.bilevel.lipschitz import lipschitz
from otbilevel.bilevel.result import BilevelResult
from otbilevel.bilevel.task import Task

CURVED = 1e-12
"""Lipschitz constant of a gradient from which on a level is not linear."""
ENOUGH = 1e-6
"""Norm of the estimated hypergradient relative to that of F at the start, at which the run ends."""


@dataclass(frozen=True)
class F2SAOptions:
    """Settings of F2SA.

    Attributes
    ----------
    inner : int
        Steps of y and of z for each step of x.
    xi : float, optional
        Step size of x; by default the reciprocal of the curvature of F along the last step, at first 0.1 over that at the start.
    penalty, growth : float
        lambda at the start, and what it grows by in each step; it ends at `largest`. For F and f whose gradients have the same
        Lipschitz constant.
    largest : float
        The last lambda. The bias of x is of order 1/lambda.
    """

    inner: int = 20
    xi: float | None = None
    penalty: float = 10.0
    growth: float = 0.1
    largest: float = 1e3

    def __post_init__(self) -> None:
        validate.integer(self.inner, "inner", low=1)
        validate.real(self.penalty, "penalty", low=0.0, strict=True)
        validate.real(self.growth, "growth", low=0.0)
        validate.real(self.largest, "largest", low=self.penalty)
        if self.xi is not None:
            validate.real(self.xi, "xi", low=0.0, strict=True)


def solve(task: Task) -> BilevelResult:
    """Steps of y, z and x in turn, for a growing lambda."""
    require_free(task)
    task.refuse("hvp_yy", "hvp_xy")
    problem, options, n = task.problem, task.options, task.problem.n
    w = np.clip(task.start, problem.low, problem.high)
    rng = np.random.default_rng(0)
    upper = problem.upper.gradient
    L_F, L_f = (lipschitz(gradient, w, rng) for gradient in (upper, problem.lower.gradient))  # noqa: N806
    factor = L_F / L_f if min(L_F, L_f) > CURVED else 1.0  # lambda must mean the same in all units of f
    L_F, L_f = max(L_F, CURVED), max(factor * L_f, CURVED)  # noqa: N806

    def lower(w: np.ndarray) -> np.ndarray:
        return factor * problem.lower.gradient(w)

    x, y, z = w[:n], w[n:], w[n:].copy()
    size = max(1e-12, float(np.linalg.norm(upper(w))))
    penalty, xi, last = options.penalty, options.xi or 0.1 / L_F, None
    residual, how = math.inf, ""
    try:
        while True:
            for _ in range(options.inner):
                z = z - lower(_both(x, z))[n:] / L_f
                y = y - (upper(_both(x, y))[n:] / penalty + lower(_both(x, y))[n:]) / (L_f + L_F / penalty)
            slope = upper(_both(x, y))[:n] + penalty * (lower(_both(x, y))[:n] - lower(_both(x, z))[:n])
            if options.xi is None and last is not None:
                xi = _step(x - last[0], slope - last[1], xi)
            last = x, slope
            moved = np.clip(x - xi * slope, problem.low[:n], problem.high[:n])
            residual = float(np.linalg.norm(x - moved)) / (xi * size)
            x = moved
            going_on = task.monitor.record(partial(dict, x=x, y=y), stationarity=residual, penalty=penalty)
            if not going_on or (residual <= ENOUGH and penalty >= options.largest):
                break
            penalty = min(penalty + options.growth * penalty, options.largest)
    except FloatingPointError as error:
        how, residual = f"; stopped: {error}", math.inf
    if residual < math.inf:
        w, gap = np.concatenate([x, lower_solution(task, x, z, 1e-10)]), None
    else:
        w, gap = np.clip(task.start, problem.low, problem.high), math.inf
    return task.result(
        w,
        gap=free_gap(task, w) if gap is None else gap,
        unit=unit(task),
        stationarity=residual,
        settled=residual <= 1e-3,
        multipliers=np.zeros(0),
        penalty=penalty,
        how=f"fully first order, {task.monitor.nit} steps{how}",
    )


def _both(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.concatenate([x, y])


def _step(s: np.ndarray, u: np.ndarray, before: float) -> float:
    """Barzilai and Borwein's shorter step, within a factor of two of the last one."""
    product, square = float(s @ u), float(u @ u)
    found = product / square if product > 0 and square > 0 else before
    return min(max(found, 0.5 * before), 2.0 * before)
