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
from otbilevel.ot.point_cloud import PointCloud
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
    image : tuple of int or None
        Height and width when the inputs are images with the squared distance in the unit square.
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
    image: tuple[int, int] | None
    output: tuple[int, ...]

    @property
    def xp(self) -> ModuleType:
        """Array namespace of all arrays."""
        return array_namespace(self.inputs[0])

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


def pixel_cloud(shape: tuple[int, int], like: Array) -> PointCloud:
    """The pixels of an image, from 0 to 1 along either side, as points with squared distances."""
    xp, where = array_namespace(like), device(like)
    axes = [xp.linspace(0.0, 1.0, size, dtype=like.dtype, device=where) if size > 1 else xp.zeros_like(like)[:1] for size in shape]
    x = xp.reshape(xp.broadcast_to(axes[0][:, None], shape), (-1,))
    y = xp.reshape(xp.broadcast_to(axes[1][None, :], shape), (-1,))
    return PointCloud(xp.stack([x, y], axis=1))


def read_inputs(given: Any, name: str = "A") -> tuple[list[Array], tuple[int, int] | None]:
    """The inputs as a list of vectors, and the shape of an image when they are images.

    Raises
    ------
    TypeError, ValueError
        When they are not vectors of one array library.
    """
    image = None
    if isinstance(given, (list, tuple)):
        inputs = [as_array(a, f"{name}[{k}]") for k, a in enumerate(given)]
        if inputs and all(len(a.shape) == 2 for a in inputs) and len({tuple(a.shape) for a in inputs}) == 1:
            image = (int(inputs[0].shape[0]), int(inputs[0].shape[1]))
            inputs = [array_namespace(a).reshape(a, (-1,)) for a in inputs]
    else:
        array = as_array(given, name)
        if len(array.shape) not in (2, 3):
            msg = f"{name} must have shape (k, n), one histogram a row, or (k, h, w) for images; got {tuple(array.shape)}"
            raise ValueError(msg)
        if len(array.shape) == 3:
            image = (int(array.shape[1]), int(array.shape[2]))
        inputs = [array_namespace(array).reshape(array[k, ...], (-1,)) for k in range(array.shape[0])]
    if not inputs:
        msg = f"{name} holds no input: a barycentre needs at least one"
        raise ValueError(msg)
    if isinstance(given, (list, tuple)):
        common_namespace({f"{name}[{k}]": a for k, a in enumerate(inputs)})
    for k, a in enumerate(inputs):
        if len(a.shape) != 1 or a.shape[0] == 0:
            msg = f"{name}[{k}] must be a vector of weights, got shape {tuple(a.shape)}"
            raise ValueError(msg)
    return inputs, image


def read_geometries(cost: Any, inputs: list[Array], image: tuple[int, int] | None) -> list[Geometry]:
    """One geometry per input, with as many rows as it has weights, and equally many columns.

    Raises
    ------
    ValueError
        When numbers or shapes do not fit, or a pair is forbidden.
    """
    if cost is None:
        if image is None:
            msg = "C is needed: only images, A of shape (k, h, w), have a cost of their own"
            raise ValueError(msg)
        return [pixel_cloud(image, inputs[0])] * len(inputs)
    if isinstance(cost, (list, tuple)) and not _is_matrix(cost):
        if len(cost) != len(inputs):
            msg = f"C is a list of {len(cost)} costs for {len(inputs)} inputs: give one for each, or one for all"
            raise ValueError(msg)
        geometries = [make_geometry(c) for c in cost]
    else:
        geometries = [make_geometry(cost)] * len(inputs)
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


def _is_matrix(cost: Sequence[Any]) -> bool:
    """Whether a list is a matrix written as rows of numbers."""
    return bool(cost) and isinstance(cost[0], (list, tuple)) and all(np.ndim(row) == 1 for row in cost)


def unit_inputs(inputs: list[Array], *, single: bool, name: str = "A") -> tuple[list[Array], float]:
    """The inputs in double precision, scaled to sum 1, and their mass."""
    xp = array_namespace(*inputs)
    sizes = [a.shape[0] for a in inputs]
    flat = xp.astype(xp.concat(inputs), xp.float64)
    bad = ~(xp.isfinite(flat) & (flat >= 0))
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    if bool(xp.any(bad)):
        place = int(xp.argmax(xp.astype(bad, xp.int64)))
        k = max(i for i, start in enumerate(starts) if start <= place)
        msg = f"{name}[{k}] must hold finite weights >= 0, but entry {place - starts[k]} is {float(flat[place])!r}"
        raise ValueError(msg)
    parts = [flat[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    masses = [float(xp.sum(part)) for part in parts]
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
