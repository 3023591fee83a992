"""LV-HBA without matrices, for hundreds of variables and more: saddle points by Newton-CG, outer steps by L-BFGS.

The constraints of both levels enter by augmented Lagrangians, that of the value function with z, the multiplier that Yao et al.
(2024) carry along. The bias of a penalty is a/c + b/c^2: two of them remove the first term.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import minimize

from otbilevel.bilevel.constraints import Rows
from otbilevel.bilevel.problem import BilevelProblem
from otbilevel.bilevel.result import BilevelResult
from otbilevel.bilevel.saddle_large import Augmented, Box, Products, Saddle
from otbilevel.bilevel.scaled import row_scales
from otbilevel.bilevel.task import SETTLED, Task
from otbilevel.linalg.cg import cg

ROUNDS, POLISH = 12, 3
"""Rounds of multipliers for a penalty, and Newton steps in a round."""
STATIONARY = 1e-5
"""Norm of the gradient of F + c (f - v) at which L-BFGS ends, F having unit gradients; Newton steps go a thousand times as far."""
LOOSE, FEASIBLE = 1e-4, 1e-8
"""Violation, relative to the size of y, at which rounds end: of points on the way, where larger ones lead to other optima, and of
those that the result is made from."""
SAMPLES = 4
"""Points around the start, at which lengths are measured."""
UNSETTLED = 1e-8
"""Gradient that a lower solve left, times the size of y, from which on its bound proves nothing: the minimum may be farther."""
LARGE = 200
"""n + m from which on there are no matrices."""
PROXIMAL, PROXIMAL_STEPS = 100.0, 40
"""gamma in units of the size of y, for f of unit gradients; steps of the lower solve that proves a point."""


def suits(problem: BilevelProblem) -> bool:
    """Whether a problem is large, and its lower level without inequalities."""
    bounds = np.concatenate([problem.low[problem.n :], problem.high[problem.n :]])
    return problem.n + problem.m >= LARGE and bool(problem.lower_rows.equality.all()) and not np.isfinite(bounds).any()


def solve(task: Task, penalties: tuple[float, ...]) -> BilevelResult:
    """Run through the penalties, extrapolate from the last two, and take that point when it is feasible and optimal below."""
    run, before, change = LargeLVHBA(task.problem, task.start, task.rng), None, math.inf
    value, broken = math.inf, ""
    for k, c in enumerate(penalties):
        before = run.w
        try:
            # All but the last two only lead there.
            run.penalise(c, violation=FEASIBLE if k >= len(penalties) - 2 else LOOSE)
            old, value = value, task.problem.upper.value(run.w)
        except FloatingPointError as error:
            run.w, change, broken = before, math.inf, f"; it broke down: {error}"
            break
        change = abs(value - old) / max(1.0, abs(value))
        point = lambda: {"x": run.w[: task.problem.n], "y": run.w[task.problem.n :]}  # noqa: E731
        if not task.monitor.record(point, penalty=c, fun=value):
            break
    candidates = [run.w]
    if len(penalties) > 1 and not task.monitor.stopped and not broken:
        ratio = penalties[-1] / penalties[-2]
        extrapolated = run.w + (run.w - before) / (ratio - 1.0)
        candidates.insert(0, np.clip(extrapolated, task.problem.low, task.problem.high))
    unit = 1.0 / run.lower_factor
    for k, candidate in enumerate(candidates):
        w, gap, lam = _settled(run, candidate, 1e-3 * task.tol)
        good = gap <= task.tol * min(max(1.0, abs(task.problem.lower.value(w))), unit)
        if (good and task.problem.violation(w) <= 0.1 * task.tol) or k == len(candidates) - 1:
            break
    how = "saddle points by Newton-CG, without matrices" + (", extrapolated in 1/c" if k == 0 and len(candidates) > 1 else "")
    return task.result(
        w,
        gap=gap,
        unit=unit,
        stationarity=change,
        settled=change <= SETTLED,
        advice="more penalties",
        multipliers=lam,
        penalty=c,
        how=how + broken,
    )


def _settled(run: LargeLVHBA, w: np.ndarray, tol: float) -> tuple[np.ndarray, float, np.ndarray]:
    """A feasible point near w, its gap, and the multipliers of the lower rows; w, infinity and zeros where functions fail."""
    n = run.problem.n
    try:
        found = feasible(run.problem, w, tol)
        gap, lam = run.gap(found), run.saddle.solve(found[:n], found[n:]).lam
    except FloatingPointError:
        return w, math.inf, np.zeros(run.problem.lower_rows.count)
    return found, gap, run.saddle.rows.scale * lam / run.lower_factor


def feasible(problem: BilevelProblem, w: np.ndarray, tol: float) -> np.ndarray:
    """A point near w that violates rows by at most `tol`, by Gauss-Newton steps of least norm; w itself when these do not help."""
    found = w
    for _ in range(4):
        if problem.violation(found) <= tol:
            return found
        for rows in (problem.lower_rows, problem.upper_rows):
            values = rows.values(found)
            active = rows.equality | (values > 0)
            if active.any():
                found = found - _least(rows, found, values, active)
        found = np.clip(found, problem.low, problem.high)
    return found if problem.violation(found) < problem.violation(w) else w


def _least(rows: Rows, w: np.ndarray, values: np.ndarray, active: np.ndarray) -> np.ndarray:
    """J' (J J')^-1 c for the active rows, by products."""

    def back(mu: np.ndarray) -> np.ndarray:
        full = np.zeros_like(values)
        full[active] = mu
        return rows.vjp(w, full)

    def product(mu: np.ndarray) -> np.ndarray:
        step = back(mu)
        t = 1e-4 * max(1.0, float(np.linalg.norm(w))) / max(float(np.linalg.norm(step)), 1e-300)
        return np.asarray((rows.values(w + t * step) - values)[active] / t)

    residual = values[active]
    return back(cg(Products(product, residual.size), residual, tol=1e-6, max_iter=200, verify=False).x)


def _difference(
    gradient: Callable[[np.ndarray], np.ndarray], at: np.ndarray, base: np.ndarray, free: Any, h: float, p: np.ndarray
) -> np.ndarray:
    """The Hessian times p on the free variables, by a difference of gradients over a distance of h."""
    moved, t = at.copy(), h / max(float(np.linalg.norm(p)), 1e-300)
    moved[free] += t * p
    return np.asarray((gradient(moved) - base)[free] / t)


class LargeLVHBA:
    """One run of growing penalties.

    Parameters
    ----------
    problem : BilevelProblem
        The problem.
    start : (n + m,) ndarray
        Where to start.
    rng : numpy.random.Generator
        Draws points around it, at which lengths are measured.
    """

    def __init__(self, problem: BilevelProblem, start: np.ndarray, rng: np.random.Generator) -> None:
        self.problem, n = problem, problem.n
        self._box = Box(problem.low, problem.high)
        w = self._box.clip(start)
        points = problem.around(w, rng, SAMPLES, jacobians=False)
        self.upper_factor, self.lower_factor = problem.factors(points)
        size = max(math.sqrt(problem.m), float(np.linalg.norm(w[n:])))
        self.gamma = PROXIMAL * size
        scales = []
        for rows in (problem.lower_rows, problem.upper_rows):
            scales.append(row_scales(rows.lengths(w), np.abs(rows.values(w))))
        # f has unit gradients, and the set the extent `size`: what a unit of violation costs must balance that.
        lower = Augmented(problem.lower_rows, scales[0], np.zeros(problem.lower_rows.count), 1.0 / size)
        self.saddle = Saddle(problem, self.lower_factor, self.gamma, lower)
        self._outer = [
            Augmented(rows, scale, np.zeros(rows.count), 1.0 / size)
            for rows, scale in zip((problem.lower_rows, problem.upper_rows), scales, strict=True)
        ]
        self._size = size
        self.w = w

    def gap(self, w: np.ndarray) -> float:
        """f minus a lower bound of the lower optimum at x, the dual function at multipliers of a fresh solve.

        Proximal steps from y: with theta and lam of a step, f + lam' g >= f(theta) + lam' g(theta) - |r| |. - theta| for the
        residual r of its optimality.
        """
        problem, n = self.problem, self.problem.n
        x, y = w[:n], w[n:]
        rows = Augmented(problem.lower_rows, self.saddle.rows.scale, np.zeros(problem.lower_rows.count), 1.0 / self._size)
        fresh = Saddle(problem, self.lower_factor, 10.0 * self.gamma, rows)
        theta, left = y, math.inf
        for _ in range(PROXIMAL_STEPS):
            fresh.theta = None
            found = fresh.solve(x, theta)
            left = float(np.linalg.norm(found.theta - theta)) / fresh.gamma
            theta, rows.z = found.theta, found.lam
            if left * self._size < 1e-11 and rows.violation(np.concatenate([x, theta])) < 1e-9 * self._size:
                break
        at = np.concatenate([x, theta])
        bound = self.lower_factor * problem.lower.value(at) + rows.z @ (rows.scale * problem.lower_rows.values(at))
        bound -= left * float(np.linalg.norm(y - theta))
        if not math.isfinite(bound) or rows.violation(at) > 1e-5 * self._size or left * self._size > UNSETTLED:
            return math.inf
        return float(self.lower_factor * problem.lower.value(w) - bound) / self.lower_factor

    def penalise(self, c: float, *, violation: float) -> None:
        """Minimise F + c (f - v) under the rows, to a violation relative to the size of y.

        After the first round multipliers change little: Newton steps do then, where L-BFGS would start from nothing.
        """
        problem, saddle = self.problem, self.saddle
        for rows in self._outer:
            rows.rho = 10.0 / self._size
        self._outer[0].z = saddle.rows.z.copy()

        def penalised(w: np.ndarray) -> tuple[float, np.ndarray]:
            v, slope = saddle.gradient(w)
            value = self.upper_factor / c * problem.upper.value(w) + self.lower_factor * problem.lower.value(w) - v
            total = self.upper_factor / c * problem.upper.gradient(w)
            total += self.lower_factor * problem.lower.gradient(w)
            total -= slope
            for rows in self._outer:
                if rows.rows.count:
                    lam = rows.multipliers(w)
                    value += rows.value(lam)
                    total += rows.force(w, lam)
            return c * value, c * total

        for k in range(ROUNDS):
            left = math.inf
            if k > 0:
                self.w, left = self._polished(self.w, lambda w: penalised(w)[1])
            if left > STATIONARY:
                self.w = minimize(
                    penalised,
                    self.w,
                    jac=True,
                    method="L-BFGS-B",
                    bounds=np.c_[problem.low, problem.high] if self._box.bounded else None,
                    options={"maxiter": 1000, "maxcor": 20, "ftol": 0.0, "gtol": STATIONARY / math.sqrt(self.w.size)},
                ).x
            saddle.rows.z = saddle.solve(self.w[: problem.n], self.w[problem.n :]).lam
            for rows in self._outer:
                rows.z = rows.multipliers(self.w)
            if max(rows.violation(self.w) for rows in self._outer) <= violation * self._size and (k > 0 or violation == LOOSE):
                break

    def _polished(self, w: np.ndarray, gradient: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, float]:
        """Newton steps on the gradient, and its norm: values are differences of large numbers, and at last tell L-BFGS nothing."""
        slope, root = gradient(w), math.sqrt(w.size)
        for _ in range(POLISH):
            free = self._box.free(w, slope)
            size = float(np.linalg.norm(slope[free]))
            if size <= 1e-3 * STATIONARY:
                break
            step = np.zeros_like(w)
            product = partial(_difference, gradient, w, slope, free, 1e-5 * max(root, float(np.linalg.norm(w))))
            step[free] = cg(Products(product, slope[free].size), -slope[free], tol=1e-3, max_iter=30, verify=False).x
            moved = self._box.clip(w + step)
            new = gradient(moved)
            near = float(np.linalg.norm(step)) <= 1e-2 * root * max(1.0, float(np.abs(w).max()))
            if not near or not float(np.linalg.norm(new[free])) < 0.5 * size:
                break  # farther away there are other stationary points than minima
            w, slope = moved, new
        return w, float(np.linalg.norm(slope[self._box.free(w, slope)]))
