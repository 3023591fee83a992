"""Extremal eigenpairs by SciPy's LOBPCG, a block method: it finds all copies of a multiple eigenvalue. In host memory."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.sparse.linalg import lobpcg as scipy_lobpcg

from otbilevel._core.array import Array
from otbilevel.linalg.neumann import spectrum_bounds
from otbilevel.linalg.operators import SymmetricOperator


def lobpcg(
    op: SymmetricOperator, k: int, which: str, *, tol: float, max_matvec: int, rng: np.random.Generator
) -> tuple[np.ndarray, Array, float] | None:
    """Extremal eigenpairs of a symmetric operator.

    Parameters
    ----------
    op : SymmetricOperator
        H.
    k : int
        How many: the size of the block.
    which : {"LA", "SA"}
        Largest or smallest.
    tol : float
        Residual relative to the largest magnitude of an eigenvalue.
    max_matvec : int
        Limit of products.
    rng : numpy.random.Generator
        Draws the first block.

    Returns
    -------
    values, vectors, largest : (k,) ndarray, (n, k) array, float
        Eigenvalues, the most wanted first; their vectors of norm 1; the largest magnitude met. None when a product is not finite.

    Raises
    ------
    TypeError
        When the operator's products are not in host memory.

    References
    ----------
    A. V. Knyazev, Toward the optimal preconditioned eigensolver: locally optimal block preconditioned conjugate gradient method,
    SIAM J. Sci. Comput. 23, 2001.
    """
    low, high = spectrum_bounds(op, rng)
    largest = max(abs(low), abs(high))
    if not np.isfinite(largest):
        return None
    start = rng.standard_normal((op.shape[0], k))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of what did not converge: the residuals say it
        values, vectors = scipy_lobpcg(
            op.to_scipy(), start, largest=which == "LA", tol=0.3 * tol * largest, maxiter=max(1, max_matvec // k)
        )
    order = np.argsort(-values if which == "LA" else values)
    columns = vectors[:, order] / np.linalg.norm(vectors[:, order], axis=0)
    return values[order], op.xp.asarray(columns, dtype=op.dtype, device=op.device), largest
