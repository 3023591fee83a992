"""The plan of unbalanced transport, with its figures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from otbilevel._core.array import Array, array_namespace
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.kernels import aprox
from otbilevel.ot.kernels.generic import row_blocks
from otbilevel.ot.marginals import Marginals
from otbilevel.ot.penalties import Fixed, Linear, Penalty
from otbilevel.ot.plan import EntropicPlan, c_transform_columns, c_transform_rows, extend_potentials, soft_transform
from otbilevel.ot.rounding import RankOne, Rounding


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

    @cached_property
    def rounding(self) -> Rounding | None:
        """Scale down what holds more than it may, then fill up a side that is fixed; None where the other has no room."""
        p, m, xp = self.problem, self._marginals, self.problem.xp
        x = _shrunk(m.rows, p.a, self.row_sums)
        y = _shrunk(m.columns, p.b, self.product(x[:, None], 0)[:, 0])
        rows, columns = x * self.product(y[:, None], 1)[:, 0], y * self.product(x[:, None], 0)[:, 0]
        u, v = _room(m.rows, p.a, rows), _room(m.columns, p.b, columns)
        room_u, room_v = float(xp.sum(u)), float(xp.sum(v))
        if isinstance(m.rows, Fixed):
            needed, room = room_u, room_v
        elif isinstance(m.columns, Fixed):
            needed, room = room_v, room_u
        else:
            needed, room = 0.0, 1.0
        if not needed <= room * (1.0 + 1e-12):
            return None
        scale = needed / (room_u * room_v) if needed > 0 else 0.0
        return RankOne(x, y, scale * u, v)

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
        if self.rounding is None:
            return float("inf")
        return super().gap() + self.problem.mass * self._penalty_gaps(*self.unit_potentials)

    def gap_exact(self) -> float:
        """Objective without reg KL at the rounded plan, minus its dual at c-transformed potentials; all terms are >= 0."""
        if self.rounding is None:
            return float("inf")
        p, m, xp, total = self.problem, self._marginals, self.problem.xp, 0.0
        g = aprox.apply(m.columns.aprox(0.0), c_transform_columns(p.geometry, self.f))
        f = aprox.apply(m.rows.aprox(0.0), c_transform_rows(p.geometry, g))
        for penalty, potential in ((m.rows, f), (m.columns, g)):
            if isinstance(penalty, Linear) and float(xp.min(potential)) <= -penalty.prices[1]:
                return float("inf")  # clipped upwards: no longer feasible
        for low, high in row_blocks(p.geometry.shape):
            slack = p.geometry.rows(low, high) - f[low:high, None] - g[None, :]
            q = self.rounding.rows(low, high, self.rows(low, high))
            total += float(
                xp.sum(xp.where((q > 0) & (slack > 0), q * xp.where(q > 0, slack, xp.zeros_like(slack)), xp.zeros_like(q)))
            )
        return p.mass * (total + self._penalty_gaps(f, g))


def _shrunk(penalty: Penalty, w: Array, r: Array) -> Array:
    """The factors that bring the masses r down to the weights, where they must not exceed them."""
    xp = array_namespace(w)
    if penalty.takes_any:
        return xp.ones_like(w)
    return xp.minimum(xp.ones_like(w), w / xp.where(r > 0, r, w))


def _room(penalty: Penalty, w: Array, r: Array) -> Array:
    """What the points can take in addition."""
    xp = array_namespace(w)
    if penalty.takes_any:
        return w
    return xp.maximum(w - r, xp.zeros_like(w))
