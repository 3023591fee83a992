"""The choice between Sinkhorn's and Newton's method from the first sweeps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from otbilevel._core import validate
from otbilevel._core.monitor import Monitor
from otbilevel.ot import sns
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.result import OTResult, entropic_result
from otbilevel.ot.row_plan import RowPlan, StoredPlan, Work
from otbilevel.ot.sinkhorn import REACH_SINGLE, iterate, marginal_error, report, scale

TRIAL = (3, 8)
"""Passes at least and at most from which the contraction is measured."""
WORTH_WHILE = 40
"""Sinkhorn iterations up to which Sinkhorn's method is left alone: about what the path and Newton's method cost."""


@dataclass(frozen=True)
class AutoOptions:
    """Settings of ``method="auto"``.

    Attributes
    ----------
    time_limit : float, optional
        Seconds of wall time.
    """

    time_limit: float | None = None

    def __post_init__(self) -> None:
        if self.time_limit is not None:
            validate.real(self.time_limit, "time_limit", low=0.0)


def solve(problem: OTProblem, options: AutoOptions, monitor: Monitor) -> OTResult:  # noqa: ARG001 -- the monitor has the time limit
    """Try a few Sinkhorn passes at the target; stay with them if they converge fast, else follow the path of `sns`.

    The first contraction is often better than the last: Sinkhorn's method gets three times the promised iterations,
    then it is `sns`, too.
    """
    work = Work()
    plan = sns.make_plan(problem, work)
    plan.sweep(problem.xp.zeros_like(problem.b), problem.reg, single=True)
    trial = _Trial(plan, monitor, problem.tol)
    g = plan.g
    if report(monitor, plan, marginal_error(plan, problem.b)):
        g, _ = scale(plan, problem.b, trial, reach=REACH_SINGLE)
    if monitor.stopped:
        plan.sweep(g, problem.reg)
        return entropic_result(problem, plan.f, g, method="sinkhorn", monitor=monitor, work=work)
    if trial.promising:
        if problem.geometry.dense:
            double: RowPlan = StoredPlan.dense(problem.geometry, problem.a, work, single=False)
            double.f = plan.f
        else:
            double = plan
        double.sweep(g, problem.reg)
        best = iterate(double, problem, monitor, at_most=3 * WORTH_WHILE)
        if monitor.stopped or best.error <= max(problem.tol, 100 * problem.rounding_floor):
            return entropic_result(problem, best.f, best.g, method="sinkhorn", monitor=monitor, work=work)
    return sns.solve_robust(plan, problem, sns.SNSOptions(), monitor)


class _Trial:
    """Ends the trial passes, and tells in `promising` whether the measured contraction reaches the tolerance soon enough."""

    def __init__(self, plan: RowPlan, monitor: Monitor, tol: float) -> None:
        self.plan, self.monitor, self.tol = plan, monitor, tol
        self.promising = False

    def __call__(self, errors: list[float]) -> bool:
        """Decide from the errors before and after each pass so far."""
        if not report(self.monitor, self.plan, errors[-1]):
            return True
        passes, contraction = len(errors) - 1, errors[-1] / errors[-2] if errors[-2] > 0 else 0.0
        if passes < TRIAL[0]:
            return False
        missing = max(0.0, math.log(max(errors[-1], 1e-300) / max(self.tol, 1e-16)))
        self.promising = contraction < 1 and passes + missing <= WORTH_WHILE * max(-math.log(max(contraction, 1e-300)), 1e-300)
        return not self.promising or passes >= TRIAL[1] or errors[-1] <= sns.CERTIFIED_FROM
