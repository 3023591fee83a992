"""K_ij = exp((f_i + g_j - |x_i - y_j|^2) / reg) between clouds of many points, by interpolation between few nodes."""

from __future__ import annotations

import numpy as np

from otbilevel._core.array import Array
from otbilevel.ot.cells import Cells
from otbilevel.ot.kernels.cpu import cells as kernels
from otbilevel.ot.kernels.cpu.threads import over_rows


class InterpolatedKernel:
    """K = D_u W_x K~ W_y' D_v, with the exponentials of K~ between the nodes only.

    Potentials as such vary too much within a cell for K to be interpolated. Their linear fits in each cell go into K~,
    which stays a Gaussian of the same width then; what the fits miss is a moderate factor, u and v.

    Parameters
    ----------
    x, y : Cells
        Cuts of the two clouds.
    f, g : (n,), (m,) arrays
        Potentials in the order of the cells.
    reg : float
        Squared length scale of the kernel.
    single : bool
        Whether the exponentials may have single precision.
    memory : float
        Bytes that the kernel between the nodes may take. Where it needs more, it is computed anew in every product.

    Attributes
    ----------
    u, v : (n,), (m,) arrays
        Scalings of the rows and columns.
    between : NodeKernel
        K~.

    Notes
    -----
    With N and M nodes a product takes O(N M + n p^d) operations. The relative error of a row is about the accuracy of the cut
    times max(u) / u_i.
    """

    def __init__(self, x: Cells, y: Cells, f: Array, g: Array, reg: float, *, single: bool, memory: float) -> None:
        f_fit, f_nodes = x.linear_models(f)
        g_fit, g_nodes = y.linear_models(g)
        self.x, self.y = x, y
        self.u, self.v = np.exp((f - f_fit) / reg), np.exp((g - g_fit) / reg)
        self.between = NodeKernel(x, y, f_nodes, g_nodes, reg, single=single, memory=memory)

    def times(self, z: Array) -> Array:
        """K z."""
        return self.u * self.unscaled_times(z)

    def unscaled_times(self, z: Array) -> Array:
        """K z / u: with the linear fits instead of f."""
        return self.x.to_points(self.between.times(self.y.to_nodes(self.v * z)))

    def transposed_times(self, w: Array) -> Array:
        """K' w."""
        return self.v * self.y.to_points(self.between.transposed_times(self.x.to_nodes(self.u * w)))


def _near_ranges(x: Cells, y: Cells, f: Array, g: Array, cut: float) -> tuple[Array, Array, Array]:
    """Which nodes of y the nodes of x reach, by the bound max f + max g - dist^2 > cut on every pair of boxes.

    Those of cell c reach the ranges [first_r, last_r) for r in [starts_c, starts_(c+1)). Returns starts, first, last.
    """
    tops = [np.maximum.reduceat(potential, side.nodes[:-1]) for side, potential in ((x, f), (y, g))]
    boxes = (x.low, x.high, tops[0], y.low, y.high, tops[1], y.nodes, cut)
    count, nothing = len(x.degrees), np.empty(0, np.int64)
    starts = np.zeros(count + 1, np.int64)
    over_rows(kernels.near_ranges, count, count * len(y.degrees), (1, 0), *boxes, starts[1:], nothing, nothing, False)
    np.cumsum(starts, out=starts)
    first, last = np.empty(starts[-1], np.int64), np.empty(starts[-1], np.int64)
    over_rows(kernels.near_ranges, count, count * len(y.degrees), (1, 0), *boxes, starts[:-1], first, last, True)
    return starts, first, last


class NodeKernel:
    """The kernel between the nodes, without the pairs of cells that carry nothing; stored where it fits the memory."""

    def __init__(self, x: Cells, y: Cells, f: Array, g: Array, reg: float, *, single: bool, memory: float) -> None:
        reach = np.log(len(y.points) / x.accuracy)  # what lies beyond sums to the accuracy of the cut at most
        starts, first, last = _near_ranges(x, y, f, g, -reach * reg)
        cells = np.repeat(np.arange(len(x.degrees)), np.diff(x.nodes))  # of each row
        total = np.concatenate([[0], np.cumsum(last - first)])
        offsets = np.concatenate([[0], np.cumsum((total[starts[1:]] - total[starts[:-1]])[cells])])
        self.shape = x.size, y.size
        self.entries = int(offsets[-1])
        self._ranges = cells, starts, first, last
        self._cost = (x.places, np.ascontiguousarray(y.places.T), f, g, 1.0 / reg, single)
        self._stored: tuple[Array, Array] | None = None
        dtype = np.dtype(np.float32 if single else np.float64)
        if self.entries * dtype.itemsize <= memory:
            self._stored = offsets, np.empty(self.entries, dtype)
            over_rows(kernels.fill, x.size, self.entries, (1, 0), *self._cost, *self._ranges, *self._stored)

    @property
    def stored_bytes(self) -> int:
        """Memory that the entries take."""
        return 0 if self._stored is None else int(self._stored[1].nbytes)

    def times(self, v: Array) -> Array:
        """Product with a vector on the nodes of y."""
        out = np.empty(self.shape[0])
        if self._stored is None:
            over_rows(kernels.multiply_lazy, len(out), self.entries, (1, 0), *self._cost, *self._ranges, v, out)
        else:
            over_rows(kernels.multiply, len(out), self.entries // 5, (1, 0), *self._ranges, *self._stored, v, out)
        return out

    def transposed_times(self, u: Array) -> Array:
        """Product of the transpose with a vector on the nodes of x."""
        n, m = self.shape
        if self._stored is None:
            return over_rows(kernels.multiply_transposed_lazy, n, self.entries, (1, m), *self._cost, *self._ranges, u)[0][0]
        return over_rows(kernels.multiply_transposed, n, self.entries // 5, (1, m), *self._ranges, *self._stored, u)[0][0]
