"""Whether the derivatives that a user gave are those of the functions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from otbilevel.bilevel.constraints import Rows, differences
from otbilevel.bilevel.problem import BilevelProblem, Objective

AGREE = 1e-4
"""Difference of a derivative and a central difference, relative to the largest of its row, that rounding and curvature explain."""


def check_gradients(problem: BilevelProblem, w: np.ndarray) -> None:
    """Compare all derivatives with central differences at w.

    Raises
    ------
    ValueError
        When one is off; the message names the function and its worst component.
    """
    for level in (problem.upper, problem.lower):
        _compare(f"jac_{level.name}", level.gradient(w)[None, :], differences(_as_vector(level), w), problem.n)
    for rows in (problem.lower_rows, problem.upper_rows):
        if rows.count:
            _compare(f"the derivative of {rows.name}", _of(rows, w), differences(rows.values, w), problem.n)


def _as_vector(level: Objective) -> Callable[[np.ndarray], np.ndarray]:
    return lambda w: np.array([level.value(w)])


def _of(rows: Rows, w: np.ndarray) -> np.ndarray:
    """The Jacobian by products with it, row by row, which is what all methods use."""
    return np.array([rows.vjp(w, unit) for unit in np.eye(rows.count)])


def _compare(name: str, given: np.ndarray, found: np.ndarray, n: int) -> None:
    size = np.maximum(np.abs(given).max(axis=1, keepdims=True), np.abs(found).max(axis=1, keepdims=True))
    off = np.abs(given - found) / np.maximum(size, 1e-6)
    row, column = np.unravel_index(int(np.argmax(off)), off.shape)
    if off[row, column] > AGREE:
        where = f"x[{column}]" if column < n else f"y[{column - n}]"
        of_row = f" of row {row}" if len(given) > 1 else ""
        msg = (
            f"{name} disagrees with the function: its derivative{of_row} in {where} is {given[row, column]:.6g}, "
            f"and differences give {found[row, column]:.6g}"
        )
        raise ValueError(msg)
