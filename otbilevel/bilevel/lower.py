"""The lower level at a fixed x, solved afresh: what certificates and restorations stand on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from otbilevel.bilevel.saddle import ValueFunction
from otbilevel.bilevel.scaled import ScaledProblem

FEASIBLE = 1e-8
"""Violation of rows of length one up to which a lower point counts."""
STEPS = 30
"""Proximal steps."""
PROXIMAL = 1e4
"""Their gamma."""
FAR = 1e9
"""Distance from the start, relative to its size, from which the lower level counts as unbounded."""


@dataclass(frozen=True)
class LowerSolution:
    """The lower level at x.

    Attributes
    ----------
    value : float
        Its minimum in scaled units; infinite when no feasible point was found, minus infinity when it seems unbounded.
    y : (m,) ndarray or None
        A minimiser.
    """

    value: float
    y: np.ndarray | None


def proximal_steps(problem: ScaledProblem, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The limit of proximal steps from y: a lower solution near y."""
    value_function, t = ValueFunction(problem), y
    limit = FAR * max(1.0, float(np.abs(y).max()))
    for _ in range(STEPS):
        before, t = t, value_function.solve(x, t, PROXIMAL).theta
        if np.linalg.norm(t - before) < 1e-10 * (1 + np.linalg.norm(t)) or not np.abs(t).max() < limit:
            break
    return t


def solve_lower(problem: ScaledProblem, x: np.ndarray, y: np.ndarray) -> LowerSolution:
    """Minimise f(x, .) under the lower rows from y: by proximal steps with exact quadratic programs, and by SciPy's SLSQP."""
    n, at = problem.n, problem.beside(x)
    t = proximal_steps(problem, x, y)
    limit = FAR * max(1.0, float(np.abs(y).max()))
    box = [
        (None if low == -math.inf else low, None if high == math.inf else high)
        for low, high in zip(problem.low[n:], problem.high[n:], strict=True)
    ]
    found = [t]
    for start in (y, t):
        if np.all(np.isfinite(start)) and np.abs(start).max() < limit:
            result = minimize(
                lambda v: problem.f(at(v)),
                start,
                jac=lambda v: problem.df(at(v))[n:],
                method="SLSQP",
                bounds=box,
                constraints=problem.slsqp_rows(at, lower_only=True),
                options={"ftol": 1e-13, "maxiter": 200},
            )
            found.append(np.clip(result.x, problem.low[n:], problem.high[n:]))
    best = LowerSolution(math.inf, None)
    for v in found:
        if np.all(np.isfinite(v)) and problem.lower_violation(at(v)) < FEASIBLE:
            value = problem.f(at(v))
            if np.abs(v).max() >= limit:
                return LowerSolution(-math.inf, v)
            if value < best.value:
                best = LowerSolution(value, v)
    return best


def restore(problem: ScaledProblem, w: np.ndarray, share: float = 1e-7) -> np.ndarray | None:
    """x stays, and y becomes that of smallest F among those within `share` of the lower optimum (the optimistic choice).

    None when no such point is feasible for both levels.
    """
    n, x = problem.n, w[: problem.n]
    solution = solve_lower(problem, x, w[n:])
    if solution.y is None or not math.isfinite(solution.value):
        return None
    at, unit = problem.beside(x), max(problem.lower_factor, abs(solution.value))
    room = solution.value + share * unit
    near = {"type": "ineq", "fun": lambda t: room - problem.f(at(t)), "jac": lambda t: -problem.df(at(t))[n:]}
    box = [
        (None if low == -math.inf else low, None if high == math.inf else high)
        for low, high in zip(problem.low[n:], problem.high[n:], strict=True)
    ]
    candidates = [at(solution.y)]
    for start in (w[n:], solution.y):
        result = minimize(
            lambda t: problem.F(at(t)),
            start,
            jac=lambda t: problem.dF(at(t))[n:],
            method="SLSQP",
            bounds=box,
            constraints=[*problem.slsqp_rows(at), near],
            options={"ftol": 1e-11, "maxiter": 100},
        )
        candidates.append(at(np.clip(result.x, problem.low[n:], problem.high[n:])))
    good = [
        v
        for v in candidates
        if np.all(np.isfinite(v)) and problem.violation(v) < FEASIBLE * 10 and problem.f(v) <= room + 0.1 * share * unit
    ]
    return min(good, key=problem.F, default=None)
