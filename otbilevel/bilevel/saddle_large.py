"""LV-HBA's value function without matrices: its saddle point by projected Newton-CG on an augmented Lagrangian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from otbilevel.bilevel.constraints import Rows, worst
from otbilevel.bilevel.problem import BilevelProblem
from otbilevel.linalg.cg import cg

NEWTON = 30
"""Newton steps for a saddle point."""


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
        return worst(self.scale * self.rows.values(w), self.rows.equality)


@dataclass(frozen=True)
class Box:
    """Bounds of a vector; without finite ones nothing is compared or clipped, which costs as much as a short function does.

    Attributes
    ----------
    low, high : (k,) ndarray
        Bounds.
    """

    low: np.ndarray
    high: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "bounded", bool(np.isfinite(self.low).any() or np.isfinite(self.high).any()))

    bounded: bool = field(init=False)

    def clip(self, v: np.ndarray) -> np.ndarray:
        """The nearest vector between the bounds."""
        return np.clip(v, self.low, self.high) if self.bounded else v

    def free(self, v: np.ndarray, slope: np.ndarray) -> Any:
        """An index of the entries that a step down the slope may change."""
        if not self.bounded:
            return slice(None)
        return ~(((v <= self.low) & (slope > 0)) | ((v >= self.high) & (slope < 0)))


@dataclass(frozen=True)
class Proximal:
    """The proximal lower problem at theta.

    Attributes
    ----------
    theta : (m,) ndarray
        Where.
    lam : (k,) ndarray
        Multipliers of the lower rows.
    value : float
        f + psi + |theta - y|^2 / (2 gamma).
    lower, forces : (n + m,) ndarray
        The gradients of f and psi in (x, theta).
    slope : (m,) ndarray
        That of the value in theta.
    """

    theta: np.ndarray
    lam: np.ndarray
    value: float
    lower: np.ndarray
    forces: np.ndarray
    slope: np.ndarray


class Saddle:
    """v(x, y) and its gradient: theta by projected Newton-CG, products with the Hessian by differences of gradients or `hvp_yy`.

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
        self._box = Box(problem.low[problem.n :], problem.high[problem.n :])
        self.theta: np.ndarray | None = None

    def solve(self, x: np.ndarray, y: np.ndarray) -> Proximal:
        """The minimum at (x, y), from the last theta."""
        now = self._at(x, y, self._box.clip(y if self.theta is None else self.theta))
        before = math.inf
        for _ in range(NEWTON):
            free = self._box.free(now.theta, now.slope)
            size, enough = float(np.linalg.norm(now.slope[free])), 1e-10 * (1 + float(np.linalg.norm(now.theta))) / self.gamma
            if size <= enough or (size < 1e-8 and size > 0.3 * before):
                break  # solved, or as well as rounding allows
            before = size
            moved = self._search(x, y, now, self._newton(x, now, free, min(1e-3, max(1e-9, 0.5 * enough / size))), free)
            if moved is None:
                break
            now = moved
        self.theta = now.theta
        return now

    def gradient(self, w: np.ndarray) -> tuple[float, np.ndarray]:
        """v and its gradient in (x, y)."""
        n = self._problem.n
        y = w[n:]
        found = self.solve(w[:n], y)
        in_x = self._factor * found.lower[:n] + found.forces[:n]
        return found.value, np.concatenate([in_x, (y - found.theta) / self.gamma])

    def _at(self, x: np.ndarray, y: np.ndarray, theta: np.ndarray) -> Proximal:
        n, at, away = self._problem.n, np.concatenate([x, theta]), theta - y
        lam = self.rows.multipliers(at)
        value = self._factor * self._problem.lower.value(at) + away @ away / (2 * self.gamma) + self.rows.value(lam)
        lower, forces = self._problem.lower.gradient(at), self.rows.force(at, lam)
        return Proximal(theta, lam, float(value), lower, forces, self._factor * lower[n:] + forces[n:] + away / self.gamma)

    def _newton(self, x: np.ndarray, now: Proximal, free: Any, tol: float) -> np.ndarray:
        """Minus the inverse Hessian times the slope, on the free variables."""
        n, theta, problem = self._problem.n, now.theta, self._problem
        h = 1e-4 * max(math.sqrt(theta.size), float(np.linalg.norm(theta)))
        at, direction = np.concatenate([x, theta]), np.zeros_like(theta)

        def product(p: np.ndarray) -> np.ndarray:
            t = h / max(float(np.linalg.norm(p)), 1e-300)
            direction[free] = p
            near = at.copy()
            near[n:] += t * direction
            change = self.rows.force(near, self.rows.multipliers(near))[n:] - now.forces[n:]
            if problem.hvp_yy is None:
                change += self._factor * (problem.lower.gradient(near)[n:] - now.lower[n:])
            change /= t
            if problem.hvp_yy is not None:
                change += self._factor * problem.hvp_yy(at, direction)
            return np.asarray(change[free] + p / self.gamma)

        slope = now.slope[free]
        found = cg(Products(product, slope.size), -slope, tol=tol, max_iter=200, verify=False).x
        newton = np.zeros_like(theta)
        newton[free] = found if np.any(found) else -self.gamma * slope
        return newton

    def _search(self, x: np.ndarray, y: np.ndarray, now: Proximal, step: np.ndarray, free: Any) -> Proximal | None:
        """The first point along the projected step at which the value falls enough, or the slope, which rounding spoils later."""
        noise, size = 1e-14 * (1 + abs(now.value)), float(np.linalg.norm(now.slope[free]))
        for t in 0.5 ** np.arange(30):
            moved = self._box.clip(now.theta + t * step)
            new, expected = self._at(x, y, moved), float(now.slope @ (moved - now.theta))
            if new.value <= now.value + 1e-4 * expected + noise or np.linalg.norm(new.slope[free]) <= 0.5 * size:
                return new if np.any(moved != now.theta) else None
            if abs(expected) < noise:
                break
        return None


@dataclass
class Products:
    """Products with a matrix, as `cg` takes them.

    Attributes
    ----------
    matvec : callable
        The product with a (size,) vector.
    size : int
        Rows of the matrix, and columns.
    """

    matvec: Callable[[np.ndarray], np.ndarray]
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        return self.size, self.size
