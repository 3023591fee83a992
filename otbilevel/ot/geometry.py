"""Geometries own the cost: they know its entries and the kernels that sweep over it. A method never touches C."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from types import ModuleType
from typing import Any, ClassVar

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace, as_array, common_namespace, device, readonly
from otbilevel.ot import kernels

LARGEST_COORDINATE = 1e140
"""Beyond it a sum of squared differences may overflow."""


class Geometry(ABC):
    """The cost between n source and m target points.

    Attributes
    ----------
    shape : tuple of int
        ``(n, m)``.
    xp : module
        Array namespace of the data.
    dtype
        Floating dtype of the data.
    """

    shape: tuple[int, int]
    xp: ModuleType
    dtype: Any
    dense: ClassVar[bool]
    """Whether an n x m array exists already, so that a method may store another one."""

    @abstractmethod
    def rows(self, low: int, high: int) -> Array:
        """The rows [low, high) of the cost in double precision, shape (high - low, m)."""

    @abstractmethod
    def restrict(self, sources: Array | None, targets: Array | None) -> Geometry:
        """The geometry of some sources and some targets, given by their indices (None: all)."""

    @abstractmethod
    def transpose(self) -> Geometry:
        """The geometry with sources and targets exchanged."""

    @abstractmethod
    def _compiled_cost(self) -> Any:
        """What the compiled kernels take as `cost`."""

    @property
    @abstractmethod
    def arrays(self) -> dict[str, Array]:
        """The data by the names of the arguments that gave them."""

    @property
    def device(self) -> Any:
        """Where the data live."""
        return device(next(iter(self.arrays.values())))

    @cached_property
    def kernels(self) -> ModuleType:
        """The kernels, chosen once for the array library of the data."""
        return kernels.select(self.xp)

    @cached_property
    def cost(self) -> Any:
        """What `kernels` take as `cost`."""
        return self if self.kernels is kernels.generic else self._compiled_cost()

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest finite cost. One pass over the cost, O(n m)."""
        low, high = self.kernels.cost_bounds(self.cost, self.shape)
        return float(low), float(high)

    @property
    def has_forbidden_pairs(self) -> bool:
        """Whether some cost is infinite."""
        return False

    def to_dense(self) -> DenseCost:
        """The same costs as a stored (n, m) array in the geometry's dtype. O(n m) memory."""
        return DenseCost(self.xp.astype(self.rows(0, self.shape[0]), self.dtype))


class DenseCost(Geometry):
    """A cost matrix.

    Parameters
    ----------
    C : (n, m) array_like
        Costs; +inf forbids a pair. Kept by reference when it is a C-contiguous floating array, and never changed.

    Raises
    ------
    TypeError
        When C is not an array of real numbers.
    ValueError
        When it is not two-dimensional, empty, or holds NaN or -inf.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel import DenseCost
    >>> DenseCost(np.array([[0.0, 2.0], [1.0, np.inf]])).bounds
    (0.0, 2.0)
    """

    dense = True

    def __init__(self, C: Any) -> None:  # noqa: N803 -- the field's name for the cost
        matrix = as_array(C, "C")
        _check_matrix(matrix, "C")
        self.xp = array_namespace(matrix)
        low, high = float(self.xp.min(matrix)), float(self.xp.max(matrix))
        self._extremes = low, high
        if not (low > -float("inf") and high >= low):  # NaN propagates through min and max
            _refuse_bad_costs(self.xp, matrix)
        self.matrix = matrix
        self.shape = (matrix.shape[0], matrix.shape[1])
        self.dtype = matrix.dtype

    @property
    def arrays(self) -> dict[str, Array]:
        return {"C": self.matrix}

    @property
    def has_forbidden_pairs(self) -> bool:
        return self._extremes[1] == float("inf")

    @cached_property
    def bounds(self) -> tuple[float, float]:
        return super().bounds if self.has_forbidden_pairs else self._extremes

    def rows(self, low: int, high: int) -> Array:
        return self.xp.astype(self.matrix[low:high, :], self.xp.float64, copy=False)

    def restrict(self, sources: Array | None, targets: Array | None) -> DenseCost:
        part = self.matrix
        if sources is not None:
            part = self.xp.take(part, sources, axis=0)
        if targets is not None:
            part = self.xp.take(part, targets, axis=1)
        return self if part is self.matrix else DenseCost(part)

    def transpose(self) -> DenseCost:
        return DenseCost(self.matrix.T)

    def to_dense(self) -> DenseCost:
        return self

    def _compiled_cost(self) -> Any:
        return readonly(self.matrix)


class PointCloud(Geometry):
    """The cost between two clouds of points, computed where it is needed: O((n + m) d) memory, no n x m array.

    Parameters
    ----------
    x : (n, d) array_like
        Source points.
    y : (m, d) array_like, optional
        Target points, by default those of `x`.
    cost : {"sqeuclidean", "euclidean", "cityblock", "cosine"}
        ``|x - y|^2``, ``|x - y|``, ``sum |x_k - y_k|`` (L1), or ``1 - <x, y> / (|x| |y|)``.

    Raises
    ------
    TypeError
        When the points are not real numbers of one array library.
    ValueError
        When shapes do not match, a coordinate is not finite, the cost is unknown, or a point of a cosine cost is zero.

    Notes
    -----
    A sweep costs O(n m d) operations. Where n m numbers fit into memory, ``PointCloud(x, y).to_dense()`` is faster for small
    regularisation: products with a stored plan are cheaper than exponentials.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel import PointCloud
    >>> cloud = PointCloud(np.zeros((2, 3)), np.ones((4, 3)))
    >>> cloud.shape, cloud.bounds
    ((2, 4), (3.0, 3.0))
    """

    dense = False
    COSTS = ("sqeuclidean", "euclidean", "cityblock", "cosine")

    def __init__(self, x: Any, y: Any = None, *, cost: str = "sqeuclidean") -> None:
        self.kind = validate.choice(cost, "cost", self.COSTS)
        points = {"x": as_array(x, "x")}
        points["y"] = points["x"] if y is None else as_array(y, "y")
        self.xp = common_namespace(points)
        for name, cloud in points.items():
            _check_matrix(cloud, name)
            _require_finite(self.xp, cloud, name)
        self.x, self.y = points["x"], points["y"]
        if self.x.shape[1] != self.y.shape[1]:
            msg = f"x and y must have points of one dimension, got shapes {tuple(self.x.shape)} and {tuple(self.y.shape)}"
            raise ValueError(msg)
        self.shape = (self.x.shape[0], self.y.shape[0])
        self.dtype = self.xp.result_type(self.x, self.y)
        _require_moderate(self.xp, points, cost)
        if cost == "cosine":
            self._unit_x, self._unit_y = _unit(self.xp, self.x, "x"), _unit(self.xp, self.y, "y")

    @property
    def arrays(self) -> dict[str, Array]:
        return {"x": self.x, "y": self.y}

    def rows(self, low: int, high: int) -> Array:
        xp = self.xp
        if self.kind == "cosine":
            return 1.0 - self._unit_x[low:high, :] @ self._unit_y.T
        x = xp.astype(self.x[low:high, :], xp.float64)
        y = xp.astype(self.y, xp.float64)
        total = xp.zeros((high - low, self.shape[1]), dtype=xp.float64, device=self.device)
        for k in range(x.shape[1]):
            difference = x[:, k, None] - y[None, :, k]
            total = total + (xp.abs(difference) if self.kind == "cityblock" else difference**2)
        return xp.sqrt(total) if self.kind == "euclidean" else total

    def restrict(self, sources: Array | None, targets: Array | None) -> PointCloud:
        if sources is None and targets is None:
            return self
        x = self.x if sources is None else self.xp.take(self.x, sources, axis=0)
        y = self.y if targets is None else self.xp.take(self.y, targets, axis=0)
        return PointCloud(x, y, cost=self.kind)

    def transpose(self) -> PointCloud:
        return PointCloud(self.y, self.x, cost=self.kind)

    def _compiled_cost(self) -> Any:
        x, y = (self._unit_x, self._unit_y) if self.kind == "cosine" else (self.x, self.y)
        return readonly(x), readonly(y.T), self.COSTS.index(self.kind)


def _check_matrix(matrix: Array, name: str) -> None:
    if len(matrix.shape) != 2:
        msg = f"{name} must be two-dimensional, got shape {tuple(matrix.shape)}"
        raise ValueError(msg)
    if 0 in matrix.shape:
        msg = f"{name} is empty: its shape is {tuple(matrix.shape)}"
        raise ValueError(msg)


def _require_finite(xp: ModuleType, x: Array, name: str) -> None:
    bad = ~xp.isfinite(x)
    if bool(xp.any(bad)):
        msg = f"{name} holds {_found(xp, bad, 'not finite')}"
        raise ValueError(msg)


def _refuse_bad_costs(xp: ModuleType, matrix: Array) -> None:
    for bad, what in ((xp.isnan(matrix), "NaN"), (matrix == -float("inf"), "-inf")):
        if bool(xp.any(bad)):
            msg = f"C holds {_found(xp, bad, what)}; a forbidden pair is +inf"
            raise ValueError(msg)


def _require_moderate(xp: ModuleType, points: dict[str, Array], cost: str) -> None:
    """Refuse coordinates whose squares overflow; only the cosine does not mind."""
    for name, cloud in points.items():
        largest = float(xp.max(xp.abs(cloud)))
        if cost != "cosine" and largest > LARGEST_COORDINATE:
            msg = f"{name} has a coordinate of size {largest:g}, whose {cost} cost overflows: rescale the points"
            raise ValueError(msg)


def _found(xp: ModuleType, mask: Array, what: str) -> str:
    """How many entries the mask marks, what is wrong with them, and where the first is."""
    count = int(xp.sum(xp.astype(mask, xp.int64)))
    entries = "1 entry that is" if count == 1 else f"{count} entries that are"
    return f"{entries} {what}, the first at {_first(xp, mask)}"


def _first(xp: ModuleType, mask: Array) -> tuple[int, ...]:
    """Index of the first True of a two-dimensional mask."""
    flat = int(xp.argmax(xp.reshape(xp.astype(mask, xp.int64), (-1,))))
    row, column = divmod(flat, int(mask.shape[1]))
    return row, column


def _unit(xp: ModuleType, points: Array, name: str) -> Array:
    """Points scaled to length 1, in double precision."""
    points = xp.astype(points, xp.float64)
    largest = xp.max(xp.abs(points), axis=1, keepdims=True)
    points = points / xp.where(largest > 0, largest, xp.ones_like(largest))  # squares must not over- or underflow
    lengths = xp.linalg.vector_norm(points, axis=1, keepdims=True)
    if bool(xp.any(lengths == 0)):
        msg = f"{name} holds a zero vector, whose cosine cost is undefined, at row {_first(xp, lengths == 0)[0]}"
        raise ValueError(msg)
    return points / lengths
