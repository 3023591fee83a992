"""A bilevel problem as functions of the stacked vector w = (x, y) in NumPy's double precision, whatever library they are for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from otbilevel._core.array import Array, array_namespace, device, is_numpy_namespace, to_numpy
from otbilevel._core.differentiate import Function, Jacobian, differentiator_of, gradients
from otbilevel.bilevel.constraints import CoupledConstraint, Rows, worst

Product = Callable[[np.ndarray, np.ndarray], np.ndarray]
SMALL = 1e-8
"""A length that is taken for zero."""


@dataclass
class Library:
    """The array library of the user's functions: vectors go there and come back.

    Attributes
    ----------
    like : array
        An array of the library, dtype and device.
    """

    like: Array
    xp: ModuleType = field(init=False)

    def __post_init__(self) -> None:
        self.xp = array_namespace(self.like)
        self.plain = is_numpy_namespace(self.xp) and self.like.dtype == np.float64

    def there(self, v: np.ndarray) -> Array:
        """A vector for the user's functions."""
        return v if self.plain else self.xp.asarray(v, dtype=self.like.dtype, device=device(self.like))

    @staticmethod
    def back(v: Any) -> np.ndarray:
        """What they return, as a NumPy array."""
        v = v.detach() if hasattr(v, "detach") else v
        return np.asarray(to_numpy(v) if hasattr(v, "shape") else v, dtype=np.float64)


class Objective:
    """One level: value and gradient at w, each point evaluated once in a row.

    Parameters
    ----------
    fun : callable or None
        ``fun(x, y)``.
    jac : callable, True or None
        As in `minimize_bilevel`.
    n : int
        Dimension of x.
    library : Library
        Of `fun`.
    name : str
        What messages call it.

    Attributes
    ----------
    nfev, njev : int
        Evaluations of the value and of the gradient.
    """

    def __init__(self, fun: Function, jac: Jacobian | bool | None, n: int, library: Library, name: str) -> None:
        self._fun, self._jac, self._n, self._library, self.name = fun, jac, n, library, name
        self.nfev = self.njev = 0
        self._at = np.full(0, np.nan)
        self._value: float | None = None
        self._gradient: np.ndarray | None = None

    def value(self, w: np.ndarray) -> float:
        """The number fun(x, y)."""
        self._go_to(w)
        if self._value is None:
            self.nfev += 1
            found = self._fun(*self._parts(w))
            if self._jac is True:
                found, pair = found
                self.njev += 1
                self._gradient = self._stacked(pair)
            self._value = self._number(found)
        return self._value

    def gradient(self, w: np.ndarray) -> np.ndarray:
        """The gradient in (x, y), stacked."""
        self._go_to(w)
        if self._gradient is None and self._jac is True:
            self.value(w)
        if self._gradient is None:
            self.njev += 1
            self._gradient = self._stacked(gradients(self._fun, self._jac, *self._parts(w), self.name))
        return self._gradient

    def _go_to(self, w: np.ndarray) -> None:
        """Forget what is known of another point; a copy tells, as callers may change theirs in place."""
        if not np.array_equal(w, self._at):
            self._at, self._value, self._gradient = w.copy(), None, None

    def _parts(self, w: np.ndarray) -> tuple[Array, Array]:
        return self._library.there(w[: self._n]), self._library.there(w[self._n :])

    def _stacked(self, pair: Any) -> np.ndarray:
        parts = [np.ravel(self._library.back(part)) for part in pair]
        found = np.concatenate(parts)
        if not np.all(np.isfinite(found)):
            msg = f"the gradient of {self.name} is not finite"
            raise FloatingPointError(msg)
        return found

    def _number(self, found: Any) -> float:
        array = self._library.back(found)
        if array.size != 1:
            msg = f"{self.name} must return a number, got shape {array.shape}"
            raise ValueError(msg)
        value = float(array.reshape(()))
        if not np.isfinite(value):
            msg = f"{self.name} is {value}"
            raise FloatingPointError(msg)
        return value


@dataclass
class BilevelProblem:
    """min F(x, y) over (x, y) with upper rows and bounds, y minimising f(x, .) under the lower rows and its bounds.

    Attributes
    ----------
    upper, lower : Objective
        F and f.
    lower_rows, upper_rows : Rows
        g and G: <= 0, or == 0 where `equality` says so.
    low, high : (n + m,) ndarray
        Bounds of (x, y), infinite where there are none. Those of y belong to the lower level.
    n, m : int
        Dimensions of x and y.
    hvp_yy, hvp_xy : callable or None
        ``(w, v)`` -> the second derivative of f in y times v, and the gradient in x of <grad_y f, v>, where the user gave them.
    """

    upper: Objective
    lower: Objective
    lower_rows: Rows
    upper_rows: Rows
    low: np.ndarray
    high: np.ndarray
    n: int
    m: int
    hvp_yy: Product | None = None
    hvp_xy: Product | None = None

    def violation(self, w: np.ndarray) -> float:
        """The largest violation of a row or bound, in the units of the user."""
        rows = [worst(rows.values(w), rows.equality) for rows in (self.lower_rows, self.upper_rows)]
        return max(float(np.max(self.low - w)), float(np.max(w - self.high)), *rows)

    def around(self, w: np.ndarray, rng: np.random.Generator, count: int, *, jacobians: bool) -> list[np.ndarray]:
        """w and random points near it, those at which all is finite; w alone when that is nowhere."""
        spread = max(1.0, float(np.abs(w).max()))
        points = [w, *(np.clip(w + spread * rng.standard_normal(w.size), self.low, self.high) for _ in range(count))]
        return [v for v in points if self._finite(v, jacobians)] or [w]

    def factors(self, points: list[np.ndarray]) -> tuple[float, float]:
        """What F and f are multiplied by for gradients of length one at these points, that of f in y."""
        upper = np.median([np.linalg.norm(self.upper.gradient(v)) for v in points])
        lower = np.median([np.linalg.norm(self.lower.gradient(v)[self.n :]) for v in points])
        return 1.0 / max(SMALL, float(upper)), 1.0 / max(SMALL, float(lower))

    def _finite(self, w: np.ndarray, jacobians: bool) -> bool:
        try:
            parts = [self.upper.gradient(w), self.lower.gradient(w)]
            for rows in (self.lower_rows, self.upper_rows):
                parts += [rows.values(w), *([rows.lengths(w)] if jacobians else [])]
        except (ArithmeticError, ValueError):  # far from the start functions need not be defined
            return False
        return bool(np.all(np.isfinite(np.concatenate(parts))))


def product(function: Any, n: int, library: Library, name: str) -> Product | None:
    """A user's ``hvp(x, y, v)`` on the stacked vector; its result has the length of y for ``hvp_yy``, and of x for ``hvp_xy``."""
    if function is None:
        return None
    if not callable(function):
        msg = f"{name} must be a function of (x, y, v), got {type(function).__name__}"
        raise TypeError(msg)

    def call(w: np.ndarray, v: np.ndarray) -> np.ndarray:
        like = w[n:] if name == "hvp_yy" else w[:n]
        found = library.back(function(library.there(w[:n]), library.there(w[n:]), library.there(v)))
        if found.shape != like.shape:
            msg = f"{name} must have shape {like.shape}, got {found.shape}"
            raise ValueError(msg)
        if not np.all(np.isfinite(found)):
            msg = f"{name} is not finite"
            raise FloatingPointError(msg)
        return found

    return call


def wrapped(constraint: Any, library: Library, name: str) -> Any:
    """A constraint whose functions take and give NumPy arrays, with a vjp by automatic differentiation where the library has it."""
    if library.plain or not isinstance(constraint, CoupledConstraint):
        return constraint

    def moved(function: Callable[..., Any] | None, *, pair: bool) -> Callable[..., Any] | None:
        if function is None:
            return None

        def call(*vectors: np.ndarray) -> Any:
            found = function(*(library.there(v) for v in vectors))
            return tuple(library.back(part) for part in found) if pair else library.back(found)

        return call

    vjp, automatic = constraint.vjp, differentiator_of(library.like)
    if vjp is None and constraint.jac is None and automatic is not None:
        # Differences of single precision would be noise.
        vjp = lambda x, y, lam: automatic.vjp(constraint.fun, x, y, lam, f"fun of {name}")  # noqa: E731
    fun = moved(constraint.fun, pair=False)
    assert fun is not None
    return CoupledConstraint(fun, moved(constraint.jac, pair=True), moved(vjp, pair=True), constraint.kind)


def listed(constraints: Any) -> Sequence[Any]:
    """One constraint, or several."""
    return list(constraints) if isinstance(constraints, (list, tuple)) else [constraints]
