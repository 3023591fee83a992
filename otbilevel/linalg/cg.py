"""Preconditioned conjugate gradients, in any array library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from otbilevel._core.array import Array, array_namespace
from otbilevel._core.result import Result, Status
from otbilevel.linalg.operators import LinearOperator


@dataclass(frozen=True, repr=False)
class CGResult(Result):
    """The outcome of `cg`.

    Attributes
    ----------
    x : (n,) array
        The last iterate.
    residual : float
        Norm of b - A x relative to the norm of b, as the recursion carries it.
    negative_curvature : bool
        Whether a direction p with p'Ap <= 0 was met: A is not positive definite there. `x` is the iterate before it.
    nit : int
        Iterations, each with one product.
    success, status, message
        Whether and why it stopped.
    """

    x: Array
    residual: float
    negative_curvature: bool
    nit: int
    success: bool
    status: Status
    message: str
    _summary = ("message", "success", "status", "residual", "negative_curvature", "nit", "x")


def cg(
    operator: LinearOperator,
    b: Array,
    *,
    preconditioner: Callable[[Array], Array] | None = None,
    tol: float = 1e-6,
    max_iter: int | None = None,
    norm: Callable[[Array], float] | None = None,
    interrupt: Callable[[], bool] | None = None,
) -> CGResult:
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

    Returns
    -------
    CGResult
        Check `success`: at the iteration limit, at negative curvature and at NaN the last good iterate comes back
        with the status that says so.

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
    xp = array_namespace(b)
    measure = norm or _euclidean
    limit = 10 * b.shape[0] if max_iter is None else max_iter
    x, r = xp.zeros_like(b), b
    scale = size = measure(b)
    z = r if preconditioner is None else preconditioner(r)
    p, rz = z, xp.vecdot(r, z)
    nit, negative, interrupted = 0, False, False
    while size > tol * scale and nit < limit:
        if interrupt is not None and interrupt():
            interrupted = True
            break
        q = operator.matvec(p)
        curvature = xp.vecdot(p, q)
        if not float(curvature) > 0:
            negative = float(curvature) <= 0
            break
        alpha = rz / curvature
        x, r = x + alpha * p, r - alpha * q
        nit += 1
        size = measure(r)
        z = r if preconditioner is None else preconditioner(r)
        rz, previous = xp.vecdot(r, z), rz
        p = z + (rz / previous) * p
    residual = size / scale if scale > 0 else size
    status = _status(residual, tol, negative=negative, interrupted=interrupted, exhausted=nit >= limit)
    return CGResult(x, residual, negative, nit, status is Status.SUCCESS, status, _MESSAGES[status])


_MESSAGES = {
    Status.SUCCESS: "the residual is below the tolerance",
    Status.ITERATION_LIMIT: "iteration limit: raise max_iter, precondition, or add damping",
    Status.TIME_LIMIT: "interrupted by the caller",
    Status.NUMERICAL_FAILURE: "negative curvature: the operator is not positive definite; add damping or use MINRES",
    Status.NOT_FINITE: "a product, or the right-hand side, is not finite",
}


def _status(residual: float, tol: float, *, negative: bool, interrupted: bool, exhausted: bool) -> Status:
    if residual <= tol:
        return Status.SUCCESS
    if negative:
        return Status.NUMERICAL_FAILURE
    if interrupted:
        return Status.TIME_LIMIT
    return Status.ITERATION_LIMIT if exhausted and residual < float("inf") else Status.NOT_FINITE


def _euclidean(v: Array) -> float:
    xp = array_namespace(v)
    return float(xp.linalg.vector_norm(v))
