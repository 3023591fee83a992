"""The kernels of a grid by their usual names: the plan, its sums and products, one axis after the other.

`cost` is a `Grid`. Between n points in d dimensions a pass takes O(n^(1 + 1/d)) operations and O(n) memory for each block of the
axes; `plan_rows` and `softmax_rows` with a stored plan are the ones of `generic`, in O(n m).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from otbilevel._core.array import Array, array_namespace, device
from otbilevel.ot.kernels import vectors
from otbilevel.ot.kernels.generic import (
    laplacian_product,
    new_plan,
    plan_itemsize,
    plan_moments,
    plan_rows,
    scaling_pass,
    sharpen,
    shift_pass,
    softmax_rows,
)
from otbilevel.ot.kernels.lines import BlockedLines, PlainLines, line_kernel, smallest_over_lines

if TYPE_CHECKING:
    from otbilevel.ot.grid import Grid

__all__ = [
    "SeparableKernel",
    "c_transform",
    "cost_bounds",
    "laplacian_product",
    "new_plan",
    "plan_itemsize",
    "plan_moments",
    "plan_product",
    "plan_rows",
    "plan_sums",
    "product_cost",
    "scaling_pass",
    "sharpen",
    "shift_pass",
    "softmax_rows",
]

vector_kernels = vectors
sparse_kernels = active_set = lazy_active_set = None
interpolates = False
solve_laplacian = None


class SeparableKernel:
    """K with row sums 1, as a sequence of line kernels: exp((f_i + g_j - C_ij)/reg) for the best f. Or a stack of such K.

    Parameters
    ----------
    cost : Grid
        The points.
    g : (m,) or (k, m) array
        Potential of the targets, with their weights in it; -inf leaves a target out. k of them make a stack, and all vectors
        have as many rows.
    reg : float
        Regularisation.
    plain : bool
        Whether every entry of the line kernels is computed for itself.

    Attributes
    ----------
    log_sums : (n,) or (k, n) array
        log sum_j exp((g_j - C_ij)/reg), which is -f_i / reg.
    """

    def __init__(self, cost: Grid, g: Array, reg: float, *, plain: bool = False) -> None:
        self._cost, self._xp = cost, array_namespace(g)
        self._stages: list[PlainLines | BlockedLines] = []
        u = cost.spread_targets(g / reg, -float("inf"))
        for axis in reversed(cost.axes):  # an axis comes back as the first one, and the next is then the last
            lines = self._xp.reshape(u, (-1, axis.shape[1]))
            self._stages.append(PlainLines(axis, lines, reg) if plain else line_kernel(axis, lines, reg))
            u = self._xp.reshape(self._stages[-1].log_sums, (-1,))
        self.log_sums = cost.gather_sources(self._stack_first(u, g))

    def times(self, x: Array) -> Array:
        """K x."""
        y = self._cost.spread_targets(x, 0.0)
        for axis, stage in zip(reversed(self._cost.axes), self._stages, strict=True):
            y = self._xp.reshape(stage.times(self._xp.reshape(y, (-1, axis.shape[1]))), (-1,))
        return self._cost.gather_sources(self._stack_first(y, x))

    def transposed_times(self, y: Array) -> Array:
        """K' y."""
        x = self._cost.spread_sources(y, 0.0)
        if y.ndim == 2:
            x = x.T
        for axis, stage in zip(self._cost.axes, reversed(self._stages), strict=True):
            x = self._xp.reshape(stage.transposed_times(self._xp.reshape(x, (axis.shape[0], -1))), (-1,))
        return self._cost.gather_targets(x if y.ndim == 1 else self._xp.reshape(x, (y.shape[0], -1)))

    def _stack_first(self, x: Array, like: Array) -> Array:
        """All axes have come to the front one by one, and with them the stack has gone to the end."""
        return x if like.ndim == 1 else self._xp.reshape(x, (-1, like.shape[0])).T

    def cost_of(self, x: Array) -> Array:
        """sum_j K_ij C_ij x_j; for plain line kernels."""
        x = self._cost.spread_targets(x, 0.0)
        spent = self._xp.zeros_like(x)
        for axis, stage in zip(reversed(self._cost.axes), self._stages, strict=True):
            assert isinstance(stage, PlainLines)
            shape = (-1, axis.shape[1])
            x, spent = stage.times_with_cost(self._xp.reshape(x, shape), self._xp.reshape(spent, shape))
            x, spent = self._xp.reshape(x, (-1,)), self._xp.reshape(spent, (-1,))
        return self._cost.gather_sources(spent)

    def row_masses(self, f: Array, reg: float, a: Array) -> Array:
        """The row sums of diag(a) exp((f_i + g_j - C_ij)/reg), for any f."""
        return a * self._xp.exp(f / reg + self.log_sums)


def cost_bounds(cost: Grid, shape: tuple[int, int]) -> tuple[float, float]:  # noqa: ARG001 -- as the others have it
    """Of all points of the grid, whether they carry weight or not."""
    xp = cost.xp
    extremes = [(float(xp.min(axis.matrix)), float(xp.max(axis.matrix))) for axis in cost.axes]
    return sum(low for low, _ in extremes), sum(high for _, high in extremes)


def plan_sums(cost: Grid, f: Array, g: Array, reg: float, a: Array) -> tuple[Array, Array, float]:
    """By plain line kernels, which no iteration uses where blocks pay."""
    kernel = SeparableKernel(cost, g, reg, plain=True)
    row_sums = kernel.row_masses(f, reg, a)
    total_cost = float(cost.xp.sum(row_sums * kernel.cost_of(cost.xp.ones_like(g))))
    return row_sums, kernel.transposed_times(row_sums), total_cost


def plan_product(cost: Grid, f: Array, g: Array, reg: float, a: Array, vectors: Array, axis: int) -> Array:
    xp = cost.xp
    kernel = SeparableKernel(cost, g, reg)
    masses = kernel.row_masses(f, reg, a)
    columns = [vectors[:, k] for k in range(vectors.shape[1])]
    if not columns:
        return xp.zeros((cost.shape[1 - axis], 0), dtype=g.dtype, device=device(g))
    if axis == 1:
        return xp.stack([masses * kernel.times(column) for column in columns], axis=1)
    return xp.stack([kernel.transposed_times(masses * column) for column in columns], axis=1)


def c_transform(cost: Grid, g: Array) -> Array:
    """min_j C_ij - g_j."""
    xp = array_namespace(g)
    u = cost.spread_targets(g, -float("inf"))
    for axis in reversed(cost.axes):
        u = -xp.reshape(smallest_over_lines(axis, xp.reshape(u, (-1, axis.shape[1]))), (-1,))
    return -cost.gather_sources(u)


def product_cost(cost: Grid, u: Array, v: Array) -> float:
    """sum_ij u_i v_j C_ij, from the marginals of u and v along each axis."""
    xp, total = cost.xp, 0.0
    shapes = tuple(axis.shape[0] for axis in cost.axes), tuple(axis.shape[1] for axis in cost.axes)
    u, v = xp.reshape(cost.spread_sources(u, 0.0), shapes[0]), xp.reshape(cost.spread_targets(v, 0.0), shapes[1])
    mass_u, mass_v = float(xp.sum(u)), float(xp.sum(v))
    if not (mass_u > 0 and mass_v > 0):
        return 0.0
    for k, axis in enumerate(cost.axes):
        others = tuple(other for other in range(len(cost.axes)) if other != k)
        along_u, along_v = (xp.sum(x, axis=others) if others else x for x in (u, v))
        total += float(xp.sum((along_u / mass_u) * (axis.matrix @ (along_v / mass_v))))
    return mass_u * mass_v * total
