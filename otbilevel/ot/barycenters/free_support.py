"""Barycentres of point clouds whose own points move."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace, device, to_numpy
from otbilevel._core.monitor import Callback, Monitor
from otbilevel._core.result import Status, report
from otbilevel.ot import sns
from otbilevel.ot.barycenters.call import make_monitor
from otbilevel.ot.barycenters.clouds import first_points, read_clouds, vector
from otbilevel.ot.barycenters.problem import coordinates, unit_inputs
from otbilevel.ot.barycenters.result import BarycenterResult, FreeSupportResult
from otbilevel.ot.barycenters.solve import barycenter
from otbilevel.ot.batch import solve_ot_batch
from otbilevel.ot.batch_result import OTBatchResult
from otbilevel.ot.call import tolerance
from otbilevel.ot.exact import quick_vertex
from otbilevel.ot.kernels import select
from otbilevel.ot.point_cloud import PointCloud
from otbilevel.ot.result import OTResult
from otbilevel.ot.solve import solve_ot

MAX_ITER = 1000
LOOSEST, TIGHTEST = 1e-4, 1e-9
"""Tolerance of the transports while points move far, and at the end."""
LARGEST_STACK = 2**21
"""Pairs of all transports together, up to which they are solved by one call."""
SHARE = 1e-2
"""Of the relative displacement that this tolerance may be."""


def free_support_barycenter(  # noqa: PLR0913 -- two objectives, and what may be optimised or given
    X: Any,  # noqa: N803 -- the field's name for points
    a: Any = None,
    *,
    n_points: int | None = None,
    init: Any = None,
    masses: Any = None,
    reg: float | None = None,
    weights: Any = None,
    debias: bool = False,
    update_masses: bool = False,
    tol: float | None = None,
    max_iter: int | None = None,
    rng: Any = None,
    callback: Callback | None = None,
    progress: bool = False,
    options: Mapping[str, Any] | None = None,
    raise_on_failure: bool = False,
) -> FreeSupportResult:
    """Barycentre of k weighted point clouds for the squared Euclidean cost: n points that move to the optimum.

    Minimises sum_k w_k OT(b, a_k) over the points y of b, by y_i <- sum_k w_k T_k(y_i), where T_k is the barycentric map of the
    optimal plan to input k. Each iteration lowers the objective, which is not convex in y: what is found is a fixed point, and
    depends on `init`.

    Parameters
    ----------
    X : list of (m_k, d) array_like
        Points of the inputs.
    a : list of (m_k,) array_like, optional
        Their weights, of equal mass; an entry, or the whole, may be None for uniform ones.
    n_points : int, optional
        Number of points of the barycentre, drawn from those of the inputs to start with. Needed without `init`.
    init : (n, d) array_like, optional
        Points to start from.
    masses : (n,) array_like, optional
        Weights of the points of the barycentre; by default uniform. Scaled to the mass of the inputs.
    reg : float, optional
        Regularisation > 0, in units of the squared distance. None: exact transport, ``method="exact"`` of `solve_ot`.
    weights : (k,) array_like, optional
        Barycentric coordinates, non-negative, scaled to sum 1; by default uniform.
    debias : bool
        Minimise Sinkhorn divergences: minus OT(b, b) / 2, by y_i <- y_i + sum_k w_k T_k(y_i) - T_b(y_i). Without it, entropic
        barycentres shrink. Needs `reg`.
    update_masses : bool
        Optimise the weights, too, by a `barycenter` on the present points in every iteration, so that reg KL(b | u) is added to the
        objective. Needs `reg`, and excludes `masses` and `debias`.
    tol : float, optional
        Relative displacement at which to stop, by default 1e-6, for float32 data 1e-4.
    max_iter : int, optional
        Limit of iterations, by default 1000.
    rng : int or numpy.random.Generator, optional
        Draws the start.
    callback : callable, optional
        ``callback(intermediate_result)`` after every iteration, with `points`, `nit`, `displacement`, `value`. Raising
        `StopIteration` stops.
    progress : bool
        Show a progress bar on stderr.
    options : dict, optional
        ``"time_limit"``, in seconds, looked at between iterations.
    raise_on_failure : bool
        Raise `ConvergenceError` instead of warning when the tolerance is not met.

    Returns
    -------
    FreeSupportResult
        Points, transports and the figures that prove them.

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
    Entropic transports start from the potentials of the iteration before, and are as accurate as the points need. Small ones to all
    inputs are solved by one `solve_ot_batch`, of larger ones each costs what `solve_ot` says; with exact transport the fixed point
    is reached after finitely many iterations.

    References
    ----------
    M. Cuturi, A. Doucet, Fast computation of Wasserstein barycenters, ICML 2014, Algorithm 2. P. C. Álvarez-Esteban et al., A
    fixed-point approach to barycenters in Wasserstein space, J. Math. Anal. Appl. 441, 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.ot import free_support_barycenter
    >>> square = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    >>> result = free_support_barycenter([square, square + 4.0], init=square + 1.0)
    >>> result.points - square
    array([[2., 2.], [2., 2.], [2., 2.], [2., 2.]])
    """
    clouds, unit, mass, dtype = read_clouds(X, a)
    flags = {"debias": debias, "update_masses": update_masses, "raise_on_failure": raise_on_failure}
    for name, flag in flags.items():
        validate.boolean(flag, name)
    strength = 0.0 if reg is None else validate.real(reg, "reg", low=0.0, strict=True)
    for name in ("debias", "update_masses"):
        if flags[name] and reg is None:
            msg = f"{name}=True needs entropic transport: give reg > 0"
            raise ValueError(msg)
    if update_masses and (debias or masses is not None):
        msg = "update_masses=True finds the masses for the entropic objective: leave out masses and debias"
        raise ValueError(msg)
    xp = array_namespace(clouds[0])
    w = coordinates(weights, len(clouds))
    y = first_points(clouds, unit, w, init, n_points, rng)
    b = xp.full((y.shape[0],), 1.0 / y.shape[0], dtype=xp.float64, device=device(y))
    if masses is not None:
        b = unit_inputs([vector(masses, "masses", y.shape[0])], single=False, name="masses")[0][0]
    chosen = tolerance(tol)
    if chosen is None:
        chosen = 1e-4 if dtype == xp.float32 else 1e-6
    monitor = make_monitor("free_support_barycenter", MAX_ITER, max_iter, callback, progress, options)
    solver = _Solver(clouds, unit, w, strength, mass, dtype, debias, update_masses)
    try:
        result = solver.run(y, b, chosen, monitor)
    finally:
        monitor.close()
    return report(result, raise_on_failure=raise_on_failure)


@dataclass
class _Step:
    """The transports of an iteration (none while nobody sees them), the points that they lead to, the objective, and a start."""

    transports: list[OTResult]
    points: Array
    masses: Array
    values: np.ndarray
    value: float
    accuracy: float
    known: Any

    def distance(self, y: Array) -> float:
        """Of the points from y: root mean square by mass."""
        return math.sqrt(float(array_namespace(y).sum(self.masses[:, None] * (self.points - y) ** 2)))


@dataclass
class _Solver:
    clouds: list[Array]
    unit: list[Array]
    w: np.ndarray
    reg: float
    mass: float
    dtype: Any
    debias: bool
    update_masses: bool
    _stack: tuple[Array, Array, Array, Array] | None = None

    def run(self, y: Array, b: Array, tol: float, monitor: Monitor) -> FreeSupportResult:
        """Iterate until the points stand still, then solve the transports there to full accuracy."""
        size, displacement, known = self._size(), math.inf, None
        while True:
            step = self.step(y, b, min(max(TIGHTEST, SHARE * displacement), LOOSEST), known)
            displacement = step.distance(y) / size
            go_on = monitor.record(partial(_iterate, step.points), displacement=displacement, value=step.value)
            if displacement <= tol or not go_on:
                step = self._proved(step, y, b)
                displacement = step.distance(y) / size
                if displacement <= tol or monitor.stopped:
                    return self._result(y, step, displacement, tol, monitor)
            y, b, known = step.points, step.masses, step.known

    @cached_property
    def _mean(self) -> Array:
        """The mean of all input points."""
        return sum(float(w) * (a @ x) for w, a, x in zip(self.w, self.unit, self.clouds, strict=True))

    def _size(self) -> float:
        """Root mean square distance of all input points from their mean; 1 for a single place."""
        xp, mean = array_namespace(self.clouds[0]), self._mean
        square = sum(
            float(w) * float(xp.sum(a[:, None] * (x - mean) ** 2)) for w, a, x in zip(self.w, self.unit, self.clouds, strict=True)
        )
        return math.sqrt(square) or 1.0

    def step(self, y: Array, b: Array, accuracy: float, known: Any) -> _Step:
        """Transports to all inputs, and where they map the points."""
        if self.update_masses:
            return self._with_masses(y, accuracy, known)
        if not self.reg:
            return self._without_certificates(y, b) or self._with_points(y, b, 0.0, None)
        if self._fits(y, b):
            return self._together(y, b, accuracy, known if isinstance(known, OTBatchResult) else None)
        return self._with_points(y, b, accuracy, known)

    def _proved(self, step: _Step, y: Array, b: Array) -> _Step:
        """The step from (y, b), by transports to full accuracy, with what proves them."""
        if step.accuracy <= TIGHTEST and step.transports:
            return step
        if self.update_masses:
            return self._with_masses(y, TIGHTEST, step.known)
        if self.reg:
            return self._with_points(y, b, TIGHTEST, step.known)
        inputs = zip(step.known, self.clouds, self.unit, strict=True)
        return replace(step, transports=[vertex.prove(y, self.mass * b, x, self.mass * a) for vertex, x, a in inputs])

    def _without_certificates(self, y: Array, b: Array) -> _Step | None:
        """Vertices straight from the network simplex, None without it: what proves them is computed at the end."""
        vertices = [quick_vertex(y, b, x, a) for x, a in zip(self.clouds, self.unit, strict=True)]
        found = [vertex for vertex in vertices if vertex is not None]
        if len(found) < len(vertices):
            return None
        values = np.array([vertex.cost for vertex in found])
        points = sum(float(w) * (vertex.plan @ x) for w, vertex, x in zip(self.w, found, self.clouds, strict=True))
        points = _quotient(points, b, y)
        return _Step([], points, b, self.mass * values, self.mass * float(self.w @ values), 0.0, found)

    def _fits(self, y: Array, b: Array) -> bool:
        """Whether all transports together are small, and much the same, and so solved by one call."""
        sizes = [x.shape[0] for x, _ in self._targets(y, b)]
        padded, kernels = len(sizes) * max(sizes), select(array_namespace(y)).batch_kernels
        small = y.shape[0] * max(sizes) <= sns.SMALL and y.shape[0] * padded <= LARGEST_STACK and padded <= 2 * sum(sizes)
        return small and bool(kernels.READS_COSTS or padded * max(sizes) <= LARGEST_STACK)  # others form matrices of the columns

    def _together(self, y: Array, b: Array, accuracy: float, known: OTBatchResult | None) -> _Step:
        """All transports by one call: one at a time small ones would mostly wait for Python."""
        xp, (places, weights, centred, squares) = array_namespace(y), self._stacked(y, b)
        z = y - self._mean
        costs = squares[:, None, :] - z @ xp.matrix_transpose(2.0 * centred) + xp.sum(z * z, axis=1)[:, None]
        costs = xp.clip(costs, 0.0, None)  # no rounding below 0
        result = solve_ot_batch(self.mass * b, self.mass * weights, costs, reg=self.reg, tol=accuracy, init=known)
        maps = _quotient(result.plan @ places, xp.sum(result.plan, axis=2), y)
        values = to_numpy(result.dual_value)
        return self._mapped(y, b, [maps[k, :, :] for k in range(len(values))], values, accuracy, [], result)

    def _stacked(self, y: Array, b: Array) -> tuple[Array, Array, Array, Array]:
        """Points of all targets, (k, m, d), filled up with points of no weight; weights; points from their mean; their squares."""
        if self._stack is not None and not self.debias:
            return self._stack
        xp, targets = array_namespace(y), self._targets(y, b)
        longest = max(x.shape[0] for x, _ in targets)
        places = xp.stack([_filled(x, x[:1, :], longest) for x, _ in targets])
        weights = xp.stack([_filled(a, xp.zeros_like(a[:1]), longest) for _, a in targets])
        centred = places - self._mean  # far from the origin squares would cancel
        self._stack = places, weights, centred, xp.sum(centred * centred, axis=2)
        return self._stack

    def _with_points(self, y: Array, b: Array, accuracy: float, known: Any) -> _Step:
        targets, transports = self._targets(y, b), []
        for k, (x, a) in enumerate(targets):
            settings: dict[str, Any] = {"method": "exact"}
            if self.reg:
                settings = {"reg": self.reg, "tol": accuracy, "init": None if known is None else _start(known, k, x.shape[0])}
            transports.append(solve_ot(self.mass * b, self.mass * a, PointCloud(y, x), **settings))
        maps = [result.barycentric_map(x) for result, (x, _) in zip(transports, targets, strict=True)]
        values = np.array([result.dual_value if self.reg else result.value for result in transports])
        return self._mapped(y, b, maps, values, accuracy, transports, transports)

    def _targets(self, y: Array, b: Array) -> list[tuple[Array, Array]]:
        """Points and weights that there are transports to."""
        return [*zip(self.clouds, self.unit, strict=True), *([(y, b)] if self.debias else [])]

    def _mapped(
        self,
        y: Array,
        b: Array,
        maps: list[Array],
        values: np.ndarray,  # of the dual where there is one, off by the error squared
        accuracy: float,
        transports: list[OTResult],
        known: Any,
    ) -> _Step:
        """The step by the barycentric maps to all targets."""
        count = len(self.clouds)
        points = sum(float(w) * image for w, image in zip(self.w, maps, strict=False))
        value = float(self.w @ values[:count])
        if self.debias:
            points, value = y + points - maps[-1], value - 0.5 * float(values[-1])
        return _Step(transports[:count], points, b, values[:count], value, accuracy, known)

    def _with_masses(self, y: Array, accuracy: float, known: BarycenterResult | None) -> _Step:
        xp = array_namespace(y)
        inputs, costs = [self.mass * a for a in self.unit], [PointCloud(x, y) for x in self.clouds]
        result = barycenter(inputs, costs, reg=self.reg, weights=self.w, tol=accuracy, init=known)
        b = result.barycenter / xp.sum(result.barycenter)
        transports, points = [result.transport(k) for k in range(len(costs))], xp.zeros_like(y)
        for k in np.flatnonzero(self.w):
            images = transports[k].apply(self.clouds[k], axis=0) / transports[k].marginals[1][:, None]
            points = points + float(self.w[k]) * images
        points = xp.where(xp.isfinite(points), points, y)  # a point without mass stays where it is
        return _Step(transports, points, b, result.values, result.value, accuracy, result)

    def _result(self, y: Array, step: _Step, displacement: float, tol: float, monitor: Monitor) -> FreeSupportResult:
        xp = array_namespace(y)
        success = displacement <= tol
        status = Status.SUCCESS if success else monitor.status or Status.STALLED
        figures = f"relative displacement {displacement:.2g}"
        advice = (
            "the callback asked to stop" if status is Status.CALLBACK_STOP else "raise max_iter or the time limit, or raise tol"
        )
        return FreeSupportResult(
            points=xp.astype(y, self.dtype, copy=False),
            masses=xp.astype(self.mass * step.masses, self.dtype, copy=False),
            weights=self.w,
            reg=self.reg,
            displacement=displacement,
            value=step.value,
            values=step.values,
            marginal_error=max(result.marginal_error for result in step.transports),
            transports=step.transports,
            nit=monitor.nit,
            success=success,
            status=status,
            message=f"converged: {figures} <= tol = {tol:.2g}"
            if success
            else f"not converged, {figures} > tol = {tol:.2g}: {advice}",
            history={name: np.asarray(values) for name, values in monitor.history.items()},
        )


def _start(known: OTBatchResult | list[OTResult], k: int, m: int) -> Any:
    """What `solve_ot` starts from for target k, of m points."""
    return (known.f[k, :], known.g[k, :m]) if isinstance(known, OTBatchResult) else known[k]


def _filled(values: Array, filling: Array, length: int) -> Array:
    """As many entries as `length`, the rest `filling`, of shape (1, ...)."""
    xp, missing = array_namespace(values), length - values.shape[0]
    return xp.concat([values, xp.broadcast_to(filling, (missing, *filling.shape[1:]))]) if missing else values


def _quotient(moments: Array, masses: Array, y: Array) -> Array:
    """Moments (..., n, d) over masses (..., n); y where there is no mass."""
    xp, some = array_namespace(y), masses > 0
    return xp.where(some[..., None], moments / xp.where(some, masses, xp.ones_like(masses))[..., None], y)


def _iterate(points: Array) -> dict[str, Array]:
    return {"points": points}
