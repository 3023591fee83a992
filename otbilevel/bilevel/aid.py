"""Implicit differentiation, for lower levels without constraints: L-BFGS on x -> F(x, y*(x)), gradients by conjugate gradients."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.optimize import minimize

from otbilevel._core import validate
from otbilevel._core.result import ConvergenceWarning, Status
from otbilevel.bilevel.free import free_gap, lower_solution, require_free, unit
from otbilevel.bilevel.hypergradient import HypergradientResult, Implicit
from otbilevel.bilevel.result import BilevelResult
from otbilevel.bilevel.task import Task
from otbilevel.linalg.conversion import FunctionOperator

STEP = 1e-5
"""Length of a difference of gradients, relative to the point."""


@dataclass(frozen=True)
class AIDOptions:
    """Settings of implicit differentiation.

    Attributes
    ----------
    solver : str
        A method of `otbilevel.curvature.ihvp` for the linear system.
    damping : float
        What is added to the diagonal of the lower level's Hessian.
    inner_tol : float
        Norm of the lower level's gradient, relative to its size at the start, to which y is solved.
    """

    solver: str = "cg"
    damping: float = 0.0
    inner_tol: float = 1e-8

    def __post_init__(self) -> None:
        validate.real(self.damping, "damping", low=0.0)
        validate.real(self.inner_tol, "inner_tol", low=0.0, strict=True)


class _Reduced:
    """phi(x) = F(x, y*(x)) and its gradient, y and the linear system warm started from the last x."""

    def __init__(self, task: Task) -> None:
        self._task, self._n = task, task.problem.n
        self.options: AIDOptions = task.options
        self.y = task.start[self._n :].copy()
        self.last: HypergradientResult | None = None

    def gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """phi and its gradient."""
        problem, n = self._task.problem, self._n
        self.y = lower_solution(self._task, x, self.y, self.options.inner_tol)
        w = np.concatenate([x, self.y])
        upper, base = problem.upper.gradient(w), problem.lower.gradient(w)
        h = STEP * max(1.0, float(np.linalg.norm(self.y)))

        def along(v: np.ndarray) -> np.ndarray:
            t = h / max(float(np.linalg.norm(v)), 1e-300)
            step = np.concatenate([np.zeros(n), t * v])
            return np.asarray((problem.lower.gradient(w + step) - problem.lower.gradient(w - step)) / (2 * t))

        yy, xy = problem.hvp_yy, problem.hvp_xy
        products = (lambda v: along(v)[n:]) if yy is None else partial(yy, w)
        cross = (lambda v: along(v)[:n]) if xy is None else partial(xy, w)
        op = FunctionOperator(products, self.y.size, self.y, psd=False)
        implicit = Implicit(op, cross, upper[:n], upper[n:], float(np.linalg.norm(base[n:])))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # what fails shows in the result
            self.last = implicit.solve(
                self.options.solver,
                init=self.last,
                estimate_error=False,
                tol=1e-8,
                max_iter=None,
                damping=self.options.damping,
                preconditioner=None,
                options=None,
                rng=0,
            )
        return problem.upper.value(w), self.last.grad


def solve(task: Task) -> BilevelResult:
    """Minimise phi under the bounds of x by L-BFGS."""
    problem, n = task.problem, task.problem.n
    require_free(task)
    reduced, figures = _Reduced(task), {}
    low, high = problem.low[:n], problem.high[:n]

    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = reduced.gradient(x)
        figures[x.tobytes()] = (value, float(np.linalg.norm(x - np.clip(x - slope, low, high))))
        return value, slope

    def callback(x: np.ndarray) -> None:
        value, residual = figures.get(np.asarray(x).tobytes(), (math.nan, math.inf))
        if not task.monitor.record(lambda: {"x": x, "y": reduced.y}, fun=value, stationarity=residual):
            raise StopIteration

    try:
        found = minimize(
            evaluate,
            np.clip(task.start[:n], low, high),
            jac=True,
            method="L-BFGS-B",
            bounds=np.c_[low, high],
            callback=callback,
            options={"maxiter": task.monitor.max_iter, "ftol": 1e-12, "gtol": 1e-8},
        )
        x = np.asarray(found.x)
        value, slope = reduced.gradient(x)
    except FloatingPointError as error:  # a level that is unbounded, or fails far away
        start = np.clip(task.start, problem.low, problem.high)
        return task.result(
            start,
            gap=math.inf,
            stationarity=math.inf,
            settled=False,
            multipliers=np.zeros(0),
            penalty=math.inf,
            how=f"implicit differentiation stopped: {error}",
        )
    stationarity = float(np.linalg.norm(x - np.clip(x - slope, low, high))) / max(1.0, abs(value))
    w = np.concatenate([x, reduced.y])
    last: HypergradientResult = reduced.last  # type: ignore[assignment]
    how = f"implicit differentiation, {task.monitor.nit} steps" + ("" if last.status is Status.SUCCESS else f"; {last.message}")
    return task.result(
        w,
        gap=free_gap(task, w),
        unit=unit(task),
        stationarity=stationarity,
        settled=stationarity <= 1e-4 and last.success,
        multipliers=np.zeros(0),
        penalty=math.inf,
        how=how,
    )
