"""The randomised Nystrom approximation of a positive semi-definite operator: a solver, and a preconditioner."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from otbilevel._core import validate
from otbilevel._core.array import Array
from otbilevel._core.rng import draw, generator
from otbilevel.linalg.conversion import as_operator


@dataclass(frozen=True, eq=False)
class Nystrom:
    """H ~ U diag(values) U' with orthonormal columns of U.

    Attributes
    ----------
    values : (r,) array
        Approximate eigenvalues, in descending order.
    vectors : (n, r) array
        U.
    """

    values: Array
    vectors: Array

    def solve(self, x: Array, damping: float) -> Array:
        """(U diag(values) U' + damping I)^-1 x; for ``damping=0`` the pseudo-inverse.

        Parameters
        ----------
        x : (n,) array
            The right-hand side.
        damping : float
            What is added to the diagonal.

        Returns
        -------
        (n,) array
            The solution.
        """
        inside = self.vectors.T @ x
        if damping > 0:
            return self.vectors @ (inside / (self.values + damping) - inside / damping) + x / damping
        xp_values, floor = self.values, 1e-14 * float(self.values[0]) if self.values.shape[0] else 0.0
        kept = xp_values > floor
        inverse = (1.0 / (xp_values + (xp_values <= floor) * 1.0)) * kept
        return self.vectors @ (inverse * inside)

    def precondition(self, x: Array, damping: float) -> Array:
        """The preconditioner of H + damping I, which takes eigenvalues beyond the approximation for its last one (ibid., (1.3)).

        Parameters
        ----------
        x : (n,) array
            The residual.
        damping : float
            What is added to the diagonal of H.

        Returns
        -------
        (n,) array
            The preconditioned residual.
        """
        last = float(self.values[-1]) + damping
        inside = self.vectors.T @ x
        if not last > 0:
            last = 1e-8 * float(self.values[0]) or 1.0
        return self.vectors @ (inside * (last / (self.values + damping + 1e-300) - 1.0)) + x


def nystrom(op: Any, rank: int, *, rng: Any = None) -> Nystrom:
    """Approximate a positive semi-definite operator on the range of its product with random vectors.

    Parameters
    ----------
    op : SymmetricOperator or (n, n) array_like
        H, positive semi-definite.
    rank : int
        Products, and rank of the approximation; n at most.
    rng : numpy.random.Generator or int, optional
        Draws the vectors.

    Returns
    -------
    Nystrom
        Eigenvalues and eigenvectors of the approximation.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong, or the operator is found not to be positive semi-definite; the message names it.

    Notes
    -----
    O(n rank) memory, O(n rank^2) work.

    References
    ----------
    Z. Frangella, J. A. Tropp, M. Udell, Randomized Nystrom preconditioning, SIAM J. Matrix Anal. Appl. 44, 2023, Algorithm 2.1.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.linalg import nystrom
    >>> v = np.arange(5.0)
    >>> float(nystrom(np.outer(v, v), 2, rng=0).values[0].round(6))
    30.0
    """
    op = as_operator(op)
    xp, n = op.xp, op.shape[0]
    r = min(validate.integer(rank, "rank", low=1), n)
    omega = draw(generator(rng), "gaussian", (n, r), xp, dtype=op.dtype, device=op.device)
    omega, _ = xp.linalg.qr(omega)
    product = op.matmat(omega)
    size = float(xp.linalg.matrix_norm(product))
    if not size < math.inf:
        msg = "the products of op are not finite: look at the function that computes them, and at the data"
        raise ValueError(msg)
    shift = float(xp.finfo(op.dtype).eps) * size or 1.0
    core = omega.T @ product + shift * xp.eye(r, dtype=op.dtype, device=op.device)
    values, vectors = xp.linalg.eigh(0.5 * (core + core.T))
    if not float(values[0]) > -1e-6 * size:
        msg = (
            f"op is not positive semi-definite: v'Hv = {float(values[0]):.3g} for a vector of norm 1; add damping, or take "
            'method="minres"'
        )
        raise ValueError(msg)
    shifted = product + shift * omega
    floor = 0.1 * shift
    safe = xp.where(values > floor, values, xp.full_like(values, floor))
    left, singular, _ = xp.linalg.svd((shifted @ vectors) / xp.sqrt(safe), full_matrices=False)
    squares = singular**2 - shift
    return Nystrom(xp.where(squares > 0, squares, xp.zeros_like(squares)), left)
