"""The plan between two grids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otbilevel._core.array import Array
from otbilevel.ot.kernels.separable import SeparableKernel
from otbilevel.ot.marginals import Marginals
from otbilevel.ot.row_plan import Laplacian, RowPlan, Work

if TYPE_CHECKING:
    from otbilevel.ot.grid import Grid


class GridPlan(RowPlan):
    """K as a sequence of line kernels, made by every sweep. All is done in double precision, whatever is asked for.

    Parameters
    ----------
    geometry : Grid
        The points.
    a : (n,) array
        Weights.
    work : Work
        Where passes are counted: a scaling pass is a sweep here, and the products of conjugate gradients are products.
    marginals : Marginals, optional
        None: fixed.
    """

    reach = float("inf")
    _kernel: SeparableKernel

    def __init__(self, geometry: Grid, a: Array, work: Work, marginals: Marginals | None = None) -> None:
        super().__init__(geometry.kernels, geometry.kernel_cost, a, work, marginals)

    def sweep(self, g: Array, reg: float, *, single: bool = False, relaxation: float = 1.0) -> None:
        # Figures that were asked for in single precision are on the way, and not for the certified end, though they are better.
        self._base_g, self.reg, self.single = g, reg, single
        self._move(g, relaxation)

    def _move(self, g: Array, relaxation: float) -> None:
        self.work.sweeps += 1
        self.g = g
        self._kernel = SeparableKernel(self.cost, g, self.reg)
        self._f, masses = self._relaxed(relaxation)
        self.column_sums = self._kernel.transposed_times(masses)

    def _relaxed(self, relaxation: float) -> tuple[Array, Array]:
        """f where the plan is, and the row sums of the plan; sets `row_error`."""
        best = -self.reg * self._kernel.log_sums
        if relaxation == 1.0 or self._f is None:
            self.row_error, self._f = 0.0, best
            return best, self.row_masses()
        f = (1.0 - relaxation) * self._f + relaxation * best
        masses = self._kernel.row_masses(f, self.reg, self.a)
        self.row_error = self.vector_kernels.distance(masses, self.a)
        return f, masses

    def scaling_pass(self, log_v: Array, relaxation: float = 1.0) -> None:
        self._move(self._base_g + self.reg * log_v, relaxation)

    def move(self, g: Array, *, single: bool) -> None:
        self.sweep(g, self.reg, single=single)

    def row_potentials(self) -> Array:
        assert self._f is not None  # `sweep` comes first
        return self._f

    def laplacian(self) -> Laplacian:
        """L from the sums of the K in use. K_ij^2 is the kernel at half the reg, which one more sweep gives."""
        kernel, ones = self._kernel, self.xp.ones_like(self.g)
        self.work.products += 1
        self.work.sweeps += 1
        held = self.row_masses()
        weights = held / kernel.times(ones)
        squared = SeparableKernel(self.cost, self.g, 0.5 * self.reg)
        masses = weights * self.xp.exp(squared.log_sums - 2.0 * kernel.log_sums)  # the sums of K_ij^2 over j, at most 1
        return Laplacian.of(self, weights, kernel.transposed_times(held), squared.transposed_times(masses))

    def product(self, weights: Array, x: Array) -> Array:
        self.work.products += 1
        return self._kernel.transposed_times(weights * self._kernel.times(x))
