"""Where the path of `sns` begins: at the top of the cost's range, or further down where potentials are known."""

from __future__ import annotations

import math
from typing import NamedTuple

from otbilevel._core.array import Array
from otbilevel.ot.newton import TooFarError
from otbilevel.ot.row_plan import RowPlan
from otbilevel.ot.run import Run
from otbilevel.ot.start import Start

USABLE = 0.5
"""Marginal error up to which a start is worth more than the levels of the path that it saves."""
FIRST_STEP = 2.0
"""Factor by which reg falls first from a start for a larger reg: with one solution there is nothing yet to extrapolate from."""
FEWEST = 2.0
"""A path to a target within this factor of its start has one level."""


class Entry(NamedTuple):
    """A level of the path at which the plan has been swept: its reg, g there, and reg and g of the level above, if known."""

    reg: float
    g: Array
    above: tuple[float, Array] | None = None


def enter(plan: RowPlan, run: Run, start: Start | None, easy: float) -> Entry:
    """Sweep `plan` where the path begins: without a start at the top, else at the target, or a level below the start's larger reg.

    Raises
    ------
    TooFarError
        When the sweep shows a large error. The path then had better begin at the top, not in between: the levels that a better
        choice could save are the cheap ones.
    """
    problem, (low, high) = run.problem, run.problem.geometry.bounds
    if start is None:
        top = (high - low) / 8
        top = top if top > FEWEST * problem.reg else problem.reg
        top = problem.reg * 2.0 ** round(math.log2(top / problem.reg))  # levels are then reached by squaring entries
        plan.restart(problem.xp.full_like(problem.a, low))  # the row sums of the first level are then of a good size
        plan.preconditioner = None  # what was learnt at the target would mislead here
        g = problem.zero_potential(top)
        plan.sweep(g, top, single=True)
        return Entry(top, g)
    reg, above = problem.reg, None
    if start.reg is not None and start.reg > reg:
        reg = max(start.reg / (FIRST_STEP if start.before is None else easy), reg)
        above = start.reg, start.column_potential(problem.column_weights, start.reg)
    g = start.column_potential(problem.column_weights, reg)
    # Only where it may be the solution is double precision worth its time.
    plan.sweep(g, reg, single=start.reg not in (None, reg))
    if not run.error(plan) <= USABLE:
        run.offer(plan)
        raise TooFarError
    return Entry(reg, g, above)
