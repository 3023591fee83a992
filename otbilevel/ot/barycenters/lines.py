"""Images at small reg: soft minima along the lines of a grid, one axis after the other, in blocks that no exponent overflows.

Let x lie in a block of pixels with centre X, y in one with centre Y, D = X - Y, and dx, dy their distances from the centres. Then

    (x - y)^2 = D^2 + 2 D dx - 2 D dy + (dx - dy)^2.

All but the last term belong to x or to y, so that they go into the scalings; the last one is small in small blocks. So a soft
minimum over a line is a matrix product for every pair of blocks, and a soft minimum over the blocks.
"""

from __future__ import annotations

import math
from itertools import pairwise
from types import ModuleType

from otbilevel._core.array import Array, array_namespace
from otbilevel.ot.barycenters.problem import BarycenterProblem, pixel_cloud
from otbilevel.ot.barycenters.shared import inverse
from otbilevel.ot.barycenters.stack import PlanStack

WIDEST_BLOCK = 500.0
"""Range of (dx - dy)^2 / reg within a block."""
NOTHING = -700.0
"""Exponents below which a scaling is taken for 0."""

Weights = list[tuple[slice, slice, Array, Array, Array]]
"""For every pair of blocks their pixels, the kernel between them, and what multiplies on either side to give shares."""


class Axis:
    """Soft maxima along lines of pixels at given coordinates."""

    def __init__(self, coordinates: Array, reg: float) -> None:
        xp, size = array_namespace(coordinates), coordinates.shape[0]
        extent = float(coordinates[-1] - coordinates[0])
        count = min(size, max(1, math.ceil(extent / math.sqrt(WIDEST_BLOCK * reg))))
        edges = [round(i * size / count) for i in range(count + 1)]
        self._blocks = [slice(low, high) for low, high in pairwise(edges)]
        self._pairs = []
        for rows in self._blocks:
            for columns in self._blocks:
                x, y = coordinates[rows], coordinates[columns]
                near, far = 0.5 * float(x[0] + x[-1]), 0.5 * float(y[0] + y[-1])
                dx, dy, distance = x - near, y - far, near - far
                kernel = xp.exp(-((dx[:, None] - dy[None, :]) ** 2) / reg)
                self._pairs.append((rows, columns, kernel, -distance * (distance + 2.0 * dx) / reg, 2.0 * distance * dy / reg))

    def soft_maxima(self, lines: Array) -> tuple[Array, Weights]:
        """log sum_y exp(G_y - (x - y)^2 / reg) along the last axis, and what turns this into means."""
        xp = array_namespace(lines)
        weights: Weights = []
        logs = []
        for rows, columns, kernel, of_rows, of_columns in self._pairs:
            exponents = lines[..., columns] + of_columns
            top = xp.max(exponents, axis=-1, keepdims=True)
            exponents = exponents - xp.where(top > -float("inf"), top, xp.zeros_like(top))  # a block may have no weight
            scalings = xp.where(exponents > NOTHING, xp.exp(exponents), xp.zeros_like(exponents))
            sums = scalings @ kernel.T
            positive = sums > 0
            log_sums = xp.where(positive, xp.log(xp.where(positive, sums, xp.ones_like(sums))), xp.full_like(sums, -float("inf")))
            logs.append(log_sums + top + of_rows)
            weights.append((rows, columns, kernel, scalings, top + of_rows))
        totals = xp.concat(
            [self._total(xp, logs[i : i + len(self._blocks)]) for i in range(0, len(logs), len(self._blocks))], axis=-1
        )
        safe = xp.where(totals > -float("inf"), totals, xp.full_like(totals, float("inf")))
        return totals, [(r, c, kernel, v, xp.exp(scale - safe[..., r])) for r, c, kernel, v, scale in weights]

    @staticmethod
    def _total(xp: ModuleType, logs: list[Array]) -> Array:
        total = logs[0]
        for term in logs[1:]:
            total = xp.logaddexp(total, term)
        return total

    def means(self, weights: Weights, lines: Array) -> Array:
        """Means of `lines` with the shares of these soft maxima."""
        xp = array_namespace(lines)
        parts = [u * ((v * lines[..., columns]) @ kernel.T) for _, columns, kernel, v, u in weights]
        width = len(self._blocks)
        return xp.concat([sum(parts[i + 1 : i + width], parts[i]) for i in range(0, len(parts), width)], axis=-1)


class LineStack(PlanStack):
    """exp(-|x - y|^2 / reg) factorises over the axes: log(K exp G) is a soft maximum along columns, then one along rows."""

    def __init__(self, problem: BarycenterProblem, reg: float) -> None:
        assert problem.image is not None
        self.xp, self._shape = problem.xp, problem.image
        points = self.xp.reshape(pixel_cloud(problem.image, problem.inputs[0]).x, (*problem.image, 2))
        self._coordinates = points[:, 0, 0], points[0, :, 1]
        self._a = self.xp.stack(problem.inputs)
        positive = self._a > 0
        ones = self.xp.ones_like(self._a)
        self._log_a = self.xp.where(positive, self.xp.log(self.xp.where(positive, self._a, ones)), -float("inf") * ones)
        self.lower(reg)

    def lower(self, reg: float) -> None:
        """Take the next `move` at another reg."""
        self.reg = reg
        self._axes = tuple(Axis(coordinates, reg) for coordinates in self._coordinates)

    def move(self, log_scalings: Array, h: Array | None = None) -> None:
        xp = self.xp
        self.log_scalings = log_scalings
        self._log_rows, self._row_weights = self._log_apply(log_scalings)
        self.log_sums, self._column_weights = self._log_apply(self._log_a - self._log_rows)
        self.column_sums = xp.exp(log_scalings + self.log_sums)
        self.self_log_sums = None if h is None else self._log_apply(h[None, :])[0][0, :]
        self.passes += 2

    def _columns(self, flat: Array) -> Array:
        """Flat images as lines along the first axis, (k, w, h)."""
        return self.xp.permute_dims(self.xp.reshape(flat, (-1, *self._shape)), (0, 2, 1))

    def _log_apply(self, logs: Array) -> tuple[Array, tuple[Weights, Weights]]:
        """log(K exp G) for every image of the stack."""
        first, second = self._axes
        along_first, weights = first.soft_maxima(self._columns(logs))
        both, others = second.soft_maxima(self.xp.permute_dims(along_first, (0, 2, 1)))
        return self.xp.reshape(both, logs.shape), (weights, others)

    def _means(self, weights: tuple[Weights, Weights], x: Array) -> Array:
        first, second = self._axes
        means = first.means(weights[0], self._columns(x))
        return self.xp.reshape(second.means(weights[1], self.xp.permute_dims(means, (0, 2, 1))), x.shape)

    def prepare(self) -> Array:
        return inverse(self.column_sums)

    def laplacian_product(self, x: Array) -> Array:
        self.passes += 2
        return self.column_sums * (x - self._means(self._column_weights, self._means(self._row_weights, x)))

    def row_potentials(self) -> list[Array]:
        f = -self.reg * self._log_rows
        return [f[k, :] for k in range(f.shape[0])]

    def certify(self, f: list[Array], g: Array) -> tuple[list[float], Array]:
        xp = self.xp
        rows = xp.stack(f) / self.reg
        log_g, _ = self._log_apply(g / self.reg)
        log_f, _ = self._log_apply(self._log_a + rows)
        errors = xp.sum(self._a * xp.abs(xp.exp(rows + log_g) - 1.0), axis=1)
        return [float(errors[k]) for k in range(len(f))], xp.exp(g / self.reg + log_f)
