"""The gradient of the optimal value, by the envelope theorem: its derivatives are potentials, plan and entropy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from otbilevel._core.array import Array
from otbilevel.ot.cost_derivative import CostDerivative, Pair, cost_derivative
from otbilevel.ot.kernels.generic import row_blocks
from otbilevel.ot.plan import EntropicPlan, Plan
from otbilevel.ot.point_cloud import PointCloud

if TYPE_CHECKING:
    from otbilevel.ot.problem import OTProblem


@dataclass(frozen=True, eq=False)
class OTGradient:
    """Derivatives with respect to the data of a transport problem; None for what was not asked for.

    Attributes
    ----------
    a, b : (n,), (m,) arrays
        In the weights. As the two masses must agree, only changes that keep them equal are meaningful, and the derivative is
        defined up to (s, -s). The s chosen is the one for which these are the derivatives if weights of unequal masses are
        first scaled to the mean of both. Where marginals have a price, masses are free, and these are plain derivatives.
    C : (n, m) array
        In the entries of the cost matrix; 0 at a forbidden pair. For a `SparseCost` a sparse array of the pairs that it stores.
    x, y : (n, d), (m, d) arrays
        In the points of a `PointCloud`. Where both clouds are one, add them up.
    reg : float
        In the regularisation.
    points : (m,) or (m, k) array
        In the points that a barycentric map is taken of.
    """

    a: Array | None = None
    b: Array | None = None
    C: Any = None
    x: Array | None = None
    y: Array | None = None
    reg: float | None = None
    points: Array | None = None

    def combine(self, other: OTGradient, factor: float) -> OTGradient:
        """The sum of this one and `factor` times another, field by field where both have one.

        Parameters
        ----------
        other : OTGradient
            The other gradient.
        factor : float
            What it is multiplied by.

        Returns
        -------
        OTGradient
            The sum; a field that one of the two lacks is that of the other.
        """
        pairs = ((one.name, getattr(self, one.name), getattr(other, one.name)) for one in fields(self))
        return OTGradient(**{name: u if v is None else factor * v if u is None else u + factor * v for name, u, v in pairs})

    def __repr__(self) -> str:
        return given_fields(self)


def given_fields(derivative: Any) -> str:
    """A dataclass of derivatives on one line: numbers, and the shapes of arrays."""
    given = {one.name: getattr(derivative, one.name) for one in fields(derivative)}
    shown = {name: f"{v:.10g}" if isinstance(v, float) else tuple(v.shape) for name, v in given.items() if v is not None}
    return f"{type(derivative).__name__}({', '.join(f'{name}: {what}' for name, what in shown.items())})"


def value_gradient(plan: Plan, wrt: Iterable[str] | None) -> OTGradient:
    """The gradient of the optimal value at a plan; `wrt` as `OTResult.gradient` documents it.

    At the optimum the value is max_(f, g) <a, f> + <b, g> - reg sum_ij a_i b_j (exp((f_i + g_j - C_ij)/reg) - 1), so that
    its derivative in a_i is f_i - reg sum_j b_j (exp(...) - 1) = f_i + reg (mass - 1), also where a_i is 0, and in C it is P.
    Under constraints the same holds with the costs C - sum_k lam_k D_k in the exponent.
    """
    problem = plan.problem
    names = wanted(wrt, problem)
    xp, dtype, found = problem.xp, problem.dtype, OTGradient()
    if {"a", "b"} & names:
        a, b = plan.weight_gradients() if isinstance(plan, EntropicPlan) else plan.double_potentials()
        found = replace(found, a=xp.astype(a, dtype), b=xp.astype(b, dtype))
    if "C" in names:
        found = replace(found, C=problem.whole.of_plan(plan))
    if {"x", "y"} & names:
        x, y = _point_gradient(plan)
        found = replace(found, x=xp.astype(x, dtype), y=xp.astype(y, dtype))
    if "reg" in names:
        found = replace(found, reg=divergence_from_product(plan))
    return only(found, names)


def wanted(wrt: Iterable[str] | None, problem: OTProblem) -> set[str]:
    """The names to differentiate in, checked: what the cost is made of depends on the geometry."""
    known = ("a", "b", *problem.whole.inputs, *(("reg",) if problem.reg > 0 else ()))
    if wrt is None:
        return set(known)
    names = [wrt] if isinstance(wrt, str) else list(wrt)
    for name in names:
        if name not in known and not (name == "C" and isinstance(problem.whole, PointCloud)):
            kind = type(problem.whole).__name__
            after = "" if problem.reg > 0 else ' after method="exact"'
            after = " under constraints, which are held fixed" if problem.constraints is not None else after
            msg = f"wrt must hold names among {', '.join(known)} for a {kind}{after}; got {name!r}"
            raise ValueError(msg)
    return set(names)


def require_unconstrained(problem: OTProblem) -> None:
    """Refuse the problems whose derivatives are not known here."""
    if problem.constraints is not None:
        msg = "the result belongs to transport under constraints, of which only the value has derivatives here: use `gradient`"
        raise ValueError(msg)


def only(found: OTGradient, names: set[str]) -> OTGradient:
    """The fields of these names."""
    return OTGradient(**{name: getattr(found, name) for name in names})


def balanced_gradient(problem: OTProblem, a: Array, b: Array) -> tuple[Array, Array]:
    """Gradients in the weights for weights that are first scaled to their mean mass: the same up to (s, -s)."""
    xp = problem.xp
    of_a, of_b = xp.sum(problem.sources.restrict(a) * problem.a), xp.sum(problem.targets.restrict(b) * problem.b)
    shift = 0.5 * float(of_a - of_b)
    return a - shift, b + shift


def balanced_change(problem: OTProblem, a: Array | None, b: Array | None) -> tuple[Array, Array, float]:
    """Changes of weights that are first scaled to their mean mass, and the change of that mass."""
    xp = problem.xp
    weights = problem.sources.expand(problem.a), problem.targets.expand(problem.b)
    of_a, of_b = (xp.zeros_like(w) if v is None else v for v, w in zip((a, b), weights, strict=True))
    mass_a, mass_b = float(xp.sum(of_a)), float(xp.sum(of_b))
    excess = 0.5 * (mass_a - mass_b)
    return of_a - excess * weights[0], of_b + excess * weights[1], 0.5 * (mass_a + mass_b)


def divergence_from_product(plan: Plan) -> float:
    """KL(P | a b'), the derivative of the value in reg."""
    assert isinstance(plan, EntropicPlan)  # `wanted` sees to it
    return plan.divergence()


def _point_gradient(plan: Plan) -> Pair:
    """sum_j P_ij dc(x_i, y_j)/dx_i and the same for y, at all points."""
    problem = plan.problem
    cloud = problem.geometry
    assert isinstance(cloud, PointCloud)
    derivative = cost_derivative(cloud)
    if cloud.cost in ("sqeuclidean", "cosine"):
        x, y = _by_products(plan, derivative, squared=cloud.cost == "sqeuclidean")
    else:
        x, y = problem.xp.zeros_like(derivative.x), problem.xp.zeros_like(derivative.y)
        rows = []
        for low, high in row_blocks(cloud.shape):
            own, others = derivative.pull(low, high, plan.rows(low, high))
            rows.append(own)
            y = y + others
        x = problem.xp.concat(rows)
    x, y = derivative.outward((problem.mass * x, problem.mass * y))
    return problem.sources.expand(x), problem.targets.expand(y)


def _by_products(plan: Plan, derivative: CostDerivative, *, squared: bool) -> Pair:
    """As `pull`, from P y and P' x only."""
    x, y = derivative.x, derivative.y
    images, preimages = plan.product(y, 1), plan.product(x, 0)
    if not squared:
        return -images, -preimages
    return 2.0 * (plan.row_sums[:, None] * x - images), 2.0 * (plan.column_sums[:, None] * y - preimages)
