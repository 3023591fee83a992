"""Rows over threads: compiled kernels release the interpreter lock, so plain Python threads run them side by side.

Compared with numba's own threads this needs each kernel compiled only once, may be entered from several user threads
at a time, and survives a fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import cache
from itertools import count
from typing import Any

import numpy as np

from otbilevel.ot.kernels.cpu import team

ENTRIES_PER_THREAD = 200_000
"""Below this much work a second thread costs more than it saves: to wake it and wait for its end takes some 100 microseconds."""
ENTRIES_PER_FOLLOWER = 100_000
"""The same for a follower in a team, who is woken once for a batch of products."""


@cache
def available_threads() -> int:
    """``OTBILEVEL_NUM_THREADS``, else ``OMP_NUM_THREADS``, else the cores that this process may use."""
    for variable in ("OTBILEVEL_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(variable, "")
        if value.isdigit() and int(value) > 0:
            return int(value)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool(pid: int) -> ThreadPoolExecutor:  # noqa: ARG001 -- the key: a forked child needs a pool of its own
    return ThreadPoolExecutor(max(1, available_threads() - 1), thread_name_prefix="otbilevel")


def team_parts(n_rows: int, n_entries: int) -> int:
    """Into how many parts the jobs of a team, of that much work each, are shared out."""
    return _parts(n_rows, n_entries, ENTRIES_PER_FOLLOWER)


def _parts(n_rows: int, n_entries: int, least: int) -> int:
    return max(1, min(available_threads(), n_entries // least, n_rows // 8, team.MOST_PARTS))


def shares(n_rows: int, n_parts: int) -> np.ndarray:
    """The first rows of the parts, then `n_rows`. Parts are whole groups of four rows, as the products take them."""
    step = -(-n_rows // (4 * n_parts)) * 4
    return np.array([min(t * step, n_rows) for t in range(n_parts + 1)])


class Team:
    """A leader of jobs of so many parts, and the followers it can have: ``with Team(n_parts) as state``, see `team`."""

    def __init__(self, n_parts: int) -> None:
        self._state = team.new_state()
        if n_parts > team.MOST_PARTS:
            msg = f"a job has at most {team.MOST_PARTS} parts, got {n_parts}"
            raise ValueError(msg)
        self._followers = n_parts - 1

    def __enter__(self) -> np.ndarray:
        if self._followers > 0:
            _compile_follow()
        try:
            for _ in range(self._followers):
                _pool(os.getpid()).submit(team.follow, self._state)
        except RuntimeError:
            pass  # no thread can be started, or none any more: the leader does without
        except BaseException:
            self._state[team.LEADING] = 0
            raise
        return self._state

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._state[team.LEADING] = 0
        if kind is None and self._state[team.FAILED]:
            msg = "a compiled kernel failed, most likely for lack of memory"
            raise MemoryError(msg)

    def __del__(self) -> None:
        self._state[team.LEADING] = 0  # an interrupt between two bytecodes may have passed by `__exit__`


@cache
def _compile_follow() -> None:
    """In the leader's thread: a fork while another one compiles would leave the child with numba's lock."""
    state = team.new_state()
    state[team.LEADING] = 0
    team.follow(state)


def over_rows(
    kernel: Callable[..., Any], n_rows: int, n_entries: int, accumulators: tuple[int, int], *args: Any
) -> tuple[np.ndarray, float]:
    """Run ``kernel(first_row, last_row, sums, *args)`` over all rows, in several threads when there is enough work.

    Parameters
    ----------
    kernel : compiled function
        Works on the rows [first_row, last_row), adds to its own `sums` and returns a number.
    n_rows, n_entries : int
        Rows to share out, and matrix entries that they hold in all.
    accumulators : (k, m)
        Shape of `sums`, which starts as zeros.

    Returns
    -------
    sums : (k, m) ndarray
        The threads' sums added up.
    total : float
        The threads' return values added up.
    """
    n_parts = _parts(n_rows, n_entries, ENTRIES_PER_THREAD)
    if n_parts == 1:
        sums = np.zeros(accumulators)
        return sums, kernel(0, n_rows, sums, *args)
    size = accumulators[0] * accumulators[1]
    padded = np.zeros((n_parts, size + team.PADDING))
    shared = [row[:size].reshape(accumulators) for row in padded]
    bounds, pool = shares(n_rows, n_parts).tolist(), _pool(os.getpid())
    running = [pool.submit(kernel, bounds[t], bounds[t + 1], shared[t], *args) for t in range(1, n_parts)]
    try:
        total = kernel(0, bounds[1], shared[0], *args)
    finally:
        wait(running)  # they write to the caller's arrays
    total += sum(future.result() for future in running)
    return padded.sum(axis=0)[:size].reshape(accumulators), total


CHUNKS_PER_THREAD = 8
"""Of problems: how unevenly they may be spread is not known before."""


def over_problems(kernel: Callable[..., Any], n_problems: int, n_entries: int, *args: Any) -> None:
    """Run ``kernel(first, last, *args)`` over all problems, in several threads when there is enough work: who is done takes on."""
    n_threads = max(1, min(available_threads(), n_entries // ENTRIES_PER_THREAD, n_problems))
    if n_threads == 1:
        kernel(0, n_problems, *args)
        return
    size, chunks = -(-n_problems // (n_threads * CHUNKS_PER_THREAD)), count()

    def work() -> None:
        while (first := size * next(chunks)) < n_problems:  # `next` is atomic
            kernel(first, min(first + size, n_problems), *args)

    helpers: list[Future[None]] = []
    with suppress(RuntimeError):  # no thread can be started, or none any more: this one does it all
        helpers.extend(_pool(os.getpid()).submit(work) for _ in range(n_threads - 1))
    try:
        work()
    finally:
        running = [helper for helper in helpers if not helper.cancel()]  # who has not begun is not waited for
        wait(running)  # they write to the caller's arrays
    for helper in running:
        helper.result()
