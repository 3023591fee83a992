"""All constraints of a problem together: on the points that carry weight, for unit mass.

With multipliers lam, in units of the cost per unit of D, the plan is P = a b^T exp((f + g + sum_k lam_k D_k - C)/reg), and the dual

    max  <a, f> + <b, g> + h(lam) - reg sum (P - a b^T),      h(lam) = sum_k lb_k max(lam_k, 0) - ub_k max(-lam_k, 0),

(X. Tang et al., arXiv:2403.05054, where inequalities have slack variables): lam_k > 0 only where lb_k is active, lam_k < 0 only
where ub_k is.

Multipliers stand in one vector: first those of the few constraints on the whole plan, then those that live on one row each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from otbilevel._core.array import Array, array_namespace, common_namespace, device
from otbilevel.ot.constraints import PlanConstraint
from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.functionals import Dense, Functionals, LowRank, RowMeans
from otbilevel.ot.geometry import Geometry

if TYPE_CHECKING:
    from otbilevel.ot.problem import OTProblem, Support


@dataclass(frozen=True, eq=False)
class ConstraintSystem:
    """The constraints as the methods see them.

    Attributes
    ----------
    few : tuple of Functionals
        Those on the whole plan.
    rows : RowMeans or None
        Those on single rows, with the coordinates of all such constraints side by side.
    lb, ub : (K,) arrays
        Bounds for unit mass.
    scales : (K,) array
        sum_i a_i max_j |D_k(i, j)|: how large <D_k, P> may be. Violations count relative to it.
    sizes : (K,) array
        max_ij |D_k(i, j)|.
    given : tuple of PlanConstraint
        The user's constraints.
    sources : Support
        The points whose rows there are.
    mass : float
        The mass of the user's weights.
    """

    few: tuple[Dense | LowRank, ...]
    rows: RowMeans | None
    lb: Array
    ub: Array
    scales: Array
    sizes: Array
    given: tuple[PlanConstraint, ...]
    sources: Support
    mass: float

    @property
    def xp(self) -> ModuleType:
        """Array namespace."""
        return array_namespace(self.lb)

    @property
    def n_few(self) -> int:
        """How many constraints are on the whole plan."""
        return sum(part.size for part in self.few)

    @property
    def is_equality(self) -> Array:
        """Which constraints are equalities, (K,) of bool."""
        return self.lb == self.ub

    def split(self, values: Array) -> tuple[Array, Array]:
        """The entries of a vector that belong to the few (k,), and to the rows (n, d)."""
        few, rest = values[: self.n_few], values[self.n_few :]
        shape = (0, 0) if self.rows is None else tuple(self.rows.x.shape)
        return few, self.xp.reshape(rest, shape)

    def join(self, few: Array, rows: Array) -> Array:
        """The inverse of `split`."""
        return self.xp.concat([few, self.xp.reshape(rows, (-1,))])

    def _pieces(self, values: Array) -> list[tuple[Functionals, Array]]:
        pieces: list[tuple[Functionals, Array]] = []
        position = 0
        for part in (*self.few, *(() if self.rows is None else (self.rows,))):
            pieces.append((part, values[position : position + part.size]))
            position += part.size
        return pieces

    def combine(self, multipliers: Array, low: int, high: int) -> Array:
        """The rows [low, high) of sum_k lam_k D_k."""
        total, *others = [part.combine(values, low, high) for part, values in self._pieces(multipliers)]
        for other in others:
            total += other
        return total

    def tilt(self, geometry: Geometry, multipliers: Array) -> DenseCost:
        """The effective cost C - sum_k lam_k D_k."""
        n = geometry.shape[0]
        cost = self.combine(-multipliers, 0, n)
        cost += geometry.rows(0, n)
        return DenseCost(cost)

    def tilt_whole(self, geometry: Geometry, multipliers: Array) -> DenseCost:
        """The same between all of the user's points, those of zero weight included."""
        n, everywhere = geometry.shape[0], type(self.sources)(None, None)
        cost, position, values = geometry.rows(0, n), 0, self.public(multipliers)
        for constraint in self.given:
            piece = values[position : position + constraint.size]
            cost = cost - constraint.functionals.restrict(everywhere, everywhere).combine(piece, 0, n)
            position += constraint.size
        return DenseCost(cost)

    def pair(self, rows: Array, weights: Array, low: int, high: int) -> Array:
        """What some rows of a plan of unit mass, diag(weights) times `rows`, add to <D_k, P>."""
        return self.xp.concat([part.pair(rows, weights, low, high) for part, _ in self._pieces(self.lb)])

    def target(self, multipliers: Array, values: Array) -> Array:
        """What `values` of <D_k, P> should be at these multipliers: the bound that is active, or the nearest feasible value."""
        xp = self.xp
        nearest = xp.minimum(xp.maximum(values, self.lb), self.ub)
        return xp.where(multipliers > 0, self.lb, xp.where(multipliers < 0, self.ub, nearest))

    def dual_term(self, multipliers: Array) -> float:
        """h(lam) for unit mass."""
        xp = self.xp
        zero = xp.zeros_like(multipliers)
        active = xp.where(multipliers > 0, self.lb, xp.where(multipliers < 0, self.ub, zero))
        return float(xp.sum(multipliers * active))

    def violation(self, values: Array) -> Array:
        """By how much <D_k, P> = `values` are outside their bounds."""
        xp = self.xp
        return xp.maximum(xp.maximum(self.lb - values, values - self.ub), xp.zeros_like(values))

    def residual(self, multipliers: Array, values: Array) -> float:
        """The largest violation, or failure of complementarity, relative to its scale."""
        if values.shape[0] == 0:
            return 0.0
        return float(self.xp.max(self.xp.abs(self.target(multipliers, values) - values) / self.scales))

    def project(self, multipliers: Array) -> Array:
        """Multipliers without those of bounds that do not exist."""
        xp = self.xp
        zero = xp.zeros_like(multipliers)
        upper, lower = (xp.where(xp.isfinite(v), multipliers, zero) for v in (self.lb, self.ub))
        return xp.maximum(upper, zero) + xp.minimum(lower, zero)

    def keep_signs(self, multipliers: Array, before: Array) -> Array:
        """Multipliers whose signs are possible, and none that went through 0 from `before`, unless it is of an equality."""
        xp = self.xp
        crossed = ~self.is_equality & (multipliers * before < 0)
        return self.project(xp.where(crossed, xp.zeros_like(multipliers), multipliers))

    def public(self, values: Array) -> Array:
        """A vector in the order of the user's constraints; 0 for those on rows of zero weight."""
        xp, pieces, position, column = self.xp, {}, 0, 0
        few, rows = self.split(values)
        for index in _by_kind(self.given):
            functionals = self.given[index].functionals
            if isinstance(functionals, RowMeans):
                d = functionals.x.shape[1]
                pieces[index] = xp.reshape(self.sources.expand(rows[:, column : column + d]), (-1,))
                column += d
            else:
                pieces[index] = few[position : position + functionals.size]
                position += functionals.size
        return xp.concat([pieces[index] for index in range(len(pieces))])

    def private(self, values: Array) -> Array:
        """The inverse of `public`."""
        return _arrange(self.given, values, self.sources)

    def name(self, k: int) -> str:
        """The k-th of the user's constraints in words."""
        for index, constraint in enumerate(self.given):
            if k < constraint.size:
                detail = constraint.functionals.name(k)
                return f"constraints[{index}]" + (f" ({detail})" if detail else "")
            k -= constraint.size
        raise IndexError(k)


_KINDS = (LowRank, Dense, RowMeans)


def _by_kind(given: Sequence[PlanConstraint]) -> list[int]:
    """The order in which constraints stand in the vector of multipliers."""
    return sorted(range(len(given)), key=lambda index: _KINDS.index(type(given[index].functionals)))


def _arrange(given: Sequence[PlanConstraint], values: Array, sources: Support) -> Array:
    """A vector in the order of the user's constraints as the methods want it, without the entries of rows of zero weight."""
    xp, starts, few, rows = array_namespace(values), [0], [], []
    for constraint in given:
        starts.append(starts[-1] + constraint.size)
    for index in _by_kind(given):
        piece, functionals = values[starts[index] : starts[index + 1]], given[index].functionals
        if isinstance(functionals, RowMeans):
            rows.append(sources.restrict(xp.reshape(piece, tuple(functionals.x.shape))))
        else:
            few.append(piece)
    return xp.concat([*few, *([xp.reshape(xp.concat(rows, axis=1), (-1,))] if rows else [])])


def make_system(given: tuple[PlanConstraint, ...], problem: OTProblem) -> ConstraintSystem | None:
    """The constraints of a problem; None when there are none.

    Raises
    ------
    TypeError, ValueError
        When arrays are of another library, or of another shape than the cost, or when a D_k that is 0 is asked for another value.
    """
    given = tuple(constraint for constraint in given if constraint.size > 0)
    if not given:
        return None
    for index, constraint in enumerate(given):
        named = {f"{name} of constraints[{index}]": array for name, array in constraint.functionals.arrays.items()}
        common_namespace({**named, **problem.whole.arrays})
        if constraint.shape != problem.whole.shape:
            msg = f"constraints[{index}] is on plans of shape {constraint.shape}, but C has shape {problem.whole.shape}"
            raise ValueError(msg)
    xp, sources, a = problem.xp, problem.sources, problem.a
    parts = [given[index].functionals.restrict(sources, problem.targets) for index in _by_kind(given)]
    low_rank = [part for part in parts if isinstance(part, LowRank)]
    few: tuple[Dense | LowRank, ...] = tuple(part for part in parts if isinstance(part, Dense))
    few = (_merged(low_rank), *few) if low_rank else few
    means = [part for part in parts if isinstance(part, RowMeans)]
    rows = RowMeans(*(xp.concat([getattr(part, name) for part in means], axis=1) for name in "xy")) if means else None
    largest = [part.largest() for part in few]
    scales, sizes = [xp.sum(part * a, axis=1) for part in largest], [xp.max(part, axis=1) for part in largest]
    if rows is not None:
        sizes.append(xp.reshape(rows.largest(), (-1,)))
        scales.append(xp.reshape(a[:, None] * rows.largest(), (-1,)))
    lb, ub = (_arrange(given, xp.concat([getattr(c, name) for c in given]), sources) / problem.mass for name in ("lb", "ub"))
    one = xp.ones_like(lb)
    scale, size = (xp.where(v > 0, v, one) for v in (xp.concat(scales), xp.concat(sizes)))
    system = ConstraintSystem(few, rows, lb, ub, scale, size, given, sources, problem.mass)
    _require_reachable(system, xp.concat(scales))
    return system


def _require_reachable(system: ConstraintSystem, largest: Array) -> None:
    """Refuse bounds that are out of reach even where the marginals of the columns do not matter."""
    xp = system.xp
    slack = 1e-9 * system.scales
    bad = (system.lb > largest + slack) | (system.ub < -largest - slack)
    if bool(xp.any(bad)):
        # Constraints on rows of zero weight are never bad: their place among the user's is found by a vector of marks.
        marks = system.public(xp.astype(bad, xp.float64))
        k = int(xp.argmax(marks))
        most = float(system.public(largest)[k])
        msg = f"infeasible: {system.name(k)} cannot be met, as |<D, P>| <= {most:g} per unit of mass for all plans with rows a"
        raise ValueError(msg)


def _merged(parts: list[LowRank]) -> LowRank:
    """Several sets of functionals as one."""
    if len(parts) == 1:
        return parts[0]
    xp, total, owners, before = parts[0].xp, sum(part.size for part in parts), [], 0
    for part in parts:
        for owner in part.owners:
            left = xp.zeros((owner.shape[0], before), dtype=xp.float64, device=device(owner))
            right = xp.zeros((owner.shape[0], total - before - part.size), dtype=xp.float64, device=device(owner))
            owners.append(xp.concat([left, owner, right], axis=1))
        before += part.size
    return LowRank(
        xp.concat([part.features for part in parts]),
        tuple(u for part in parts for u in part.factors),
        tuple(owners),
        xp.concat([part.offsets for part in parts]),
    )
