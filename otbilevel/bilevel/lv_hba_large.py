"""LV-HBA without matrices, for hundreds of variables and more: saddle points by Newton-CG, outer steps by L-BFGS.

The constraints of both levels enter by augmented Lagrangians, that of the value function with z, the multiplier that Yao et al.
(2024) carry along. The bias of a penalty is a/c + b/c^2: two of them remove the first term.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.optimize import minimize

from otbilevel.bilevel.constraints import Rows
from otbilevel.bilevel.problem import BilevelProblem
from otbilevel.bilevel.result import BilevelResult
from otbilevel.bilevel.task import SETTLED, Task
from otbilevel.linalg.cg import cg

NEWTON, ROUNDS, POLISH = 30, 12, 3
"""Newton steps for a saddle point, and rounds of multipliers for a penalty."""
PROXIMAL, PROXIMAL_STEPS = 100.0, 40
"""gamma in units of the size of y, for f of unit gradients; steps of the lower solve that proves a point."""


def solve(task: Task, penalties: tuple[float, ...]) -> BilevelResult:
    """Run through the penalties, extrapolate from the last two, and take that point when it is feasible and optimal below."""
    run, before, change = LargeLVHBA(task.problem, task.start, task.rng), None, math.inf
    value = math.inf
    for c in penalties:
        before = run.w
        run.penalise(c)
        old, value = value, task.problem.upper.value(run.w)
        change = abs(value - old) / max(1.0, abs(value))
        point = lambda: {"x": run.w[: task.problem.n], "y": run.w[task.problem.n :]}  # noqa: E731
        if not task.monitor.record(point, penalty=c, fun=value):
            break
    candidates = [run.w]
    if len(penalties) > 1 and not task.monitor.stopped:
        ratio = penalties[-1] / penalties[-2]
        extrapolated = run.w + (run.w - before) / (ratio - 1.0)
        candidates.insert(0, np.clip(extrapolated, task.problem.low, task.problem.high))
    for k, w in enumerate(candidates):
        gap = run.gap(w)
        good = gap <= task.tol * max(1.0, abs(task.problem.lower.value(w))) and task.problem.violation(w) <= 0.1 * task.tol
        if good or k == len(candidates) - 1:
            break
    lam = run.saddle.rows.scale * run.saddle.solve(w[: task.problem.n], w[task.problem.n :])[1] / run.lower_factor
    how = "saddle points by Newton-CG, without matrices" + (", extrapolated in 1/c" if k == 0 and len(candidates) > 1 else "")
    return task.result(w, gap=gap, stationarity=change, settled=change <= SETTLED, multipliers=lam, penalty=c, how=how)


@dataclass
class Augmented:
    """The augmented Lagrangian of rows, (|lam(w)|^2 - |z|^2) / (2 rho), lam = z + rho c(w), for inequalities its positive part.

    Attributes
    ----------
    rows : Rows
        c(w).
    scale : (k,) ndarray
        Factors of the rows.
    z : (k,) ndarray
        Multipliers.
    rho : float
        Penalty.
    """

    rows: Rows
    scale: np.ndarray
    z: np.ndarray
    rho: float

    def multipliers(self, w: np.ndarray) -> np.ndarray:
        """lam(w)."""
        lam = self.z + self.rho * self.scale * self.rows.values(w)
        return np.asarray(np.where(self.rows.equality, lam, np.maximum(lam, 0.0)))

    def value(self, lam: np.ndarray) -> float:
        """psi, from lam."""
        return float(lam @ lam - self.z @ self.z) / (2 * self.rho)

    def force(self, w: np.ndarray, lam: np.ndarray) -> np.ndarray:
        """The gradient of psi, J' lam."""
        return self.rows.vjp(w, self.scale * lam)

    def violation(self, w: np.ndarray) -> float:
        """The largest violation of a row of length one."""
        values = self.scale * self.rows.values(w)
        return float(np.max(np.where(self.rows.equality, np.abs(values), values), initial=0.0))


class Saddle:
    """v(x, y) and its gradient: theta by projected Newton-CG, products with the Hessian by differences of gradients.

    Parameters
    ----------
    problem : BilevelProblem
        The problem.
    factor : float
        Of f.
    gamma : float
        Proximal parameter.
    rows : Augmented
        The lower rows, with z.
    """

    def __init__(self, problem: BilevelProblem, factor: float, gamma: float, rows: Augmented) -> None:
        self._problem, self._factor, self.gamma, self.rows = problem, factor, gamma, rows
        self._low, self._high = problem.low[problem.n :], problem.high[problem.n :]
        self.theta: np.ndarray | None = None

    def solve(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """theta and lam at (x, y), from the last theta."""
        theta = np.clip(y if self.theta is None else self.theta, self._low, self._high)
        before = math.inf
        for _ in range(NEWTON):
            value, slope = self._evaluate(x, y, theta)
            free = ~(((theta <= self._low) & (slope > 0)) | ((theta >= self._high) & (slope < 0)))
            size = float(np.linalg.norm(slope[free]))
            if size <= 1e-10 * (1 + np.linalg.norm(theta)) / self.gamma or (size < 1e-8 and size > 0.3 * before):
                break  # solved, or as well as rounding allows
            before = size
            step = self._newton(x, y, theta, slope, free)
            moved = self._search(x, y, theta, step, value, slope)
            if moved is None:
                break
            theta = moved
        self.theta = theta
        return theta, self.rows.multipliers(np.concatenate([x, theta]))

    def gradient(self, w: np.ndarray) -> tuple[float, np.ndarray]:
        """v and its gradient in (x, y)."""
        n = self._problem.n
        x, y = w[:n], w[n:]
        theta, lam = self.solve(x, y)
        at = np.concatenate([x, theta])
        value = self._factor * self._problem.lower.value(at) + (theta - y) @ (theta - y) / (2 * self.gamma) + self.rows.value(lam)
        in_x = self._factor * self._problem.lower.gradient(at)[:n] + self.rows.force(at, lam)[:n]
        return float(value), np.concatenate([in_x, (y - theta) / self.gamma])

    def _evaluate(self, x: np.ndarray, y: np.ndarray, theta: np.ndarray) -> tuple[float, np.ndarray]:
        n, at = self._problem.n, np.concatenate([x, theta])
        lam = self.rows.multipliers(at)
        value = self._factor * self._problem.lower.value(at) + (theta - y) @ (theta - y) / (2 * self.gamma) + self.rows.value(lam)
        slope = self._factor * self._problem.lower.gradient(at)[n:] + self.rows.force(at, lam)[n:] + (theta - y) / self.gamma
        return float(value), slope

    def _newton(self, x: np.ndarray, y: np.ndarray, theta: np.ndarray, slope: np.ndarray, free: np.ndarray) -> np.ndarray:
        """Minus the inverse Hessian times the slope, on the free variables."""
        h = 1e-4 * max(1.0, float(np.linalg.norm(theta)) / math.sqrt(theta.size))

        slope_at = lambda t: self._evaluate(x, y, t)[1]  # noqa: E731
        product = partial(_difference, slope_at, theta, slope, free, h * math.sqrt(theta.size))
        operator = _Products(product, int(free.sum()))
        step = np.zeros_like(theta)
        found = cg(operator, -slope[free], tol=1e-5, max_iter=60, verify=False)
        step[free] = found.x if np.any(found.x) else -self.gamma * slope[free]
        return step

    def _search(
        self, x: np.ndarray, y: np.ndarray, theta: np.ndarray, step: np.ndarray, value: float, slope: np.ndarray
    ) -> np.ndarray | None:
        """The first point along the projected step at which the value falls enough."""
        for t in 0.5 ** np.arange(30):
            moved = np.clip(theta + t * step, self._low, self._high)
            new = self._evaluate(x, y, moved)[0]
            if new <= value + 1e-4 * float(slope @ (moved - theta)) + 1e-14 * (1 + abs(value)):
                found: np.ndarray = moved
                return found if np.any(found != theta) else None
        return None


def _difference(
    gradient: Callable[[np.ndarray], np.ndarray], at: np.ndarray, base: np.ndarray, free: np.ndarray, h: float, p: np.ndarray
) -> np.ndarray:
    """The Hessian times p on the free variables, by a difference of gradients over a distance of h."""
    full = np.zeros_like(at)
    full[free] = p
    t = h / max(float(np.linalg.norm(p)), 1e-300)
    found: np.ndarray = (gradient(at + t * full) - base)[free] / t
    return found


@dataclass
class _Products:
    matvec: Callable[[np.ndarray], np.ndarray]
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.size


def _usable(problem: BilevelProblem, w: np.ndarray) -> bool:
    try:
        return bool(np.all(np.isfinite(problem.upper.gradient(w) + problem.lower.gradient(w))))
    except (ArithmeticError, ValueError):
        return False


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
        w = np.clip(start, problem.low, problem.high)
        spread = max(1.0, float(np.abs(w).max()))
        near = [np.clip(w + spread * rng.standard_normal(w.size), problem.low, problem.high) for _ in range(4)]
        points = [v for v in (w, *near) if _usable(problem, v)] or [w]
        self.upper_factor = 1.0 / max(1e-8, float(np.median([np.linalg.norm(problem.upper.gradient(v)) for v in points])))
        self.lower_factor = 1.0 / max(1e-8, float(np.median([np.linalg.norm(problem.lower.gradient(v)[n:]) for v in points])))
        size = max(math.sqrt(problem.m), float(np.linalg.norm(w[n:])))
        self.gamma = PROXIMAL * size
        scales = []
        for rows in (problem.lower_rows, problem.upper_rows):
            lengths = rows.lengths(w)
            scales.append(1.0 / np.where(lengths > 1e-8, lengths, 1.0))
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
        theta, lam, left = y, rows.z, math.inf
        for _ in range(PROXIMAL_STEPS):
            fresh.theta = None
            new, lam = fresh.solve(x, theta)
            left = float(np.linalg.norm(new - theta)) / fresh.gamma
            theta, rows.z = new, lam
            if left * self._size < 1e-11 and rows.violation(np.concatenate([x, theta])) < 1e-9 * self._size:
                break
        at = np.concatenate([x, theta])
        bound = self.lower_factor * problem.lower.value(at) + lam @ (rows.scale * problem.lower_rows.values(at))
        bound -= left * float(np.linalg.norm(y - theta))
        if not math.isfinite(bound) or rows.violation(at) > 1e-5 * self._size:
            return math.inf
        return float(self.lower_factor * problem.lower.value(w) - bound) / self.lower_factor

    def penalise(self, c: float) -> np.ndarray:
        """Minimise (F + c (f - v)) / c under the rows, by rounds of L-BFGS and multipliers."""
        problem, saddle = self.problem, self.saddle
        for rows in self._outer:
            rows.rho = 10.0 / self._size
        self._outer[0].z = saddle.rows.z.copy()

        def penalised(w: np.ndarray) -> tuple[float, np.ndarray]:
            v, slope = saddle.gradient(w)
            value = self.upper_factor / c * problem.upper.value(w) + self.lower_factor * problem.lower.value(w) - v
            total = self.upper_factor / c * problem.upper.gradient(w) + self.lower_factor * problem.lower.gradient(w) - slope
            for rows in self._outer:
                lam = rows.multipliers(w)
                value, total = value + rows.value(lam), total + rows.force(w, lam)
            return c * value, c * total

        for _ in range(ROUNDS):
            before = self.w
            result = minimize(
                penalised,
                self.w,
                jac=True,
                method="L-BFGS-B",
                bounds=np.c_[problem.low, problem.high],
                options={"maxiter": 200, "maxcor": 20, "ftol": 0.0, "gtol": 1e-10},
            )
            self.w = self._polished(result.x, lambda w: penalised(w)[1])
            saddle.rows.z = saddle.solve(self.w[: problem.n], self.w[problem.n :])[1]
            for rows in self._outer:
                rows.z = rows.multipliers(self.w)
            violation = max(rows.violation(self.w) for rows in self._outer)
            if violation < 1e-9 * self._size and np.linalg.norm(self.w - before) < 1e-8 * (1 + np.linalg.norm(self.w)):
                break
        return np.asarray(self.w)

    def _polished(self, w: np.ndarray, gradient: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Newton steps on the gradient: values are differences of large numbers, and tell L-BFGS nothing any more."""
        low, high = self.problem.low, self.problem.high
        slope = gradient(w)
        for _ in range(POLISH):
            free = ~(((w <= low) & (slope > 0)) | ((w >= high) & (slope < 0)))
            size = float(np.linalg.norm(slope[free]))
            h = 1e-5 * max(1.0, float(np.linalg.norm(w)) / math.sqrt(w.size)) * math.sqrt(w.size)

            product = partial(_difference, gradient, w, slope, free, h)
            step = np.zeros_like(w)
            step[free] = cg(_Products(product, int(free.sum())), -slope[free], tol=1e-3, max_iter=30, verify=False).x
            moved = np.clip(w + step, low, high)
            new = gradient(moved)
            near = float(np.linalg.norm(step)) <= 1e-2 * math.sqrt(w.size) * max(1.0, float(np.abs(w).max()))
            if not near or not float(np.linalg.norm(new[free])) < 0.5 * size:
                break  # farther away there are other stationary points than minima
            w, slope = moved, new
        return np.asarray(w)
