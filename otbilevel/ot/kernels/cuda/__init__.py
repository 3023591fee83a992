"""Kernels for CuPy arrays: CUDA C++ in the .cu files of this folder, compiled by CuPy for the device at hand when first used.

`cost` is an (n, m) array, or the tuple (x, y transposed, kind) of two point clouds, or (in `sparse`) an `ActiveSet`.

Rows of up to `stored.LONGEST_ROW` stored entries are kept in the registers of a block, which reads every entry once (strips.cu);
longer rows, and costs of points, take a pass over rows and one over columns (sweeps.cu, products.cu). Kernels run on the current
stream of the current device; the host waits only where a number is returned.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from otbilevel._core.array import Array
from otbilevel.ot.kernels import generic_batch, stacks
from otbilevel.ot.kernels.aprox import RIGID, Aprox
from otbilevel.ot.kernels.cuda import sparse, vectors
from otbilevel.ot.kernels.cuda.cg import solve_laplacian
from otbilevel.ot.kernels.cuda.costs import LOG2E, TILE, cost_arguments, grids, warps
from otbilevel.ot.kernels.cuda.device import c_type, empty, launch, sum_parts
from otbilevel.ot.kernels.cuda.sparse import active_set, lazy_active_set
from otbilevel.ot.kernels.cuda.stored import (
    fits,
    laplacian_product,
    new_plan,
    plan_itemsize,
    plan_moments,
    scaling_pass,
    scaling_passes,
    sharpen,
    shift_pass,
    strip,
)

__all__ = [
    "QUEUED_ENTRIES",
    "active_set",
    "averaged_passes",
    "batch_kernels",
    "cost_bounds",
    "extremes",
    "interpolates",
    "laplacian_product",
    "lazy_active_set",
    "lazy_moments",
    "lazy_product",
    "new_plan",
    "plan_itemsize",
    "plan_moments",
    "plan_product",
    "plan_rows",
    "plan_sums",
    "scaling_pass",
    "scaling_passes",
    "sharpen",
    "shift_pass",
    "softmax_rows",
    "solve_laplacian",
    "sparse_kernels",
    "stack_kernels",
    "vector_kernels",
    "waits",
]

sparse_kernels = sparse
vector_kernels = vectors
averaged_passes = None
QUEUED_ENTRIES = math.inf
waits = True  # for a number that the host wants to know
interpolates = False
batch_kernels = generic_batch
stack_kernels = stacks

MARGIN = 20.0
"""By how much, in units of reg, an exponent must exceed the largest one so far before a sum is scaled down."""
VECTORS = 4
"""Vectors that a kernel multiplies at a time."""


def _row_bounds(cost: Any) -> tuple[Array, Array, Array]:
    geometry, macros = cost_arguments(cost)
    n = geometry[3]
    lows, highs, finites = empty((3, n))
    launch("sweeps", "row_bounds", *warps(n), *geometry, lows, highs, finites, EXP="double", PLAN="double", **macros)
    return lows, highs, finites


def extremes(matrix: Array) -> tuple[float, float]:
    lows, highs, _ = _row_bounds(matrix)
    return vectors.extremes(lows)[0], vectors.extremes(highs)[1]


def cost_bounds(cost: Any, shape: tuple[int, int]) -> tuple[float, float]:  # noqa: ARG001 -- the cost knows
    lows, _, finites = _row_bounds(cost)
    return vectors.extremes(lows)[0], vectors.extremes(finites)[1]


def softmax_rows(
    cost: Any,
    g: Array,
    reg: float,
    a: Array,
    f: Array | None,
    plan: Array | None,
    *,
    single: bool,
    relaxation: float,
    aprox: Aprox = RIGID,
) -> tuple[Array, Array | None, Array, float]:
    geometry, macros = cost_arguments(cost)
    n, m = geometry[3:]
    out, errors = empty(n) if f is None else f.copy(), empty(n)
    stage = errors if plan is None else plan  # not written to if there is no plan
    macros |= {"EXP": "float" if single else "double", "PLAN": c_type(stage)}
    rate, row = LOG2E / reg, (f is not None, float(relaxation), *map(float, aprox))
    if not isinstance(cost, tuple) and fits(m):
        blocks, threads, parts, more = strip(n, m)
        macros = {"X": macros["X"], "EXP": macros["EXP"], "PLAN": macros["PLAN"], **more}
        args = cost, g, n, m, float(reg), rate, a, *row, out, errors, plan is not None, stage, parts
        launch("strips", "softmax_strip", (blocks,), (threads,), *args, **macros)
    else:
        by_rows, by_columns = grids(n, m)
        tops, sums = empty((2, by_rows[1], n))
        launch("sweeps", "row_softmin", by_rows, (32, 8), *geometry, g, rate, MARGIN * reg, tops, sums, **macros)
        shift, scale, weights = empty((3, n))
        args = tops, sums, by_rows[1], n, a, float(reg), rate, *row, out, shift, scale, weights, errors
        launch("sweeps", "finish_softmin", (-(-n // 128),), (128,), *args, **macros)
        parts = empty((by_columns[1], m))
        args = *geometry, shift, g, rate, weights, 1, parts, scale, plan is not None, stage
        launch("sweeps", "column_products", by_columns, (32, 8), *args, **macros)
    row_error = float(errors.sum()) if relaxation != 1.0 and f is not None else 0.0
    return out, plan, sum_parts(parts, m), row_error


def _products(kernel: str, cost: Any, shift: Array, g: Array, reg: float, factors: Array, *, single: bool) -> Array:
    """`row_products` or `column_products` of the factors (width, m) or (width, n): (width, n) or (width, m)."""
    geometry, macros = cost_arguments(cost)
    n, m = geometry[3:]
    precision = "float" if single else "double"
    macros |= {"EXP": precision, "PLAN": precision}
    by_rows = kernel == "row_products"
    grid, length = (grids(n, m)[0], n) if by_rows else (grids(n, m)[1], m)
    out, nothing = empty((factors.shape[0], length)), empty(1, np.float32 if single else np.float64)
    for k in range(0, factors.shape[0], VECTORS):
        some = factors[k : k + VECTORS, :]
        width = some.shape[0]
        parts = empty((grid[1], width * length))
        unused = () if by_rows else (shift, False, nothing)
        launch("sweeps", kernel, grid, (32, 8), *geometry, shift, g, LOG2E / reg, some, width, parts, *unused, **macros)
        out[k : k + width, :] = sum_parts(parts, width * length).reshape(width, length)
    return out


def lazy_moments(cost: Any, f: Array, g: Array, reg: float, a: Array) -> tuple[Array, Array, Array]:
    geometry, macros = cost_arguments(cost)
    n, m = geometry[3:]
    shift, ones = -f, empty((1, m))
    ones.fill(1.0)
    row_sums = _products("row_products", cost, shift, g, reg, ones, single=True)[0]
    grid = grids(n, m)[1]
    parts = empty((grid[1], 2 * m))
    args = *geometry, shift, g, LOG2E / reg, a, a / row_sums, parts
    launch("sweeps", "column_moments", grid, (32, 8), *args, EXP="float", PLAN="float", **macros)
    sums = sum_parts(parts, 2 * m)
    return row_sums, sums[:m], sums[m:]


def lazy_product(cost: Any, f: Array, g: Array, reg: float, weights: Array, x: Array) -> Array:
    shift = -f
    rows = weights * _products("row_products", cost, shift, g, reg, x[None, :], single=True)
    return _products("column_products", cost, shift, g, reg, rows, single=True)[0]


def plan_sums(cost: Any, f: Array, g: Array, reg: float, a: Array) -> tuple[Array, Array, float]:
    geometry, macros = cost_arguments(cost)
    n, m = geometry[3:]
    shift, grid = -f, grids(n, m)[0]
    parts = empty((grid[1], 2 * n))
    args = *geometry, shift, g, LOG2E / reg, a, parts
    launch("sweeps", "row_sums", grid, (32, 8), *args, EXP="double", PLAN="double", **macros)
    sums = sum_parts(parts, 2 * n)
    columns = _products("column_products", cost, shift, g, reg, a[None, :], single=False)[0]
    return sums[:n], columns, float(sums[n:].sum())


def plan_rows(cost: Any, f: Array, g: Array, reg: float, a: Array, low: int, high: int) -> Array:
    geometry, macros = cost_arguments(cost)
    m = geometry[4]
    block = empty((high - low, m))
    grid = -(-m // TILE[1]), max(1, min(-(-(high - low) // TILE[0]), 65535))
    args = *geometry, -f, g, LOG2E / reg, a, low, high, block
    launch("sweeps", "plan_rows", grid, (32, 8), *args, EXP="double", PLAN="double", **macros)
    return block


def plan_product(cost: Any, f: Array, g: Array, reg: float, a: Array, vectors: Array, axis: int) -> Array:
    by_vector = vectors.T.astype(np.float64, order="C")
    if axis == 1:
        return (a * _products("row_products", cost, -f, g, reg, by_vector, single=False)).T
    return _products("column_products", cost, -f, g, reg, a * by_vector, single=False).T
