"""The problem of a barycentre on a fixed support, as the solvers see it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from otbilevel._core.array import Array, array_namespace, as_array, common_namespace, device
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.grid import Grid
from otbilevel.ot.kernels import select
from otbilevel.ot.problem import make_geometry

SAME_MASS = {False: 1e-6, True: 1e-4}
"""Relative difference of mass that is rescaled, in double and in single precision."""


@dataclass(frozen=True, eq=False)
class BarycenterProblem:
    """Entropic barycentre of weights of unit mass, in double precision.

    Attributes
    ----------
    inputs : list of (n_k,) arrays
        The weights of each input, of sum 1; zeros are kept.
    weights : (k,) ndarray
        Barycentric coordinates, non-negative, of sum 1.
    geometries : list of Geometry
        Costs between the points of each input and those of the barycentre; one object k times where they are shared.
    reg, tol : float
        Regularisation in units of the cost, and the L1 error of the marginals.
    debias : bool
        Whether Sinkhorn divergences are minimised.
    mass : float
        The mass of the user's weights.
    dtype
        Floating dtype of what is returned.
    output : tuple of int
        Shape of the barycentre that is returned.
    """

    inputs: list[Array]
    weights: np.ndarray
    geometries: list[Geometry]
    reg: float
    tol: float
    debias: bool
    mass: float
    dtype: Any
    output: tuple[int, ...]

    @property
    def xp(self) -> ModuleType:
        """Array namespace of all arrays."""
        return array_namespace(self.inputs[0])

    @property
    def kernels(self) -> ModuleType:
        """Work on stacks of vectors."""
        kernels: ModuleType = select(self.xp).stack_kernels
        return kernels

    @property
    def device(self) -> Any:
        """Where they live."""
        return device(self.inputs[0])

    @property
    def size(self) -> int:
        """Number of points of the barycentre."""
        return self.geometries[0].shape[1]

    @property
    def shared(self) -> bool:
        """Whether all inputs have one cost."""
        return all(geometry is self.geometries[0] for geometry in self.geometries)

    @property
    def grids(self) -> list[Grid]:
        """The geometries where all of them are grids, else none."""
        grids = [geometry for geometry in self.geometries if isinstance(geometry, Grid)]
        return grids if len(grids) == len(self.geometries) else []

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest finite cost of all."""
        bounds = [geometry.bounds for geometry in distinct(self.geometries)]
        return min(low for low, _ in bounds), max(high for _, high in bounds)

    @property
    def rounding_floor(self) -> float:
        """The marginal error that double precision leaves: eps times the largest exponent, C / reg."""
        low, high = self.bounds
        return float(np.finfo(np.float64).eps) * (1.0 + max(abs(low), abs(high)) / self.reg)


def distinct(geometries: list[Geometry]) -> list[Geometry]:
    """The costs, each once."""
    return list({id(geometry): geometry for geometry in geometries}.values())


def read_inputs(given: Any, name: str = "A") -> tuple[list[Array], list[tuple[int, ...]]]:
    """The inputs as vectors, and their shapes, which have more than one axis for images and volumes.

    Raises
    ------
    TypeError, ValueError
        When they are not vectors of one array library.
    """
    if isinstance(given, (list, tuple)):
        inputs = [as_array(a, f"{name}[{k}]") for k, a in enumerate(given)]
    else:
        array = as_array(given, name)
        if len(array.shape) < 2:
            msg = f"{name} must have shape (k, n), one histogram a row, or (k, h, w) for images; got {tuple(array.shape)}"
            raise ValueError(msg)
        inputs = [array[k, ...] for k in range(array.shape[0])]
    if not inputs:
        msg = f"{name} holds no input: a barycentre needs at least one"
        raise ValueError(msg)
    if isinstance(given, (list, tuple)):
        common_namespace({f"{name}[{k}]": a for k, a in enumerate(inputs)})
    shapes = [tuple(int(side) for side in a.shape) for a in inputs]
    for k, shape in enumerate(shapes):
        if len(shape) != len(shapes[0]) or math.prod(shape) == 0 or not shape:
            msg = f"{name}[{k}] must be a vector of weights, or all inputs images; got shape {shape}"
            raise ValueError(msg)
    if len(shapes[0]) == 1:
        return inputs, shapes
    return [array_namespace(a).reshape(a, (-1,)) for a in inputs], shapes


def read_geometries(cost: Any, inputs: list[Array], shapes: list[tuple[int, ...]]) -> list[Geometry]:
    """One geometry per input, with as many rows as it has weights, and equally many columns.

    Raises
    ------
    ValueError
        When numbers or shapes do not fit, or a pair is forbidden.
    """
    if cost is None:
        if len(shapes[0]) == 1 or len(set(shapes)) > 1:
            msg = "C is needed: only images of one size, A of shape (k, h, w), have a cost of their own"
            raise ValueError(msg)
        return [Grid(shapes[0]).beside({"A": inputs[0]})] * len(inputs)
    if isinstance(cost, (list, tuple)) and not _is_matrix(cost):
        if len(cost) != len(inputs):
            msg = f"C is a list of {len(cost)} costs for {len(inputs)} inputs: give one for each, or one for all"
            raise ValueError(msg)
        geometries = [make_geometry(c).beside({"A": a}) for c, a in zip(cost, inputs, strict=True)]
    else:
        geometries = [make_geometry(cost).beside({"A": inputs[0]})] * len(inputs)
    for k, (geometry, a) in enumerate(zip(geometries, inputs, strict=True)):
        if geometry.shape[0] != a.shape[0]:
            msg = f"input {k} has {a.shape[0]} weights, but its cost has shape {geometry.shape}: one row for each of its points"
            raise ValueError(msg)
        if geometry.shape[1] != geometries[0].shape[1]:
            msg = (
                f"costs must have one column for each point of the barycentre, got {geometries[0].shape[1]} and {geometry.shape[1]}"
            )
            raise ValueError(msg)
        if geometry.has_forbidden_pairs:
            msg = f"the cost of input {k} forbids pairs (+inf), which barycentres do not take: use large finite costs"
            raise ValueError(msg)
    return geometries


def output_shape(geometry: Geometry, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Of the barycentre: an image where the inputs are images and it is clear of which shape."""
    size = geometry.shape[1]
    if len(shapes[0]) > 1 and isinstance(geometry, Grid):
        return tuple(axis.shape[1] for axis in geometry.axes)
    return shapes[0] if len(set(shapes)) == 1 and math.prod(shapes[0]) == size else (size,)


def _is_matrix(cost: Sequence[Any]) -> bool:
    """Whether a list is a matrix written as rows of numbers."""
    return bool(cost) and isinstance(cost[0], (list, tuple)) and all(np.ndim(row) == 1 for row in cost)


def unit_inputs(inputs: list[Array], *, single: bool, name: str = "A") -> tuple[list[Array], float]:
    """The inputs in double precision, scaled to sum 1, and their mass."""
    xp = array_namespace(*inputs)
    sizes = [a.shape[0] for a in inputs]
    flat = xp.astype(xp.concat(inputs), xp.float64)
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    low, high = select(xp).vector_kernels.extremes(flat)
    if not (low >= 0 and high < math.inf):
        place = int(xp.argmax(xp.astype(~(xp.isfinite(flat) & (flat >= 0)), xp.int64)))
        k = max(i for i, start in enumerate(starts) if start <= place)
        msg = f"{name}[{k}] must hold finite weights >= 0, but entry {place - starts[k]} is {float(flat[place])!r}"
        raise ValueError(msg)
    parts = [flat[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    masses = _masses(flat, parts)
    for k, total in enumerate(masses):
        if not 0 < total < math.inf:
            msg = f"{name}[{k}] must have positive, finite total mass, got {total!r}"
            raise ValueError(msg)
    low, high = min(masses), max(masses)
    if high - low > SAME_MASS[single] * high:
        msg = (
            f"inputs must have equal mass, got from {low!r} (input {masses.index(low)}) to {high!r} (input {masses.index(high)}): "
            "rescale them"
        )
        raise ValueError(msg)
    return [part / total for part, total in zip(parts, masses, strict=True)], masses[0]


def _masses(flat: Array, parts: list[Array]) -> list[float]:
    """The sums of all parts, by one call where they are of one size."""
    xp, count = array_namespace(flat), len(parts)
    if len({part.shape for part in parts}) > 1:
        return [float(xp.sum(part)) for part in parts]
    sums = xp.sum(xp.reshape(flat, (count, -1)), axis=1)
    return [float(sums[k]) for k in range(count)]


def coordinates(weights: Any, count: int) -> np.ndarray:
    """Barycentric coordinates, uniform by default, scaled to sum 1."""
    if weights is None:
        return np.full(count, 1.0 / count)
    given = as_array(weights, "weights")
    if tuple(given.shape) != (count,):
        msg = f"weights must hold one number for each of the {count} inputs, got shape {tuple(given.shape)}"
        raise ValueError(msg)
    values = np.array([float(given[k]) for k in range(count)])
    if not (np.all(np.isfinite(values)) and np.all(values >= 0) and values.sum() > 0):
        msg = f"weights must be finite and >= 0 with a positive sum, got {values.tolist()}"
        raise ValueError(msg)
    unit: np.ndarray = values / values.sum()
    return unit
