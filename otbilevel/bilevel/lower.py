"""The lower level at a fixed x, solved afresh: what certificates and restorations stand on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
ROUNDING = 1e-13
"""Of f, relative to its size."""
LARGE = 200
"""Variables from which on SLSQP, which takes seconds there, is asked only where proximal steps did not settle."""


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


def proximal_steps(problem: ScaledProblem, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, bool]:
    """The limit of proximal steps from y, a lower solution near y, and whether they settled."""
    value_function, t, settled = ValueFunction(problem), y, False
    limit = FAR * max(1.0, float(np.abs(y).max()))
    for _ in range(STEPS):
        before, t = t, value_function.solve(x, t, PROXIMAL).theta
        settled = bool(np.linalg.norm(t - before) < 1e-10 * (1 + np.linalg.norm(t)))
        if settled or not np.abs(t).max() < limit:
            break
    return t, settled


def solve_lower(problem: ScaledProblem, x: np.ndarray, y: np.ndarray) -> LowerSolution:
    """Minimise f(x, .) under the lower rows from y: by proximal steps with exact quadratic programs, and by SciPy's SLSQP."""
    at = problem.beside(x)
    t, settled = proximal_steps(problem, x, y)
    limit = FAR * max(1.0, float(np.abs(y).max()))
    found = [t]
    proven = settled and y.size >= LARGE and problem.lower_violation(at(t)) < FEASIBLE
    for start in () if proven else (y, t):
        if np.all(np.isfinite(start)) and np.abs(start).max() < limit:
            rows = problem.slsqp_rows(at, upper=False)
            found.append(_slsqp(problem, x, start, problem.f, problem.df, rows, ftol=1e-13, maxiter=200))
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
    """x stays, and y becomes that of smallest F among those with f within `share` of the lower optimum (the optimistic choice).

    None when no such point is feasible for both levels.
    """
    n, x = problem.n, w[: problem.n]
    solution = solve_lower(problem, x, w[n:])
    if solution.y is None or not math.isfinite(solution.value):
        return None
    at, share = problem.beside(x), share + ROUNDING * abs(solution.value)
    room = solution.value + share
    near = {"type": "ineq", "fun": lambda t: room - problem.f(at(t)), "jac": lambda t: -problem.df(at(t))[n:]}
    candidates = [at(solution.y)]
    for start in (w[n:], solution.y):
        rows = [*problem.slsqp_rows(at), near]
        candidates.append(at(_slsqp(problem, x, start, problem.F, problem.dF, rows, ftol=1e-11, maxiter=100)))
    good = [
        v
        for v in candidates
        if np.all(np.isfinite(v)) and problem.violation(v) < FEASIBLE * 10 and problem.f(v) <= room + 0.1 * share
    ]
    return min(good, key=problem.F, default=None)


def _slsqp(
    problem: ScaledProblem,
    x: np.ndarray,
    start: np.ndarray,
    value: Callable[[np.ndarray], float],
    gradient: Callable[[np.ndarray], np.ndarray],
    rows: list[dict[str, Any]],
    **options: float,
) -> np.ndarray:
    """Minimise a function of w over y, x fixed, under rows and the bounds of y."""
    n, at = problem.n, problem.beside(x)
    low, high = problem.low[n:], problem.high[n:]
    box = [(None if a == -math.inf else a, None if b == math.inf else b) for a, b in zip(low, high, strict=True)]
    settings = {"jac": lambda v: gradient(at(v))[n:], "bounds": box, "constraints": rows, "options": options}
    try:
        found = minimize(lambda v: value(at(v)), start, method="SLSQP", **settings).x
    except FloatingPointError:  # functions that are not defined on the way
        found = start
    return np.asarray(np.clip(found, low, high))
