"""Sinkhorn's method: matrix scaling on a stored kernel with absorption, which turns into the log-domain form where it must."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace
from otbilevel._core.monitor import Monitor
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.result import OTResult, entropic_result
from otbilevel.ot.row_plan import LazyPlan, RowPlan, StoredPlan, Work

REACH_DOUBLE, REACH_SINGLE = 300.0, 40.0
"""How far the logarithm of a scaling may go on a K stored in double and in single precision."""
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
    """

    relaxation: float = 1.0
    time_limit: float | None = None

    def __post_init__(self) -> None:
        validate.real(self.relaxation, "relaxation", low=0.0, strict=True, below=2.0)
        if self.time_limit is not None:
            validate.real(self.time_limit, "time_limit", low=0.0)


def solve(problem: OTProblem, options: SinkhornOptions, monitor: Monitor) -> OTResult:
    """Scale until the marginal error is below the tolerance.

    A dense cost gets a stored K in double precision; its scaling passes are products only. When a scaling leaves the range in which
    entries that underflowed in K cannot matter, it is absorbed into g and K computed anew. At small reg this happens at every
    iteration, which then is the log-domain iteration: one fused sweep. A point cloud stores nothing and always sweeps.
    """
    work = Work()
    if problem.geometry.dense:
        plan: RowPlan = StoredPlan.dense(problem.geometry, problem.a, work, single=False)
    else:
        plan = LazyPlan(problem.geometry, problem.a, work)
    plan.sweep(problem.xp.zeros_like(problem.b), problem.reg)
    best = iterate(plan, problem, monitor, relaxation=options.relaxation)
    return entropic_result(problem, best.f, best.g, method="sinkhorn", monitor=monitor, work=work)


@dataclass
class Best:
    """The potentials of least marginal error so far."""

    error: float = float("inf")
    f: Array = None
    g: Array = None

    def offer(self, error: float, f: Array, g: Array) -> bool:
        """Take them if they are better; return whether they are."""
        if self.f is not None and not error < self.error:
            return False
        self.error, self.f, self.g = error, f, g
        return True


def iterate(plan: RowPlan, problem: OTProblem, monitor: Monitor, *, relaxation: float = 1.0, at_most: float = float("inf")) -> Best:
    """Iterate from a swept `plan` until it converges or stalls, the monitor says stop, or `at_most` iterations are done.

    `plan` is left swept at the last iterate. Plain iterations never increase the error; over-relaxed ones may, so all of these are
    offered to the best.
    """
    best, rule = Best(), _Stop(problem, monitor, monitor.nit + at_most)
    while True:
        error = marginal_error(plan, problem.b)
        best.offer(error, plan.f, plan.g)
        if rule.reached(plan, error):
            return best
        observe = best.offer if relaxation != 1.0 else None
        g, _ = scale(
            plan, problem.b, lambda e: rule.reached(plan, e[-1]), reach=REACH_DOUBLE, relaxation=relaxation, observe=observe
        )
        plan.sweep(g, problem.reg, relaxation=relaxation)
        if monitor.stopped:
            best.offer(marginal_error(plan, problem.b), plan.f, plan.g)
            return best


@dataclass
class _Stop:
    """When to end Sinkhorn's method."""

    problem: OTProblem
    monitor: Monitor
    last: float
    least: float = float("inf")
    since: int = 0

    def reached(self, plan: RowPlan, error: float) -> bool:
        """Report an iteration; whether it was the last: converged, stopped, or at the rounding floor without progress."""
        go_on = report(self.monitor, plan, error)
        self.since = 0 if error < self.least else self.since + 1
        self.least = min(self.least, error)
        stalled = self.since > STALL_WINDOW and error <= 100 * self.problem.rounding_floor
        return not go_on or error <= self.problem.tol or stalled or self.monitor.nit >= self.last


def marginal_error(plan: RowPlan, b: Array) -> float:
    """L1 error of both marginals at the last sweep."""
    xp = array_namespace(b)
    return float(xp.sum(xp.abs(plan.column_sums - b))) + plan.row_error


def report(monitor: Monitor, plan: RowPlan, error: float) -> bool:
    """Tell the monitor of an iteration; its callback gets the potentials of the last sweep."""
    return monitor.record(lambda: {"f": plan.f, "g": plan.g}, marginal_error=error, reg=plan.reg)


def scale(
    plan: RowPlan,
    b: Array,
    enough: Callable[[list[float]], bool],
    *,
    reach: float,
    relaxation: float = 1.0,
    observe: Callable[[float, Array, Array], object] | None = None,
) -> tuple[Array, list[float]]:
    """Scaling passes on the K of the last sweep, until ``enough(errors)`` or until log v leaves its range.

    Entries of K below exp(-708) (single precision: exp(-88)) are stored as zero; while log v stays below `reach` they
    cannot matter.

    Returns
    -------
    g : (m,) array
        g + reg log v, with the half step that the last column sums give for free.
    errors : list of float
        Marginal errors before the first and after each pass.
    """
    xp = array_namespace(b)
    g, log_b, nothing = plan.g, xp.log(b), xp.full_like(b, 1e-300)
    most = xp.full_like(b, reach)
    columns, errors = plan.column_sums, [marginal_error(plan, b)]
    log_v = xp.zeros_like(b)
    while True:
        log_v = log_v + relaxation * xp.minimum(log_b - xp.log(xp.maximum(columns, nothing)), most)
        if len(errors) > 1 and enough(errors):
            break
        if float(xp.max(log_v)) > reach or float(xp.min(log_v)) < -REACH_DOUBLE:  # below, K v would underflow
            break
        columns, row_error = plan.scaling_pass(xp.exp(log_v), relaxation)
        errors.append(float(xp.sum(xp.abs(columns - b))) + row_error)
        if observe is not None:
            observe(errors[-1], plan.row_potentials(), g + plan.reg * log_v)
    return g + plan.reg * log_v, errors
