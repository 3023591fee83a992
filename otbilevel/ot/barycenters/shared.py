"""One stored kernel for all inputs: a pass is a matrix product. For reg so large that no exponent overflows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from otbilevel._core.array import Array, array_namespace
from otbilevel.ot.barycenters.problem import BarycenterProblem
from otbilevel.ot.barycenters.stack import PlanStack
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.grid import Grid

WIDEST = 600.0
"""Range of C / reg up to which exp(-C/reg), and scalings by its reciprocals, stay within double precision."""
NOTHING = -700.0
"""Scalings below exp(this) are raised to it, which is as good as 0: denormal numbers would slow products down a hundredfold."""


@dataclass(frozen=True)
class Kernel:
    """exp(-(C - low)/reg) as two maps on stacks of vectors, (k, m) -> (k, n) and back."""

    forward: Callable[[Array], Array]
    backward: Callable[[Array], Array]
    low: float

    @classmethod
    def dense(cls, geometry: Geometry, reg: float) -> Kernel:
        """A stored matrix."""
        xp, (low, _) = geometry.xp, geometry.bounds
        k = xp.exp((low - geometry.rows(0, geometry.shape[0])) / reg)
        return cls(lambda v: v @ k.T, lambda u: u @ k, low)

    @classmethod
    def separable(cls, grid: Grid, reg: float) -> Kernel:
        """Between grids it is a product of one matrix per axis."""
        xp, (low, _) = grid.xp, grid.bounds
        factors = [xp.exp((low / len(grid.axes) - axis.matrix) / reg) for axis in grid.axes]

        def along_axes(x: Array, side: int) -> Array:
            count = x.shape[0]
            x = xp.reshape(x, (count, *(factor.shape[side] for factor in factors)))
            for factor in factors:  # the first axis is summed over, and comes back as the last
                x = xp.tensordot(x, factor, axes=((1,), (side,)))
            return xp.reshape(x, (count, -1))

        return cls(lambda v: along_axes(v, 1), lambda u: along_axes(u, 0), low)


class SharedStack(PlanStack):
    """All inputs on one kernel.

    Scalings are divided by their maximum, so that they lie in [0, 1]; then no product overflows, and what underflows is less than
    exp(-100) of the sum that it belongs to.
    """

    def __init__(self, problem: BarycenterProblem, reg: float) -> None:
        self.xp, self.reg = problem.xp, reg
        self._a = self.xp.stack(problem.inputs)
        geometry = problem.geometries[0]
        self._kernel = Kernel.separable(geometry, reg) if isinstance(geometry, Grid) else Kernel.dense(geometry, reg)

    def move(self, log_scalings: Array, h: Array | None = None) -> None:
        xp, count = self.xp, log_scalings.shape[0]
        stacked = log_scalings if h is None else xp.concat([log_scalings, h[None, :]])
        top, scalings = self._scaled(stacked)
        products = self._kernel.forward(scalings)
        self._v, self._kv = scalings[:count, :], products[:count, :]
        self._top = top[:count, :]
        self._u = self._a / self._kv
        sums = self._kernel.backward(self._u)
        self.log_scalings, self.log_sums, self.column_sums = log_scalings, xp.log(sums) - top[:count, :], self._v * sums
        self.self_log_sums = None if h is None else xp.log(products[count, :]) + top[count, 0]
        self.passes += 2

    def _scaled(self, logs: Array) -> tuple[Array, Array]:
        top = self.xp.max(logs, axis=1, keepdims=True)
        return top, self.xp.exp(self.xp.clip(logs - top, NOTHING, None))

    def prepare(self) -> Array:
        return inverse(self.column_sums)

    def laplacian_product(self, x: Array) -> Array:
        self.passes += 2
        means = self._kernel.forward(self._v * x) / self._kv
        return self.column_sums * x - self._v * self._kernel.backward(self._u * means)

    def row_potentials(self) -> list[Array]:
        f = self._kernel.low - self.reg * (self.xp.log(self._kv) + self._top)
        return [f[k, :] for k in range(f.shape[0])]

    def certify(self, f: list[Array], g: Array) -> tuple[list[float], Array]:
        xp = self.xp
        rows = (xp.stack(f) - self._kernel.low) / self.reg
        top_g, v = self._scaled(g / self.reg)
        top_f, u = self._scaled(rows)
        scale = xp.exp(top_g + top_f)
        errors = xp.sum(self._a * xp.abs(u * self._kernel.forward(v) * scale - 1.0), axis=1)
        columns = v * self._kernel.backward(self._a * u) * scale
        return [float(errors[k]) for k in range(len(f))], columns


def inverse(degree: Array) -> Array:
    """1 / degree, and 1 where that is next to nothing."""
    xp = array_namespace(degree)
    safe = degree > 1e-300
    return xp.where(safe, 1.0 / xp.where(safe, degree, xp.ones_like(degree)), xp.ones_like(degree))
