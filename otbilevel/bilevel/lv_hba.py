"""LV-HBA with the saddle point solved exactly: no step size, no penalty and no proximal parameter is asked for.

min F + c (f - v) over C = {(x, y) in X x Y : g <= 0, G <= 0} for growing c, with the proximal Lagrangian value function v of Yao et
al. (2024). Its multiplier z is eliminated (gamma_2 to infinity), which allows a large gamma_1 and a quasi-Newton outer step.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog, minimize

from otbilevel._core import validate
from otbilevel._core.monitor import Monitor
from otbilevel.bilevel import lv_hba_large, lv_hba_paper
from otbilevel.bilevel.lower import proximal_steps, restore, solve_lower
from otbilevel.bilevel.lv_hba_step import SETTINGS, check_settings
from otbilevel.bilevel.result import BilevelResult
from otbilevel.bilevel.saddle import ValueFunction
from otbilevel.bilevel.scaled import ScaledProblem
from otbilevel.bilevel.slsqp import project
from otbilevel.bilevel.task import SETTLED, Task

FEASIBLE = 1e-7
"""Violation of rows of length one up to which a point counts as feasible."""
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
DENSE = 400
"""n + m up to which matrices are tried where it does not go without."""
MANY, MANY_UP_TO, FEW, FEW_UP_TO = 16, 20, 6, 200
"""Starts, and up to which n + m."""
PROXIMAL = 100.0
"""gamma_1 in units of the extent of the feasible set, f having unit gradients: the proximal step must be able to cross that set."""
JUMP = 1e-2
"""Relative change of F from which on moving y to lower optimality counts as a jump."""
DOUBLINGS = 6
"""Of the radius of a stage, while its box is met."""


@dataclass(frozen=True)
class LVHBAOptions:
    """Settings of LV-HBA.

    Attributes
    ----------
    variant : {"exact", "paper"}
        Exact saddle points, or the single loop of the paper, to which the settings from `alpha` on belong.
    n_starts : int, optional
        Points to start from, in turn from the relaxed problem (c from 0.1, later ones from 1 or 10) and from points that are
        feasible for both levels (c from 100); by default 16 up to n + m = 20, else 6, and 1 beyond 200.
    penalties : tuple of float, optional
        The values of c, ascending; by default powers of ten from 0.1 to 1e5, for ``saddle="newton-cg"`` from 1 to 1e3.
    saddle : {"auto", "exact", "newton-cg"}
        Saddle points by quadratic programs with dense matrices, or without matrices, from one start. ``"auto"`` takes the latter
        from n + m = 200 on, where there are no inequalities in the lower level: at kinks that these make it may stop too early.
        When that does not succeed, the former follows up to n + m = 400.
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
        given = {name: getattr(self, name) for name in SETTINGS if getattr(self, name) is not None}
        if given and self.variant != "paper":
            msg = f'{next(iter(given))} is a setting of variant="paper": leave it out'
            raise ValueError(msg)
        check_settings(given)
        if self.penalties is None:
            return
        values = [validate.real(c, "penalties", low=0.0, strict=True) for c in self.penalties]
        if len(values) < 1 or sorted(values) != values:
            msg = f"penalties must ascend, got {self.penalties!r}"
            raise ValueError(msg)


@dataclass
class Candidate:
    """A point, and what a fresh solve of the lower level says about it; in scaled units.

    Attributes
    ----------
    w : (n + m,) ndarray
        The point.
    value : float
        F.
    gap : float
        f minus the lower optimum; infinite when that is unknown.
    violation : float
        Of rows of length one, and bounds.
    penalty : float
        The last c.
    change : float
        Relative change of F between the last two penalties: small when the upper level has settled.
    """

    w: np.ndarray
    value: float
    gap: float
    violation: float
    penalty: float = 0.0
    change: float = math.inf


def solve(task: Task) -> BilevelResult:
    """Run all starts, and return the best point that is feasible for both levels."""
    options: LVHBAOptions = task.options
    task.refuse("hvp_xy")
    if options.variant == "paper":
        return lv_hba_paper.solve(task, {name: getattr(options, name) for name in SETTINGS})
    size = task.start.size
    if options.saddle == "newton-cg" or (options.saddle == "auto" and lv_hba_large.suits(task.problem)):
        result = lv_hba_large.solve(task, options.penalties or PENALTIES[1:5])
        if result.success or options.saddle == "newton-cg" or size > DENSE or task.monitor.stopped:
            return result
        task.notes.append("with matrices, as it did not settle without")
    count = options.n_starts or (MANY if size <= MANY_UP_TO else FEW if size <= FEW_UP_TO else 1)
    scaled = ScaledProblem(task.problem, task.start, task.rng)
    run = LVHBA(scaled, task.start, task.tol, task.rng)
    best, fallback, lost = None, None, []
    for k in range(count):
        try:
            found = run.run(k, options.penalties or PENALTIES, task.monitor)
        except (ArithmeticError, ValueError, RuntimeError, np.linalg.LinAlgError) as error:
            lost.append(error)  # a user's function failed far away, or a factorisation broke down: this start is lost, not the run
            continue
        for candidate in found:
            if run.good(candidate) and (best is None or candidate.value < best.value):
                best = candidate
            if fallback is None or (candidate.violation, candidate.gap) < (fallback.violation, fallback.gap):
                fallback = candidate
        if task.monitor.stopped:
            break
    chosen = run.settled(best) if best is not None else fallback or run.judge(run.start)
    saddle = ValueFunction(scaled).solve(chosen.w[: scaled.n], chosen.w[scaled.n :], run.gamma)
    count_rows = scaled.lower_rows.count
    return task.result(
        chosen.w,
        gap=chosen.gap / scaled.lower_factor,
        stationarity=chosen.change,
        settled=chosen.change <= SETTLED,
        multipliers=scaled.lower_rows.multipliers(saddle.lam[:count_rows], scaled.lower_factor),
        penalty=chosen.penalty,
        how=f"exact saddle points, {count} start{'s' * (count > 1)}" + (f", {len(lost)} lost ({lost[-1]})" if lost else ""),
    )


class LVHBA:
    """One run from several starts.

    Parameters
    ----------
    problem : ScaledProblem
        The problem.
    start : (n + m,) ndarray
        Where to start; it is projected on C.
    tol : float
        Lower-level gap that is accepted, in units of max(1, |f|).
    rng : numpy.random.Generator
        Draws starts.
    """

    def __init__(self, problem: ScaledProblem, start: np.ndarray, tol: float, rng: np.random.Generator) -> None:
        self.problem, self._rng, self._tol = problem, rng, tol
        self._values = ValueFunction(problem)
        self.start = project(problem, start)
        self._size = max(1.0, float(np.abs(self.start).max()))
        self._low, self._high = extents(problem, self.start, 1e3 * self._size)
        self._width = np.minimum(self._high - self._low, 20 * self._size)
        self.gamma = PROXIMAL * max(1.0, float(np.linalg.norm(self._width[problem.n :])))

    def judge(self, w: np.ndarray, penalty: float = 0.0, change: float = math.inf) -> Candidate:
        """What is known of a point, by a fresh lower solve."""
        problem = self.problem
        lowest = solve_lower(problem, w[: problem.n], w[problem.n :])
        gap = problem.f(w) - lowest.value if math.isfinite(lowest.value) else math.inf  # unknown is never small
        return Candidate(w, problem.F(w), gap, problem.violation(w), penalty, change)

    def good(self, candidate: Candidate) -> bool:
        """Whether it is feasible for both levels."""
        unit = max(self.problem.lower_factor, abs(self.problem.f(candidate.w)))
        return candidate.violation <= FEASIBLE and candidate.gap <= 0.1 * self._tol * unit

    def run(self, k: int, penalties: tuple[float, ...], monitor: Monitor) -> list[Candidate]:
        """The k-th start: its end point, and that restored to lower optimality."""
        problem, local = self.problem, k % 2 == 1
        w = self.start if k < 2 else self._random(k)
        if local:
            restored = restore(problem, w)
            w = w if restored is None else restored
        # The smaller the first penalty, the more starts end in one point: from the relaxed problem all of them do.
        first = 100.0 if local else penalties[min(0 if k == 0 else 1 + (k // 2) % 2, len(penalties) - 1)]
        stages = [c for c in penalties if c >= first] or list(penalties[-1:])
        before, change = math.inf, math.inf
        for c in stages:
            radius = 0.3 * max(1.0, float(self._width.max())) if local else 10 * max(1.0, float(np.abs(w).max()))
            w = self.stage(w, c, radius)
            value = problem.F(w)
            before, change = value, abs(value - before) / max(1.0, abs(value))
            point = lambda w=w: {"x": w[: problem.n], "y": w[problem.n :]}  # noqa: E731
            if not monitor.record(point, start=float(k), penalty=c, fun=value / problem.upper_factor):
                break
        found = [v for v in (w, restore(problem, w)) if v is not None]
        return [self.judge(v, c, change) for v in found]

    def settled(self, best: Candidate) -> Candidate:
        """The same x with y moved to lower optimality by proximal steps, which stop at a near minimiser also where there are many.

        A point within the accepted gap may have an F that no bilevel-feasible point has; this one has not. Where the lower solution
        jumps in x, F does, too, and the candidate stays as it is.
        """
        n, w = self.problem.n, best.w
        y, _ = proximal_steps(self.problem, w[:n], w[n:])
        moved = self.judge(np.concatenate([w[:n], y]), best.penalty, best.change)
        close = abs(moved.value - best.value) <= JUMP * max(1.0, abs(best.value))
        return moved if close and self.good(moved) and moved.gap <= best.gap else best

    def stage(self, w: np.ndarray, c: float, radius: float) -> np.ndarray:
        """Minimise F + c (f - v) over C by SLSQP in a box, which doubles while it is met."""
        problem, n, root = self.problem, self.problem.n, math.sqrt(c)

        def penalised(w: np.ndarray) -> tuple[float, np.ndarray]:
            saddle, slope = self._values.gradient(w[:n], w[n:], self.gamma)
            value = problem.F(w) + c * (problem.f(w) - saddle.value)
            return value / root, (problem.dF(w) + c * (problem.df(w) - slope)) / root

        rows = problem.slsqp_rows()
        for _ in range(DOUBLINGS + 1):
            low, high = np.maximum(w - radius, problem.low), np.minimum(w + radius, problem.high)
            w = np.clip(w, low, high)
            options = {"ftol": 1e-9, "maxiter": 60}
            result = minimize(penalised, w, jac=True, method="SLSQP", constraints=rows, bounds=np.c_[low, high], options=options)
            if not np.all(np.isfinite(result.x)):
                return w
            met, w = float(np.abs(result.x - w).max()) > 0.999 * radius, result.x
            if not met:
                break
            radius *= 2
        return w if problem.violation(w) < 1e-8 else project(problem, w)

    def _random(self, k: int) -> np.ndarray:
        """Uniform where C is bounded, normal around the start where it is not; on C."""
        scale = self._size * (1.0, 3.0, 0.3, 10.0)[k % 4]
        normal = self.start + scale * self._rng.standard_normal(self.start.size)
        bounded = self._high - self._low < 200 * self._size
        drawn = np.where(bounded, self._rng.uniform(self._low, self._high), np.clip(normal, self._low, self._high))
        return project(self.problem, drawn)


def extents(problem: ScaledProblem, w: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """The range of every coordinate over C, linearised at w, in a box around w: 2 (n + m) linear programs."""
    low, high = np.maximum(w - radius, problem.low), np.minimum(w + radius, problem.high)
    found = [low.copy(), high.copy()]
    inequalities: list[tuple[np.ndarray, np.ndarray]] = []
    equalities: list[tuple[np.ndarray, np.ndarray]] = []
    for rows in (problem.lower_rows, problem.upper_rows):
        jacobian = rows.jacobian(w)
        room = jacobian @ w - rows.values(w)
        for mask, into in ((~rows.equality, inequalities), (rows.equality, equalities)):
            into.append((jacobian[mask], room[mask]))
    given: dict[str, np.ndarray] = {}
    for name, parts in (("ub", inequalities), ("eq", equalities)):
        matrix = np.concatenate([a for a, _ in parts])
        if len(matrix):
            given |= {f"A_{name}": matrix, f"b_{name}": np.concatenate([b for _, b in parts])}
    if given:
        for j, side in itertools.product(range(w.size), (0, 1)):
            cost = np.zeros(w.size)
            cost[j] = 1.0 - 2.0 * side
            result = linprog(cost, **given, bounds=np.c_[low, high])
            if result.status == 0:
                found[side][j] = result.x[j]
    return np.minimum(found[0], w), np.maximum(found[1], w)
