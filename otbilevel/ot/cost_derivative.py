"""Derivatives of the cost in what it is made of: the entries of a matrix, or two clouds of points.

For weights W, a block of rows at a time, and directions dx, dy (or dC) they give

    pull    sum_j W_ij dc(x_i, y_j)/dx_i  and  sum_i W_ij dc(x_i, y_j)/dy_j,
    push    the rows of dC = dc/dx dx + dc/dy dy,
    bend    sum_j W_ij d(dc/dx_i)[dx, dy]  and  sum_i W_ij d(dc/dy_j)[dx, dy],

in O(n m d) operations and O((n + m) d) memory beside the block. Where a distance has a kink the derivative is taken for 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from otbilevel._core.array import Array, device
from otbilevel.ot.point_cloud import PointCloud

Pair = tuple[Array, Array]
"""What belongs to rows of x, and to all of y."""


class CostDerivative(ABC):
    """Derivatives of a cost of two clouds in double precision.

    Attributes
    ----------
    x, y : (n, d), (m, d) arrays
        The points, in coordinates in which the cost has a simple form.
    """

    def __init__(self, cloud: PointCloud) -> None:
        xp = self.xp = cloud.xp
        self.x, self.y = xp.astype(cloud.x, xp.float64), xp.astype(cloud.y, xp.float64)
        self.dx, self.dy = xp.zeros_like(self.x), xp.zeros_like(self.y)

    def direct(self, dx: Array, dy: Array) -> None:
        """Set the direction of `push` and `bend`, in the user's coordinates."""
        self.dx, self.dy = dx, dy

    @abstractmethod
    def pull(self, low: int, high: int, weights: Array) -> Pair:
        """Gradients in the rows [low, high) of x, and what these rows add to those in y."""

    @abstractmethod
    def push(self, low: int, high: int) -> Array:
        """The rows [low, high) of dC."""

    @abstractmethod
    def bend(self, low: int, high: int, weights: Array) -> Pair:
        """How the gradients change in the direction while the weights stay."""

    def outward(self, gradient: Pair) -> Pair:
        """The gradient in the user's coordinates."""
        return gradient

    def outward_change(self, gradient: Pair, change: Pair) -> Pair:  # noqa: ARG002 -- where coordinates are curved
        """Its change in the direction, from the gradient and the change in the coordinates used here."""
        return self.outward(change)


class Squared(CostDerivative):
    """|x - y|^2."""

    def __init__(self, cloud: PointCloud) -> None:
        super().__init__(cloud)
        centre = self.xp.mean(self.y, axis=0)  # products of coordinates must not cancel more than they need
        self.x, self.y = self.x - centre, self.y - centre

    def pull(self, low: int, high: int, weights: Array) -> Pair:
        return self._differences(2.0 * weights, self.x[low:high, :], self.y)

    def push(self, low: int, high: int) -> Array:
        return 2.0 * self._inner(low, high)

    def bend(self, low: int, high: int, weights: Array) -> Pair:
        return self._differences(2.0 * weights, self.dx[low:high, :], self.dy)

    def _differences(self, weights: Array, x: Array, y: Array) -> Pair:
        """sum_j W_ij (x_i - y_j) and sum_i W_ij (y_j - x_i)."""
        rows, columns = self.xp.sum(weights, axis=1), self.xp.sum(weights, axis=0)
        return rows[:, None] * x - weights @ y, columns[:, None] * y - weights.T @ x

    def _inner(self, low: int, high: int) -> Array:
        """<x_i - y_j, dx_i - dy_j>."""
        x, dx = self.x[low:high, :], self.dx[low:high, :]
        own = self.xp.sum(x * dx, axis=1)[:, None] + self.xp.sum(self.y * self.dy, axis=1)[None, :]
        return own - x @ self.dy.T - dx @ self.y.T


class Euclidean(Squared):
    """|x - y|."""

    def pull(self, low: int, high: int, weights: Array) -> Pair:
        return self._differences(weights * self._inverse_distances(low, high), self.x[low:high, :], self.y)

    def push(self, low: int, high: int) -> Array:
        return self._inner(low, high) * self._inverse_distances(low, high)

    def bend(self, low: int, high: int, weights: Array) -> Pair:
        inverse = self._inverse_distances(low, high)
        shares = weights * inverse
        straight = self._differences(shares, self.dx[low:high, :], self.dy)
        turned = self._differences(shares * self._inner(low, high) * inverse**2, self.x[low:high, :], self.y)
        return straight[0] - turned[0], straight[1] - turned[1]

    def _inverse_distances(self, low: int, high: int) -> Array:
        total = self.xp.zeros((high - low, self.y.shape[0]), dtype=self.x.dtype, device=device(self.x))
        for k in range(self.x.shape[1]):
            total = total + (self.x[low:high, k, None] - self.y[None, :, k]) ** 2
        apart = total > 0
        one = self.xp.ones_like(total)
        return self.xp.where(apart, 1.0 / self.xp.sqrt(self.xp.where(apart, total, one)), 0.0 * one)


class Cityblock(CostDerivative):
    """sum_k |x_k - y_k|."""

    def pull(self, low: int, high: int, weights: Array) -> Pair:
        signed = [weights * self._signs(low, high, k) for k in range(self.x.shape[1])]
        rows = [self.xp.sum(block, axis=1) for block in signed]
        columns = [-self.xp.sum(block, axis=0) for block in signed]
        return self.xp.stack(rows, axis=1), self.xp.stack(columns, axis=1)

    def push(self, low: int, high: int) -> Array:
        total = self.xp.zeros((high - low, self.y.shape[0]), dtype=self.x.dtype, device=device(self.x))
        for k in range(self.x.shape[1]):
            total = total + self._signs(low, high, k) * (self.dx[low:high, k, None] - self.dy[None, :, k])
        return total

    def bend(self, low: int, high: int, weights: Array) -> Pair:  # noqa: ARG002 -- the cost is linear between its kinks
        return self.xp.zeros_like(self.x[low:high, :]), self.xp.zeros_like(self.y)

    def _signs(self, low: int, high: int, k: int) -> Array:
        return self.xp.sign(self.x[low:high, k, None] - self.y[None, :, k])


class Cosine(CostDerivative):
    """1 - <p, q> with p = x/|x| and q = y/|y|, in which it is bilinear."""

    def __init__(self, cloud: PointCloud) -> None:
        super().__init__(cloud)
        norm = self.xp.linalg.vector_norm
        self._lengths = norm(self.x, axis=1, keepdims=True), norm(self.y, axis=1, keepdims=True)
        self.x, self.y = self.x / self._lengths[0], self.y / self._lengths[1]
        self._direction = self.dx, self.dy

    def direct(self, dx: Array, dy: Array) -> None:
        self._direction = dx, dy
        self.dx, self.dy = self.outward((dx, dy))  # the projection is symmetric

    def pull(self, low: int, high: int, weights: Array) -> Pair:
        return -(weights @ self.y), -(weights.T @ self.x[low:high, :])

    def push(self, low: int, high: int) -> Array:
        return -(self.dx[low:high, :] @ self.y.T) - self.x[low:high, :] @ self.dy.T

    def bend(self, low: int, high: int, weights: Array) -> Pair:
        return -(weights @ self.dy), -(weights.T @ self.dx[low:high, :])

    def outward(self, gradient: Pair) -> Pair:
        """(I - p p') / |x| times the gradient in p."""
        units = (self.x, self.y)
        first, second = ((v - p * self._dot(p, v)) / length for v, p, length in zip(gradient, units, self._lengths, strict=True))
        return first, second

    def outward_change(self, gradient: Pair, change: Pair) -> Pair:
        changes = []
        sides = zip(
            gradient, self.outward(gradient), self.outward(change), (self.x, self.y), (self.dx, self.dy), self._direction,
            self._lengths, strict=True,
        )  # fmt: skip
        for v, projected, straight, p, dp, direction, length in sides:
            turned = self._dot(p, direction) * projected + dp * self._dot(p, v) + p * self._dot(dp, v)
            changes.append(straight - turned / length)
        return changes[0], changes[1]

    def _dot(self, u: Array, v: Array) -> Array:
        return self.xp.sum(u * v, axis=1, keepdims=True)


KINDS: dict[str, type[CostDerivative]] = {
    "sqeuclidean": Squared,
    "euclidean": Euclidean,
    "cityblock": Cityblock,
    "cosine": Cosine,
}


def cost_derivative(cloud: PointCloud) -> CostDerivative:
    """The derivatives of that cloud's cost."""
    return KINDS[cloud.cost](cloud)
