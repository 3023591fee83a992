"""The plan of a result over all of the user's points, a block of rows at a time.

With A_ij = exp((S_i + T_j - C_ij)/reg) the plan is P_ij = a_i b_j A_ij, and the optimality conditions

    sum_j b_j A_ij = 1,    sum_i a_i A_ij = 1

hold at every i and j, those of zero weight included: these potentials are defined by them.

Where marginals are fixed, a and b are the weights, and S, T the potentials f, g. Where they have a price, the same holds for
the masses a = s w, b = t w' that rows and columns have of their weights w, w', and for the soft minima S, T, with

    f = aprox(S),    s = exp((f - S)/reg),    g = aprox(T),    t = exp((g - T)/reg).
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
from otbilevel.ot.unbalanced_plan import UnbalancedPlan

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
        """The mass of either side, or the mean of both."""
        return self.problem.mass

    @cached_property
    def weights(self) -> tuple[Array, Array]:
        """The user's weights, in double precision."""
        p = self.problem
        return p.sources.expand(self.mass * p.a), p.targets.expand(self.mass * p.b)

    @cached_property
    def masses(self) -> tuple[float, float]:
        """The sums of the weights."""
        return float(self.xp.sum(self.weights[0])), float(self.xp.sum(self.weights[1]))

    @cached_property
    def shares(self) -> tuple[Array, Array]:
        """s and t."""
        sides = zip(self.potentials, self.soft_minima, strict=True)
        first, second = (self.xp.exp((potential - soft) / self.reg) for potential, soft in sides)
        return first, second

    @cached_property
    def responses(self) -> tuple[Array, Array]:
        """The derivatives of aprox at S and T: 1 where the marginal is met, 0 where a potential is at its bound."""
        marginals, (rows, columns) = self.problem.marginals, self.soft_minima
        if marginals is None:
            return self.xp.ones_like(rows), self.xp.ones_like(columns)
        return marginals.row_response(rows, self.reg), marginals.column_response(columns, self.reg)

    @cached_property
    def is_free(self) -> bool:
        """Whether a constant may move from f to g: no marginal gives way."""
        return all(bool(self.xp.all(response == 1.0)) for response in self.responses)

    @cached_property
    def a(self) -> Array:
        """The masses of the sources."""
        return self.weights[0] * self.shares[0]

    @cached_property
    def b(self) -> Array:
        """The masses of the targets."""
        return self.weights[1] * self.shares[1]

    @cached_property
    def empty(self) -> tuple[Array | None, Array | None]:
        """Where a and b are 0; None for nowhere."""
        first, second = (v == 0.0 if bool(self.xp.any(v == 0.0)) else None for v in (self.a, self.b))
        return first, second

    @cached_property
    def potentials(self) -> tuple[Array, Array]:
        """f and g at all points, in double precision."""
        return self.plan.double_potentials()

    @property
    def soft_minima(self) -> tuple[Array, Array]:
        """S and T at all points."""
        return self.plan.soft_minima if isinstance(self.plan, UnbalancedPlan) else self.potentials

    @cached_property
    def derivative(self) -> CostDerivative:
        """Of the cost between two clouds."""
        assert isinstance(self.geometry, PointCloud)
        return cost_derivative(self.geometry)

    def __iter__(self) -> Iterator[Block]:
        """The blocks of A. Between points without mass it may overflow: there it is the largest number, as 0 inf is NaN."""
        f, g = self.soft_minima
        ones, geometry = self.xp.ones_like(f), self.geometry
        for low, high in row_blocks(geometry.shape):
            kernel = geometry.kernels.plan_rows(geometry.kernel_cost, f, g, self.reg, ones, low, high)
            if self.empty[0] is not None and self.empty[1] is not None:
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
