"""Costs between the points of two grids, summed over the axes."""

from __future__ import annotations

import copy
import math
import numbers
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from otbilevel._core.array import Array, array_namespace, as_array, common_namespace, device
from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.geometry import Geometry, check_matrix, found
from otbilevel.ot.grid_plan import GridPlan
from otbilevel.ot.grid_rounding import GridRankOne
from otbilevel.ot.kernels import separable
from otbilevel.ot.kernels.lines import AxisCost

if TYPE_CHECKING:
    from otbilevel.ot.problem import OTProblem
    from otbilevel.ot.row_plan import RowPlan, Work
    from otbilevel.ot.stored_plan import Room

LARGEST_COORDINATE = 1e140
"""Beyond it the square of a difference may overflow."""
COSTS = ("sqeuclidean", "cityblock")


@dataclass(frozen=True, eq=False)
class Kept:
    """Some of the points of a grid.

    Attributes
    ----------
    indices : (k,) integer array
        Which ones, all different.
    size : int
        Points of the grid.
    """

    indices: Array
    size: int

    @cached_property
    def _places(self) -> Array:
        """Where each point of the grid is among those that are kept; k for the others."""
        xp = array_namespace(self.indices)
        order = xp.argsort(self.indices)
        ordered, count = xp.take(self.indices, order), self.indices.shape[0]
        points = xp.arange(self.size, dtype=self.indices.dtype, device=device(self.indices))
        position = xp.clip(xp.searchsorted(ordered, points), None, count - 1)
        return xp.where(xp.take(ordered, position) == points, xp.take(order, position), xp.full_like(order, count)[:1])

    def spread(self, values: Array, fill: float) -> Array:
        """Values (..., k) at all points of the grid, `fill` at those that are left out."""
        xp = array_namespace(values)
        rest = xp.full((*values.shape[:-1], 1), fill, dtype=values.dtype, device=device(values))
        return xp.take(xp.concat([values, rest], axis=-1), self._places, axis=-1)

    def gather(self, values: Array) -> Array:
        """Values (..., size) at the points that are kept."""
        return array_namespace(values).take(values, self.indices, axis=-1)

    def restrict(self, indices: Array) -> Kept:
        """Some of these points."""
        return Kept(array_namespace(indices).take(self.indices, indices), self.size)


class Grid(Geometry):
    """The cost between the points of two grids, such as pixels or voxels: a sum over the axes, which is never formed.

    Weights are flat, in C order: ``a = image.ravel()``.

    Parameters
    ----------
    x : tuple of int, or sequence of 1-D array_like
        The grid of the sources. A shape such as ``image.shape`` stands for square pixels with centres at (i + 1/2) / max(shape), so
        that the longest side has length 1. Otherwise the coordinates along each axis, in any order and at any distances.
    y : tuple of int, or sequence of 1-D array_like, optional
        The grid of the targets, with as many axes; by default that of the sources.
    cost : {"sqeuclidean", "cityblock"} or sequence of (n_k, m_k) array_like
        ``sum_k (x_k - y_k)^2``, ``sum_k |x_k - y_k|``, or a finite cost matrix for every axis: the cost of a pair is the
        sum of an entry of each. Of `x` and `y` only the lengths count then.

    Raises
    ------
    TypeError
        When `x`, `y` or `cost` is nothing of the kind, or arrays belong to different libraries.
    ValueError
        When numbers of axes or lengths do not match, an axis is empty, or a number is not finite.

    Notes
    -----
    A soft minimum over all points is one over the last axis, then one over the axis before, and so on. So a pass takes
    O(n^(1 + 1/d)) operations for n points in d dimensions, nearly all of them in matrix products, and O(n P) memory: the axes are
    cut into P blocks, with P about side / (20 sqrt(reg)) for squared distances, 1 at large reg. No number under- or overflows at
    any reg. Where costs of an axis are too rough for blocks, O(n^(1 + 1/d)) exponentials and O(n) memory take their place.

    A grid that was given by shapes joins whatever array library, device and floating dtype the weights have.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel import Grid, solve_ot
    >>> image, other = np.eye(32), np.eye(32)[::-1]
    >>> grid = Grid(image.shape)
    >>> grid.shape, grid.bounds
    ((1024, 1024), (0.0, 1.876953125))
    >>> result = solve_ot(image.ravel(), other.ravel(), grid, reg=1e-3)
    >>> result.success, result.marginal_error < 1e-9
    (True, True)
    >>> grid.y[:2].round(3), result.barycentric_map(grid.y).shape
    (array([[0.016, 0.016],
           [0.016, 0.047]]), (1024, 2))
    """

    rank_one = GridRankOne

    def __init__(self, x: Any, y: Any = None, *, cost: Any = "sqeuclidean") -> None:
        by_matrices = not isinstance(cost, str)
        sides = {"x": _side(x, "x")}
        sides["y"] = _side(y, "y") if y is not None else sides["x"]
        if not by_matrices and cost not in COSTS:
            msg = f"cost must be one of {', '.join(map(repr, COSTS))}, or a sequence of one matrix per axis; got {cost!r}"
            raise ValueError(msg)
        if len(sides["x"]) != len(sides["y"]):
            msg = f"x and y must have equally many axes, got {len(sides['x'])} and {len(sides['y'])}"
            raise ValueError(msg)
        self._floats = by_matrices or not all(isinstance(axis, int) for side in sides.values() for axis in side)
        if by_matrices:
            self._arrays = _matrices(cost, sides, free=y is None)
            matrices = list(self._arrays.values())
        else:
            self._arrays = _coordinates(sides)
            matrices = [_axis_cost(self._arrays[f"x[{k}]"], self._arrays[f"y[{k}]"], cost) for k in range(len(sides["x"]))]
        xp = common_namespace(self._arrays)
        self.dtype = xp.result_type(*self._arrays.values())
        self.axes = tuple(AxisCost(xp.astype(matrix, xp.float64)) for matrix in matrices)
        self._sources: Kept | None = None
        self._targets: Kept | None = None
        self._measure()

    def _measure(self) -> None:
        n, m = (
            math.prod(axis.shape[side] for axis in self.axes) if kept is None else kept.indices.shape[0]
            for side, kept in enumerate((self._sources, self._targets))
        )
        self.shape = (n, m)

    @property
    def arrays(self) -> dict[str, Array]:
        return self._arrays

    @cached_property
    def kernels(self) -> ModuleType:
        """Those that go axis by axis, for every array library."""
        return separable

    def _compiled_cost(self) -> Any:
        return self

    @property
    def x(self) -> Array:
        """The points of the sources, shape (n, d), in C order. O(n d) memory."""
        return self._points("x", self._sources)

    @property
    def y(self) -> Array:
        """The points of the targets, shape (m, d), in C order. O(m d) memory."""
        return self._points("y", self._targets)

    def _points(self, side: str, kept: Kept | None) -> Array:
        axes = [self._arrays[name] for name in (f"{side}[{k}]" for k in range(len(self.axes))) if name in self._arrays]
        if not axes:
            msg = "a Grid of cost matrices knows no coordinates: give them as x and y, with the name of a cost"
            raise ValueError(msg)
        points = self.xp.stack([self.xp.reshape(c, (-1,)) for c in self.xp.meshgrid(*axes, indexing="ij")], axis=1)
        return points if kept is None else self.xp.take(points, kept.indices, axis=0)

    def _details(self) -> str:
        if self._sources is not None or self._targets is not None:
            return ", parts of grids"
        return f", axes {' and '.join(f'{n} x {m}' for n, m in (axis.shape for axis in self.axes))}"

    def rows(self, low: int, high: int) -> Array:
        xp = self.xp
        points = xp.arange(low, high, device=self.device) if self._sources is None else self._sources.indices[low:high]
        total = xp.zeros((high - low, *(1 for _ in self.axes)), dtype=xp.float64, device=self.device)
        for k in range(len(self.axes) - 1, -1, -1):
            n, m = self.axes[k].shape
            shape = [high - low, *(m if other == k else 1 for other in range(len(self.axes)))]
            total = total + xp.reshape(xp.take(self.axes[k].matrix, points % n, axis=0), tuple(shape))
            points = points // n
        block = xp.reshape(total, (high - low, -1))
        return block if self._targets is None else xp.take(block, self._targets.indices, axis=1)

    def row_plan(self, problem: OTProblem, work: Work, room: Room, *, single: bool, memory: float) -> RowPlan:  # noqa: ARG002
        return GridPlan(self, problem.a, work, problem.marginals)

    def soft_transform(self, g: Array, reg: float) -> Array:
        return -reg * separable.SeparableKernel(self, g, reg).log_sums

    def c_transform_rows(self, g: Array) -> Array:
        return separable.c_transform(self, g)

    def c_transform_columns(self, f: Array) -> Array:
        return separable.c_transform(self.transpose(), f)

    def to_dense(self) -> DenseCost:
        """The same costs as a `DenseCost`, whose `matrix` is an (n, m) array. O(n m) memory."""
        return DenseCost(self.xp.astype(self.rows(0, self.shape[0]), self.dtype))

    def restrict(self, sources: Array | None, targets: Array | None) -> Grid:
        if sources is None and targets is None:
            return self
        part = self._copy()
        n, m = self.shape
        if sources is not None:
            part._sources = Kept(sources, n) if self._sources is None else self._sources.restrict(sources)
        if targets is not None:
            part._targets = Kept(targets, m) if self._targets is None else self._targets.restrict(targets)
        part._measure()
        return part

    def transpose(self) -> Grid:
        other = self._copy()
        other.axes = tuple(axis.transpose() for axis in self.axes)
        other._sources, other._targets = self._targets, self._sources
        other._measure()
        return other

    def beside(self, weights: dict[str, Array]) -> Grid:
        if self._floats or not weights:
            return self
        common_namespace(weights)
        like = next(iter(weights.values()))
        xp = array_namespace(like)
        other = self._copy()
        move = {"dtype": xp.float64, "device": device(like)}
        other.axes = tuple(AxisCost(xp.asarray(axis.matrix, **move)) for axis in self.axes)
        other._arrays = {name: xp.asarray(axis, **move) for name, axis in self._arrays.items()}
        other.dtype = xp.result_type(*weights.values())
        return other

    def _copy(self) -> Grid:
        """A grid to be changed, without what was computed for this one."""
        other = copy.copy(self)
        for name in ("bounds", "kernels", "kernel_cost"):
            other.__dict__.pop(name, None)
        return other

    def spread_sources(self, values: Array, fill: float) -> Array:
        """Values (..., n) at all points of the grid, `fill` at those that carry no weight."""
        return values if self._sources is None else self._sources.spread(values, fill)

    def spread_targets(self, values: Array, fill: float) -> Array:
        """The same for (..., m) values at the targets."""
        return values if self._targets is None else self._targets.spread(values, fill)

    def gather_sources(self, values: Array) -> Array:
        """The inverse of `spread_sources`."""
        return values if self._sources is None else self._sources.gather(values)

    def gather_targets(self, values: Array) -> Array:
        """The inverse of `spread_targets`."""
        return values if self._targets is None else self._targets.gather(values)


def _side(side: Any, name: str) -> list[Any]:
    """The axes of a grid: all lengths, or all coordinates."""
    if hasattr(side, "dtype") or not isinstance(side, (tuple, list)):
        msg = (
            f"{name} must be a shape such as (64, 64), or a sequence with the coordinates along each axis, "
            f"got {type(side).__name__}; for scattered points use PointCloud"
        )
        raise TypeError(msg)
    if not side:
        msg = f"{name} has no axes: give a shape such as (64, 64), or the coordinates along each axis"
        raise ValueError(msg)
    lengths = [isinstance(axis, numbers.Integral) and not isinstance(axis, bool) for axis in side]
    if all(lengths):
        if min(side) < 1:
            msg = f"{name} must be a shape with positive lengths, got {tuple(side)}"
            raise ValueError(msg)
        return [int(axis) for axis in side]
    axes = [as_array(axis, f"{name}[{k}]") for k, axis in enumerate(side)]
    for k, axis in enumerate(axes):
        _check_coordinates(axis, f"{name}[{k}]")
    return axes


def _check_coordinates(axis: Array, name: str) -> None:
    if len(axis.shape) != 1 or axis.shape[0] == 0:
        msg = f"{name} must hold the coordinates along one axis, got shape {tuple(axis.shape)}; a shape is a tuple of integers"
        raise ValueError(msg)
    xp = array_namespace(axis)
    largest = float(xp.max(xp.abs(axis)))
    if not largest < LARGEST_COORDINATE:  # NaN is not
        msg = f"{name} must hold finite coordinates below {LARGEST_COORDINATE:g}, but the largest is {largest!r}"
        raise ValueError(msg)


def _length(axis: Any) -> int:
    return axis if isinstance(axis, int) else int(axis.shape[0])


def _coordinates(sides: dict[str, list[Any]]) -> dict[str, Array]:
    """The coordinates by name; those of a shape are the centres of its pixels, beside the other grid's arrays."""
    given = {f"{name}[{k}]": axis for name, side in sides.items() for k, axis in enumerate(side) if not isinstance(axis, int)}
    like = next(iter(given.values()), None)
    xp, where = (np, "cpu") if like is None else (common_namespace(given), device(like))
    arrays = {}
    for name, side in sides.items():
        for k, axis in enumerate(side):
            if isinstance(axis, int):
                centres = (xp.arange(axis, dtype=xp.float64, device=where) + 0.5) / max(side)
                arrays[f"{name}[{k}]"] = centres if like is None else xp.astype(centres, like.dtype)
            else:
                arrays[f"{name}[{k}]"] = axis
    return arrays


def _axis_cost(x: Array, y: Array, cost: str) -> Array:
    xp = array_namespace(x)
    difference = xp.astype(x, xp.float64)[:, None] - xp.astype(y, xp.float64)[None, :]
    return xp.abs(difference) if cost == "cityblock" else difference**2


def _matrices(cost: Any, sides: dict[str, list[Any]], *, free: bool) -> dict[str, Array]:
    """The cost matrices by name, checked against the lengths of the axes; those of the targets are `free` if no y was given."""
    if hasattr(cost, "dtype") or not isinstance(cost, (tuple, list)):
        msg = f"cost must be a name, or a sequence of one matrix per axis, got {type(cost).__name__}"
        raise TypeError(msg)
    if len(cost) != len(sides["x"]):
        msg = f"cost must hold one matrix per axis, got {len(cost)} for {len(sides['x'])} axes"
        raise ValueError(msg)
    arrays = {f"cost[{k}]": as_array(matrix, f"cost[{k}]") for k, matrix in enumerate(cost)}
    xp = common_namespace(arrays)
    for k, (name, matrix) in enumerate(arrays.items()):
        check_matrix(matrix, name)
        n, m = _length(sides["x"][k]), matrix.shape[1] if free else _length(sides["y"][k])
        if tuple(matrix.shape) != (n, m):
            msg = f"{name} must have shape {(n, m)}, the lengths of axis {k} of x and y, got {tuple(matrix.shape)}"
            raise ValueError(msg)
        bad = ~xp.isfinite(matrix)
        if bool(xp.any(bad)):
            msg = f"{name} holds {found(xp, bad, 'not finite')}; forbidden pairs need a DenseCost"
            raise ValueError(msg)
    return arrays
