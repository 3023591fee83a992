"""Kernels along one axis of a grid, for all of its lines at a time, in the array API's own functions.

A separable cost sum_k C_k(i_k, j_k) makes the soft minimum over all points one over the last axis, then one over the axis before,
and so on. In each, every line l holds exponents u_lj (the potential over reg, or what the axes before left), and

    log_sums_li = log sum_j exp(u_lj - c_ij),    T_lij = exp(u_lj - c_ij - log_sums_li),    c = C / reg.

The line kernels T_l have row sums 1. A kernel between grids is a sequence of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from otbilevel._core.array import Array, array_namespace, device

LARGEST_RESIDUAL = 200.0
"""Of the exponents in a block once its best sum of a term per row and one per column is taken out."""
NEGLIGIBLE = 2.0 * LARGEST_RESIDUAL + 50.0
"""Factors below exp(-this) times their largest matter less than rounding: they become zeros, and products stay normal numbers."""
NARROWEST = 4
"""Width from which on blocks save time."""
WIDEST, LONGEST_AXIS = 128, 512
"""Width of blocks, along axes that are not longer than that: products then are small enough, see `SMALL_PRODUCT`."""
SMALL_PRODUCT = 2**18
"""Multiplications up to which OpenBLAS does not call its other threads. Where cores are busy with other programs, to wait for these
at every product takes up to a hundred times as long as the product itself."""
_BLOCK_ENTRIES = 2**19
_KEPT_ENTRIES = 2**22
"""Of line kernels that are kept from pass to pass."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """The exponents c_ij of an axis, cut into P x P blocks c = alpha_i + beta_j + residual, where the residual is small.

    Attributes
    ----------
    alpha : (P, P, h) array
        By block of rows, block of columns, and row.
    beta : (P, P, w) array
        By the same and column.
    kernel : (P, P, h, w) array
        exp(-residual).
    """

    alpha: Array
    beta: Array
    kernel: Array


class AxisCost:
    """The cost along one axis.

    Parameters
    ----------
    matrix : (n, m) float64 array
        C between the coordinates of the sources and those of the targets.

    Notes
    -----
    For (x - y)^2 the residual in blocks of half width r is at most 2 r^2, so that P is about side / (20 sqrt(reg)); for |x - y| it
    is 0 off the diagonal.
    """

    def __init__(self, matrix: Array) -> None:
        self.matrix = matrix
        self._residuals: dict[int, float] = {}
        self._blocks: dict[float, Blocks | None] = {}

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return (self.matrix.shape[0], self.matrix.shape[1])

    def transpose(self) -> AxisCost:
        """The same cost, seen from the targets."""
        return AxisCost(self.matrix.T)

    def blocks(self, reg: float) -> Blocks | None:
        """Blocks at this reg; None where they would be too narrow to pay."""
        if reg not in self._blocks:
            while len(self._blocks) > 3:  # a method works at one or two values of reg
                self._blocks.pop(next(iter(self._blocks)))
            self._blocks[reg] = self._cut(reg)
        return self._blocks[reg]

    def _cut(self, reg: float) -> Blocks | None:
        count = -(-min(max(self.shape), LONGEST_AXIS) // WIDEST)
        while NARROWEST * (count - 1) < max(self.shape):
            if self._residual(count) <= LARGEST_RESIDUAL * reg:
                alpha, beta, residual = self._split(count)
                return Blocks(alpha / reg, beta / reg, array_namespace(residual).exp(-residual / reg))
            count += max(1, count // 3)
        return None

    def _residual(self, count: int) -> float:
        if count not in self._residuals:
            xp = array_namespace(self.matrix)
            self._residuals[count] = float(xp.max(xp.abs(self._split(count)[2])))
        return self._residuals[count]

    def _split(self, count: int) -> tuple[Array, Array, Array]:
        """alpha, beta and residual of C itself. The last row and column are repeated to fill the last blocks."""
        matrix = self.matrix
        xp = array_namespace(matrix)
        for axis in (0, 1):
            size = matrix.shape[axis]
            padded = xp.arange(count * _width(size, count), device=device(matrix))
            matrix = xp.take(matrix, xp.clip(padded, None, size - 1), axis=axis)
        height, width = (_width(size, count) for size in self.shape)
        strips = [matrix[p * height : (p + 1) * height, :] for p in range(count)]
        c = xp.stack([xp.stack([strip[:, q * width : (q + 1) * width] for q in range(count)]) for strip in strips])  # contiguous
        alpha = xp.mean(c, axis=3)
        c = c - alpha[:, :, :, None]
        beta = xp.mean(c, axis=2)
        return alpha, beta, c - beta[:, :, None, :]


class PlainLines:
    """T computed entry by entry, a few lines at a time: the truth, and what costs need that cannot be cut into blocks.

    Parameters
    ----------
    axis : AxisCost
        The cost along the axis, (n, m).
    u : (L, m) array
        Exponents; -inf where a line has no point.
    reg : float
        Regularisation.

    Attributes
    ----------
    log_sums : (n, L) array
        Axis first; -inf for a line without points.
    """

    def __init__(self, axis: AxisCost, u: Array, reg: float) -> None:
        xp = array_namespace(u)
        self._axis, self._u, self._matrix, self._reg, self._xp = axis, u, axis.matrix, reg, xp
        self._kept: list[tuple[int, int, Array]] = []
        parts, keep = [], u.shape[0] * axis.shape[0] * axis.shape[1] <= _KEPT_ENTRIES
        for low, high in _few_lines(u.shape[0], axis):
            exponents = u[low:high, None, :] - self._matrix[None, :, :] / reg
            top = _finite(xp, xp.max(exponents, axis=2, keepdims=True))
            entries = xp.exp(exponents - top)
            sums = xp.sum(entries, axis=2)
            parts.append(top[:, :, 0] + _log(xp, sums))
            if keep:
                self._kept.append((low, high, entries / xp.where(sums > 0, sums, xp.ones_like(sums))[:, :, None]))
        self.log_sums = xp.concat(parts).T

    def times(self, x: Array) -> Array:
        """sum_j T_lij x_lj for x (L, m), shape (n, L)."""
        return self._xp.concat([(t @ x[low:high, :, None])[:, :, 0] for low, high, t in self._entries()]).T

    def transposed_times(self, y: Array) -> Array:
        """sum_i T_lij y_il for y (n, L), shape (L, m)."""
        return self._xp.concat([(y.T[low:high, None, :] @ t)[:, 0, :] for low, high, t in self._entries()])

    def times_with_cost(self, x: Array, spent: Array) -> tuple[Array, Array]:
        """T x and (T C) x + T spent, entries of C multiplied with those of T: what x costs when it has cost `spent` so far."""
        products, costs = [], []
        for low, high, t in self._entries():
            both = self._xp.stack([x[low:high, :], spent[low:high, :]], axis=2)
            product = t @ both
            products.append(product[:, :, 0])
            costs.append(product[:, :, 1] + ((t * self._matrix[None, :, :]) @ both)[:, :, 0])
        return self._xp.concat(products).T, self._xp.concat(costs).T

    def _entries(self) -> Iterator[tuple[int, int, Array]]:
        if self._kept:
            yield from self._kept
            return
        normal = self._xp.where(self._xp.isfinite(self.log_sums), self.log_sums, self._xp.full_like(self.log_sums, float("inf"))).T
        for low, high in _few_lines(self._u.shape[0], self._axis):
            exponents = self._u[low:high, None, :] - self._matrix[None, :, :] / self._reg
            yield low, high, self._xp.exp(exponents - normal[low:high, :, None])


class BlockedLines:
    """T in factors: between two blocks T_lij = rows_li kernel_ij columns_lj, with one kernel for all lines.

    Products are then matrix products, and exponentials are taken per block and point, not per pair. No factor over- or
    underflows: the columns of a line are scaled by their largest.

    B. Schmitzer, Stabilized sparse scaling algorithms for entropy regularized transport problems, SISC 2019, absorbs potentials
    into a whole kernel in this way; here every line and pair of blocks does so for itself.

    Parameters
    ----------
    axis : AxisCost
        The cost along the axis, (n, m).
    blocks : Blocks
        How it is cut.
    u : (L, m) array
        Exponents; -inf where a line has no point.

    Attributes
    ----------
    log_sums : (n, L) array
        Axis first; -inf for a line without points.
    """

    def __init__(self, axis: AxisCost, blocks: Blocks, u: Array) -> None:
        xp = array_namespace(u)
        self._lines, self._shape, self._xp = u.shape[0], axis.shape, xp
        self._kernel = blocks.kernel[:, :, None, :, :]
        self._transposed = xp.matrix_transpose(self._kernel)
        # In place where possible: for arrays of megabytes, fresh memory costs more than arithmetic.
        exponents = self._in_blocks(u, -float("inf"))[None, ...] - blocks.beta[:, :, None, None, :]  # (P, P, groups, lines, w)
        top = xp.max(exponents, axis=-1, keepdims=True)
        exponents -= _finite(xp, top)
        matters = xp.astype(exponents > -NEGLIGIBLE, u.dtype)
        self._columns = xp.exp(xp.clip(exponents, -NEGLIGIBLE, None))  # exponentials that underflow are slow
        self._columns *= matters
        sums = self._columns @ self._transposed  # (P, P, groups, lines, h)
        sums = xp.where(sums > 0, sums, xp.ones_like(sums))  # of blocks in which the line has no point: there top is -inf
        shares = xp.log(sums)
        shares += top - blocks.alpha[:, :, None, None, :]
        top = xp.max(shares, axis=1, keepdims=True)
        shares -= _finite(xp, top)
        shares = xp.exp(xp.clip(shares, -NEGLIGIBLE, None))
        total = xp.sum(shares, axis=1, keepdims=True)
        self.log_sums = self._axis_first((top + xp.log(total))[:, 0, ...])
        sums *= total
        shares /= sums
        self._rows = shares

    def times(self, x: Array) -> Array:
        """As `PlainLines.times`."""
        products = (self._columns * self._in_blocks(x, 0.0)[None, ...]) @ self._transposed
        products *= self._rows
        return self._axis_first(self._xp.sum(products, axis=1))

    def transposed_times(self, y: Array) -> Array:
        """As `PlainLines.transposed_times`."""
        products = (self._rows * self._in_blocks(y.T, 0.0)[:, None, ...]) @ self._kernel
        products *= self._columns
        columns = self._xp.sum(products, axis=0)  # (P, groups, lines, w)
        count, groups, lines, width = columns.shape
        x = self._xp.reshape(self._xp.permute_dims(columns, (1, 2, 0, 3)), (groups * lines, count * width))
        return x[: self._lines, : self._shape[1]]

    def _in_blocks(self, x: Array, fill: float) -> Array:
        """(L, size) as (P, groups, lines, width): the axis in blocks, the lines in groups with small products, both filled up."""
        xp, size, (count, _, _, height, width) = self._xp, x.shape[1], self._kernel.shape
        groups = min(self._lines, -(-self._lines * height * width // SMALL_PRODUCT))
        lines, width = _width(self._lines, groups), _width(size, count)
        for axis, missing in enumerate((groups * lines - self._lines, count * width - size)):
            if missing:
                shape = (missing, size) if axis == 0 else (x.shape[0], missing)
                x = xp.concat([x, xp.full(shape, fill, dtype=x.dtype, device=device(x))], axis=axis)
        return xp.permute_dims(xp.reshape(x, (groups, lines, count, width)), (2, 0, 1, 3))

    def _axis_first(self, x: Array) -> Array:
        """(P, groups, lines, h) as (n, L)."""
        count, groups, lines, height = x.shape
        x = self._xp.reshape(self._xp.permute_dims(x, (0, 3, 1, 2)), (count * height, groups * lines))
        return x[: self._shape[0], : self._lines]


def line_kernel(axis: AxisCost, u: Array, reg: float) -> PlainLines | BlockedLines:
    """The line kernels along one axis, in the form that is quicker."""
    blocks = axis.blocks(reg)
    return PlainLines(axis, u, reg) if blocks is None else BlockedLines(axis, blocks, u)


def smallest_over_lines(axis: AxisCost, u: Array) -> Array:
    """min_j C_ij - u_lj for u (L, m), shape (n, L): the c-transform along one axis."""
    xp = array_namespace(u)
    chunks = _few_lines(u.shape[0], axis)
    return xp.concat([xp.min(axis.matrix[None, :, :] - u[low:high, None, :], axis=2) for low, high in chunks]).T


def _few_lines(lines: int, axis: AxisCost) -> Iterator[tuple[int, int]]:
    """Split the lines so that a part of them has some half a million pairs."""
    step = max(1, _BLOCK_ENTRIES // (axis.shape[0] * axis.shape[1]))
    for low in range(0, lines, step):
        yield low, min(low + step, lines)


def _width(size: int, count: int) -> int:
    return -(-size // count)


def _finite(xp: ModuleType, x: Array) -> Array:
    return xp.where(xp.isfinite(x), x, xp.zeros_like(x))


def _log(xp: ModuleType, x: Array) -> Array:
    """The logarithm, -inf of 0 without a warning."""
    positive = x > 0
    return xp.where(positive, xp.log(xp.where(positive, x, xp.ones_like(x))), xp.full_like(x, -float("inf")))
