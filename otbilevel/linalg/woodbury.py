"""M-FAC: the inverse of a damped empirical Fisher matrix, through the Gram matrix of its gradients."""

from __future__ import annotations

import math
from typing import Any

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace, as_array, device
from otbilevel.linalg.conversion import in_library, like_input
from otbilevel.linalg.operators import SymmetricOperator


class MFAC(SymmetricOperator):
    """F = damping I + sum_i g_i g_i' / min(count, window) over the last `window` gradients, and its inverse.

    With the gradients as rows of G, c = min(count, window) and the Gram matrix S = G G',

        F^-1 x = (x - G' (c damping I + S)^-1 G x) / damping.

    Parameters
    ----------
    d : int
        Dimension of the gradients.
    window : int
        How many are kept; a newer one replaces the oldest.
    damping : float
        Damping > 0.
    block_size : int, optional
        F is then block diagonal with blocks of this size (the last may be smaller), each of rank `window`.
    like : array, optional
        An array of the library, device and floating dtype to work in, by default NumPy's double precision.

    Attributes
    ----------
    count : int
        Gradients added so far.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong; the message names it.

    Notes
    -----
    `add` takes O(d m) for the window m, the first product after it O(m^3), and every product O(d m), two passes over G. `diagonal`
    and the first `element` make an array like G, O(d m^2), and each element O(m). Memory is O(d m). S is kept in double precision.
    Where x lies in the span of the gradients, x and what is taken from it nearly cancel: the relative error is about
    eps max_i |g_i|^2 / (m damping), here as in the recursion of the paper. In single precision take damping well above
    1e-6 |g|^2 / m, or gradients in double precision.

    References
    ----------
    E. Frantar, E. Kurtic, D. Alistarh, M-FAC: efficient matrix-free approximations of second-order information, NeurIPS 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.curvature import MFAC
    >>> F = MFAC(3, window=2, damping=1.0)
    >>> F.add(np.array([1.0, 0.0, 1.0]))
    >>> F.solve(np.ones(3)).round(3), round(F.element(0, 2), 3)
    (array([0.333, 1.   , 0.333]), -0.333)
    """

    def __init__(self, d: int, window: int, damping: float, *, block_size: int | None = None, like: Any = None) -> None:
        d, self.window = validate.integer(d, "d", low=1), validate.integer(window, "window", low=1)
        self.damping = validate.real(damping, "damping", low=0.0, strict=True)
        self._block = d if block_size is None else min(d, validate.integer(block_size, "block_size", low=1))
        like = as_array([0.0] if like is None else like, "like")
        super().__init__(d, like, psd=True)
        self._blocks = math.ceil(d / self._block)
        self._G = self._zeros(self._blocks, self.window, self._block)
        self._S = self._zeros(self._blocks, self.window, self.window, double=True)
        self.count = 0
        self._borrowed = False
        self._factor: Array | None = None
        self._white: Array | None = None

    @classmethod
    def from_gradients(cls, gradients: Any, damping: float, *, block_size: int | None = None) -> MFAC:
        """Make it of all gradients at once: one matrix product for the Gram matrix.

        Parameters
        ----------
        gradients : (m, d) array_like
            One a row; m is the window.
        damping : float
            Damping > 0.
        block_size : int, optional
            As for the class.

        Returns
        -------
        MFAC
            With all gradients in its window.
        """
        G = as_array(gradients, "gradients")  # noqa: N806
        if len(G.shape) != 2 or 0 in G.shape:
            msg = f"gradients must have shape (m, d), one a row, got {tuple(G.shape)}"
            raise ValueError(msg)
        made = cls(G.shape[1], G.shape[0], damping, block_size=block_size, like=G[:0, 0])
        made._require_finite(G, "gradients")
        made._G = made.xp.permute_dims(made._cut(G), (1, 0, 2)) if made._blocks > 1 else G[None, :, :]
        made._borrowed = made._blocks == 1  # the caller's own memory, until a gradient is added
        made._S = made.xp.astype(made._G @ made.xp.matrix_transpose(made._G), made.xp.float64)
        made.count = G.shape[0]
        return made

    @property
    def size(self) -> int:
        """Gradients in the window."""
        return min(self.count, self.window)

    def add(self, gradient: Any) -> None:
        """Put a gradient into the window, in place of the oldest when that is full.

        Parameters
        ----------
        gradient : (d,) array_like
            The gradient, finite.
        """
        g = self._operand(in_library(self, gradient, "the gradient"), 1)
        if self._borrowed:
            self._G, self._borrowed = self.xp.asarray(self._G, copy=True), False
        self._require_finite(g, "the gradient")
        slot, parts = self.count % self.window, self._cut(self.xp.astype(g, self.dtype)[None, :])[0, :, :]
        self._G[:, slot, :] = parts
        row = self.xp.astype((self._G @ parts[:, :, None])[:, :, 0], self.xp.float64)
        self._S[:, slot, :] = row
        self._S[:, :, slot] = row
        self.count += 1
        self._changed()

    def solve(self, x: Any) -> Array:
        """F^-1 x.

        Parameters
        ----------
        x : (d,) or (d, k) array_like
            The right-hand side, or several as columns.

        Returns
        -------
        (d,) or (d, k) array
            The solution.
        """
        given = as_array(x, "x")
        return like_input(self._solve(self._operand(self._own(given), len(given.shape))), given)

    def _solve(self, x: Array) -> Array:
        if self.count == 0:
            return x / self.damping
        flat = len(x.shape) == 1
        columns = self._cut((x[:, None] if flat else x).T)  # (k, blocks, block)
        columns = self.xp.permute_dims(columns, (1, 2, 0))
        inner = self.xp.astype(self._G @ columns, self.xp.float64)
        weights = self.xp.matrix_transpose(self._inverse_factor) @ (self._inverse_factor @ inner)
        inside = self._join(self.xp.matrix_transpose(self._G) @ self.xp.astype(weights, self.dtype))
        return (x - (inside[:, 0] if flat else inside)) / self.damping

    def diagonal(self) -> Array:
        """The diagonal of F^-1.

        Returns
        -------
        (d,) array
            Its entries.
        """
        squares = self.xp.sum(self._whitened**2, axis=1)
        return (1.0 - self.xp.reshape(squares, (-1,))[: self.shape[0]]) / self.damping

    def element(self, k: int, l: int) -> float:  # noqa: E741 -- the paper's letter
        """Entry (k, l) of F^-1.

        Parameters
        ----------
        k, l : int
            Row and column.

        Returns
        -------
        float
            The entry.
        """
        n = self.shape[0]
        for name, index in (("k", k), ("l", l)):
            if not validate.integer(index, name) < n:
                msg = f"{name} must be less than {n}, got {index}"
                raise ValueError(msg)
        if k // self._block != l // self._block:
            return 0.0
        V, i, j = self._whitened[k // self._block, :, :], k % self._block, l % self._block  # noqa: N806
        return (float(k == l) - float(self.xp.sum(V[:, i] * V[:, j]))) / self.damping

    def _matvec(self, x: Array) -> Array:
        return like_input(self._times(self._own(x)[:, None])[:, 0], x)

    def _matmat(self, X: Array) -> Array:  # noqa: N803
        return like_input(self._times(self._own(X)), X)

    def _own(self, x: Array) -> Array:
        """In the library and dtype of the gradients."""
        return self.xp.astype(in_library(self, x, "x"), self.dtype, copy=False)

    def _times(self, X: Array) -> Array:  # noqa: N803
        if self.count == 0:
            return self.damping * X
        columns = self.xp.permute_dims(self._cut(X.T), (1, 2, 0))
        product = self._join(self.xp.matrix_transpose(self._G) @ (self._G @ columns))
        return self.damping * X + product / self.size

    @property
    def _inverse_factor(self) -> Array:
        """L^-1 for c damping I + S = L L', (blocks, window, window); slots that are empty have S = 0 there."""
        if self._factor is None:
            xp = self.xp
            eye = xp.eye(self.window, dtype=xp.float64, device=self.device)
            try:
                lower = xp.linalg.cholesky(self._S + max(self.size, 1) * self.damping * eye)
            except Exception as error:  # every library has its own
                msg = f"damping = {self.damping:g} is lost in the rounding of the gradients' products: raise it"
                raise ValueError(msg) from error
            self._factor = xp.linalg.solve(lower, xp.broadcast_to(eye, lower.shape))
        return self._factor

    @property
    def _whitened(self) -> Array:
        """V = L^-1 G, (blocks, window, block)."""
        if self._white is None:
            self._white = self.xp.astype(self._inverse_factor, self.dtype) @ self._G
        return self._white

    def _changed(self) -> None:
        self._factor = self._white = None

    def _zeros(self, *shape: int, double: bool = False) -> Array:
        return self.xp.zeros(shape, dtype=self.xp.float64 if double else self.dtype, device=self.device)

    def _cut(self, rows: Array) -> Array:
        """(k, d) to (k, blocks, block), filled up with zeros."""
        missing = self._blocks * self._block - rows.shape[1]
        if missing:
            rows = self.xp.concat([rows, self.xp.zeros((rows.shape[0], missing), dtype=rows.dtype, device=device(rows))], axis=1)
        return self.xp.reshape(rows, (rows.shape[0], self._blocks, self._block))

    def _join(self, columns: Array) -> Array:
        """(blocks, block, k) to (d, k)."""
        return self.xp.reshape(columns, (-1, columns.shape[2]))[: self.shape[0], :]

    def _require_finite(self, values: Array, name: str) -> None:
        xp = array_namespace(values)
        if not bool(xp.all(xp.isfinite(values))):
            msg = f"{name} must be finite, but holds NaN or infinity: leave that batch out"
            raise ValueError(msg)
