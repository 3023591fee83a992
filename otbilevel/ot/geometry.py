"""Geometries own the cost: they know its entries and the kernels that sweep over it. A method never touches C."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from otbilevel._core.array import Array, array_namespace, device, to_numpy
from otbilevel.ot import kernels
from otbilevel.ot.kernels.generic import row_blocks
from otbilevel.ot.rounding import RankOne

if TYPE_CHECKING:
    from otbilevel.ot.plan import Plan
    from otbilevel.ot.problem import OTProblem
    from otbilevel.ot.row_plan import RowPlan, Work
    from otbilevel.ot.stored_plan import Room


class Geometry(ABC):
    """The cost between n source and m target points.

    A new kind of cost is one subclass. It has to give its entries; what else there is here has a default by blocks of rows, in
    O(n m), that a cost with some structure does better.

    Attributes
    ----------
    shape : tuple of int
        ``(n, m)``.
    dtype
        Floating dtype of the data.
    inputs : tuple of str
        The names of what it is made of, as far as plans can be differentiated in them.
    rank_one : type[RankOne]
        How plans are rounded where no pair is forbidden.
    """

    shape: tuple[int, int]
    dtype: Any
    inputs: ClassVar[tuple[str, ...]] = ()
    rank_one: ClassVar[type[RankOne]] = RankOne

    @abstractmethod
    def rows(self, low: int, high: int) -> Array:
        """The rows [low, high) of the cost in double precision, shape (high - low, m)."""

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and costs of all pairs that are not forbidden, in host memory and double precision. O(n m) memory."""
        matrix = to_numpy(self.rows(0, self.shape[0]))
        i, j = np.nonzero(np.isfinite(matrix))
        return i, j, matrix[i, j]

    def costs(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """The costs of some pairs (i, j), in host memory and double precision. O(n m) time."""
        costs = np.empty(len(i))
        for low, high in row_blocks(self.shape):
            inside = (i >= low) & (i < high)
            costs[inside] = to_numpy(self.rows(low, high))[i[inside] - low, j[inside]]
        return costs

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

    def __repr__(self) -> str:
        n, m = self.shape
        return f"{type(self).__name__}({n} x {m}{self._details()}, {self.dtype})"

    def _details(self) -> str:
        """What the printout says beyond shape and dtype, after a comma."""
        return ""

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

    @property
    def is_sparse(self) -> bool:
        """Whether only some pairs are stored, and all takes time in proportion to their number."""
        return False

    @abstractmethod
    def to_dense(self) -> Geometry:
        """The same costs as a `DenseCost`, whose `matrix` is an (n, m) array in the geometry's dtype. O(n m) memory."""

    def local_order(self) -> tuple[Array, Array] | None:
        """Rows and columns in an order in which a solver had better take them; None for as they are."""
        return None

    def row_plan(self, problem: OTProblem, work: Work, room: Room, *, single: bool, memory: float) -> RowPlan:  # noqa: ARG002
        """What methods move, for a problem with this cost; within the memory, in bytes, if the cost itself is not stored."""
        return room.plan(self, problem.a, work, single=single, marginals=problem.marginals)

    def large_entries(self, f: Array, g: Array, reg: float, a: Array, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and values of P_ij = a_i exp((f_i + g_j - C_ij)/reg) where it is above share * a_i, in host memory."""
        rows, columns, values, weights = [], [], [], to_numpy(a)
        for low, high in row_blocks(self.shape):
            block = to_numpy(self.kernels.plan_rows(self.kernel_cost, f, g, reg, a, low, high))
            i, j = np.nonzero(block > share * weights[low:high, None])
            rows.append(i + low)
            columns.append(j)
            values.append(block[i, j])
        return np.concatenate(rows), np.concatenate(columns), np.concatenate(values)

    def of_plan(self, plan: Plan) -> Any:
        """A plan in the form of the cost: the derivative of the optimal value in its entries."""
        return plan.dense()

    def kept(self, rows: Array, low: int) -> Array:  # noqa: ARG002
        """Of the rows low, low + 1, ... of an (n, m) array, what belongs to entries of the cost."""
        return rows

    def joined(self, parts: list[Array]) -> Any:
        """What was kept of all rows in the form of the cost."""
        return self.xp.concat(parts)

    def soft_transform(self, g: Array, reg: float) -> Array:
        """-reg log sum_j exp((g_j - C_ij)/reg) for every row; 0 for a row whose pairs are all forbidden."""
        xp, parts = self.xp, []
        for low, high in row_blocks(self.shape):
            exponents = (g[None, :] - self.rows(low, high)) / reg
            top = finite(xp.max(exponents, axis=1))
            total = xp.sum(xp.exp(exponents - top[:, None]), axis=1)
            parts.append(-reg * (top + xp.log(xp.where(total > 0, total, xp.ones_like(total)))))
        return xp.concat(parts)

    def c_transform_rows(self, g: Array) -> Array:
        """min_j C_ij - g_j; infinite for a row whose pairs are all forbidden."""
        blocks = row_blocks(self.shape)
        return self.xp.concat([self.xp.min(self.rows(low, high) - g[None, :], axis=1) for low, high in blocks])

    def c_transform_columns(self, f: Array) -> Array:
        """min_i C_ij - f_i; infinite for a column whose pairs are all forbidden."""
        xp = self.xp
        best = xp.full((self.shape[1],), float("inf"), dtype=f.dtype, device=device(f))
        for low, high in row_blocks(self.shape):
            best = xp.minimum(best, xp.min(self.rows(low, high) - f[low:high, None], axis=0))
        return best

    def cheapest(self, g: Array) -> Array:
        """The first j where C_ij - g_j is least, for every row; any for a row whose pairs are all forbidden."""
        blocks = row_blocks(self.shape)
        return self.xp.concat([self.xp.argmin(self.rows(low, high) - g[None, :], axis=1) for low, high in blocks])


def finite(f: Array) -> Array:
    """The same with 0 for what is not finite: the potential of a point whose pairs are all forbidden."""
    xp = array_namespace(f)
    return xp.where(xp.isfinite(f), f, xp.zeros_like(f))


def check_matrix(matrix: Array, name: str) -> None:
    """Refuse what is not a two-dimensional array with entries."""
    if len(matrix.shape) != 2:
        hints = {1: "; the order of the arguments is a, b, C", 3: "; for a stack of problems there is solve_ot_batch"}
        order = hints.get(len(matrix.shape), "") if name == "C" else ""
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
