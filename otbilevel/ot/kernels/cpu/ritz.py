"""What a run of conjugate gradients finds out about the smallest eigenvalues, for the runs that follow.

At small reg the graph of the plan falls into clusters with weak ties between them: its Laplacian, scaled by the diagonal, has a few
tiny eigenvalues, one for each cluster that hangs loose, and most others between 0.1 and 2. Jacobi's preconditioner does not see
them, and every solve pays for them with up to hundreds of steps. But conjugate gradients are Lanczos' method: the steps of one
solve contain these eigenvalues and their vectors, to many digits, as Ritz pairs. With them, values theta and vectors W,

    M^-1 = diag(L)^-1 + W' diag(1/theta) W

moves such eigenvalues theta to 1 + theta. Pairs found with such an M are added to it in turn. The plan may change meanwhile: any
symmetric positive definite matrix is a preconditioner.

A. Stathopoulos, K. Orginos, Computing and deflating eigenvalues while solving multiple right-hand side linear systems with an
application to quantum chromodynamics, SIAM J. Sci. Comput. 32 (2010), 439-462, deflate in this way.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, eigh_tridiagonal, lapack

SMALL = 0.1
"""Eigenvalues of M^-1 L below this are worth a vector."""
MOST = 128
"""Vectors kept, the youngest ones."""
LARGEST = 2**23
"""Numbers in them: 32 megabytes."""
NOISE = 64 * 2.0**-52
"""Relative to the largest eigenvalue: below it there is rounding only."""


class Subspace(NamedTuple):
    """Rows of `vectors` (k, m) and the reciprocals of their Ritz values."""

    vectors: np.ndarray
    weights: np.ndarray


def nothing(m: int) -> Subspace:
    """No vectors yet."""
    return Subspace(np.empty((0, m), np.float32), np.empty(0))


def _is_definite(diagonal: np.ndarray, off: np.ndarray) -> bool:
    """Whether a symmetric tridiagonal matrix is positive definite; costs next to nothing."""
    return bool(lapack.dpttrf(diagonal, off)[-1] == 0)


def extended(subspace: Subspace, basis: np.ndarray, alpha: np.ndarray, beta: np.ndarray, count: int) -> Subspace:
    """Add the small Ritz pairs of the first `count` steps of a solve, see `pcg.Record`.

    The basis is orthonormal in the inner product of M up to signs, and there M^-1 L is tridiagonal.
    """
    alpha, beta = alpha[:count], beta[: count - 1]
    diagonal, off = 1.0 / alpha, np.sqrt(beta) / alpha[:-1]
    diagonal[1:] += beta / alpha[:-1]
    floor = NOISE * count * float(diagonal.max())
    finite = all(np.isfinite(x).all() for x in (diagonal, off, basis[:count]))  # not so where a column underflowed
    if not (finite and floor < SMALL):
        return subspace
    if _is_definite(diagonal - SMALL, off):
        return subspace  # none below SMALL
    try:
        values, shares = eigh_tridiagonal(diagonal, off, select="v", select_range=(floor, SMALL))
    except LinAlgError:  # bisection, or its inverse iteration, did not converge
        return subspace
    signs = np.where(np.arange(count) % 2 == 0, 1.0, -1.0)
    found = (signs[:, None] * shares).T.astype(np.float32) @ basis[:count]
    kept = min(MOST, LARGEST // basis.shape[1])
    vectors, weights = np.concatenate([found, subspace.vectors]), np.concatenate([1.0 / values, subspace.weights])
    return Subspace(vectors[:kept], weights[:kept])
