"""A plan of its own for every input, kept in memory by rows that sum to 1: for any reg, and for costs that differ."""

from __future__ import annotations

from otbilevel._core.array import Array
from otbilevel.ot.barycenters.problem import BarycenterProblem
from otbilevel.ot.barycenters.stack import PlanStack
from otbilevel.ot.problem import Support
from otbilevel.ot.row_plan import Laplacian, Work
from otbilevel.ot.stored_plan import StoredPlan

LEAST_SUM = 1e-300
"""What a column sum that underflowed is taken for."""


class RowStack(PlanStack):
    """Sweeps in the log domain, which no reg overflows; products with K in single precision where the kernels are compiled.

    Points of an input that carry no weight are left out.
    """

    def __init__(self, problem: BarycenterProblem, reg: float) -> None:
        self.xp, self.kernels, self.reg, self._problem = problem.xp, problem.kernels, reg, problem
        self._work = Work()
        self._supports = [Support.of(a) for a in problem.inputs]
        self._a = [support.restrict(a) for support, a in zip(self._supports, problem.inputs, strict=True)]
        self._geometries = [
            geometry.restrict(support.indices, None) for support, geometry in zip(self._supports, problem.geometries, strict=True)
        ]
        self._plans = [StoredPlan.dense(g, a, self._work, single=True) for g, a in zip(self._geometries, self._a, strict=True)]
        self._self_plan: StoredPlan | None = None
        self._laplacians: list[Laplacian] = []

    def lower(self, reg: float) -> None:
        """Take the next `move` at another reg."""
        self.reg = reg

    def move(self, log_scalings: Array, h: Array | None = None) -> None:
        xp = self.xp
        for k, plan in enumerate(self._plans):
            plan.sweep(self.reg * log_scalings[k, :], self.reg)
        self.log_scalings = log_scalings
        self.column_sums = xp.stack([plan.column_sums for plan in self._plans])
        floor = xp.full_like(self.column_sums, LEAST_SUM)
        self.log_sums = xp.log(xp.maximum(self.column_sums, floor)) - log_scalings
        self.passes += 2
        self.h, self.self_log_sums = h, None if h is None else self._soft_maxima(h)

    def _soft_maxima(self, h: Array) -> Array:
        if self._self_plan is None:
            geometry = self._problem.geometries[0]
            self._self_plan = StoredPlan.dense(geometry, self.xp.ones_like(h), self._work, single=True)
        self._self_plan.sweep(self.reg * h, self.reg)
        return -self._self_plan.row_potentials() / self.reg

    def prepare(self) -> Array:
        self._laplacians = [plan.laplacian() for plan in self._plans]
        return self.xp.stack([laplacian.inverse_diagonal for laplacian in self._laplacians])

    def laplacian_product(self, x: Array) -> Array:
        self.passes += 2
        return self.xp.stack([laplacian.matvec(x[k, :]) for k, laplacian in enumerate(self._laplacians)])

    def row_potentials(self) -> list[Array]:
        """At the points without weight, too: the soft minima that the formula gives there."""
        potentials = []
        for k, (plan, support) in enumerate(zip(self._plans, self._supports, strict=True)):
            f = plan.row_potentials()
            if support.dropped is not None:
                rest = self._problem.geometries[k].restrict(support.dropped, None)
                f = support.merge(f, rest.soft_transform(self.reg * self.log_scalings[k, :], self.reg))
            potentials.append(f)
        return potentials

    def certify(self, f: list[Array], g: Array) -> tuple[list[float], Array]:
        xp, errors, columns = self.xp, [], []
        for k, (geometry, support, a) in enumerate(zip(self._geometries, self._supports, self._a, strict=True)):
            rows, sums, _ = geometry.kernels.plan_sums(geometry.kernel_cost, support.restrict(f[k]), g[k, :], self.reg, a)
            errors.append(float(xp.sum(xp.abs(rows - a))))
            columns.append(sums)
        return errors, xp.stack(columns)
