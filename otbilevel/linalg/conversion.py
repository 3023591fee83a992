"""Operators of functions, of matrices, and of whatever knows its products."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace, as_array, device, to_numpy
from otbilevel.linalg.operators import LinearOperator, SymmetricOperator


class FunctionOperator(SymmetricOperator):
    """The operator of a function that computes products."""

    def __init__(self, fn: Callable[[Array], Array], n: int, like: Array, *, psd: bool) -> None:
        super().__init__(n, like, psd=psd)
        self._fn = fn

    def _matvec(self, x: Array) -> Array:
        product = as_array(self._fn(x), "the product that fn returns")
        if tuple(product.shape) != tuple(x.shape):
            msg = f"fn must return a product of shape {tuple(x.shape)}, got {tuple(product.shape)}"
            raise ValueError(msg)
        return product


class MatrixOperator(SymmetricOperator):
    """The operator of a stored symmetric matrix."""

    def __init__(self, matrix: Array, *, psd: bool = False) -> None:
        super().__init__(matrix.shape[0], matrix, psd=psd)
        self.matrix = matrix

    def _matvec(self, x: Array) -> Array:
        return self.matrix @ x

    def _matmat(self, X: Array) -> Array:  # noqa: N803
        return self.matrix @ X

    def to_dense(self) -> Array:
        return self.xp.asarray(self.matrix, copy=True)


def from_hvp(fn: Callable[[Array], Array], n: int, *, xp: ModuleType | None = None, psd: bool = False) -> SymmetricOperator:
    """Make an operator of a function that computes products, such as Hessian-vector products.

    Parameters
    ----------
    fn : callable
        ``fn(v)`` returns H v for a vector of shape (n,); H must be symmetric.
    n : int
        The dimension.
    xp : module, optional
        The array library whose vectors `fn` takes, by default NumPy. Vectors have double precision.
    psd : bool
        Whether H is known to be positive semi-definite, so that conjugate gradients suit it.

    Returns
    -------
    SymmetricOperator
        With ``@``, sums, multiples, `damp`, `restrict`, `to_dense`, `to_scipy`, and `nmatvec`, the number of products so far.

    Raises
    ------
    TypeError, ValueError
        When an argument, or what `fn` returns, is wrong.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.curvature import from_hvp
    >>> H = from_hvp(lambda v: np.array([1.0, 2.0, 4.0]) * v, 3, psd=True)
    >>> (2 * H).damp(1.0) @ np.ones(3)
    array([3., 5., 9.])
    >>> H.nmatvec
    1
    """
    if not callable(fn):
        msg = f"fn must be callable, got {type(fn).__name__}"
        raise TypeError(msg)
    library = np if xp is None else array_namespace(xp.zeros((0,)))
    like = library.zeros((0,), dtype=library.float64)
    return FunctionOperator(fn, validate.integer(n, "n", low=1), like, psd=validate.boolean(psd, "psd"))


def as_operator(operator: Any, name: str = "op") -> SymmetricOperator:
    """An operator as it is; a symmetric matrix, or any object with `shape` and `matvec`, made into one.

    Parameters
    ----------
    operator : SymmetricOperator, (n, n) array_like, or object with `shape` and `matvec`
        What is to be an operator. Products of the last kind take and give NumPy arrays.
    name : str
        What messages call it.

    Returns
    -------
    SymmetricOperator
        The operator.

    Raises
    ------
    TypeError, ValueError
        When it is none of these, not square, or a matrix that is not symmetric.
    """
    if isinstance(operator, SymmetricOperator):
        return operator
    if isinstance(operator, LinearOperator):
        shape = tuple(operator.shape)
        if len(shape) != 2 or shape[0] != shape[1]:
            msg = f"{name} must be square, got shape {shape}"
            raise ValueError(msg)
        return FunctionOperator(operator.matvec, shape[0], np.zeros(0), psd=False)
    if not hasattr(operator, "shape") and not isinstance(operator, (list, tuple)):
        msg = f"{name} must be an operator (see from_hvp) or a symmetric matrix, got {type(operator).__name__}"
        raise TypeError(msg)
    matrix = as_array(operator, name)
    if len(matrix.shape) != 2 or matrix.shape[0] != matrix.shape[1]:
        msg = f"{name} must be square, got shape {tuple(matrix.shape)}"
        raise ValueError(msg)
    xp = array_namespace(matrix)
    asymmetry, size = float(xp.max(xp.abs(matrix - matrix.T))), float(xp.max(xp.abs(matrix)))
    if asymmetry > (1e-5 if matrix.dtype == xp.float32 else 1e-10) * size:
        msg = f"{name} must be symmetric, but entries differ from their mirror images by {asymmetry:g}"
        raise ValueError(msg)
    return MatrixOperator(matrix)


def in_library(op: SymmetricOperator, value: Any, name: str) -> Array:
    """A vector or matrix in the library of an operator's products, and in their dtype where that is the wider one.

    Raises
    ------
    TypeError
        When it lives on another device: nothing is transferred silently.
    """
    value = as_array(value, name)
    if array_namespace(value) is not op.xp:
        value = op.xp.asarray(to_numpy(value), device=op.device)
    elif str(device(value)) != str(op.device):
        msg = f"{name} must be on {op.device}, where the operator is, got {device(value)}: move it first"
        raise TypeError(msg)
    return op.xp.astype(value, op.xp.result_type(value.dtype, op.dtype), copy=False)


def like_input(value: Array, given: Any) -> Array:
    """A result in the library and dtype of what was given; NumPy for lists."""
    given = as_array(given, "the input")
    xp = array_namespace(given)
    if array_namespace(value) is not xp:
        value = xp.asarray(to_numpy(value), device=device(given))
    return xp.astype(value, given.dtype, copy=False)
