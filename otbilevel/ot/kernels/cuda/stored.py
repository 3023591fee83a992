"""Passes over a stored K: products only."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from otbilevel._core.array import Array
from otbilevel.ot.kernels.aprox import RIGID, Aprox
from otbilevel.ot.kernels.cuda.costs import BLOCKS_PER_PROCESSOR, grids
from otbilevel.ot.kernels.cuda.device import c_type, empty, launch, multiprocessors, never, sum_parts
from otbilevel.ot.kernels.cuda.passes import Queue, Rows, finish_scaling, run_queue

STRIPS = ((32, 4), (64, 4), (128, 4), (256, 4), (512, 4), (512, 12), (512, 20))
"""Threads of a block of strips.cu, and entries of a row that each of them holds."""
LONGEST_ROW = 512 * 20
"""Longer rows do not fit into the registers of a block."""
SHORTEST_STRIP = 8
"""Rows of a block: with fewer, its column sums would be more traffic than its entries."""


def fits(m: int) -> bool:
    """Whether a row of so many entries fits into the registers of a block."""
    return m <= LONGEST_ROW


def strip(n: int, m: int) -> tuple[int, int, Array, dict[str, Any]]:
    """Blocks, threads, partial sums and macros of a pass of strips.cu."""
    threads, items = next((t, i) for t, i in STRIPS if t * i >= m)
    blocks = max(1, min(BLOCKS_PER_PROCESSOR * multiprocessors() * 128 // threads, -(-n // SHORTEST_STRIP)))
    return blocks, threads, empty((blocks, m)), {"THREADS": threads, "ITEMS": items}


def plan_itemsize(*, single: bool) -> int:
    return 4 if single else 8


def new_plan(shape: tuple[int, int], like: Array, *, single: bool) -> Array:  # noqa: ARG001
    return empty(shape, np.float32 if single else np.float64)


def _plan_rows(plan: Array, v: Array, squarings: int = 0, done: Array | None = None) -> Array:
    """K^(2^squarings) v for long rows."""
    n, m = plan.shape
    grid = grids(n, m)[0]
    parts = empty((grid[1], n))
    stop = never() if done is None else done
    launch("products", "stored_rows", grid, (32, 8), plan, n, m, v, squarings, stop, parts, PLAN=c_type(plan))
    return sum_parts(parts, n)


def _plan_columns(plan: Array, weights: Array, kernel: str, *args: Any) -> Array:
    """Partial sums over the columns of long rows."""
    n, m = plan.shape
    grid = grids(n, m)[1]
    parts = empty((grid[1], m))
    launch("products", kernel, grid, (32, 8), plan, n, m, weights, *args, parts, PLAN=c_type(plan))
    return parts


def _plan_strip(plan: Array, kernel: str, v: Array, *args: Any) -> Array:
    """Partial sums over the columns of a kernel that reads a stored plan once."""
    n, m = plan.shape
    blocks, threads, parts, macros = strip(n, m)
    macros |= {"PLAN": c_type(plan), "X": "double", "EXP": "double"}
    launch("strips", kernel, (blocks,), (threads,), plan, v, n, m, *args, parts, **macros)
    return parts


def scaling_pass(
    plan: Array,
    a: Array,
    u: Array,
    v: Array,
    relaxation: float,
    f: Array | None = None,
    reg: float = 1.0,
    aprox: Aprox = RIGID,
) -> tuple[Array, Array, float]:
    n, m = plan.shape
    rows = Rows(u.copy(), empty(n), never())
    parts = _pass_parts(plan, a, v, rows, relaxation, f, reg, aprox)
    return rows.u, sum_parts(parts, m), float(rows.errors.sum()) if relaxation != 1.0 else 0.0


def _pass_parts(
    plan: Array,
    a: Array,
    v: Array,
    rows: Rows,
    relaxation: float,
    f: Array | None = None,
    reg: float = 1.0,
    aprox: Aprox = RIGID,
) -> Array:
    """Partial sums over the columns after a pass."""
    if fits(plan.shape[1]):
        row = float(reg), float(relaxation), *map(float, aprox)
        return _plan_strip(plan, "scaling_strip", v, a, a if f is None else f, *row, rows.done, rows.u, rows.errors)
    row_sums = _plan_rows(plan, v, 0, rows.done)
    weights = finish_scaling(row_sums, a, rows, relaxation, f, reg, aprox, plan=c_type(plan))
    return _plan_columns(plan, weights, "stored_columns", rows.done)


def scaling_passes(plan: Array, a: Array, u: Array, log_v: Array, b: Array, log_b: Array, **rule: Any) -> Queue:
    return run_queue(partial(_pass_parts, plan, a), u, log_v, b, log_b, **rule)


def shift_pass(plan: Array, a: Array, growth: Array) -> tuple[Array, Array]:
    n, m = plan.shape
    if fits(m):
        change = empty(n)
        return change, sum_parts(_plan_strip(plan, "shift_strip", growth, a, change), m)
    shares = _plan_rows(plan, growth)
    change = -shares / (1.0 + shares)
    return change, sum_parts(_plan_columns(plan, a * change, "stored_columns", never()), m)


def sharpen(plan: Array, a: Array, v: Array, squarings: int) -> tuple[Array, Array, Array]:
    n, m = plan.shape
    if fits(m):
        row_sums = empty(n)
        parts = _plan_strip(plan, "sharpen_strip", v, a, squarings, row_sums)
    else:
        row_sums = _plan_rows(plan, v, squarings)
        parts = _plan_columns(plan, a, "stored_sharpen", v, 1.0 / row_sums, squarings)
    return plan, row_sums, sum_parts(parts, m)


def product_parts(plan: Array, weights: Array, x: Array, done: Array) -> Array:
    """K' diag(weights) K x as partial sums; not written where `done` holds another number than 0."""
    if fits(plan.shape[1]):
        return _plan_strip(plan, "laplacian_strip", x, weights, done)
    return _plan_columns(plan, weights * _plan_rows(plan, x, 0, done), "stored_columns", done)


def laplacian_product(plan: Array, weights: Array, x: Array) -> Array:
    return sum_parts(product_parts(plan, weights, x, never()), plan.shape[1])


def plan_moments(plan: Array, weights: Array, v: Array) -> tuple[Array, Array, Array]:
    n, m = plan.shape
    if fits(m):
        row_sums = empty(n)
        parts = _plan_strip(plan, "moments_strip", v, weights, row_sums)
    else:
        row_sums = _plan_rows(plan, v)
        parts = _plan_columns(plan, weights, "stored_columns", never())
    return row_sums, sum_parts(parts, m), sum_parts(_plan_columns(plan, weights / row_sums, "stored_squares"), m)
