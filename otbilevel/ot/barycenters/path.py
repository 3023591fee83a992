"""Solvers along a path in reg: one kernel for all inputs as long as its entries can be stored, plans of their own below."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from otbilevel._core.array import Array
from otbilevel._core.monitor import Monitor
from otbilevel.ot.barycenters.anderson import accelerate
from otbilevel.ot.barycenters.grids import GridStack
from otbilevel.ot.barycenters.newton import newton
from otbilevel.ot.barycenters.problem import BarycenterProblem
from otbilevel.ot.barycenters.rows import RowStack
from otbilevel.ot.barycenters.shared import WIDEST, SharedStack
from otbilevel.ot.barycenters.stack import Best, PlanStack, Point

ENTRY = 300.0
"""Range of C / reg at which a path begins: one kernel serves all inputs there."""
ROWS_ENTRY = 30.0
"""The same where each input has a kernel of its own."""


@dataclass(frozen=True)
class Schedule:
    """How tightly the path is followed.

    Attributes
    ----------
    step : float
        Factor by which reg falls.
    error : float
        Error at which a level is left.
    """

    step: float
    error: float


SCHEDULES = (Schedule(4.0, 1e-2), Schedule(1.5, 1e-5))
"""The second is for runs that stalled."""


def active_weights(problem: BarycenterProblem) -> Array:
    """Barycentric coordinates as an array like the others."""
    return problem.xp.asarray(problem.weights, dtype=problem.xp.float64, device=problem.device)


def follow_path(problem: BarycenterProblem, schedule: Schedule, start: Point | None, monitor: Monitor) -> tuple[PlanStack, Best]:
    """Solve at falling values of reg down to the problem's, each from the solutions before; return the best at the last one."""
    xp, w = problem.xp, active_weights(problem)
    zeros = xp.zeros((len(problem.inputs), problem.size), dtype=xp.float64, device=problem.device)
    point, best = start or Point(zeros, zeros[0, :]), Best()
    solved: list[tuple[float, Point]] = []
    stack: PlanStack | None = None
    for reg in [problem.reg] if start is not None else _levels(problem, schedule.step):
        point = _guess(solved, reg) if solved else point
        if isinstance(stack, (RowStack, GridStack)):
            stack.lower(reg)
        else:
            stack, previous = _stack(problem, reg), stack
            stack.passes = 0 if previous is None else previous.passes
        tol, best = (problem.tol if reg == problem.reg else max(schedule.error, problem.tol)), Best()
        if problem.debias:
            accelerate(stack, w, point, tol, monitor, best)
        else:
            newton(stack, w, point.scalings, tol, monitor, best)
        solved.append((reg, best.point or point))
        if monitor.stopped:
            break
    assert stack is not None
    if solved[-1][0] != problem.reg or best.point is None:  # stopped on the way: what is known is a guess
        stack, best = _stack(problem, problem.reg), Best(point=_guess(solved, problem.reg))
    return stack, best


def _levels(problem: BarycenterProblem, step: float) -> Iterator[float]:
    """Values of reg, the problem's last."""
    low, high = problem.bounds
    if (high - low) / problem.reg > (WIDEST if problem.shared else ROWS_ENTRY):
        reg = (high - low) / (ENTRY if problem.shared else ROWS_ENTRY)
        while reg > 1.5 * problem.reg:
            yield reg
            reg /= step
    yield problem.reg


def _stack(problem: BarycenterProblem, reg: float) -> PlanStack:
    low, high = problem.bounds
    if problem.shared and (high - low) / reg <= WIDEST:
        return SharedStack(problem, reg)
    return GridStack(problem, reg) if problem.grids else RowStack(problem, reg)


def _guess(solved: list[tuple[float, Point]], reg: float) -> Point:
    """Potentials tend to those of unregularised transport at a rate of reg: linear in it through the last two solutions."""
    (above, point), *earlier = reversed(solved)
    guess = point.at(above / reg)
    if not earlier or above == reg:
        return guess
    before, other = earlier[0][0], earlier[0][1].at(earlier[0][0] / reg)
    slope = (reg - above) / (above - before)
    return Point(guess.scalings + slope * (guess.scalings - other.scalings), guess.h + slope * (guess.h - other.h))
