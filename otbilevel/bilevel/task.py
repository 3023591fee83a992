"""What a method of `minimize_bilevel` gets, and how it hands its point back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from otbilevel._core.monitor import Monitor
from otbilevel._core.result import Status
from otbilevel.bilevel.problem import BilevelProblem, Library
from otbilevel.bilevel.result import BilevelResult

SETTLED = 1e-2
"""Stationarity, as LV-HBA measures it, up to which the upper level counts as settled."""

ROUNDING = 1e-12
"""Of f, relative to its size."""
STOPPED = {
    Status.ITERATION_LIMIT: "max_iter was reached",
    Status.TIME_LIMIT: "the time limit was reached",
    Status.CALLBACK_STOP: "stopped by the callback",
}
"""What a message says of a run that did not end by itself."""
FAR = 1e6
"""Size of a point, relative to the start, from which on it is taken for one on the way to infinity."""


@dataclass
class Task:
    """A problem, and all that a run of it needs.

    Attributes
    ----------
    problem : BilevelProblem
        The problem.
    start : (n + m,) ndarray
        As given.
    library : Library
        That of the user's arrays.
    tol : float
        Of the lower-level gap.
    monitor : Monitor
        Counts, history, callback, limits.
    rng : numpy.random.Generator
        Draws what is random.
    options : Any
        Settings of the method.
    method : str
        Its name.
    state : dict
        That of a run to go on from; empty at a start.
    projection : callable or None
        The user's projection of (n + m,) vectors on the constraints of both levels.
    notes : list of str
        What the message is to say in addition.
    """

    problem: BilevelProblem
    start: np.ndarray
    library: Library
    tol: float
    monitor: Monitor
    rng: np.random.Generator
    options: Any
    method: str
    state: dict[str, Any] = field(default_factory=dict)
    projection: Any = None
    notes: list[str] = field(default_factory=list)

    def refuse(self, *names: str, variant: str = "") -> None:
        """Raise a ValueError when a function of the user was given that the method has no use for."""
        for name in names:
            if getattr(self.problem, name) is not None:
                msg = f'method="{self.method}"{variant} does not use {name}: leave it out'
                raise ValueError(msg)

    def result(
        self,
        w: np.ndarray,
        *,
        gap: float,
        stationarity: float,
        settled: bool,
        multipliers: np.ndarray,
        penalty: float,
        how: str,
        unit: float = math.inf,
        advice: str = "more iterations",
        state: dict[str, Any] | None = None,
    ) -> BilevelResult:
        """Judge a point by its gap, its violation, and whether the upper level has settled; `unit` is the length of grad f."""
        problem, n = self.problem, self.problem.n
        value, lower, violation = problem.upper.value(w), problem.lower.value(w), problem.violation(w)
        # A tiny f, or one with a large constant, must not make a bad point pass.
        limit = self.tol * min(max(1.0, abs(lower)), unit) + ROUNDING * abs(lower)
        status, words = self.monitor.status or Status.STALLED, ""
        stopped = f"{STOPPED[self.monitor.status]}: " if self.monitor.status in STOPPED else ""
        if violation > 0.1 * self.tol:
            words = f"no point was found that obeys all constraints: they are violated by {violation:.1g}"
            status = self.monitor.status or Status.INFEASIBLE
        elif gap == math.inf:
            status, words = Status.NUMERICAL_FAILURE, "the lower level was not solved: is it bounded, feasible, convex in y?"
        elif gap < -limit:
            words = f"a lower solution lies {-gap:.1g} above this point: f seems not to be convex in y"
            status = Status.NUMERICAL_FAILURE
        elif np.abs(w).max() > FAR * max(1.0, float(np.abs(self.start).max())):
            status, words = Status.STALLED, f"the upper level seems to be unbounded, F has come to {value:.1g}: give bounds"
        elif gap > limit:
            words = f"{stopped}the lower-level gap is {gap:.1g}: try {advice}"
        elif not settled:
            words = f"{stopped}the upper level has not settled: try {advice}"
        else:
            status, words = Status.SUCCESS, f"lower-level gap {max(gap, 0.0):.1g}, violation {violation:.1g}"
        there = self.library.there
        return BilevelResult(
            x=there(w[:n].copy()),
            y=there(w[n:].copy()),
            fun=value,
            lower_fun=lower,
            lower_gap=gap,
            stationarity=stationarity,
            maxcv=violation,
            multipliers=[there(part) for part in problem.lower_rows.split(multipliers)],
            penalty=penalty,
            nit=self.monitor.nit,
            nfev={"upper": problem.upper.nfev, "lower": problem.lower.nfev},
            njev={"upper": problem.upper.njev, "lower": problem.lower.njev},
            state=state or {"x": w[:n].copy(), "y": w[n:].copy()},
            success=status is Status.SUCCESS,
            status=status,
            message="; ".join([words, how, *self.notes]),
            method=self.method,
            history=self.monitor.history,
        )
