"""Sinkhorn's iterations in a queue: the host looks at its end only, at the errors of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from otbilevel._core.array import Array
from otbilevel.ot.kernels.aprox import RIGID, Aprox
from otbilevel.ot.kernels.cuda.device import empty, launch, read
from otbilevel.ot.kernels.cuda.vectors import one_block

OUT_OF_REACH = 2.0
"""What the state says where the next scaling may not go that far, see vectors.cu."""


class Rows(NamedTuple):
    """What a pass changes of the rows, unless `done` holds another number than 0: their scalings and their errors."""

    u: Array
    errors: Array
    done: Array


Pass = Callable[[Array, Rows, float], Array]
"""Partial sums of K'(a u) after u <- 1 / (K v), from v, what it changes, and the relaxation."""
Queue = tuple[Array, Array, Array, Array, list[float], float, bool]
"""What `scaling_passes` returns."""


def run_queue(
    one_pass: Pass,
    u: Array,
    log_v: Array,
    b: Array,
    log_b: Array,
    *,
    count: int,
    tol: float,
    relaxation: float,
    half_step: tuple[float, float],
    reach: tuple[float, float],
) -> Queue:
    """Up to `count` iterations, the first of them to `log_v`: until the error is at most `tol`, or the next one is out of reach.

    `half_step` holds the least sum and the longest step of `log_ratio`, `reach` the largest spread and size of log v. What is
    queued beyond the end does nothing, so nothing has to be undone.

    Returns u, log v and the column sums where the last iteration led, log v for the next one, all errors, the share of the rows in
    the last one, and whether the next one is within reach.
    """
    n, m = u.shape[0], b.shape[0]
    log_v, state = log_v.copy(), empty(3 + count)
    rows, (v, at, sums) = Rows(u.copy(), empty(n), state), empty((3, m))
    launch("vectors", "scaling_start", *one_block(m), log_v, m, *reach, v, state)
    rule = float(relaxation), float(tol), *half_step, *reach
    for _ in range(count):
        parts = one_pass(v, rows, relaxation)
        launch("vectors", "scaling_sums", (-(-m // 32),), (32, 8), parts, parts.shape[0], m, v, state, sums)
        launch("vectors", "scaling_step", *one_block(m), sums, b, log_b, rows.errors, n, m, *rule, log_v, at, v, state)
    done, steps, row_error, *figures = read(state)
    return rows.u, at, sums, log_v, figures[: int(steps)], row_error, done != OUT_OF_REACH


def finish_scaling(
    sums: Array,
    a: Array,
    rows: Rows,
    relaxation: float,
    f: Array | None,
    reg: float,
    aprox: Aprox = RIGID,
    *,
    plan: str,
) -> Array:
    """Scale u by the row sums of K v, in place, and return the weights of the rows; `plan` is the type of K."""
    n = a.shape[0]
    weights = empty(n)
    row = a if f is None else f, n, float(reg), float(relaxation), *map(float, aprox)  # f is only read where masses depend on it
    args = sums, a, *row, rows.done, rows.u, weights, rows.errors
    launch("products", "finish_scaling", (-(-n // 128),), (128,), *args, PLAN=plan)
    return weights
