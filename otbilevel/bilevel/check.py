"""Whether the derivatives that a user gave are those of the functions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from otbilevel.bilevel.constraints import Rows, differences
from otbilevel.bilevel.problem import BilevelProblem, Objective

AGREE = 1e-4
"""Difference of a derivative and a central difference, relative to the largest of its row, that rounding and curvature explain."""

SECOND = 1e-4
"""Step of differences of gradients, which may be differences themselves."""


def check_gradients(problem: BilevelProblem, w: np.ndarray) -> None:
    """Compare all derivatives with central differences at w.

    Raises
    ------
    ValueError
        When one is off; the message names the function and its worst component.
    """
    n = problem.n
    for level in (problem.upper, problem.lower):
        _compare(f"jac_{level.name} disagrees with the function", level.gradient(w)[None, :], differences(_as_vector(level), w), n)
    for rows in (problem.lower_rows, problem.upper_rows):
        if rows.count:
            found = differences(rows.values, w)
            for given in (rows.jacobian(w), _of(rows, w)):  # the user may have given both
                _compare(f"the derivative of {rows.name} disagrees with the function", given, found, n)
    if problem.hvp_yy or problem.hvp_xy:
        _check_products(problem, w)


def _check_products(problem: BilevelProblem, w: np.ndarray) -> None:
    """Compare products with unit vectors: row j is how the gradient of f changes with y_j."""
    x, y = w[: problem.n], w[problem.n :]
    second = differences(lambda v: problem.lower.gradient(np.concatenate([x, v])), y, SECOND).T
    rounding = float(np.abs(problem.lower.gradient(w)).max())  # differences tell nothing of entries that are much smaller
    for name, found, n in (("hvp_yy", second[:, x.size :], 0), ("hvp_xy", second[:, : x.size], x.size)):
        product = getattr(problem, name)
        if product is not None:
            given = np.array([product(w, unit) for unit in np.eye(y.size)])
            _compare(f"{name} disagrees with the gradient of lower", given, found, n, "product with unit vector", rounding)


def _as_vector(level: Objective) -> Callable[[np.ndarray], np.ndarray]:
    return lambda w: np.array([level.value(w)])


def _of(rows: Rows, w: np.ndarray) -> np.ndarray:
    """The Jacobian by products with it, row by row."""
    return np.array([rows.vjp(w, unit) for unit in np.eye(rows.count)])


def _compare(what: str, given: np.ndarray, found: np.ndarray, n: int, entry: str = "", least: float = 1e-6) -> None:
    size = np.maximum(np.abs(given).max(axis=1, keepdims=True), np.abs(found).max(axis=1, keepdims=True))
    off = np.abs(given - found) / np.maximum(size, max(least, 1e-6))
    row, column = np.unravel_index(int(np.argmax(off)), off.shape)
    if off[row, column] > AGREE:
        where = f"x[{column}]" if column < n else f"y[{column - n}]"
        entry = f"{entry} {row}" if entry else f"derivative of row {row}" if len(given) > 1 else "derivative"
        msg = f"{what}: its {entry} in {where} is {given[row, column]:.6g}, and differences give {found[row, column]:.6g}"
        raise ValueError(msg)
