"""The search of LV-HBA: kinds of starts in turn, each followed through growing penalties for as long as it may be the best."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linprog, minimize

from otbilevel.bilevel.barrier import SmoothedGap
from otbilevel.bilevel.lower import ROUNDING, proximal_steps, restore, solve_lower
from otbilevel.bilevel.saddle import ValueFunction
from otbilevel.bilevel.scaled import ScaledProblem
from otbilevel.bilevel.slsqp import project

FEASIBLE = 1e-7
"""Violation of rows of length one up to which a point counts as feasible."""
PROXIMAL = 100.0
"""gamma_1 in units of the extent of the feasible set, f having unit gradients: the proximal step must be able to cross that set."""
JUMP = 1e-2
"""Relative change of F from which on moving y to lower optimality counts as a jump."""
STUCK = (4, 5, 6, 7)
"""What SLSQP says when its subproblems have no solution."""
DOUBLINGS = 6
"""Of the radius of a stage, while its box is met."""
FIRST = ("relaxed", "local", "smoothed")
"""Kinds of the first starts, all from where the user starts."""
LATER = ("perturbed", "smoothed", "perturbed", "back", "perturbed", "smoothed", "perturbed", "relaxed")
"""Those of the later ones, over and over."""
MIDDLE = 100.0
"""The first c of starts that are not from the relaxed problem."""
BARRIERS = ((0.1,), (1.0, 0.1, 0.01))
"""Weights of the barrier, in turn."""
PERTURBATIONS = ((1.0, 0.1), (0.3, 0.5), (1.0, 0.3), (1.0, 0.5))
"""Share of the coordinates of x that move, and by how much of their width: large steps end at bounds, where solutions often are."""
NO_BETTER = 1e-6
"""Relative to F."""


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
        Relative change of F between the last two penalties, and that by which lower optimality raises F: small when the upper level
        has settled.
    """

    w: np.ndarray
    value: float
    gap: float
    violation: float
    penalty: float = 0.0
    change: float = math.inf


Gap = Callable[[np.ndarray], tuple[float, np.ndarray]]


class Search:
    """One run from several starts.

    Parameters
    ----------
    problem : ScaledProblem
        The problem.
    start : (n + m,) ndarray
        Where to start; it is projected on C.
    tol : float
        Lower-level gap that is accepted, f having unit gradients.
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
        self._turns: Counter[str] = Counter()

    def judge(self, w: np.ndarray, penalty: float = 0.0, change: float = math.inf) -> Candidate:
        """What is known of a point, by a fresh lower solve."""
        problem = self.problem
        lowest = solve_lower(problem, w[: problem.n], w[problem.n :])
        gap = problem.f(w) - lowest.value if math.isfinite(lowest.value) else math.inf  # unknown is never small
        return Candidate(w, problem.F(w), gap, problem.violation(w), penalty, change)

    def good(self, candidate: Candidate) -> bool:
        """Whether it is feasible for both levels; f has unit gradients, and how large it is must not matter."""
        rounding = ROUNDING * abs(self.problem.f(candidate.w))
        return candidate.violation <= FEASIBLE and candidate.gap <= 0.1 * self._tol + rounding

    def path(self, k: int, penalties: tuple[float, ...], best: Candidate | None) -> Iterator[Candidate]:
        """The k-th start: the point of each penalty, not yet judged, for as long as it may become better than `best`."""
        problem = self.problem
        kind = FIRST[k] if k < len(FIRST) else LATER[(k - len(FIRST)) % len(LATER)]
        w, stages = self._begin(k, kind, penalties, best)
        self._turns[kind] += 1
        before = math.inf
        for c in stages:
            radius = 10 * max(1.0, float(np.abs(w).max())) if kind == "relaxed" else 0.3 * max(1.0, float(self._width.max()))
            w, moving = self.stage(w, c, radius)
            value = problem.F(w)
            change = abs(value - before) / self._unit(value) if moving else math.inf
            yield Candidate(w, value, math.inf, problem.violation(w), c, change)
            if _no_better(value, best):
                return  # F of minimisers grows with c
            before = value

    def ends(self, last: Candidate, best: Candidate | None) -> list[Candidate]:
        """The end of a path, and that restored to lower optimality, judged; nothing when it is no better than `best`."""
        if _no_better(last.value, best):
            return []
        found = [self.judge(last.w, last.penalty, last.change)]
        restored = restore(self.problem, last.w)
        if restored is not None:
            new = self.judge(restored, last.penalty)
            # Lower optimality that costs much tells that c is too small, and then x is not that of the optimum.
            found.append(replace(new, change=max(last.change, (new.value - last.value) / self._unit(new.value))))
        return found

    def _unit(self, value: float) -> float:
        """Of changes of F: its gradient, or max(1, |F|) in the units of the user when that is less."""
        return min(max(1.0, abs(value)), max(self.problem.upper_factor, abs(value)))

    def _begin(self, k: int, kind: str, penalties: tuple[float, ...], best: Candidate | None) -> tuple[np.ndarray, list[float]]:
        """Where the k-th start begins, and its penalties."""
        turn = self._turns[kind]
        if kind == "relaxed":
            # The smaller the first penalty, the more starts end in one point: from the relaxed problem all of them do.
            first = penalties[min(0 if k == 0 else 1 + turn % 2, len(penalties) - 1)]
            return self.start if k == 0 else self._random(k), [c for c in penalties if c >= first]
        if kind == "back" and best:
            first = penalties[min(2 - turn % 2, len(penalties) - 1)]
            return best.w, [c for c in penalties if c >= first]
        late = [c for c in penalties if c >= MIDDLE] or list(penalties[-1:])
        late = [*late[:-1:2], late[-1]]
        w = self.start if k < len(FIRST) else self._perturbed(turn, best) if kind == "perturbed" and best else self._random(k)
        if kind == "smoothed":
            return self._smoothed(w, BARRIERS[turn % len(BARRIERS)]), late
        restored = restore(self.problem, w)
        return w if restored is None else restored, late

    def _smoothed(self, w: np.ndarray, weights: tuple[float, ...]) -> np.ndarray:
        """Where F + c (f_t - v_t) leads for falling t."""
        n = self.problem.n
        hessian = self._values.hessian(w[:n], w[n:], self.gamma)
        for t in weights:
            gap = SmoothedGap(self.problem, t, self.gamma, hessian)
            w, _ = self.stage(w, MIDDLE, 10 * max(1.0, float(np.abs(w).max())), gap, ftol=1e-6)
        return w

    def _perturbed(self, turn: int, best: Candidate) -> np.ndarray:
        """The best point so far, some of its x moved; on C."""
        n, w = self.problem.n, best.w.copy()
        share, size = PERTURBATIONS[turn % len(PERTURBATIONS)]
        chosen = self._rng.random(n) < share
        chosen[self._rng.integers(n)] = True
        w[:n] += chosen * size * self._width[:n] * self._rng.standard_normal(n)
        return project(self.problem, w)

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

    def stage(self, w: np.ndarray, c: float, radius: float, gap: Gap | None = None, ftol: float = 1e-9) -> tuple[np.ndarray, bool]:
        """Minimise F + c (f - v), or F + c gap, over C by SLSQP in a box, which doubles while it is met; and whether it moved."""
        problem, root, gap, moving = self.problem, math.sqrt(c), gap or self._gap, True

        def penalised(w: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = gap(w)
            return (problem.F(w) + c * value) / root, (problem.dF(w) + c * slope) / root

        rows = problem.slsqp_rows()
        for _ in range(DOUBLINGS + 1):
            low, high = np.maximum(w - radius, problem.low), np.minimum(w + radius, problem.high)
            w = np.clip(w, low, high)
            options = {"ftol": ftol, "maxiter": 60}
            result = minimize(penalised, w, jac=True, method="SLSQP", constraints=rows, bounds=np.c_[low, high], options=options)
            if not np.all(np.isfinite(result.x)):
                return w, False
            met, moving = float(np.abs(result.x - w).max()) > 0.999 * radius, result.nit > 1 or result.status not in STUCK
            w = result.x
            if not met:
                break
            radius *= 2
        return w if problem.violation(w) < 1e-8 else project(problem, w), moving

    def _gap(self, w: np.ndarray) -> tuple[float, np.ndarray]:
        """f - v and its gradient."""
        problem, n = self.problem, self.problem.n
        saddle, slope = self._values.gradient(w[:n], w[n:], self.gamma)
        return problem.f(w) - saddle.value, problem.df(w) - slope

    def _random(self, k: int) -> np.ndarray:
        """Uniform where C is bounded, normal around the start where it is not; on C."""
        scale = self._size * (1.0, 3.0, 0.3, 10.0)[k % 4]
        normal = self.start + scale * self._rng.standard_normal(self.start.size)
        bounded = self._high - self._low < 200 * self._size
        drawn = np.where(bounded, self._rng.uniform(self._low, self._high), np.clip(normal, self._low, self._high))
        return project(self.problem, drawn)


def _no_better(value: float, best: Candidate | None) -> bool:
    return best is not None and value >= best.value - NO_BETTER * max(1.0, abs(best.value))


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
