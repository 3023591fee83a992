"""Extremal eigenvalues by Lanczos' method with thick restarts, every residual computed afresh."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from otbilevel._core import validate
from otbilevel._core.array import Array
from otbilevel._core.result import Result, Status, report
from otbilevel._core.rng import draw, generator
from otbilevel.linalg.conversion import as_operator
from otbilevel.linalg.lanczos import orthogonal
from otbilevel.linalg.operators import SymmetricOperator

WHICH = ("LA", "SA", "LM")
SMALL = 32
"""Vectors that a basis holds at least."""


@dataclass(frozen=True, repr=False, eq=False)
class Eigenpairs(Result):
    """What `eigsh` returns.

    Attributes
    ----------
    values : (k,) ndarray
        Eigenvalues in descending order ("SA": ascending; "LM": by magnitude), in host memory.
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
    that none is missed: of a multiple eigenvalue a single vector shows one copy, others come by rounding.

    References
    ----------
    K. Wu, H. Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems, SIAM J. Matrix Anal. Appl. 22, 2000.

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
    order = validate.choice(which, "which", WHICH)
    size = min(n, max(2 * wanted + 1, SMALL) if basis is None else validate.integer(basis, "basis", low=wanted + 1))
    limit = 100 * wanted + 1000 if max_matvec is None else validate.integer(max_matvec, "max_matvec", low=1)
    strict, target, before = validate.boolean(raise_on_failure, "raise_on_failure"), validate.real(tol, "tol", low=0.0), op.nmatvec
    space = _Space(op, size, generator(rng))
    while True:
        space.expand(limit - (op.nmatvec - before))
        chosen = space.choose(order, wanted)
        if space.failed or space.exhausted or np.all(space.estimates[chosen] <= 0.3 * target * space.largest):
            break
        if op.nmatvec - before >= limit or not space.restart(chosen):
            break
    if space.failed:
        empty = np.full(wanted, math.nan)
        vectors = op.xp.full((n, wanted), math.nan, dtype=op.dtype, device=op.device)
        found = Eigenpairs(empty, vectors, empty, op.nmatvec - before, False, Status.NOT_FINITE, _MESSAGES[Status.NOT_FINITE])
        return report(found, raise_on_failure=strict)
    values, vectors = space.values[chosen], space.vectors(chosen)
    rest = op.matmat(vectors) - vectors * op.xp.asarray(values, dtype=op.dtype, device=op.device)[None, :]
    residuals = np.array([float(v) for v in op.xp.linalg.vector_norm(rest, axis=0)])
    good = len(values) == wanted and bool(np.all(residuals <= target * max(space.largest, 0.0)))
    status = Status.SUCCESS if good else Status.ITERATION_LIMIT if op.nmatvec - before >= limit else Status.STALLED
    return report(
        Eigenpairs(values, vectors, residuals, op.nmatvec - before, good, status, _MESSAGES[status]), raise_on_failure=strict
    )


class _Space:
    """Orthonormal rows Q, and T = Q H Q' on the host: diagonal, with an arrow to the first new vector, then tridiagonal."""

    def __init__(self, op: SymmetricOperator, size: int, rng: np.random.Generator) -> None:
        self.op, self.xp, self.size = op, op.xp, size
        self._rng = rng
        self._Q = op.xp.zeros((size, op.shape[0]), dtype=op.dtype, device=op.device)
        self._T = np.zeros((size, size))
        self._count = self._kept = 0
        self._next, self._beta = self._random(), 0.0
        self.failed = self.exhausted = False
        self.largest = 0.0

    def _random(self) -> Array:
        start = draw(self._rng, "gaussian", (self.op.shape[0],), self.xp, dtype=self.op.dtype, device=self.op.device)
        start, _, size = orthogonal(start, self._Q[: self._count, :], self._count)
        return start / size

    def expand(self, budget: int) -> None:
        """Fill the basis by products with its last vector."""
        while self._count < self.size and budget > 0:
            k = self._count
            self._Q[k, :] = self._next
            self._count = k + 1
            near = self._count if k == self._kept else 2  # the first new vector is coupled to all that were kept
            w, column, self._beta = orthogonal(self.op.matvec(self._next), self._Q[: self._count, :], near)
            budget -= 1
            if not np.all(np.isfinite(column)):
                self.failed = True
                return
            self._T[: k + 1, k] = self._T[k, : k + 1] = column
            self.largest = max(self.largest, float(np.max(np.abs(column))), self._beta)
            if self._count == self.op.shape[0]:
                self._beta, self.exhausted = 0.0, True
                break
            if self._beta > 1e-13 * self.largest:
                self._next = w / self._beta
            else:  # an invariant subspace: go on in its complement
                self._beta, self._next = 0.0, self._random()
        values, self._S = np.linalg.eigh(self._T[: self._count, : self._count])
        self.values = values
        self.largest = max(self.largest, float(np.max(np.abs(values))))
        self.estimates = self._beta * np.abs(self._S[-1, :])

    def choose(self, which: str, k: int) -> np.ndarray:
        """Places of the wanted Ritz values, the most wanted first."""
        keys = {"LA": -self.values, "SA": self.values, "LM": -np.abs(self.values)}[which] if not self.failed else np.zeros(0)
        return np.argsort(keys, kind="stable")[:k]

    def vectors(self, chosen: np.ndarray) -> Array:
        """Ritz vectors, one a column, of norm 1."""
        shares = self.xp.asarray(self._S[:, chosen], dtype=self.op.dtype, device=self.op.device)
        V = self._Q[: self._count, :].T @ shares  # noqa: N806
        return V / self.xp.linalg.vector_norm(V, axis=0, keepdims=True)

    def restart(self, chosen: np.ndarray) -> bool:
        """Keep the wanted Ritz vectors and some more next to them; False when there is no room to go on."""
        if self._count < self.size:
            return True
        k = len(chosen)
        kept = min(k + max(1, (self.size - k) // 3), self.size - 1)
        reference = self.values[chosen]
        distance = np.min(np.abs(self.values[:, None] - reference[None, :]), axis=1)
        places = np.argsort(distance, kind="stable")[:kept]
        shares = self.xp.asarray(self._S[:, places], dtype=self.op.dtype, device=self.op.device)
        self._Q[:kept, :] = shares.T @ self._Q[: self._count, :]
        self._T[:] = 0.0
        self._T[range(kept), range(kept)] = self.values[places]
        self._count = self._kept = kept
        return True


_MESSAGES = {
    Status.SUCCESS: "all residuals are below the tolerance",
    Status.ITERATION_LIMIT: "the products are used up: raise max_matvec or basis, or raise tol",
    Status.STALLED: "the residuals fall no more: raise tol, products are not as exact, or not those of a symmetric operator",
    Status.NOT_FINITE: "a product is not finite: look at the function that computes it, and at the data",
}
