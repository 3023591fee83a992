"""Extremal eigenvalues, every residual computed afresh."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from otbilevel._core import validate
from otbilevel._core.array import Array
from otbilevel._core.result import Result, Status, report
from otbilevel._core.rng import generator
from otbilevel.linalg.conversion import as_operator
from otbilevel.linalg.lobpcg import lobpcg
from otbilevel.linalg.operators import SymmetricOperator
from otbilevel.linalg.thick_restart import thick_restart

WHICH = ("LA", "SA", "LM")
METHODS = ("lanczos", "lobpcg")


@dataclass(frozen=True, repr=False, eq=False)
class Eigenpairs(Result):
    """What `eigsh` returns.

    Attributes
    ----------
    values : (k,) ndarray
        Eigenvalues in descending order ("SA": ascending; "LM": by magnitude), in host memory; fewer when `max_matvec` was below k.
    vectors : (n, k) array
        Eigenvectors of norm 1, one a column.
    residuals : (k,) ndarray
        ||H v - lambda v||, from products of their own: an eigenvalue of H is within that of lambda.
    nmatvec : int
        Products, those for the residuals included.
    success, status, message
        Whether all residuals are at most tol times the largest eigenvalue found.
    """

    values: np.ndarray
    vectors: Array
    residuals: np.ndarray
    nmatvec: int
    success: bool
    status: Status
    message: str
    _summary = ("message", "values", "residuals", "nmatvec", "vectors")


def eigsh(
    op: Any,
    k: int = 1,
    which: str = "LA",
    *,
    method: str = "lanczos",
    tol: float = 1e-6,
    max_matvec: int | None = None,
    basis: int | None = None,
    rng: Any = 0,
    raise_on_failure: bool = False,
) -> Eigenpairs:
    """Find extremal eigenvalues and eigenvectors of a symmetric operator.

    Parameters
    ----------
    op : SymmetricOperator or (n, n) array_like
        H.
    k : int
        How many.
    which : {"LA", "SA", "LM"}
        Largest, smallest, or largest in magnitude.
    method : {"lanczos", "lobpcg"}
        Lanczos' with thick restarts, or SciPy's block method, which finds all copies of multiple eigenvalues, but takes more
        products and host memory.
    tol : float
        Residual ||H v - lambda v|| relative to the largest magnitude of an eigenvalue that is found.
    max_matvec : int, optional
        Limit of products, by default 100 k + 1000.
    basis : int, optional
        Vectors that are kept, more than k; by default max(2 k + 1, 32). More save products.
    rng : numpy.random.Generator or int
        Draws the first vector.
    raise_on_failure : bool
        Raise `ConvergenceError` instead of warning when the tolerance is not met.

    Returns
    -------
    Eigenpairs
        Values, vectors, and residuals that prove them.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong; the message names it.
    ConvergenceError
        When the tolerance is not met and `raise_on_failure` is set.

    Warns
    -----
    ConvergenceWarning
        When it is not met. The best pairs are returned.

    Notes
    -----
    O(n basis) memory, O(n basis) work for each product beside it. A small residual proves that there is an eigenvalue near, not
    that none is missed: of a multiple eigenvalue Lanczos' method shows one copy, others come by rounding; `"lobpcg"` shows all.

    References
    ----------
    K. Wu, H. Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems, SIAM J. Matrix Anal. Appl. 22, 2000.
    A. V. Knyazev, Toward the optimal preconditioned eigensolver: LOBPCG, SIAM J. Sci. Comput. 23, 2001.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.curvature import eigsh
    >>> eigsh(np.diag(np.arange(100.0)), 2).values.round(6)
    array([99., 98.])
    """
    op = as_operator(op)
    n, wanted = op.shape[0], validate.integer(k, "k", low=1)
    if wanted > n:
        msg = f"k must be at most n = {n}, got {wanted}"
        raise ValueError(msg)
    order, way = validate.choice(which, "which", WHICH), validate.choice(method, "method", METHODS)
    if basis is not None:
        validate.integer(basis, "basis", low=wanted + 1)
    limit = 100 * wanted + 1000 if max_matvec is None else validate.integer(max_matvec, "max_matvec", low=1)
    strict, target, before = validate.boolean(raise_on_failure, "raise_on_failure"), validate.real(tol, "tol", low=0.0), op.nmatvec
    if way == "lanczos":
        pairs = thick_restart(op, wanted, order, tol=target, max_matvec=limit, basis=basis, rng=generator(rng))
    elif order == "LM" or basis is not None:
        msg = 'method="lobpcg" finds which="LA" or "SA", and takes no basis: use method="lanczos"'
        raise ValueError(msg)
    else:
        pairs = lobpcg(op, wanted, order, tol=target, max_matvec=limit, rng=generator(rng))
    return report(_certified(op, wanted, pairs, target, limit, before), raise_on_failure=strict)


def _certified(
    op: SymmetricOperator, k: int, pairs: tuple[np.ndarray, Array, float] | None, tol: float, limit: int, before: int
) -> Eigenpairs:
    """With residuals from products of their own."""
    if pairs is None:
        empty, status = np.full(k, math.nan), Status.NOT_FINITE
        vectors = op.xp.full((op.shape[0], k), math.nan, dtype=op.dtype, device=op.device)
        return Eigenpairs(empty, vectors, empty, op.nmatvec - before, False, status, _MESSAGES[status])
    values, vectors, largest = pairs
    rest = op.matmat(vectors) - vectors * op.xp.asarray(values, dtype=op.dtype, device=op.device)[None, :]
    residuals = np.array([float(v) for v in op.xp.linalg.vector_norm(rest, axis=0)])
    info = op.xp.finfo(op.dtype)
    if not math.sqrt(float(info.smallest_normal)) < largest < math.sqrt(float(info.max)) and largest != 0.0:
        status = Status.NUMERICAL_FAILURE  # norms of vectors of this size are 0 or infinite
        return Eigenpairs(values, vectors, residuals, op.nmatvec - before, False, status, _MESSAGES[status])
    good = len(values) == k and bool(np.all(residuals <= tol * largest))
    status = Status.SUCCESS if good else Status.ITERATION_LIMIT if op.nmatvec - before >= limit else Status.STALLED
    return Eigenpairs(values, vectors, residuals, op.nmatvec - before, good, status, _MESSAGES[status])


_MESSAGES = {
    Status.SUCCESS: "all residuals are below the tolerance",
    Status.ITERATION_LIMIT: "the products are used up: raise max_matvec or basis, or raise tol",
    Status.STALLED: "the residuals fall no more: raise tol, products are not as exact, or not those of a symmetric operator",
    Status.NUMERICAL_FAILURE: "eigenvalues over- or underflow when they are squared: multiply the operator by a number",
    Status.NOT_FINITE: "a product is not finite: look at the function that computes it, and at the data",
}
