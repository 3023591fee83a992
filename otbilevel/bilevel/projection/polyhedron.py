"""Projections on polyhedra by least-distance programs."""

from __future__ import annotations

from typing import Any

import numpy as np

from otbilevel.bilevel.qp import solve_qp


class Polyhedron:
    """{w : A w <= b, equal where `equality` says so}, exactly, by least-distance programming. NumPy.

    Rows that were active at the last point are tried first: where they are active again, the projection is one small linear system.

    Parameters
    ----------
    A : (l, n) array_like
        Rows.
    b : (l,) array_like
        Right-hand side.
    equality : (l,) array_like of bool, optional
        Which rows are equations; none by default.

    Raises
    ------
    ValueError
        When shapes do not fit; and, at a projection, when the set is empty.
    """

    def __init__(self, A: Any, b: Any, equality: Any = None) -> None:  # noqa: N803
        self._A, self._b = np.atleast_2d(np.asarray(A, float)), np.atleast_1d(np.asarray(b, float))
        rows = len(self._b)
        self._equality = np.zeros(rows, bool) if equality is None else np.asarray(equality, bool)
        if self._A.shape[0] != rows or self._equality.shape != (rows,):
            msg = f"A, b and equality must have as many rows, got {self._A.shape[0]}, {rows} and {self._equality.shape}"
            raise ValueError(msg)
        self._active = self._equality.copy()

    def __call__(self, w: np.ndarray) -> np.ndarray:
        """The nearest point of the set."""
        over = self._A @ w - self._b
        tolerance = 1e-12 * (1.0 + float(np.abs(self._b).max(initial=0.0)) + float(np.abs(w).max()))
        if not self._equality.any() and np.all(over <= 0):
            return w
        again = self._with_active(w, over, tolerance)
        if again is not None:
            return again
        found = solve_qp(np.eye(w.size), np.zeros(w.size), self._A, -over, self._equality)
        if not found.feasible:
            msg = "the polyhedron is empty: its rows contradict each other"
            raise ValueError(msg)
        self._active = (np.abs(found.multipliers) > 0) | self._equality
        nearest: np.ndarray = w + found.d
        return nearest

    def _with_active(self, w: np.ndarray, over: np.ndarray, tolerance: float) -> np.ndarray | None:
        """The projection on the face of the last one, when its multipliers and the other rows say that it is the answer."""
        rows = self._A[self._active]
        if not 0 < len(rows) <= w.size:
            return None
        try:
            multipliers = np.linalg.solve(rows @ rows.T, over[self._active])
        except np.linalg.LinAlgError:
            return None
        point: np.ndarray = w - rows.T @ multipliers
        left = self._A @ point - self._b
        good = np.all(multipliers[~self._equality[self._active]] >= 0) and np.all(left <= tolerance)
        return point if good and np.all(np.abs(left[self._active]) <= tolerance) else None
