"""Symmetric linear operators that are known by their products, and what can be made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from scipy.sparse.linalg import LinearOperator as ScipyOperator

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace, as_array, device, to_numpy

BLOCK = 2**20
"""Numbers of unit vectors that are multiplied at a time."""


@runtime_checkable
class LinearOperator(Protocol):
    """A square linear map of R^n, given by its product with a vector.

    Any object with these two members is one; nothing needs to be inherited.

    Attributes
    ----------
    shape : tuple of int
        ``(n, n)``.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """The shape ``(n, n)``."""
        ...

    def matvec(self, x: Array, /) -> Array:
        """Return the product with a vector `x` of shape (n,), in the same array library."""
        ...


class SymmetricOperator(ABC):
    """A symmetric linear map of R^n: products, sums, multiples, damping, parts, and the way to SciPy.

    A subclass gives `_matvec`, and `_matmat` where several vectors at a time are cheaper.

    Parameters
    ----------
    n : int
        The dimension.
    like : array
        An array of the library, on the device and of the floating dtype that the products have.
    psd : bool
        Whether the operator is known to be positive semi-definite.
    precision : float, optional
        Relative rounding of products, by default that of the dtype; more where they are computed in a lower precision.

    Attributes
    ----------
    shape : tuple of int
        ``(n, n)``.
    psd, precision
        As given.
    xp, device, dtype
        Where products live.
    nmatvec : int
        How many vectors have been multiplied so far.
    """

    def __init__(self, n: int, like: Array, *, psd: bool = False, precision: float | None = None) -> None:
        self.shape = (n, n)
        self.psd = psd
        self.xp: ModuleType = array_namespace(like)
        self.device, self.dtype = device(like), like.dtype
        self.precision = float(self.xp.finfo(like.dtype).eps) if precision is None else precision
        self.nmatvec = 0

    @abstractmethod
    def _matvec(self, x: Array) -> Array:
        """The product with a vector of shape (n,)."""

    def _matmat(self, X: Array) -> Array:  # noqa: N803 -- a matrix
        """The product with a matrix of shape (n, k)."""
        return self.xp.stack([self._matvec(X[:, j]) for j in range(X.shape[1])], axis=1) if X.shape[1] else X

    def matvec(self, x: Any, /) -> Array:
        """Return the product with a vector.

        Parameters
        ----------
        x : (n,) array_like
            The vector.

        Returns
        -------
        (n,) array
            The product.
        """
        x = self._operand(x, 1)
        self.nmatvec += 1
        return self._matvec(x)

    def matmat(self, X: Any, /) -> Array:  # noqa: N803
        """Return the product with the columns of a matrix.

        Parameters
        ----------
        X : (n, k) array_like
            The matrix.

        Returns
        -------
        (n, k) array
            The product.
        """
        X = self._operand(X, 2)  # noqa: N806
        self.nmatvec += X.shape[1]
        return self._matmat(X)

    rmatvec, rmatmat = matvec, matmat

    def _operand(self, x: Any, ndim: int) -> Array:
        x = as_array(x, "the operand")
        if len(x.shape) != ndim or x.shape[0] != self.shape[1]:
            wanted = f"({self.shape[1]},)" if ndim == 1 else f"({self.shape[1]}, k)"
            msg = f"the operator takes arrays of shape {wanted}, got {tuple(x.shape)}"
            raise ValueError(msg)
        return x

    def __matmul__(self, x: Any) -> Array:
        if isinstance(x, SymmetricOperator):
            msg = "the product of two symmetric operators need not be symmetric: apply one after the other"
            raise TypeError(msg)
        return self.matvec(x) if len(getattr(x, "shape", np.shape(x))) == 1 else self.matmat(x)

    def __add__(self, other: Any) -> SymmetricOperator:
        return Sum(self, other) if isinstance(other, SymmetricOperator) else NotImplemented

    def __sub__(self, other: Any) -> SymmetricOperator:
        return Sum(self, Scaled(other, -1.0)) if isinstance(other, SymmetricOperator) else NotImplemented

    def __mul__(self, factor: Any) -> SymmetricOperator:
        return Scaled(self, validate.real(factor, "the factor"))

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> SymmetricOperator:
        return Scaled(self, 1.0 / validate.real(divisor, "the divisor"))

    def __neg__(self) -> SymmetricOperator:
        return Scaled(self, -1.0)

    def damp(self, damping: float) -> SymmetricOperator:
        """Return H + damping I.

        Parameters
        ----------
        damping : float
            What is added to the diagonal.

        Returns
        -------
        SymmetricOperator
            The sum.
        """
        return Damped(self, validate.real(damping, "damping"))

    def restrict(self, indices: Any) -> SymmetricOperator:
        """Return the part of some rows and the same columns.

        Parameters
        ----------
        indices : (k,) array_like of int or (n,) array_like of bool
            Which ones.

        Returns
        -------
        SymmetricOperator
            The (k, k) operator.
        """
        return Restricted(self, indices)

    def to_dense(self) -> Array:
        """Return the matrix, by n products. O(n^2) memory.

        Returns
        -------
        (n, n) array
            The matrix.
        """
        n, width = self.shape[0], max(1, BLOCK // self.shape[0])
        blocks = []
        for low in range(0, n, width):
            unit = self.xp.eye(n, min(width, n - low), k=-low, dtype=self.dtype, device=self.device)
            blocks.append(self.matmat(unit))
        return self.xp.concat(blocks, axis=1)

    def to_scipy(self) -> ScipyOperator:
        """Return the operator as SciPy's, which takes and gives NumPy arrays; only for products in host memory.

        Returns
        -------
        scipy.sparse.linalg.LinearOperator
            The operator in double precision.
        """

        def moved(product: Callable[[Array], Array]) -> Callable[[np.ndarray], np.ndarray]:
            def run(x: np.ndarray) -> np.ndarray:
                given = self.xp.asarray(np.ascontiguousarray(x), dtype=self.dtype, device=self.device)
                return to_numpy(product(given)).astype(np.float64, copy=False)

            return run

        vector = moved(lambda x: self.matvec(self.xp.reshape(x, (-1,))))
        matrix = moved(self.matmat)
        return ScipyOperator(self.shape, matvec=vector, rmatvec=vector, matmat=matrix, rmatmat=matrix, dtype=np.float64)

    def __repr__(self) -> str:
        n, m = self.shape
        return f"{type(self).__name__}({n} x {m}{', psd' if self.psd else ''}, {self.dtype})"


class Sum(SymmetricOperator):
    """A + B."""

    def __init__(self, first: SymmetricOperator, second: SymmetricOperator) -> None:
        if first.shape != second.shape:
            msg = f"operators of one shape can be added, got {first.shape} and {second.shape}"
            raise ValueError(msg)
        if first.xp is not second.xp or str(first.device) != str(second.device):
            msg = f"operators of one array library and device can be added, got {first!r} and {second!r}"
            raise TypeError(msg)
        rounding = max(first.precision, second.precision)
        super().__init__(first.shape[0], _empty(first), psd=first.psd and second.psd, precision=rounding)
        self._first, self._second = first, second

    def _matvec(self, x: Array) -> Array:
        return self._first.matvec(x) + self._second.matvec(x)

    def _matmat(self, X: Array) -> Array:  # noqa: N803
        return self._first.matmat(X) + self._second.matmat(X)


class Scaled(SymmetricOperator):
    """factor A."""

    def __init__(self, operator: SymmetricOperator, factor: float) -> None:
        super().__init__(operator.shape[0], _empty(operator), psd=operator.psd and factor >= 0, precision=operator.precision)
        self._operator, self._factor = operator, factor

    def _matvec(self, x: Array) -> Array:
        return self._factor * self._operator.matvec(x)

    def _matmat(self, X: Array) -> Array:  # noqa: N803
        return self._factor * self._operator.matmat(X)


class Damped(SymmetricOperator):
    """A + damping I."""

    def __init__(self, operator: SymmetricOperator, damping: float) -> None:
        super().__init__(operator.shape[0], _empty(operator), psd=operator.psd and damping >= 0, precision=operator.precision)
        self._operator, self._damping = operator, damping

    @property
    def parts(self) -> list[SymmetricOperator]:
        """Operators of which this is the mean, for methods that draw from them: those of A, damped; none where A has none."""
        return [Damped(part, self._damping) for part in getattr(self._operator, "parts", None) or ()]

    def _matvec(self, x: Array) -> Array:
        return self._operator.matvec(x) + self._damping * x

    def _matmat(self, X: Array) -> Array:  # noqa: N803
        return self._operator.matmat(X) + self._damping * X


class Restricted(SymmetricOperator):
    """The rows and columns with some indices."""

    def __init__(self, operator: SymmetricOperator, indices: Any) -> None:
        n = operator.shape[0]
        chosen = np.asarray(to_numpy(indices) if hasattr(indices, "shape") else indices)
        if chosen.dtype.kind == "b" and chosen.shape == (n,):
            chosen = np.flatnonzero(chosen)
        if chosen.dtype.kind not in "iu" or chosen.ndim != 1 or chosen.size == 0:
            msg = f"indices must be a vector of integers, or a mask of shape ({n},), that chooses something"
            raise ValueError(msg)
        if chosen.min() < -n or chosen.max() >= n or np.unique(chosen % n).size < chosen.size:
            msg = f"indices must be different ones between 0 and {n - 1}, got them from {chosen.min()} to {chosen.max()}"
            raise ValueError(msg)
        super().__init__(chosen.size, _empty(operator), psd=operator.psd, precision=operator.precision)
        places = np.full(n, chosen.size)
        places[chosen % n] = np.arange(chosen.size)
        self._operator = operator
        self._chosen = self.xp.asarray(chosen % n, device=self.device)
        self._places = self.xp.asarray(places, device=self.device)

    def _matvec(self, x: Array) -> Array:
        return self._part(x)

    def _matmat(self, X: Array) -> Array:  # noqa: N803
        return self._part(X)

    def _part(self, x: Array) -> Array:
        rest = self.xp.zeros((1, *x.shape[1:]), dtype=x.dtype, device=device(x))
        spread = self.xp.take(self.xp.concat([x, rest]), self._places, axis=0)
        product = self._operator.matvec(spread) if len(x.shape) == 1 else self._operator.matmat(spread)
        return self.xp.take(product, self._chosen, axis=0)


def _empty(operator: SymmetricOperator) -> Array:
    return operator.xp.empty((0,), dtype=operator.dtype, device=operator.device)
