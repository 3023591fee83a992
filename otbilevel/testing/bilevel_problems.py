"""Small bilevel problems with known optima: linear, quadratic and merely convex lower levels, ties, jumps, no interior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.optimize import LinearConstraint, minimize_scalar

from otbilevel.bilevel.constraints import CoupledConstraint


@dataclass(frozen=True)
class BilevelExample:
    """A bilevel problem, and what solves it.

    Attributes
    ----------
    upper, lower : callable
        F(x, y) and f(x, y).
    jac_upper, jac_lower : callable
        Their gradients in x and in y.
    x0, y0 : tuple of float
        Where to start.
    fun : float
        The optimal F.
    settings : dict
        Constraints and bounds, as `minimize_bilevel` takes them.
    x : tuple of float or None
        The optimal x, where there is one.
    """

    upper: Callable[[Any, Any], Any]
    lower: Callable[[Any, Any], Any]
    jac_upper: Callable[[Any, Any], Any]
    jac_lower: Callable[[Any, Any], Any]
    x0: tuple[float, ...]
    y0: tuple[float, ...]
    fun: float
    settings: dict[str, Any] = field(default_factory=dict)
    x: tuple[float, ...] | None = None


def _linear(rows: Any, ub: Any) -> LinearConstraint:
    return LinearConstraint(np.array(rows, float), ub=np.array(ub, float))


def _best(value: Callable[[float], float], low: float, high: float) -> float:
    """The minimum of a function of one variable on an interval, by a grid and SciPy."""
    grid = np.linspace(low, high, 20_001)
    values = np.array([value(float(t)) for t in grid])
    k = int(np.argmin(values))
    around = (float(grid[max(k - 1, 0)]), float(grid[min(k + 1, len(grid) - 1)]))
    polished = minimize_scalar(value, bounds=around, method="bounded", options={"xatol": 1e-13})
    return min(float(values[k]), float(polished.fun))


def _pair(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.array(a, float), np.array(b, float)


def bilevel_examples() -> dict[str, BilevelExample]:
    """All of them, by name.

    Returns
    -------
    dict of BilevelExample
        The first five are from S. Zhou, A. B. Zemkoho, A. Tin, BOLIB: bilevel optimization library of test problems, 2020.
    """
    free = {"bounds_x": (-5, 5)}
    examples = {
        "Bard1988Ex1": BilevelExample(
            lambda x, y: (x[0] - 5) ** 2 + (2 * y[0] + 1) ** 2,
            lambda x, y: (y[0] - 1) ** 2 - 1.5 * x[0] * y[0],
            lambda x, y: _pair([2 * (x[0] - 5)], [4 * (2 * y[0] + 1)]),
            lambda x, y: _pair([-1.5 * y[0]], [2 * (y[0] - 1) - 1.5 * x[0]]),
            (4,),
            (0,),
            17.0,
            {"constraints": _linear([[-3, 1], [1, -0.5], [1, 1]], [-3, 4, 7]), "bounds_x": (0, np.inf), "bounds_y": (0, np.inf)},
            (1.0,),
        ),
        "ShimizuAiyoshi1981Ex1": BilevelExample(
            lambda x, y: x[0] ** 2 + (y[0] - 10) ** 2,
            lambda x, y: (x[0] + 2 * y[0] - 30) ** 2,
            lambda x, y: _pair([2 * x[0]], [2 * (y[0] - 10)]),
            lambda x, y: _pair([2 * (x[0] + 2 * y[0] - 30)], [4 * (x[0] + 2 * y[0] - 30)]),
            (1,),
            (1,),
            100.0,
            {
                "constraints": _linear([[1, 1]], [20]),
                "upper_constraints": _linear([[-1, 1]], [0]),
                "bounds_x": (0, 15),
                "bounds_y": (0, 20),
            },
            (10.0,),
        ),
        "LamparielloSagratella2017Ex32": BilevelExample(
            lambda x, y: x[0] ** 2 + y[0] ** 2,
            lambda x, y: (x[0] + y[0] - 1) ** 2,
            lambda x, y: _pair([2 * x[0]], [2 * y[0]]),
            lambda x, y: _pair([2 * (x[0] + y[0] - 1)], [2 * (x[0] + y[0] - 1)]),
            (1,),
            (1,),
            0.5,
            {},
            (0.5,),
        ),
        "Yezza1996Ex41": BilevelExample(
            lambda x, y: (y[0] - 2) ** 2 / 2 + (y[0] - x[0] + 2) ** 2 / 2,
            lambda x, y: y[0] ** 2 / 2 - y[0] + x[0],
            lambda x, y: _pair([-(y[0] - x[0] + 2)], [y[0] - 2 + y[0] - x[0] + 2]),
            lambda x, y: _pair([1.0], [y[0] - 1]),
            (-1,),
            (-1,),
            0.5,
            {"constraints": _linear([[-1, 1]], [0]), "bounds_y": (0, np.inf)},
            (3.0,),
        ),
        "ClarkWesterberg1988": BilevelExample(
            lambda x, y: x[0] - 4 * y[0],
            lambda x, y: y[0],
            lambda x, y: _pair([1.0], [-4.0]),
            lambda x, y: _pair([0.0], [1.0]),
            (20,),
            (0,),
            -37.0,
            {"constraints": _linear([[-2, 1], [2, 5], [2, -3]], [0, 108, -4])},
            (19.0,),
        ),
        "linear lower level, a tent": BilevelExample(
            lambda x, y: (x[0] - 1.5) ** 2 + (y[0] - 1) ** 2,
            lambda x, y: -y[0],
            lambda x, y: _pair([2 * (x[0] - 1.5)], [2 * (y[0] - 1)]),
            lambda x, y: _pair([0.0], [-1.0]),
            (0.2,),
            (0.0,),
            0.125,
            {"constraints": _linear([[-1, 1], [1, 1]], [0, 2]), "bounds_y": (0, np.inf)},
            (1.25,),
        ),
        "constant lower level": BilevelExample(
            lambda x, y: (x[0] - 1) ** 2 + (y[0] - x[0]) ** 2,
            lambda x, y: 0.0,
            lambda x, y: _pair([2 * (x[0] - 1) - 2 * (y[0] - x[0])], [2 * (y[0] - x[0])]),
            lambda x, y: _pair([0.0], [0.0]),
            (-1,),
            (-1,),
            0.0,
            {"bounds_x": (-2, 3), "bounds_y": (-1, 1)},
            (1.0,),
        ),
        "tied lower solutions": BilevelExample(
            lambda x, y: (x[0] - 1) ** 2 + (y[0] - 1) ** 2 + y[1] ** 2,
            lambda x, y: (y[0] + y[1] - x[0]) ** 2,
            lambda x, y: _pair([2 * (x[0] - 1)], [2 * (y[0] - 1), 2 * y[1]]),
            lambda x, y: _pair([-2 * (y[0] + y[1] - x[0])], [2 * (y[0] + y[1] - x[0])] * 2),
            (3,),
            (0, 2),
            0.0,
            {"bounds_x": (0, 4), "bounds_y": (0, 2)},
            (1.0,),
        ),
        "a lower solution that jumps": BilevelExample(
            lambda x, y: (x[0] - 0.1) ** 2 + (y[0] - 1) ** 2,
            lambda x, y: x[0] * y[0],
            lambda x, y: _pair([2 * (x[0] - 0.1)], [2 * (y[0] - 1)]),
            lambda x, y: _pair([y[0]], [x[0]]),
            (0.8,),
            (-1,),
            0.01,
            {"bounds_x": (-1, 1), "bounds_y": (-1, 1)},
            (0.0,),
        ),
        "an upper constraint that couples": BilevelExample(
            lambda x, y: x[0] ** 2 + y[0] ** 2,
            lambda x, y: (y[0] - x[0]) ** 2,
            lambda x, y: _pair([2 * x[0]], [2 * y[0]]),
            lambda x, y: _pair([-2 * (y[0] - x[0])], [2 * (y[0] - x[0])]),
            (4,),
            (0,),
            2.0,
            {"upper_constraints": _linear([[-1, -1]], [-2]), **free},
            (1.0,),
        ),
        "a lower equality": BilevelExample(
            lambda x, y: (y[0] - 1) ** 2 + (x[0] - 1) ** 2,
            lambda x, y: (y[0] ** 2 + y[1] ** 2) / 2,
            lambda x, y: _pair([2 * (x[0] - 1)], [2 * (y[0] - 1), 0]),
            lambda x, y: _pair([0.0], y),
            (-2,),
            (0, 0),
            0.2,
            {"constraints": LinearConstraint([[-1, 1, 1]], 0, 0)},
            (1.2,),
        ),
        "no interior": BilevelExample(
            lambda x, y: (x[0] - 1) ** 2 + (y[0] - 1) ** 2,
            lambda x, y: y[0],
            lambda x, y: _pair([2 * (x[0] - 1)], [2 * (y[0] - 1)]),
            lambda x, y: _pair([0.0], [1.0]),
            (3,),
            (0,),
            1.0,
            {"constraints": CoupledConstraint(lambda x, y: [y[0] ** 2], lambda x, y: ([[0.0]], [[2 * y[0]]])), **free},
            (1.0,),
        ),
    }
    two_rows = {"constraints": _linear([[-1, 1, 1], [1, -1, -1]], [0, 0])}
    examples["an equality as two inequalities"] = replace(examples["a lower equality"], settings=two_rows)
    return examples | _by_one_variable() | {"unconstrained quadratic": _quadratic()}


def _by_one_variable() -> dict[str, BilevelExample]:
    """Problems whose lower solution is a formula in one x; the optimum comes from a grid."""
    exp, log, sqrt = np.exp, np.log, np.sqrt
    logarithm = BilevelExample(
        lambda x, y: (y[0] - 1) ** 2 + (x[0] - 2) ** 2 / 10,
        lambda x, y: exp(y[0]) - x[0] * y[0],
        lambda x, y: _pair([(x[0] - 2) / 5], [2 * (y[0] - 1)]),
        lambda x, y: _pair([-y[0]], [exp(y[0]) - x[0]]),
        (0.6,),
        (0,),
        _best(lambda x: (log(x) - 1) ** 2 + (x - 2) ** 2 / 10, 0.5, 5.0),
        {"bounds_x": (0.5, 5)},
    )
    disc = BilevelExample(
        lambda x, y: (y[0] - 1) ** 2 + (x[0] - 3) ** 2 / 10 + y[1] ** 2,
        lambda x, y: -y[0],
        lambda x, y: _pair([(x[0] - 3) / 5], [2 * (y[0] - 1), 2 * y[1]]),
        lambda x, y: _pair([0.0], [-1.0, 0.0]),
        (0.5,),
        (0, 0),
        _best(lambda x: (sqrt(x) - 1) ** 2 + (x - 3) ** 2 / 10, 0.0, 5.0),
        {
            "constraints": CoupledConstraint(
                lambda x, y: [y[0] ** 2 + y[1] ** 2 - x[0]], lambda x, y: ([[-1.0]], [[2 * y[0], 2 * y[1]]])
            ),
            "bounds_x": (0, 5),
        },
    )
    toy = BilevelExample(
        lambda x, y: exp(2 - y[0]) / (2 + np.cos(6 * x[0])) + log((4 * x[0] - 2) ** 2 + 1) / 2,
        lambda x, y: (y[0] - 2 * x[0]) ** 2,
        lambda x, y: _pair(
            [6 * np.sin(6 * x[0]) * exp(2 - y[0]) / (2 + np.cos(6 * x[0])) ** 2 + 4 * (4 * x[0] - 2) / ((4 * x[0] - 2) ** 2 + 1)],
            [-exp(2 - y[0]) / (2 + np.cos(6 * x[0]))],
        ),
        lambda x, y: _pair([-4 * (y[0] - 2 * x[0])], [2 * (y[0] - 2 * x[0])]),
        (1.0,),
        (0.0,),
        _best(lambda x: exp(2 - x) / (2 + np.cos(6 * x)) + log((4 * x - 2) ** 2 + 1) / 2, 0.0, 3.0),
        {"constraints": _linear([[-1, 1]], [0]), "bounds_x": (0, 3)},
    )
    clipped = {f"a clipped quadratic, target {target:g}": _clipped(target) for target in (-3.0, -0.5, 0.7, 2.0)}
    facets = {f"two facets, slope {slope:g}": _facets(slope) for slope in (-1.0, 0.5, 4.0)}
    return {"logarithm": logarithm, "disc": disc, "BLOCC toy": toy, **clipped, **facets}


def _clipped(target: float) -> BilevelExample:
    """The lower solution 2 x, clipped to [-1, 1]."""
    return BilevelExample(
        lambda x, y: (y[0] - target) ** 2 + x[0] ** 2 / 4,
        lambda x, y: (y[0] - 2 * x[0]) ** 2,
        lambda x, y: _pair([x[0] / 2], [2 * (y[0] - target)]),
        lambda x, y: _pair([-4 * (y[0] - 2 * x[0])], [2 * (y[0] - 2 * x[0])]),
        (-1.5,),
        (0.3,),
        _best(lambda x: (min(max(2 * x, -1.0), 1.0) - target) ** 2 + x**2 / 4, -3.0, 3.0),
        {"bounds_x": (-3, 3), "bounds_y": (-1, 1)},
    )


def _facets(slope: float) -> BilevelExample:
    """The lower solution max(x - 1, 1 - 2 x, 0)."""
    return BilevelExample(
        lambda x, y: (x[0] - 2) ** 2 + slope * y[0],
        lambda x, y: y[0],
        lambda x, y: _pair([2 * (x[0] - 2)], [slope]),
        lambda x, y: _pair([0.0], [1.0]),
        (3.0,),
        (6.0,),
        _best(lambda x: (x - 2) ** 2 + slope * max(x - 1, 1 - 2 * x, 0.0), -1.0, 4.0),
        {"constraints": _linear([[1, -1], [-2, -1]], [1, -1]), "bounds_x": (-1, 4), "bounds_y": (0, np.inf)},
    )


def _quadratic() -> BilevelExample:
    """f = y'Ay/2 - y'(Bx + b), F = |y - t|^2/2 + |x|^2/4: one linear system."""
    rng = np.random.default_rng(0)
    M, B = rng.standard_normal((4, 4)), rng.standard_normal((4, 3))  # noqa: N806
    A, b, t = M @ M.T + np.eye(4), rng.standard_normal(4), rng.standard_normal(4)  # noqa: N806
    S, s = np.linalg.solve(A, B), np.linalg.solve(A, b)  # noqa: N806
    x = np.linalg.solve(S.T @ S + np.eye(3) / 2, S.T @ (t - s))
    return BilevelExample(
        lambda x, y: ((y - t) @ (y - t)) / 2 + (x @ x) / 4,
        lambda x, y: (y @ A @ y) / 2 - y @ (B @ x + b),
        lambda x, y: _pair(x / 2, y - t),
        lambda x, y: _pair(-B.T @ y, A @ y - B @ x - b),
        (0, 0, 0),
        (0, 0, 0, 0),
        float(np.sum((S @ x + s - t) ** 2) / 2 + (x @ x) / 4),
        {},
        tuple(map(float, x)),
    )
