"""Sinkhorn-Newton-Sparse as published: Algorithm 1 of arXiv:2401.12253, kept to reproduce the paper.

The dual in both potentials, f(x, y) = -reg sum_ij P_ij + <a, x> + <b, y> with P_ij = exp((x_i + y_j - C_ij)/reg), has gradient
(a - P 1, b - P' 1) and Hessian -(1/reg) [[diag(P 1), P], [P', diag(P' 1)]]. After N1 Sinkhorn steps each Newton step keeps the
largest entries of P, over the whole matrix, and solves by conjugate gradients; a backtracking search on f chooses the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from otbilevel._core.array import Array, is_numpy_namespace
from otbilevel.linalg import cg
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.result import OTResult
from otbilevel.ot.row_plan import Work
from otbilevel.ot.run import Run
from otbilevel.ot.stored_plan import StoredPlan

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


def solve(run: Run, n_sinkhorn: int, hessian_density: float | None) -> OTResult:
    """Run Algorithm 1. `history["cg"]` holds the conjugate-gradient steps of each iteration, 0 for Sinkhorn steps.

    O(n m) memory for the plan.
    """
    problem, xp = run.problem, run.problem.xp
    n, m = problem.geometry.shape
    share = 3.0 / min(n, m) if hessian_density is None else hessian_density
    keep = min(n * m, max(1, int(np.ceil(share * n * m))))
    z = _warm_up(run, n_sinkhorn)
    plan = _plan(problem, z, run.work)
    gradient, error = _gradient(problem, plan)
    _offer(run, z, error)
    while error > problem.tol and not run.stopped:
        hessian = SparsifiedHessian(xp.sum(plan, axis=1), xp.sum(plan, axis=0), _largest(xp, plan, keep), xp)
        solution = cg(hessian, gradient, tol=CG_TOLERANCE, interrupt=run.monitor.overdue, verify=False)
        moved = _backtrack(problem, z, problem.reg * solution.x, gradient, plan, run.work)
        if moved is None:
            break
        (z, plan), before = moved, error
        gradient, error = _gradient(problem, plan)
        _offer(run, z, error)
        run.nit_newton += 1
        run.record(**_potentials(problem, z), error=error, reg=problem.reg, cg=solution.nit)
        if error >= before and problem.at_floor(before):
            break
    return run.finish("sns")


def _offer(run: Run, z: Array, error: float) -> None:
    if run.best is None or error < run.best_error:
        potentials = _potentials(run.problem, z)
        run.best_error, run.best = error, (potentials["f"], potentials["g"])


def _warm_up(run: Run, n_sinkhorn: int) -> Array:
    """Sinkhorn steps from 0; return (x, y)."""
    problem = run.problem
    xp, reg = problem.xp, problem.reg
    plan = StoredPlan.dense(problem.geometry, problem.a, run.work, single=False)
    y = run.first_potential()
    for _ in range(n_sinkhorn):
        plan.sweep(y, reg)
        error = run.error(plan)
        run.offer(plan)
        y = y + reg * (xp.log(problem.b) - xp.log(xp.clip(plan.column_sums, 1e-300, None)))
        if not run.record(plan.row_potentials(), plan.g, error, reg, cg=0) or error <= problem.tol:
            break
    plan.sweep(y, reg)
    return xp.concat([plan.row_potentials() + reg * xp.log(problem.a), y])


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
    return geometry.kernels.plan_rows(geometry.kernel_cost, **_potentials(problem, z), reg=problem.reg, a=problem.a, low=0, high=n)


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
