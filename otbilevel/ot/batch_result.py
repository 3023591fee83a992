"""The result of `solve_ot_batch`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from otbilevel._core.array import Array
from otbilevel._core.monitor import Monitor
from otbilevel._core.result import Result, Status
from otbilevel.ot.call import Call
from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.problem import OTProblem, make_problem
from otbilevel.ot.result import OTResult, entropic_result
from otbilevel.ot.row_plan import Work

if TYPE_CHECKING:
    from otbilevel.ot.batch import Stack

LARGE_REG = 100.0
"""In units of the cost's range: beyond it the entropy is summed entry by entry, as nothing is left of its parts."""
NAMED = 5
"""How many of the problems that stop short the message names."""


@dataclass(eq=False, repr=False)
class OTBatchResult(Result):
    """What `solve_ot_batch` returns: the fields of `OTResult`, stacked over B problems. ``result[k]`` is problem k alone.

    Attributes
    ----------
    f, g : (B, n), (B, m) arrays
        Potentials in units of the cost, with <a, f> = <b, g> in each problem, finite at zero weights, too.
    plan : (B, n, m) array
        The plans P_ij = a_i b_j exp((f_i + g_j - C_ij) / reg). Computed on first access.
    reg : (B,) array
        Regularisation in use.
    value, value_linear, dual_value : (B,) arrays
        <P, C> + reg KL(P | a b^T); <P, C>; and the dual objective.
    marginal_error : (B,) ndarray
        (||P 1 - a||_1 + ||P' 1 - b||_1) / mass, from a sweep over the plan in full precision.
    nit, nit_newton : (B,) ndarray
        Iterations, and Newton steps among them.
    converged : (B,) ndarray of bool
        Which problems meet the tolerance.
    success : bool
        Whether all do.
    statuses : (B,) ndarray
        The `Status` of each problem.
    status, message
        Of the first that does not, and what it means.
    n_single : int
        How many problems stalled in the batch and were solved again by `solve_ot`.
    """

    marginal_error: np.ndarray
    nit: np.ndarray
    nit_newton: np.ndarray
    converged: np.ndarray
    success: bool
    statuses: np.ndarray
    n_single: int
    status: Status
    message: str
    double_potentials: tuple[Array, Array]
    _figures: np.ndarray
    _stack: Stack
    _summary = ("message", "status", "n_single", "marginal_error", "nit", "f", "g")

    @classmethod
    def of(cls, stack: Stack, f: Array, g: Array, counts: np.ndarray, figures: np.ndarray, max_iter: int) -> OTBatchResult:
        """From what a solver returns: potentials (g with log b in it), counts and figures, see `kernels.cpu.batch`."""
        stalled = np.flatnonzero(counts[:, 0] == Status.STALLED)
        for k in stalled:
            f, g = _solve_again(stack, f, g, counts, figures, int(k), max_iter)
        statuses = counts[:, 0].copy()
        converged = statuses == Status.SUCCESS
        status = Status.SUCCESS if converged.all() else Status(int(statuses[~converged][0]))
        return cls(
            marginal_error=figures[:, 0],
            nit=counts[:, 1],
            nit_newton=counts[:, 2],
            converged=converged,
            success=bool(converged.all()),
            statuses=statuses,
            n_single=len(stalled),
            status=status,
            message=_message(converged, figures[:, 0], stack.tol),
            double_potentials=_public(stack, f, g),
            _figures=figures,
            _stack=stack,
        )

    def __len__(self) -> int:
        return len(self.nit)

    def __getitem__(self, k: int) -> OTResult:
        """The result of problem k, as `solve_ot` gives it, with all that hangs on it."""
        if not isinstance(k, (int, np.integer)) or isinstance(k, bool):
            msg = f"a problem is taken by its number, got {k!r}"
            raise TypeError(msg)
        if not -len(self) <= k < len(self):
            msg = f"there are {len(self)} problems, got number {k}"
            raise IndexError(msg)
        k = int(k) % len(self)
        problem = _problem(self._stack, k)
        f, g = (v[k, :] for v in self.double_potentials)
        xp, half = problem.xp, 0.5 * float(self._stack.reg[k]) * math.log(problem.mass)
        f, g = problem.sources.restrict(f) + half, problem.targets.restrict(g) + half + problem.reg * xp.log(problem.b)
        monitor = Monitor(max_iter=max(1, int(self.nit[k])))
        monitor.nit, monitor.status = int(self.nit[k]), Status(int(self.statuses[k])) or None
        result = entropic_result(problem, f, g, method="sns", monitor=monitor, work=Work(), nit_newton=int(self.nit_newton[k]))
        result.history = {}
        return result

    @property
    def f(self) -> Array:
        """Row potentials, shape (B, n)."""
        return self._stack.xp.astype(self.double_potentials[0], self._stack.dtype)

    @property
    def g(self) -> Array:
        """Column potentials, shape (B, m)."""
        return self._stack.xp.astype(self.double_potentials[1], self._stack.dtype)

    @property
    def reg(self) -> Array:
        """Regularisation in use, shape (B,)."""
        return self._stack.reg

    @cached_property
    def plan(self) -> Array:
        """The plans, shape (B, n, m). O(B n m) time and memory."""
        s, xp, (f, g) = self._stack, self._stack.xp, self.double_potentials
        weights = (s.mass[:, None] * s.a)[:, :, None] * (s.mass[:, None] * s.b)[:, None, :]
        exponents = (f[:, :, None] + g[:, None, :] - xp.astype(s.C, xp.float64)) / s.reg[:, None, None]
        return xp.astype(weights * xp.exp(exponents), s.dtype)

    @cached_property
    def value_linear(self) -> Array:
        """<P, C>, shape (B,)."""
        return self._native(self._mass * self._figures[:, 1])

    @cached_property
    def value(self) -> Array:
        """<P, C> + reg KL(P | a b^T), shape (B,)."""
        mass, reg, (entropy, excess) = self._mass, self._reg, self._entropy
        constant = mass - 1.0 - np.log(mass) * (1.0 + excess)
        return self._native(mass * (self._figures[:, 1] + entropy) + reg * mass * constant)

    @cached_property
    def dual_value(self) -> Array:
        """The dual objective, shape (B,)."""
        s, xp, mass, reg = self._stack, self._stack.xp, self._mass, self._reg
        f, g = self.double_potentials
        unit = np.array([float(v) for v in (xp.sum(s.a * f, axis=1) + xp.sum(s.b * g, axis=1))])
        return self._native(
            mass * (unit + reg * np.log(mass)) - reg * mass * self._entropy[1] + reg * mass * (mass - 1 - np.log(mass))
        )

    @cached_property
    def _entropy(self) -> tuple[np.ndarray, np.ndarray]:
        """reg KL(P | a b^T) and sum P - sum a b^T for unit mass, as `EntropicPlan` has them."""
        reg, (_, linear, potential, excess) = self._reg, self._figures.T
        entropy = potential - linear - reg * excess
        excess = excess.copy()
        for k in np.flatnonzero(reg > LARGE_REG * 8.0 * self._numbers(self._stack.top)):
            entropy[k], excess[k] = self[int(k)]._plan._entropy  # type: ignore[attr-defined]
        return entropy, excess

    @property
    def _mass(self) -> np.ndarray:
        return self._numbers(self._stack.mass)

    @property
    def _reg(self) -> np.ndarray:
        return self._numbers(self._stack.reg)

    @staticmethod
    def _numbers(x: Array) -> np.ndarray:
        return np.array([float(v) for v in x])

    def _native(self, values: np.ndarray) -> Array:
        s = self._stack
        return s.xp.asarray(values, dtype=s.xp.float64, device=s.reg.device)


def _public(stack: Stack, f: Array, g: Array) -> tuple[Array, Array]:
    """Potentials of the public formula for the user's mass, finite at zero weights, too."""
    xp, reg = stack.xp, stack.reg[:, None]
    carries = stack.b > 0
    logs = xp.log(xp.where(carries, stack.b, xp.ones_like(stack.b)))
    g = xp.where(carries, g - reg * logs, xp.zeros_like(g))
    if not bool(xp.all(carries)):
        g = xp.where(carries, g, _soft_columns(stack, f))
    shift = 0.5 * (xp.sum(stack.a * f, axis=1) - xp.sum(stack.b * g, axis=1))[:, None]
    scale = 0.5 * reg * xp.log(stack.mass)[:, None]
    f = xp.where(xp.isfinite(f), f, xp.zeros_like(f) + shift)
    return f - shift - scale, g + shift - scale


def _soft_columns(stack: Stack, f: Array) -> Array:
    """-reg log sum_i a_i exp((f_i - C_ij)/reg); 0 where all pairs are forbidden."""
    xp, reg = stack.xp, stack.reg[:, None, None]
    logs = xp.where(stack.a > 0, xp.log(xp.where(stack.a > 0, stack.a, xp.ones_like(stack.a))), xp.full_like(stack.a, -math.inf))
    f = xp.where(xp.isfinite(f), f, xp.zeros_like(f))
    exponents = logs[:, :, None] + (f[:, :, None] - xp.astype(stack.C, xp.float64)) / reg
    top = xp.max(exponents, axis=1, keepdims=True)
    top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    total = xp.sum(xp.exp(exponents - top), axis=1)
    soft = -stack.reg[:, None] * (top[:, 0, :] + xp.log(xp.where(total > 0, total, xp.ones_like(total))))
    return xp.where(total > 0, soft, xp.zeros_like(soft))


def _problem(stack: Stack, k: int) -> OTProblem:
    cost = DenseCost(stack.C[k if stack.C.shape[0] > 1 else 0, :, :])
    mass = float(stack.mass[k])
    a, b = (stack.xp.astype(mass * w[k, :], stack.xp.float64) for w in (stack.a, stack.b))
    problem = make_problem(a, b, cost, reg=float(stack.reg[k]), tol=stack.tol)
    return replace(problem, dtype=stack.dtype, mass=mass)


def _solve_again(
    stack: Stack, f: Array, g: Array, counts: np.ndarray, figures: np.ndarray, k: int, max_iter: int
) -> tuple[Array, Array]:
    """Let `solve_ot` have problem k; counts and figures are overwritten."""
    xp, problem = stack.xp, _problem(stack, k)
    call = Call.of("sns", max_iter=max_iter, callback=None, progress=False, options=None, raise_on_failure=False)
    result = call.solve(problem, "solve_ot_batch")
    plan = result._plan
    own_f, own_g = plan.f, plan.g
    counts[k] = result.status, counts[k, 1] + result.nit, counts[k, 2] + result.nit_newton
    potential = float(xp.sum(own_f * plan.row_sums)) + float(xp.sum((own_g - problem.reg * xp.log(problem.b)) * plan.column_sums))
    figures[k] = result.marginal_error, plan.linear, potential, float(xp.sum(plan.row_sums)) - 1.0  # type: ignore[attr-defined]
    rows = plan.double_potentials()[0]  # at zero weights: their soft minima, of the same constant once that is moved
    half = 0.5 * problem.reg * math.log(problem.mass)
    drift = float(xp.sum(problem.a * (own_f - problem.sources.restrict(rows) - half)))
    new_f = rows + half + drift
    empty = xp.full((problem.whole.shape[1] - own_g.shape[0],), -math.inf, dtype=xp.float64, device=own_g.device)
    new_g = problem.targets.merge(own_g, empty)
    pick = xp.arange(f.shape[0], device=f.device)[:, None] == k
    return xp.where(pick, new_f[None, :], f), xp.where(pick, new_g[None, :], g)


def _message(converged: np.ndarray, errors: np.ndarray, tol: float) -> str:
    if converged.all():
        return f"converged: all {len(converged)} problems have a marginal error <= tol = {tol:.2g}"
    short = np.flatnonzero(~converged)
    named = ", ".join(map(str, short[:NAMED])) + (", ..." if len(short) > NAMED else "")
    worst = float(np.max(errors[short]))
    return (
        f"not converged: {len(short)} of {len(converged)} problems ({named}) have a marginal error up to {worst:.2g} > tol = {tol:.2g}; "
        "`statuses` says why: raise max_iter, tol or reg"
    )
