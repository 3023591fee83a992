"""One stored kernel for all inputs: a pass is a matrix product. For reg so large that no exponent overflows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import ModuleType

from otbilevel._core.array import Array
from otbilevel.ot.barycenters.problem import BarycenterProblem
from otbilevel.ot.barycenters.stack import PlanStack
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.grid import Grid

WIDEST = 600.0
"""Range of C / reg up to which exp(-C/reg), and scalings by its reciprocals, stay within double precision."""
NOTHING = -700.0
"""Scalings below exp(this) are raised to it, which is as good as 0: denormal numbers would slow products down a hundredfold."""


class Kernel(ABC):
    """exp(-(C - low)/reg) and its transpose as maps on stacks of vectors, (k, m) -> (k, n) and back."""

    low: float

    @abstractmethod
    def forward(self, v: Array) -> Array:
        """K v_k."""

    @abstractmethod
    def backward(self, u: Array) -> Array:
        """K' u_k."""

    def scaling_pass(self, a: Array, v: Array) -> tuple[Array, Array, Array]:
        """K v_k, u_k = a_k / (K v_k), K' u_k."""
        products = self.forward(v)
        u = a / products
        return products, u, self.backward(u)

    def mean_product(self, products: Array, u: Array, x: Array) -> Array:
        """K' diag(u_k) diag(1 / products_k) K x_k."""
        return self.backward(u * (self.forward(x) / products))


class StoredKernel(Kernel):
    """A matrix."""

    def __init__(self, geometry: Geometry, reg: float, kernels: ModuleType) -> None:
        xp, (n, m), (self.low, _) = geometry.xp, geometry.shape, geometry.bounds
        like = {"dtype": xp.float64, "device": geometry.device}
        f, g, ones = xp.full((n,), self.low, **like), xp.zeros((m,), **like), xp.ones((n,), **like)
        self._matrix = geometry.kernels.plan_rows(geometry.kernel_cost, f, g, reg, ones, 0, n)
        self._kernels = kernels

    def forward(self, v: Array) -> Array:
        return v @ self._matrix.T

    def backward(self, u: Array) -> Array:
        return u @ self._matrix

    def scaling_pass(self, a: Array, v: Array) -> tuple[Array, Array, Array]:
        found: tuple[Array, Array, Array] = self._kernels.scaling_pass(self._matrix, a, v)
        return found

    def mean_product(self, products: Array, u: Array, x: Array) -> Array:
        return self._kernels.mean_product(self._matrix, products, u, x)


class ProductKernel(Kernel):
    """Between grids: a product of one matrix per axis."""

    def __init__(self, grid: Grid, reg: float) -> None:
        self.low = grid.bounds[0]
        self._xp = grid.xp
        self._factors = [self._xp.exp((self.low / len(grid.axes) - axis.matrix) / reg) for axis in grid.axes]

    def forward(self, v: Array) -> Array:
        return self._along_axes(v, 1)

    def backward(self, u: Array) -> Array:
        return self._along_axes(u, 0)

    def _along_axes(self, x: Array, side: int) -> Array:
        xp, count = self._xp, x.shape[0]
        x = xp.reshape(x, (count, *(factor.shape[side] for factor in self._factors)))
        for factor in self._factors:  # the first axis is summed over, and comes back as the last
            x = xp.tensordot(x, factor, axes=((1,), (side,)))
        return xp.reshape(x, (count, -1))


class SharedStack(PlanStack):
    """All inputs on one kernel.

    Scalings are divided by their maximum, so that they lie in [0, 1]; then no product overflows, and what underflows is less than
    exp(-100) of the sum that it belongs to.
    """

    def __init__(self, problem: BarycenterProblem, reg: float) -> None:
        self.xp, self.kernels, self.reg = problem.xp, problem.kernels, reg
        self._a = self.xp.stack(problem.inputs)
        geometry = problem.geometries[0]
        self._kernel: Kernel
        if isinstance(geometry, Grid):
            self._kernel = ProductKernel(geometry, reg)
        else:
            self._kernel = StoredKernel(geometry, reg, self.kernels)

    def move(self, log_scalings: Array, h: Array | None = None) -> None:
        self._top, self._v = self.kernels.scaled(log_scalings, NOTHING)
        self._products, self._u, sums = self._kernel.scaling_pass(self._a, self._v)
        self.log_scalings = log_scalings
        self.log_sums, self.column_sums = self.kernels.columns(sums, self._top, self._v)
        self.h, self.self_log_sums = h, None if h is None else self._soft_maxima(h)
        self.passes += 2

    def _soft_maxima(self, h: Array) -> Array:
        top, v = self.kernels.scaled(h[None, :], NOTHING)
        return (self.xp.log(self._kernel.forward(v)) + top[:, None])[0, :]

    def prepare(self) -> Array:
        return self.kernels.inverse(self.column_sums)

    def laplacian_product(self, x: Array) -> Array:
        self.passes += 2
        return self.column_sums * x - self._v * self._kernel.mean_product(self._products, self._u, self._v * x)

    def row_potentials(self) -> list[Array]:
        f = self._kernel.low - self.reg * (self.xp.log(self._products) + self._top[:, None])
        return [f[k, :] for k in range(f.shape[0])]

    def certify(self, f: list[Array], g: Array) -> tuple[list[float], Array]:
        xp = self.xp
        rows = (xp.stack(f) - self._kernel.low) / self.reg
        top_g, v = self.kernels.scaled(g / self.reg, NOTHING)
        top_f, u = self.kernels.scaled(rows, NOTHING)
        scale = xp.exp(top_g + top_f)[:, None]
        errors = xp.sum(self._a * xp.abs(u * self._kernel.forward(v) * scale - 1.0), axis=1)
        columns = v * self._kernel.backward(self._a * u) * scale
        return [float(errors[k]) for k in range(len(f))], columns
