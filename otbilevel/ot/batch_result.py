"""The result of `solve_ot_batch`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from otbilevel._core.array import Array, device, in_host_memory
from otbilevel._core.monitor import Monitor
from otbilevel._core.result import Result, Status
from otbilevel.ot.call import Call
from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.plan import EntropicPlan
from otbilevel.ot.problem import OTProblem, make_problem
from otbilevel.ot.result import UNPROVED, OTResult, entropic_result
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
    marginal_error : (B,) array
        (||P 1 - a||_1 + ||P' 1 - b||_1) / mass, from a sweep over the plan in full precision.
    nit, nit_newton : (B,) arrays
        Iterations, and Newton steps among them.
    converged : (B,) array of bool
        Which problems meet the tolerance.
    success : bool
        Whether all do.
    statuses : (B,) array
        The `Status` of each problem.
    status, message
        Of the first that does not, and what it means.
    n_single : int
        How many problems stalled in the batch and were solved again by `solve_ot`.
    """

    marginal_error: Array
    nit: Array
    nit_newton: Array
    converged: Array
    success: bool
    statuses: Array
    n_single: int
    status: Status
    message: str
    _found: tuple[Array, Array]
    _figures: Array
    _stack: Stack
    _summary = ("message", "status", "n_single", "marginal_error", "nit", "f", "g")

    @classmethod
    def of(cls, stack: Stack, f: Array, g: Array, counts: Array, figures: Array, max_iter: int) -> OTBatchResult:
        """From what a solver returns: potentials (g with log b in it), counts and figures, see `kernels.cpu.batch`."""
        xp, stalled = stack.xp, _places(stack.xp, counts[:, 0] == int(Status.STALLED))
        for k in stalled:
            f, g, counts, figures = _solve_again(stack, (f, g, counts, figures), k, max_iter)
        converged = counts[:, 0] == int(Status.SUCCESS)
        short = _places(xp, ~converged)
        return cls(
            marginal_error=figures[:, 0],
            nit=counts[:, 1],
            nit_newton=counts[:, 2],
            converged=converged,
            success=not short,
            statuses=counts[:, 0],
            n_single=len(stalled),
            status=Status(int(counts[short[0], 0])) if short else Status.SUCCESS,
            message=_message(short, f.shape[0], float(xp.max(figures[:, 0])), stack.tol) + _caution(stack, short),
            _found=(f if bool(xp.all(xp.isfinite(f))) else xp.where(xp.isfinite(f), f, xp.zeros_like(f)), g),
            _figures=figures,
            _stack=stack,
        )

    def __len__(self) -> int:
        return int(self.nit.shape[0])

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
        f, g = (v[k, :] for v in self._potentials)
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
        return self._stack.xp.astype(self._potentials[0], self._stack.dtype)

    @property
    def g(self) -> Array:
        """Column potentials, shape (B, m)."""
        return self._stack.xp.astype(self._potentials[1], self._stack.dtype)

    @property
    def reg(self) -> Array:
        """Regularisation in use, shape (B,)."""
        return self._stack.reg

    @cached_property
    def plan(self) -> Array:
        """The plans, shape (B, n, m). O(B n m) time and memory."""
        s = self._stack
        return s.kernels.plans(s.C, *self._found, s.reg, s.mass[:, None] * s.a, s.dtype)

    @cached_property
    def value_linear(self) -> Array:
        """<P, C>, shape (B,)."""
        return self._stack.mass * self._figures[:, 1]

    @cached_property
    def value(self) -> Array:
        """<P, C> + reg KL(P | a b^T), shape (B,)."""
        mass, reg, (entropy, excess) = self._stack.mass, self._stack.reg, self._entropy
        constant = mass - 1.0 - self._stack.xp.log(mass) * (1.0 + excess)
        return mass * (self._figures[:, 1] + entropy) + reg * mass * constant

    @cached_property
    def dual_value(self) -> Array:
        """The dual objective, shape (B,)."""
        s, xp, (f, g) = self._stack, self._stack.xp, self._potentials
        potentials = xp.sum(s.a * f, axis=1) + xp.sum(s.b * g, axis=1)
        return s.mass * potentials - s.reg * s.mass * (1.0 + self._entropy[1] - s.mass)

    @cached_property
    def _potentials(self) -> tuple[Array, Array]:
        """f and g in double precision."""
        return _public(self._stack, *self._found)

    @cached_property
    def _entropy(self) -> tuple[Array, Array]:
        """reg KL(P | a b^T) and sum P - sum a b^T for unit mass, as `EntropicPlan` has them."""
        xp, reg, figures = self._stack.xp, self._stack.reg, self._figures
        excess = figures[:, 3]
        entropy = figures[:, 2] - figures[:, 1] - reg * excess
        for k in _places(xp, reg > LARGE_REG * self._stack.range):
            plan = self[k]._plan
            assert isinstance(plan, EntropicPlan)
            pick = _pick(xp, reg, k)
            entropy, excess = (xp.where(pick, new, old) for new, old in zip(plan._entropy, (entropy, excess), strict=True))
        return entropy, excess


def _places(xp: ModuleType, mask: Array) -> list[int]:
    """Where a mask (B,) is true; a look at every problem only if it is somewhere."""
    return [k for k in range(mask.shape[0]) if bool(mask[k])] if bool(xp.any(mask)) else []


def _pick(xp: ModuleType, like: Array, k: int) -> Array:
    """The mask (B,) of problem k."""
    return xp.arange(like.shape[0], device=device(like)) == k


def _public(stack: Stack, f: Array, g: Array) -> tuple[Array, Array]:
    """Potentials of the public formula for the user's mass, finite at zero weights, too."""
    xp, reg = stack.xp, stack.reg[:, None]
    carries = stack.b > 0
    if bool(xp.all(carries)):
        g = g - reg * xp.log(stack.b)
    else:
        g = xp.where(carries, g - reg * xp.log(xp.where(carries, stack.b, xp.ones_like(stack.b))), _soft_columns(stack, f))
    shift = 0.5 * (xp.sum(stack.a * f, axis=1) - xp.sum(stack.b * g, axis=1))[:, None]
    scale = 0.5 * reg * xp.log(stack.mass)[:, None]
    return f - shift - scale, g + shift - scale


def _soft_columns(stack: Stack, f: Array) -> Array:
    """-reg log sum_i a_i exp((f_i - C_ij)/reg); 0 where all pairs are forbidden."""
    xp, reg = stack.xp, stack.reg[:, None, None]
    logs = xp.where(stack.a > 0, xp.log(xp.where(stack.a > 0, stack.a, xp.ones_like(stack.a))), xp.full_like(stack.a, -math.inf))
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


def _solve_again(stack: Stack, state: tuple[Array, ...], k: int, max_iter: int) -> tuple[Array, ...]:
    """Let `solve_ot` have problem k: f, g, counts and figures with what it found."""
    xp, problem = stack.xp, _problem(stack, k)
    f, _, counts, figures = state
    call = Call.of("sns", max_iter=max_iter, callback=None, progress=False, options=None, raise_on_failure=False)
    result = call.solve(problem, "solve_ot_batch")
    plan = result._plan
    assert isinstance(plan, EntropicPlan)
    potential = float(xp.sum(plan.f * plan.row_sums))
    potential += float(xp.sum((plan.g - problem.reg * xp.log(problem.b)) * plan.column_sums))
    found = [result.marginal_error, plan.linear, potential, float(xp.sum(plan.row_sums)) - 1.0]
    numbers = [int(result.status), int(counts[k, 1]) + result.nit, int(counts[k, 2]) + result.nit_newton]
    # Rows of zero weight get their soft minima, moved by the constant that the public potentials differ by.
    rows = plan.double_potentials()[0]
    rows = rows + float(xp.sum(problem.a * (plan.f - problem.sources.restrict(rows))))
    empty = xp.full((problem.whole.shape[1] - plan.g.shape[0],), -math.inf, dtype=xp.float64, device=device(plan.g))
    columns = problem.targets.merge(plan.g, empty)
    new = (
        rows,
        columns,
        xp.asarray(numbers, dtype=counts.dtype, device=device(counts)),
        xp.asarray(found, dtype=figures.dtype, device=device(figures)),
    )
    pick = _pick(xp, f, k)[:, None]
    return tuple(xp.where(pick, one[None, :], old) for one, old in zip(new, state, strict=True))


def _caution(stack: Stack, short: list[int]) -> str:
    """What else a failure may come from."""
    unproved = short and not in_host_memory(stack.a) and bool(stack.xp.any(stack.xp.isinf(stack.C)))
    return UNPROVED if unproved else ""


def _message(short: list[int], count: int, worst: float, tol: float) -> str:
    if not short:
        return f"converged: all {count} problems have a marginal error <= tol = {tol:.2g}"
    named = ", ".join(map(str, short[:NAMED])) + (", ..." if len(short) > NAMED else "")
    return (
        f"not converged: {len(short)} of {count} problems ({named}) have a marginal error up to {worst:.2g} > tol = {tol:.2g}; "
        "`statuses` says why: raise max_iter, tol or reg"
    )
