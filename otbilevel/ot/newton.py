"""Newton's method on the semi-dual, for any representation of the plan with exact rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from otbilevel._core.array import Array, clamp
from otbilevel.ot.row_plan import RowPlan
from otbilevel.ot.run import Run
from otbilevel.ot.sinkhorn import PassRule, scale

CLIP = 6.0
"""Longest step of a potential in units of reg. Clipping componentwise lets a shift that a whole component shares survive.
It doubles while clipped steps can be taken whole."""
SMOOTHING_PASSES = 3
"""Scaling passes after a step that was cut."""
SMOOTHABLE = 1e-6
"""Error below which these passes, on a K in single precision, would do harm: sweeps take their place."""
STALL_WINDOW = 12
"""Steps within which the error must halve."""

UNCERTAIN = 0.1
"""Share of the tolerance that an error may be off which ends the steps."""


SMOOTHING = PassRule(lambda errors, _: len(errors) > SMOOTHING_PASSES, lambda _: SMOOTHING_PASSES)


class TooFarError(Exception):
    """The solution is further away than Newton's method should start, as the rule's `farthest` sees it."""


def _never() -> bool:
    return False


@dataclass(frozen=True)
class NewtonRule:
    """When to stop.

    Attributes
    ----------
    tol : float
        Marginal error to reach.
    max_steps, max_cg : int
        Limits of Newton steps, and of conjugate-gradient steps in each.
    single : bool
        Whether single precision is enough for the exponentials.
    abandon : callable
        Give up when it returns True.
    farthest : float
        Raise `TooFarError` when a step is longer than this, in units of reg and in the mean over b; or when it had to be
        clipped and does not halve the error. Infinite: never.
    """

    tol: float
    max_steps: int
    max_cg: int = 400
    single: bool = False
    abandon: Callable[[], bool] = _never
    farthest: float = math.inf


def newton(plan: RowPlan, rule: NewtonRule, run: Run) -> None:
    """Take steps from where `plan` is until the rule or the monitor says stop."""
    b = run.problem.b
    errors, radius = [run.error(plan)], CLIP
    run.offer(plan)
    for step in range(rule.max_steps):
        if errors[-1] <= rule.tol or run.stopped or rule.abandon() or not math.isfinite(errors[-1]):
            return
        if step >= STALL_WINDOW and errors[-1] > 0.5 * errors[step - STALL_WINDOW]:
            return
        start = plan.g
        direction, clipped, distance = _direction(plan, errors[-1], rule, run, radius)
        if distance > rule.farthest:
            raise TooFarError
        length = _line_search(plan, run, direction, errors[-1], rule)
        radius = 2.0 * radius if clipped and length >= 1.0 else CLIP
        if length == 0.0:
            plan.move(start, single=rule.single)
        if errors[-1] > SMOOTHABLE and (clipped or length < 1.0):
            g, _ = scale(plan, b, SMOOTHING)
            plan.move(g, single=rule.single)
        elif length == 0.0:
            _smooth(plan, b)
            if not run.error(plan) < errors[-1]:
                plan.move(start, single=rule.single)
                return
        errors.append(run.error(plan))
        run.nit_newton += 1
        run.report(plan)
        slow = clipped and errors[-1] > max(0.5 * errors[-2], SMOOTHABLE)
        if slow and rule.farthest < math.inf and not run.stopped:
            raise TooFarError


def _smooth(plan: RowPlan, b: Array) -> None:
    """Sinkhorn's iterations in double precision, which move a column of little weight as far as it needs."""
    log_b = plan.xp.log(b)
    for _ in range(SMOOTHING_PASSES):
        plan.sweep(plan.g + plan.reg * plan.half_step(log_b), plan.reg)


def _direction(plan: RowPlan, error: float, rule: NewtonRule, run: Run, radius: float) -> tuple[Array, bool, float]:
    """Solve L x = b - c to an accuracy that suits the present error.

    Returns reg x, whether it had to be clipped, and the mean of |x| over b before that.
    """
    xp, b = run.problem.xp, run.problem.b
    laplacian = plan.laplacian()
    fixed = plan.marginals is None
    r = plan.vector_kernels.balanced(b, plan.column_sums, laplacian.degree) if fixed else plan.target(b) - plan.column_sums
    forcing = max(min(0.1, error), 0.3 * rule.tol / error)
    x, _ = plan.solve(laplacian, r, tol=forcing, max_iter=rule.max_cg, interrupt=run.monitor.overdue)
    # Where constants do not matter, the gauge in which most potentials stay.
    d, longest, mean = plan.vector_kernels.centred(x, b) if fixed else (x, float(xp.max(xp.abs(x))), float(xp.vecdot(b, xp.abs(x))))
    clipped = longest > radius
    return plan.reg * (clamp(d, -radius, radius) if clipped else d), clipped, mean


def _line_search(plan: RowPlan, run: Run, d: Array, error: float, rule: NewtonRule) -> float:
    """Move `plan` along the concave semi-dual until the slope has halved; return the step length, 0 for failure.

    The plan and column sums of the last trial are those of the next step.
    """
    xp, b = plan.xp, run.problem.b
    start, slope = plan.g, float(xp.vecdot(plan.target(b) - plan.column_sums, d))
    if not slope > 0:
        return 0.0
    low, slope_low, high, slope_high, length, previous = 0.0, slope, 0.0, 0.0, 1.0, 0.0
    for _ in range(6):
        _try(plan, run, start + length * d, rule)
        trial = float(xp.vecdot(plan.target(b) - plan.column_sums, d))
        if abs(trial) <= 0.5 * slope or (trial > 0 and length >= 1.0) or plan.marginal_error(b) < 0.5 * error:
            return length
        if trial > 0:
            low, slope_low = length, trial
        else:
            high, slope_high = length, trial
        # The secant creeps where the slope falls off a cliff, as it does between weakly tied components: then bisect.
        share = 0.5 if trial * previous > 0 else min(max(slope_low / (slope_low - slope_high), 0.1), 0.9)
        length, previous = low + (high - low) * share, trial
    return 0.0


def _try(plan: RowPlan, run: Run, g: Array, rule: NewtonRule) -> None:
    """Move `plan` to g. Where that turns out to be the end, a sweep in double precision is saved."""
    g = g if plan.marginals is None else plan.marginals.project(g, plan.reg)
    accuracy = UNCERTAIN * min(rule.tol, run.problem.tol)
    if rule.single or not (plan.shift(g, accuracy) and run.error(plan) <= rule.tol - accuracy):
        plan.move(g, single=rule.single)
