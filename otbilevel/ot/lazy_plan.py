"""A plan that is computed anew at every pass."""

from __future__ import annotations

from otbilevel._core.array import Array
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.marginals import Marginals
from otbilevel.ot.row_plan import Laplacian, RowPlan, Work


class LazyPlan(RowPlan):
    """K computed anew at every pass, in O(n + m) memory; every pass is a sweep."""

    reach = float("inf")

    def __init__(self, geometry: Geometry, a: Array, work: Work, marginals: Marginals | None = None) -> None:
        super().__init__(geometry.kernels, geometry.kernel_cost, a, work, marginals)

    def sweep(self, g: Array, reg: float, *, single: bool = False, relaxation: float = 1.0) -> None:
        self._base_g, self.reg, self.single = g, reg, single
        self._move(g, relaxation)

    def _move(self, g: Array, relaxation: float) -> None:
        self.work.sweeps += 1
        self.g = g
        self._f, _, self.column_sums, self.row_error = self.kernels.softmax_rows(
            self.cost,
            g,
            self.reg,
            self.a,
            self._f,
            None,
            single=self.single,
            relaxation=relaxation,
            aprox=self.aprox(self.reg),
        )

    def scaling_pass(self, log_v: Array, relaxation: float = 1.0) -> None:
        self._move(self._base_g + self.reg * log_v, relaxation)

    def move(self, g: Array, *, single: bool) -> None:
        self.sweep(g, self.reg, single=single)  # no K to scale

    def row_potentials(self) -> Array:
        return self._f

    def laplacian(self) -> Laplacian:
        self.work.sweeps += 1
        masses = self.row_masses()
        row_sums, degree, squares = self.kernels.lazy_moments(self.cost, self._f, self.g, self.reg, masses)
        return Laplacian.of(self, masses / row_sums, degree, squares)

    def product(self, weights: Array, x: Array) -> Array:
        self.work.sweeps += 1
        return self.kernels.lazy_product(self.cost, self._f, self.g, self.reg, weights, x)
