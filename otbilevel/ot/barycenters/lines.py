"""Images at small reg: soft minima along the lines of a grid in the log domain, one axis after the other."""

from __future__ import annotations

from otbilevel._core.array import Array
from otbilevel.ot.barycenters.problem import BarycenterProblem
from otbilevel.ot.barycenters.shared import axis_costs, inverse
from otbilevel.ot.barycenters.stack import PlanStack

Shares = tuple[Array, Array]
"""Of the sums along the first and the second axis, what each pixel of the line contributes: (k, w, h, h) and (k, h, w, w)."""


class LineStack(PlanStack):
    """exp(-|x - y|^2 / reg) factorises over the axes: log(K exp G) is a soft maximum along columns, then one along rows.

    The shares that pixels have in these sums are kept. They turn a product with the plan into two means along lines,
    without over- or underflow, in O(k h w (h + w)) time and memory.
    """

    def __init__(self, problem: BarycenterProblem, reg: float) -> None:
        assert problem.image is not None
        self.xp, self.reg, self._shape = problem.xp, reg, problem.image
        self._costs = axis_costs(problem.image, problem.inputs[0])
        self._a = self.xp.stack(problem.inputs)
        positive = self._a > 0
        ones = self.xp.ones_like(self._a)
        self._log_a = self.xp.where(positive, self.xp.log(self.xp.where(positive, self._a, ones)), -float("inf") * ones)

    def lower(self, reg: float) -> None:
        """Take the next `move` at another reg."""
        self.reg = reg

    def move(self, log_scalings: Array, h: Array | None = None) -> None:
        xp = self.xp
        self.log_scalings = log_scalings
        self._log_rows, self._row_shares = self._log_apply(log_scalings)
        self.log_sums, self._column_shares = self._log_apply(self._log_a - self._log_rows)
        self.column_sums = xp.exp(log_scalings + self.log_sums)
        self.self_log_sums = None if h is None else self._log_apply(h[None, :])[0][0, :]
        self.passes += 2

    def _log_apply(self, logs: Array) -> tuple[Array, Shares]:
        """log(K exp G) for every image of the stack."""
        xp, (height, width) = self.xp, self._shape
        columns = xp.permute_dims(xp.reshape(logs, (-1, height, width)), (0, 2, 1))
        along_first, first = self._soft_maxima(columns, self._costs[0])
        both, second = self._soft_maxima(xp.permute_dims(along_first, (0, 2, 1)), self._costs[1])
        return xp.reshape(both, (logs.shape[0], -1)), (first, second)

    def _soft_maxima(self, lines: Array, cost: Array) -> tuple[Array, Array]:
        """log sum_x exp(G_x - cost_ix / reg) along the last axis, and the shares of the sums."""
        xp = self.xp
        exponents = lines[:, :, None, :] - cost / self.reg
        top = xp.max(exponents, axis=-1, keepdims=True)
        top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))  # a line without weight
        shares = xp.exp(exponents - top)
        total = xp.sum(shares, axis=-1, keepdims=True)
        safe = xp.where(total > 0, total, xp.ones_like(total))
        empty = xp.full_like(total, -float("inf"))
        return xp.where(total > 0, top + xp.log(safe), empty)[..., 0], shares / safe

    def _means(self, shares: Shares, x: Array) -> Array:
        xp, (height, width) = self.xp, self._shape
        columns = xp.permute_dims(xp.reshape(x, (-1, height, width)), (0, 2, 1))
        first = (shares[0] @ columns[..., None])[..., 0]
        both = (shares[1] @ xp.permute_dims(first, (0, 2, 1))[..., None])[..., 0]
        return xp.reshape(both, (x.shape[0], -1))

    def prepare(self) -> Array:
        return inverse(self.column_sums)

    def laplacian_product(self, x: Array) -> Array:
        self.passes += 2
        return self.column_sums * (x - self._means(self._column_shares, self._means(self._row_shares, x)))

    def row_potentials(self) -> list[Array]:
        f = -self.reg * self._log_rows
        return [f[k, :] for k in range(f.shape[0])]

    def certify(self, f: list[Array], g: Array) -> tuple[list[float], Array]:
        xp = self.xp
        rows = self.xp.stack(f) / self.reg
        log_g, _ = self._log_apply(g / self.reg)
        log_f, _ = self._log_apply(self._log_a + rows)
        errors = xp.sum(self._a * xp.abs(xp.exp(rows + log_g) - 1.0), axis=1)
        return [float(errors[k]) for k in range(len(f))], xp.exp(g / self.reg + log_f)
