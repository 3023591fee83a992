"""Constraints that couple both levels: a user's functions, and the rows that methods work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint
from scipy.sparse import vstack

from otbilevel._core import validate
from otbilevel._core.array import Array

KINDS = ("ineq", "eq")
STRAIGHT = 1e-7
"""Relative deviation from an affine function that differences explain."""


@dataclass(frozen=True)
class CoupledConstraint:
    """fun(x, y) <= 0, or == 0, componentwise.

    Attributes
    ----------
    fun : callable
        ``fun(x, y)`` returns (l,).
    jac : callable, optional
        ``jac(x, y)`` returns ``(J_x, J_y)`` of shapes (l, n) and (l, m).
    vjp : callable, optional
        ``vjp(x, y, lam)`` returns ``(J_x' lam, J_y' lam)`` of shapes (n,) and (m,). Methods that need rows build them from it, by l
        calls, where there is no `jac`. Without either there are finite differences.
    kind : {"ineq", "eq"}
        ``<= 0`` or ``== 0``. As constraints of the lower level inequalities must be convex in (x, y), equalities affine.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel import CoupledConstraint
    >>> CoupledConstraint(lambda x, y: x + y - 1.0, lambda x, y: (np.eye(1), np.eye(1))).kind
    'ineq'
    """

    fun: Callable[[Array, Array], Array]
    jac: Callable[[Array, Array], tuple[Array, Array]] | None = None
    vjp: Callable[[Array, Array, Array], tuple[Array, Array]] | None = None
    kind: str = "ineq"

    def __post_init__(self) -> None:
        validate.choice(self.kind, "kind", KINDS)
        for name, required in (("fun", True), ("jac", False), ("vjp", False)):
            given = getattr(self, name)
            if not callable(given) and (required or given is not None):
                msg = f"{name} of a CoupledConstraint must be callable, got {type(given).__name__}"
                raise TypeError(msg)


class Rows:
    """Constraints as rows c(w) <= 0, or == 0 where `equality` says so, on the stacked vector w = (x, y). NumPy only.

    Parameters
    ----------
    given : sequence of CoupledConstraint or scipy.optimize.LinearConstraint
        Constraints.
    x, y : (n,), (m,) ndarray
        A point, at which functions are called to find out how many rows they have.
    name : str
        What messages call the constraints.

    Attributes
    ----------
    equality : (k,) ndarray of bool
        Which rows are equalities.
    """

    equality: np.ndarray

    def __init__(self, given: Any, x: np.ndarray, y: np.ndarray, name: str) -> None:
        self._n, self._N = x.size, x.size + y.size
        self.name = name
        self._blocks: list[tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = []
        self._forces: list[Callable[[np.ndarray, np.ndarray], np.ndarray]] = []
        self._lengths: list[Callable[[np.ndarray], np.ndarray]] = []
        self._joins: list[Callable[[np.ndarray], np.ndarray]] = []
        masks = []
        constraints = [given] if isinstance(given, (CoupledConstraint, LinearConstraint)) else list(given)
        for k, constraint in enumerate(constraints):
            if isinstance(constraint, LinearConstraint):
                masks.append(self._add_linear(constraint, f"{name}[{k}]"))
            elif isinstance(constraint, CoupledConstraint):
                masks.append(self._add_coupled(constraint, np.concatenate([x, y]), f"{name}[{k}]"))
            else:
                msg = (
                    f"{name}[{k}] must be a CoupledConstraint or a scipy.optimize.LinearConstraint, got {type(constraint).__name__}"
                )
                raise TypeError(msg)
        self._counts = [len(mask) for mask in masks]
        self.equality = np.concatenate(masks) if masks else np.zeros(0, bool)

    @property
    def count(self) -> int:
        """How many rows."""
        return int(self.equality.size)

    def values(self, w: np.ndarray) -> np.ndarray:
        """c(w), (k,)."""
        return np.concatenate([value(w) for value, _ in self._blocks]) if self._blocks else np.zeros(0)

    def jacobian(self, w: np.ndarray) -> np.ndarray:
        """Its derivative, (k, n + m)."""
        return np.concatenate([jacobian(w) for _, jacobian in self._blocks]) if self._blocks else np.zeros((0, self._N))

    def vjp(self, w: np.ndarray, lam: np.ndarray) -> np.ndarray:
        """J(w)' lam, (n + m,), by the user's own product where there is one."""
        total, low = None, 0
        for count, force in zip(self._counts, self._forces, strict=True):
            if np.any(lam[low : low + count]):
                part = force(w, lam[low : low + count])
                total = part if total is None else total + part
            low += count
        return np.zeros(self._N) if total is None else total

    def lengths(self, w: np.ndarray) -> np.ndarray:
        """The norms of the rows at w."""
        return np.concatenate([measure(w) for measure in self._lengths]) if self._lengths else np.zeros(0)

    def split(self, multipliers: np.ndarray) -> list[np.ndarray]:
        """Multipliers of rows for the constraints as they were given; those of a `LinearConstraint` are < 0 at its lower bounds."""
        found, low = [], 0
        for count, join in zip(self._counts, self._joins, strict=True):
            found.append(join(multipliers[low : low + count]))
            low += count
        return found

    def _add_linear(self, constraint: LinearConstraint, name: str) -> np.ndarray:
        sparse = hasattr(constraint.A, "tocsr")
        matrix = constraint.A.tocsr() if sparse else np.atleast_2d(np.asarray(constraint.A, float))
        if matrix.shape[1] != self._N:
            msg = f"A of {name} must have n + m = {self._N} columns, for the stacked vector (x, y), got shape {matrix.shape}"
            raise ValueError(msg)
        low, high = (np.broadcast_to(np.asarray(b, float), matrix.shape[:1]) for b in (constraint.lb, constraint.ub))
        if np.isnan(low).any() or np.isnan(high).any() or (low > high).any():
            msg = f"{name} must have lb <= ub, neither NaN"
            raise ValueError(msg)
        equal = low == high
        upper, lower = ~equal & (high < np.inf), ~equal & (low > -np.inf)
        parts = [matrix[equal], matrix[upper], -matrix[lower]]
        A: Any = vstack(parts).tocsr() if sparse else np.concatenate(parts)  # noqa: N806
        b = np.concatenate([high[equal], high[upper], -low[lower]])
        self._blocks.append((lambda w: A @ w - b, lambda w: A.toarray() if sparse else A))  # noqa: ARG005
        self._forces.append(lambda w, lam: A.T @ lam)  # noqa: ARG005
        norms = np.sqrt(np.asarray(A.multiply(A).sum(axis=1)).ravel()) if sparse else np.linalg.norm(A, axis=1)
        self._lengths.append(lambda w: norms)  # noqa: ARG005
        places = np.concatenate([np.flatnonzero(equal), np.flatnonzero(upper), np.flatnonzero(lower)])
        signs = np.where(np.arange(len(b)) < len(b) - lower.sum(), 1.0, -1.0)
        self._joins.append(lambda lam: np.asarray(np.bincount(places, signs * lam, minlength=matrix.shape[0])))
        mask: np.ndarray = np.arange(len(b)) < equal.sum()
        return mask

    def _add_coupled(self, constraint: CoupledConstraint, start: np.ndarray, name: str) -> np.ndarray:
        n = self._n

        def values(w: np.ndarray) -> np.ndarray:
            return _shaped(constraint.fun(w[:n], w[n:]), None, f"fun of {name}")

        count = values(start).size

        def rows(w: np.ndarray) -> np.ndarray:
            if constraint.jac is not None:
                return _both(constraint.jac(w[:n], w[n:]), [(count, n), (count, w.size - n)], f"jac of {name}")
            if constraint.vjp is not None:
                units = np.eye(count)
                shapes: list[tuple[int, ...]] = [(n,), (w.size - n,)]
                found = [_both(constraint.vjp(w[:n], w[n:], unit), shapes, f"vjp of {name}") for unit in units]
                return np.array(found).reshape(count, w.size)
            return guessed(w)

        guessed = _Differences(values, start)

        def force(w: np.ndarray, lam: np.ndarray) -> np.ndarray:
            if constraint.vjp is None:
                return np.asarray(rows(w).T @ lam)
            return _both(constraint.vjp(w[:n], w[n:], lam), [(n,), (w.size - n,)], f"vjp of {name}")

        self._blocks.append((values, rows))
        self._forces.append(force)
        self._lengths.append(lambda w: np.linalg.norm(rows(w), axis=1))
        self._joins.append(lambda lam: lam)
        return np.full(count, constraint.kind == "eq")


def worst(values: np.ndarray, equality: np.ndarray) -> float:
    """The largest violation of rows of these values, at least 0."""
    return float(np.max(np.where(equality, np.abs(values), values), initial=0.0))


class _Differences:
    """The derivative of a function by differences; only once, without their noise, for as long as the function proves to be affine.

    Parameters
    ----------
    function : callable
        (N,) -> (k,).
    start : (N,) ndarray
        A point where it is defined.
    """

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> None:
        self._function, self._start = function, start
        self._affine: tuple[np.ndarray, np.ndarray] | None = None
        self._new = True

    def __call__(self, w: np.ndarray) -> np.ndarray:
        """The derivative at w, (k, N)."""
        if self._new:
            self._new, slope = False, _affine(self._function, self._start)
            self._affine = None if slope is None else (slope, self._function(self._start))
        if self._affine is not None:
            slope, base = self._affine
            size = np.abs(base) + np.abs(slope) @ np.abs(w - self._start)
            if np.all(np.abs(self._function(w) - base - slope @ (w - self._start)) <= STRAIGHT * (size + 1e-300)):
                return slope
            self._affine = None  # a kink farther away, for example
        return differences(self._function, w)


def _affine(function: Callable[[np.ndarray], np.ndarray], w: np.ndarray) -> np.ndarray | None:
    """The derivative of a function that is affine as far as a few points tell."""
    rng, spread = np.random.default_rng(0), max(1.0, float(np.abs(w).max()))
    points = (w, *(w + spread * rng.standard_normal((4, w.size))))
    try:
        with np.errstate(all="ignore"):
            found = np.array([differences(function, v) for v in points])
    except (ArithmeticError, ValueError):  # a function that is not defined everywhere, such as a root or a logarithm
        return None
    mean: np.ndarray = found.mean(axis=0)
    return mean if np.all(np.abs(found - mean) <= STRAIGHT * (1.0 + np.abs(mean).max(axis=1, keepdims=True))) else None


def differences(
    function: Callable[[np.ndarray], np.ndarray], w: np.ndarray, step: float = float(np.finfo(float).eps) ** (1 / 3)
) -> np.ndarray:
    """The derivative of a vector-valued function by central differences, of a step relative to each entry of w."""
    columns = []
    for j in range(w.size):
        unit = np.zeros_like(w)
        unit[j] = step * max(1.0, abs(float(w[j])))
        columns.append((function(w + unit) - function(w - unit)) / (2 * unit[j]))
    return np.stack(columns, axis=1)


def bounds_of(given: Any, size: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds, infinite where there are none.

    Raises
    ------
    TypeError, ValueError
        When they are no bounds, or have no point between them.
    """
    if given is None:
        return np.full(size, -np.inf), np.full(size, np.inf)
    pair = (given.lb, given.ub) if isinstance(given, Bounds) else given
    if isinstance(pair, list) and all(isinstance(item, tuple) for item in pair):
        msg = f"{name} must be a scipy.optimize.Bounds or a pair (lb, ub), not a list of pairs for each variable"
        raise TypeError(msg)
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        msg = f"{name} must be a scipy.optimize.Bounds or a pair (lb, ub), got {type(given).__name__}"
        raise TypeError(msg)
    try:
        low, high = (np.array(np.broadcast_to(np.asarray(b, float), (size,))) for b in pair)
    except ValueError as error:
        msg = f"{name} must have bounds of shape ({size},), or numbers: {error}"
        raise ValueError(msg) from error
    if np.isnan(low).any() or np.isnan(high).any() or (low > high).any():
        msg = f"{name} must have lb <= ub, neither NaN"
        raise ValueError(msg)
    if (low == np.inf).any() or (high == -np.inf).any():
        msg = f"{name} must have lb < inf and ub > -inf, or no number is between them"
        raise ValueError(msg)
    return low, high


def _shaped(found: Any, shape: tuple[int, ...] | None, name: str) -> np.ndarray:
    """An array of this shape, or a vector, finite; axes of length one may be left out or added, but not exchanged with others."""
    array = np.atleast_1d(np.asarray(found.toarray() if hasattr(found, "toarray") else found, float))
    if (array.ndim != 1) if shape is None else (_longer(array.shape) != _longer(shape)):
        wanted = "a vector" if shape is None else f"shape {shape}"
        msg = f"{name} must return {wanted}, got shape {array.shape}"
        raise ValueError(msg)
    if not np.all(np.isfinite(array)):
        msg = f"{name} is not finite"
        raise FloatingPointError(msg)
    return array if shape is None else array.reshape(shape)


def _longer(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _both(found: Any, shapes: list[tuple[int, ...]], name: str) -> np.ndarray:
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        msg = f"{name} must return a pair, of derivatives in x and in y, got {type(found).__name__}"
        raise TypeError(msg)
    return np.concatenate([_shaped(part, shape, name) for part, shape in zip(found, shapes, strict=True)], axis=-1)
