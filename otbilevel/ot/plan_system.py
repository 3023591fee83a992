"""The linear system behind derivatives of potentials.

It is

    ( diag(r)      P diag(t)) (mu)   (rho  )
    ( P' diag(s)   diag(c)  ) (nu) = (sigma)

with P the plan, r, c its sums, and s, t the responses of the potentials s mu, t nu to the soft minima mu, nu: 1 where the
marginal is met, 0 where the potential is at its bound, between them for Kullback-Leibler's price. In y = diag(t) nu it is
symmetric, and with mu eliminated

    (diag(c/t) - P' diag(s/r) P) y = sigma - P' diag(s) (rho / r)    where t > 0,    y = 0 where t = 0.

If all responses are 1 that is the Laplacian of the semi-dual, see `row_plan`: singular, with null vector (1, -1), for
sum rho = sum sigma. Else it is positive definite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from otbilevel._core.array import Array, array_namespace
from otbilevel.linalg import cg
from otbilevel.ot.marginals import AT_BOUND
from otbilevel.ot.plan import EntropicPlan
from otbilevel.ot.row_plan import SMALLEST_SHARE, Laplacian, RowPlan, Work
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
        Whether rho = sigma, c = r, s = t and P = P', as between one cloud and itself: then mu = nu, and (diag(r/t) + P) y = rho is
        well conditioned, whatever reg is.
    responses : tuple or None
        s and t; None: all are 1.
    residual : float
        The largest relative residual since this was last set to 0.
    """

    plan: EntropicPlan
    memory: float
    symmetric: bool = False
    responses: tuple[Array, Array] | None = None
    residual: float = 0.0
    _row_plan: RowPlan | None = None

    def product(self, v: Array, axis: int) -> Array:
        """P v or P' v in double precision."""
        return self.plan.product(v[:, None], axis)[:, 0]

    def solve(self, rho: Array, sigma: Array) -> tuple[Array, Array]:
        """Return mu and nu, up to a multiple of the null vector if there is one; record the residual.

        What belongs to points without mass is ignored, and 0.
        """
        if self.symmetric:
            y = self._solve_symmetric(self._active * (0.5 * (rho + sigma)))
            mu = y if self.responses is None else self._per_row * (rho - self.product(y, 1))
            return mu, mu
        y = self._solve_eliminated(self._active * (sigma - self.product(self._response_per_row * rho, 0)))
        mu = self._per_row * (rho - self.product(y, 1))
        if self.responses is None:
            return mu, y
        return mu, self._per_column * (sigma - self.product(self.responses[0] * mu, 0))

    @cached_property
    def _per_row(self) -> Array:
        """1/r."""
        return _inverse(self.plan.row_sums)

    @cached_property
    def _per_column(self) -> Array:
        """1/c."""
        return _inverse(self.plan.column_sums)

    @cached_property
    def _response_per_row(self) -> Array:
        """s/r."""
        return self._per_row if self.responses is None else self.responses[0] * self._per_row

    @cached_property
    def _active(self) -> Any:
        """1 for the unknowns, 0 where y = 0."""
        if self.responses is None:
            return 1.0
        xp = self.plan.problem.xp
        return xp.astype((self.responses[1] > 0) & (self.plan.column_sums > 0), xp.float64)

    @cached_property
    def _degree(self) -> Array:
        """c/t, and 1 where y = 0."""
        c, xp = self.plan.column_sums, self.plan.problem.xp
        if self.responses is None:
            return c
        used = self._active > 0
        return xp.where(used, c / xp.where(used, self.responses[1], xp.ones_like(c)), xp.ones_like(c))

    def _balanced(self, v: Array) -> Array:
        """The part in the range of a singular matrix."""
        if self.responses is not None:
            return v
        xp = self.plan.problem.xp
        return v - self._degree * (xp.sum(v) / xp.sum(self._degree))

    def _solve_eliminated(self, rhs: Array) -> Array:
        """Refine until nothing is gained."""
        xp, degree = self.plan.problem.xp, self._degree
        rhs = self._balanced(rhs)
        scale = float(xp.sum(xp.abs(rhs)))
        solution, rest, size = xp.zeros_like(rhs), rhs, scale
        if scale == 0:
            return solution
        for _ in range(MAX_ROUNDS):
            trial = solution + self._active * self._approximately(rest)
            if self.responses is None:
                trial = trial - xp.sum(degree * trial) / xp.sum(degree)
            fresh = self._balanced(rhs - self._eliminated(trial))
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

    def _eliminated(self, y: Array) -> Array:
        return self._degree * y - self._active * self.product(self._response_per_row * self.product(y, 1), 0)

    def _approximately(self, rhs: Array) -> Array:
        """What the stored plan has for the solution, which is made at the first call."""
        if self._row_plan is None:
            self._row_plan = self._make_row_plan()
        laplacian = self._row_plan.laplacian()
        if self.responses is not None:
            laplacian = self._with_responses(laplacian, self.responses)
        x, _ = self._row_plan.solve(laplacian, rhs, tol=INNER, max_iter=MAX_CG, interrupt=_never)
        return x

    def _with_responses(self, laplacian: Laplacian, responses: tuple[Array, Array]) -> Laplacian:
        """The matrix above from the Laplacian for masses r."""
        xp, (s, t), used = self.plan.problem.xp, responses, self._active > 0
        degree = laplacian.degree / xp.where(used, t, xp.ones_like(t))
        degree = xp.where(used, degree, xp.full_like(degree, AT_BOUND))
        squares = xp.maximum(laplacian.degree - 1.0 / laplacian.inverse_diagonal, xp.zeros_like(degree))
        inverse = laplacian.plan.vector_kernels.inverse_diagonal(degree, float(xp.max(s)) * squares, SMALLEST_SHARE)
        return Laplacian(laplacian.plan, s * laplacian.weights, degree, inverse)

    def _forget(self) -> None:
        """What was learnt from a solve that failed would spoil the next one."""
        if self._row_plan is not None:
            self._row_plan.preconditioner = None

    def _make_row_plan(self) -> RowPlan:
        problem = self.plan.problem
        priced = problem.marginals is not None
        if priced:  # the plan with the masses for fixed marginals
            problem = replace(problem, a=self.plan.row_sums, marginals=None)
        plan = problem.geometry.row_plan(problem, Work(), Room(), single=True, memory=self.memory)
        plan.restart(None if priced else self.plan.f)
        plan.sweep(self.plan.g, problem.reg, single=True)
        return plan

    def _solve_symmetric(self, rhs: Array) -> Array:
        degree, xp = self._degree, self.plan.problem.xp
        operator = _Sum(degree, lambda v: self._active * self.product(v, 1))
        solution = cg(
            operator,
            rhs,
            preconditioner=lambda r: r / degree,
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
    """diag(degree) + P."""

    degree: Array
    product: Callable[[Array], Array]

    @property
    def shape(self) -> tuple[int, int]:
        return (self.degree.shape[0], self.degree.shape[0])

    def matvec(self, x: Array, /) -> Array:
        return self.degree * x + self.product(x)


def _inverse(masses: Array) -> Array:
    """Their reciprocals, and 0 for what has underflowed."""
    xp = array_namespace(masses)
    some = masses > 0
    return xp.where(some, 1.0 / xp.where(some, masses, xp.ones_like(masses)), xp.zeros_like(masses))
