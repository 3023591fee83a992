"""Costs between two clouds of points, computed where they are needed."""

from __future__ import annotations

from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

from otbilevel._core import validate
from otbilevel._core.array import Array, as_array, common_namespace, is_numpy_namespace, readonly
from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.distance_range import distance_range
from otbilevel.ot.geometry import Geometry, check_matrix, first_index, found
from otbilevel.ot.point_plan import point_plan

if TYPE_CHECKING:
    from otbilevel.ot.cells import PointTree
    from otbilevel.ot.problem import OTProblem
    from otbilevel.ot.row_plan import RowPlan, Work
    from otbilevel.ot.stored_plan import Room

SMALL = 1_000_000
"""Pairs that may as well be looked at one by one."""
LARGEST_COORDINATE = 1e140
"""Beyond it a sum of squared differences may overflow, below its reciprocal underflow."""


class PointCloud(Geometry):
    """The cost between two clouds of points, computed where it is needed: no n x m cost matrix, from ten points to millions.

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
    How a solver holds the plan depends on the points (``options={"memory": ...}`` is the budget in bytes):

    * With squared Euclidean cost and NumPy arrays in few dimensions, the kernel is interpolated between the nodes of cells of
      side up to 4 sqrt(reg), to a hundredth of the tolerance. The work then depends on how many such cells there are, hardly on
      n and m. Cells so far apart that they exchange nothing are left out.
    * Where cells hold too few points for this, as in many dimensions or at small reg, the plan is stored if it fits the budget.
    * Else every pass computes it anew: O(n m d) operations, O((n + m) d) memory.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel import PointCloud
    >>> cloud = PointCloud(np.zeros((2, 3)), np.ones((4, 3)))
    >>> cloud.shape, cloud.bounds
    ((2, 4), (3.0, 3.0))
    """

    inputs = ("x", "y")
    COSTS = ("sqeuclidean", "euclidean", "cityblock", "cosine")

    def __init__(self, x: Any, y: Any = None, *, cost: str = "sqeuclidean") -> None:
        self.cost = validate.choice(cost, "cost", self.COSTS)
        points = {"x": as_array(x, "x")}
        points["y"] = points["x"] if y is None else as_array(y, "y")
        xp = common_namespace(points)
        for name, cloud in points.items():
            check_matrix(cloud, name)
            _require_finite(xp, cloud, name)
        self.x, self.y = points["x"], points["y"]
        if self.x.shape[1] != self.y.shape[1]:
            msg = f"x and y must have points of one dimension, got shapes {tuple(self.x.shape)} and {tuple(self.y.shape)}"
            raise ValueError(msg)
        self.shape = (self.x.shape[0], self.y.shape[0])
        self.dtype = xp.result_type(self.x, self.y)
        _require_moderate(xp, points, cost)
        if cost == "cosine":
            self._unit_x, self._unit_y = _unit(xp, self.x, "x"), _unit(xp, self.y, "y")

    @property
    def arrays(self) -> dict[str, Array]:
        return {"x": self.x, "y": self.y}

    def _details(self) -> str:
        return f", {self.x.shape[1]}-d points, {self.cost}"

    def rows(self, low: int, high: int) -> Array:
        xp = self.xp
        if self.cost == "cosine":
            return 1.0 - self._unit_x[low:high, :] @ self._unit_y.T
        x = xp.astype(self.x[low:high, :], xp.float64)
        y = xp.astype(self.y, xp.float64)
        total = xp.zeros((high - low, self.shape[1]), dtype=xp.float64, device=self.device)
        for k in range(x.shape[1]):
            difference = x[:, k, None] - y[None, :, k]
            total = total + (xp.abs(difference) if self.cost == "cityblock" else difference**2)
        return xp.sqrt(total) if self.cost == "euclidean" else total

    def to_dense(self) -> DenseCost:
        """The same costs as a `DenseCost`, whose `matrix` is an (n, m) array. O(n m) memory."""
        return DenseCost(self.xp.astype(self.rows(0, self.shape[0]), self.dtype))

    def restrict(self, sources: Array | None, targets: Array | None) -> PointCloud:
        if sources is None and targets is None:
            return self
        x = self.x if sources is None else self.xp.take(self.x, sources, axis=0)
        y = self.y if targets is None else self.xp.take(self.y, targets, axis=0)
        return PointCloud(x, y, cost=self.cost)

    def transpose(self) -> PointCloud:
        return PointCloud(self.y, self.x, cost=self.cost)

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest cost.

        In two or three dimensions both are found among few pairs, in O((n + m) log(n + m)): the closest by a k-d tree, the most
        distant on the convex hulls. Otherwise one pass over all pairs.
        """
        n, m = self.shape
        if n * m > SMALL and self.cost in ("sqeuclidean", "euclidean") and is_numpy_namespace(self.xp):
            found = distance_range(self.x, self.y)
            if found is not None:
                return (found[0] ** 2, found[1] ** 2) if self.cost == "sqeuclidean" else found
        return super().bounds

    @property
    def interpolable(self) -> bool:
        """Whether the kernel between these points may be interpolated: with squared distances, by compiled kernels."""
        return self.cost == "sqeuclidean" and self.kernels.interpolates

    @cached_property
    def trees(self) -> tuple[PointTree, PointTree]:
        """Both NumPy clouds sorted into boxes."""
        from otbilevel.ot.cells import PointTree  # noqa: PLC0415 -- brings in numba, which takes a while

        return PointTree(self.x), PointTree(self.y)

    def row_plan(self, problem: OTProblem, work: Work, room: Room, *, single: bool, memory: float) -> RowPlan:
        return point_plan(problem, self, work, room, single=single, memory=memory)

    def _compiled_cost(self) -> Any:
        x, y = (self._unit_x, self._unit_y) if self.cost == "cosine" else (self.x, self.y)
        return readonly(x), readonly(y.T), self.COSTS.index(self.cost)


def _require_finite(xp: ModuleType, x: Array, name: str) -> None:
    bad = ~xp.isfinite(x)
    if bool(xp.any(bad)):
        msg = f"{name} holds {found(xp, bad, 'not finite')}"
        raise ValueError(msg)


def _require_moderate(xp: ModuleType, points: dict[str, Array], cost: str) -> None:
    """Refuse coordinates whose squares overflow; only the cosine does not mind."""
    for name, cloud in points.items():
        largest = float(xp.max(xp.abs(cloud)))
        if cost != "cosine" and largest > 0 and not 1 / LARGEST_COORDINATE < largest < LARGEST_COORDINATE:
            fate = "overflows" if largest > 1 else "underflows"
            msg = f"{name} has coordinates of size {largest:g}, whose {cost} cost {fate}: rescale the points"
            raise ValueError(msg)


def _unit(xp: ModuleType, points: Array, name: str) -> Array:
    """Points scaled to length 1, in double precision."""
    points = xp.astype(points, xp.float64)
    largest = xp.max(xp.abs(points), axis=1, keepdims=True)
    points = points / xp.where(largest > 0, largest, xp.ones_like(largest))  # squares must not over- or underflow
    lengths = xp.linalg.vector_norm(points, axis=1, keepdims=True)
    if bool(xp.any(lengths == 0)):
        msg = f"{name} holds a zero vector, whose cosine cost is undefined, at row {first_index(xp, lengths == 0)[0]}"
        raise ValueError(msg)
    return points / lengths
