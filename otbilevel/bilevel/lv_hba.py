"""LV-HBA with the saddle point solved exactly: no step size, no penalty and no proximal parameter is asked for.

min F + c (f - v) over C = {(x, y) in X x Y : g <= 0, G <= 0} for growing c, with the proximal Lagrangian value function v of Yao et
al. (2024). Its multiplier z is eliminated (gamma_2 to infinity), which allows a large gamma_1 and a quasi-Newton outer step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from otbilevel._core import validate
from otbilevel.bilevel import lv_hba_large, lv_hba_paper
from otbilevel.bilevel.lv_hba_step import SETTINGS, check_settings
from otbilevel.bilevel.polish import polish
from otbilevel.bilevel.result import BilevelResult
from otbilevel.bilevel.saddle import ValueFunction
from otbilevel.bilevel.scaled import ScaledProblem
from otbilevel.bilevel.search import FEASIBLE, Candidate, Search
from otbilevel.bilevel.task import SETTLED, Task

PENALTIES = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
DENSE = 400
"""n + m up to which matrices are tried where it does not go without."""
BROKEN = (ArithmeticError, ValueError, RuntimeError, np.linalg.LinAlgError)
"""What a user's function, or a factorisation, may raise."""
MANY, MANY_UP_TO, FEW, FEW_UP_TO = 36, 20, 24, 200
"""Starts, and up to which n + m; one beyond."""


@dataclass(frozen=True)
class LVHBAOptions:
    """Settings of LV-HBA.

    Attributes
    ----------
    variant : {"exact", "paper"}
        Exact saddle points, or the single loop of the paper, to which the settings from `alpha` on belong.
    n_starts : int, optional
        Points to start from: the relaxed problem (c from 0.1, later from 1 or 10), one that is feasible for both levels, the end of
        a lower level that a barrier smooths, points around the best so far (all c from 100), and the best itself, with c from 10 or
        1; the first three from the point that is given. A start ends when its F is no longer below the best. By default 36 up to
        n + m = 20, 24 up to 200, and 1 beyond.
    penalties : tuple of float, optional
        At least two values of c, ascending; by default powers of ten from 0.1 to 1e5, for ``saddle="newton-cg"`` from 1 to 1e3.
    saddle : {"auto", "exact", "newton-cg"}
        Saddle points by quadratic programs with dense matrices, or without matrices, from one start. ``"auto"`` takes the latter
        from n + m = 200 on, where there are no inequalities in the lower level: at kinks that these make it may stop too early.
        When that does not succeed, the former follows up to n + m = 400.
    polish : bool
        Whether the best point is polished on the lower level's optimality conditions: not part of LV-HBA, and with second
        derivatives, by differences. `message` says what it brought. It needs matrices, which are then used up to n + m = 400.
    alpha, beta, eta : float, optional
        Step sizes of (x, y), of z and of the saddle point, for F and f whose gradients have Lipschitz constants of 1, and rows of
        length one; by default from estimated constants.
    gamma1, gamma2 : float, optional
        Proximal parameters in these units; by default 0.5, or 10 for a linear f.
    c0, p : float, optional
        The penalty of step k is c0 (k + 1)^p; by default 10 and 0.3.
    r : float, optional
        Bound of multipliers; by default 100, and ten times as much whenever a multiplier meets it.
    """

    variant: str = "exact"
    n_starts: int | None = None
    penalties: tuple[float, ...] | None = None
    saddle: str = "auto"
    polish: bool = False
    alpha: float | None = None
    beta: float | None = None
    eta: float | None = None
    gamma1: float | None = None
    gamma2: float | None = None
    c0: float | None = None
    p: float | None = None
    r: float | None = None

    def __post_init__(self) -> None:
        if self.n_starts is not None:
            validate.integer(self.n_starts, "n_starts", low=1)
        validate.choice(self.saddle, "saddle", ("auto", "exact", "newton-cg"))
        validate.choice(self.variant, "variant", ("exact", "paper"))
        validate.boolean(self.polish, "polish")
        if self.polish and (self.variant == "paper" or self.saddle == "newton-cg"):
            msg = "polish needs variant='exact' with matrices: leave it out"
            raise ValueError(msg)
        given = {name: getattr(self, name) for name in SETTINGS if getattr(self, name) is not None}
        if given and self.variant != "paper":
            msg = f'{next(iter(given))} is a setting of variant="paper": leave it out'
            raise ValueError(msg)
        check_settings(given)
        for name, default in (("n_starts", None), ("penalties", None), ("saddle", "auto")):
            if self.variant == "paper" and getattr(self, name) != default:
                msg = f'{name} is no setting of variant="paper": leave it out'
                raise ValueError(msg)
        if self.saddle == "newton-cg" and self.n_starts is not None:
            msg = 'n_starts is no setting of saddle="newton-cg", which has one start: leave it out'
            raise ValueError(msg)
        if self.penalties is None:
            return
        values = [validate.real(c, "penalties", low=0.0, strict=True) for c in self.penalties]
        if len(values) < 2 or any(a >= b for a, b in itertools.pairwise(values)):  # the last two tell whether F has settled
            msg = f"penalties must be at least two that ascend, got {self.penalties!r}"
            raise ValueError(msg)


def solve(task: Task) -> BilevelResult:
    """Run all starts, and return the best point that is feasible for both levels."""
    options: LVHBAOptions = task.options
    task.refuse("hvp_xy")
    if options.variant == "paper":
        return lv_hba_paper.solve(task, {name: getattr(options, name) for name in SETTINGS})
    size = task.start.size
    large = lv_hba_large.suits(task.problem) and not (options.polish and size <= DENSE)
    if options.saddle == "newton-cg" or (options.saddle == "auto" and large):
        task.notes += ["not polished: there are no matrices"] * options.polish
        result = lv_hba_large.solve(task, options.penalties or PENALTIES[1:5])
        if result.success or options.saddle == "newton-cg" or size > DENSE or task.monitor.stopped:
            return result
        task.notes.append("with matrices, as it did not settle without")
    count = options.n_starts or (MANY if size <= MANY_UP_TO else FEW if size <= FEW_UP_TO else 1)
    scaled = ScaledProblem(task.problem, task.start, task.rng)
    run = Search(scaled, task.start, task.tol, task.rng)
    best: Candidate | None = None
    fallback: Candidate | None = None
    lost: list[Exception] = []
    for k in range(count):
        found, error = _follow(task, run, k, best)
        lost += error
        for candidate in found:
            if run.good(candidate) and (best is None or candidate.value < best.value):
                best = candidate
            if fallback is None or _badness(candidate) < _badness(fallback):
                fallback = candidate
        if task.monitor.stopped:
            break
    chosen = best or fallback or run.judge(run.start)
    lam = np.zeros(scaled.equality.size)
    try:
        if best is not None:
            chosen = run.settled(best)
        if options.polish and best is not None:
            chosen, note = _polished(run, chosen)
            task.notes.append(note)
        lam = ValueFunction(scaled).solve(chosen.w[: scaled.n], chosen.w[scaled.n :], run.gamma).lam
    except BROKEN as error:
        task.notes.append(f"without multipliers ({error})")
    return task.result(
        chosen.w,
        gap=chosen.gap / scaled.lower_factor,
        stationarity=chosen.change,
        unit=1.0 / scaled.lower_factor,
        settled=chosen.change <= SETTLED,
        advice="more penalties, or more starts",
        multipliers=scaled.lower_rows.multipliers(lam[: scaled.lower_rows.count], scaled.lower_factor),
        penalty=chosen.penalty,
        how=f"exact saddle points, {k + 1} start{'s' * (k > 0)}" + (f", {len(lost)} lost ({lost[-1]})" if lost else ""),
    )


def _follow(task: Task, run: Search, k: int, best: Candidate | None) -> tuple[list[Candidate], list[Exception]]:
    """The ends of the k-th start, and what broke it: a user's function far away, or a factorisation; then this start is lost only.

    What a callback raises is not caught.
    """
    penalties = task.options.penalties or PENALTIES
    path: Iterator[Candidate] = run.path(k, penalties, best)
    last: Candidate | None = None
    n, factor = run.problem.n, run.problem.upper_factor
    while True:
        try:
            point = next(path, None)
            if point is None:
                return ([] if last is None else run.ends(last, best)), []
        except BROKEN as error:
            return [], [error]
        last = point
        figures = {"start": float(k), "penalty": point.penalty, "fun": point.value / factor}
        if not task.monitor.record(partial(dict, x=point.w[:n], y=point.w[n:]), **figures):
            path = iter(())
            if point.penalty < penalties[-1]:
                last = replace(point, change=math.inf)  # what is missing might have changed it


def _badness(candidate: Candidate) -> tuple[float, float]:
    return max(candidate.violation, FEASIBLE), candidate.gap  # below that violations are rounding


def _polished(run: Search, chosen: Candidate) -> tuple[Candidate, str]:
    """The polished point where it is better, and what is to be said."""
    try:
        new, pieces = polish(run, chosen)
    except BROKEN as error:
        return chosen, f"the polish broke down ({error})"
    fall = (chosen.value - new.value) / run.problem.upper_factor
    where = f"in {pieces} piece{'s' * (pieces > 1)} of the lower level's optimality conditions"
    return new, f"polished: F fell by {fall:.1g} {where}" if fall > 0 else f"polished: F did not fall {where}"
