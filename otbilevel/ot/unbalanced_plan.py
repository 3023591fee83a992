"""The plan of unbalanced transport, with its figures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from otbilevel._core.array import Array, array_namespace
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.grid import Grid
from otbilevel.ot.grid_certificates import rounded_cost
from otbilevel.ot.kernels import aprox
from otbilevel.ot.kernels.generic import row_blocks
from otbilevel.ot.marginals import Marginals
from otbilevel.ot.penalties import Fixed, Linear, Penalty
from otbilevel.ot.plan import EntropicPlan
from otbilevel.ot.rounding import RankOne, Rounding
from otbilevel.ot.transforms import c_transform_columns, c_transform_rows, extend_potentials, soft_transform


@dataclass(eq=False)
class UnbalancedPlan(EntropicPlan):
    """P_ij = a_i exp((f_i + g_j - C_ij)/reg), where the marginals have a price.

    With P = mass P', a = mass a', b = mass b' (those with a prime are what the problem holds), penalties and plan scale with the
    mass; only reg KL(P | a b^T) = <P, f + g - C> - reg (sum P - sum a sum b) does not.
    """

    @property
    def _marginals(self) -> Marginals:
        assert self.problem.marginals is not None
        return self.problem.marginals

    @property
    def marginal_error(self) -> float:
        """L1 distance of both marginals from what the potentials prescribe, relative to the mean mass of a and b."""
        p, m, xp = self.problem, self._marginals, self.problem.xp
        f, g = self.unit_potentials
        rows = xp.abs(self.row_sums - m.rows.prescribed(f, p.a, self.row_sums, p.reg))
        columns = xp.abs(self.column_sums - m.columns.prescribed(g, p.b, self.column_sums, p.reg))
        return float(xp.sum(rows)) + float(xp.sum(columns)) + (0.0 if self.sampled is None else self.sampled.discrepancy)

    @cached_property
    def unit_potentials(self) -> tuple[Array, Array]:
        """Public potentials on the support: prices leave no constant free."""
        return self.f, self._marginals.public(self.g, self.problem.reg)

    def double_potentials(self) -> tuple[Array, Array]:
        return extend_potentials(self.problem, *self.unit_potentials, self._soft_rows, self._soft_columns)

    def _soft_rows(self, part: Geometry, g: Array) -> Array:
        p = self.problem
        soft = soft_transform(part, g + p.reg * p.xp.log(self._marginals.column_weights), p.reg)
        return aprox.apply(self._marginals.rows.aprox(p.reg), soft)

    def _soft_columns(self, part: Geometry, f: Array) -> Array:
        p = self.problem
        weighted = p.sources.restrict(f) + p.reg * p.xp.log(p.a * p.mass)
        soft = soft_transform(part.restrict(p.sources.indices, None).transpose(), weighted, p.reg)
        return aprox.apply(self._marginals.columns.aprox(p.reg), soft)

    @cached_property
    def _excess(self) -> float:
        """Sum P - sum a sum b, in the problem's unit of mass."""
        p, xp = self.problem, self.problem.xp
        return float(xp.sum(self.row_sums)) - p.mass * float(xp.sum(p.a)) * float(xp.sum(p.b))

    def value(self) -> float:
        p, m, xp = self.problem, self._marginals, self.problem.xp
        f, g = self.unit_potentials
        entropy = float(xp.sum(f * self.row_sums)) + float(xp.sum(g * self.column_sums)) - self.linear - p.reg * self._excess
        return p.mass * (self.linear + entropy + m.rows.value(p.a, self.row_sums) + m.columns.value(p.b, self.column_sums))

    def dual_value(self) -> float:
        p, m = self.problem, self._marginals
        f, g = self.unit_potentials
        return p.mass * (m.rows.dual(f, p.a) + m.columns.dual(g, p.b) - p.reg * self._excess)

    _rounded = None  # that of fixed marginals

    def divergence(self) -> float:
        p, xp = self.problem, self.problem.xp
        f, g = self.unit_potentials
        products = float(xp.sum(f * self.row_sums)) + float(xp.sum(g * self.column_sums)) - self.linear
        return p.mass * (products / p.reg - self._excess)

    def weight_gradients(self) -> tuple[Array, Array]:
        """By the envelope theorem: of the dual of the penalties, and of -reg sum a b (exp(...) - 1), in each weight."""
        p, m, xp = self.problem, self._marginals, self.problem.xp
        f, g = self.double_potentials()
        shares = self.row_sums / p.a, self.column_sums / p.b  # sum_j b_j exp(...) and sum_i a_i exp(...)
        if p.sources.dropped is not None:
            soft = soft_transform(p.whole.restrict(p.sources.dropped, p.targets.indices), self.g, p.reg)
            shares = p.sources.merge(shares[0], _share(m.rows, soft, p.reg)), shares[1]
        if p.targets.dropped is not None:
            part = p.whole.restrict(p.sources.indices, p.targets.dropped).transpose()
            soft = soft_transform(part, self.f + p.reg * xp.log(p.mass * p.a), p.reg)
            shares = shares[0], p.targets.merge(shares[1], _share(m.columns, soft, p.reg))
        of_a, of_b = p.mass * float(xp.sum(p.a)), p.mass * float(xp.sum(p.b))
        return m.rows.dual_rate(f) + p.reg * (of_b - shares[0]), m.columns.dual_rate(g) + p.reg * (of_a - shares[1])

    @cached_property
    def rounding(self) -> Rounding | None:
        """Scale what is fixed to its weights, and down what holds more than it may.

        Where one side is fixed and the other may not grow, the fixed one is then filled up; None if there is no room for that.
        """
        p, m, xp = self.problem, self._marginals, self.problem.xp
        x = _scaling(m.rows, p.a, self.row_sums)
        y = _scaling(m.columns, p.b, self.product(x[:, None], 0)[:, 0])
        if m.rows.takes_any or m.columns.takes_any:
            return RankOne(x, y, xp.zeros_like(p.a), xp.zeros_like(p.b))
        rows, columns = x * self.product(y[:, None], 1)[:, 0], y * self.product(x[:, None], 0)[:, 0]
        if isinstance(m.columns, Fixed):  # rows that were full may now hold too much
            x = x * xp.minimum(xp.ones_like(p.a), p.a / rows)
            rows, columns = x * self.product(y[:, None], 1)[:, 0], y * self.product(x[:, None], 0)[:, 0]
        u, v = xp.maximum(p.a - rows, xp.zeros_like(p.a)), xp.maximum(p.b - columns, xp.zeros_like(p.b))
        rooms = float(xp.sum(u)), float(xp.sum(v))
        needed = rooms[0] if isinstance(m.rows, Fixed) else rooms[1] if isinstance(m.columns, Fixed) else 0.0
        if not needed <= min(rooms) * (1.0 + 1e-12):
            return None
        return RankOne(x, y, u * (needed / (rooms[0] * rooms[1]) if needed > 0 else 0.0), v)

    @cached_property
    def _rounded_sums(self) -> tuple[Array, Array]:
        """Marginals of the rounded plan."""
        q, xp = self.rounding, self.problem.xp
        assert isinstance(q, RankOne)
        rows = q.x * self.product(q.y[:, None], 1)[:, 0] + q.u * xp.sum(q.v)
        columns = q.y * self.product(q.x[:, None], 0)[:, 0] + q.v * xp.sum(q.u)
        return rows, columns

    def _penalty_gaps(self, f: Array, g: Array) -> float:
        """What Fenchel's inequality leaves of the penalties at the rounded plan: all terms are >= 0."""
        p, m = self.problem, self._marginals
        rows, columns = self._rounded_sums
        return sum(
            penalty.gap(potential, weights, sums)
            for penalty, potential, weights, sums in ((m.rows, f, p.a, rows), (m.columns, g, p.b, columns))
            if not isinstance(penalty, Fixed)
        )

    def gap(self) -> float:
        """Objective at the rounded plan Q minus dual value: reg KL(Q | P) and what the penalties leave."""
        q, p, xp = self.rounding, self.problem, self.problem.xp
        if q is None:
            return float("inf")
        penalties = p.mass * self._penalty_gaps(*self.unit_potentials)
        assert isinstance(q, RankOne)
        if bool(xp.any(q.u > 0)):
            return super().gap() + penalties
        rows, columns = self._rounded_sums  # of diag(x) P diag(y), whose divergence needs no pass
        divergence = float(xp.sum(rows * _log(q.x))) + float(xp.sum(columns * _log(q.y)))
        divergence += float(xp.sum(self.row_sums)) - float(xp.sum(rows))
        return p.mass * p.reg * max(divergence, 0.0) + penalties

    def gap_exact(self) -> float:
        """Objective without reg KL at the rounded plan, minus its dual at c-transformed potentials; all terms are >= 0."""
        q, p, m, xp = self.rounding, self.problem, self._marginals, self.problem.xp
        if q is None:
            return float("inf")
        g = aprox.apply(m.columns.aprox(0.0), c_transform_columns(p.geometry, self.f))
        f = aprox.apply(m.rows.aprox(0.0), c_transform_rows(p.geometry, g))
        for penalty, potential in ((m.rows, f), (m.columns, g)):
            if isinstance(penalty, Linear) and float(xp.min(potential)) <= -penalty.prices[1]:
                return float("inf")  # clipped upwards: no longer feasible
        assert isinstance(q, RankOne)
        if isinstance(p.geometry, Grid):
            rows, columns = self._rounded_sums
            spent = rounded_cost(p, self.f, self.g, q) - float(xp.sum(rows * f)) - float(xp.sum(columns * g))
            return p.mass * (max(spent, 0.0) + self._penalty_gaps(f, g))
        total = 0.0
        for low, high in row_blocks(p.geometry.shape):
            slack = p.geometry.rows(low, high) - f[low:high, None] - g[None, :]
            part = q.rows(low, high, self.rows(low, high))
            used = (part > 0) & (slack > 0)
            total += float(xp.sum(xp.where(used, part * xp.where(used, slack, xp.zeros_like(slack)), xp.zeros_like(part))))
        return p.mass * (total + self._penalty_gaps(f, g))


def _scaling(penalty: Penalty, w: Array, r: Array) -> Array:
    """The factors that bring masses r to the weights, or down to them, where the penalty asks for that."""
    xp = array_namespace(w)
    if penalty.takes_any:
        return xp.ones_like(w)
    factors = w / xp.where(r > 0, r, w)
    return factors if isinstance(penalty, Fixed) else xp.minimum(xp.ones_like(w), factors)


def _share(penalty: Penalty, soft: Array, reg: float) -> Array:
    """What a point with this soft minimum would hold of its weight, were it not 0."""
    return array_namespace(soft).exp((aprox.apply(penalty.aprox(reg), soft) - soft) / reg)


def _log(x: Array) -> Array:
    return array_namespace(x).log(x)
