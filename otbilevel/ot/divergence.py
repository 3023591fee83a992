"""The debiased Sinkhorn divergence between two weighted clouds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from otbilevel._core.array import Array, array_namespace
from otbilevel._core.monitor import Monitor
from otbilevel._core.result import report
from otbilevel.ot.call import Call, price, regularisation, tolerance
from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.divergence_result import DivergenceResult
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.kernels.generic import row_blocks
from otbilevel.ot.marginals import Marginals
from otbilevel.ot.partial_mass import PartialMass
from otbilevel.ot.penalties import Penalty
from otbilevel.ot.point_cloud import PointCloud
from otbilevel.ot.problem import OTProblem, Support, make_geometry, make_problem
from otbilevel.ot.result import OTResult
from otbilevel.ot.sparse_cost import SparseCost
from otbilevel.ot.start import Start
from otbilevel.ot.symmetric import solve_symmetric

SYMMETRY = {True: 1e-6, False: 1e-12}
"""How far a cost in single and double precision may be from symmetric, relative to its largest entry."""


def sinkhorn_divergence(
    a: Any,
    b: Any,
    x: Any = None,
    y: Any = None,
    *,
    reg: float,
    cost: str | tuple[Any, Any, Any] = "sqeuclidean",
    method: str = "auto",
    unbalanced: Any = None,
    tol: float | None = None,
    max_iter: int | None = None,
    init: DivergenceResult | None = None,
    options: Mapping[str, Any] | None = None,
    raise_on_failure: bool = False,
) -> DivergenceResult:
    """The debiased Sinkhorn divergence S(a, b) = OT(a, b) - OT(a, a)/2 - OT(b, b)/2 between two weighted clouds.

    Here OT is the optimal value of `solve_ot`, min <P, C> + reg KL(P | a b^T). S is differentiable, and for the costs of a
    `PointCloud` it is >= 0, and 0 for equal measures only. With `unbalanced`, OT is that of unbalanced transport, and S has the
    term reg (sum a - sum b)^2 / 2 more.

    Parameters
    ----------
    a, b : (n,), (m,) array_like or None
        Weights, as `solve_ot` takes them.
    x, y : (n, d), (m, d) array_like, optional
        The points, or a `PointCloud` as `x`. Left out where `cost` holds three costs.
    reg : float
        Regularisation > 0, in units of the cost.
    cost : {"sqeuclidean", "euclidean", "cityblock", "cosine"} or tuple
        The cost, as of `PointCloud`; or three costs (C_ab, C_aa, C_bb) in place of points: arrays or geometries of shapes (n, m),
        (n, n) and (m, m). The last two must be symmetric.
    unbalanced : float or penalty, optional
        What it costs that a marginal differs from its weights, as in `solve_ot`: a number, ``KL``, ``TotalVariation`` or
        ``AtMost``, the same for both sides. The masses of a and b may then differ.
    method, max_iter, options
        As in `solve_ot`, for OT(a, b); `"exact"` is refused. `max_iter` also limits the iterations for the other two.
    tol : float, optional
        L1 error of both marginals, relative to the mass, in each of the three problems; by default 1e-9, for float32 data 1e-5.
    init : DivergenceResult, optional
        A result to start from, of a problem of the same shape.
    raise_on_failure : bool
        Raise `ConvergenceError` instead of warning when a tolerance is not met.

    Returns
    -------
    DivergenceResult
        The value, its gradient on demand, and the three results.

    Raises
    ------
    ValueError, TypeError
        When an argument is wrong; the message names it.
    ConvergenceError
        When a tolerance is not met and `raise_on_failure` is set.

    Warns
    -----
    ConvergenceWarning
        When a problem stops short of the tolerance.

    Notes
    -----
    OT(a, a) and OT(b, b) have one potential each, the fixed point of a soft minimum, which is found by averaging and Anderson's
    mixing in some fifteen iterations at any reg; most are products with a stored plan where one fits. Small problems take some
    thirty plain averages instead, in one compiled call, unless a time limit watches.

    geomloss has C = |x - y|^p / p and reg = blur^p: its loss for p = 2 is half of this divergence with ``reg=2 * blur**2``.
    With `reach` and p = 2 it is half of that with ``unbalanced=2 * reach**2``.
    The function of that name in POT combines transport costs: that is `value_linear`.

    References
    ----------
    J. Feydy et al., Interpolating between optimal transport and MMD using Sinkhorn divergences, AISTATS 2019.
    T. Séjourné et al., Sinkhorn divergences for unbalanced optimal transport, arXiv:1910.12958, Definition 6.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.ot import sinkhorn_divergence
    >>> x = np.random.default_rng(0).random((50, 2))
    >>> shift = np.array([3.0, 4.0])
    >>> result = sinkhorn_divergence(None, None, x, x + shift, reg=0.1)
    >>> round(result.value, 9), result.success
    (25.0, True)
    >>> result.gradient("y").y.sum(axis=0).round(6)
    array([6., 8.])

    What is too far away is not carried, and masses may differ:

    >>> round(sinkhorn_divergence([1.0], [2.0], [[0.0]], [[9.0]], reg=0.1, unbalanced=1.0).value, 3)
    3.22
    """
    call = Call.of(method, max_iter=max_iter, callback=None, progress=False, options=options, raise_on_failure=raise_on_failure)
    if method == "exact":
        msg = 'method="exact" is unregularised, and unregularised transport needs no debiasing: use solve_ot'
        raise ValueError(msg)
    cross, *own = _geometries(x, y, cost)
    strength = regularisation(reg, method, cross, exact=False)
    problem = make_problem(a, b, cross, reg=strength, tol=tolerance(tol), penalties=_same_price(unbalanced, call))
    if init is not None:
        problem = _started(problem, init)
    result_ab = call.solve(problem, f"sinkhorn_divergence[{method}]")
    own_results = []
    for weights, support, geometry, name in zip(
        (problem.a, problem.b), (problem.sources, problem.targets), own, ("result_aa", "result_bb"), strict=True
    ):
        before = None if init is None else getattr(init, name)
        self_problem = _own_problem(problem, weights, support, geometry, before)
        monitor = Monitor(max_iter=call.max_iter, time_limit=getattr(call.settings, "time_limit", None))
        own_results.append(solve_symmetric(self_problem, call.settings.memory, monitor))
    results = (result_ab, *own_results)
    worst = next((result for result in results if not result.success), max(results, key=lambda result: result.marginal_error))
    divergence = DivergenceResult(
        result_ab=result_ab,
        result_aa=own_results[0],
        result_bb=own_results[1],
        success=worst.success,
        status=worst.status,
        message=worst.message,
        _memory=call.settings.memory,
    )
    return report(divergence, raise_on_failure=call.raise_on_failure)


def _same_price(unbalanced: Any, call: Call) -> tuple[Penalty, Penalty]:
    """The penalty of both sides."""
    if isinstance(unbalanced, PartialMass):
        msg = f"unbalanced={unbalanced} is no price, and a divergence needs one: give a number, KL, TotalVariation or AtMost"
        raise ValueError(msg)
    penalties = price(unbalanced, call)
    if penalties[0] != penalties[1]:
        msg = f"unbalanced must be the same for both sides of a divergence, got {unbalanced!r}: give one price"
        raise ValueError(msg)
    return penalties


def _geometries(x: Any, y: Any, cost: Any) -> tuple[Geometry, Geometry, Geometry]:
    if isinstance(x, PointCloud) and y is None and cost == "sqeuclidean":  # as solve_ot takes it
        return x, PointCloud(x.x, cost=x.cost), PointCloud(x.y, cost=x.cost)
    if isinstance(x, Geometry):
        kind = type(x).__name__
        msg = f"x is a {kind}: give the points, or three costs, as cost=(C_ab, C_aa, C_bb); for a Grid these may be the same"
        raise TypeError(msg)
    if isinstance(cost, str):
        if x is None or y is None:
            msg = "x and y are missing: give the points of both measures, or cost=(C_ab, C_aa, C_bb)"
            raise ValueError(msg)
        cloud = PointCloud(x, y, cost=cost)
        return cloud, PointCloud(cloud.x, cost=cost), PointCloud(cloud.y, cost=cost)
    if x is not None or y is not None:
        msg = "three costs take the place of x and y: give either"
        raise ValueError(msg)
    if not isinstance(cost, (tuple, list)) or len(cost) != 3:
        msg = f"cost must be a name or three costs (C_ab, C_aa, C_bb), got {type(cost).__name__}"
        raise TypeError(msg)
    cross, first, second = (make_geometry(C) for C in cost)
    first, second = (C.to_dense() if isinstance(C, SparseCost) and not C.is_sparse else C for C in (first, second))
    for geometry, size, name in ((first, cross.shape[0], "C_aa"), (second, cross.shape[1], "C_bb")):
        if geometry.shape != (size, size):
            msg = f"{name} in cost must have shape {(size, size)}, got {geometry.shape}: C_ab has shape {cross.shape}"
            raise ValueError(msg)
        _require_symmetric(geometry, name)
    return cross, first, second


def _require_symmetric(geometry: Geometry, name: str) -> None:
    if isinstance(geometry, PointCloud):
        if geometry.x is not geometry.y:
            msg = f"{name} in cost must be between one cloud and itself: PointCloud(x)"
            raise ValueError(msg)
        return
    if geometry.has_forbidden_pairs:
        msg = f"{name} in cost forbids pairs (+inf), which is not supported of a measure with itself: give all its costs"
        raise ValueError(msg)
    if not isinstance(geometry, DenseCost):
        return
    matrix, xp = geometry.matrix, geometry.xp
    largest = max(abs(bound) for bound in geometry.bounds)
    for low, high in row_blocks(geometry.shape):
        excess = float(xp.max(xp.abs(matrix[low:high, :] - matrix[:, low:high].T)))
        if excess > SYMMETRY[matrix.dtype == xp.float32] * largest:
            msg = f"{name} in cost must be symmetric, but two entries differ by {excess:g}"
            raise ValueError(msg)


def _own_problem(problem: OTProblem, weights: Array, support: Support, geometry: Geometry, before: OTResult | None) -> OTProblem:
    """The problem of a measure with itself."""
    start, mass, marginals = None, problem.mass, problem.marginals
    if marginals is not None:
        own = float(problem.xp.sum(weights))
        weights, mass = weights / own, mass * own
        marginals = Marginals(marginals.rows, marginals.columns, weights, weights, mass * weights)
    if before is not None:
        f = support.restrict(before._plan.double_potentials()[0])
        if marginals is None:
            f = f + 0.5 * before.reg * math.log(before._plan.problem.mass)  # a method works on unit mass
        start = _start(f, before.reg)
    return OTProblem(
        a=weights,
        b=weights,
        geometry=geometry.restrict(support.indices, support.indices),
        reg=problem.reg,
        tol=problem.tol,
        mass=mass,
        dtype=problem.dtype,
        sources=support,
        targets=support,
        whole=geometry,
        start=start,
        marginals=marginals,
    )


def _started(problem: OTProblem, init: DivergenceResult) -> OTProblem:
    if not isinstance(init, DivergenceResult):
        msg = f"init must be a DivergenceResult, got {type(init).__name__}"
        raise TypeError(msg)
    other = init._problem.whole.shape
    if other != problem.whole.shape:
        msg = f"init must belong to a problem of shape {problem.whole.shape}, got one of shape {other}"
        raise ValueError(msg)
    g = problem.targets.restrict(init.result_ab._plan.double_potentials()[1])
    return replace(problem, start=_start(g, init.result_ab.reg))


def _start(potential: Array, reg: float) -> Start | None:
    """None where the run before came to grief."""
    xp = array_namespace(potential)
    return Start(potential, reg) if bool(xp.all(xp.isfinite(potential))) else None
