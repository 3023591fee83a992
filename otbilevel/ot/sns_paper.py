"""Sinkhorn-Newton-Sparse as published: Algorithm 1 of arXiv:2401.12253, kept to reproduce the paper.

The dual in both potentials, f(x, y) = -reg sum_ij P_ij + <a, x> + <b, y> with P_ij = exp((x_i + y_j - C_ij)/reg), has gradient
(a - P 1, b - P' 1) and Hessian -(1/reg) [[diag(P 1), P], [P', diag(P' 1)]]. After N1 Sinkhorn steps each Newton step keeps the
largest entries of P, over the whole matrix, and solves by conjugate gradients; a backtracking search on f chooses the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy import sparse

from otbilevel._core.array import Array, is_numpy_namespace
from otbilevel._core.monitor import Monitor
from otbilevel.linalg import cg
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.result import OTResult, entropic_result
from otbilevel.ot.row_plan import StoredPlan, Work
from otbilevel.ot.sinkhorn import marginal_error

CG_TOLERANCE = 1e-10
ARMIJO, SHRINK, MAX_BACKTRACKS = 1e-4, 0.5, 40


@dataclass(frozen=True)
class SparsifiedHessian:
    """[[diag(P 1), M], [M', diag(P' 1)]], where M keeps the largest entries of P and the diagonal is exact.

    It is singular, with null vector (1, -1); conjugate gradients do not mind, as the right-hand side is orthogonal to that.
    """

    row_sums: Array
    column_sums: Array
    kept: Any
    xp: Any

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (n + m, n + m)."""
        size = self.row_sums.shape[0] + self.column_sums.shape[0]
        return size, size

    def matvec(self, z: Array, /) -> Array:
        """Return the product with (x, y)."""
        n = self.row_sums.shape[0]
        x, y = z[:n], z[n:]
        return self.xp.concat([self.row_sums * x + self.kept @ y, self.kept.T @ x + self.column_sums * y])


def solve(problem: OTProblem, n_sinkhorn: int, hessian_density: float | None, monitor: Monitor) -> OTResult:
    """Run Algorithm 1. `history["cg"]` holds the conjugate-gradient steps of each iteration, 0 for Sinkhorn steps.

    O(n m) memory for the plan.
    """
    xp, work = problem.xp, Work()
    n, m = problem.geometry.shape
    share = 3.0 / min(n, m) if hessian_density is None else hessian_density
    keep = min(n * m, max(1, int(np.ceil(share * n * m))))
    z = _warm_up(problem, n_sinkhorn, work, monitor)
    steps, plan = 0, _plan(problem, z, work)
    gradient, error = _gradient(problem, plan)
    while error > problem.tol and not monitor.stopped:
        hessian = SparsifiedHessian(xp.sum(plan, axis=1), xp.sum(plan, axis=0), _largest(xp, plan, keep), xp)
        solution = cg(hessian, gradient, tol=CG_TOLERANCE, interrupt=monitor.overdue, verify=False)
        moved = _backtrack(problem, z, problem.reg * solution.x, gradient, plan, work)
        if moved is None:
            break
        steps += 1
        gradient, moved_error = _gradient(problem, moved[1])
        monitor.record(partial(_potentials, problem, moved[0]), marginal_error=moved_error, reg=problem.reg, cg=solution.nit)
        if moved_error >= error and error <= 100 * problem.rounding_floor:
            break  # at the rounding floor: the step before was the best
        (z, plan), error = moved, moved_error
    return entropic_result(problem, **_potentials(problem, z), method="sns", monitor=monitor, work=work, nit_newton=steps)


def _warm_up(problem: OTProblem, n_sinkhorn: int, work: Work, monitor: Monitor) -> Array:
    """Sinkhorn steps from 0; return (x, y)."""
    xp, reg = problem.xp, problem.reg
    plan = StoredPlan.dense(problem.geometry, problem.a, work, single=False)
    y = xp.zeros_like(problem.b)
    for _ in range(n_sinkhorn):
        plan.sweep(y, reg)
        error = marginal_error(plan, problem.b)
        y = y + reg * (xp.log(problem.b) - xp.log(xp.clip(plan.column_sums, 1e-300, None)))
        go_on = monitor.record(partial(dict, f=plan.f, g=plan.g), marginal_error=error, reg=reg, cg=0)
        if not go_on or error <= problem.tol:
            break
    plan.sweep(y, reg)
    return xp.concat([plan.f + reg * xp.log(problem.a), y])


def _potentials(problem: OTProblem, z: Array) -> dict[str, Array]:
    """The library's potentials: in the paper's, x carries the weight a, too."""
    n = problem.a.shape[0]
    return {"f": z[:n] - problem.reg * problem.xp.log(problem.a), "g": z[n:]}


def _gradient(problem: OTProblem, plan: Array) -> tuple[Array, float]:
    """(a - P 1, b - P' 1), and its L1 norm."""
    xp = problem.xp
    gradient = xp.concat([problem.a - xp.sum(plan, axis=1), problem.b - xp.sum(plan, axis=0)])
    return gradient, float(xp.sum(xp.abs(gradient)))


def _plan(problem: OTProblem, z: Array, work: Work) -> Array:
    work.sweeps += 1
    geometry, n = problem.geometry, problem.a.shape[0]
    return geometry.kernels.plan_rows(geometry.cost, **_potentials(problem, z), reg=problem.reg, a=problem.a, low=0, high=n)


def _largest(xp: Any, plan: Array, keep: int) -> Any:
    """The `keep` largest entries of the plan: a CSR array in NumPy, elsewhere a dense array with zeros."""
    flat = xp.reshape(plan, (-1,))
    if is_numpy_namespace(xp):
        threshold = np.partition(flat, len(flat) - keep)[len(flat) - keep]
        return sparse.csr_array(np.where(plan >= threshold, plan, 0.0))
    threshold = xp.sort(flat)[flat.shape[0] - keep]
    return xp.where(plan >= threshold, plan, xp.zeros_like(plan))


def _backtrack(problem: OTProblem, z: Array, d: Array, gradient: Array, plan: Array, work: Work) -> tuple[Array, Array] | None:
    """Halve the step until Armijo's condition holds, up to the rounding of the dual value; None when it never does."""
    xp, reg = problem.xp, problem.reg
    target = xp.concat([problem.a, problem.b])
    slope = float(xp.vecdot(gradient, d))
    mass = float(xp.sum(plan))
    rounding = 4e-16 * (float(xp.sum(target * xp.abs(z))) + reg)
    length = 1.0
    for _ in range(MAX_BACKTRACKS):
        candidate = z + length * d
        moved = _plan(problem, candidate, work)
        rise = length * float(xp.vecdot(target, d)) - reg * (float(xp.sum(moved)) - mass)
        if rise >= ARMIJO * length * slope - rounding:
            return candidate, moved
        length *= SHRINK
    return None
