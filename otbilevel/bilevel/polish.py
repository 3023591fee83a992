"""A polish that is not part of LV-HBA: F under the lower level's optimality conditions, second derivatives by differences.

On a piece, where some lower rows are active and the others are not, these conditions are equations, and SLSQP converges fast.
Between pieces rows with a zero multiplier or a zero slack change sides, one at a time, while F falls.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize, nnls

from otbilevel.bilevel.scaled import ScaledProblem
from otbilevel.bilevel.search import Candidate, Search

ZERO = 1e-4
"""Slack, or multiplier, in scaled units, up to which a row may change sides."""
STEP = 1e-6
"""Of differences."""
SOLVED = 1e-7
"""Residual of the conditions up to which a piece counts as solved."""
FALL = 1e-9
"""Relative fall of F that is worth a pivot."""
PIECES = 60
"""How many are solved at most."""
SLACK = 1e-9
"""By which gap and violation may grow, in their units: rounding."""


def polish(search: Search, best: Candidate) -> tuple[Candidate, int]:
    """Minimise F over pieces of the lower level's optimality conditions, from a point that satisfies them nearly.

    Parameters
    ----------
    search : Search
        Judges points by fresh lower solves.
    best : Candidate
        Where to start.

    Returns
    -------
    Candidate
        The polished point, or `best` when its gap, violation or F is worse than before.
    int
        How many pieces were solved.
    """
    problem = search.problem
    found, count = _descend(problem, best.w)
    new = search.judge(found, best.penalty, best.change)
    unit = max(problem.lower_factor, abs(problem.f(best.w)))
    kept = new.gap <= max(best.gap, SLACK * unit) and new.violation <= max(best.violation, SLACK)
    return (new if kept and new.value < best.value else best), count


def _descend(problem: ScaledProblem, w: np.ndarray) -> tuple[np.ndarray, int]:
    """The end of the pivots, and the number of pieces tried."""
    active, lam = _split(problem, w)
    found = _piece(problem, w, active, lam)
    if found is None:
        return w, 1
    (w, lam), count, value = found, 1, problem.F(found[0])
    improved = True
    while improved:
        improved = False
        doubtful = ~problem.equality & np.where(active, lam < ZERO, problem.g(w) > -ZERO)
        for i in np.flatnonzero(doubtful):
            if count == PIECES:
                return w, count
            other = active.copy()
            other[i] = not other[i]
            found, count = _piece(problem, w, other, lam), count + 1
            if found is not None and problem.F(found[0]) < value - FALL * max(1.0, abs(value)):
                (w, lam), active, value, improved = found, other, problem.F(found[0]), True
                break
    return w, count


def _split(problem: ScaledProblem, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows with a multiplier, and these, by non-negative least squares; that of an equality is a difference of two."""
    n, equality = problem.n, problem.equality
    near = np.flatnonzero(equality | (problem.g(w) > -ZERO))
    free = np.flatnonzero(equality)
    columns = problem.dg(w)[:, n:].T
    active, lam = equality.copy(), np.zeros(equality.size)
    if near.size:
        both, _ = nnls(np.hstack([columns[:, near], -columns[:, free]]), -problem.df(w)[n:])
        lam[near] = both[: near.size]
        lam[free] -= both[near.size :]
        active |= lam > ZERO
    return active, lam


def _piece(problem: ScaledProblem, w: np.ndarray, active: np.ndarray, lam: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The least F where these rows are active and the others carry no multiplier; None when no such point is found."""
    n, size, rows, rest = problem.n, w.size, np.flatnonzero(active), np.flatnonzero(~active)
    if rows.size > problem.m:
        return None  # their gradients in y depend on each other

    def slope(v: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
        found: np.ndarray = problem.df(v)[n:] + problem.dg(v)[rows, n:].T @ multipliers
        return found

    def equations(u: np.ndarray) -> np.ndarray:
        return np.concatenate([slope(u[:size], u[size:]), problem.g(u[:size])[rows]])

    def derivative(u: np.ndarray) -> np.ndarray:
        v, multipliers, jacobian = u[:size], u[size:], problem.dg(u[:size])[rows]
        base, second = slope(v, multipliers), np.empty((problem.m, size))
        for j in range(size):
            moved = v.copy()
            moved[j] += STEP * max(1.0, abs(v[j]))
            second[:, j] = (slope(moved, multipliers) - base) / (moved[j] - v[j])
        return np.vstack([np.hstack([second, jacobian[:, n:].T]), np.hstack([jacobian, np.zeros((rows.size, rows.size))])])

    def wide(matrix: np.ndarray) -> np.ndarray:
        return np.hstack([matrix, np.zeros((len(matrix), rows.size))])

    upper = problem.slsqp_rows(lower=False)
    constraints = [
        {"type": "eq", "fun": equations, "jac": derivative},
        {"type": "ineq", "fun": lambda u: -problem.g(u[:size])[rest], "jac": lambda u: -wide(problem.dg(u[:size])[rest])},
        *({**row, "fun": lambda u, f=row["fun"]: f(u[:size]), "jac": lambda u, d=row["jac"]: wide(d(u[:size]))} for row in upper),
    ]
    # Bounds of y are lower rows already: once more, active ones would be dependent.
    low = np.concatenate([problem.low[:n], np.full(size - n, -np.inf), np.where(problem.equality[rows], -np.inf, 0.0)])
    high = np.concatenate([problem.high[:n], np.full(size - n + rows.size, np.inf)])
    start = np.clip(np.concatenate([w, lam[rows]]), low, high)
    result = minimize(
        lambda u: problem.F(u[:size]),
        start,
        jac=lambda u: np.concatenate([problem.dF(u[:size]), np.zeros(rows.size)]),
        method="SLSQP",
        bounds=np.c_[low, high],
        constraints=constraints,
        options={"ftol": 1e-12, "maxiter": 100},
    )
    u = np.clip(result.x, low, high)
    if not np.all(np.isfinite(u)) or np.abs(equations(u)).max() > SOLVED or problem.violation(u[:size]) > SOLVED:
        return None
    found = np.zeros(active.size)
    found[rows] = u[size:]
    return np.clip(u[:size], problem.low, problem.high), found
