"""The lower level with a logarithmic barrier instead of its inequalities, and the gap of that: a smooth landscape to start in.

With f_t = f + t sum B(-g_i) the lower solution is a smooth function of x, and the many local optima of the upper level that come
from changes of the active set are gone for large t. Only gradients of f and g are taken, as for the value function itself.
"""

from __future__ import annotations

import numpy as np

from otbilevel.bilevel.qp import solve_qp
from otbilevel.bilevel.scaled import ScaledProblem

NEAR = 1e-2
"""Slack of rows of length one below which the logarithm goes on as a parabola: points on the boundary have a value, too."""
STEPS = 30
"""Of Newton's method."""


class SmoothedGap:
    """f_t(x, y) - v_t(x, y) with v_t(x, y) = min_theta f_t(x, theta) + |theta - y|^2/(2 gamma), equalities as they are.

    Parameters
    ----------
    problem : ScaledProblem
        The problem.
    t : float
        Weight of the barrier.
    gamma : float
        The proximal parameter.
    hessian : (m, m) ndarray
        That of f in y, roughly; it steers Newton's method only.
    """

    def __init__(self, problem: ScaledProblem, t: float, gamma: float, hessian: np.ndarray) -> None:
        self._problem, self._t, self._gamma, self._hessian = problem, t, gamma, hessian
        self._theta: np.ndarray | None = None

    def __call__(self, w: np.ndarray) -> tuple[float, np.ndarray]:
        """The gap and its gradient in (x, y)."""
        n = self._problem.n
        value, slope, _ = self._smoothed(w)
        theta, lam = self._solve(w[:n], w[n:])
        at, apart = np.concatenate([w[:n], theta]), w[n:] - theta
        least, other, _ = self._smoothed(at)
        equality = self._problem.equality
        slope[:n] -= other[:n] + self._problem.dg(at)[equality, :n].T @ lam
        slope[n:] -= apart / self._gamma
        return value - least - float(apart @ apart) / (2 * self._gamma), slope

    def _smoothed(self, w: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """f_t, its gradient, and the curvature of the barrier in y without that of the rows."""
        problem, rows = self._problem, ~self._problem.equality
        slack, jacobian = -problem.g(w)[rows], problem.dg(w)[rows]
        s, d = np.maximum(slack, NEAR), np.minimum(slack - NEAR, 0.0) / NEAR
        value = problem.f(w) + self._t * float(np.sum(-np.log(s) - d + d * d / 2))
        force, curvature = self._t * (1 - d) / s, self._t / s**2
        in_y = jacobian[:, problem.n :]
        return value, problem.df(w) + jacobian.T @ force, (in_y.T * curvature) @ in_y

    def _solve(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """theta, from the one before, and the multipliers of equalities."""
        problem, n, gamma = self._problem, self._problem.n, self._gamma
        equality = problem.equality
        theta = y if self._theta is None or equality.any() else self._theta
        lam, only = np.zeros(int(equality.sum())), np.ones(int(equality.sum()), bool)

        def prox(theta: np.ndarray) -> float:
            return float((theta - y) @ (theta - y)) / (2 * gamma)

        value, slope, curvature = self._smoothed(np.concatenate([x, theta]))
        for _ in range(STEPS):
            at = np.concatenate([x, theta])
            gradient = slope[n:] + (theta - y) / gamma
            matrix = self._hessian + curvature + np.eye(y.size) / gamma
            step = solve_qp(matrix, gradient, problem.dg(at)[equality, n:], -problem.g(at)[equality], only)
            d, lam, decrease = step.d, step.multipliers, float(gradient @ step.d)
            if -decrease <= 1e-13 * (1 + abs(value)):
                break
            for size in 0.5 ** np.arange(20):
                new = self._smoothed(np.concatenate([x, theta + size * d]))
                if new[0] + prox(theta + size * d) <= value + prox(theta) + 1e-4 * size * decrease:
                    break
            else:
                break
            theta, (value, slope, curvature) = theta + size * d, new
        self._theta = theta
        return theta, lam
