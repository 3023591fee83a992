"""The results of `barycenter` and `free_support_barycenter`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from otbilevel._core.array import Array
from otbilevel._core.monitor import Monitor
from otbilevel._core.result import Result, Status
from otbilevel.ot.barycenters.problem import BarycenterProblem
from otbilevel.ot.problem import make_problem
from otbilevel.ot.result import OTResult, entropic_result
from otbilevel.ot.row_plan import Work
from otbilevel.ot.solve import solve_ot


@dataclass(eq=False, repr=False)
class BarycenterResult(Result):
    """What `barycenter` returns. Values and plans are computed on first access; for that the costs are kept by reference.

    With the uniform weights u on the n points, and OT the optimal value of `solve_ot`, the barycentre b minimises

    * sum_k w_k OT(a_k, b) + reg KL(b | u), or
    * with ``debias=True`` sum_k w_k OT(a_k, b) - OT(b, b) / 2: up to a constant the sum of the Sinkhorn divergences.

    Attributes
    ----------
    barycenter : (n,) or (h, w) array
        The barycentre b, of the mass of the inputs.
    weights : (k,) ndarray
        Barycentric coordinates in use, of sum 1.
    reg : float
        Regularisation in use.
    marginal_errors : (k,) ndarray
        (||P_k 1 - a_k||_1 + ||P_k' 1 - b||_1) / mass of each plan, from passes over the returned potentials; NaN for inputs
        of weight 0.
    marginal_error : float
        The largest of them; with ``debias=True`` also of the L1 error of the marginal of the plan of b with itself.
    value, dual_value : float
        The objective above, at plans whose marginals are off by `marginal_error`; and a lower bound of it (NaN with
        ``debias=True``, where the problem has no dual in these potentials).
    values : (k,) ndarray
        OT(a_k, b) for each input, as `OTResult.value`.
    gap : float
        The objective at plans rounded to exact marginals, minus `dual_value`: >= 0, and it tends to 0. With ``debias=True`` it is
        <b, d> - mass min d with the derivative d of the objective in b, for which `solve_ot` is called at b, for all inputs and
        for b itself. Where the objective is convex in b (kernels exp(-C/reg) that are positive definite), that bounds the
        distance from its least value; it shows every point that would want more weight, however little that matters.
    nit, npass : int
        Iterations over all levels of reg, and passes over the kernel of all inputs (an iteration of Bregman projections takes two).
    success, status, message
        Whether, why and with what advice the solver stopped.
    history : dict of (nit,) ndarray
        Per iteration ``"marginal_error"``, ``"reg"``, ``"seconds"``.
    """

    barycenter: Array
    weights: np.ndarray
    reg: float
    marginal_error: float
    marginal_errors: np.ndarray
    nit: int
    npass: int
    success: bool
    status: Status
    message: str
    history: dict[str, np.ndarray]
    _problem: BarycenterProblem
    _b: Array
    _f: list[Array | None]
    _g: list[Array | None]
    _h: Array | None
    _transports: dict[int, OTResult] = field(default_factory=dict)
    _summary = ("message", "success", "status", "reg", "marginal_error", "nit", "npass", "barycenter")

    def transport(self, k: int) -> OTResult:
        """The optimal transport between input k and the barycentre, with its plan, potentials and figures.

        Parameters
        ----------
        k : int
            Which input.

        Returns
        -------
        OTResult
            Rows belong to the points of the input, columns to those of the barycentre. For an input of weight 0 it is solved for
            here; else it comes from the potentials of the barycentre.

        Notes
        -----
        First access costs a pass over all pairs; what `OTResult` computes on first access costs more.
        """
        count = len(self._problem.inputs)
        if not -count <= k < count:
            msg = f"k must be between {-count} and {count - 1}, as there are {count} inputs; got {k}"
            raise IndexError(msg)
        k %= count
        if k not in self._transports:
            self._transports[k] = self._transport(k)
        return self._transports[k]

    def _transport(self, k: int) -> OTResult:
        p, f, g = self._problem, self._f[k], self._g[k]
        if f is None or g is None:
            return solve_ot(p.mass * p.inputs[k], p.mass * self._b, p.geometries[k], reg=p.reg, tol=p.tol)
        problem = make_problem(p.mass * p.inputs[k], p.mass * self._b, p.geometries[k], reg=p.reg, tol=p.tol)
        problem = replace(problem, dtype=p.dtype)
        monitor = Monitor(max_iter=1)
        monitor.status = self.status or None
        f, g = problem.sources.restrict(f), problem.targets.restrict(g)
        return entropic_result(problem, f, g, method="barycenter", monitor=monitor, work=Work())

    @cached_property
    def potentials(self) -> list[tuple[Array, Array]]:
        """``(f_k, g_k)`` for each input, as `OTResult` has them."""
        return [self.transport(k).potentials for k in range(len(self._problem.inputs))]

    def plan(self, k: int) -> Array:
        """The plan between input k and the barycentre, (n_k, n).

        Parameters
        ----------
        k : int
            Which input.

        Returns
        -------
        (n_k, n) array
            O(n_k n) time and memory.
        """
        return self.transport(k).plan

    @cached_property
    def values(self) -> np.ndarray:
        """OT(a_k, b) for each input."""
        return np.array([self.transport(k).value for k in range(len(self._problem.inputs))])

    @cached_property
    def _correction(self) -> float:
        """What the objective has beside the transports."""
        p, xp = self._problem, self._problem.xp
        positive = self._b > 0
        logs = xp.log(xp.where(positive, self._b, xp.ones_like(self._b)))
        if self._h is None:
            return p.mass * p.reg * float(xp.sum(self._b * (logs + math.log(p.size))))
        problem = make_problem(p.mass * self._b, p.mass * self._b, p.geometries[0], reg=p.reg, tol=p.tol)
        f, g = problem.sources.restrict(self._h - p.reg * logs), problem.targets.restrict(self._h)
        return -0.5 * entropic_result(problem, f, g, method="barycenter", monitor=Monitor(max_iter=1), work=Work()).value

    @cached_property
    def value(self) -> float:
        """The objective."""
        return (self._weighted([t.value for t in self._used])) + self._correction

    @cached_property
    def dual_value(self) -> float:
        """The dual objective, a lower bound."""
        return (self._weighted([t.dual_value for t in self._used])) + self._correction if self._h is None else float("nan")

    @cached_property
    def gap(self) -> float:
        """A bound on the distance of the objective from its least value."""
        if self._h is None:
            return self._weighted([t.gap for t in self._used])
        p, xp = self._problem, self._problem.xp
        b = p.mass * self._b
        derivative = -self._derivative(b)
        for k in np.flatnonzero(self.weights):
            derivative = derivative + float(self.weights[k]) * self._derivative(p.mass * p.inputs[k])
        return float(xp.sum(b * derivative)) - p.mass * float(xp.min(derivative))

    def _derivative(self, a: Array) -> Array:
        """That of OT(a, b) in b, up to a constant, or half that of OT(b, b)."""
        p = self._problem
        result = solve_ot(a, p.mass * self._b, p.geometries[0], reg=p.reg, tol=min(p.tol, 1e-9))
        return result._plan.double_potentials()[1]

    @property
    def _used(self) -> list[OTResult]:
        return [self.transport(int(k)) for k in np.flatnonzero(self.weights)]

    def _weighted(self, figures: list[float]) -> float:
        return float(np.dot(self.weights[self.weights > 0], figures))


@dataclass(eq=False, repr=False)
class FreeSupportResult(Result):
    """What `free_support_barycenter` returns.

    Attributes
    ----------
    points : (n, d) array
        The points of the barycentre.
    masses : (n,) array
        Their weights, of the mass of the inputs.
    weights : (k,) ndarray
        Barycentric coordinates in use, of sum 1.
    reg : float
        Regularisation; 0 for exact transport.
    displacement : float
        How far an iteration would still move the points: root mean square, relative to that of the distances of all input points
        from their mean.
    value : float
        sum_k w_k OT(b, a_k), with OT the `value` of `solve_ot`; with ``debias=True`` minus OT(b, b) / 2, with
        ``update_masses=True`` plus reg KL(b | u).
    values : (k,) ndarray
        OT(b, a_k) for each input.
    marginal_error : float
        The largest L1 error of the marginals of a plan, relative to the mass.
    transports : list of OTResult
        The transports between the barycentre (rows) and each input (columns); the other way round with ``update_masses=True``.
        Those of inputs of weight 0 are solved for, too.
    nit : int
        Iterations: one transport to each input.
    success, status, message
        Whether, why and with what advice the solver stopped.
    history : dict of (nit,) ndarray
        Per iteration ``"displacement"``, ``"value"``, ``"seconds"``.
    """

    points: Array
    masses: Array
    weights: np.ndarray
    reg: float
    displacement: float
    value: float
    values: np.ndarray
    marginal_error: float
    transports: list[OTResult]
    nit: int
    success: bool
    status: Status
    message: str
    history: dict[str, np.ndarray]
    _summary = ("message", "success", "status", "reg", "value", "displacement", "marginal_error", "nit", "points")
