"""The randomised Nystrom approximation of a positive semi-definite operator: a solver, and a preconditioner."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace, device, to_host
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
        shifted = to_host(self.values) + damping
        known = shifted > 1e-8 * shifted[0]  # the rest is noise, and left as it is, like what lies beyond the approximation
        last = shifted[known].min(initial=math.inf)
        factors = np.where(known, last / np.where(known, shifted, 1.0), 1.0) - 1.0 if known.any() else np.zeros(len(shifted))
        xp = array_namespace(self.vectors)
        weights = xp.asarray(factors, dtype=self.vectors.dtype, device=device(self.vectors))
        return self.vectors @ (weights * (self.vectors.T @ x)) + x


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
    core = omega.T @ product
    noise = max(op.precision * size, float(xp.linalg.matrix_norm(core - core.T)))  # products are not exactly symmetric, either
    shift = noise or 1.0
    values, vectors = xp.linalg.eigh(0.5 * (core + core.T) + shift * xp.eye(r, dtype=op.dtype, device=op.device))
    if not float(values[0]) > -max(1e-6 * size, 10 * noise):
        msg = (
            f"op is not positive semi-definite: v'Hv = {float(values[0]):.3g} for a vector of norm 1; add damping, or take "
            'method="minres"'
        )
        raise ValueError(msg)
    shifted = product + shift * omega
    known = values > 2.0 * shift  # what is smaller is noise, which a division by it would make large
    safe = xp.where(known, values, xp.ones_like(values))
    scaled = xp.where(known, xp.ones_like(values), xp.zeros_like(values)) / xp.sqrt(safe)
    left, singular, _ = xp.linalg.svd((shifted @ vectors) * scaled, full_matrices=False)
    squares = singular**2 - shift
    return Nystrom(xp.where(squares > 0, squares, xp.zeros_like(squares)), left)
