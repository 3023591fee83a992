"""LV-HBA as published: one loop, a gradient step for the saddle point, a projected gradient step for the rest (Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from otbilevel.bilevel import lv_hba_large
from otbilevel.bilevel.lipschitz import lipschitz
from otbilevel.bilevel.lower import solve_lower
from otbilevel.bilevel.lv_hba_step import GROWTH, Oracles, State, Steps, automatic, oracles_of, step
from otbilevel.bilevel.projection import Affine, ConvexSet, Polyhedron
from otbilevel.bilevel.result import BilevelResult
from otbilevel.bilevel.scaled import ScaledProblem, ScaledRows, unit_rows
from otbilevel.bilevel.task import SETTLED, Task

DIVERGED = 1e6
"""Size of a point, relative to the start, from which on the run diverges."""
SMALL_STEP = 1e-9
"""Movement in a step, relative to the point, from which on the run has settled."""
DENSE = 1000
"""Lower variables up to which matrices settle what a solve without them did not."""


def solve(task: Task, given: dict[str, float | None]) -> BilevelResult:
    """Run the loop until it moves no more or the limit is reached."""
    task.refuse("hvp_yy", variant=' with options={"variant": "paper"}')
    resumed = task.state.get("origin") is not None
    origin = task.state["origin"] if resumed else task.start  # lengths are measured there, whether a run is interrupted or not
    scaled = ScaledProblem(task.problem, origin, np.random.default_rng(0))
    n = scaled.n
    oracles = _oracles(scaled, _projection(scaled, origin) if task.projection is None else _given(task))
    x, y = oracles.project(origin[:n], origin[n:])
    steps = _steps(scaled, np.concatenate([x, y]), given)
    limit, diverged = DIVERGED * (1.0 + float(np.linalg.norm(x)) + float(np.linalg.norm(y))), False
    count = scaled.lower_rows.count
    state = State(x, y, np.zeros(count), y.copy(), np.zeros(count), 0)
    if resumed:
        state = State(**{name: task.state[name] for name in _checked(task.state, state)})
        steps = replace(steps, r=float(task.state["r"]))
    moved, following, why = math.inf, math.inf, ""
    while True:
        try:
            new = step(oracles, steps, state)
        except FloatingPointError as error:
            diverged, why = True, f" ({error})"
            break
        if not float(np.linalg.norm(new.x)) + float(np.linalg.norm(new.y)) < limit:
            diverged = True
            break
        moved = float(np.linalg.norm(np.concatenate([new.x - state.x, new.y - state.y])))
        # At a vertex (x, y) may stand still while the saddle point, and with it the force on (x, y), is still on its way.
        following = max(
            float(np.linalg.norm(new.theta - state.theta)) / steps.eta,
            float(np.linalg.norm(new.lam - state.lam)) / steps.eta,
            float(np.linalg.norm(new.z - state.z)) / steps.beta,
        )
        state = new
        if given["r"] is None and count and float(np.abs(state.lam).max()) >= steps.r:
            steps = replace(steps, r=GROWTH * steps.r)
        point = lambda: {"x": state.x, "y": state.y}  # noqa: E731, B023
        going_on = task.monitor.record(point, penalty=steps.penalty(state.k - 1), moved=moved)
        if not going_on or max(moved / steps.alpha, following) <= SMALL_STEP * (1.0 + float(np.linalg.norm(state.x))):
            break
    w = np.concatenate([state.x, state.y])
    large = lv_hba_large.suits(task.problem)
    gap = lv_hba_large.LargeLVHBA(task.problem, w, task.rng).gap(w) if large else math.inf
    if not large or (gap == math.inf and scaled.m <= DENSE):
        lowest = solve_lower(scaled, state.x, state.y)
        gap = (scaled.f(w) - lowest.value) / scaled.lower_factor if math.isfinite(lowest.value) else math.inf
    met = count > 0 and float(np.abs(state.lam).max()) >= steps.r
    penalty = steps.penalty(max(0, state.k - 1))
    # The projected gradient of F + c (f - v), relative to that of F: small gaps say nothing while this, or its error, is large.
    change = penalty * max(moved / steps.alpha, following) / max(1e-8, float(np.linalg.norm(scaled.dF(w))))
    how = f"single loop of the paper, {state.k} steps"
    if met:
        how += "; a multiplier is at its bound: raise r"
    elif diverged:
        how += f"; it diverged{why}: give smaller steps alpha, eta"
    return task.result(
        w,
        gap=gap,
        unit=1.0 / scaled.lower_factor,
        stationarity=change,
        settled=change <= SETTLED and not met and not diverged,
        multipliers=scaled.lower_rows.multipliers(state.lam, scaled.lower_factor),
        penalty=penalty,
        how=how,
        state={**{name: getattr(state, name) for name in ("x", "y", "z", "theta", "lam", "k")}, "r": steps.r, "origin": origin},
    )


def _checked(given: dict[str, Any], fresh: State) -> tuple[str, ...]:
    """The entries of a state, which must have the sizes of this problem."""
    names = ("x", "y", "z", "theta", "lam", "k")
    for name in (*names, "r"):
        if name not in given:
            msg = f"init must have {name!r}, as the states of this method do"
            raise ValueError(msg)
        wanted = np.shape(getattr(fresh, name, 0.0))
        if np.shape(given[name]) != wanted:
            msg = f"{name!r} of init must have shape {wanted}, got {np.shape(given[name])}: is it a state of another problem?"
            raise ValueError(msg)
    return names


def _oracles(scaled: ScaledProblem, nearest: Callable[[np.ndarray], np.ndarray]) -> Oracles:
    n, rows = scaled.n, scaled.lower_rows

    def split(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return v[:n], v[n:]

    return oracles_of(
        upper=lambda x, y: split(scaled.dF(np.concatenate([x, y]))),
        lower=lambda x, y: split(scaled.df(np.concatenate([x, y]))),
        g=lambda x, y: rows.values(np.concatenate([x, y])),
        vjp=lambda x, y, lam: split(rows.vjp(np.concatenate([x, y]), lam)),
        equality=rows.equality,
        project=lambda x, y: split(nearest(np.concatenate([x, y]))),
        project_y=lambda y: np.clip(y, scaled.low[n:], scaled.high[n:]),
    )


def _projection(scaled: ScaledProblem, w: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Onto C: a box, a polyhedron where all rows are affine, or a convex set."""
    sets = (scaled.lower_rows, scaled.upper_rows)
    if not any(rows.count for rows in sets):
        return lambda v: np.clip(v, scaled.low, scaled.high)
    if not all(_affine(rows, w) for rows in sets):
        both = np.concatenate([rows.equality for rows in sets])

        def linearise(v: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
            values, counts = np.concatenate([rows.values(v) for rows in sets]), sets[0].count
            return values, lambda lam: sets[0].vjp(v, lam[:counts]) + sets[1].vjp(v, lam[counts:])

        return ConvexSet(linearise, both, scaled.low, scaled.high)
    below, above = np.flatnonzero(scaled.low > -np.inf), np.flatnonzero(scaled.high < np.inf)
    matrix = np.vstack([*(rows.jacobian(w) for rows in sets), unit_rows(below, above, w.size)])
    offsets = [rows.jacobian(w) @ w - rows.values(w) for rows in sets]
    right = np.concatenate([*offsets, -scaled.low[below], scaled.high[above]])
    equality = np.concatenate([*(rows.equality for rows in sets), np.zeros(len(right) - sum(rows.count for rows in sets), bool)])
    return Affine(matrix, right) if equality.all() else Polyhedron(matrix, right, equality)


def _given(task: Task) -> Callable[[np.ndarray], np.ndarray]:
    """The user's projection, what it returns checked."""

    def nearest(v: np.ndarray) -> np.ndarray:
        found = task.library.back(task.projection(task.library.there(v)))
        if found.shape != v.shape:
            msg = f"projection must return shape {v.shape}, got {found.shape}"
            raise ValueError(msg)
        if not np.all(np.isfinite(found)):
            msg = "projection is not finite"
            raise FloatingPointError(msg)
        return found

    return nearest


def _affine(rows: ScaledRows, w: np.ndarray) -> bool:
    """Whether all rows are affine as far as a few points tell."""
    values, slope = rows.values(w), rows.jacobian(w)
    for v in w + (1.0 + np.abs(w)) * np.random.default_rng(0).standard_normal((4, w.size)):
        try:
            predicted, other = values + slope @ (v - w), rows.jacobian(v)
            if not np.allclose(rows.values(v), predicted, atol=1e-7) or not np.allclose(other, slope, atol=1e-7):
                return False
        except FloatingPointError:  # not defined there
            return False
    return True


def _steps(scaled: ScaledProblem, w: np.ndarray, given: dict[str, float | None]) -> Steps:
    """What the user gave, and for the rest step sizes from Lipschitz constants that are estimated at the start.

    F and f are scaled to constants of 1, so that their curvature balances that of rows of length one; where one has none (a linear
    program), to gradients of length one.
    """
    rng, n = np.random.default_rng(0), scaled.n
    L_F, L_f = (lipschitz(gradient, w, rng) for gradient in (scaled.dF, scaled.df))  # noqa: N806
    if L_F > 1e-8:
        scaled.upper_factor, L_F = scaled.upper_factor / L_F, 1.0  # noqa: N806
    if L_f > 1e-8:
        scaled.lower_factor, L_f = scaled.lower_factor / L_f, 1.0  # noqa: N806
    rows = scaled.lower_rows.jacobian(w)[:, n:]
    # The eigenvalues of the smaller product take a fraction of the time of singular values.
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    return automatic(L_F, L_f, math.sqrt(max(0.0, np.linalg.eigvalsh(gram)[-1])) if rows.size else 0.0, given)
