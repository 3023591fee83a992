"""The linear system behind derivatives of potentials.

It is

    ( diag(r)   P      ) (mu)   (rho  )
    ( P'        diag(c)) (nu) = (sigma),    sum rho = sum sigma,

with P the plan and r, c its sums: it is singular, with null vector (1, -1), and symmetric. Eliminating mu leaves the Laplacian of
the semi-dual, L nu = sigma - P' (rho / r), see `row_plan`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from otbilevel._core.array import Array
from otbilevel.linalg import cg
from otbilevel.ot.plan import EntropicPlan
from otbilevel.ot.row_plan import RowPlan, Work
from otbilevel.ot.stored_plan import Room

TARGET = 1e-13
"""Residual, relative to the right-hand side, at which refinement ends."""
ACCEPTED = 1e-7
"""Residual up to which a solution counts."""
INNER = 1e-6
"""Residual of the solve in single precision in each round of refinement: it has no better digits to give."""
MAX_ROUNDS = 12
"""Of refinement; two or three do nearly always."""
MAX_CG = 5000
"""Steps of conjugate gradients in a round."""
ROUNDING = 16 * float(np.finfo(np.float64).eps)
"""Of a product with the Laplacian, relative to its degrees."""


def _never() -> bool:
    return False


@dataclass
class PlanSystem:
    """The system at a plan, for any number of right-hand sides.

    A Laplacian in single precision is spectrally equivalent to the true one within its rounding, however ill conditioned both are:
    so it is solved with that, and refined with products in double precision, which compute the plan anew. Each round gains about
    six digits.

    Attributes
    ----------
    plan : EntropicPlan
        The plan; the system is that of unit mass on the support.
    memory : float
        Bytes that a stored plan between points may take.
    symmetric : bool
        Whether rho = sigma, c = r and P = P', as between one cloud and itself: then mu = nu, and (diag(r) + P) mu = rho is
        well conditioned, whatever reg is.
    residual : float
        The largest relative residual since this was last set to 0.
    """

    plan: EntropicPlan
    memory: float
    symmetric: bool = False
    residual: float = 0.0
    _row_plan: RowPlan | None = None

    def product(self, v: Array, axis: int) -> Array:
        """P v or P' v in double precision."""
        return self.plan.product(v[:, None], axis)[:, 0]

    def solve(self, rho: Array, sigma: Array) -> tuple[Array, Array]:
        """Return mu and nu, up to a multiple of the null vector; record the residual."""
        if self.symmetric:
            mu = self._solve_symmetric(0.5 * (rho + sigma))
            return mu, mu
        rows = self.plan.row_sums
        nu = self._solve_laplacian(sigma - self.product(rho / rows, 0))
        return (rho - self.product(nu, 1)) / rows, nu

    def _solve_laplacian(self, rhs: Array) -> Array:
        """Refine until nothing is gained."""
        xp, degree = self.plan.problem.xp, self.plan.column_sums
        total = xp.sum(degree)
        rhs = rhs - degree * (xp.sum(rhs) / total)  # in the range of L
        scale = float(xp.sum(xp.abs(rhs)))
        solution, rest, size = xp.zeros_like(rhs), rhs, scale
        if scale == 0:
            return solution
        for _ in range(MAX_ROUNDS):
            trial = solution + self._approximately(rest)
            trial = trial - xp.sum(degree * trial) / total
            fresh = rhs - self._laplacian(trial)
            fresh = fresh - degree * (xp.sum(fresh) / total)
            fresh_size = float(xp.sum(xp.abs(fresh)))
            if not fresh_size < size:
                self._forget()
                break
            slow = fresh_size > 0.25 * size
            solution, rest, size = trial, fresh, fresh_size
            floor = ROUNDING * float(xp.sum(degree * xp.abs(solution)))
            if size <= max(TARGET * scale, floor) or slow:
                break
        self._record(size / scale)
        return solution

    def _laplacian(self, x: Array) -> Array:
        return self.plan.column_sums * x - self.product(self.product(x, 1) / self.plan.row_sums, 0)

    def _approximately(self, rhs: Array) -> Array:
        """L^-1 rhs as the stored plan has it, which is made at the first call."""
        if self._row_plan is None:
            self._row_plan = self._make_row_plan()
        laplacian = self._row_plan.laplacian()
        x, _ = self._row_plan.solve(laplacian, rhs, tol=INNER, max_iter=MAX_CG, interrupt=_never)
        return x

    def _forget(self) -> None:
        """What was learnt from a solve that failed would spoil the next one."""
        if self._row_plan is not None:
            self._row_plan.preconditioner = None

    def _make_row_plan(self) -> RowPlan:
        problem = self.plan.problem
        plan = problem.geometry.row_plan(problem, Work(), Room(), single=True, memory=self.memory)
        plan.restart(self.plan.f)
        plan.sweep(self.plan.g, problem.reg, single=True)
        return plan

    def _solve_symmetric(self, rhs: Array) -> Array:
        rows, xp = self.plan.row_sums, self.plan.problem.xp
        operator = _Sum(rows, lambda v: self.product(v, 1))
        solution = cg(
            operator,
            rhs,
            preconditioner=lambda r: r / rows,
            tol=TARGET,
            max_iter=MAX_CG,
            norm=lambda v: float(xp.sum(xp.abs(v))),
        )
        self._record(solution.residual if float(xp.max(xp.abs(rhs))) > 0 else 0.0)
        return solution.x

    def _record(self, residual: float) -> None:
        self.residual = max(self.residual, residual) if residual < float("inf") else float("inf")


@dataclass(frozen=True)
class _Sum:
    """diag(rows) + P."""

    rows: Array
    product: Callable[[Array], Array]

    @property
    def shape(self) -> tuple[int, int]:
        return (self.rows.shape[0], self.rows.shape[0])

    def matvec(self, x: Array, /) -> Array:
        return self.rows * x + self.product(x)
