"""The problem as the methods see it: positive weights of unit mass, in double precision, on one array namespace and device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from otbilevel._core.array import Array, array_namespace, as_array, common_namespace, device
from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.feasibility import require_feasible
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.kernels import select
from otbilevel.ot.marginals import Marginals
from otbilevel.ot.penalties import Fixed, Penalty
from otbilevel.ot.sparse_cost import SparseCost
from otbilevel.ot.start import Start
from otbilevel.ot.stored_plan import Room

if TYPE_CHECKING:
    from otbilevel.ot.constraint_system import ConstraintSystem


@dataclass(frozen=True, eq=False)
class Support:
    """Which of the points carry weight.

    Attributes
    ----------
    indices, dropped : integer arrays, or None when all weights are positive
        Where the weight is positive, in the order in which the problem has these points, and where it is zero.
    """

    indices: Array | None
    dropped: Array | None

    @classmethod
    def of(cls, weights: Array) -> Support:
        """The support of a vector of weights."""
        xp = array_namespace(weights)
        mask = weights > 0
        if bool(xp.all(mask)):
            return cls(None, None)
        return cls(xp.nonzero(mask)[0], xp.nonzero(~mask)[0])

    def reordered(self, order: Array) -> Support:
        """The same with indices in the order in which `order` has them; problems then come in that order."""
        if self.dropped is None:
            return Support(order, order[:0])
        kept = np.ones(len(order), bool)
        kept[self.dropped] = False
        return Support(order[kept[order]], self.dropped)

    def restrict(self, values: Array) -> Array:
        """The entries of `values` (size, ...) on the support."""
        return values if self.indices is None else array_namespace(values).take(values, self.indices, axis=0)

    def merge(self, values: Array, others: Array) -> Array:
        """The inverse of `restrict`: `values` on the support, `others` off it, in their original order."""
        if self.indices is None:
            return values
        xp = array_namespace(values)
        order = xp.argsort(xp.concat([self.indices, self.dropped]))
        return xp.take(xp.concat([values, others]), order, axis=0)

    def complete(self, values: Array, others: Callable[[Array], Array]) -> Array:
        """As `merge`, with ``others(dropped)`` off the support, which is asked for where there is such a point."""
        if self.dropped is None:
            return values
        return self.merge(values, others(self.dropped) if self.dropped.shape[0] else values[:0])

    def expand(self, values: Array) -> Array:
        """As `merge`, with zeros off the support."""
        if self.dropped is None:
            return values
        shape = (self.dropped.shape[0], *values.shape[1:])
        zeros = array_namespace(values).zeros(shape, dtype=values.dtype, device=device(values))
        return self.merge(values, zeros)


@dataclass(frozen=True, eq=False)
class OTProblem:
    """Entropic optimal transport between positive weights of unit mass.

    Attributes
    ----------
    a, b : (n,), (m,) float64 arrays
        Positive weights, each of sum 1.
    geometry : Geometry
        The cost between the points that carry weight.
    reg : float
        Regularisation, in units of the cost; 0 for the exact method.
    tol : float
        L1 error of both marginals together, relative to the mass.
    mass : float
        The mass that the user's weights have.
    dtype
        Floating dtype of the user's data, and of what is returned.
    sources, targets : Support
        Where the user's weights are positive.
    whole : Geometry
        The user's geometry, with the points of zero weight.
    start : Start or None
        Where a method starts; None: where it likes.
    room : Room or None
        Memory that a run of solves shares.
    marginals : Marginals or None
        What it costs to miss the weights; None where they have to be met. Weights with a price have unit mass only in the mean.
    constraints : ConstraintSystem or None
        Linear constraints on the plan.
    """

    a: Array
    b: Array
    geometry: Geometry
    reg: float
    tol: float
    mass: float
    dtype: Any
    sources: Support
    targets: Support
    whole: Geometry
    start: Start | None = None
    room: Room | None = None
    marginals: Marginals | None = None
    constraints: ConstraintSystem | None = None

    @property
    def xp(self) -> ModuleType:
        """Array namespace of all arrays."""
        return self.geometry.xp

    @property
    def column_weights(self) -> Array:
        """What a `RowPlan` has in its g: the public potential plus reg times the logarithm of these."""
        return self.b if self.marginals is None else self.marginals.column_weights

    def zero_potential(self, reg: float) -> Array:
        """Where a path begins: g at 0, up to weights where constants do not matter."""
        return self.xp.zeros_like(self.b) if self.marginals is None else reg * self.xp.log(self.column_weights)

    def row_potentials(self, f: Array) -> Array:
        """The potentials of rows with soft minima f."""
        return f if self.marginals is None else self.marginals.row_potentials(f, self.reg)

    @property
    def rounding_floor(self) -> float:
        """The marginal error that double precision leaves: eps times the largest exponent, C/reg."""
        low, high = self.geometry.bounds
        return float(np.finfo(np.float64).eps) * (1.0 + max(abs(low), abs(high)) / max(self.reg, 1e-300))

    def at_floor(self, error: float) -> bool:
        """Whether a marginal error is about what rounding leaves."""
        return error <= 4 * self.rounding_floor


def make_geometry(C: Any) -> Geometry:  # noqa: N803
    """`C` itself if it is a geometry, else a `SparseCost` or `DenseCost`."""
    if isinstance(C, Geometry):
        return C
    return SparseCost(C) if sparse.issparse(C) else DenseCost(C)


def make_problem(
    a: Any, b: Any, geometry: Geometry, *, reg: float, tol: float | None, penalties: tuple[Penalty, Penalty] = (Fixed(), Fixed())
) -> OTProblem:
    """Check the weights, drop those that are zero and scale the rest to unit mass.

    Raises
    ------
    TypeError, ValueError
        As `solve_ot` documents them.
    """
    given = {name: as_array(w, name) for name, w in (("a", a), ("b", b)) if w is not None}
    geometry = geometry.beside(given)
    xp = common_namespace({**given, **geometry.arrays})
    dtype = xp.result_type(*given.values(), geometry.dtype)
    single = dtype == xp.float32
    weights: dict[str, Array] = {}
    masses: dict[str, float | None] = {}
    for name, size in zip("ab", geometry.shape, strict=True):
        if name in given:
            weights[name], masses[name] = _check_weights(xp, given[name], name, size, geometry.shape)
        else:
            weights[name], masses[name] = xp.full((size,), 1.0 / size, dtype=xp.float64, device=geometry.device), None
    fixed = penalties == (Fixed(), Fixed())
    if fixed:
        mass = _common_mass(masses["a"], masses["b"], 1e-4 if single else 1e-6)
    else:
        of_a, of_b = masses["a"] or masses["b"] or 1.0, masses["b"] or masses["a"] or 1.0
        _require_room(penalties, of_a, of_b)
        mass = 0.5 * of_a + 0.5 * of_b
        weights = {"a": weights["a"] * (of_a / mass), "b": weights["b"] * (of_b / mass)}
    sources, targets = Support.of(weights["a"]), Support.of(weights["b"])
    order = geometry.local_order()
    if order is not None:
        sources, targets = sources.reordered(order[0]), targets.reordered(order[1])
    restricted = geometry.restrict(sources.indices, targets.indices)
    positive_a, positive_b = sources.restrict(weights["a"]), targets.restrict(weights["b"])
    problem = OTProblem(
        a=positive_a,
        b=positive_b,
        geometry=restricted,
        reg=reg,
        tol=(1e-5 if single else 1e-9) if tol is None else tol,
        mass=mass,
        dtype=dtype,
        sources=sources,
        targets=targets,
        whole=geometry,
        marginals=None if fixed else Marginals(*penalties, positive_a, positive_b, positive_b * mass),
    )
    if restricted.has_forbidden_pairs:
        require_feasible(problem)
    return problem


def _check_weights(xp: ModuleType, given: Array, name: str, size: int, shape: tuple[int, int]) -> tuple[Array, float]:
    """Return the weights, scaled to sum 1, and their sum."""
    if len(given.shape) != 1:
        hint = f": ravel it, as an image beside a Grid ({name}.ravel(), C order)" if len(given.shape) > 1 else ""
        msg = f"{name} must be one-dimensional, got shape {tuple(given.shape)}{hint}"
        raise ValueError(msg)
    if given.shape[0] != size:
        msg = f"{name} has {given.shape[0]} weights, but C has shape {shape}: a needs one a row, b one a column; None is uniform"
        raise ValueError(msg)
    weights = xp.astype(given, xp.float64)
    if weights.dtype != xp.float64:
        msg = f"{name} was asked for in double precision and came as {weights.dtype}: switch double precision on in its library"
        raise TypeError(msg)
    least, largest = select(xp).vector_kernels.extremes(weights)
    if not (least >= 0 and largest < float("inf")):
        for bad, what in ((xp.isnan(weights), "NaN"), (xp.isinf(weights), "infinite"), (weights < 0, "negative")):
            if bool(xp.any(bad)):
                index = int(xp.argmax(xp.astype(bad, xp.int64)))
                msg = f"{name} must hold finite weights >= 0, but {name}[{index}] is {what} ({float(weights[index])!r})"
                raise ValueError(msg)
    total = float(xp.sum(weights / largest)) * largest if largest > 0 else 0.0
    if not 0 < total < float("inf"):
        msg = f"{name} must have positive, finite total mass, got {total!r}"
        raise ValueError(msg)
    scaled, tiny = weights / total, float(np.finfo(np.float64).tiny)
    if least >= 2 * tiny * total:
        return scaled, total
    # A weight so small that its logarithm overflows double precision carries nothing.
    return xp.where(scaled >= tiny, scaled, xp.zeros_like(scaled)), total


def _common_mass(of_a: float | None, of_b: float | None, tolerance: float) -> float:
    """The mass of both sides; uniform weights take the mass of the other side."""
    if of_a is None or of_b is None:
        return of_a or of_b or 1.0
    if abs(of_a - of_b) > tolerance * max(of_a, of_b):
        msg = (
            f"a and b must have equal mass, got sum(a) = {of_a!r} and sum(b) = {of_b!r}: rescale one of them "
            f"(a relative difference up to {tolerance:g} is rescaled here), or give missed mass a price by unbalanced="
        )
        raise ValueError(msg)
    return of_a


def _require_room(penalties: tuple[Penalty, Penalty], of_a: float, of_b: float) -> None:
    """Refuse a side that is fixed where the other one may not hold that much."""
    for k, (name, mass, other, room) in enumerate((("a", of_a, "b", of_b), ("b", of_b, "a", of_a))):
        if isinstance(penalties[k], Fixed) and not penalties[1 - k].takes_any and mass > room:
            msg = (
                f"sum({name}) = {mass!r} has to be met, but {other} holds at most sum({other}) = {room!r}: rescale one of them, "
                f"or give {name} a price, too"
            )
            raise ValueError(msg)
