"""The entry function of barycentres on a fixed support."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from otbilevel._core import validate
from otbilevel._core.array import Array, common_namespace
from otbilevel._core.monitor import Callback, Monitor
from otbilevel._core.result import Status, report
from otbilevel.ot.barycenters.call import make_monitor
from otbilevel.ot.barycenters.path import SCHEDULES, active_weights, follow_path
from otbilevel.ot.barycenters.problem import (
    BarycenterProblem,
    coordinates,
    distinct,
    output_shape,
    read_geometries,
    read_inputs,
    unit_inputs,
)
from otbilevel.ot.barycenters.result import BarycenterResult
from otbilevel.ot.barycenters.stack import Best, PlanStack, Point
from otbilevel.ot.call import regularisation, tolerance
from otbilevel.ot.point_cloud import PointCloud

MAX_ITER = 10_000
DEBIASED_TOL = 1e-4
"""Default tolerance of debiased barycentres, whose objective hardly knows more about them."""
ASYMMETRY = 1e-6
"""Of a cost, relative to its range, that rounding explains."""


def barycenter(
    A: Any,  # noqa: N803 -- the field's names
    C: Any = None,  # noqa: N803
    *,
    reg: float | None = None,
    weights: Any = None,
    debias: bool = False,
    tol: float | None = None,
    max_iter: int | None = None,
    init: BarycenterResult | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    options: Mapping[str, Any] | None = None,
    raise_on_failure: bool = False,
) -> BarycenterResult:
    """Entropic Wasserstein barycentre of k histograms: minimise sum_k w_k OT(a_k, b) + reg KL(b | u) over b.

    OT is the optimal value of `solve_ot`, <P, C> + reg KL(P | a_k b^T), and u is uniform on the n points of the barycentre. The
    second term makes it what Benamou et al. (2015) and others' libraries minimise: there plans are compared with a uniform measure
    instead of a_k b^T. Such barycentres are blurred at the scale of sqrt(reg). Those of the Sinkhorn divergences,
    ``debias=True``, are not: minimise sum_k w_k OT(a_k, b) - OT(b, b) / 2.

    Parameters
    ----------
    A : (k, n) array_like, list of (n_k,) array_like, or (k, h, w) array_like
        One histogram a row, or one a list entry, of equal mass; or images, or volumes.
    C : (n, n) array_like or geometry, or list of these, (n_k, n)
        Costs between the points of the inputs (rows) and those of the barycentre (columns): one for all inputs, or a list of
        one for each. Without it images have that of ``Grid((h, w))``: squared distances between square pixels, whose longest side
        has length 1. Pairs cannot be forbidden.
    reg : float, optional
        Regularisation > 0, in units of the cost; by default 1e-3 times the range of C.
    weights : (k,) array_like, optional
        Barycentric coordinates w, non-negative, scaled to sum 1; by default uniform.
    debias : bool
        Minimise Sinkhorn divergences. C must then be one symmetric (n, n) cost.
    tol : float, optional
        L1 error of the marginals of each plan, relative to the mass. By default 1e-9, for float32 data 1e-5, with
        ``debias=True`` 1e-4.
    max_iter : int, optional
        Limit of all iterations together, by default 10,000.
    init : BarycenterResult, optional
        A result for inputs like these, whose potentials to start from.
    callback : callable, optional
        ``callback(intermediate_result)`` after every iteration, with `barycenter` (flat, of unit mass), `nit`, `marginal_error`,
        and `reg` of the present level. Raising `StopIteration` stops.
    progress : bool
        Show a progress bar on stderr.
    options : dict, optional
        ``"time_limit"``, in seconds.
    raise_on_failure : bool
        Raise `ConvergenceError` instead of warning when the tolerance is not met.

    Returns
    -------
    BarycenterResult
        The barycentre, plans, values and the figures that prove them.

    Raises
    ------
    ValueError, TypeError
        When an argument is wrong; the message names it, says what was found and what to do.
    ConvergenceError
        When the tolerance is not met and `raise_on_failure` is set.

    Warns
    -----
    ConvergenceWarning
        When the solver stops short of the tolerance.

    Notes
    -----
    A few Bregman projections are followed by Newton's method on the dual, by conjugate gradients: a pass of either is a product
    with K or K'. ``debias=True`` takes the fixed-point iteration of Janati et al. with Anderson's acceleration; where the
    minimiser is rough or has zeros, its last digits come slowly, and the objective does not depend on them.

    While the costs range over at most 600 reg, one n x n kernel in double precision serves all inputs, and a pass is a matrix
    product, O(k n^2). Below, or with costs that differ, reg falls along a path to its target, and every input has a plan of its
    own: k n^2 numbers in single precision (other array libraries: double). With a `Grid` no such matrix is formed: passes go axis
    by axis, for images in O(k h w (h + w)) time.

    References
    ----------
    J.-D. Benamou, G. Carlier, M. Cuturi, L. Nenna, G. Peyré, Iterative Bregman projections for regularized transportation problems,
    SIAM J. Sci. Comput. 37, 2015. H. Janati, M. Cuturi, A. Gramfort, Debiased Sinkhorn barycenters, ICML 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.ot import barycenter
    >>> x = np.linspace(0, 1, 101)
    >>> A = np.exp(-0.5 * ((x - np.array([[0.3], [0.7]])) / 0.05) ** 2)
    >>> A /= A.sum(axis=1, keepdims=True)
    >>> C = (x[:, None] - x[None, :]) ** 2
    >>> blurred, sharp = barycenter(A, C, reg=0.01), barycenter(A, C, reg=0.01, debias=True)
    >>> blurred.success, sharp.success
    (True, True)
    >>> deviation = lambda b: np.sqrt(b @ (x - b @ x) ** 2)
    >>> round(float(deviation(blurred.barycenter)), 3), round(float(deviation(sharp.barycenter)), 3)
    (0.087, 0.05)
    """
    problem = _make_problem(A, C, reg, weights, debias, tol)
    strict, start = validate.boolean(raise_on_failure, "raise_on_failure"), _start(init, problem)
    monitor = make_monitor("barycenter", MAX_ITER, max_iter, callback, progress, options)
    try:
        result = _solve(problem, start, monitor)
    finally:
        monitor.close()
    return report(result, raise_on_failure=strict)


def _make_problem(A: Any, C: Any, reg: Any, weights: Any, debias: Any, tol: Any) -> BarycenterProblem:  # noqa: N803
    inputs, shapes = read_inputs(A)
    geometries = read_geometries(C, inputs, shapes)
    costs = distinct(geometries)
    arrays = {f"{name} of cost {k}": v for k, geometry in enumerate(costs) for name, v in geometry.arrays.items()}
    xp = common_namespace({"A": inputs[0], **arrays})
    dtype = xp.result_type(*inputs, *(geometry.dtype for geometry in costs))
    single = dtype == xp.float32
    unit, mass = unit_inputs(inputs, single=single)
    wanted, chosen = validate.boolean(debias, "debias"), tolerance(tol)
    problem = BarycenterProblem(
        inputs=unit,
        weights=coordinates(weights, len(inputs)),
        geometries=geometries,
        reg=1.0,
        tol=chosen if chosen is not None else DEBIASED_TOL if wanted else 1e-5 if single else 1e-9,
        debias=wanted,
        mass=mass,
        dtype=dtype,
        output=output_shape(geometries[0], shapes),
    )
    if wanted:
        _require_symmetry(problem)
    return replace(problem, reg=max(regularisation(reg, "auto", geometry, exact=False) for geometry in costs))


def _require_symmetry(problem: BarycenterProblem) -> None:
    geometry = problem.geometries[0]
    n, m = geometry.shape
    if not problem.shared or n != m:
        msg = "debias=True compares the barycentre with itself: give one (n, n) cost on a support that all inputs share"
        raise ValueError(msg)
    if isinstance(geometry, PointCloud) and geometry.x is geometry.y:
        return
    cost, (low, high) = geometry.rows(0, n), problem.bounds
    if float(problem.xp.max(problem.xp.abs(cost - cost.T))) > ASYMMETRY * max(high - low, abs(high)):
        msg = "debias=True needs a symmetric cost, as between the points of one support; C is not: symmetrise it"
        raise ValueError(msg)


def _start(init: Any, problem: BarycenterProblem) -> Point | None:
    """Log scalings to start from, at the problem's reg."""
    if init is None:
        return None
    if not isinstance(init, BarycenterResult):
        msg = f"init must be a BarycenterResult, got {type(init).__name__}"
        raise TypeError(msg)
    used = np.flatnonzero(problem.weights)
    if len(init._g) != len(problem.inputs) or init._b.shape[0] != problem.size or any(init._g[k] is None for k in used):
        msg = (
            f"init must belong to {len(problem.inputs)} inputs and {problem.size} points, with the inputs of positive weight in use"
        )
        raise ValueError(msg)
    xp = problem.xp
    common_namespace({"init.barycenter": init._b, "A[0]": problem.inputs[0]})
    scalings = xp.stack([init._g[k] for k in used]) / problem.reg
    w = xp.asarray(problem.weights[used], dtype=xp.float64, device=problem.device)
    h = xp.zeros_like(init._b) if init._h is None else init._h / problem.reg
    if not problem.debias:
        scalings = scalings - xp.sum(w[:, None] * scalings, axis=0)
    return Point(scalings, h)


def _solve(problem: BarycenterProblem, start: Point | None, monitor: Monitor) -> BarycenterResult:
    used = np.flatnonzero(problem.weights)
    active = replace(
        problem,
        inputs=[problem.inputs[k] for k in used],
        geometries=[problem.geometries[k] for k in used],
        weights=problem.weights[used],
    )
    best, passes = Best(), 0
    attempts = [SCHEDULES[0], *SCHEDULES] if start is not None else list(SCHEDULES)
    for schedule in attempts:
        stack, candidate = follow_path(active, schedule, start, monitor)
        start, passes = None, passes + stack.passes
        if candidate.error < best.error or best.point is None:
            best = candidate
        if best.error <= problem.tol or monitor.stopped or best.error <= 4 * problem.rounding_floor:
            break
    return _certified(problem, active, stack, best, passes, used, monitor)


def _certified(
    problem: BarycenterProblem,
    active: BarycenterProblem,
    stack: PlanStack,
    best: Best,
    passes: int,
    used: np.ndarray,
    monitor: Monitor,
) -> BarycenterResult:
    """Compute the figures of the best iterate afresh."""
    xp, point = problem.xp, best.point
    assert point is not None
    h = point.h if problem.debias else None
    if stack.log_scalings is not point.scalings or stack.h is not h:
        stack.move(point.scalings, h)
    b = stack.barycenter(active_weights(active))
    f, g = stack.row_potentials(), problem.reg * point.scalings
    rows, columns = stack.certify(f, g)
    distances = stack.kernels.distances(columns, b)
    errors = np.full(len(problem.inputs), np.nan)
    errors[used] = [row + float(distances[k]) for k, row in enumerate(rows)]
    error = float(np.max(errors[used]))
    if h is not None:
        error = max(error, float(xp.sum(xp.abs(stack.certify_self(h) - b))))
    status = _status(error, problem, monitor)
    everywhere: list[tuple[Array | None, Array | None]] = [(None, None)] * len(problem.inputs)
    for place, k in enumerate(used):
        everywhere[k] = f[place], g[place, :]
    return BarycenterResult(
        barycenter=xp.astype(xp.reshape(problem.mass * b, problem.output), problem.dtype, copy=False),
        weights=problem.weights,
        reg=problem.reg,
        marginal_error=error,
        marginal_errors=errors,
        nit=monitor.nit,
        npass=passes,
        success=status is Status.SUCCESS,
        status=status,
        message=_message(status, error, problem, monitor),
        history={name: np.asarray(values) for name, values in monitor.history.items()},
        _problem=problem,
        _b=b,
        _f=[f for f, _ in everywhere],
        _g=[g for _, g in everywhere],
        _h=None if h is None else problem.reg * h,
    )


def _status(error: float, problem: BarycenterProblem, monitor: Monitor) -> Status:
    if error <= problem.tol:
        return Status.SUCCESS
    return (monitor.status or Status.STALLED) if error < math.inf else Status.NOT_FINITE


def _message(status: Status, error: float, problem: BarycenterProblem, monitor: Monitor) -> str:
    if status is Status.SUCCESS:
        return f"converged: marginal error {error:.2g} <= tol = {problem.tol:.2g}"
    slow = " (a debiased barycentre with zeros or rough parts converges slowly)" if problem.debias else ""
    advice = {
        Status.ITERATION_LIMIT: f"the limit max_iter = {monitor.max_iter} is reached: raise it, or raise tol or reg{slow}",
        Status.TIME_LIMIT: f"the time limit of {monitor.time_limit:g} s is reached: raise it, or raise tol or reg{slow}",
        Status.CALLBACK_STOP: "the callback asked to stop",
        Status.NOT_FINITE: "a number is not finite: rescale C, and reg by the same factor",
        Status.STALLED: f"the steps no longer help, double precision promises {problem.rounding_floor:.1g}: raise tol or reg{slow}",
    }[status]
    return f"not converged, marginal error {error:.2g} > tol = {problem.tol:.2g}: {advice}"
