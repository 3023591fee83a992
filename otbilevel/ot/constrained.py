"""Transport under linear constraints on the plan, by scaling and Newton's method on the semi-dual.

X. Tang, H. Rahmanian, M. Shavlovsky, K. K. Thekumparampil, T. Xiao, L. Ying, A Sinkhorn-type algorithm for constrained optimal
transport (arXiv:2403.05054) maximise the dual (see `constraint_system`) over f, g and lam in turn, lam by a few steps of Newton's
method, and speed this up by a schedule in reg and by Newton's method on all duals. Here f is eliminated, which makes rows exact:

* `sinkhorn`: scaling passes and a step of Newton's method in lam alone, in turn;
* `newton_path`: a path in reg with potentials and multipliers extrapolated linearly, at each level a few scaling passes, then
  Newton's method on (g, lam) with clipped steps and a line search on the slope, as in `newton`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from otbilevel._core.array import Array
from otbilevel._core.monitor import Monitor
from otbilevel.ot.constrained_plan import TiltedPlan
from otbilevel.ot.constrained_run import ConstrainedRun
from otbilevel.ot.constrained_step import Step, line_search, newton_step
from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.newton import CLIP, SMOOTHING_PASSES, STALL_WINDOW
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.result import OTResult
from otbilevel.ot.sinkhorn import PassRule, scale


class Level(NamedTuple):
    """A level of the path with its solution."""

    reg: float
    g: Array
    multipliers: Array


@dataclass(frozen=True)
class Schedule:
    """How tightly the path in reg is followed.

    Attributes
    ----------
    easy, hard : float
        Factor by which reg falls after a level that took at most `FEW_STEPS` steps, and after another.
    level_error : float
        Error at which a level is left.
    """

    easy: float
    hard: float
    level_error: float


SCHEDULES = Schedule(4.0, 2.0, 1e-4), Schedule(1.6, 1.6, 1e-7)
"""The first does nearly always. The second is for constraints that hardly any plan satisfies: there the multipliers are large,
and so are the effective costs beside reg, so that a multiplier which is not followed closely is soon too far from where it should
be."""
SMALLEST_FACTOR = 1.05
"""Of reg, between levels, below which no level is put between two others."""
FEW_STEPS, LEVEL_STEPS, FINAL_STEPS = 3, 30, 200
"""Newton steps at an easy level; and at any level, and at the target, at most."""
LEVEL_PASSES, PASSES = 4, 20
"""Scaling passes at the beginning of a level, and between steps in lam alone."""
ARRAYS = 4
"""Arrays of n x m numbers that are at work: the cost, the effective cost, the plan, and one in passing."""
SINKHORN_WINDOW = 50
"""Steps in lam near the rounding floor, without progress, after which nothing more is to be had."""
USABLE = 0.5
"""Error up to which a start is gone on from."""
Settle = Callable[[TiltedPlan, ConstrainedRun, float], int]
"""Solves where the plan is, to some error."""
SMALL_SHARE = 0.3
"""Scaling passes end at this share of the constraints' residual: more would be spent on a lam that changes."""


def newton_path(problem: OTProblem, monitor: Monitor, memory: float) -> OTResult:
    """Solve by the path and Newton's method."""
    run, plan = _begin(problem, monitor, memory)
    if not _from_start(plan, run):
        for schedule in SCHEDULES:
            _follow_path(plan, run, newton, schedule)
            if run.best_error <= problem.tol or run.stopped or run.at_floor(plan):
                break
    return _finish(plan, run, "sns")


def sinkhorn(problem: OTProblem, monitor: Monitor, memory: float) -> OTResult:
    """Solve by scaling passes and steps in lam alone, in turn, on a path in reg unless a start is given."""
    run, plan = _begin(problem, monitor, memory)
    if problem.start is None:
        _follow_path(plan, run, _alternate, SCHEDULES[0])
    else:
        plan.place(*_start(run), problem.reg)
        run.report(plan)
        _alternate(plan, run, problem.tol)
    return _finish(plan, run, "sinkhorn")


def _alternate(plan: TiltedPlan, run: ConstrainedRun, tol: float) -> int:
    """Scaling passes and steps in lam until the error is `tol`; return how many steps there were."""
    radius, number, least, since, drift = CLIP, 0, math.inf, 0, _Drift(plan)
    while run.error(plan) > tol and not run.stopped:
        enough = max(SMALL_SHARE * plan.residual, 0.5 * tol)
        _scale(plan, run, _until(enough, PASSES))
        step = newton_step(plan, run, radius, tol=0.0, max_cg=0, alone=True)
        length = line_search(plan, run, step)
        if length == 0.0:
            plan.place(*step.start, plan.reg)
        _watch(plan, run, step)
        drift.watch(plan, run)
        radius = 2.0 * radius if step.clipped and length >= 1.0 else CLIP
        number += 1
        run.report(plan)
        since = 0 if run.error(plan) < least else since + 1
        least = min(least, run.error(plan))
        if since > SINKHORN_WINDOW and run.at_floor(plan):
            break
    return number


def _until(error: float, passes: int) -> PassRule:
    """Leave at that error, or after so many passes."""
    return PassRule(lambda errors, _: errors[-1] <= error or len(errors) > passes)


def _scale(plan: TiltedPlan, run: ConstrainedRun, rule: PassRule) -> None:
    """Scaling passes, then a sweep where they end."""
    g, _ = scale(plan, run.problem.b, rule)
    plan.place(g, plan.multipliers, plan.reg)


def _begin(problem: OTProblem, monitor: Monitor, memory: float) -> tuple[ConstrainedRun, TiltedPlan]:
    geometry = problem.geometry
    if not isinstance(geometry, DenseCost):
        needed = ARRAYS * 8.0 * geometry.shape[0] * geometry.shape[1]
        if needed > memory:
            msg = (
                f"with constraints the costs of all pairs are stored, which takes {needed:.3g} bytes with the plan, more than "
                f'memory = {memory:.3g}: raise options["memory"], or take fewer points'
            )
            raise ValueError(msg)
        problem = replace(problem, geometry=geometry.to_dense())
    run = ConstrainedRun(problem, monitor, memory)
    return run, TiltedPlan.under(run.system, problem.geometry, problem.a, run.work)


def _finish(plan: TiltedPlan, run: ConstrainedRun, method: str) -> OTResult:
    """Certify the best iterate; where the run stopped before the target was reached, the last one at the target's reg."""
    if run.best is None:
        plan.place(plan.g, plan.multipliers, run.problem.reg)
        run.offer(plan)
    return run.finish(method)


def _start(run: ConstrainedRun) -> tuple[Array, Array]:
    """Where the user wants to start, or 0."""
    start, zero = run.problem.start, run.problem.xp.zeros_like(run.system.lb)
    known = None if start is None else start.multipliers
    fits = known is not None and known.shape[0] == sum(constraint.size for constraint in run.system.given)
    return run.first_potential(), run.system.project(run.system.private(run.problem.xp.astype(known, zero.dtype))) if fits else zero


def _from_start(plan: TiltedPlan, run: ConstrainedRun) -> bool:
    """Newton's method from the user's start; whether the run is over."""
    if run.problem.start is None:
        return False
    plan.place(*_start(run), run.problem.reg)
    if not run.report(plan):
        return True
    if run.error(plan) <= USABLE:
        newton(plan, run, run.problem.tol)
    return run.best_error <= run.problem.tol or run.stopped


def _follow_path(plan: TiltedPlan, run: ConstrainedRun, settle: Settle, schedule: Schedule) -> None:
    """Lower reg to its target; ``settle(plan, run, tol)`` solves at each level and says how many steps that took.

    A level that is not solved is tried again after one half-way between, in the logarithm, as multipliers may move fast with reg.
    """
    problem, (low, high), xp = run.problem, run.problem.geometry.bounds, run.problem.xp
    reg = max((high - low) / 8, problem.reg)
    plan.restart()
    ahead, solved = (xp.zeros_like(problem.b), xp.zeros_like(run.system.lb)), list[Level]()
    while True:
        last = reg <= problem.reg
        error = problem.tol if last else schedule.level_error
        plan.place(*ahead, reg)
        if not run.report(plan):
            return
        _scale(plan, run, _until(SMALL_SHARE * schedule.level_error, LEVEL_PASSES))
        steps = settle(plan, run, error)
        factor = solved[-1].reg / reg if solved else math.inf
        if run.error(plan) > error and factor > SMALLEST_FACTOR and solved and not run.stopped and not run.at_floor(plan):
            factor = math.sqrt(factor)
        elif last or run.stopped:
            return
        else:
            solved = [*solved[-1:], Level(reg, plan.g, plan.multipliers)]
            factor = min(schedule.easy if steps <= FEW_STEPS else schedule.hard, factor**2)
        reg = solved[-1].reg / factor
        reg = reg if reg > 1.0001 * problem.reg else problem.reg
        ahead = _extrapolate(run, solved, reg)


def _extrapolate(run: ConstrainedRun, solved: list[Level], reg: float) -> tuple[Array, Array]:
    """g and lam at `reg`, on the line through the last two levels."""
    last = solved[-1]
    if len(solved) == 1:
        return last.g, last.multipliers
    before = solved[0]
    slope = (reg - last.reg) / (last.reg - before.reg)
    multipliers = last.multipliers + slope * (last.multipliers - before.multipliers)
    return last.g + slope * (last.g - before.g), run.system.keep_signs(multipliers, last.multipliers)


def newton(plan: TiltedPlan, run: ConstrainedRun, tol: float) -> int:
    """Newton steps in (g, lam) from where `plan` is; return how many there were."""
    errors, radius = [run.error(plan)], CLIP
    max_steps = FINAL_STEPS if plan.reg == run.problem.reg else LEVEL_STEPS
    run.offer(plan)
    for number in range(max_steps):
        if errors[-1] <= tol or run.stopped or not math.isfinite(errors[-1]):
            return number
        if number >= STALL_WINDOW and errors[-1] > 0.5 * errors[number - STALL_WINDOW]:
            _watch(plan, run, None)
            return number
        step = newton_step(plan, run, radius, tol=max(min(0.1, errors[-1]), 0.3 * tol / errors[-1]), max_cg=1000)
        length = line_search(plan, run, step)
        _watch(plan, run, step)
        if length == 0.0:
            plan.place(*step.start, plan.reg)
        radius = 2.0 * radius if step.clipped and length >= 1.0 else CLIP
        if length < 1.0 or step.clipped:
            _scale(plan, run, _until(0.0, SMOOTHING_PASSES))
        errors.append(run.error(plan))
        run.nit_newton += 1
        run.report(plan)
        if length == 0.0 and not errors[-1] < errors[-2]:
            _watch(plan, run, None)
            return number + 1
    return max_steps


def _watch(plan: TiltedPlan, run: ConstrainedRun, step: Step | None) -> None:
    """Look for a proof of infeasibility where multipliers run away."""
    if step is None or step.runs_away:
        _ = run.prove_infeasible(plan.g, plan.multipliers) or (step is not None and run.prove_infeasible(*step.whole))


class _Drift:
    """Looks for a proof in the direction in which g and lam move, now and then: the one in which they would go on for ever."""

    def __init__(self, plan: TiltedPlan) -> None:
        self.number, self.due, self.last = 0, 16, (plan.g, plan.multipliers)

    def watch(self, plan: TiltedPlan, run: ConstrainedRun) -> None:
        """Count a step, and look when it is time."""
        self.number += 1
        if self.number == self.due:
            run.prove_infeasible(plan.g - self.last[0], plan.multipliers - self.last[1])
            self.due, self.last = 2 * self.due, (plan.g, plan.multipliers)
