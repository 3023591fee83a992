"""Kernels on grids: soft minima along the axes in the log domain, which no reg overflows."""

from __future__ import annotations

from otbilevel._core.array import Array
from otbilevel.ot.barycenters.problem import BarycenterProblem
from otbilevel.ot.barycenters.stack import PlanStack
from otbilevel.ot.kernels.separable import SeparableKernel, plan_sums


class GridStack(PlanStack):
    """The columns are soft minima, too, seen from the targets: debiased barycentres follow them far below the smallest number.

    Inputs on one grid are swept together.
    """

    def __init__(self, problem: BarycenterProblem, reg: float) -> None:
        xp = self.xp = problem.xp
        self.kernels = problem.kernels
        count = len(problem.grids)
        self.reg, self._a, self._grids = reg, problem.inputs, problem.grids
        parts = [slice(0, count)] if problem.shared else [slice(k, k + 1) for k in range(count)]
        self._parts = [(problem.grids[part][0], problem.grids[part][0].transpose(), part) for part in parts]
        floor = xp.asarray(-float("inf"), dtype=xp.float64, device=problem.device)
        logs = [xp.where(a > 0, xp.log(xp.where(a > 0, a, xp.ones_like(a))), floor) for a in problem.inputs]
        self._log_a = [xp.stack(logs[part]) for part in parts]

    def lower(self, reg: float) -> None:
        """Take the next `move` at another reg."""
        self.reg = reg

    def move(self, log_scalings: Array, h: Array | None = None) -> None:
        xp, reg = self.xp, self.reg
        self._rows, self._columns = [], []
        for (grid, transposed, part), log_a in zip(self._parts, self._log_a, strict=True):
            self._rows.append(SeparableKernel(grid, reg * log_scalings[part, :], reg))
            self._columns.append(SeparableKernel(transposed, reg * (log_a - self._rows[-1].log_sums), reg))
        self.log_scalings = log_scalings
        self.log_sums = xp.concat([columns.log_sums for columns in self._columns])
        self.column_sums = xp.exp(log_scalings + self.log_sums)
        self.h, self.self_log_sums = h, None if h is None else self._soft_maxima(h)
        self.passes += 2

    def _soft_maxima(self, h: Array) -> Array:
        log_sums: Array = SeparableKernel(self._grids[0], self.reg * h, self.reg).log_sums
        return log_sums

    def prepare(self) -> Array:
        return self.kernels.inverse(self.column_sums)

    def laplacian_product(self, x: Array) -> Array:
        self.passes += 2
        means = [
            columns.times(rows.times(x[part, :]))
            for rows, columns, (_, _, part) in zip(self._rows, self._columns, self._parts, strict=True)
        ]
        return self.column_sums * (x - self.xp.concat(means))

    def row_potentials(self) -> list[Array]:
        return [-self.reg * rows.log_sums[k, :] for rows in self._rows for k in range(rows.log_sums.shape[0])]

    def certify(self, f: list[Array], g: Array) -> tuple[list[float], Array]:
        errors, columns = [], []
        for k, (grid, a) in enumerate(zip(self._grids, self._a, strict=True)):
            rows, sums, _ = plan_sums(grid, f[k], g[k, :], self.reg, a)
            errors.append(float(self.xp.sum(self.xp.abs(rows - a))))
            columns.append(sums)
        return errors, self.xp.stack(columns)
