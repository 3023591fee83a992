"""Derivatives of functions f(x, y) of two vectors: as given, by a library's automatic differentiation, or by differences."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from otbilevel._core.array import Array, array_namespace, as_array, library_name

Function = Callable[[Array, Array], Any]
Jacobian = Callable[[Array, Array], tuple[Array, Array]]


@dataclass(frozen=True)
class SecondDerivatives:
    """Of f in y, at a point.

    Attributes
    ----------
    gradient : (m,) array
        grad_y f.
    hvp_yy : callable
        v -> the second derivative of f in y times v, (m,).
    hvp_xy : callable
        v -> the gradient in x of <grad_y f, v>, (n,).
    """

    gradient: Array
    hvp_yy: Callable[[Array], Array]
    hvp_xy: Callable[[Array], Array]


class Differentiator(Protocol):
    """Automatic differentiation of an array library."""

    def gradients(self, fun: Function, x: Array, y: Array) -> tuple[Array, Array]:
        """The gradients of a scalar function in x and in y."""
        ...

    def second(self, fun: Function, x: Array, y: Array) -> SecondDerivatives:
        """Its second derivatives in y."""
        ...

    def vjp(self, fun: Function, x: Array, y: Array, lam: Array, name: str) -> tuple[Array, Array]:
        """J_x' lam and J_y' lam of a function with vectors as values; messages call it `name`."""
        ...


DIFFERENTIATORS: dict[str, Differentiator] = {}
"""From the name of an array library to what differentiates its functions. Modules put themselves in."""


def differentiator_of(x: Array) -> Differentiator | None:
    """That of the library of `x`; None where there is none."""
    name = library_name(x)
    if name == "torch":
        importlib.import_module("otbilevel.pytorch.differentiator")
    return DIFFERENTIATORS.get(name)


def gradients(fun: Function | None, jac: Jacobian | bool | None, x: Array, y: Array, name: str) -> tuple[Array, Array]:
    """The gradients of f in x and in y.

    Parameters
    ----------
    fun : callable or None
        f; not called where `jac` is callable.
    jac : callable, True or None
        ``jac(x, y) -> (grad_x, grad_y)``; True: ``fun(x, y)`` returns ``(value, (grad_x, grad_y))``; None: automatic
        differentiation, or central differences, 2 (n + m) evaluations, where the library has none.
    x, y : (n,), (m,) array
        Where.
    name : str
        What messages call f.

    Returns
    -------
    grad_x, grad_y : (n,), (m,) array
        The gradients.

    Raises
    ------
    TypeError, ValueError
        When f or its gradients are not what they should be.
    """
    if callable(jac):
        return _pair(jac(x, y), x, y, f"jac_{name}")
    if not callable(fun):
        msg = f"{name} must be callable, got {type(fun).__name__}; it may be None only where jac_{name} is a function"
        raise TypeError(msg)
    if jac is True:
        return _pair(fun(x, y)[1], x, y, f"{name} (with jac_{name}=True)")
    if jac is not None:
        msg = f"jac_{name} must be a function (x, y) -> (grad_x, grad_y), True or None, got {jac!r}"
        raise TypeError(msg)
    automatic = differentiator_of(x)
    if automatic is not None:
        return automatic.gradients(fun, x, y)
    return _difference(lambda t: _scalar(fun(t, y), name), x), _difference(lambda t: _scalar(fun(x, t), name), y)


def second_derivatives(fun: Function | None, jac: Jacobian | bool | None, x: Array, y: Array, name: str) -> SecondDerivatives:
    """Those of f in y: differences of `jac` where that is given, else automatic ones.

    Parameters
    ----------
    fun, jac, x, y, name
        As for `gradients`.

    Returns
    -------
    SecondDerivatives
        Gradient and products. Products by differences take two calls of `jac` each.

    Raises
    ------
    TypeError, ValueError
        As for `gradients`, and when there is neither `jac` nor automatic differentiation.
    """
    automatic = differentiator_of(x)
    if jac is None and automatic is None:
        msg = f"jac_{name} is needed for arrays of {library_name(x)}, as differences of differences are too inexact"
        raise ValueError(msg)
    if jac is None and automatic is not None and callable(fun):
        return automatic.second(fun, x, y)
    xp = array_namespace(y)
    norm = xp.linalg.vector_norm
    scale = float(xp.finfo(y.dtype).eps) ** (1 / 3) * max(1.0, float(norm(y)))

    def along(v: Array) -> tuple[Array, Array]:
        size = float(norm(v))
        step = scale / size if size > 0 else 1.0
        ahead, behind = gradients(fun, jac, x, y + step * v, name), gradients(fun, jac, x, y - step * v, name)
        return (ahead[0] - behind[0]) / (2 * step), (ahead[1] - behind[1]) / (2 * step)

    return SecondDerivatives(gradients(fun, jac, x, y, name)[1], lambda v: along(v)[1], lambda v: along(v)[0])


def _pair(found: Any, x: Array, y: Array, name: str) -> tuple[Array, Array]:
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        msg = f"{name} must return a pair (grad_x, grad_y), got {type(found).__name__}"
        raise TypeError(msg)
    return vector(found[0], x, f"grad_x of {name}"), vector(found[1], y, f"grad_y of {name}")


def vector(found: Any, like: Array, name: str) -> Array:
    """What a user's function returned, as a vector like another one.

    Raises
    ------
    TypeError, ValueError
        When it is none.
    """
    found = as_array(found, name)
    if tuple(found.shape) != tuple(like.shape):
        msg = f"{name} must have shape {tuple(like.shape)}, got {tuple(found.shape)}"
        raise ValueError(msg)
    return found


def _scalar(value: Any, name: str) -> float:
    if getattr(value, "shape", ()) not in {(), (1,)}:
        msg = f"{name} must return a number, got shape {tuple(value.shape)}"
        raise ValueError(msg)
    return float(value if getattr(value, "shape", ()) == () else value[0])


def _difference(fun: Callable[[Array], float], x: Array) -> Array:
    """Central differences in every coordinate."""
    xp = array_namespace(x)
    root = float(xp.finfo(x.dtype).eps) ** (1 / 3)
    slopes = []
    for k in range(x.shape[0]):
        step = root * max(1.0, abs(float(x[k])))
        unit = xp.astype(xp.arange(x.shape[0]) == k, x.dtype)
        slopes.append((fun(x + step * unit) - fun(x - step * unit)) / (2 * step))
    return xp.asarray(slopes, dtype=x.dtype)
