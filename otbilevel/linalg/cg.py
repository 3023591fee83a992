"""Preconditioned conjugate gradients, in any array library."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace, as_array
from otbilevel._core.result import Status
from otbilevel.linalg.operators import LinearOperator
from otbilevel.linalg.result import LinearResult

NOISE = 64 * 2.0**-52
"""Curvature relative to that of the operator's size that rounding explains."""


def cg(
    operator: LinearOperator,
    b: Any,
    *,
    preconditioner: Callable[[Array], Array] | None = None,
    tol: float = 1e-6,
    max_iter: int | None = None,
    norm: Callable[[Array], float] | None = None,
    interrupt: Callable[[], bool] | None = None,
    verify: bool = True,
    rounding: Array | None = None,
) -> LinearResult:
    """Solve A x = b for a symmetric positive (semi-)definite A by preconditioned conjugate gradients.

    A singular A is fine when b lies in its range.

    Parameters
    ----------
    operator : LinearOperator
        A, of shape (n, n).
    b : (n,) array
        Right-hand side.
    preconditioner : callable, optional
        ``preconditioner(r)`` approximates A^-1 r; it must be symmetric positive definite.
    tol : float
        Stop when ``norm(b - A x) <= tol * norm(b)``.
    max_iter : int, optional
        Iteration limit, by default 10 n.
    norm : callable, optional
        The norm of the stopping test, by default the Euclidean one.
    interrupt : callable, optional
        Asked before every iteration; True ends the solve with the present iterate and `Status.TIME_LIMIT`.
    verify : bool
        Compute the residual afresh at the end, at the cost of one more product, and go on from it where the recursion had drifted
        away: in rounding the residual of the recursion falls for ever.
    rounding : (n,) array, optional
        Diagonal d >= 0 such that a product A p is rounded by about eps d |p|. A curvature p'Ap below the rounding of p'diag(d)p is
        noise, of either sign, and ends the solve.

    Returns
    -------
    LinearResult
        Check `success`: at the iteration limit, at negative curvature, at the rounding floor and at NaN the last good iterate comes
        back with the status that says so.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong; the message names it.

    Notes
    -----
    One product and O(n) work and memory per iteration.

    References
    ----------
    M. R. Hestenes and E. Stiefel, Methods of conjugate gradients for solving linear systems, 1952.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.linalg import cg
    >>> class Diagonal:
    ...     shape = (3, 3)
    ...     def matvec(self, x):
    ...         return np.array([1.0, 2.0, 4.0]) * x
    >>> cg(Diagonal(), np.array([1.0, 1.0, 1.0])).x
    array([1.  , 0.5 , 0.25])
    """
    b = check_system(operator, b)
    tol = validate.real(tol, "tol", low=0.0)
    limit = 10 * b.shape[0] if max_iter is None else validate.integer(max_iter, "max_iter")
    xp = array_namespace(b)
    measure = norm or _euclidean
    unit = power_of_two(float(xp.max(xp.abs(b))))  # squares must not over- or underflow
    b = b / unit
    scale = size = measure(b)
    state, verified = _State(xp.zeros_like(b), b, size), math.inf
    while True:
        _descend(operator, state, preconditioner or _identity, measure, tol * scale, limit, interrupt, rounding)
        if not verify or state.nit == 0:
            break
        state.r = b - operator.matvec(state.x)
        state.size = measure(state.r)
        if state.size <= tol * scale or state.ended is not None or not state.size < 0.5 * verified:
            break
        verified = state.size  # the recursion had drifted from the true residual: go on from that
    residual = state.size / scale if scale > 0 else state.size
    floor = Status.STALLED if residual < math.inf else Status.NOT_FINITE
    status = Status.SUCCESS if residual <= tol else state.ended or floor
    negative = state.ended is Status.NUMERICAL_FAILURE
    return LinearResult(state.x * unit, residual, negative, state.nit, status is Status.SUCCESS, status, _MESSAGES[status])


@dataclass
class _State:
    x: Array
    r: Array
    size: float
    nit: int = 0
    ended: Status | None = None


def _descend(
    operator: LinearOperator,
    state: _State,
    precondition: Callable[[Array], Array],
    measure: Callable[[Array], float],
    target: float,
    limit: int,
    interrupt: Callable[[], bool] | None,
    rounding: Array | None,
) -> None:
    """Conjugate gradients from `state` until the residual of the recursion is at most `target`, or something ends them."""
    xp = array_namespace(state.r)
    z = precondition(state.r)
    p, rz = z, _dot(xp, state.r, z)
    while state.size > target:
        if state.nit >= limit:
            state.ended = Status.ITERATION_LIMIT
        elif interrupt is not None and interrupt():
            state.ended = Status.TIME_LIMIT
        if state.ended is not None:
            return
        q = operator.matvec(p)
        curvature = float(_dot(xp, p, q))
        noise = 0.0 if rounding is None else NOISE * float(_dot(xp, p, rounding * p))
        if not noise < curvature < math.inf:
            state.ended = Status.NUMERICAL_FAILURE if -math.inf < curvature <= noise else Status.NOT_FINITE
            return
        alpha = rz / curvature
        state.x, state.r = state.x + alpha * p, state.r - alpha * q
        state.nit += 1
        state.size = measure(state.r)
        z = precondition(state.r)
        rz, previous = _dot(xp, state.r, z), rz
        p = z + (rz / previous) * p


_MESSAGES = {
    Status.SUCCESS: "the residual is below the tolerance",
    Status.ITERATION_LIMIT: "iteration limit: raise max_iter, precondition, or add damping",
    Status.STALLED: "the residual of the recursion is below the tolerance, the true one is not: rounding allows no more",
    Status.TIME_LIMIT: "interrupted by the caller",
    Status.NUMERICAL_FAILURE: "negative curvature, or none beyond rounding: the operator is not positive definite; add damping",
    Status.NOT_FINITE: "a product, or the right-hand side, is not finite",
}


def check_system(operator: LinearOperator, b: Any) -> Array:
    """The right-hand side as an array, when it and the operator belong together."""
    if not isinstance(operator, LinearOperator):
        msg = f"operator must have a shape and a matvec, got {type(operator).__name__}"
        raise TypeError(msg)
    b = as_array(b, "b")
    if len(b.shape) != 1 or tuple(operator.shape) != (b.shape[0], b.shape[0]):
        shapes = f"{tuple(b.shape)} and {tuple(operator.shape)}"
        msg = f"b must be a vector with as many entries as the operator has rows, got shapes {shapes}"
        raise ValueError(msg)
    return b


def _dot(xp: ModuleType, x: Array, y: Array) -> Array:
    """<x, y> without BLAS: on a busy machine its threads, woken for long vectors, take up to a thousand times as long."""
    return xp.sum(x * y)


def _identity(r: Array) -> Array:
    return r


def power_of_two(size: float) -> float:
    """The power of two below `size`, by which one can divide without rounding; 1 when there is none."""
    return math.ldexp(1.0, math.frexp(size)[1] - 1) if 0 < size < math.inf else 1.0


def _euclidean(v: Array) -> float:
    xp = array_namespace(v)
    return float(xp.linalg.vector_norm(v))
