"""Plans under linear constraints: one that methods move, and one that results hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

from scipy import sparse

from otbilevel._core.array import Array
from otbilevel.ot.constraint_system import ConstraintSystem
from otbilevel.ot.explicit_plan import ExplicitPlan
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.kernels.generic import row_blocks
from otbilevel.ot.plan import EntropicPlan, Plan
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.row_plan import Work
from otbilevel.ot.stored_plan import StoredPlan


class TiltedPlan(StoredPlan):
    """A stored plan with exact rows between the effective costs C - sum_k lam_k D_k, which are formed anew when lam changes.

    Attributes
    ----------
    multipliers : (K,) array
        lam.
    expectations : (K,) array
        <D_k, P> at the last sweep.
    """

    multipliers: Array
    expectations: Array
    system: ConstraintSystem
    _geometry: Geometry

    @classmethod
    def under(cls, system: ConstraintSystem, geometry: Geometry, a: Array, work: Work) -> TiltedPlan:
        """Room for the n x m entries in double precision."""
        plan = cls.dense(geometry, a, work, single=False)
        assert isinstance(plan, cls)
        plan.system, plan._geometry, plan.multipliers = system, geometry, plan.xp.zeros_like(system.lb)
        return plan

    @property
    def residual(self) -> float:
        """The largest violation or failure of complementarity, relative to the scale of its constraint."""
        return self.system.residual(self.multipliers, self.expectations)

    @property
    def entries(self) -> Array:
        """K, of the last sweep."""
        return self._k

    def place(self, g: Array, multipliers: Array, reg: float) -> None:
        """Move to these potentials and multipliers, by a sweep."""
        changed = bool(self.xp.any(multipliers != self.multipliers))
        self.multipliers = multipliers
        if changed:
            self.cost = self.system.tilt(self._geometry, multipliers).kernel_cost
        self.sweep(g, reg)
        self.expectations = self._expectations()

    def _expectations(self) -> Array:
        n = self.a.shape[0]
        return self.system.pair(self._k, self.a, 0, n)


def effective_problem(problem: OTProblem, system: ConstraintSystem, multipliers: Array, reg: float | None = None) -> OTProblem:
    """The unconstrained problem of the costs C - sum_k lam_k D_k, which has the same plan."""
    geometry = system.tilt(problem.geometry, multipliers)
    nothing_dropped = problem.sources.dropped is None and problem.targets.dropped is None
    whole = geometry if nothing_dropped else system.tilt_whole(problem.whole, multipliers)
    return replace(problem, geometry=geometry, whole=whole, reg=problem.reg if reg is None else reg, start=None, room=None)


class UnderConstraints(Plan):
    """A plan with multipliers, as one without them for the effective costs, whose values are put right here.

    Attributes
    ----------
    system : ConstraintSystem
        The constraints.
    lam : (K,) array
        Their multipliers, in the system's order.
    """

    system: ConstraintSystem
    lam: Array

    def _pair(self, rows: Callable[[int, int], Array]) -> Array:
        xp, total = self.problem.xp, self.problem.xp.zeros_like(self.system.lb)
        for low, high in row_blocks(self.problem.geometry.shape):
            block = rows(low, high)
            total = total + self.system.pair(block, xp.ones_like(block[:, 0]), low, high)
        return total

    @cached_property
    def expectations(self) -> Array:
        """<D_k, P> for unit mass, by a pass over the plan."""
        return self._pair(self.rows)

    @property
    def residual(self) -> float:
        return max(self.marginal_error, self.system.residual(self.lam, self.expectations))

    @property
    def figures(self) -> str:
        off = self.system.residual(self.lam, self.expectations)
        return f"{super().figures}, constraints off by {off:.2g} of their scale"

    @property
    def multipliers(self) -> Array:
        return self.problem.xp.astype(self.system.public(self.lam), self.problem.dtype)

    @property
    def constraint_violation(self) -> float:
        return self.problem.mass * float(self.problem.xp.max(self.system.violation(self.expectations)))

    @cached_property
    def _tilt(self) -> float:
        """sum_k lam_k <D_k, P>: what the effective costs lack."""
        return self.problem.mass * float(self.problem.xp.vecdot(self.lam, self.expectations))

    def value_linear(self) -> float:
        return super().value_linear() + self._tilt  # type: ignore[safe-super]  # the class beside this one has it

    def value(self) -> float:
        return super().value() + self._tilt  # type: ignore[safe-super]  # the class beside this one has it

    def dual_value(self) -> float:
        return super().dual_value() + self.problem.mass * self.system.dual_term(self.lam)  # type: ignore[safe-super]  # the class beside this one has it

    @cached_property
    def _slackness(self) -> float:
        """sum_k |lam_k (<D_k, Q> - the bound that lam_k makes active)| for the rounded plan Q."""
        if self.rounding is None:
            return float("inf")
        rounding, xp = self.rounding, self.problem.xp
        values = self._pair(lambda low, high: rounding.rows(low, high, self.rows(low, high)))
        return self.problem.mass * float(xp.sum(xp.abs(self.lam * (self.system.target(self.lam, values) - values))))

    def gap(self) -> float:
        return super().gap() + self._slackness  # type: ignore[safe-super]  # the class beside this one has it

    def gap_exact(self) -> float:
        return super().gap_exact() + self._slackness


class ConstrainedPlan(UnderConstraints, EntropicPlan):
    """An entropic plan with multipliers."""

    @classmethod
    def at(cls, problem: OTProblem, system: ConstraintSystem, f: Array, g: Array, multipliers: Array) -> ConstrainedPlan:
        """Certify the plan that these potentials and multipliers define."""
        plan = cls.certify(effective_problem(problem, system, multipliers), f, g)
        assert isinstance(plan, cls)
        plan.system, plan.lam = system, multipliers
        return plan


class ConstrainedVertex(UnderConstraints, ExplicitPlan):
    """A vertex of the couplings that satisfy constraints, with multipliers."""

    @classmethod
    def at(
        cls, problem: OTProblem, system: ConstraintSystem, coupling: sparse.csr_array, f: Array, g: Array, multipliers: Array
    ) -> ConstrainedVertex:
        """The plan with these entries, potentials and multipliers."""
        plan = cls(effective_problem(problem, system, multipliers), coupling, f, g)
        plan.system, plan.lam = system, multipliers
        return plan

    def value(self) -> float:
        return self.value_linear()

    def gap(self) -> float:
        return self.gap_exact()
