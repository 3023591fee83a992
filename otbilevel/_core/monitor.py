"""The monitor of a run: the one place for iteration counts, history, callback, progress bar, time limit and stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tqdm.auto import tqdm

from otbilevel._core.result import Status

Callback = Callable[[Any], object]


class Monitor:
    """Watches a solver that reports the figures of each iteration.

    Parameters
    ----------
    max_iter : int
        Iterations after which `record` says stop.
    time_limit : float, optional
        Seconds of wall time after which `record` says stop, counted from the creation of the monitor.
    callback : callable, optional
        Called as ``callback(intermediate_result)`` after every iteration. Raising `StopIteration` stops the run.
    progress : bool
        Show a progress bar on stderr.
    description : str
        The label of the bar.

    Attributes
    ----------
    nit : int
        Iterations recorded so far.
    history : dict of list
        For every figure its value at each iteration, and under ``"seconds"`` the time since the start.
    status : Status or None
        Why the run must stop, None while it may go on.
    """

    def __init__(
        self,
        *,
        max_iter: int,
        time_limit: float | None = None,
        callback: Callback | None = None,
        progress: bool = False,
        description: str = "",
    ) -> None:
        self.max_iter = max_iter
        self.time_limit = math.inf if time_limit is None else time_limit
        self.callback = callback
        self.nit = 0
        self.history: dict[str, list[float]] = {"seconds": []}
        self.status: Status | None = None
        self._start = time.perf_counter()
        self._bar = tqdm(desc=description, unit="it") if progress else None  # even a disabled one starts a thread

    @property
    def stopped(self) -> bool:
        """Whether the run must stop."""
        return self.status is not None

    @property
    def watched(self) -> bool:
        """Whether each iteration matters as it comes: to a callback, a progress bar or a time limit."""
        return self.callback is not None or self._bar is not None or self.time_limit < math.inf

    @property
    def left(self) -> int:
        """How many iterations there may still be."""
        return self.max_iter - self.nit

    @property
    def seconds(self) -> float:
        """Wall time since the start."""
        return time.perf_counter() - self._start

    def overdue(self) -> bool:
        """Whether the time limit has passed; for inner loops too short to be recorded."""
        return self.seconds > self.time_limit

    def record(self, iterate: Callable[[], dict[str, Any]] | None = None, **figures: float) -> bool:
        """Take the figures of one iteration; return whether the solver may go on.

        Parameters
        ----------
        iterate : callable, optional
            Gives the iterate as a dict; called only when there is a callback, whose argument gets these fields too.
        **figures : float
            Scalars that describe the iteration. One that is NaN stops the run.
        """
        self.nit += 1
        self.history["seconds"].append(self.seconds)
        for name, value in figures.items():
            self.history.setdefault(name, []).append(value)
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.2e}" for name, value in figures.items()}, refresh=False)
            self._bar.update()
        if any(math.isnan(value) for value in figures.values()):
            self.status = Status.NOT_FINITE
        elif self.nit >= self.max_iter:
            self.status = Status.ITERATION_LIMIT
        elif self.overdue():
            self.status = Status.TIME_LIMIT
        if self.callback is not None:
            try:
                self.callback(SimpleNamespace(nit=self.nit, **figures, **(iterate() if iterate else {})))
            except StopIteration:
                self.status = Status.CALLBACK_STOP
        return not self.stopped

    def close(self) -> None:
        """Finish the progress bar."""
        if self._bar is not None:
            self._bar.close()
