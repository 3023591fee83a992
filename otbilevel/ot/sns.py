"""Sinkhorn-Newton-Sparse: a path of Sinkhorn passes in reg, then Newton's method on the semi-dual, sparse where that pays.

X. Tang, M. Shavlovsky, H. Rahmanian, E. Tardini, K. K. Thekumparampil, T. Xiao, L. Ying, Accelerating Sinkhorn
algorithm with sparse Newton iterations, ICLR 2024 (arXiv:2401.12253) warms up with a fixed number of Sinkhorn steps
and then solves with a globally thresholded Hessian. Made robust, the two stages become:

1. *Path.* reg falls from about an eighth of the cost's range to its target by factors of 2 or 4, with a few cheap scaling
   passes at each level and the potentials extrapolated linearly in reg. The measured contraction says how hard a level
   is: hard levels get Newton steps and a smaller factor.
2. *Newton.* Steps L x = b - c, d = reg x on the semi-dual (see `row_plan`), by preconditioned conjugate gradients on a plan stored
   in single precision whose Laplacian is exact, so that no accuracy is lost. Where at most a tenth of the entries carry all but a
   fraction of tol of the mass, the plan is restricted to them, on late levels of the path, too. Long steps are clipped
   componentwise, to a length that doubles while they do well; the line search looks at the slope, because values of the dual drown
   in rounding long before the marginals are exact.
3. *Certificate.* The last steps use double precision over the whole of C.

Sweeps, with an exponential for each entry, are few: between levels whose reg halves or quarters the stored entries are squared, and
trial steps scale them. Newton's method starts from the plan that the scaling passes left.

A run that stalls is repeated with a tighter path, by sweeps. A small plan is stored in double precision: what it takes to scale it
is then as good as a sweep. Its scaling passes are made several at a time, in compiled calls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

from otbilevel._core import validate
from otbilevel._core.array import Array
from otbilevel._core.monitor import Monitor
from otbilevel.ot import constrained, sns_paper
from otbilevel.ot.entry import enter
from otbilevel.ot.newton import NewtonRule, TooFarError, newton
from otbilevel.ot.point_plan import MEMORY, check_memory
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.result import OTResult
from otbilevel.ot.row_plan import RowPlan
from otbilevel.ot.run import Run
from otbilevel.ot.sinkhorn import PassRule, scale
from otbilevel.ot.start import Start
from otbilevel.ot.stored_plan import StoredPlan


@dataclass(frozen=True)
class SNSOptions:
    """Settings of ``method="sns"``.

    Attributes
    ----------
    variant : {"robust", "paper"}
        "paper" runs Algorithm 1 of the paper as published, to reproduce it: it has no path in reg and can stall.
    active_density : float
        "robust": restrict the plan to its active entries when their share is at most this, by default 0.1; 0 never does. In a
        product, an active entry takes as long as four to nine of the whole plan, and the entries have to be found first.
    n_sinkhorn : int, optional
        "paper": Sinkhorn steps before Newton's method (N1), by default 20.
    hessian_density : float, optional
        "paper": the share lambda of the n m entries of the plan that the sparsified Hessian keeps; by default ``3 / min(n, m)``.
    time_limit : float, optional
        Seconds of wall time.
    memory : float
        Bytes that the plan of a `PointCloud` may take, by default 2^30. A plan that does not fit is computed anew in every pass.
        The plan beside a cost matrix does not count.
    """

    variant: str = "robust"
    active_density: float = 0.1
    n_sinkhorn: int | None = None
    hessian_density: float | None = None
    time_limit: float | None = None
    memory: float = MEMORY

    @property
    def balanced_only(self) -> str:
        """Which setting asks for fixed marginals, if one does."""
        return 'variant="paper"' if self.variant == "paper" else ""

    def __post_init__(self) -> None:
        validate.choice(self.variant, "variant", ("robust", "paper"))
        validate.real(self.active_density, "active_density", low=0.0, high=1.0)
        if self.n_sinkhorn is not None:
            validate.integer(self.n_sinkhorn, "n_sinkhorn", low=1)
        if self.hessian_density is not None:
            validate.real(self.hessian_density, "hessian_density", low=0.0, high=1.0, strict=True)
        for name in ("n_sinkhorn", "hessian_density"):
            if self.variant != "paper" and getattr(self, name) is not None:
                msg = f'{name} = {getattr(self, name)} belongs to variant="paper", got variant={self.variant!r}'
                raise ValueError(msg)
        if self.time_limit is not None:
            validate.real(self.time_limit, "time_limit", low=0.0)
        check_memory(self.memory)


@dataclass(frozen=True)
class Schedule:
    """How tightly the path is followed.

    Attributes
    ----------
    easy, hard : float
        Factor by which reg falls after an easy and after a hard level.
    patience : float
        A level is hard when its error fell by less than this factor in the last pass (and is above 5 %).
    level : NewtonRule
        Newton steps at hard levels.
    final : NewtonRule
        Newton steps at the target, before the certified ones.
    first : bool
        Whether it is the first try: active sets and powers of the plan's entries may then be used, and Newton's steps take
        single precision where it is enough.
    """

    easy: float = 4.0
    hard: float = 2.0
    patience: float = 0.5
    level: NewtonRule = NewtonRule(tol=5e-3, max_steps=2)
    final: NewtonRule = NewtonRule(tol=1e-5, max_steps=30)
    first: bool = True


SCHEDULES = (
    Schedule(),
    Schedule(1.4, 1.4, 0.0, NewtonRule(1e-8, 30), NewtonRule(1e-5, 60), first=False),
    Schedule(1.2, 1.2, 0.0, NewtonRule(1e-7, 30, max_cg=1500), NewtonRule(1e-5, 200, max_cg=1500), first=False),
)
"""The first does nearly always. The others are for runs that stalled, which happens with tied costs at very small reg: there a
potential that is not followed closely is soon hundreds of reg from where it should be."""

FARTHEST = 10.0
"""Mean first Newton step, in units of reg, beyond which a start is given up: the path is a shorter way to the solution."""
WARM = replace(
    SCHEDULES[0],
    level=replace(SCHEDULES[0].level, farthest=FARTHEST),
    final=replace(SCHEDULES[0].final, farthest=FARTHEST),
)
"""For a run that starts from given potentials."""

LEVEL_ERROR = 0.05
"""Error at which a level of the path is left."""
LEVEL_PASSES = 3
"""Scaling passes that tell the contraction of a level."""
MOST_AHEAD = 8.0
"""Passes after which it is measured again, where several are made at a time."""
ENOUGH = 0.3
"""Share of the tolerance that passes in double precision aim at."""
CERTIFIED_FROM = 1e-5
"""Error below which double precision takes over: single precision has nothing more to give."""
DRIFT_MARGIN = 10.0
"""By how much (in units of reg) potentials may move before the active set is made anew."""
MAX_REBUILDS = {False: 30, True: 3}
"""How often the active set is made anew at the target, and on a level of the path. Clouds at 1e-6 of the range need that many."""
SMALL = 2**16
"""Pairs up to which the plan is stored in double precision, and never sparse: it fits the cache, and what counts are calls."""
MAX_ACTIVE = 2**25
"""Entries of an active set, however large the problem: half a gigabyte."""


def solve(problem: OTProblem, options: SNSOptions, monitor: Monitor) -> OTResult:
    """Solve by the path and Newton's method, or by the paper's algorithm."""
    if problem.constraints is not None:
        if options.variant == "paper":
            msg = 'variant="paper" takes no constraints: leave it out'
            raise ValueError(msg)
        return constrained.newton_path(problem, monitor, options.memory)
    run = Run(problem, monitor, options.memory)
    if options.variant == "paper":
        return sns_paper.solve(run, options.n_sinkhorn or 20, options.hessian_density)
    return solve_robust(options, run)


def is_small(problem: OTProblem) -> bool:
    """Whether a plan in double precision fits the cache."""
    n, m = problem.geometry.shape
    return n * m <= SMALL


def solve_robust(options: SNSOptions, run: Run) -> OTResult:
    """Path, Newton, certificate, and again with a tighter path after a stall.

    A start that leads nowhere is forgotten first.
    """
    small, start = is_small(run.problem), run.problem.start
    plan, density = run.make_plan(single=not small), 0.0 if small else options.active_density
    attempts = [] if start is None else [(WARM, start)]
    for schedule, where in [*attempts, *((schedule, None) for schedule in SCHEDULES)]:
        try:
            attempt(plan, schedule, density, run, where)
        except TooFarError:
            continue
        if run.best_error <= run.problem.tol or run.stopped or run.problem.at_floor(run.best_error):
            break
    return run.finish("sns")


def attempt(plan: RowPlan, schedule: Schedule, active_density: float, run: Run, start: Start | None) -> None:
    """Path, Newton, certified Newton."""
    density = active_density if schedule.first else 0.0
    g, error = follow_path(plan, schedule, density, run, start)
    tol = run.problem.tol
    if run.best_error <= tol:
        return
    if error > CERTIFIED_FROM and not run.stopped:
        rule = NewtonRule(0.3 * tol, 30, max_cg=2000, farthest=schedule.final.farthest)
        if not on_active_set(plan, density, rule, run):
            newton(plan, replace(schedule.final, single=schedule.first), run)
        g = plan.g
    away = plan.reg != run.problem.reg  # stopped on the way
    if away or (plan.single and (run.stopped or not max(tol, CERTIFIED_FROM) < run.error(plan) < math.inf)):
        plan.sweep(g, run.problem.reg)  # else the first step still does well with a gradient in single precision
    newton(plan, replace(schedule.final, tol=tol), run)


def follow_path(plan: RowPlan, schedule: Schedule, density: float, run: Run, start: Start | None) -> tuple[Array, float]:
    """Lower reg to its target; return g there and its error. Active sets may have that `density`."""
    problem = run.problem
    reg, g, previous = enter(plan, run, start, schedule.easy)
    while True:
        last = reg <= problem.reg
        if not run.report(plan) or (last and run.error(plan) <= (CERTIFIED_FROM if plan.stores_single else problem.tol)):
            return g, run.error(plan)
        g, errors = scale(plan, problem.b, _level_rule(plan, run, last=last))
        if not plan.admits((g - plan.g) / reg + plan.log_v):
            plan.sweep(g, reg, single=True)
            errors.append(run.error(plan))
        if last or run.stopped:
            return g, errors[-1]
        is_hard = errors[-1] > min(LEVEL_ERROR, schedule.patience * (errors[-2] if len(errors) > 1 else math.inf))
        if is_hard and errors[-1] > schedule.level.tol:
            sparse = isinstance(plan, StoredPlan) and on_active_set(plan, density, replace(schedule.level, single=True), run)
            if not sparse:
                newton(plan, replace(schedule.level, single=schedule.first), run)
            g = plan.g
            if run.stopped:
                return g, run.error(plan)
        lower = reg / (schedule.hard if is_hard else schedule.easy)
        lower = lower if lower > 1.0001 * problem.reg else problem.reg
        slope = 0.0 if previous is None else (lower - reg) / (reg - previous[0])
        previous, g = (reg, g), g if previous is None else g + slope * (g - previous[1])
        reg = lower
        if reg > problem.reg and schedule.first:
            plan.lower(g, reg)
        else:
            plan.sweep(g, reg, single=True)


def _level_rule(plan: RowPlan, run: Run, *, last: bool) -> PassRule:
    """Leave a level after three passes, unless the measured contraction promises the target within few more."""
    target, at_most = LEVEL_ERROR, 14.0
    if last:
        target, at_most = (1e-6, 24.0) if plan.stores_single else (max(ENOUGH * run.problem.tol, 1e-300), 40.0)

    def missing(errors: list[float]) -> float:
        """How many passes the target still takes."""
        contraction = errors[-1] / errors[-2]
        return math.log(target / errors[-1]) / math.log(contraction) if 0 < contraction < 1 else math.inf

    def enough(errors: list[float], fresh: int) -> bool:
        run.record_passes(plan, errors[-fresh:-1])
        if not run.report(plan) or errors[-1] <= target:
            return True
        passes = len(errors) - 1
        return passes >= LEVEL_PASSES and passes + missing(errors) > at_most

    def ahead(errors: list[float]) -> int:
        """What is missing, but no more than may be wasted where the contraction gets worse."""
        return run.passes_ahead(plan, LEVEL_PASSES if len(errors) <= LEVEL_PASSES else math.ceil(min(missing(errors), MOST_AHEAD)))

    return PassRule(enough, ahead, target)


def on_active_set(plan: RowPlan, density: float, rule: NewtonRule, run: Run) -> bool:
    """Newton's method on the entries that carry the mass; leaves `plan` swept, in double precision if that was the end.

    A rule for single precision is one for a level of the path: there `plan` is only scaled, and nothing checked.

    Entries K_ij <= exp(-theta) are left out, of the mass at most m exp(-theta); theta = log(m / tol) + 2 makes that
    0.14 tol. The margin keeps this true while the potentials drift by less than it; then the set is made anew. The
    sweep over the whole of C that follows is the check.

    Returns whether the steps ended on a set that was still valid: not so when there are too many entries for sparse
    steps to pay, or when the potentials do not settle.
    """
    n, m = run.problem.geometry.shape
    margin = DRIFT_MARGIN * plan.reg
    theta = math.log(m / max(rule.tol, 1e-16)) + 2.0 + DRIFT_MARGIN
    for _ in range(MAX_REBUILDS[rule.single] if density > 0 else 0):
        pattern = plan.active_set(theta, min(density * n * m, MAX_ACTIVE))
        if pattern is None:
            return False
        active = StoredPlan.on(pattern, plan)
        f, g = plan.row_potentials(), plan.g
        active.sweep(g, plan.reg)
        drifted = partial(_drifted, active, f, g, margin)
        newton(active, replace(rule, abandon=drifted), run)
        plan.preconditioner = active.preconditioner
        settled = not drifted()
        if rule.single:
            plan.move(active.g, single=True)
        else:
            plan.sweep(active.g, plan.reg, single=not settled)
        if settled or run.stopped:
            return True
    return False


def _drifted(plan: RowPlan, f: Array, g: Array, margin: float) -> bool:
    """Whether some f_i + g_j of the plan is further than `margin` from the given one."""
    df, dg = plan.row_potentials() - f, plan.g - g
    (low_f, high_f), (low_g, high_g) = plan.vector_kernels.extremes(df), plan.vector_kernels.extremes(dg)
    return not max(high_f + high_g, -low_f - low_g) <= margin  # NaN is no place to stay
