"""Projections onto convex sets: closed forms in any array library, polyhedra by least-distance programs, margins of an SVM."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg as sla

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace, clamp
from otbilevel.bilevel.qp import solve_qp


@dataclass(frozen=True)
class Box:
    """{w : low <= w <= high}.

    Attributes
    ----------
    low, high : float or (n,) array
        Bounds, infinite where there are none.
    """

    low: Any = -math.inf
    high: Any = math.inf

    def __call__(self, w: Array) -> Array:
        """The nearest point of the set."""
        if isinstance(self.low, (int, float)) and isinstance(self.high, (int, float)):
            return clamp(w, self.low, self.high)
        xp = array_namespace(w)
        return xp.minimum(xp.maximum(w, xp.asarray(self.low, dtype=w.dtype)), xp.asarray(self.high, dtype=w.dtype))


@dataclass(frozen=True)
class Ball:
    """{w : |w - centre| <= radius}.

    Attributes
    ----------
    radius : float
        Radius > 0.
    centre : (n,) array or float
        Centre.
    """

    radius: float = 1.0
    centre: Any = 0.0

    def __post_init__(self) -> None:
        validate.real(self.radius, "radius", low=0.0, strict=True)

    def __call__(self, w: Array) -> Array:
        """The nearest point of the set."""
        off = w - self.centre
        size = float(array_namespace(w).linalg.vector_norm(off))
        return w if size <= self.radius else self.centre + off * (self.radius / size)


@dataclass(frozen=True)
class HalfSpace:
    """{w : a'w <= b}.

    Attributes
    ----------
    a : (n,) array
        Normal, not 0.
    b : float
        Offset.
    """

    a: Array
    b: float = 0.0

    def __call__(self, w: Array) -> Array:
        """The nearest point of the set."""
        xp = array_namespace(w)
        beyond = float(xp.sum(self.a * w)) - self.b
        return w if beyond <= 0 else w - self.a * (beyond / float(xp.sum(self.a * self.a)))


@dataclass(frozen=True)
class Simplex:
    """{w >= 0 : sum(w) = total}, by sorting, O(n log n).

    Attributes
    ----------
    total : float
        The sum, > 0.

    References
    ----------
    J. Duchi, S. Shalev-Shwartz, Y. Singer, T. Chandra, Efficient projections onto the l1-ball, ICML 2008.
    """

    total: float = 1.0

    def __post_init__(self) -> None:
        validate.real(self.total, "total", low=0.0, strict=True)

    def __call__(self, w: Array) -> Array:
        """The nearest point of the set."""
        xp = array_namespace(w)
        sorted_ = xp.sort(w, descending=True) if xp is not np else np.sort(w)[::-1]
        counts = xp.arange(1, w.shape[0] + 1, dtype=w.dtype)
        shifts = (xp.cumulative_sum(sorted_) - self.total) / counts
        active = int(xp.sum(xp.astype(sorted_ > shifts, xp.int64)))
        return xp.maximum(w - shifts[active - 1], xp.zeros_like(w))


class Affine:
    """{w : A w = b}, by a QR decomposition that is made once.

    Parameters
    ----------
    A : (l, n) array_like
        Rows; they may depend on each other.
    b : (l,) array_like
        Right-hand side.

    Raises
    ------
    ValueError
        When the rows contradict each other.
    """

    def __init__(self, A: Any, b: Any) -> None:  # noqa: N803
        matrix, right = np.atleast_2d(np.asarray(A, float)), np.atleast_1d(np.asarray(b, float))
        Q, R, order = sla.qr(matrix.T, mode="economic", pivoting=True)  # noqa: N806
        sizes = np.abs(np.diag(R))
        rank = int(np.sum(sizes > 1e-11 * max(sizes.max(initial=0.0), 1e-300)))
        self._basis = Q[:, :rank]
        self._point = self._basis @ sla.solve_triangular(R[:rank, :rank], right[order][:rank], trans="T")
        if not np.allclose(matrix @ self._point, right, atol=1e-8 * (1.0 + np.abs(right).max(initial=0.0))):
            msg = "the equations A w = b contradict each other"
            raise ValueError(msg)

    def __call__(self, w: Array) -> Array:
        """The nearest point of the set."""
        xp = array_namespace(w)
        basis, point = (xp.asarray(part, dtype=w.dtype) for part in (self._basis, self._point))
        off = w - point
        return w - basis @ (basis.T @ off)


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


@dataclass(frozen=True)
class Product:
    """The product of sets, one for each part of the vector.

    Attributes
    ----------
    parts : sequence of (size, projection)
        The sizes add up to n.
    """

    parts: Sequence[tuple[int, Callable[[Array], Array]]]

    def __call__(self, w: Array) -> Array:
        """The nearest point of the set."""
        xp, found, low = array_namespace(w), [], 0
        for size, projection in self.parts:
            found.append(projection(w[low : low + size]))
            low += size
        if low != w.shape[0]:
            msg = f"the parts have {low} variables together, the vector has {w.shape[0]}"
            raise ValueError(msg)
        return xp.concat(found)


@dataclass(frozen=True)
class Margins:
    """{(v, xi) : xi_i >= 1 - a_i'v}, the coupled set of a support vector machine with margins a_i = label_i (features_i, 1). NumPy.

    Without the slacks, xi_i = max(xi0_i, 1 - a_i'v), a piecewise quadratic problem in v is left, which Newton's method solves in a
    few steps of O(l d^2).

    Attributes
    ----------
    A : (l, d) ndarray
        The a_i as rows.
    """

    A: np.ndarray

    def __call__(self, w: np.ndarray) -> np.ndarray:
        """The nearest point (v, xi) of the set."""
        d = self.A.shape[1]
        start, slack = w[:d], w[d:]
        v = start.copy()
        value = self._value(v, start, slack)
        for _ in range(100):
            short = 1.0 - self.A @ v - slack
            active = short > 0
            rows = self.A[active]
            slope = (v - start) - rows.T @ short[active]
            if np.linalg.norm(slope) <= 1e-13 * (1.0 + np.linalg.norm(rows.T @ short[active])):
                break
            step, t = np.linalg.solve(np.eye(d) + rows.T @ rows, -slope), 1.0
            goal = 1e-4 * float(slope @ step)
            new = self._value(v + step, start, slack)
            while new > value + t * goal + 1e-15 * value and t > 1e-8:
                t *= 0.5
                new = self._value(v + t * step, start, slack)
            v, value = v + t * step, new
        return np.concatenate([v, np.maximum(slack, 1.0 - self.A @ v)])

    def _value(self, v: np.ndarray, start: np.ndarray, slack: np.ndarray) -> float:
        short = np.maximum(1.0 - self.A @ v - slack, 0.0)
        return 0.5 * float((v - start) @ (v - start) + short @ short)
