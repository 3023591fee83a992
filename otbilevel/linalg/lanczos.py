"""Lanczos' tridiagonal matrix with full reorthogonalisation, in any array library."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import eigh_tridiagonal

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace, to_host
from otbilevel.linalg.conversion import as_operator, in_library

EXHAUSTED = 1e-12
"""Norm of the next vector, relative to the operator's size, from which the Krylov space is used up."""
TWICE = math.sqrt(0.5)
"""What must be left of a vector's norm, or else what was taken away has left too much rounding behind."""


@dataclass(frozen=True, eq=False)
class Tridiagonal:
    """H Q = Q T + beta q e_k' with orthonormal rows of Q' = `basis`.

    Attributes
    ----------
    diagonal, off : (k,), (k - 1,) ndarray
        Of T, in host memory.
    basis : (k, n) array
        Lanczos vectors, one a row; (0, n) without reorthogonalisation.
    beta : float
        Norm of what is left: 0 when the Krylov space is used up.
    """

    diagonal: np.ndarray
    off: np.ndarray
    basis: Array
    beta: float

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Ritz values in ascending order, and eigenvectors of T, one a column."""
        values, vectors = eigh_tridiagonal(self.diagonal, self.off)
        return values, vectors


def orthogonal(w: Array, rows: Array, near: int) -> tuple[Array, np.ndarray, float]:
    """A vector without its components along orthonormal rows, these on the host, and the norm of what is left.

    First along the last `near` rows, where the components are large, then along all, and again where much was taken away: "twice is
    enough" (Parlett, 1980).
    """
    xp, count = array_namespace(w), rows.shape[0]
    total, size = np.zeros(count), math.inf
    for first in (max(0, count - near), 0, 0):
        known = rows[first:, :]
        part = known @ w
        w = w - known.T @ part
        total[first:] += to_host(part)
        before, size = size, float(xp.linalg.vector_norm(w))
        if first == 0 and not size < TWICE * before:
            break
    return w, total, size


def lanczos(op: Any, start: Any, steps: int, *, reorthogonalize: bool = True) -> Tridiagonal:
    """Make the tridiagonal matrix of an operator on the Krylov space of a vector.

    Parameters
    ----------
    op : SymmetricOperator or (n, n) array_like
        H.
    start : (n,) array_like
        The first vector, not 0; it is scaled to norm 1.
    steps : int
        Products with H, and at most the size of T; fewer when the Krylov space is used up.
    reorthogonalize : bool
        Keep the vectors orthogonal. Without it, copies of converged eigenvalues appear in T: its quadrature stays right, as their
        weights add up, but takes more steps to resolve the rest.

    Returns
    -------
    Tridiagonal
        T, the basis, and what is left. Its coefficients are not finite when a product is not.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong; the message names it.

    Notes
    -----
    Every vector is orthogonalised against all before it, and again where rounding asks for it: O(n k^2) work and O(n k) memory.
    Work is in the dtype of `op`.

    References
    ----------
    C. Lanczos, An iteration method for the solution of the eigenvalue problem of linear differential and integral operators, 1950.
    G. Golub and C. Van Loan, Matrix Computations, 10.1-10.3.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.linalg import lanczos
    >>> lanczos(np.diag([1.0, 2.0, 4.0]), np.ones(3), 3).ritz()[0].round(6)
    array([1., 2., 4.])
    """
    op = as_operator(op)
    xp, n = op.xp, op.shape[0]
    start = in_library(op, start, "start")
    if tuple(start.shape) != (n,):
        msg = f"start must have shape ({n},), got {tuple(start.shape)}"
        raise ValueError(msg)
    size = float(xp.linalg.vector_norm(start))
    if not 0 < size < math.inf:
        msg = f"start must be finite and not 0, but its norm is {size!r}"
        raise ValueError(msg)
    steps = min(validate.integer(steps, "steps", low=1), n)
    full = validate.boolean(reorthogonalize, "reorthogonalize")
    basis = xp.zeros((steps if full else 0, n), dtype=op.dtype, device=op.device)
    q, previous = xp.astype(start, op.dtype) / size, None
    diagonal, off, beta, largest = [], [], 0.0, 0.0
    for k in range(steps):
        w = op.matvec(q)
        if full:
            basis[k, :] = q
            w, components, beta = orthogonal(w, basis[: k + 1, :], 2)
            alpha = float(components[k])
        else:
            alpha = float(xp.sum(q * w))
            w = w - alpha * q if previous is None else w - alpha * q - beta * previous
            beta = float(xp.linalg.vector_norm(w))
        diagonal.append(alpha)
        largest = max(largest, abs(alpha), beta)
        if not beta > EXHAUSTED * largest or k + 1 == n:  # nothing, or NaN
            beta = 0.0 if beta >= 0 else beta
            break
        off.append(beta)
        q, previous = w / beta, q
    count = len(diagonal)
    return Tridiagonal(np.array(diagonal), np.array(off[: count - 1]), basis[:count, :], beta)
