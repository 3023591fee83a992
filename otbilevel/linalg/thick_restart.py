"""Lanczos' method with thick restarts: extremal eigenpairs in a basis of bounded size, in any array library."""

from __future__ import annotations

import numpy as np

from otbilevel._core.array import Array
from otbilevel._core.rng import draw
from otbilevel.linalg.lanczos import orthogonal
from otbilevel.linalg.operators import SymmetricOperator

SMALL = 32
"""Vectors that a basis holds at least, unless the caller says otherwise."""


def thick_restart(
    op: SymmetricOperator, k: int, which: str, *, tol: float, max_matvec: int, basis: int | None, rng: np.random.Generator
) -> tuple[np.ndarray, Array, float] | None:
    """Extremal Ritz pairs of a symmetric operator.

    Parameters
    ----------
    op : SymmetricOperator
        H.
    k : int
        How many.
    which : {"LA", "SA", "LM"}
        Largest, smallest, or largest in magnitude.
    tol : float
        Estimate of the residual, relative to the largest magnitude of an eigenvalue.
    max_matvec : int
        Limit of products.
    basis : int, optional
        Vectors that are kept.
    rng : numpy.random.Generator
        Draws the first vector.

    Returns
    -------
    values, vectors, largest : (k,) ndarray, (n, k) array, float
        Ritz values, the most wanted first; their vectors of norm 1; the largest magnitude met. None when a product is not finite.

    References
    ----------
    K. Wu, H. Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems, SIAM J. Matrix Anal. Appl. 22, 2000.
    """
    before = op.nmatvec
    space = _Space(op, min(op.shape[0], max(2 * k + 1, SMALL) if basis is None else basis), rng)
    while True:
        space.expand(max_matvec - (op.nmatvec - before))
        if space.failed:
            return None
        chosen = space.choose(which, k)
        if space.exhausted or np.all(space.estimates[chosen] <= 0.3 * tol * space.largest):
            break
        if op.nmatvec - before >= max_matvec or not space.restart(chosen):
            break
    return space.values[chosen], space.vectors(chosen), space.largest


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
        keys = {"LA": -self.values, "SA": self.values, "LM": -np.abs(self.values)}[which]
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
