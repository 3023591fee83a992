"""MINRES: least residuals for symmetric systems that need not be definite, in any array library."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace
from otbilevel._core.result import Status
from otbilevel.linalg.cg import check_system, power_of_two
from otbilevel.linalg.operators import LinearOperator
from otbilevel.linalg.result import LinearResult

ROUNDING = 2.0**-52
LARGEST = 1e12
"""Condition number of the solution, |A| |x| / |b|, beyond which b has a part that the range of A lacks."""
NORMAL = 1e-10
"""Of the operator's size: what A r is relative to r where no x has a smaller residual, up to rounding."""


def minres(
    operator: LinearOperator,
    b: Any,
    *,
    preconditioner: Callable[[Array], Array] | None = None,
    tol: float = 1e-6,
    max_iter: int | None = None,
    interrupt: Callable[[], bool] | None = None,
) -> LinearResult:
    """Solve A x = b for a symmetric A, definite or not, by the minimal residual method.

    Parameters
    ----------
    operator : LinearOperator
        A, of shape (n, n).
    b : (n,) array
        Right-hand side.
    preconditioner : callable, optional
        ``preconditioner(r)`` approximates abs(A)^-1 r; it must be symmetric positive definite.
    tol : float
        Stop when the Euclidean norm of b - A x is at most tol times that of b.
    max_iter : int, optional
        Iteration limit, by default 10 n.
    interrupt : callable, optional
        Asked before every iteration; True ends the solve with the present iterate and `Status.TIME_LIMIT`.

    Returns
    -------
    LinearResult
        `negative_curvature` says whether a residual with r'Ar < 0 was met, which is when conjugate gradients would meet a direction
        of negative curvature. If b is not in the range of a singular A, `x` is a
        least-squares solution, and the status `Status.STALLED`.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong; the message names it.

    Notes
    -----
    One product and O(n) work and memory per iteration; one more product at the end verifies the residual, and the method starts
    afresh from there where the recursion had drifted away.

    References
    ----------
    C. C. Paige and M. A. Saunders, Solution of sparse indefinite systems of linear equations, SIAM J. Numer. Anal. 12, 1975.
    Y. Liu and F. Roosta, MINRES: from negative curvature detection to monotonicity properties, SIAM J. Optim. 32, 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.linalg import minres
    >>> class Diagonal:
    ...     shape = (3, 3)
    ...     def matvec(self, x):
    ...         return np.array([1.0, -2.0, 4.0]) * x
    >>> minres(Diagonal(), np.array([1.0, 1.0, 1.0])).x.round(6)
    array([ 1.  , -0.5 ,  0.25])
    """
    b = check_system(operator, b)
    tol = validate.real(tol, "tol", low=0.0)
    limit = 10 * b.shape[0] if max_iter is None else validate.integer(max_iter, "max_iter")
    xp = array_namespace(b)
    unit = power_of_two(float(xp.max(xp.abs(b))))  # squares must not over- or underflow
    b = b / unit
    scale = float(xp.linalg.vector_norm(b))
    state, verified = _State(xp.zeros_like(b), b, scale), math.inf
    state.noise = 100 * max(float(getattr(operator, "precision", 0.0)), float(xp.finfo(b.dtype).eps))
    while state.size > tol * scale and state.ended is None:
        _descend(operator, state, preconditioner, tol * scale, limit, interrupt)
        state.r = b - operator.matvec(state.x)
        state.size = float(xp.linalg.vector_norm(state.r))
        if not state.size < 0.5 * verified:
            break
        verified = state.size
    residual = state.size / scale if scale > 0 else state.size
    floor = Status.STALLED if residual < math.inf else Status.NOT_FINITE
    status = Status.SUCCESS if residual <= tol else state.ended or floor
    message = _MESSAGES[status]
    if state.negative and status in (Status.ITERATION_LIMIT, Status.STALLED):
        message += "; the operator is indefinite, which damping above minus its least eigenvalue mends"
    return LinearResult(state.x * unit, residual, state.negative, state.nit, status is Status.SUCCESS, status, message)


@dataclass
class _State:
    x: Array
    r: Array
    size: float
    nit: int = 0
    noise: float = 0.0
    negative: bool = False
    ended: Status | None = None


def _descend(
    operator: LinearOperator,
    state: _State,
    preconditioner: Callable[[Array], Array] | None,
    target: float,
    limit: int,
    interrupt: Callable[[], bool] | None,
) -> None:
    """Lanczos vectors v, their tridiagonal matrix factorised by rotations (c, s), and x along the columns w of V R^-1."""
    xp = array_namespace(state.r)
    precondition = preconditioner or (lambda r: r)
    before, last = state.r, state.r
    y = precondition(state.r)
    beta = _norm(xp, state.r, y)
    rest, first = beta, beta
    goal = target * beta / state.size  # in the norm of the preconditioner
    c, s, delta_bar, epsilon, beta_before, size = -1.0, 0.0, 0.0, 0.0, 0.0, 0.0
    w = w_before = xp.zeros_like(state.r)
    while rest > goal:
        if state.nit >= limit:
            state.ended = Status.ITERATION_LIMIT
        elif interrupt is not None and interrupt():
            state.ended = Status.TIME_LIMIT
        elif not 0 < beta < math.inf:
            state.ended = Status.NOT_FINITE if math.isnan(beta) or beta == math.inf else Status.NUMERICAL_FAILURE
        if state.ended is not None:
            return
        v = y / beta
        y = operator.matvec(v)
        state.nit += 1
        if beta_before > 0:
            y = y - (beta / beta_before) * before
        alpha = float(xp.sum(v * y))
        y = y - (alpha / beta) * last
        before, last = last, y
        y = precondition(last)
        beta_before, beta = beta, _norm(xp, last, y)
        size = max(size, math.hypot(alpha, beta, beta_before if beta_before != first else 0.0))
        epsilon_before, delta = epsilon, c * delta_bar + s * alpha
        gamma_bar, epsilon, delta_bar = s * delta_bar - c * alpha, s * beta, -c * beta
        state.negative |= c * gamma_bar > state.noise * size  # r'Ar = -c gamma_bar r'r: Liu and Roosta (2022), (12)
        if math.hypot(gamma_bar, delta_bar) <= NORMAL * size:  # = |A r| / |r|: no x has a smaller residual
            state.ended = Status.STALLED
            return
        gamma = math.hypot(gamma_bar, beta)
        c, s = gamma_bar / gamma, beta / gamma
        phi, rest = c * rest, s * rest
        w, w_before = (v - epsilon_before * w_before - delta * w) / gamma, w
        following = state.x + phi * w
        if float(xp.linalg.vector_norm(following)) * size > LARGEST * state.size:  # along a null vector, to nowhere
            state.ended = Status.STALLED
            return
        state.x = following
        if beta <= ROUNDING * size:  # the Krylov space is used up
            return


def _norm(xp: Any, r: Array, y: Array) -> float:
    square = float(xp.sum(r * y))
    return math.sqrt(square) if square >= 0 else math.nan


_MESSAGES = {
    Status.SUCCESS: "the residual is below the tolerance",
    Status.ITERATION_LIMIT: "iteration limit: raise max_iter, precondition, or add damping",
    Status.STALLED: "the residual falls no more: b is not in the range of the operator, or rounding allows no more; add damping",
    Status.TIME_LIMIT: "interrupted by the caller",
    Status.NUMERICAL_FAILURE: "the preconditioner is not positive definite",
    Status.NOT_FINITE: "a product, or the right-hand side, is not finite",
}
