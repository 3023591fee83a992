"""Both marginals of unbalanced transport, as a plan with exact rows sees them.

Where the marginals have a price, the best f at given g is the aprox of the soft minimum S(g) instead of S(g) itself, and row i then
has the mass r_i = a_i exp((f_i - S_i)/reg). With f eliminated, the semi-dual has gradient q(g) - c(g), where q is what the penalty
of the columns prescribes at g, and Hessian -(1/reg) L with

    L = diag(c) + reg diag(stiffness of q) - K' diag(r s) K,    s the derivative of aprox at S.

So only the row masses, the target q in the place of b, and a diagonal are new to a solver.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from otbilevel._core.array import Array, array_namespace, clamp
from otbilevel.ot.kernels import aprox
from otbilevel.ot.kernels.aprox import Aprox
from otbilevel.ot.penalties import KL, Fixed, Linear, Penalty

LONGEST = 100.0
"""Step of a potential, in units of reg, up to which L has to be right: it is clipped long before."""
EXPLAINED = 0.1
"""Share of the difference of two masses that points at their bounds explain, below which none is taken to be there."""
AT_BOUND = 1e20
"""Diagonal of L for a potential that is at its bound: it then stays."""


@dataclass(frozen=True, eq=False)
class Marginals:
    """The weights of both sides and the penalties for not meeting them.

    Attributes
    ----------
    rows, columns : Penalty
        Of either side.
    a, b : (n,), (m,) arrays
        Weights, in the problem's unit of mass.
    column_weights : (m,) array
        b in the user's unit: with g as a `RowPlan` has it, g - reg log(column_weights) is the public potential.
    """

    rows: Penalty
    columns: Penalty
    a: Array
    b: Array
    column_weights: Array

    @cached_property
    def log_weights(self) -> Array:
        """log(column_weights)."""
        return array_namespace(self.column_weights).log(self.column_weights)

    @property
    def strengths(self) -> tuple[float, float] | None:
        """Those of Kullback-Leibler's prices of rows and columns, infinite for a fixed marginal; None for other prices."""
        found = [p.strength if isinstance(p, KL) else math.inf for p in (self.rows, self.columns) if isinstance(p, (KL, Fixed))]
        return (found[0], found[1]) if len(found) == 2 else None

    def aprox(self, reg: float) -> Aprox:
        """Of the rows, for the kernels."""
        return self.rows.aprox(reg)

    def row_potentials(self, f: Array, reg: float) -> Array:
        """The public potentials of rows with soft minima f."""
        return aprox.apply(self.aprox(reg), f)

    def row_masses(self, f: Array, reg: float) -> Array:
        """What these rows hold."""
        return aprox.row_masses(f, reg, self.a, self.aprox(reg))

    def row_response(self, f: Array, reg: float) -> Array:
        """The derivative of aprox."""
        return _response(self.aprox(reg), f)

    def column_response(self, g: Array, reg: float) -> Array:
        """The same for columns with soft minima g."""
        return _response(self.columns.aprox(reg), g)

    def public(self, g: Array, reg: float) -> Array:
        """The public potential of the columns."""
        return g - reg * self.log_weights

    def project(self, g: Array, reg: float) -> Array:
        """The admissible g nearest to the given one."""
        _, least, most = self.columns.aprox(reg)
        if least == -math.inf and most == math.inf:
            return g
        return clamp(self.public(g, reg), least, most) + reg * self.log_weights

    def target(self, g: Array, reg: float, sums: Array) -> Array:
        """What the columns should hold at g, where they hold `sums`."""
        return self.columns.prescribed(self.public(g, reg), self.b, sums, reg)

    def stiffened(self, degree: Array, g: Array, reg: float, sums: Array, target: Array) -> Array:
        """The diagonal of L without its last term: the degrees and what the price of the columns adds.

        Where a column holds next to nothing of what it should, that is so small that a step would overflow.
        """
        xp, p = array_namespace(g), self.public(g, reg)
        stiffness = reg * self.columns.stiffness(p, self.b, sums, reg)
        degree = degree + xp.minimum(stiffness, xp.full_like(stiffness, AT_BOUND))
        return xp.maximum(degree, xp.abs(target - sums) / LONGEST)

    def half_step(self, g: Array, reg: float, sums: Array, target: Array, log_ratio: Array, soft: Callable[[], Array]) -> Array:
        """How far g has to move, in units of reg, to be the best for f.

        Here `log_ratio` is log(b / sums), `target` that of g, and `soft` gives the soft minima of the rows.

        Before that, all of g is shifted by what is best for the rows, too. Sinkhorn's iteration alone finds that shift slowly where
        the price is many times reg.

        References
        ----------
        T. Séjourné, F.-X. Vialard, G. Peyré, Faster unbalanced optimal transport: translation invariant Sinkhorn, AISTATS 2022.
        """
        p = self.public(g, reg)
        shift, growth = self._translation(reg, sums, target)
        if any(isinstance(p, Linear) for p in (self.rows, self.columns)) and not any(
            isinstance(p, KL) for p in (self.rows, self.columns)
        ):
            shift = self._to_bound(p, reg, sums, target, soft)
        return (aprox.apply(self.columns.aprox(reg), p + shift + reg * (log_ratio - growth)) - p) / reg

    def _translation(self, reg: float, sums: Array, target: Array) -> tuple[float, float]:
        """The shift of g that makes both sides agree on the mass, and how the logarithm of that of the rows grows."""
        rates = [0.0, 0.0]
        for k, (penalty, extra) in enumerate(((self.rows, reg), (self.columns, 0.0))):
            if isinstance(penalty, KL):
                rates[k] = 1.0 / (penalty.strength + extra)
            elif penalty.aprox(reg) != aprox.RIGID:
                return 0.0, 0.0  # the masses are no exponentials of the shift
        xp = array_namespace(sums)
        held, wanted = float(xp.sum(sums)), float(xp.sum(target))
        if not (0 < held < math.inf and 0 < wanted < math.inf):
            return 0.0, 0.0
        shift = (math.log(wanted) - math.log(held)) / sum(rates)
        return shift, shift * rates[0]

    def _to_bound(self, p: Array, reg: float, sums: Array, target: Array, soft: Callable[[], Array]) -> float:
        """Where no point is at its bound the sides cannot agree: the shift of g that brings the first one there.

        Neither iteration finds it: L is singular there, and Sinkhorn's shift is as small as the difference of the masses. At the
        solution the explained parts of that difference add up to it.
        """
        xp = array_namespace(p)
        held, wanted, of_a, of_b = (float(xp.sum(v)) for v in (sums, target, self.a, self.b))
        missing = abs(of_a - of_b)
        if not abs(held - of_a) + abs(wanted - of_b) < EXPLAINED * missing:
            return 0.0
        sign, f = 1.0 if of_b > of_a else -1.0, soft()
        (_, *rows), (_, *columns) = self.aprox(reg), self.columns.aprox(reg)
        up = columns[1] - float(xp.max(p)), float(xp.min(f)) - rows[0]
        down = float(xp.min(p)) - columns[0], rows[1] - float(xp.max(f))
        shift = min(up if sign > 0 else down)
        beyond = reg * min(1.0, missing / float(xp.max(self.a)), missing / float(xp.max(self.b)))
        return sign * (shift + beyond) if math.isfinite(shift) else 0.0


def _response(bounds: Aprox, f: Array) -> Array:
    share, least, most = bounds
    xp = array_namespace(f)
    inside = (share * f > least) & (share * f < most)
    return xp.where(inside, xp.full_like(f, share), xp.zeros_like(f))
