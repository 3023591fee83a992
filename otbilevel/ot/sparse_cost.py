"""Costs of some pairs only; all others are forbidden."""

from __future__ import annotations

from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import reverse_cuthill_mckee

from otbilevel._core.array import Array
from otbilevel.ot import kernels
from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.geometry import Geometry, check_matrix
from otbilevel.ot.kernels.pattern import ActiveSet

if TYPE_CHECKING:
    from otbilevel.ot.plan import Plan

LONG = 2**16
"""Rows and columns together from which their order matters: vectors then take half a megabyte."""


class SparseCost(Geometry):
    """Costs of some pairs, as a sparse matrix stores them. A pair that is not stored is forbidden.

    Between many points most pairs are too far apart to exchange mass. A cost that stores only the near ones, say of k nearest
    neighbours each way, takes time and memory in proportion to their number.

    Parameters
    ----------
    C : (n, m) SciPy sparse array or matrix
        The cost of every pair that may carry mass. A stored zero is a cost of 0; a stored +inf forbids the pair, as if it were not
        stored. Any format; CSR is what is used inside. The numbers are copied.

    Raises
    ------
    TypeError
        When C is not a sparse array of SciPy, or does not hold real numbers.
    ValueError
        When it is not two-dimensional, empty, stores NaN or -inf, or stores a pair twice. (SciPy would add the two. For costs that
        is hardly ever meant, as where neighbours both ways are put together.)

    Notes
    -----
    Everything in `solve_ot`, unbalanced or not, takes O(pairs) time and memory, but for `OTResult.plan`, which is dense,
    constraints, and ``options={"variant": "paper"}``. Pairs take 12 bytes each here, a plan 4 bytes more in "sns" and 8 in
    "sinkhorn". NumPy only.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from otbilevel import SparseCost, solve_ot
    >>> C = sparse.coo_array(([0.0, 1.0, 2.0, 0.5], ([0, 0, 1, 2], [0, 1, 1, 0])))
    >>> SparseCost(C).bounds
    (0.0, 2.0)
    >>> solve_ot([0.5, 0.3, 0.2], [0.5, 0.5], C, reg=0.1).plan.round(6) + 0.0
    array([[0.3, 0.2],
           [0. , 0.3],
           [0.2, 0. ]])
    """

    inputs = ("C",)

    def __init__(self, C: Any) -> None:  # noqa: N803 -- the field's name for the cost
        if not sparse.issparse(C):
            msg = f"C must be a sparse array of SciPy, got {type(C).__name__}: pass any other cost to DenseCost, or to solve_ot"
            raise TypeError(msg)
        check_matrix(C, "C")
        if C.dtype.kind not in "fiub":
            msg = f"C must hold real numbers, got dtype {C.dtype}"
            raise TypeError(msg)
        matrix = _stored_pairs(C)
        _refuse_bad_costs(matrix)
        self._keep(matrix, np.dtype(np.float32 if C.dtype in (np.float32, np.float16) else np.float64))

    def _keep(self, matrix: sparse.csr_array, dtype: Any) -> None:
        self._matrix, self.dtype, self.shape = matrix, dtype, matrix.shape

    def _new(self, matrix: sparse.csr_array) -> SparseCost:
        """The same for some of the pairs, which are good already."""
        part = object.__new__(SparseCost)
        part._keep(matrix, self.dtype)
        return part

    def _details(self) -> str:
        return f", {self._matrix.nnz} pairs"

    @property
    def arrays(self) -> dict[str, Array]:
        return {"C": self._matrix.data}

    @property
    def has_forbidden_pairs(self) -> bool:
        n, m = self.shape
        return int(self._matrix.nnz) < n * m

    @cached_property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest cost that is stored, O(pairs)."""
        costs = self._matrix.data
        return (float(costs.min()), float(costs.max())) if len(costs) else (float("inf"), -float("inf"))

    @cached_property
    def kernels(self) -> ModuleType:
        """The kernels on stored pairs."""
        return kernels.select_sparse()

    @cached_property
    def kernel_cost(self) -> ActiveSet:
        """The stored pairs, which all these kernels take."""
        matrix = self._matrix
        columns = matrix.indices.astype(np.int32, copy=False).view(np.uint32)
        return ActiveSet(matrix.indptr.astype(np.int64), columns, matrix.data, self.shape)

    def _compiled_cost(self) -> ActiveSet:
        return self.kernel_cost

    def rows(self, low: int, high: int) -> np.ndarray:
        block = np.full((high - low, self.shape[1]), np.inf)
        i, j, costs = _coordinates(self._matrix[low:high])
        block[i, j] = costs
        return block

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and costs of the stored pairs, row by row."""
        return _coordinates(self._matrix)

    def restrict(self, sources: Array | None, targets: Array | None) -> SparseCost:
        matrix = self._matrix
        if sources is not None:
            matrix = matrix[sources]
        if targets is not None:
            matrix = matrix[:, targets]
            matrix.sort_indices()
        return self if matrix is self._matrix else self._new(matrix)

    def transpose(self) -> SparseCost:
        return self._new(self._matrix.T.tocsr())

    def costs(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Those of stored pairs."""
        return np.asarray(self._matrix[i, j], np.float64).ravel()

    @property
    def is_sparse(self) -> bool:
        """Whether some pairs are not stored. If all are, this is a cost as any other."""
        return self.has_forbidden_pairs

    def to_dense(self) -> DenseCost:
        return DenseCost(self.rows(0, self.shape[0]).astype(self.dtype))

    def local_order(self) -> tuple[np.ndarray, np.ndarray] | None:
        """An order that brings neighbours together; None where vectors are so short that nothing is gained.

        Products with a plan gather and scatter numbers all over a vector. Once vectors do not fit the cache, products in this
        order take a quarter of the time. E. Cuthill, J. McKee, Reducing the bandwidth of sparse symmetric matrices, ACM 1969.
        """
        n, m = self.shape
        if n + m < LONG or not self.has_forbidden_pairs:
            return None
        i, j, _ = self.pairs()
        ends = np.concatenate([i, n + j]), np.concatenate([n + j, i])
        graph = sparse.csr_array((np.ones(len(ends[0]), np.int8), ends), shape=(n + m, n + m))
        order = reverse_cuthill_mckee(graph, symmetric_mode=True).astype(np.int64)
        return order[order < n], order[order >= n] - n

    def large_entries(
        self, f: np.ndarray, g: np.ndarray, reg: float, a: np.ndarray, share: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        i, j, costs = self.pairs()
        values = np.exp((f[i] + g[j] - costs) / reg)
        kept = values > share
        return i[kept], j[kept], a[i[kept]] * values[kept]

    def of_plan(self, plan: Plan) -> sparse.csr_array:
        i, j, _ = self.pairs()
        return self._with_values(np.asarray(plan.csr(0.0)[i, j]).ravel())

    def kept(self, rows: np.ndarray, low: int) -> np.ndarray:
        i, j, _ = _coordinates(self._matrix[low : low + len(rows)])
        values: np.ndarray = rows[i, j]
        return values

    def joined(self, parts: list[np.ndarray]) -> sparse.csr_array:
        return self._with_values(np.concatenate(parts))

    def _with_values(self, values: np.ndarray) -> sparse.csr_array:
        """Of the same pairs."""
        return sparse.csr_array((values, self._matrix.indices, self._matrix.indptr), shape=self.shape, copy=True)

    def soft_transform(self, g: np.ndarray, reg: float) -> np.ndarray:
        i, j, costs = self.pairs()
        exponents = (g[j] - costs) / reg
        top = np.full(self.shape[0], -np.inf)
        np.maximum.at(top, i, exponents)
        top = np.where(np.isfinite(top), top, 0.0)
        total = np.bincount(i, np.exp(exponents - top[i]), self.shape[0])
        return -reg * (top + np.log(np.where(total > 0, total, 1.0)))

    def c_transform_rows(self, g: np.ndarray) -> np.ndarray:
        i, j, costs = self.pairs()
        best = np.full(self.shape[0], np.inf)
        np.minimum.at(best, i, costs - g[j])
        return best

    def c_transform_columns(self, f: np.ndarray) -> np.ndarray:
        i, j, costs = self.pairs()
        best = np.full(self.shape[1], np.inf)
        np.minimum.at(best, j, costs - f[i])
        return best

    def cheapest(self, g: np.ndarray) -> np.ndarray:
        i, j, costs = self.pairs()
        order = np.lexsort((j, costs - g[j], i))  # the first of every row is the cheapest, the first of these where some tie
        rows, first = np.unique(i[order], return_index=True)
        cheapest = np.zeros(self.shape[0], np.int64)
        cheapest[rows] = j[order][first]
        return cheapest


def _coordinates(matrix: sparse.csr_array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)), matrix.indices, matrix.data


def _stored_pairs(given: Any) -> sparse.csr_array:
    """All that is stored and not +inf, zeros included, in CSR form with sorted columns and in double precision. A copy."""
    coo = _unfold(given) if given.format == "dia" else given.tocoo()
    i, j = (np.asarray(index, np.int64) for index in (coo.row, coo.col))
    n, m = given.shape
    keys = i * m + j
    if np.any(np.diff(keys) <= 0):
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        again = np.flatnonzero(np.diff(keys) == 0)
        if len(again):
            _refuse_copies(len(again), divmod(int(keys[again[0]]), m))
        i, j, costs = i[order], j[order], coo.data[order].astype(np.float64)
    else:
        costs = coo.data.astype(np.float64)
    allowed = costs != np.inf
    if not allowed.all():
        i, j, costs = i[allowed], j[allowed], costs[allowed]
    indptr = np.zeros(n + 1, np.int64)
    np.cumsum(np.bincount(i, minlength=n), out=indptr[1:])
    small = np.int32 if max(len(costs), n, m) < 2**31 else np.int64
    return sparse.csr_array((costs, j.astype(small), indptr.astype(small)), shape=(n, m))


def _unfold(diagonals: Any) -> sparse.coo_array:
    """SciPy's own conversion would drop the zeros on stored diagonals."""
    places = np.arange(1, diagonals.data.size + 1).reshape(diagonals.data.shape)
    coo = sparse.dia_array((places, diagonals.offsets), shape=diagonals.shape).tocoo()
    coo.data = diagonals.data.ravel()[coo.data - 1]
    return coo


def _refuse_copies(count: int, first: tuple[int, int]) -> NoReturn:
    more = f" ({count} pairs in all)" if count > 1 else ""
    msg = (
        f"C stores the pair {first} more than once{more}. Keep one of each; if their costs are to be added up, "
        "call C.sum_duplicates() first"
    )
    raise ValueError(msg)


def _refuse_bad_costs(matrix: sparse.csr_array) -> None:
    for bad, what in ((np.isnan(matrix.data), "NaN"), (matrix.data == -np.inf, "-inf")):
        if bad.any():
            i, j, _ = _coordinates(matrix)
            first = int(np.argmax(bad))
            count = int(bad.sum())
            entries = "1 entry that is" if count == 1 else f"{count} entries that are"
            msg = (
                f"C holds {entries} {what}, the first at {(int(i[first]), int(j[first]))}; a forbidden pair is +inf, or not stored"
            )
            raise ValueError(msg)
