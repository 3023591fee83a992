"""Geometries own the cost: they know its entries and the kernels that sweep over it. A method never touches C."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from otbilevel._core.array import Array, array_namespace, device, to_numpy
from otbilevel.ot import kernels


class Geometry(ABC):
    """The cost between n source and m target points.

    Attributes
    ----------
    shape : tuple of int
        ``(n, m)``.
    dtype
        Floating dtype of the data.
    """

    shape: tuple[int, int]
    dtype: Any

    @abstractmethod
    def rows(self, low: int, high: int) -> Array:
        """The rows [low, high) of the cost in double precision, shape (high - low, m)."""

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and costs of all pairs that are not forbidden, in host memory and double precision. O(n m) memory."""
        matrix = to_numpy(self.rows(0, self.shape[0]))
        i, j = np.nonzero(np.isfinite(matrix))
        return i, j, matrix[i, j]

    @abstractmethod
    def restrict(self, sources: Array | None, targets: Array | None) -> Geometry:
        """The geometry of some sources and some targets, given by their indices (None: all)."""

    @abstractmethod
    def transpose(self) -> Geometry:
        """The geometry with sources and targets exchanged."""

    def beside(self, weights: dict[str, Array]) -> Geometry:  # noqa: ARG002 -- for geometries that hold no arrays of the user's
        """The geometry for these weights: of their array library, device and dtype if the user gave it none."""
        return self

    @abstractmethod
    def _compiled_cost(self) -> Any:
        """What the compiled kernels take as `cost`."""

    @property
    @abstractmethod
    def arrays(self) -> dict[str, Array]:
        """The data by the names of the arguments that gave them."""

    @property
    def xp(self) -> ModuleType:
        """Array namespace of the data."""
        namespace: ModuleType = array_namespace(next(iter(self.arrays.values())))
        return namespace

    @property
    def device(self) -> Any:
        """Where the data live."""
        return device(next(iter(self.arrays.values())))

    def __getstate__(self) -> dict[str, Any]:
        """Modules, and what is made for them, are found again after unpickling."""
        return {name: value for name, value in self.__dict__.items() if name not in ("kernels", "kernel_cost", "trees")}

    @cached_property
    def kernels(self) -> ModuleType:
        """The kernels, chosen once for the array library of the data."""
        return kernels.select(self.xp)

    @cached_property
    def kernel_cost(self) -> Any:
        """What `kernels` take as `cost`."""
        return self if self.kernels is kernels.generic else self._compiled_cost()

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest finite cost. One pass over the cost, O(n m)."""
        low, high = self.kernels.cost_bounds(self.kernel_cost, self.shape)
        return float(low), float(high)

    @property
    def has_forbidden_pairs(self) -> bool:
        """Whether some cost is infinite."""
        return False

    @abstractmethod
    def to_dense(self) -> Geometry:
        """The same costs as a stored (n, m) array in the geometry's dtype. O(n m) memory."""


def check_matrix(matrix: Array, name: str) -> None:
    """Refuse what is not a two-dimensional array with entries."""
    if len(matrix.shape) != 2:
        order = "; the order of the arguments is a, b, C" if name == "C" and len(matrix.shape) == 1 else ""
        msg = f"{name} must be two-dimensional, got shape {tuple(matrix.shape)}{order}"
        raise ValueError(msg)
    if 0 in matrix.shape:
        msg = f"{name} is empty: its shape is {tuple(matrix.shape)}"
        raise ValueError(msg)


def found(xp: ModuleType, mask: Array, what: str) -> str:
    """How many entries the mask marks, what is wrong with them, and where the first is."""
    count = int(xp.sum(xp.astype(mask, xp.int64)))
    entries = "1 entry that is" if count == 1 else f"{count} entries that are"
    return f"{entries} {what}, the first at {first_index(xp, mask)}"


def first_index(xp: ModuleType, mask: Array) -> tuple[int, ...]:
    """Index of the first True of a two-dimensional mask."""
    flat = int(xp.argmax(xp.reshape(xp.astype(mask, xp.int64), (-1,))))
    row, column = divmod(flat, int(mask.shape[1]))
    return row, column
