"""Jacobian-vector products of a solution, and Hessian-vector products of the optimal value: from changes in to changes out.

The equations are those of `reverse`, solved for (dS, dT).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from otbilevel._core.array import Array
from otbilevel.ot.gradients import OTGradient, balanced_change
from otbilevel.ot.plan_blocks import Block, PlanBlocks, matrix_rows
from otbilevel.ot.plan_system import PlanSystem
from otbilevel.ot.point_cloud import PointCloud


@dataclass(frozen=True)
class Direction:
    """Changes of the data, in double precision; None for 0."""

    a: Array | None = None
    b: Array | None = None
    C: Any = None
    x: Array | None = None
    y: Array | None = None
    reg: float = 0.0


class Forward:
    """The derivative of the solution in one direction.

    Attributes
    ----------
    soft_minima, f, g
        Changes of the soft minima S, T and of the potentials, in double precision.
    """

    def __init__(self, blocks: PlanBlocks, system: PlanSystem, direction: Direction) -> None:
        self._blocks, self._system, self._direction = blocks, system, direction
        self._xp = xp = blocks.xp
        if isinstance(blocks.geometry, PointCloud):  # also without a change of points: the last direction must go
            derivative = blocks.derivative
            zeros = xp.zeros_like(derivative.x), xp.zeros_like(derivative.y)
            derivative.direct(*(z if v is None else v for z, v in zip(zeros, (direction.x, direction.y), strict=True)))
        self._weights, self._masses = self._weight_changes()
        (self._a, self._b) = (share * v for share, v in zip(blocks.shares, self._weights, strict=True))
        self.soft_minima = self._solve()
        self.f, self.g = (v * w for v, w in zip(blocks.responses, self.soft_minima, strict=True))

    def _weight_changes(self) -> tuple[tuple[Array, Array], tuple[float, float]]:
        """Those of both weights, and of their masses."""
        p, xp, given = self._blocks, self._xp, self._direction
        if p.is_free:
            a, b, mass = balanced_change(p.problem, given.a, given.b)
            return (a, b), (mass, mass)
        a, b = (xp.zeros_like(w) if v is None else v for v, w in zip((given.a, given.b), p.weights, strict=True))
        return (a, b), (float(xp.sum(a)), float(xp.sum(b)))

    def _cost_change(self, block: Block) -> Any:
        """dC_ij, and 0 where the plan has vanished."""
        given = self._direction
        if given.C is not None:
            rows = matrix_rows(given.C, block)
            return self._xp.where(block.kernel > 0, rows, self._xp.zeros_like(rows))
        if given.x is not None or given.y is not None:
            return self._blocks.derivative.push(block.low, block.high)
        return 0.0

    def _exponent_change(self, block: Block) -> Any:
        """w_ij = dC_ij + (dreg/reg)(f_i + g_j - C_ij): minus reg times what the exponent changes by while f and g stay."""
        change = self._cost_change(block)
        if self._direction.reg == 0.0:
            return change
        return change + (self._direction.reg / self._blocks.reg) * self._blocks.slack(block)

    def _solve(self) -> tuple[Array, Array]:
        """The changes of the soft minima."""
        p, xp = self._blocks, self._xp
        rho, sigma = [], xp.zeros_like(p.b)
        for block in p:
            low, high, kernel = block
            w = self._exponent_change(block)
            rho.append(xp.sum(kernel * (p.b[None, :] * w - p.reg * self._b[None, :]), axis=1))
            sigma = sigma + xp.sum(kernel * (p.a[low:high, None] * w - p.reg * self._a[low:high, None]), axis=0)
        sources, targets = p.problem.sources, p.problem.targets
        whole_rho, whole_sigma = xp.concat(rho), sigma
        found = self._system.solve(sources.restrict(p.a * whole_rho) / p.mass, targets.restrict(p.b * whole_sigma) / p.mass)
        f, g = sources.expand(found[0]), targets.expand(found[1])
        (empty_rows, empty_columns), (of_f, of_g) = p.empty, p.responses
        if empty_rows is not None:
            f = xp.where(empty_rows, whole_rho - p.times(p.b * of_g * g), f)
        if empty_columns is not None:
            g = xp.where(empty_columns, whole_sigma - p.transposed_times(p.a * of_f * f), g)
        return self._in_gauge(f, g) if p.is_free else (f, g)

    def _in_gauge(self, f: Array, g: Array) -> tuple[Array, Array]:
        """Shifted so that <a, f> = <b, g> stays true."""
        p, xp = self._blocks, self._xp
        old_f, old_g = p.potentials
        excess = xp.sum(self._a * old_f) + xp.sum(p.a * f) - xp.sum(self._b * old_g) - xp.sum(p.b * g)
        shift = float(excess) / (2.0 * p.mass)
        return f - shift, g + shift

    def plan_rows(self, block: Block) -> Array:
        """The rows of dP."""
        p, part = self._blocks, slice(block.low, block.high)
        exponent = (self.f[part, None] + self.g[None, :] - self._exponent_change(block)) / p.reg
        a, b = p.a[part, None], p.b[None, :]
        return block.kernel * (self._a[part, None] * b + a * self._b[None, :] + a * b * exponent)

    def plan(self) -> Any:
        """DP, in the form of the cost."""
        return self._blocks.matrix(self.plan_rows)

    def value(self) -> float:
        """The change of the optimal value: by the envelope theorem that while P stays."""
        p, xp = self._blocks, self._xp
        total = sum(float(xp.sum(v * rate)) for v, rate in zip(self._weights, p.plan.weight_gradients(), strict=True))
        total += self._direction.reg * p.plan.divergence()
        if self._has_cost_change:
            total += sum(float(xp.sum(p.coupling(block) * self._cost_change(block))) for block in p)
        return total

    @property
    def _has_cost_change(self) -> bool:
        given = self._direction
        return not (given.C is None and given.x is None and given.y is None)

    def value_linear(self) -> float:
        """D<P, C>."""
        p, total = self._blocks, 0.0
        for block in p:
            total += float(self._xp.sum(self.plan_rows(block) * p.cost(block) + p.coupling(block) * self._cost_change(block)))
        return total

    def barycentric_map(self, points: Array, change: Array | None) -> Array:
        """The change of the barycentric map of points that themselves change."""
        p, rows = self._blocks, []
        means = p.plan.conditional_means(points)
        for block in p:
            part = slice(block.low, block.high)
            exponent = (self.f[part, None] + self.g[None, :] - self._exponent_change(block)) / p.reg
            conditional = block.kernel * (self._b[None, :] + p.b[None, :] * exponent)
            moved = conditional @ points - self._xp.sum(conditional, axis=1)[:, None] * means[part, :]
            if change is not None:
                moved = moved + (block.kernel * p.b[None, :]) @ change
            rows.append(moved)
        return self._xp.concat(rows)

    def gradient_change(self, names: set[str]) -> OTGradient:
        """The change of the gradient of the optimal value: its Hessian times the direction.

        In a that is the change of dual_rate(f) + reg (sum b - s), where what f adds to both terms is s times the change of S.
        """
        p, xp, dreg = self._blocks, self._xp, self._direction.reg
        excess = tuple(mass - share for mass, share in zip(reversed(p.masses), p.shares, strict=True))
        sides = zip("ab", p.shares, self.soft_minima, excess, reversed(self._masses), strict=True)
        found: dict[str, Any] = {name: s * v + dreg * over + p.reg * mass for name, s, v, over, mass in sides}
        gather = _Gather(self, points=bool({"x", "y"} & names), matrix="C" in names, reg="reg" in names)
        found |= gather.run(p)
        if "reg" in found:
            found["reg"] += sum(float(xp.sum(v * over)) for v, over in zip(self._weights, excess, strict=True))
        fields = {name: value if name == "reg" else p.in_user_dtype(value) for name, value in found.items()}
        return OTGradient(**{name: value for name, value in fields.items() if name in names})


@dataclass
class _Gather:
    """One pass over dP for the change of the gradient in the cost's data and in reg."""

    forward: Forward
    points: bool
    matrix: bool
    reg: bool

    def run(self, p: PlanBlocks) -> dict[str, Any]:
        """Changes of the gradient by name."""
        found: dict[str, Any] = {}
        if not (self.points or self.matrix or self.reg):
            return found
        xp, rows, entropy = p.xp, [], 0.0
        gradients: list[list[Array]] = []
        sums = [xp.zeros_like(p.derivative.y) for _ in range(2)] if self.points else []
        for block in p:
            change = self.forward.plan_rows(block)
            if self.matrix:
                rows.append(p.geometry.kept(change, block.low))
            if self.reg:
                entropy += float(xp.sum(change * p.slack(block))) / p.reg
            if self.points:
                plan = p.coupling(block)
                straight = p.derivative.pull(block.low, block.high, change)
                bent = p.derivative.bend(block.low, block.high, plan)
                base = p.derivative.pull(block.low, block.high, plan)
                gradients.append([base[0], straight[0] + bent[0]])
                sums = [sums[0] + base[1], sums[1] + straight[1] + bent[1]]
        if self.matrix:
            found["C"] = p.geometry.joined(rows)
        if self.reg:
            found["reg"] = entropy
        if self.points:
            base_x, change_x = (xp.concat(list(parts)) for parts in zip(*gradients, strict=True))
            found["x"], found["y"] = p.derivative.outward_change((base_x, sums[0]), (change_x, sums[1]))
        return found
