"""Solutions for several values of the regularisation, each from those before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from otbilevel._core import validate
from otbilevel._core.monitor import Callback, Monitor
from otbilevel._core.result import Status, report
from otbilevel.ot.call import Call, price, regularisation, tolerance
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.init import make_start
from otbilevel.ot.partial_mass import PartialMass
from otbilevel.ot.plan import EntropicPlan
from otbilevel.ot.problem import OTProblem, make_geometry, make_problem
from otbilevel.ot.result import OTResult
from otbilevel.ot.run import Run
from otbilevel.ot.start import LONGEST_EXTRAPOLATION, Start
from otbilevel.ot.stored_plan import Room


def reg_path(
    a: Any,
    b: Any,
    C: Any,  # noqa: N803 -- the field's name for the cost
    regs: Iterable[float],
    *,
    method: str = "auto",
    unbalanced: Any = None,
    tol: float | None = None,
    max_iter: int | None = None,
    init: Any = None,
    callback: Callback | None = None,
    progress: bool = False,
    options: Mapping[str, Any] | None = None,
    raise_on_failure: bool = False,
) -> list[OTResult]:
    """Solve one problem of entropic transport for several values of reg, each from the solutions before.

    Parameters
    ----------
    a, b, C
        The problem, as `solve_ot` takes it.
    regs : iterable of float
        Values of the regularisation, in any order; one that occurs twice is solved once.
    method : {"auto", "sns", "sinkhorn"}
        The algorithm, as in `solve_ot`.
    unbalanced : float, penalty or pair, optional
        As in `solve_ot`, but no `PartialMass`.
    tol, max_iter, progress, options
        As in `solve_ot`, for each value: so are the limits of iterations and time.
    init : OTResult or tuple, optional
        Where the largest value starts, as in `solve_ot`.
    callback : callable, optional
        As in `solve_ot`; `reg` tells the value or the level above it. Raising `StopIteration` ends the whole path: results of the
        values that are left hold the potentials that they would have started from, and the status ``CALLBACK_STOP``.
    raise_on_failure : bool
        Raise `ConvergenceError` at the first value that does not meet the tolerance, instead of warning for each.

    Returns
    -------
    list of OTResult
        The results, in the order of `regs`.

    Raises
    ------
    ValueError, TypeError, ConvergenceError
        As `solve_ot` does.

    Warns
    -----
    ConvergenceWarning
        For each value that does not meet the tolerance.

    Notes
    -----
    Values are solved from the largest to the smallest. Each starts from the potentials before, extrapolated linearly in reg. The
    problem is checked once, and all share the memory for the plan. A result costs at least two sweeps: one that finds the
    potentials good enough, and one that certifies them.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.ot import reg_path
    >>> C = np.random.default_rng(0).random((50, 40))
    >>> results = reg_path(None, None, C, [0.001, 0.1, 0.01])
    >>> [result.reg for result in results], all(result.success for result in results)
    ([0.001, 0.1, 0.01], True)
    >>> small, large, middle = (result.value_linear for result in results)
    >>> small < middle < large
    True
    """
    call = Call.of(
        method, max_iter=max_iter, callback=callback, progress=progress, options=options, raise_on_failure=raise_on_failure
    )
    if method == "exact":
        msg = 'method="exact" is unregularised and has no path in reg: choose another method, or use solve_ot'
        raise ValueError(msg)
    geometry = make_geometry(C)
    strengths = _strengths(regs, method, geometry)
    if isinstance(unbalanced, PartialMass):
        msg = "unbalanced=PartialMass(...) has no path in reg: use solve_ot for each value"
        raise ValueError(msg)
    penalties = price(unbalanced, call)
    problem = make_problem(a, b, geometry, reg=max(strengths), tol=tolerance(tol), penalties=penalties)
    problem = replace(problem, start=make_start(init, problem), room=Room())
    solved: dict[float, OTResult] = {}
    known: list[Start] = []
    stopped = False
    for reg in sorted(set(strengths), reverse=True):
        problem = replace(problem, reg=reg, start=_start(known, reg) or problem.start)
        result = (
            _unsolved(problem, method, call.settings.memory) if stopped else call.solve(problem, f"reg_path[{method}] reg={reg:g}")
        )
        solved[reg] = report(result, raise_on_failure=call.raise_on_failure)
        stopped = result.status is Status.CALLBACK_STOP
        known.append(_solution(result))
    return [solved[reg] for reg in strengths]


def _strengths(regs: Any, method: str, geometry: Geometry) -> list[float]:
    if isinstance(regs, (str, bytes)) or not isinstance(regs, Iterable) or getattr(regs, "ndim", 1) == 0:
        msg = f"regs must be a list of numbers, got {type(regs).__name__}: for one value use solve_ot(..., reg=...)"
        raise TypeError(msg)
    # `regularisation` would take None for the default.
    numbers = [validate.real(reg, f"regs[{k}]") for k, reg in enumerate(regs)]
    strengths = [regularisation(reg, method, geometry, f"regs[{k}]") for k, reg in enumerate(numbers)]
    if not strengths:
        msg = "regs is empty: give at least one value"
        raise ValueError(msg)
    return strengths


def _solution(result: OTResult) -> Start:
    plan = result._plan
    assert isinstance(plan, EntropicPlan)
    return Start(plan.unit_potentials[1], result.reg if result.success else None)


def _start(known: list[Start], reg: float) -> Start | None:
    """The last potentials, and the last ones before that are far enough away to extrapolate from."""
    if not known:
        return None
    last, before = known[-1], None
    if last.reg is not None:
        longest = LONGEST_EXTRAPOLATION * (1 - 1e-12)
        far = (one for one in reversed(known[:-1]) if one.reg is not None and last.reg - reg <= longest * (one.reg - last.reg))
        before = next(far, None)
    return replace(last, before=before)


def _unsolved(problem: OTProblem, method: str, memory: float) -> OTResult:
    """The result at the start, for a value that is not reached after the callback asked to stop."""
    monitor = Monitor(max_iter=1)
    monitor.status = Status.CALLBACK_STOP
    run = Run(problem, monitor, memory)
    plan = run.make_plan(single=method != "sinkhorn")
    plan.sweep(run.first_potential(), problem.reg)
    run.offer(plan)
    return run.finish(method)
