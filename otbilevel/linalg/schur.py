"""The Schur complement of a block of a symmetric operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from otbilevel._core.array import Array, as_array
from otbilevel.linalg.conversion import as_operator
from otbilevel.linalg.operators import SymmetricOperator


class SchurComplement(SymmetricOperator):
    """S = A - B C^-1 B' of the block C in the symmetric operator (A, B; B', C), which is never formed.

    Parameters
    ----------
    A : SymmetricOperator or (n, n) array_like
        The block that stays.
    B : (n, m) array_like
        The coupling.
    C : (m, m) array_like or callable
        The block that is eliminated: a symmetric positive definite matrix, or a function that solves with it, (m,) or (m, k) to the
        same.
    psd : bool
        Whether the whole operator is positive semi-definite, and so S.

    Raises
    ------
    TypeError, ValueError
        When shapes do not match, or C is not positive definite; the message names it.

    Notes
    -----
    A matrix C is factorised once, O(m^3); then a product takes one with A, two with B, and a solve with C.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.linalg import SchurComplement
    >>> S = SchurComplement(np.array([[4.0]]), np.array([[2.0]]), np.array([[2.0]]))
    >>> S @ np.ones(1)
    array([2.])
    >>> S.expand(np.array([1.0]), np.array([4.0]))  # y from x: B'x + C y = 4
    array([1.])
    """

    def __init__(self, A: Any, B: Any, C: Any, *, psd: bool = False) -> None:  # noqa: N803 -- the field's names
        self._A = as_operator(A, "A")
        self._B = as_array(B, "B")
        n = self._A.shape[0]
        if len(self._B.shape) != 2 or self._B.shape[0] != n:
            msg = f"B must have shape ({n}, m), as A has {n} rows, got {tuple(self._B.shape)}"
            raise ValueError(msg)
        super().__init__(n, self._B, psd=psd)
        self._solve: Callable[[Array], Array] = C if callable(C) else self._solver(C)

    def _solver(self, C: Any) -> Callable[[Array], Array]:  # noqa: N803
        matrix = as_operator(C, "C").to_dense()
        m, xp = self._B.shape[1], self.xp
        if tuple(matrix.shape) != (m, m):
            msg = f"C must have shape {(m, m)}, as B has {m} columns, got {tuple(matrix.shape)}"
            raise ValueError(msg)
        try:
            lower = xp.linalg.cholesky(matrix)
        except Exception as error:  # every library has its own
            msg = "C is not positive definite: add damping, or give a function that solves with it"
            raise ValueError(msg) from error
        inverse = xp.linalg.solve(lower, xp.eye(m, dtype=matrix.dtype, device=self.device))
        return lambda v: inverse.T @ (inverse @ v)

    def _matvec(self, x: Array) -> Array:
        return self._A.matvec(x) - self._B @ self._solve(self._B.T @ x)

    def _matmat(self, X: Array) -> Array:  # noqa: N803
        return self._A.matmat(X) - self._B @ self._solve(self._B.T @ X)

    def reduce(self, f: Any, g: Any) -> Array:
        """The right-hand side of S x = f - B C^-1 g that A x + B y = f, B'x + C y = g leave.

        Parameters
        ----------
        f, g : (n,), (m,) array_like
            The right-hand sides.

        Returns
        -------
        (n,) array
            f - B C^-1 g.
        """
        return as_array(f, "f") - self._B @ self._solve(as_array(g, "g"))

    def expand(self, x: Any, g: Any) -> Array:
        """The eliminated part of the solution, y = C^-1 (g - B'x).

        Parameters
        ----------
        x, g : (n,), (m,) array_like
            The part that is known, and the right-hand side of the block that was eliminated.

        Returns
        -------
        (m,) array
            y.
        """
        return self._solve(as_array(g, "g") - self._B.T @ as_array(x, "x"))
