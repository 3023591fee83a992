"""Duality gaps of plans between grids, without a pass over all pairs."""

from __future__ import annotations

import math
from types import ModuleType

from otbilevel._core.array import Array
from otbilevel.ot.grid import Grid
from otbilevel.ot.kernels import separable
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.rounding import RankOne


class RoundedGridPlan:
    """Q = A + u v' with A = diag(x) P diag(y), the rounding `RankOne` of P = diag(a) exp((f + g - C)/reg).

    Parameters
    ----------
    problem : OTProblem
        Between the points of a `Grid`.
    f, g : (n,), (m,) arrays
        Potentials; g carries the weight b.
    """

    def __init__(self, problem: OTProblem, f: Array, g: Array) -> None:
        assert isinstance(problem.geometry, Grid)
        self._problem, self._f, self._g, self._grid = problem, f, g, problem.geometry
        xp, a, b = problem.xp, problem.a, problem.b
        self._kernel = kernel = separable.SeparableKernel(self._grid, g, problem.reg, plain=True)
        self._masses = masses = kernel.row_masses(f, problem.reg, a)
        x = xp.minimum(xp.ones_like(a), a / xp.where(masses > 0, masses, a))
        columns = kernel.transposed_times(x * masses)
        y = xp.minimum(xp.ones_like(b), b / xp.where(columns > 0, columns, b))
        self._rows, self._columns = x * masses * kernel.times(y), y * columns  # the marginals of A
        u, v = xp.clip(a - self._rows, 0, None), xp.clip(b - self._columns, 0, None)
        total = float(xp.sum(v))
        self.rounding = RankOne(x, y, u, v / total if total > 0 else v)

    def gap(self) -> float:
        """An upper bound of reg KL(Q | P), for unit mass.

        With the share s = sum u v', convexity gives KL(A + u v' | P) <= KL(A | (1 - s) P) + KL(u v' | s P), two separable sums.
        """
        xp, a, reg, (x, y, u, v) = self._problem.xp, self._problem.a, self._problem.reg, self._parts
        share = float(xp.sum(u)) * float(xp.sum(v))
        mass, scaled = float(xp.sum(self._masses)), float(xp.sum(self._rows))
        logs = float(xp.sum(self._rows * xp.log(x))) + float(xp.sum(self._columns * xp.log(y)))
        total = logs - scaled * math.log1p(-share) - scaled + (1.0 - share) * mass
        if share > 0:
            exponents = float(xp.sum(u * (xp.log(a) + self._f / reg))) + float(xp.sum(u)) * float(xp.sum(v * self._g)) / reg
            exponents -= separable.product_cost(self._grid, u, v) / reg
            entropy = float(xp.sum(_x_log_x(xp, u))) + float(xp.sum(u)) * float(xp.sum(_x_log_x(xp, v)))
            total += entropy - exponents - share * math.log(share) - share + share * mass
        return reg * max(total, 0.0)

    def gap_exact(self) -> float:
        """<Q, C> minus the value of the c-transformed potentials, for unit mass."""
        xp, p = self._problem.xp, self._problem
        spent = rounded_cost(p, self._f, self._g, self.rounding)
        g = separable.c_transform(self._grid.transpose(), self._f)
        f = separable.c_transform(self._grid, g)
        return max(spent - float(xp.sum(p.a * f)) - float(xp.sum(p.b * g)), 0.0)

    @property
    def _parts(self) -> tuple[Array, Array, Array, Array]:
        return self.rounding.x, self.rounding.y, self.rounding.u, self.rounding.v


def rounded_cost(problem: OTProblem, f: Array, g: Array, q: RankOne) -> float:
    """<Q, C> of a rounded plan, for unit mass."""
    xp, grid = problem.xp, problem.geometry
    assert isinstance(grid, Grid)
    kernel = separable.SeparableKernel(grid, g, problem.reg, plain=True)
    masses = kernel.row_masses(f, problem.reg, problem.a)
    return float(xp.sum(q.x * masses * kernel.cost_of(q.y))) + separable.product_cost(grid, q.u, q.v)


def _x_log_x(xp: ModuleType, x: Array) -> Array:
    return x * xp.log(xp.where(x > 0, x, xp.ones_like(x)))
