"""Random bilevel problems with coupled constraints, and a reference for them that has nothing to do with value functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import LinearConstraint, minimize


@dataclass(frozen=True)
class CoupledQP:
    """F = |y - t|^2/2 + |x - s|^2/20; f = y'Qy/2 + y'(Bx + b) with singular Q; rows (x, y) <= ub, x in [-2, 2], y in [-3, 3].

    Attributes
    ----------
    n : int
        Dimension of x and of y.
    Q, B, b, rows, ub, t, s : ndarray
        As above.
    """

    n: int
    Q: np.ndarray
    B: np.ndarray
    b: np.ndarray
    rows: np.ndarray
    ub: np.ndarray
    t: np.ndarray
    s: np.ndarray

    def upper(self, x: np.ndarray, y: np.ndarray) -> float:
        """F."""
        return float(0.5 * np.sum((y - self.t) ** 2) + 0.05 * np.sum((x - self.s) ** 2))

    def lower(self, x: np.ndarray, y: np.ndarray) -> float:
        """The lower objective."""
        return float(0.5 * y @ self.Q @ y + y @ (self.B @ x + self.b))

    @property
    def settings(self) -> dict[str, Any]:
        """Gradients, constraints and bounds, as `minimize_bilevel` takes them."""
        return {
            "jac_upper": lambda x, y: (0.1 * (x - self.s), y - self.t),
            "jac_lower": lambda x, y: (self.B.T @ y, self.Q @ y + self.B @ x + self.b),
            "constraints": LinearConstraint(self.rows, ub=self.ub),
            "bounds_x": (-2, 2),
            "bounds_y": (-3, 3),
        }

    def reference(self, starts: int, seed: int) -> float:
        """The least F that a program with the lower level's optimality conditions finds, complementarity relaxed step by step.

        Parameters
        ----------
        starts : int
            Random points to start from.
        seed : int
            Of these.

        Returns
        -------
        float
            F; infinite when no start ended in a point that satisfies the conditions.
        """
        n, rng, best = self.n, np.random.default_rng(seed), np.inf
        E, e = np.vstack([self.rows[:, n:], np.eye(n), -np.eye(n)]), np.concatenate([self.ub, np.full(2 * n, 3.0)])  # noqa: N806
        D = np.vstack([self.rows[:, :n], np.zeros((2 * n, n))])  # noqa: N806
        k, stationary = len(e), np.hstack([self.B, self.Q, E.T])

        def slack(u: np.ndarray) -> np.ndarray:
            return np.asarray(e - D @ u[:n] - E @ u[n : 2 * n])

        def relaxation(size: float) -> dict[str, Any]:
            return {
                "type": "ineq",
                "fun": lambda u: size - u[2 * n :] * slack(u),
                "jac": lambda u: np.hstack([u[2 * n :, None] * D, u[2 * n :, None] * E, -np.diag(slack(u))]),
            }

        fixed = [
            {"type": "eq", "fun": lambda u: stationary @ u + self.b, "jac": lambda _: stationary},
            {"type": "ineq", "fun": slack, "jac": lambda _: np.hstack([-D, -E, np.zeros((k, k))])},
        ]
        bounds = [(-2, 2)] * n + [(-3, 3)] * n + [(0, None)] * k
        for _ in range(starts):
            u = np.concatenate([rng.uniform(-2, 2, n), rng.uniform(-1, 1, n), np.zeros(k)])
            for size in (1.0, 1e-2, 1e-4, 1e-6, 1e-8):
                found = minimize(
                    lambda u: self.upper(u[:n], u[n : 2 * n]),
                    u,
                    jac=lambda u: np.concatenate([0.1 * (u[:n] - self.s), u[n : 2 * n] - self.t, np.zeros(k)]),
                    method="SLSQP",
                    bounds=bounds,
                    constraints=[*fixed, relaxation(size)],
                    options={"ftol": 1e-12, "maxiter": 300},
                )
                u = found.x
            solved = np.abs(stationary @ u + self.b).max() < 1e-6 and slack(u).min() > -1e-7
            if solved and np.max(u[2 * n :] * slack(u)) < 1e-6:
                best = min(best, float(found.fun))
        return best


def random_coupled_qp(n: int, count: int, seed: int) -> CoupledQP:
    """Draw one.

    Parameters
    ----------
    n : int
        Dimension of x and of y.
    count : int
        Rows that couple them, all feasible at 0.
    seed : int
        Of the generator.

    Returns
    -------
    CoupledQP
        The problem.
    """
    rng = np.random.default_rng(seed)
    M = rng.standard_normal((n, n))[max(1, n // 3) :] / np.sqrt(n)  # noqa: N806
    Q = M.T @ M + np.diag(np.where(np.arange(n) < n // 2, 0.5, 0.0))  # noqa: N806
    B, b = rng.standard_normal((n, n)) / np.sqrt(n), rng.standard_normal(n)  # noqa: N806
    rows = np.hstack([rng.standard_normal((count, n)), rng.standard_normal((count, n))]) / np.sqrt(n)
    ub = rng.uniform(0.2, 1.0, count)
    return CoupledQP(n, Q, B, b, rows, ub, 2 * rng.standard_normal(n), rng.standard_normal(n))
