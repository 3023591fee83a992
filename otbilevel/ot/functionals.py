"""Linear functionals P -> <D_k, P> of a plan, k = 0, ..., K - 1, each kind in the form that needs the least memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from otbilevel._core.array import Array, array_namespace

if TYPE_CHECKING:
    from otbilevel.ot.problem import Support

BLOCK_ENTRIES = 2**20
"""Entries of D that are formed at a time where they have to be."""


class Functionals(ABC):
    """K functionals of plans between n sources and m targets.

    Attributes
    ----------
    size : int
        K.
    shape : tuple of int
        ``(n, m)``.
    arrays : dict
        The data by the names of the arguments that gave them.
    """

    size: int
    shape: tuple[int, int]
    arrays: dict[str, Array]

    @property
    def xp(self) -> ModuleType:
        """Array namespace of the data."""
        namespace: ModuleType = array_namespace(*self.arrays.values())
        return namespace

    @abstractmethod
    def restrict(self, sources: Support, targets: Support) -> Functionals:
        """The same functionals of plans between the points that carry weight, in double precision."""

    @abstractmethod
    def combine(self, multipliers: Array, low: int, high: int) -> Array:
        """The rows [low, high) of sum_k multipliers_k D_k."""

    @abstractmethod
    def pair(self, rows: Array, weights: Array, low: int, high: int) -> Array:
        """What the rows [low, high) of a plan P, diag(weights) times `rows`, add to <D_k, P>, for each k."""

    @abstractmethod
    def largest(self) -> Array:
        """max_j |D_k(i, j)| or a close upper bound of it, shape (K, n)."""

    def name(self, k: int) -> str:
        """Functional k in words, for messages."""
        return f"row {k}" if self.size > 1 else ""


@dataclass(frozen=True, eq=False)
class Dense(Functionals):
    """D itself, a (K, n, m) array."""

    matrices: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", self.matrices.shape[0])
        object.__setattr__(self, "shape", tuple(self.matrices.shape[1:]))
        object.__setattr__(self, "arrays", {"D": self.matrices})

    def restrict(self, sources: Support, targets: Support) -> Dense:
        xp, part = self.xp, self.matrices
        if sources.indices is not None:
            part = xp.take(part, sources.indices, axis=1)
        if targets.indices is not None:
            part = xp.take(part, targets.indices, axis=2)
        return Dense(xp.astype(part, xp.float64, copy=False))

    def block(self, low: int, high: int) -> Array:
        """D_k for the rows [low, high), shape (K, high - low, m)."""
        return self.matrices[:, low:high, :]

    def combine(self, multipliers: Array, low: int, high: int) -> Array:
        return self.xp.tensordot(multipliers, self.block(low, high), axes=1)

    def pair(self, rows: Array, weights: Array, low: int, high: int) -> Array:
        return self.xp.tensordot(self.block(low, high), weights[:, None] * rows, axes=2)

    def largest(self) -> Array:
        return self.xp.maximum(self.xp.max(self.matrices, axis=2), -self.xp.min(self.matrices, axis=2))


@dataclass(frozen=True, eq=False)
class LowRank(Functionals):
    """D_k(i, j) = sum over the features q of U_kq(i) V_q(j), plus w_k(i), with few features.

    Attributes
    ----------
    features : (Q, m) array
        V.
    factors : tuple of (T_q, n) arrays
        For each feature the U_kq that are not zero.
    owners : tuple of (T_q, K) arrays
        For each feature a matrix of zeros and ones: which k these belong to.
    offsets : (K, n) array
        w.
    """

    features: Array
    factors: tuple[Array, ...]
    owners: tuple[Array, ...]
    offsets: Array
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", self.offsets.shape[0])
        object.__setattr__(self, "shape", (self.offsets.shape[1], self.features.shape[1]))
        object.__setattr__(self, "arrays", {"features": self.features})

    def name(self, k: int) -> str:
        return self.names[k] if self.names else super().name(k)

    def restrict(self, sources: Support, targets: Support) -> LowRank:
        xp = self.xp
        to_sources = [xp.astype(sources.restrict(u.T).T, xp.float64, copy=False) for u in (*self.factors, self.offsets)]
        features = xp.astype(targets.restrict(self.features.T).T, xp.float64, copy=False)
        return LowRank(features, tuple(to_sources[:-1]), self.owners, to_sources[-1], self.names)

    def row_factors(self, multipliers: Array) -> Array:
        """W (n, Q) with sum_k multipliers_k D_k = W V + offset."""
        pairs = zip(self.factors, self.owners, strict=True)
        return self.xp.stack([(owner @ multipliers) @ u for u, owner in pairs], axis=1)

    def combine(self, multipliers: Array, low: int, high: int) -> Array:
        # Both are small beside n m: all rows at once.
        offset = (multipliers @ self.offsets)[low:high]
        return self.row_factors(multipliers)[low:high, :] @ self.features + offset[:, None]

    def block(self, low: int, high: int) -> Array:
        """D_k for the rows [low, high), shape (K, high - low, m)."""
        total = self.offsets[:, low:high, None]
        for v, u, owner in zip(self._each_feature(), self.factors, self.owners, strict=True):
            total = total + (owner.T @ u[:, low:high])[:, :, None] * v[None, None, :]
        return total

    def _each_feature(self) -> Iterator[Array]:
        return (self.features[q, :] for q in range(self.features.shape[0]))

    def pair(self, rows: Array, weights: Array, low: int, high: int) -> Array:
        ones = self.xp.ones_like(self.features[:1, :])
        means = weights[:, None] * (rows @ self.xp.concat([self.features, ones]).T)
        total = self.offsets[:, low:high] @ means[:, -1]
        for q, (u, owner) in enumerate(zip(self.factors, self.owners, strict=True)):
            total = total + owner.T @ (u[:, low:high] @ means[:, q])
        return total

    def largest(self) -> Array:
        """Exact where a D_k has one feature, else the sum over the features of the largest values."""
        xp = self.xp
        centre, spread = self.offsets, xp.zeros_like(self.offsets)
        for v, u, owner in zip(self._each_feature(), self.factors, self.owners, strict=True):
            low, high, per_constraint = xp.min(v), xp.max(v), owner.T @ u
            centre = centre + per_constraint * (0.5 * (low + high))
            spread = spread + xp.abs(per_constraint) * (0.5 * (high - low))
        return xp.abs(centre) + spread


@dataclass(frozen=True, eq=False)
class RowMeans(Functionals):
    """D_(i,c)(i', j) = y_jc - x_ic for i' = i, else 0: the mean of y in each row, minus x, times the row's mass.

    K = n d functionals, ordered as the entries of x; those of one row are coupled with each other only through the columns.
    """

    x: Array
    y: Array

    def __post_init__(self) -> None:
        (n, d), m = self.x.shape, self.y.shape[0]
        object.__setattr__(self, "size", n * d)
        object.__setattr__(self, "shape", (n, m))
        object.__setattr__(self, "arrays", {"x": self.x, "y": self.y})

    def name(self, k: int) -> str:
        i, c = divmod(k, self.x.shape[1])
        return f"source {i}" + (f", coordinate {c}" if self.x.shape[1] > 1 else "")

    def restrict(self, sources: Support, targets: Support) -> RowMeans:
        return RowMeans(sources.restrict(self.x), targets.restrict(self.y))

    def combine(self, multipliers: Array, low: int, high: int) -> Array:
        xp = self.xp
        w = xp.reshape(multipliers, tuple(self.x.shape))[low:high, :]
        return w @ self.y.T - xp.sum(w * self.x[low:high, :], axis=1)[:, None]

    def pair(self, rows: Array, weights: Array, low: int, high: int) -> Array:
        xp = self.xp
        part = weights[:, None] * (rows @ self.y - xp.sum(rows, axis=1)[:, None] * self.x[low:high, :])
        before, after = xp.zeros_like(self.x[:low, :]), xp.zeros_like(self.x[high:, :])
        return xp.reshape(xp.concat([before, part, after]), (-1,))

    def largest(self) -> Array:
        """Only the row that the functional lives on, shape (n, d)."""
        xp = self.xp
        low, high = xp.min(self.y, axis=0), xp.max(self.y, axis=0)
        return xp.maximum(xp.abs(high[None, :] - self.x), xp.abs(low[None, :] - self.x))


def blocks(functionals: Functionals) -> Iterator[tuple[int, int]]:
    """Split the rows so that D has about a million entries in each part."""
    n, m = functionals.shape
    step = max(1, BLOCK_ENTRIES // max(functionals.size * m, 1))
    for low in range(0, n, step):
        yield low, min(low + step, n)
