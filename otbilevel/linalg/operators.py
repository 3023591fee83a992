"""Linear operators that are known by their products only."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from otbilevel._core.array import Array


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
