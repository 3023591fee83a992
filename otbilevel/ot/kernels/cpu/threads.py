"""Rows over threads: compiled kernels release the interpreter lock, so plain Python threads run them side by side.

Compared with numba's own threads this needs each kernel compiled only once, may be entered from several user threads
at a time, and survives a fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

ENTRIES_PER_THREAD = 200_000
"""Below this much work a second thread costs more than it saves: waking it takes some 50 microseconds."""


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
    return ThreadPoolExecutor(available_threads() - 1, thread_name_prefix="otbilevel")


def parts(n_rows: int, n_entries: int) -> int:
    """Into how many threads that much work is shared out."""
    return max(1, min(available_threads(), n_entries // ENTRIES_PER_THREAD, n_rows // 8))


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
    n_parts = parts(n_rows, n_entries)
    sums = np.zeros((n_parts, *accumulators))
    if n_parts == 1:
        return sums[0], kernel(0, n_rows, sums[0], *args)
    step = -(-n_rows // (4 * n_parts)) * 4  # whole groups of four rows, as the products take them
    bounds = [(min(t * step, n_rows), min((t + 1) * step, n_rows)) for t in range(n_parts)]
    pool = _pool(os.getpid())
    running = [pool.submit(kernel, low, high, sums[t], *args) for t, (low, high) in enumerate(bounds) if t > 0]
    total = kernel(*bounds[0], sums[0], *args)
    total += sum(future.result() for future in running)
    return sums.sum(axis=0), total
