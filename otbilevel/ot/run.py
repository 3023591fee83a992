"""One run of an iterative method: what it works on, what it has done, and the best it has seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from otbilevel._core.array import Array
from otbilevel._core.monitor import Monitor
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.result import OTResult, entropic_result, plan_kind
from otbilevel.ot.row_plan import RowPlan, Work
from otbilevel.ot.stored_plan import Room

SINGLE_PRECISION = 1e-6
"""How far a marginal error that was measured in single precision may be off."""


@dataclass
class Run:
    """The problem, the monitor, the counts, and the iterate of least marginal error at the target regularisation."""

    problem: OTProblem
    monitor: Monitor
    memory: float
    work: Work = field(default_factory=Work)
    nit_newton: int = 0
    best_error: float = float("inf")
    best: tuple[Array, Array] | None = None

    @property
    def stopped(self) -> bool:
        """Whether the monitor says stop."""
        return self.monitor.stopped

    def make_plan(self, *, single: bool) -> RowPlan:
        """The one that suits the cost; in single or double precision where it is stored."""
        problem = self.problem
        return problem.geometry.row_plan(problem, self.work, problem.room or Room(), single=single, memory=self.memory)

    def first_potential(self) -> Array:
        """Where the user wants to start, or 0: g at the target."""
        problem = self.problem
        if problem.start is None:
            return problem.zero_potential(problem.reg)
        return problem.start.column_potential(problem.column_weights, problem.reg)

    def error(self, plan: RowPlan) -> float:
        """L1 error of both marginals where `plan` is."""
        return plan.marginal_error(self.problem.b)

    def passes_ahead(self, plan: RowPlan, most: int) -> int:
        """How many iterations may be made before their errors are looked at: several, where that takes time and nobody waits."""
        return 1 if self.monitor.watched or not plan.queues else max(1, min(most, self.monitor.left))

    def record_passes(self, plan: RowPlan, errors: Sequence[float]) -> None:
        """Record iterations that led towards where `plan` is, of which nothing is left but their errors."""
        for error in errors:
            self.monitor.record(marginal_error=error, reg=plan.reg)

    def report(self, plan: RowPlan) -> bool:
        """Record where `plan` is as an iteration; whether to go on."""
        self.offer(plan)
        return self.record(plan.row_potentials, plan.g, self.error(plan), plan.reg)

    def record(self, f: Array, g: Array, error: float, reg: float, **figures: float) -> bool:
        """Record an iteration; whether to go on. `f` may be a function that computes it; the callback gets public potentials."""
        return self.monitor.record(partial(self._public, f, g, reg), marginal_error=error, reg=reg, **figures)

    def _public(self, f: Array, g: Array, reg: float) -> dict[str, Array]:
        problem = replace(self.problem, reg=reg)
        plan = plan_kind(problem)(problem, problem.row_potentials(f() if callable(f) else f), g, problem.a, problem.b, 0.0)
        return dict(zip("fg", plan.potentials(), strict=True))

    def offer(self, plan: RowPlan) -> None:
        """Keep the iterate if it is the best of the whole cost at the target; single precision must be better by its error."""
        if plan.complete and plan.reg == self.problem.reg:
            error = self.error(plan) + (SINGLE_PRECISION if plan.single else 0.0)
            if self.best is None or error < self.best_error or math.isnan(self.best_error):
                self.best_error, self.best = error, (self.problem.row_potentials(plan.row_potentials()), plan.g)

    def finish(self, method: str) -> OTResult:
        """Certify the best iterate."""
        assert self.best is not None  # every method offers its start
        f, g = self.best
        problem = self.problem
        if problem.start is not None or problem.room is not None:
            problem = replace(problem, start=None, room=None)  # a result must not keep them alive
        return entropic_result(problem, f, g, method=method, monitor=self.monitor, work=self.work, nit_newton=self.nit_newton)
