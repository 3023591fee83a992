"""LV-HBA as published: one loop, a gradient step for the saddle point, a projected gradient step for the rest (Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from otbilevel._core.array import Array, array_namespace, clamp
from otbilevel.bilevel.lipschitz import lipschitz
from otbilevel.bilevel.lower import solve_lower
from otbilevel.bilevel.projection import Polyhedron
from otbilevel.bilevel.result import BilevelResult
from otbilevel.bilevel.scaled import ScaledProblem
from otbilevel.bilevel.slsqp import project
from otbilevel.bilevel.task import SETTLED, Task

DIVERGED = 1e6
"""Size of a point, relative to the start, from which on the run diverges."""
SMALL_STEP = 1e-9
"""Movement in a step, relative to the point, from which on the run has settled."""
GROWTH = 10.0
"""Of r, when a multiplier meets it."""


@dataclass(frozen=True)
class Steps:
    """Step sizes and parameters of Algorithm 1.

    Attributes
    ----------
    alpha, beta, eta : float
        Step sizes of (x, y), of z and of the saddle point.
    gamma1, gamma2 : float
        Proximal parameters of theta and lam.
    c0, p : float
        The penalty of step k is c0 (k + 1)^p, 0 <= p < 1/2.
    r : float
        Bound of multipliers.
    """

    alpha: float
    beta: float
    eta: float
    gamma1: float
    gamma2: float
    c0: float
    p: float
    r: float


@dataclass(frozen=True)
class State:
    """Where a run is: arrays of any library, and the number of steps made.

    Attributes
    ----------
    x, y : (n,), (m,) array
        The point.
    z, lam : (l,) array
        Multipliers: that of the value function, and that of the saddle point.
    theta : (m,) array
        The lower variables of the saddle point.
    k : int
        Steps.
    """

    x: Array
    y: Array
    z: Array
    theta: Array
    lam: Array
    k: int


@dataclass(frozen=True)
class Oracles:
    """What a step needs to know.

    Attributes
    ----------
    upper, lower : callable
        (x, y) -> gradients in x and in y.
    g : callable
        (x, y) -> (l,), the lower rows.
    vjp : callable
        (x, y, lam) -> J_x' lam and J_y' lam.
    equality : (l,) array of bool
        Which rows are equations.
    project : callable
        (x, y) -> the nearest point of C.
    project_y : callable
        y -> the nearest point of Y.
    """

    upper: Callable[[Array, Array], tuple[Array, Array]]
    lower: Callable[[Array, Array], tuple[Array, Array]]
    g: Callable[[Array, Array], Array]
    vjp: Callable[[Array, Array, Array], tuple[Array, Array]]
    equality: Array
    project: Callable[[Array, Array], tuple[Array, Array]]
    project_y: Callable[[Array], Array]


def step(oracles: Oracles, steps: Steps, state: State) -> State:
    """One step of Algorithm 1 (Yao et al., 2024): two gradients of f in y, two in x, one of F, one projection on C."""
    x, y, theta, lam, z = state.x, state.y, state.theta, state.lam, state.z
    c = steps.c0 * (state.k + 1) ** steps.p
    # Both at the old (theta, lam).
    in_theta = oracles.lower(x, theta)[1] + oracles.vjp(x, theta, lam)[1] + (theta - y) / steps.gamma1
    in_lam = -oracles.g(x, theta) + (lam - z) / steps.gamma2
    theta = oracles.project_y(theta - steps.eta * in_theta)
    lam = _bounded(lam - steps.eta * in_lam, oracles.equality, steps.r)
    upper, lower = oracles.upper(x, y), oracles.lower(x, y)
    at_theta = oracles.lower(x, theta)[0] + oracles.vjp(x, theta, lam)[0]
    in_x = upper[0] / c + lower[0] - at_theta
    in_y = upper[1] / c + lower[1] - (y - theta) / steps.gamma1
    in_z = -(lam - z) / steps.gamma2
    x, y = oracles.project(x - steps.alpha * in_x, y - steps.alpha * in_y)
    return State(x, y, _bounded(z - steps.beta * in_z, oracles.equality, steps.r), theta, lam, state.k + 1)


def _bounded(lam: Array, equality: Array, r: float) -> Array:
    """In Z: [0, r] for inequalities, [-r, r] for equations."""
    xp = array_namespace(lam)
    return xp.where(equality, clamp(lam, -r, r), clamp(lam, 0.0, r))


def solve(task: Task, given: dict[str, float | None]) -> BilevelResult:
    """Run the loop until it moves no more or the limit is reached."""
    resumed = task.state.get("origin") is not None
    origin = task.state["origin"] if resumed else task.start  # lengths are measured there, whether a run is interrupted or not
    scaled = ScaledProblem(task.problem, origin, np.random.default_rng(0))
    n = scaled.n
    oracles = _oracles(scaled, task.projection or _projection(scaled, origin))
    x, y = oracles.project(origin[:n], origin[n:])
    steps = _steps(scaled, np.concatenate([x, y]), given)
    limit, diverged = DIVERGED * (1.0 + float(np.linalg.norm(x)) + float(np.linalg.norm(y))), False
    count = scaled.lower_rows.count
    state = State(x, y, np.zeros(count), y.copy(), np.zeros(count), 0)
    if resumed:
        state = State(**{name: task.state[name] for name in ("x", "y", "z", "theta", "lam", "k")})
        steps = replace(steps, r=float(task.state["r"]))
    moved = math.inf
    while True:
        try:
            new = step(oracles, steps, state)
        except FloatingPointError:
            diverged = True
            break
        if not float(np.linalg.norm(new.x)) + float(np.linalg.norm(new.y)) < limit:
            diverged = True
            break
        moved = float(np.linalg.norm(np.concatenate([new.x - state.x, new.y - state.y])))
        state = new
        if given["r"] is None and count and float(np.abs(state.lam).max()) >= steps.r:
            steps = replace(steps, r=GROWTH * steps.r)
        point = lambda: {"x": state.x, "y": state.y}  # noqa: E731, B023
        going_on = task.monitor.record(point, penalty=steps.c0 * state.k**steps.p, moved=moved)
        if not going_on or moved <= SMALL_STEP * steps.alpha * (1.0 + float(np.linalg.norm(state.x))):
            break
    w = np.concatenate([state.x, state.y])
    lowest = solve_lower(scaled, state.x, state.y)
    gap = scaled.f(w) - lowest.value if math.isfinite(lowest.value) else math.inf
    met = count > 0 and float(np.abs(state.lam).max()) >= steps.r
    penalty = steps.c0 * state.k**steps.p
    # The projected gradient of F + c (f - v), relative to that of F: small gaps say nothing while this is large.
    change = penalty * moved / (steps.alpha * max(1e-8, float(np.linalg.norm(scaled.dF(w)))))
    how = f"single loop of the paper, {state.k} steps"
    how += "; a multiplier is at its bound: raise r" if met else "; it diverged: give smaller steps alpha, eta" if diverged else ""
    return task.result(
        w,
        gap=gap / scaled.lower_factor,
        stationarity=change,
        settled=change <= SETTLED and not met and not diverged,
        multipliers=scaled.lower_rows.multipliers(state.lam, scaled.lower_factor),
        penalty=penalty,
        how=how,
        state={**{name: getattr(state, name) for name in ("x", "y", "z", "theta", "lam", "k")}, "r": steps.r, "origin": origin},
    )


def _oracles(scaled: ScaledProblem, nearest: Callable[[np.ndarray], np.ndarray]) -> Oracles:
    n, rows = scaled.n, scaled.lower_rows

    def split(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return v[:n], v[n:]

    return Oracles(
        upper=lambda x, y: split(scaled.dF(np.concatenate([x, y]))),
        lower=lambda x, y: split(scaled.df(np.concatenate([x, y]))),
        g=lambda x, y: rows.values(np.concatenate([x, y])),
        vjp=lambda x, y, lam: split(rows.jacobian(np.concatenate([x, y])).T @ lam),
        equality=rows.equality,
        project=lambda x, y: split(nearest(np.concatenate([x, y]))),
        project_y=lambda y: np.clip(y, scaled.low[n:], scaled.high[n:]),
    )


def _projection(scaled: ScaledProblem, w: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Onto C: a box, a polyhedron where all rows are affine, or whatever SLSQP finds."""
    sets = (scaled.lower_rows, scaled.upper_rows)
    if not any(rows.count for rows in sets):
        return lambda v: np.clip(v, scaled.low, scaled.high)
    elsewhere = w + 1.0 + np.abs(w)
    if not all(np.allclose(rows.jacobian(w), rows.jacobian(elsewhere), atol=1e-7) for rows in sets):
        return lambda v: project(scaled, v)
    below, above, eye = scaled.low > -np.inf, scaled.high < np.inf, np.eye(w.size)
    matrix = np.vstack([*(rows.jacobian(w) for rows in sets), -eye[below], eye[above]])
    offsets = [rows.jacobian(w) @ w - rows.values(w) for rows in sets]
    right = np.concatenate([*offsets, -scaled.low[below], scaled.high[above]])
    equality = np.concatenate([*(rows.equality for rows in sets), np.zeros(len(right) - sum(rows.count for rows in sets), bool)])
    return Polyhedron(matrix, right, equality)


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
    jac = float(np.linalg.norm(rows, 2)) if rows.size else 0.0

    def chosen(name: str, default: float) -> float:
        value = given[name]
        return default if value is None else float(value)

    # Below 1/(2 rho) for the weak convexity rho <= L_f; a linear program has none, and needs a large one.
    gamma1 = chosen("gamma1", 0.5 / L_f if L_f > 0.5 else 10.0)
    gamma2 = chosen("gamma2", gamma1)
    c0, p = chosen("c0", 10.0), chosen("p", 0.49)
    size = max(L_f + 1.0 / gamma1, 1.0 / gamma2) + jac
    eta = chosen("eta", min(1.0 / gamma1, 1.0 / gamma2) / size**2)
    alpha = chosen("alpha", 0.25 / (L_F / c0 + 2.0 * L_f + 1.0 / gamma1 + jac))
    return Steps(alpha, chosen("beta", min(0.5 * gamma2, alpha)), eta, gamma1, gamma2, c0, p, chosen("r", 100.0))
