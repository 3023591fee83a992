"""Projections in closed form, in any array library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg as sla

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace, clamp


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
