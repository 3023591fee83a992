"""The plan of unbalanced transport, with its figures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from otbilevel._core.array import Array, array_namespace
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.kernels import aprox
from otbilevel.ot.marginals import Marginals
from otbilevel.ot.penalties import Fixed, Linear, Penalty
from otbilevel.ot.plan import EntropicPlan
from otbilevel.ot.rounding import OnPairs, Rounding
from otbilevel.ot.transforms import extend_potentials


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

    @cached_property
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

    @cached_property
    def soft_minima(self) -> tuple[Array, Array]:
        """Of rows and columns at all of the user's points. The potentials are their aprox."""
        p = self.problem
        rows = p.whole.restrict(None, p.targets.indices).soft_transform(self.g, p.reg)
        part = p.whole.restrict(p.sources.indices, None).transpose()
        return rows, part.soft_transform(self.f + p.reg * p.xp.log(p.mass * p.a), p.reg)

    def conditional_means(self, y: Array) -> Array:
        p = self.problem
        if bool(p.xp.all(self.row_sums > 0)):
            return super().conditional_means(y)
        return self._dropped_means(p.whole.restrict(None, p.targets.indices), p.targets.restrict(y))  # masses that underflowed

    def _soft_rows(self, part: Geometry, g: Array) -> Array:
        p = self.problem
        soft = part.soft_transform(g + p.reg * p.xp.log(self._marginals.column_weights), p.reg)
        return aprox.apply(self._marginals.rows.aprox(p.reg), soft)

    def _soft_columns(self, part: Geometry, f: Array) -> Array:
        p = self.problem
        weighted = p.sources.restrict(f) + p.reg * p.xp.log(p.a * p.mass)
        soft = part.restrict(p.sources.indices, None).transpose().soft_transform(weighted, p.reg)
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

    def divergence(self) -> float:
        p, xp = self.problem, self.problem.xp
        f, g = self.unit_potentials
        products = float(xp.sum(f * self.row_sums)) + float(xp.sum(g * self.column_sums)) - self.linear
        return p.mass * (products / p.reg - self._excess)

    def weight_gradients(self) -> tuple[Array, Array]:
        """By the envelope theorem: of the dual of the penalties, and of -reg sum a b (exp(...) - 1), in each weight."""
        p, m, xp = self.problem, self._marginals, self.problem.xp
        f, g = self.double_potentials()

        def dropped_rows(dropped: Array) -> Array:
            soft = p.whole.restrict(dropped, p.targets.indices).soft_transform(self.g, p.reg)
            return _share(m.rows, soft, p.reg)

        def dropped_columns(dropped: Array) -> Array:
            part = p.whole.restrict(p.sources.indices, dropped).transpose()
            return _share(m.columns, part.soft_transform(self.f + p.reg * xp.log(p.mass * p.a), p.reg), p.reg)

        shares = (  # sum_j b_j exp(...) and sum_i a_i exp(...)
            p.sources.complete(self.row_sums / p.a, dropped_rows),
            p.targets.complete(self.column_sums / p.b, dropped_columns),
        )
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
        yields = m.rows.takes_any or m.columns.takes_any
        fill = (not yields and isinstance(m.rows, Fixed), not yields and isinstance(m.columns, Fixed))
        if p.geometry.has_forbidden_pairs:
            return OnPairs.scaled(self, x, y, fill)
        nothing = xp.zeros_like(p.a), xp.zeros_like(p.b)
        if not any(fill):
            return p.geometry.rank_one(x, y, *nothing)
        if fill[1]:  # rows that were full may now hold too much
            x = x * xp.minimum(xp.ones_like(p.a), p.a / p.geometry.rank_one(x, y, *nothing).marginals(self)[0])
        rows, columns = p.geometry.rank_one(x, y, *nothing).marginals(self)
        u, v = xp.maximum(p.a - rows, xp.zeros_like(p.a)), xp.maximum(p.b - columns, xp.zeros_like(p.b))
        rooms = float(xp.sum(u)), float(xp.sum(v))
        needed = rooms[0] if fill[0] else rooms[1]
        if not needed <= min(rooms) * (1.0 + 1e-12):
            return None
        return p.geometry.rank_one(x, y, u * (needed / (rooms[0] * rooms[1]) if needed > 0 else 0.0), v)

    def _penalty_gaps(self, q: Rounding, f: Array, g: Array) -> float:
        """What Fenchel's inequality leaves of the penalties at the rounded plan: all terms are >= 0."""
        p, m = self.problem, self._marginals
        rows, columns = q.marginals(self)
        return sum(
            penalty.gap(potential, weights, sums)
            for penalty, potential, weights, sums in ((m.rows, f, p.a, rows), (m.columns, g, p.b, columns))
            if not isinstance(penalty, Fixed)
        )

    def gap(self) -> float:
        """Objective at the rounded plan Q minus dual value: reg KL(Q | P) and what the penalties leave."""
        if self.rounding is None:
            return float("inf")
        return super().gap() + self.problem.mass * self._penalty_gaps(self.rounding, *self.unit_potentials)

    def gap_exact(self) -> float:
        """Objective without reg KL at the rounded plan, minus its dual at c-transformed potentials; all terms are >= 0."""
        q, p, m, xp = self.rounding, self.problem, self._marginals, self.problem.xp
        if q is None:
            return float("inf")
        g = aprox.apply(m.columns.aprox(0.0), p.geometry.c_transform_columns(self.f))
        f = aprox.apply(m.rows.aprox(0.0), p.geometry.c_transform_rows(g))
        for penalty, potential in ((m.rows, f), (m.columns, g)):
            if isinstance(penalty, Linear) and float(xp.min(potential)) <= -penalty.prices[1]:
                return float("inf")  # clipped upwards: no longer feasible
        return p.mass * (q.slack(self, f, g) + self._penalty_gaps(q, f, g))


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
