"""The nearest point of a convex set that is given by functions, in any array library, by products with their derivatives only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace
from otbilevel.linalg.cg import cg
from otbilevel.linalg.operators import SymmetricOperator

Pullback = Callable[[Array], Array]
Linearised = Callable[[Array], tuple[Array, Pullback]]

ROUNDS, NEWTON, PRODUCTS, HALVINGS = 60, 50, 200, 40
"""Limits: of multiplier steps, of Newton steps in each, of products with a Hessian in each of these, of its length."""
PENALTY, GROWTH = 100.0, 10.0
"""Of the augmented Lagrangian at first, and its growth where the violation does not fall to a quarter."""


@dataclass(frozen=True)
class ConvexSet:
    """{w : low <= w <= high, c(w) <= 0, or == 0 where `equality` says so} for convex, or affine, c.

    Attributes
    ----------
    linearise : callable
        ``linearise(w)`` returns the values c(w), (l,), and a function that takes (l,) multipliers to (n,) products J(w)' lam, and
        is used before the next call. Rows should have a length of about one.
    equality : (l,) array of bool or bool
        Which rows are equations.
    low, high : float or (n,) array
        Bounds, infinite where there are none.
    tol : float, optional
        Violation of a row that is accepted; by default 1e-9, for single precision 1e-5.

    Raises
    ------
    ValueError
        At a projection, when no point is found: the set is empty, or c is not convex.

    Notes
    -----
    Multiplier steps on the augmented Lagrangian of |v - w|^2/2, whose Hessian is at least the identity; each is minimised in the
    box by projected Newton steps, with conjugate gradients on differences of gradients. Affine rows cost about l + 1 products for
    each Newton step. Calls share nothing: the same point always has the same projection.

    References
    ----------
    D. Bertsekas, Projected Newton methods for optimization problems with simple constraints, SIAM J. Control Optim. 1982;
    R. T. Rockafellar, Augmented Lagrange multiplier functions and duality in nonconvex programming, SIAM J. Control 1974.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.bilevel.projection import ConvexSet
    >>> disc = ConvexSet(lambda w: (np.array([w @ w - 1.0]) / 2, lambda lam: lam[0] * w), low=0.0)
    >>> disc(np.array([3.0, -2.0])).round(6)
    array([1., 0.])
    """

    linearise: Linearised
    equality: Any = False
    low: Any = -math.inf
    high: Any = math.inf
    tol: float | None = None

    def __post_init__(self) -> None:
        if self.tol is not None:
            validate.real(self.tol, "tol", low=0.0, strict=True)

    def __call__(self, w: Array) -> Array:
        """The nearest point of the set."""
        return self.nearest(w)[0]

    def nearest(self, w: Array, z: Array | None = None) -> tuple[Array, Array]:
        """The nearest point of the set and the multipliers of its rows.

        Parameters
        ----------
        w : (n,) array
            The point to project.
        z : (l,) array, optional
            Multipliers to start from, such as those of a point near by.

        Returns
        -------
        v : (n,) array
            The nearest point.
        z : (l,) array
            Multipliers.
        """
        search = _Search(self, w)
        v, rho, before = search.inside(w), PENALTY, math.inf
        c, _ = self.linearise(v)
        none, out = search.xp.zeros_like(c), search.violation(c)
        if out <= search.tol:
            return v, none
        z = none if z is None else z
        for _ in range(ROUNDS):
            goal = max(0.1 * search.tol, 1e-2 * min(out, before))
            v, c = search.newton(v, z, rho, goal)
            new, out = search.multipliers(c, z, rho), search.violation(c)
            # Of rows that are not met the multiplier must be 0.
            missed = float(search.xp.max(search.xp.abs(new - z))) / rho
            z = new
            if max(out, missed) <= search.tol and goal <= search.tol:
                return v, z
            if not out <= 0.25 * before:
                rho *= GROWTH
            before = out
            if not math.isfinite(out) or rho > 1.0 / search.eps:
                break
        msg = f"no point of the set was found, rows are violated by {out:.1g}: it is empty, or its functions are not convex"
        raise ValueError(msg)


class _Search:
    """min |v - w|^2/2 + sum psi(c(v)) in the box, psi the augmented Lagrangian's, for one w."""

    def __init__(self, given: ConvexSet, w: Array) -> None:
        self.xp: ModuleType = array_namespace(w)
        self.eps = float(self.xp.finfo(w.dtype).eps)
        self.tol = given.tol if given.tol is not None else (1e-9 if self.eps < 1e-10 else 1e-5)
        self._given, self._w, self.linearise = given, w, given.linearise

    def inside(self, v: Array) -> Array:
        """In the box."""
        xp, low, high = self.xp, self._given.low, self._given.high
        return xp.minimum(xp.maximum(v, xp.zeros_like(v) + low), xp.zeros_like(v) + high)

    def violation(self, c: Array) -> float:
        """The largest one of a row."""
        xp = self.xp
        out = xp.where(xp.asarray(self._given.equality, device=c.device), xp.abs(c), c)
        return max(0.0, float(xp.max(out))) if c.shape[0] else 0.0

    def multipliers(self, c: Array, z: Array, rho: float) -> Array:
        """z + rho c, of inequalities the positive part."""
        xp, lam = self.xp, z + rho * c
        return xp.where(xp.asarray(self._given.equality, device=c.device), lam, xp.maximum(lam, xp.zeros_like(lam)))

    def newton(self, v: Array, z: Array, rho: float, goal: float) -> tuple[Array, Array]:
        """The minimiser, to within about `goal`, and c there."""
        xp = self.xp
        size = float(xp.linalg.vector_norm(v - self._w)) + float(xp.linalg.vector_norm(v)) + 1e-300
        c, pullback = self.linearise(v)
        for _ in range(NEWTON):
            lam = self.multipliers(c, z, rho)
            force = pullback(lam)
            slope = v - self._w + force
            free = xp.logical_not(self._pressed(v, slope))
            slope = xp.where(free, slope, xp.zeros_like(slope))
            steepness = float(xp.linalg.vector_norm(slope))
            if not steepness > max(goal, 4 * self.eps * rho * size):
                break
            active = xp.logical_or(lam > 0, xp.asarray(self._given.equality, device=c.device))
            operator = _Hessian(self, v, force, free, active, z, rho, size)
            found = cg(
                operator, -slope, tol=min(0.1, max(0.3 * goal / steepness, 10 * self.eps)), max_iter=PRODUCTS, verify=False
            ).x
            step = found if float(xp.sum(found * slope)) < 0 else -slope
            value = self._value(v, lam, z, rho)
            moved = self._line(v, step, slope, value, z, rho)
            if moved is None:
                break
            v, c, pullback = moved
            if not self._value(v, self.multipliers(c, z, rho), z, rho) < value:  # the last step that rounding allows
                break
        return v, c

    def _pressed(self, v: Array, slope: Array) -> Array:
        """What is held by a bound."""
        xp = self.xp
        return xp.logical_or(xp.logical_and(v <= self._given.low, slope > 0), xp.logical_and(v >= self._given.high, slope < 0))

    def _value(self, v: Array, lam: Array, z: Array, rho: float) -> float:
        xp, off = self.xp, v - self._w
        return 0.5 * float(xp.sum(off * off)) + (float(xp.sum(lam * lam)) - float(xp.sum(z * z))) / (2 * rho)

    def _line(
        self, v: Array, step: Array, slope: Array, value: float, z: Array, rho: float
    ) -> tuple[Array, Array, Pullback] | None:
        """The first point along a step, bent at the box, at which the value falls enough; None where rounding hides it."""
        for k in range(HALVINGS):
            new = self.inside(v + 0.5**k * step)
            c, pullback = self.linearise(new)
            decrease = float(self.xp.sum(slope * (new - v)))
            now = self._value(new, self.multipliers(c, z, rho), z, rho)
            if now <= value + 1e-4 * decrease + 4 * self.eps * abs(value) * (k == 0):
                return new, c, pullback
        return None


class _Hessian(SymmetricOperator):
    """Of the augmented Lagrangian, with the rows that are active, on the free coordinates, by differences of gradients."""

    def __init__(
        self, search: _Search, v: Array, force: Array, free: Array, active: Array, z: Array, rho: float, size: float
    ) -> None:
        super().__init__(v.shape[0], v[:0])
        self._search, self._v, self._force, self._free = search, v, force, free
        self._active, self._z, self._rho, self._h = active, z, rho, math.sqrt(search.eps) * size

    def _matvec(self, x: Array) -> Array:
        xp, search = self._search.xp, self._search
        length = float(xp.linalg.vector_norm(x))
        if length == 0.0:
            return x
        h = self._h / length
        c, pullback = search.linearise(self._v + h * x)
        force = pullback(xp.where(self._active, self._z + self._rho * c, xp.zeros_like(c)))
        return xp.where(self._free, x + (force - self._force) / h, xp.zeros_like(x))
