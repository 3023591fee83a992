"""A bilevel problem as functions of the stacked vector w = (x, y) in NumPy's double precision, whatever library they are for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from otbilevel._core.array import Array, array_namespace, device, is_numpy_namespace, to_numpy
from otbilevel._core.differentiate import Function, Jacobian, gradients
from otbilevel.bilevel.constraints import CoupledConstraint, Rows


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
        self._value: tuple[bytes, float] = (b"", 0.0)
        self._gradient: tuple[bytes, np.ndarray] = (b"", np.zeros(0))

    def value(self, w: np.ndarray) -> float:
        """The number fun(x, y)."""
        key = w.tobytes()
        if key != self._value[0]:
            self.nfev += 1
            found = self._fun(*self._parts(w))
            if self._jac is True:
                found, pair = found
                self.njev += 1
                self._gradient = key, self._stacked(pair)
            self._value = key, self._number(found)
        return self._value[1]

    def gradient(self, w: np.ndarray) -> np.ndarray:
        """The gradient in (x, y), stacked."""
        key = w.tobytes()
        if key != self._gradient[0]:
            if self._jac is True:
                self.value(w + 0.0)
            if key != self._gradient[0]:
                self.njev += 1
                self._gradient = key, self._stacked(gradients(self._fun, self._jac, *self._parts(w), self.name))
        return self._gradient[1]

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
    """

    upper: Objective
    lower: Objective
    lower_rows: Rows
    upper_rows: Rows
    low: np.ndarray
    high: np.ndarray
    n: int
    m: int

    def violation(self, w: np.ndarray) -> float:
        """The largest violation of a row or bound, in the units of the user."""
        parts = [self.low - w, w - self.high]
        for rows in (self.lower_rows, self.upper_rows):
            values = rows.values(w)
            parts.append(np.where(rows.equality, np.abs(values), values))
        return float(np.max(np.concatenate(parts), initial=0.0))


def wrapped(constraint: Any, library: Library) -> Any:
    """A constraint whose functions take and give NumPy arrays."""
    if library.plain or not isinstance(constraint, CoupledConstraint):
        return constraint

    def moved(function: Callable[..., Any] | None, *, pair: bool) -> Callable[..., Any] | None:
        if function is None:
            return None

        def call(*vectors: np.ndarray) -> Any:
            found = function(*(library.there(v) for v in vectors))
            return tuple(library.back(part) for part in found) if pair else library.back(found)

        return call

    fun = moved(constraint.fun, pair=False)
    assert fun is not None
    return CoupledConstraint(fun, moved(constraint.jac, pair=True), moved(constraint.vjp, pair=True), constraint.kind)


def listed(constraints: Any) -> Sequence[Any]:
    """One constraint, or several."""
    return list(constraints) if isinstance(constraints, (list, tuple)) else [constraints]
