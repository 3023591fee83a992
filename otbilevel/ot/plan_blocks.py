"""The plan of a result over all of the user's points, a block of rows at a time.

With A_ij = exp((f_i + g_j - C_ij)/reg) the plan is P_ij = a_i b_j A_ij, and the optimality conditions

    sum_j b_j A_ij = 1,    sum_i a_i A_ij = 1

hold at every i and j, those of zero weight included: these potentials are defined by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from otbilevel._core.array import Array
from otbilevel.ot.cost_derivative import CostDerivative, cost_derivative
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.kernels.generic import row_blocks
from otbilevel.ot.plan import EntropicPlan
from otbilevel.ot.point_cloud import PointCloud
from otbilevel.ot.problem import OTProblem

LARGEST = float(np.finfo(np.float64).max)


def matrix_rows(matrix: Any, block: Block) -> Array:
    """The rows of an (n, m) array, perhaps a sparse one, that belong to a block."""
    rows = matrix[block.low : block.high, :]
    return rows.toarray() if sparse.issparse(rows) else rows


class Block(NamedTuple):
    """Rows [low, high) of A."""

    low: int
    high: int
    kernel: Array


@dataclass(frozen=True)
class PlanBlocks:
    """What derivatives need of an entropic plan.

    Attributes
    ----------
    plan : EntropicPlan
        The plan on the support, for unit mass.
    """

    plan: EntropicPlan

    @property
    def problem(self) -> OTProblem:
        """The problem on the support."""
        return self.plan.problem

    @property
    def geometry(self) -> Geometry:
        """The cost between all points."""
        return self.problem.whole

    @property
    def xp(self) -> ModuleType:
        """The array namespace."""
        return self.problem.xp

    @property
    def reg(self) -> float:
        """The regularisation."""
        return self.problem.reg

    @property
    def mass(self) -> float:
        """The mass of either side."""
        return self.problem.mass

    @cached_property
    def a(self) -> Array:
        """The user's weights of the sources, in double precision."""
        return self.problem.sources.expand(self.mass * self.problem.a)

    @cached_property
    def b(self) -> Array:
        """The user's weights of the targets, in double precision."""
        return self.problem.targets.expand(self.mass * self.problem.b)

    @cached_property
    def potentials(self) -> tuple[Array, Array]:
        """f and g at all points, in double precision."""
        return self.plan.double_potentials()

    @cached_property
    def derivative(self) -> CostDerivative:
        """Of the cost between two clouds."""
        assert isinstance(self.geometry, PointCloud)
        return cost_derivative(self.geometry)

    def __iter__(self) -> Iterator[Block]:
        """The blocks of A. Between points without weight it may overflow: there it is the largest number, as 0 inf is NaN."""
        f, g = self.potentials
        ones, geometry = self.xp.ones_like(f), self.geometry
        for low, high in row_blocks(geometry.shape):
            kernel = geometry.kernels.plan_rows(geometry.kernel_cost, f, g, self.reg, ones, low, high)
            if self.problem.sources.dropped is not None and self.problem.targets.dropped is not None:
                kernel = self.xp.where(kernel < LARGEST, kernel, self.xp.full_like(kernel, LARGEST))
            yield Block(low, high, kernel)

    def matrix(self, rows: Callable[[Block], Array]) -> Any:
        """What a function gives for the rows of each block, in the form of the cost and the user's dtype."""
        return self.in_user_dtype(self.geometry.joined([self.geometry.kept(rows(block), block.low) for block in self]))

    def in_user_dtype(self, values: Any) -> Any:
        """An array, or a sparse one."""
        dtype = self.problem.dtype
        return values.astype(dtype) if sparse.issparse(values) else self.xp.astype(values, dtype)

    def slack(self, block: Block) -> Array:
        """f_i + g_j - C_ij, and 0 where the plan has vanished."""
        f, g = self.potentials
        t = f[block.low : block.high, None] + g[None, :] - self.geometry.rows(block.low, block.high)
        return self.xp.where(block.kernel > 0, t, self.xp.zeros_like(t))

    def cost(self, block: Block) -> Array:
        """C_ij, and 0 where the plan has vanished."""
        rows = self.geometry.rows(block.low, block.high)
        return self.xp.where(block.kernel > 0, rows, self.xp.zeros_like(rows))

    def coupling(self, block: Block) -> Array:
        """P_ij."""
        return self.a[block.low : block.high, None] * block.kernel * self.b[None, :]

    def times(self, v: Array) -> Array:
        """A v."""
        return self.xp.concat([block.kernel @ v for block in self])

    def transposed_times(self, u: Array) -> Array:
        """A' u."""
        total = self.xp.zeros_like(self.b)
        for low, high, kernel in self:
            total = total + u[low:high] @ kernel
        return total
