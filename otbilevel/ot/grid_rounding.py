"""Rounded plans between grids, and their sums without a pass over all pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Self, cast

from otbilevel._core.array import Array
from otbilevel.ot.kernels import separable
from otbilevel.ot.rounding import RankOne

if TYPE_CHECKING:
    from otbilevel.ot.grid import Grid
    from otbilevel.ot.plan import EntropicPlan, Plan


@dataclass(frozen=True)
class GridRankOne(RankOne):
    """Q = A + u v' with A = diag(x) P diag(y), for entropic plans P, whose kernel is a product over the axes."""

    @classmethod
    def of(cls, plan: Plan) -> Self:
        xp, a, b = plan.problem.xp, plan.problem.a, plan.problem.b
        kernel, masses = _plain(plan)
        x = xp.minimum(xp.ones_like(a), a / xp.where(masses > 0, masses, a))
        columns = kernel.transposed_times(x * masses)
        y = xp.minimum(xp.ones_like(b), b / xp.where(columns > 0, columns, b))
        return cls.filled(plan.problem, x, y, x * masses * kernel.times(y), y * columns)

    def divergence(self, plan: EntropicPlan) -> float:
        """An upper bound of it.

        With s the share of u v' in Q, convexity gives KL(A + u v' | P) <= KL(A | (1 - s) P) + KL(u v' | s P), two separable sums.
        """
        p, xp, (u, v) = plan.problem, plan.problem.xp, (self.u, self.v)
        kernel, masses = _plain(plan)
        rows, columns = self.x * masses * kernel.times(self.y), self.y * kernel.transposed_times(self.x * masses)  # of A
        filled, scaled, mass = float(xp.sum(u)) * float(xp.sum(v)), float(xp.sum(rows)), float(xp.sum(masses))
        s = filled / (filled + scaled)
        logs = float(xp.sum(rows * xp.log(self.x))) + float(xp.sum(columns * xp.log(self.y)))
        total = logs - scaled * math.log1p(-s) - scaled + (1.0 - s) * mass
        if filled > 0:
            logs = float(xp.sum(u * (xp.log(p.a) + plan.f / p.reg))) * float(xp.sum(v))
            spent = separable.product_cost(cast("Grid", p.geometry), u, v)
            logs += (float(xp.sum(u)) * float(xp.sum(v * plan.g)) - spent) / p.reg
            entropy = float(xp.sum(_x_log_x(xp, u))) * float(xp.sum(v)) + float(xp.sum(u)) * float(xp.sum(_x_log_x(xp, v)))
            total += entropy - logs - filled * math.log(s) - filled + s * mass
        return max(total, 0.0)

    def slack(self, plan: Plan, f: Array, g: Array) -> float:
        """<Q, C> minus what the potentials are worth: the terms are not summed one by one."""
        xp = plan.problem.xp
        kernel, masses = _plain(plan)
        rows, columns = self.marginals(plan)
        spent = float(xp.sum(self.x * masses * kernel.cost_of(self.y)))
        spent += separable.product_cost(cast("Grid", plan.problem.geometry), self.u, self.v)
        return max(spent - float(xp.sum(rows * f)) - float(xp.sum(columns * g)), 0.0)


def _plain(plan: Plan) -> tuple[separable.SeparableKernel, Array]:
    """The kernel of a plan, computed entry by entry, and the row sums of the plan."""
    p = plan.problem
    kernel = separable.SeparableKernel(cast("Grid", p.geometry), plan.g, p.reg, plain=True)
    return kernel, kernel.row_masses(plan.f, p.reg, p.a)


def _x_log_x(xp: ModuleType, x: Array) -> Array:
    return x * xp.log(xp.where(x > 0, x, xp.ones_like(x)))
