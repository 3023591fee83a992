"""One step of LV-HBA (Algorithm 1 of the paper), in any array library: that of `minimize_bilevel` and of training loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace, clamp

SETTINGS = ("alpha", "beta", "eta", "gamma1", "gamma2", "c0", "p", "r")
"""What a user may set."""
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

    def penalty(self, k: int) -> float:
        """That of step k."""
        return float(self.c0 * (k + 1) ** self.p)


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
    """What a step needs to know; L(x, theta, lam) = f + lam'g is the lower Lagrangian.

    Attributes
    ----------
    penalised : callable
        (x, y, c) -> gradients of F/c + f in x and in y.
    lagrangian_x : callable
        (x, theta, lam) -> gradient of L in x.
    lagrangian_y : callable
        (x, theta, lam) -> gradient of L in theta, and the rows g(x, theta).
    equality : (l,) array of bool
        Which rows are equations.
    project : callable
        (x, y) -> the nearest point of C.
    project_y : callable
        y -> the nearest point of Y.
    """

    penalised: Callable[[Array, Array, float], tuple[Array, Array]]
    lagrangian_x: Callable[[Array, Array, Array], Array]
    lagrangian_y: Callable[[Array, Array, Array], tuple[Array, Array]]
    equality: Array
    project: Callable[[Array, Array], tuple[Array, Array]]
    project_y: Callable[[Array], Array]


Gradients = Callable[[Array, Array], tuple[Array, Array]]


def oracles_of(
    upper: Gradients,
    lower: Gradients,
    g: Callable[[Array, Array], Array],
    vjp: Callable[[Array, Array, Array], tuple[Array, Array]],
    **others: Any,
) -> Oracles:
    """Oracles from separate functions.

    Parameters
    ----------
    upper, lower : callable
        (x, y) -> gradients of F and of f, in x and in y.
    g : callable
        (x, y) -> (l,), the lower rows.
    vjp : callable
        (x, y, lam) -> J_x' lam and J_y' lam.
    **others
        `equality`, `project` and `project_y`.

    Returns
    -------
    Oracles
        What a step takes.
    """

    def penalised(x: Array, y: Array, c: float) -> tuple[Array, Array]:
        (F_x, F_y), (f_x, f_y) = upper(x, y), lower(x, y)  # noqa: N806
        return F_x / c + f_x, F_y / c + f_y

    return Oracles(
        penalised=penalised,
        lagrangian_x=lambda x, theta, lam: lower(x, theta)[0] + vjp(x, theta, lam)[0],
        lagrangian_y=lambda x, theta, lam: (lower(x, theta)[1] + vjp(x, theta, lam)[1], g(x, theta)),
        **others,
    )


def step(oracles: Oracles, steps: Steps, state: State) -> State:
    """One step of Algorithm 1 (Yao et al., 2024): one gradient of L in theta, one in x, one of F and f, one projection on C."""
    x, y, theta, lam, z = state.x, state.y, state.theta, state.lam, state.z
    # Both at the old (theta, lam).
    slope, g = oracles.lagrangian_y(x, theta, lam)
    in_theta = slope + (theta - y) / steps.gamma1
    in_lam = -g + (lam - z) / steps.gamma2
    theta = oracles.project_y(theta - steps.eta * in_theta)
    lam = _bounded(lam - steps.eta * in_lam, oracles.equality, steps.r)
    in_x, in_y = oracles.penalised(x, y, steps.penalty(state.k))
    in_x = in_x - oracles.lagrangian_x(x, theta, lam)
    in_y = in_y - (y - theta) / steps.gamma1
    in_z = -(lam - z) / steps.gamma2
    x, y = oracles.project(x - steps.alpha * in_x, y - steps.alpha * in_y)
    return State(x, y, _bounded(z - steps.beta * in_z, oracles.equality, steps.r), theta, lam, state.k + 1)


def _bounded(lam: Array, equality: Array, r: float) -> Array:
    """In Z: [0, r] for inequalities, [-r, r] for equations."""
    xp = array_namespace(lam)
    lam = clamp(lam, -r, r)
    return xp.where(equality | (lam > 0), lam, xp.zeros_like(lam))


def check_settings(given: Mapping[str, float | None]) -> None:
    """Refuse settings that are no positive numbers, and p outside [0, 1/2)."""
    for name, value in given.items():
        if value is not None:
            validate.real(value, name, low=0.0, strict=name != "p", below=0.5 if name == "p" else float("inf"))


def automatic(L_F: float, L_f: float, rows: float, given: Mapping[str, float | None]) -> Steps:  # noqa: N803 -- the paper's letters
    """What the user gave, and for the rest step sizes from constants of the scaled problem.

    Parameters
    ----------
    L_F, L_f : float
        Lipschitz constants of the gradients of F and f.
    rows : float
        Norm of the Jacobian of g in y.
    given : mapping
        Values of `SETTINGS`, None where they are free.

    Returns
    -------
    Steps
        All of them.
    """

    def chosen(name: str, default: float) -> float:
        value = given[name]
        return default if value is None else float(value)

    # Below 1/(2 rho) for the weak convexity rho <= L_f; a linear program has none, and needs a large one.
    gamma1 = chosen("gamma1", 0.5 / L_f if L_f > 0.5 else 10.0)
    gamma2 = chosen("gamma2", gamma1)
    c0, p = chosen("c0", 10.0), chosen("p", 0.3)
    size = max(L_f + 1.0 / gamma1, 1.0 / gamma2) + rows
    convexity = min(1.0 / gamma1, 1.0 / gamma2)  # strong, of the saddle point
    eta = chosen("eta", convexity / size**2)
    # The saddle point must be able to follow (x, y), at the rate eta * convexity: else all of it diverges.
    alpha = chosen("alpha", min(0.4 / (L_F / c0 + 2.0 * L_f + 1.0 / gamma1 + rows), eta * convexity))
    return Steps(alpha, chosen("beta", min(0.5 * gamma2, alpha)), eta, gamma1, gamma2, c0, p, chosen("r", 100.0))
