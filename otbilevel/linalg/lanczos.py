"""Lanczos' tridiagonal matrix with full reorthogonalisation, in any array library."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import eigh_tridiagonal

from otbilevel._core import validate
from otbilevel._core.array import Array, as_array
from otbilevel.linalg.conversion import as_operator

EXHAUSTED = 1e-12
"""Norm of the next vector, relative to the operator's size, from which the Krylov space is used up."""


@dataclass(frozen=True, eq=False)
class Tridiagonal:
    """H Q = Q T + beta q e_k' with orthonormal rows of Q' = `basis`.

    Attributes
    ----------
    diagonal, off : (k,), (k - 1,) ndarray
        Of T, in host memory.
    basis : (k, n) array
        Lanczos vectors, one a row.
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


def lanczos(op: Any, start: Any, steps: int) -> Tridiagonal:
    """Make the tridiagonal matrix of an operator on the Krylov space of a vector.

    Parameters
    ----------
    op : SymmetricOperator or (n, n) array_like
        H.
    start : (n,) array_like
        The first vector, not 0; it is scaled to norm 1.
    steps : int
        Products with H, and at most the size of T; fewer when the Krylov space is used up.

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
    Every vector is orthogonalised twice against all before it, O(n k^2) work and O(n k) memory: without that, copies of converged
    eigenvalues appear. Work is in the dtype of `op`.

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
    start = as_array(start, "start")
    if tuple(start.shape) != (n,):
        msg = f"start must have shape ({n},), got {tuple(start.shape)}"
        raise ValueError(msg)
    size = float(xp.linalg.vector_norm(start))
    if not 0 < size < math.inf:
        msg = f"start must be finite and not 0, but its norm is {size!r}"
        raise ValueError(msg)
    steps = min(validate.integer(steps, "steps", low=1), n)
    basis = xp.zeros((steps, n), dtype=op.dtype, device=op.device)
    q = xp.astype(start, op.dtype) / size
    diagonal, off, beta, largest = [], [], 0.0, 0.0
    for k in range(steps):
        basis[k, :] = q
        w = op.matvec(q)
        alpha = float(xp.sum(q * w))
        known = basis[: k + 1, :]
        for _ in range(2):
            w = w - known.T @ (known @ w)
        beta = float(xp.linalg.vector_norm(w))
        diagonal.append(alpha)
        largest = max(largest, abs(alpha), beta)
        if not beta > EXHAUSTED * largest or k + 1 == n:  # nothing, or NaN
            beta = 0.0 if beta >= 0 else beta
            break
        off.append(beta)
        q = w / beta
    count = len(diagonal)
    return Tridiagonal(np.array(diagonal), np.array(off[: count - 1]), basis[:count, :], beta)
