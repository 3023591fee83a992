"""A cost matrix."""

from __future__ import annotations

from functools import cached_property
from types import ModuleType
from typing import Any

from scipy import sparse

from otbilevel._core.array import Array, array_namespace, as_array, readonly
from otbilevel.ot.geometry import Geometry, check_matrix, found


class DenseCost(Geometry):
    """A cost matrix.

    Parameters
    ----------
    C : (n, m) array_like
        Costs; +inf forbids a pair. Kept by reference when it is a C-contiguous floating array, and never changed.

    Raises
    ------
    TypeError
        When C is not an array of real numbers.
    ValueError
        When it is not two-dimensional, empty, or holds NaN or -inf.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel import DenseCost
    >>> DenseCost(np.array([[0.0, 2.0], [1.0, np.inf]])).bounds
    (0.0, 2.0)
    """

    inputs = ("C",)

    def __init__(self, C: Any) -> None:  # noqa: N803 -- the field's name for the cost
        if sparse.issparse(C):
            msg = "C is a sparse matrix, whose pairs that are not stored have no cost: pass it to SparseCost, or to solve_ot"
            raise TypeError(msg)
        matrix = as_array(C, "C")
        check_matrix(matrix, "C")
        self.matrix = matrix
        self.shape = (matrix.shape[0], matrix.shape[1])
        self.dtype = matrix.dtype
        extremes: tuple[float, float] = self.kernels.extremes(self.kernel_cost)
        low, high = self._extremes = extremes
        if not (low > -float("inf") and high >= low):  # NaN propagates through min and max
            _refuse_bad_costs(array_namespace(matrix), matrix)

    @property
    def arrays(self) -> dict[str, Array]:
        return {"C": self.matrix}

    @property
    def has_forbidden_pairs(self) -> bool:
        return self._extremes[1] == float("inf")

    @cached_property
    def bounds(self) -> tuple[float, float]:
        return super().bounds if self.has_forbidden_pairs else self._extremes

    def rows(self, low: int, high: int) -> Array:
        return self.xp.astype(self.matrix[low:high, :], self.xp.float64, copy=False)

    def restrict(self, sources: Array | None, targets: Array | None) -> DenseCost:
        part = self.matrix
        if sources is not None:
            part = self.xp.take(part, sources, axis=0)
        if targets is not None:
            part = self.xp.take(part, targets, axis=1)
        return self if part is self.matrix else DenseCost(part)

    def transpose(self) -> DenseCost:
        return DenseCost(self.matrix.T)

    def to_dense(self) -> DenseCost:
        return self

    def _compiled_cost(self) -> Any:
        return readonly(self.matrix)


def _refuse_bad_costs(xp: ModuleType, matrix: Array) -> None:
    for bad, what in ((xp.isnan(matrix), "NaN"), (matrix == -float("inf"), "-inf")):
        if bool(xp.any(bad)):
            msg = f"C holds {found(xp, bad, what)}; a forbidden pair is +inf"
            raise ValueError(msg)
