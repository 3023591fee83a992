"""One run under constraints: the error that counts, the best iterate, and proofs that no plan satisfies them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from otbilevel._core.array import Array
from otbilevel._core.result import Status
from otbilevel.ot.constrained_plan import ConstrainedPlan, TiltedPlan, effective_problem
from otbilevel.ot.constraint_system import ConstraintSystem
from otbilevel.ot.kernels.generic import row_blocks
from otbilevel.ot.plan import EntropicPlan
from otbilevel.ot.result import OTResult, plan_result
from otbilevel.ot.row_plan import RowPlan
from otbilevel.ot.run import Run

NEGLIGIBLE = 1e-3
"""Share of the largest multiplier, in units of its constraint's scale, below which a proof tries to do without it."""
ROUNDING = 1e-12
"""Relative rounding error of a proof, generously."""


@dataclass
class ConstrainedRun(Run):
    """A run whose error is the larger one of the marginal error and the constraints' residual relative to their scales."""

    best_multipliers: Array | None = None
    proof: str = ""

    @property
    def system(self) -> ConstraintSystem:
        """The constraints."""
        assert self.problem.constraints is not None
        return self.problem.constraints

    def error(self, plan: RowPlan) -> float:
        assert isinstance(plan, TiltedPlan)
        return max(plan.marginal_error(self.problem.b), plan.residual)

    def at_floor(self, plan: TiltedPlan) -> bool:
        """Whether the error of `plan` is about what rounding leaves, which goes by the effective costs."""
        xp, system = self.problem.xp, self.system
        largest = max(map(abs, self.problem.geometry.bounds)) + float(xp.max(xp.abs(plan.multipliers) * system.sizes))
        return self.error(plan) <= 4 * float(np.finfo(np.float64).eps) * (1.0 + largest / plan.reg)

    def report(self, plan: RowPlan) -> bool:
        assert isinstance(plan, TiltedPlan)
        self.offer(plan)
        figures = {"marginal_error": plan.marginal_error(self.problem.b), "constraint_residual": plan.residual, "reg": plan.reg}
        return self.monitor.record(partial(self._potentials, plan), **figures)

    def _potentials(self, plan: TiltedPlan) -> dict[str, Array]:
        effective = effective_problem(self.problem, self.system, plan.multipliers, plan.reg)
        potentials = EntropicPlan(effective, plan.row_potentials(), plan.g, effective.a, effective.b, 0.0).potentials()
        multipliers = self.problem.xp.astype(self.system.public(plan.multipliers), self.problem.dtype)
        return dict(zip(("f", "g", "multipliers"), (*potentials, multipliers), strict=True))

    def offer(self, plan: RowPlan) -> None:
        assert isinstance(plan, TiltedPlan)
        error = self.error(plan)
        if plan.reg == self.problem.reg and (self.best is None or error < self.best_error or math.isnan(self.best_error)):
            self.best_error, self.best, self.best_multipliers = error, (plan.row_potentials(), plan.g), plan.multipliers

    def finish(self, method: str) -> OTResult:
        assert self.best is not None
        assert self.best_multipliers is not None
        plan = ConstrainedPlan.at(self.problem, self.system, *self.best, self.best_multipliers)
        return plan_result(plan, method=method, monitor=self.monitor, work=self.work, nit_newton=self.nit_newton, advice=self.proof)

    def prove_infeasible(self, g: Array, multipliers: Array) -> bool:
        """Whether these g and lam prove that no plan satisfies the constraints; the run then has to stop.

        For f_i = min_j (-sum_k lam_k D_kij - g_j), every plan P has sum P (f + g + sum_k lam_k D_k) <= 0. If its marginals are a
        and b and its constraints hold, the left-hand side is at least <a, f> + <b, g> + h(lam), which must not be positive
        (Farkas' lemma).
        """
        xp, system = self.problem.xp, self.system
        if not bool(xp.all(xp.isfinite(multipliers))):
            return False
        multipliers = system.project(multipliers)
        weight = xp.abs(multipliers) * system.scales
        few = xp.where(weight > NEGLIGIBLE * float(xp.max(weight)), multipliers, xp.zeros_like(multipliers))
        for candidate in (few, multipliers):
            bound = self._bound(g, candidate)
            if bound is not None:
                self.proof = self._explain(candidate, bound)
                self.monitor.status = Status.INFEASIBLE
                return True
        return False

    def _bound(self, g: Array, multipliers: Array) -> float | None:
        """An upper bound of sum_k lam_k <D_k, P> over all plans, if that is less than what the constraints ask for."""
        xp, problem, system = self.problem.xp, self.problem, self.system
        g = g - 0.5 * (xp.max(g) + xp.min(g))
        f = []
        for low, high in row_blocks(problem.geometry.shape):
            room = -system.combine(multipliers, low, high) - g[None, :]
            if problem.geometry.has_forbidden_pairs:
                room = xp.where(xp.isfinite(problem.geometry.rows(low, high)), room, xp.full_like(room, math.inf))
            f.append(xp.min(room, axis=1))
        f = xp.concat(f)
        bound = -float(xp.sum(problem.a * f)) - float(xp.sum(problem.b * g))
        asked = system.dual_term(multipliers)
        # Plans whose marginals and constraints are off by no more than tol must be excluded, too.
        potentials = float(xp.max(xp.abs(f))) + float(xp.max(xp.abs(g)))
        size = potentials + float(xp.sum(xp.abs(multipliers) * system.scales))
        return bound if asked - bound > (problem.tol + ROUNDING) * size else None

    def _explain(self, multipliers: Array, bound: float) -> str:
        """The proof in words."""
        xp, mass = self.problem.xp, self.problem.mass
        weight = self.system.public(xp.abs(multipliers) * self.system.scales)
        order = [int(k) for k in xp.argsort(-weight) if float(weight[int(k)]) > 0]
        names = [self.system.name(k) for k in order]
        if len(order) == 1:
            value = float(self.system.public(multipliers)[order[0]])
            side, relation, what = ("lb", "<=", self.system.lb) if value > 0 else ("ub", ">=", self.system.ub)
            asked = mass * float(self.system.public(what)[order[0]])
            return (
                f"infeasible: {names[0]} cannot be met, as <D, P> {relation} {mass * bound / value:.6g} for all plans with "
                f"these marginals, and {side} = {asked:.6g}"
            )
        asked, size = self.system.dual_term(multipliers), float(xp.sum(weight))
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return (
            f"infeasible: {listed} cannot be met together. There is a combination of them that is at most {bound / size:.3g} of "
            f"its scale for all plans with these marginals, and would have to be {asked / size:.3g}"
        )
