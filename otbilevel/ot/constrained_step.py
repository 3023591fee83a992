"""A step of Newton's method in (g, lam): the direction, with the signs of the multipliers kept, and its length."""

from __future__ import annotations

from dataclasses import dataclass

from otbilevel._core.array import Array, array_namespace
from otbilevel.ot.bordered import Bordered
from otbilevel.ot.constrained_plan import TiltedPlan
from otbilevel.ot.constrained_run import ConstrainedRun
from otbilevel.ot.newton import CLIP

SHORT = 1e-3
"""Share of a step that clipping leaves below which it leads to infinity, perhaps."""
TRIALS = 8
"""Trial points of a line search."""


@dataclass
class Step:
    """A direction in (g, lam), in units of the cost and of cost per unit of D.

    Attributes
    ----------
    start, whole, direction : pairs of (m,) and (K,) arrays
        Where it begins, the direction as Newton's equations give it, and after clipping.
    target : (K,) array
        Which values <D_k, P> should have.
    clipped : bool
        Whether the last two differ.
    runs_away : bool
        Whether multipliers may be on their way to infinity: the step, or the radius that grew over several, is very long.
    """

    start: tuple[Array, Array]
    whole: tuple[Array, Array]
    direction: tuple[Array, Array]
    target: Array
    clipped: bool
    runs_away: bool


def newton_step(plan: TiltedPlan, run: ConstrainedRun, radius: float, *, tol: float, max_cg: int, alone: bool = False) -> Step:
    """The maximum of the quadratic model over the g and lam whose signs are right, `alone`: over lam.

    By an active-set method: equations are solved for the multipliers that may move; where one would change its sign the step
    ends, it stays at zero, and the others go on. Each part climbs the model, so that the whole is a direction of ascent.
    """
    xp, system, reg, lam = run.problem.xp, run.system, plan.reg, plan.multipliers
    target = system.target(lam, plan.expectations)
    s = target - plan.expectations
    few = system.n_few
    sign = xp.where(system.is_equality, xp.zeros_like(lam), xp.sign(xp.where(lam == 0, s, lam)))[:few]
    free = system.is_equality[:few] | (sign != 0)
    matrix = Bordered(plan, free)
    r = plan.vector_kernels.balanced(run.problem.b, plan.column_sums, matrix.laplacian.degree)
    x, y = xp.zeros_like(r), xp.zeros_like(s)
    left = r, s
    for _ in range(2 * few + 1):
        if alone:
            dx, dy = x, matrix.solve_multipliers(left[1], free)
        else:
            dx, dy, nit = matrix.solve(*left, free, tol=tol, max_iter=max_cg, interrupt=run.monitor.overdue)
            run.work.products += nit
        share, blocked = _until_blocked(sign, lam[:few] / reg + y[:few], dy[:few])
        x, y = x + share * dx, y + share * dy
        if share >= 1.0:
            break
        free = free & ~blocked
        y = system.join(xp.where(blocked, -lam[:few] / reg, y[:few]), system.split(y)[1])
        taken = matrix.product(x, y)
        left = r - taken[0], s - taken[1]
    whole = reg * x, reg * y
    longest = float(xp.max(xp.abs(y) * system.sizes))
    share = radius / longest if longest > radius else 1.0  # the same for g, which answers lam
    x, longest, _ = plan.vector_kernels.centred(share * x, run.problem.b)
    clipped = share < 1.0 or longest > radius
    x, y = xp.clip(x, -radius, radius), share * y
    runs_away = clipped and (radius > 2.0 * CLIP or share < SHORT)
    return Step((plan.g, lam), whole, (reg * x, reg * y), target, clipped, runs_away)


def _until_blocked(sign: Array, now: Array, step: Array) -> tuple[float, Array]:
    """The share of a step up to the first multiplier that reaches 0, and which do there."""
    xp = array_namespace(sign)
    wrong = sign * (now + step) < 0
    if not bool(xp.any(wrong)):
        return 1.0, wrong
    share = xp.where(wrong, xp.abs(now) / xp.abs(xp.where(wrong, step, xp.ones_like(step))), xp.full_like(step, 2.0))
    least = float(xp.min(share))
    return least, wrong & (share <= least)


def line_search(plan: TiltedPlan, run: ConstrainedRun, step: Step) -> float:
    """Move `plan` along the step until the slope of the semi-dual has halved; return the length, 0 for failure."""
    xp, b, (dg, dlam), system = run.problem.xp, run.problem.b, step.direction, run.system

    def slope() -> float:
        return float(xp.vecdot(b - plan.column_sums, dg)) + float(xp.vecdot(step.target - plan.expectations, dlam))

    error, first = run.error(plan), slope()
    if not first > 0:
        return 0.0
    low, slope_low, high, slope_high, length, previous = 0.0, first, 0.0, 0.0, 1.0, 0.0
    for _ in range(TRIALS):
        lam = step.start[1] + length * dlam
        plan.place(step.start[0] + length * dg, system.keep_signs(lam, step.start[1]), plan.reg)
        trial = slope()
        if abs(trial) <= 0.5 * first or (trial > 0 and length >= 1.0) or run.error(plan) < 0.5 * error:
            return length
        if trial > 0:
            low, slope_low = length, trial
        else:
            high, slope_high = length, trial
        share = 0.5 if trial * previous > 0 else min(max(slope_low / (slope_low - slope_high), 0.1), 0.9)
        length, previous = low + (high - low) * share, trial
    return 0.0
