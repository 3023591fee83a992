"""LV-HBA's proximal Lagrangian value function, its saddle point solved exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from otbilevel.bilevel.qp import solve_qp
from otbilevel.bilevel.scaled import ScaledProblem

ROOM = 1e-10
"""By which rows are relaxed: rows that meet in a point are otherwise infeasible by rounding."""
ROUNDING = 1e-14
"""Relative decrease of an objective that is noise."""
MISFIT = 1e-5
"""Relative error of a predicted change of the gradient from which the Hessian is computed anew."""


@dataclass(frozen=True)
class SaddlePoint:
    """theta and lam of v(x, y) = min_theta f(x, theta) + |theta - y|^2/(2 gamma) s.t. g(x, theta) <= 0.

    Attributes
    ----------
    theta : (m,) ndarray
        The minimiser.
    lam : (k,) ndarray
        Multipliers of the lower rows, those of bounds at the end.
    value : float
        v(x, y).
    """

    theta: np.ndarray
    lam: np.ndarray
    value: float


class ValueFunction:
    """v(x, y) and its gradient by sequential quadratic programming in theta: one program where f is quadratic and g affine.

    The Hessian of the lower Lagrangian in y comes from m differences of gradients, or that of f by m products with `hvp_yy`. It is
    kept from point to point as long as it predicts how gradients change.

    Parameters
    ----------
    problem : ScaledProblem
        The problem.
    """

    def __init__(self, problem: ScaledProblem) -> None:
        self._problem = problem
        self._hessian: np.ndarray | None = None

    def gradient(self, x: np.ndarray, y: np.ndarray, gamma: float) -> tuple[SaddlePoint, np.ndarray]:
        """The saddle point at (x, y), and the gradient of v in (x, y) (Yao et al., 2024, Lemma 3.1)."""
        problem, n = self._problem, self._problem.n
        saddle = self.solve(x, y, gamma)
        at = np.concatenate([x, saddle.theta])
        in_x = problem.df(at)[:n] + problem.force(at, saddle.lam)[:n]
        return saddle, np.concatenate([in_x, (y - saddle.theta) / gamma])

    def solve(self, x: np.ndarray, y: np.ndarray, gamma: float, *, tol: float = 1e-10, max_iter: int = 30) -> SaddlePoint:
        """The saddle point at (x, y); theta starts from y, which is feasible when (x, y) is."""
        problem = self._problem
        state = _Point(problem, x, y.copy(), y, gamma)
        lam, weight, refresh = np.zeros(len(problem.equality)), 1.0, self._hessian is None
        for _ in range(max_iter):
            fresh = refresh
            if refresh or self._hessian is None:
                self._hessian = self._differences(x, state, lam)
            slope = state.grad + (state.theta - y) / gamma
            room = np.where(problem.equality, 0.0, ROOM) - state.g
            step = solve_qp(self._hessian + np.eye(y.size) / gamma, slope, state.jacobian, room, problem.equality)
            d, out = step.d, state.violation()
            weight = max(weight, 2.0 * float(np.abs(step.multipliers).max(initial=0.0)))
            still = np.linalg.norm(d) <= tol * (1 + np.linalg.norm(state.theta))
            noise = ROUNDING * (1 + abs(state.f))
            if (still or weight * out - slope @ d <= noise) and out < 1e-9:
                return SaddlePoint(state.theta, step.multipliers, state.objective)
            new = state.search(d, weight, slope @ d - weight * out, noise)
            if new is None:
                lam = step.multipliers
                if fresh:
                    break
                refresh = True
                continue
            change = new.grad - state.grad + (new.jacobian - state.jacobian).T @ step.multipliers
            error = np.linalg.norm(change - self._hessian @ (new.theta - state.theta))
            refresh = bool(error > MISFIT * (1 + np.linalg.norm(change)))
            state, lam = new, step.multipliers
        return SaddlePoint(state.theta, lam, state.objective)

    def hessian(self, x: np.ndarray, y: np.ndarray, gamma: float) -> np.ndarray:
        """The Hessian of the lower Lagrangian in y that is in use, its negative part left out."""
        if self._hessian is None:
            self.solve(x, y, gamma)
        return np.zeros((y.size, y.size)) if self._hessian is None else self._hessian

    def _differences(self, x: np.ndarray, state: _Point, lam: np.ndarray) -> np.ndarray:
        """The Hessian of the lower Lagrangian in y, its negative part left out."""
        problem, n, m = self._problem, self._problem.n, state.theta.size
        base = state.grad + state.jacobian.T @ lam
        here, eye, hessian = np.concatenate([x, state.theta]), np.eye(m), np.empty((m, m))
        for j in range(m):
            moved = state.theta.copy()
            moved[j] += 1e-6 * max(1.0, abs(moved[j]))
            at, h = np.concatenate([x, moved]), moved[j] - state.theta[j]
            if problem.has_hvp:
                hessian[:, j] = problem.hvp(here, eye[j]) + (problem.force(at, lam)[n:] - state.jacobian.T @ lam) / h
            else:
                hessian[:, j] = (problem.df(at)[n:] + problem.force(at, lam)[n:] - base) / h
        values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
        positive: np.ndarray = (vectors * np.maximum(values, 0.0)) @ vectors.T
        return positive


class _Point:
    """All that is known of the proximal problem at theta."""

    def __init__(self, problem: ScaledProblem, x: np.ndarray, theta: np.ndarray, y: np.ndarray, gamma: float) -> None:
        self._problem, self._x, self._y, self._gamma, self.theta = problem, x, y, gamma, theta
        at = np.concatenate([x, theta])
        self.f, self.g = problem.f(at), problem.g(at)
        self.objective = self.f + float((theta - y) @ (theta - y)) / (2 * gamma)
        self.grad, self.jacobian = problem.df(at)[problem.n :], problem.dg(at)[:, problem.n :]

    def violation(self) -> float:
        """The l1 norm of what rows are violated by."""
        return _out(self.g, self._problem.equality)

    def search(self, d: np.ndarray, weight: float, decrease: float, noise: float) -> _Point | None:
        """The first point along d at which the l1 merit falls enough."""
        problem, before = self._problem, self.objective + weight * self.violation()
        for t in 0.5 ** np.arange(25):
            theta = self.theta + t * d
            at = np.concatenate([self._x, theta])
            value = problem.f(at) + float((theta - self._y) @ (theta - self._y)) / (2 * self._gamma)
            if value + weight * _out(problem.g(at), problem.equality) <= before + 1e-4 * t * decrease + noise:
                return _Point(problem, self._x, theta, self._y, self._gamma)
        return None


def _out(g: np.ndarray, equality: np.ndarray) -> float:
    beyond = np.where(equality, np.abs(g), g) - 2 * ROOM  # what relaxed rows allow is no violation, or else nothing is small enough
    return float(np.sum(np.maximum(beyond, 0.0)))
