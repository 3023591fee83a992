"""One stored kernel for all inputs: a pass is a matrix product. For reg so large that no exponent overflows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from otbilevel._core.array import Array, array_namespace
from otbilevel.ot.barycenters.problem import BarycenterProblem, pixel_cloud
from otbilevel.ot.barycenters.stack import PlanStack

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
    def dense(cls, problem: BarycenterProblem, reg: float) -> Kernel:
        """A stored matrix."""
        xp, geometry = problem.xp, problem.geometries[0]
        low, _ = geometry.bounds
        k = xp.exp((low - geometry.rows(0, geometry.shape[0])) / reg)
        return cls(lambda v: v @ k.T, lambda u: u @ k, low)

    @classmethod
    def separable(cls, problem: BarycenterProblem, reg: float) -> Kernel:
        """exp(-|x - y|^2/reg) between pixels is a product of one matrix per axis."""
        xp, shape = problem.xp, problem.image
        assert shape is not None
        first, second = (xp.exp(-cost / reg) for cost in axis_costs(shape, problem.inputs[0]))

        def apply(v: Array) -> Array:
            images = xp.reshape(v, (-1, *shape))
            return xp.reshape(first @ images @ second, (v.shape[0], -1))

        return cls(apply, apply, 0.0)


def axis_costs(shape: tuple[int, int], like: Array) -> tuple[Array, Array]:
    """Squared distances between the rows, and between the columns of an image."""
    xp = array_namespace(like)
    x = xp.reshape(pixel_cloud(shape, like).x, (*shape, 2))
    rows, columns = x[:, 0, 0], x[0, :, 1]
    return (rows[:, None] - rows[None, :]) ** 2, (columns[:, None] - columns[None, :]) ** 2


class SharedStack(PlanStack):
    """All inputs on one kernel.

    Scalings are divided by their maximum, so that they lie in [0, 1]; then no product overflows, and what underflows is less than
    exp(-100) of the sum that it belongs to.
    """

    def __init__(self, problem: BarycenterProblem, reg: float) -> None:
        self.xp, self.reg = problem.xp, reg
        self._a = self.xp.stack(problem.inputs)
        self._kernel = (Kernel.separable if problem.image is not None else Kernel.dense)(problem, reg)

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
