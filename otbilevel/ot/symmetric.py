"""Transport of a measure to itself, where f = g: the fixed point of one soft minimum, or of its aprox where marginals have a price.

With T(f)_i = -reg log sum_j a_j exp((f_j - C_ij)/reg) and a symmetric C the potentials solve f = T(f). The derivative of T is minus
a Markov matrix, whose eigenvalues lie in [0, 1] where exp(-C/reg) is positive semi-definite: the averaged iteration
f <- (f + T(f))/2 then halves the error, at any reg (J. Feydy et al., Interpolating between optimal transport and MMD using Sinkhorn
divergences, AISTATS 2019, eq. 25), and Anderson's mixing does better. As C_ii is least, f stays within reg log n of 0: no path in
reg is needed. The aprox (`kernels.aprox`) of a soft minimum multiplies its derivative by s in [0, 1], which only helps: the step is
then (T(f) - f) / (1 + s).
"""

from __future__ import annotations

import math

from otbilevel._core.array import Array, array_namespace, clamp, device
from otbilevel._core.monitor import Monitor
from otbilevel.ot import sns
from otbilevel.ot.newton import UNCERTAIN
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.result import OTResult
from otbilevel.ot.row_plan import RowPlan
from otbilevel.ot.run import Run
from otbilevel.ot.start import Start

DEPTH = 6
"""Differences that Anderson's mixing keeps."""
MOST = 100
"""Iterations after which the general method takes over; a dozen do where exp(-C/reg) is positive semi-definite."""
MOST_AVERAGED = 60
"""Plain averaged iterations in one call; they halve the error at least where exp(-C/reg) is positive semi-definite."""
SINGLE_UNTIL = 1e-5
"""Error down to which single precision does."""
SLOW = 0.7
"""Reduction of the error short of which single precision is given up: what it has to give may be exhausted."""
RISE = 3.0
"""Growth of the error over the least one at which the mixing starts afresh from there."""
LARGEST_EXPONENT = 700.0
"""Beyond it a start is far off, by whatever measure."""
RIDGE = 1e-12
"""Added to the normal equations of the mixing, whose diagonal is 1."""


def solve_symmetric(problem: OTProblem, memory: float, monitor: Monitor) -> OTResult:
    """Solve a problem with a = b and a symmetric cost; the potentials are equal.

    Where mixing fails, as it may without a positive semi-definite kernel, `sns` goes on from there.
    """
    run, small = Run(problem, monitor, memory), sns.is_small(problem)
    plan, side = run.make_plan(single=not small), _Side(problem)
    f = side.admissible(problem.xp.zeros_like(problem.a) if problem.start is None else problem.start.g)
    if small and not monitor.watched:
        f = _in_one_call(plan, side, run, f)
        if run.best_error <= problem.tol or run.stopped:
            return run.finish("symmetric")
    mixing, least, single = _Mixing(problem.a), math.inf, problem.start is None and not small
    for _ in range(MOST):
        _move(plan, f + side.log_weights, run, single=single)
        step, error = side.step(f, plan.row_potentials())
        if not single and (error < run.best_error or run.best is None):
            run.best_error, run.best = error, (f + step, f + step + side.log_weights)
        go_on = run.record(f + step, f + step + side.log_weights, error, problem.reg)
        converged = error <= problem.tol
        if (converged and not single) or not go_on:
            break
        if not error <= RISE * least:
            restart = mixing.restart()
            if restart is None:
                break
            f = side.admissible(restart)
            continue
        goes_on = max(SINGLE_UNTIL, problem.tol) < error <= SLOW * least
        least = math.inf if single and not goes_on else min(least, error)  # errors in double precision may turn out larger
        single = single and goes_on
        f = side.admissible(mixing.next(f, step))
    if run.best is None:
        run.best = (f, f + side.log_weights)
    if not run.best_error <= problem.tol and not run.stopped:
        return _generally(problem, run)
    return run.finish("symmetric")


def _in_one_call(plan: RowPlan, side: _Side, run: Run, f: Array) -> Array:
    """Plain averaged iterations on a small plan, as long as they converge as they promise; where they lead."""
    problem = run.problem
    plan.sweep(f + side.log_weights, problem.reg)
    found = plan.averaged_passes(f, tol=problem.tol, count=min(MOST_AVERAGED, run.monitor.left))
    if found is None:
        return f
    f, step, errors = found
    run.record_passes(plan, errors)
    run.best_error, run.best = errors[-1], (f + step, f + step + side.log_weights)
    return f + step


class _Side:
    """Weights, and what it costs to miss them."""

    def __init__(self, problem: OTProblem) -> None:
        self._problem = problem
        self.log_weights = problem.reg * problem.xp.log(problem.column_weights)

    def admissible(self, f: Array) -> Array:
        """The admissible potential nearest to f."""
        marginals, reg = self._problem.marginals, self._problem.reg
        return f if marginals is None else marginals.project(f + self.log_weights, reg) - self.log_weights

    def step(self, f: Array, soft: Array) -> tuple[Array, float]:
        """From f with these soft minima towards the fixed point, and the L1 error of both marginals at f."""
        p, xp = self._problem, self._problem.xp
        if p.marginals is None:
            step = 0.5 * (soft - f)
            return step, 2.0 * float(
                xp.sum(p.a * xp.abs(xp.expm1(clamp(-2.0 * step / p.reg, -LARGEST_EXPONENT, LARGEST_EXPONENT))))
            )
        step = (p.marginals.row_potentials(soft, p.reg) - f) / (1.0 + p.marginals.row_response(soft, p.reg))
        sums = p.a * xp.exp(clamp((f - soft) / p.reg, -LARGEST_EXPONENT, LARGEST_EXPONENT))
        return step, 2.0 * float(xp.sum(xp.abs(sums - p.marginals.rows.prescribed(f, p.a, sums, p.reg))))


def _move(plan: RowPlan, g: Array, run: Run, *, single: bool) -> None:
    """By products with the stored plan where they are accurate enough; they take a fraction of a sweep."""
    if plan.work.sweeps == 0 or not (single or plan.shift(g, UNCERTAIN * run.problem.tol)):
        plan.sweep(g, run.problem.reg, single=single)
    elif single:
        plan.move(g, single=True)


def _generally(problem: OTProblem, run: Run) -> OTResult:
    """By `sns` from the best potentials."""
    assert run.best is not None
    start = Start(run.best[0], problem.reg)
    run.problem = OTProblem(**{**vars(problem), "start": start})
    return sns.solve_robust(sns.SNSOptions(memory=run.memory), run)


class _Mixing:
    """Anderson's mixing of the last steps, in the inner product that the weights define.

    With dF, dG the differences of steps and of images x + step it is image - dG argmin |step - dF t|.
    """

    def __init__(self, weights: Array) -> None:
        self._xp = array_namespace(weights)
        self._roots = self._xp.sqrt(weights)
        self.restart()

    def restart(self) -> Array | None:
        """Forget everything; return the plain step from the best point, None when there was none since the last time."""
        best = getattr(self, "_target", None)
        self._steps: list[Array] = []
        self._images: list[Array] = []
        self._least, self._target = math.inf, None
        return best

    def next(self, x: Array, step: Array) -> Array:
        """Where to go from x."""
        weighted, image, xp = self._roots * step, x + step, self._xp
        size = float(xp.vecdot(weighted, weighted))
        if size < self._least:
            self._least, self._target = size, image
        self._steps, self._images = [*self._steps, weighted][-DEPTH - 1 :], [*self._images, image][-DEPTH - 1 :]
        if len(self._steps) == 1:
            return image
        steps = xp.stack(self._steps[1:]) - xp.stack(self._steps[:-1])
        # Normal equations will do: they are few, and well scaled once the differences have length 1.
        lengths = xp.linalg.vector_norm(steps, axis=1, keepdims=True)
        lengths = xp.where(lengths > 0, lengths, xp.ones_like(lengths))
        steps = steps / lengths
        gram = steps @ steps.T + RIDGE * xp.eye(steps.shape[0], dtype=x.dtype, device=device(x))
        t = xp.linalg.solve(gram, (steps @ weighted)[:, None])[:, 0] / lengths[:, 0]
        return image - t @ (xp.stack(self._images[1:]) - xp.stack(self._images[:-1]))
