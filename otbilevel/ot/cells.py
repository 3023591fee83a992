"""Clouds cut into cells, so that a Gaussian kernel between many points becomes one between few nodes.

exp((f(x) + g(y) - |x - y|^2) / reg) is a smooth function of x and of y on the scale sqrt(reg). In a box of side
2 h sqrt(reg) a polynomial through few Chebyshev nodes reproduces it, however many points the box holds, so that

    K ~ W_x K~ W_y',    K~ the same kernel between the nodes, W the interpolation weights.

A tree over the points gives the boxes. Of all its cuts the one with the fewest nodes is taken; where a box holds no more
points than it would need nodes, its points are the nodes and nothing is approximated.

The error bound of an interpolant of degree p - 1 at the p Chebyshev points of [-1, 1] is 4 M rho^(1-p) / (rho - 1), where
M bounds the function on the ellipse with foci -1, 1 and semi-axes of sum rho (L. N. Trefethen, Approximation Theory and
Approximation Practice, SIAM 2013, Theorem 8.2). For exp(-(h z - t)^2) with real t, M = exp(h^2 (rho - 1/rho)^2 / 4).
The idea of interpolating on both sides: W. Fong and E. Darve, The black-box fast multipole method, J. Comput. Phys. 228 (2009).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from otbilevel._core.array import Array
from otbilevel.ot.kernels.cpu import cells as kernels
from otbilevel.ot.kernels.cpu.threads import over_rows

LEAF = 32
"""Points below which a box is not split."""
TILE = 64
"""Points of a cell that stands for itself: small, so that distant pairs of cells can be left out."""
LARGEST_CELL = 2.0
"""Half side of the largest interpolated box, in units of sqrt(reg). Larger boxes need fewer nodes in all, but the potentials'
deviation from a linear function grows in them, and with it the error."""
STEPS = 16
"""Half sides are rounded up to this fraction of sqrt(reg)."""


@cache
def nodes_needed(accuracy: float) -> Array:
    """Chebyshev nodes for exp(-(x - t)^2), any t, on an interval of half length k / STEPS, for k = 0, 1, ..."""
    log_rho = np.linspace(0.01, 6.0, 600)
    rho = np.exp(log_rho)
    half = np.arange(int(LARGEST_CELL * STEPS) + 1)[:, None] / STEPS
    log_bound = np.log(4.0 / (rho - 1.0)) + (half * (rho - 1.0 / rho)) ** 2 / 4.0
    needed = np.ceil(((log_bound - np.log(accuracy)) / log_rho).min(axis=1)) + 1
    needed[0] = 1
    return needed.astype(np.int64)


def _chebyshev(count: int) -> Array:
    return np.cos((2 * np.arange(count) + 1) * np.pi / (2 * count))


class PointTree:
    """A cloud sorted into nested boxes.

    Parameters
    ----------
    points : (n, d) array
        The cloud.

    Attributes
    ----------
    order : (n,) int64 array
        The points in the order of the tree, by their original numbers.
    points : (n, d) float64 array
        The points in that order.

    Notes
    -----
    O(n d log n) time, O(n d) memory.
    """

    def __init__(self, points: Array) -> None:
        self.points = np.array(points, dtype=np.float64, order="C")
        n, d = self.points.shape
        self.order = np.arange(n)
        most = 2 * n
        start, end, left = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
        low, high = np.empty((most, d)), np.empty((most, d))
        count = kernels.build_tree(self.points, self.order, LEAF, start, end, left, low, high)
        self.start, self.end, self.left = start[:count].copy(), end[:count].copy(), left[:count].copy()
        self.low, self.high = low[:count].copy(), high[:count].copy()
        self._rank = np.empty(n, np.int64)
        self._rank[self.order] = np.arange(n)

    def sort(self, values: Array) -> Array:
        """What belongs to the points, in the order of the tree."""
        return values[self.order]

    def restore(self, values: Array) -> Array:
        """The inverse of `sort`."""
        return values[self._rank]

    def count_nodes(self, reg: float, accuracy: float) -> int:
        """How many nodes the cut has."""
        chosen, degrees = self._choose(reg, accuracy)
        sizes = self.end[chosen] - self.start[chosen]
        return int(np.where(degrees[:, 0] > 0, degrees.prod(axis=1), sizes).sum())

    def cut(self, reg: float, accuracy: float) -> Cells:
        """The cells with the fewest nodes."""
        return Cells.of(self, *self._choose(reg, accuracy), accuracy)

    def _choose(self, reg: float, accuracy: float) -> tuple[Array, Array]:
        """The boxes of the cut, and the nodes in each of their directions (0 where a box stands for itself)."""
        half = (self.high - self.low) / (2.0 * np.sqrt(reg))
        steps = np.ceil(half * STEPS).astype(np.int64)
        table = nodes_needed(accuracy)
        fits = (steps < len(table)).all(axis=1)
        degrees = table[np.minimum(steps, len(table) - 1)]
        nodes = np.where(fits, degrees.prod(axis=1, dtype=np.float64), np.inf)
        chosen = np.empty(len(self.left), np.int64)
        count = kernels.cheapest_cut(self.start, self.end, self.left, nodes, TILE, chosen)
        chosen = chosen[:count]
        interpolated = nodes[chosen] < self.end[chosen] - self.start[chosen]
        return chosen, np.where(interpolated[:, None], degrees[chosen], 0)


@dataclass(frozen=True, eq=False)
class Cells:
    """A cut of a tree, with the nodes that stand for the points.

    Attributes
    ----------
    points : (n, d) array
        In the order of the tree.
    starts : (cells + 1,) int64 array
        Cell c holds the points [starts_c, starts_(c+1)).
    nodes : (cells + 1,) int64 array
        And the nodes [nodes_c, nodes_(c+1)).
    degrees : (cells, d) int64 array
        Chebyshev nodes in each direction; 0 where the points themselves are the nodes.
    places : (nodes, d) array
        Where the nodes are.
    low, high : (cells, d) arrays
        Corners of the boxes.
    offsets, values : (cells + 1,) int64 array, (k,) array
        Values of the Lagrange polynomials at the points, see `lagrange`.
    means, slopes : (cells, d), (n, d) arrays
        Mean point of each cell, and what turns values at its points into the gradient of their linear fit.
    accuracy : float
        Of the interpolation.
    """

    points: Array
    starts: Array
    nodes: Array
    degrees: Array
    places: Array
    low: Array
    high: Array
    offsets: Array
    values: Array
    means: Array
    slopes: Array
    accuracy: float

    @classmethod
    def of(cls, tree: PointTree, chosen: Array, degrees: Array, accuracy: float) -> Cells:
        """Place the nodes and tabulate the interpolation weights: O(n p d) memory for p nodes in each direction."""
        n, d = tree.points.shape
        sizes = tree.end[chosen] - tree.start[chosen]
        interpolated = degrees[:, 0] > 0
        starts = np.concatenate([[0], np.cumsum(sizes)])
        nodes = np.concatenate([[0], np.cumsum(np.where(interpolated, degrees.prod(axis=1), sizes))])
        offsets = np.concatenate([[0], np.cumsum(np.where(interpolated, sizes * degrees.sum(axis=1), 0))])
        low, high = tree.low[chosen], tree.high[chosen]
        middle, radius, means = 0.5 * (low + high), 0.5 * (high - low), np.zeros_like(low)
        places, slopes = np.empty((nodes[-1], d)), np.zeros((n if interpolated.any() else 0, d))
        for c in range(len(chosen)):
            own = tree.points[starts[c] : starts[c + 1]]
            if not interpolated[c]:
                places[nodes[c] : nodes[c + 1]] = own
                continue
            axes = [m + r * _chebyshev(p) for m, r, p in zip(middle[c], radius[c], degrees[c], strict=True)]
            places[nodes[c] : nodes[c + 1]] = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
            means[c] = own.mean(axis=0)
            deviations = own - means[c]
            slopes[starts[c] : starts[c + 1]] = deviations @ np.linalg.pinv(deviations.T @ deviations, hermitian=True)
        values = np.empty(offsets[-1])
        boxes = tree.points, starts, degrees, middle, radius
        over_rows(kernels.lagrange, n, offsets[-1] * 8, (1, 0), *boxes, offsets, values)
        return cls(tree.points, starts, nodes, degrees, places, low, high, offsets, values, means, slopes, accuracy)

    @property
    def size(self) -> int:
        """Number of nodes."""
        return int(self.nodes[-1])

    @property
    def _work(self) -> int:
        sizes = np.diff(self.starts)
        return int((sizes * np.maximum(self.degrees.prod(axis=1), 1)).sum())

    def to_nodes(self, charges: Array) -> Array:
        """W' charges."""
        args = (self.starts, self.nodes, self.degrees, self.offsets, self.values, charges)
        return over_rows(kernels.to_nodes, len(charges), self._work // 4, (1, self.size), *args)[0][0]

    def to_points(self, field: Array) -> Array:
        """W field."""
        out = np.empty(len(self.points))
        args = (self.starts, self.nodes, self.degrees, self.offsets, self.values, field, out)
        over_rows(kernels.to_points, len(out), self._work // 4, (1, 0), *args)
        return out

    def linear_models(self, potential: Array) -> tuple[Array, Array]:
        """The potential's linear fit in each cell, at the points and at the nodes."""
        at_points, at_nodes = np.empty(len(self.points)), np.empty(self.size)
        cells = self.starts, self.nodes, self.degrees, self.points, self.means, self.slopes, self.places
        over_rows(kernels.linear_models, len(self.degrees), len(self.points), (1, 0), *cells, potential, at_points, at_nodes)
        return at_points, at_nodes
