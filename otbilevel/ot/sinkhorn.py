"""Sinkhorn's method: matrix scaling on a stored kernel with absorption, which turns into the log-domain form where it must."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from otbilevel._core import validate
from otbilevel._core.array import Array
from otbilevel._core.monitor import Monitor
from otbilevel.ot.point_plan import MEMORY, check_memory
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.result import OTResult
from otbilevel.ot.row_plan import RowPlan
from otbilevel.ot.run import Run

LONGEST_QUEUE = 10
"""Iterations between two looks at their errors, where the host has to wait for these."""
STALL_WINDOW = 50
"""Iterations without progress near the rounding floor after which nothing more is to be had."""


@dataclass(frozen=True)
class SinkhornOptions:
    """Settings of ``method="sinkhorn"``.

    Attributes
    ----------
    relaxation : float
        Over-relaxation exponent w in (0, 2): u <- u^(1-w) (a / K v)^w, and the same for v. 1 is Sinkhorn's method;
        between 1 and 2 it needs fewer iterations near the solution (A. Thibault et al., arXiv:1711.01851) but may
        diverge from a far start.
    time_limit : float, optional
        Seconds of wall time.
    memory : float
        Bytes that the plan of a `PointCloud` may take, by default 2^30. A plan that does not fit is computed anew in every pass.
        The plan beside a cost matrix does not count.
    """

    relaxation: float = 1.0
    time_limit: float | None = None
    memory: float = MEMORY

    @property
    def balanced_only(self) -> str:
        """Which setting asks for fixed marginals, if one does."""
        return f"relaxation={self.relaxation:g}" if self.relaxation != 1.0 else ""

    def __post_init__(self) -> None:
        validate.real(self.relaxation, "relaxation", low=0.0, strict=True, below=2.0)
        if self.time_limit is not None:
            validate.real(self.time_limit, "time_limit", low=0.0)
        check_memory(self.memory)


def solve(problem: OTProblem, options: SinkhornOptions, monitor: Monitor) -> OTResult:
    """Scale until the marginal error is below the tolerance.

    A dense cost gets a stored K in double precision; its scaling passes are products only. When a scaling leaves the range in which
    entries that underflowed in K cannot matter, it is absorbed into g and K computed anew. At small reg this happens at every
    iteration, which then is the log-domain iteration: one fused sweep. Beside points the plan is the one that `point_plan` chooses.
    """
    if problem.constraints is not None:
        if options.relaxation != 1.0:
            msg = f"relaxation = {options.relaxation} cannot be had with constraints: leave it out"
            raise ValueError(msg)
        from otbilevel.ot import constrained  # noqa: PLC0415 -- it builds on this module

        return constrained.sinkhorn(problem, monitor, options.memory)
    run = Run(problem, monitor, options.memory)
    plan = run.make_plan(single=False)
    plan.sweep(run.first_potential(), problem.reg)
    stop, relaxation = _Stop(run), options.relaxation
    rule = PassRule(
        lambda errors, fresh: stop(plan, errors[-fresh:]),
        lambda _: run.passes_ahead(plan, LONGEST_QUEUE if plan.waits else 1),
        problem.tol,
    )
    while not stop(plan, [run.error(plan)]):
        g, _ = scale(plan, problem.b, rule, relaxation=relaxation)
        plan.sweep(g, problem.reg, relaxation=relaxation)
        if run.stopped:
            run.offer(plan)
            break
    return run.finish("sinkhorn")


@dataclass
class _Stop:
    """When to end Sinkhorn's method."""

    run: Run
    least: float = float("inf")
    since: int = 0

    def __call__(self, plan: RowPlan, errors: list[float]) -> bool:
        """Report the iterations with these errors, the last of which led to where the plan is; whether it was the last of all.

        That is so when it converged, was stopped, or is at the rounding floor without progress.
        """
        problem = self.run.problem
        self.run.record_passes(plan, errors[:-1])
        go_on = self.run.report(plan)
        for error in errors:
            self.since = 0 if error < self.least else self.since + 1
            self.least = min(self.least, error)
        stalled = self.since > STALL_WINDOW and problem.at_floor(errors[-1])
        return not go_on or errors[-1] <= problem.tol or stalled


@dataclass(frozen=True)
class PassRule:
    """When to leave scaling passes.

    Attributes
    ----------
    enough : callable
        ``enough(errors, fresh)`` with the marginal errors before the first and after each pass; the last `fresh` of them are new.
    ahead : callable
        ``ahead(errors)`` says how many passes may be made before it is asked again. A plan without a queue is asked after each.
    tol : float
        An error at which no more passes are made before it is asked.
    """

    enough: Callable[[list[float], int], bool]
    ahead: Callable[[list[float]], int] = lambda _: 1
    tol: float = 0.0


def scale(plan: RowPlan, b: Array, rule: PassRule, *, relaxation: float = 1.0) -> tuple[Array, list[float]]:
    """Scaling passes on the K of the last sweep, from where the plan is, until there are enough or to the end of the plan's reach.

    Returns
    -------
    g : (m,) array
        Where the plan is, moved by the half step that its column sums give for free.
    errors : list of float
        Marginal errors before the first and after each pass.
    """
    log_b, log_v = plan.xp.log(b), plan.log_v
    errors, base = [plan.marginal_error(b)], plan.g - plan.reg * log_v
    log_v = log_v + relaxation * plan.half_step(log_b)
    while True:
        log_v, fresh, in_reach = plan.scaling_passes(log_v, b, log_b, rule.ahead(errors), tol=rule.tol, relaxation=relaxation)
        errors += fresh
        if (fresh and rule.enough(errors, len(fresh))) or not in_reach:
            return base + plan.reg * log_v, errors
