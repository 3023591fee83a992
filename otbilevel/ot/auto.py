"""The choice between Sinkhorn's and Newton's method from the first sweeps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from otbilevel._core import validate
from otbilevel._core.monitor import Monitor
from otbilevel.ot import sns
from otbilevel.ot.point_plan import MEMORY, check_memory
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.result import OTResult
from otbilevel.ot.row_plan import RowPlan, StoredPlan
from otbilevel.ot.run import Run
from otbilevel.ot.sinkhorn import iterate, scale

TRIAL = (3, 8)
"""Passes at least and at most from which the contraction is measured."""
WORTH_WHILE = 30
"""Sinkhorn iterations up to which Sinkhorn's method is left alone: about what the path and Newton's method cost."""


@dataclass(frozen=True)
class AutoOptions:
    """Settings of ``method="auto"``.

    Attributes
    ----------
    time_limit : float, optional
        Seconds of wall time.
    memory : float
        Bytes that the plan of a `PointCloud` may take, by default 2^30. A plan that does not fit is computed anew in every pass.
        The plan beside a cost matrix does not count.
    """

    time_limit: float | None = None
    memory: float = MEMORY

    def __post_init__(self) -> None:
        if self.time_limit is not None:
            validate.real(self.time_limit, "time_limit", low=0.0)
        check_memory(self.memory)


def solve(problem: OTProblem, options: AutoOptions, monitor: Monitor) -> OTResult:
    """Try a few Sinkhorn passes at the target; stay with them if they converge fast, else follow the path of `sns`.

    The first contraction is often better than the last: Sinkhorn's method gets three times the promised iterations,
    then it is `sns`, too.
    """
    run = Run(problem, monitor, options.memory)
    plan = run.make_plan(single=True)
    trial = _Trial(plan, run)
    plan.sweep(run.first_potential(), problem.reg, single=problem.start is None)
    g = plan.g
    if run.report(plan):
        if run.best_error <= problem.tol:
            return run.finish("sinkhorn")
        g, _ = scale(plan, problem.b, trial)
    if run.stopped:
        plan.sweep(g, problem.reg)
        run.offer(plan)
        return run.finish("sinkhorn")
    if trial.promising:
        if isinstance(plan, StoredPlan):
            del plan, trial  # make room for the plan in double precision
            plan = run.make_plan(single=False)
        plan.sweep(g, problem.reg)
        iterate(plan, run, at_most=3 * WORTH_WHILE)
        if run.stopped or run.best_error <= problem.tol or problem.at_floor(run.best_error):
            return run.finish("sinkhorn")
        plan = run.make_plan(single=True)
    return sns.solve_robust(plan, sns.SNSOptions(), run)


class _Trial:
    """Ends the trial passes, and tells in `promising` whether the measured contraction reaches the tolerance soon enough."""

    def __init__(self, plan: RowPlan, run: Run) -> None:
        self.plan, self.run = plan, run
        self.promising = False

    def __call__(self, errors: list[float]) -> bool:
        """Decide from the errors before and after each pass so far."""
        if not self.run.report(self.plan):
            return True
        passes, contraction = len(errors) - 1, errors[-1] / errors[-2] if errors[-2] > 0 else 0.0
        if errors[-1] <= sns.CERTIFIED_FROM:
            self.promising = True
            return True
        if passes < TRIAL[0]:
            return False
        missing = math.log(errors[-1] / max(self.run.problem.tol, 1e-16))
        speed = -math.log(max(contraction, 1e-300))
        self.promising = speed > 0 and passes + missing / speed <= WORTH_WHILE
        return not self.promising or passes >= TRIAL[1]
