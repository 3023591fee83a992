"""The kernels on an active set: the few pairs that carry the mass, in CSR form and listed column by column as well."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from otbilevel._core.array import Array, array_namespace
from otbilevel.ot.kernels.aprox import RIGID, Aprox
from otbilevel.ot.kernels.cuda import cg, vectors
from otbilevel.ot.kernels.cuda.costs import LOG2E, cost_arguments, warps
from otbilevel.ot.kernels.cuda.device import c_type, empty, launch, never
from otbilevel.ot.kernels.cuda.passes import Queue, Rows, finish_scaling, run_queue

vector_kernels = vectors
averaged_passes = None
QUEUED_ENTRIES = math.inf
waits = True  # for a number that the host wants to know


class ActiveSet(NamedTuple):
    """Pairs (rows[k], indices[k]) with costs values[k], for indptr[i] <= k < indptr[i + 1] those of row i.

    Those of column j are order[k] for column_ptr[j] <= k < column_ptr[j + 1].
    """

    indptr: Array
    indices: Array
    values: Array
    shape: tuple[int, int]
    rows: Array
    order: Array
    column_ptr: Array


class ActivePlan(NamedTuple):
    """Entries of K on the pattern of an active set."""

    pattern: ActiveSet
    values: Array


def active_set(cost: Any, plan: Array, u: Array, v: Array, cutoff: float, max_entries: float) -> ActiveSet | None:
    n, m = plan.shape
    bars, macros = cutoff / u, {"PLAN": c_type(plan)}

    def count(counts: Array, macros: dict[str, Any]) -> None:
        launch("active", "stored_count", *warps(n), plan, n, m, v, bars, counts, **macros)

    return _chosen(cost, count, "stored_fill", (plan, v, bars), macros, max_entries)


def lazy_active_set(cost: Any, f: Array, g: Array, threshold: float, max_entries: float) -> ActiveSet | None:
    geometry, _ = cost_arguments(cost)

    def count(counts: Array, macros: dict[str, Any]) -> None:
        launch("active", "lazy_count", *warps(len(f)), *geometry, f, g, float(threshold), counts, **macros)

    return _chosen(cost, count, "lazy_fill", (f, g, float(threshold)), {"PLAN": "float"}, max_entries)


def _chosen(
    cost: Any,
    count: Callable[[Array, dict[str, Any]], None],
    fill: str,
    rule: tuple[Any, ...],
    macros: dict[str, Any],
    max_entries: float,
) -> ActiveSet | None:
    """Count, and if these are not too many write; the host waits once, for their number."""
    geometry, more = cost_arguments(cost)
    n, m = geometry[3:]
    macros = {**more, **macros}
    counts = empty(n, np.int64)
    count(counts, macros)
    xp = array_namespace(counts)
    indptr = xp.concat([xp.zeros_like(counts[:1]), xp.cumulative_sum(counts)])
    total = int(indptr[n])
    if total > max_entries:
        return None
    indices, rows, values = empty(total, np.int32), empty(total, np.int32), empty(total)
    launch("active", fill, *warps(n), *geometry, *rule, indptr, indices, rows, values, **macros)
    order = xp.argsort(indices, stable=True)
    column_ptr = xp.searchsorted(xp.take(indices, order), xp.arange(m + 1, dtype=np.int32))
    return ActiveSet(indptr, indices, values, (n, m), rows, xp.astype(order, np.int64), xp.astype(column_ptr, np.int64))


def softmax_rows(
    cost: ActiveSet,
    g: Array,
    reg: float,
    a: Array,
    f: Array | None,  # noqa: ARG001 -- the row maximum is cheap here, a warm start saves nothing
    plan: ActivePlan | None,
    *,
    single: bool,  # noqa: ARG001 -- memory traffic dominates
    relaxation: float,  # noqa: ARG001 -- Newton's method does not relax
    aprox: Aprox = RIGID,
) -> tuple[Array, ActivePlan | None, Array, float]:
    n, m = cost.shape
    plan = ActivePlan(cost, empty(cost.values.shape[0], np.float32)) if plan is None else plan
    out, tops, weights = empty((3, n))
    row = a, *map(float, aprox), out, tops, weights, plan.values
    launch("sparse", "csr_softmax", *warps(n), *cost[:3], n, g, float(reg), LOG2E / reg, *row)
    sums, columns = empty(m), (cost.column_ptr, cost.rows, cost.order, cost.values)
    launch("sparse", "csc_softmax", *warps(m), *columns, m, g, LOG2E / reg, tops, weights, sums)
    return out, plan, sums, 0.0


def _rows(plan: ActivePlan, x: Array, weights: Array, done: Array | None = None) -> Array:
    """diag(weights) K x."""
    pattern, values = plan
    n, out = pattern.shape[0], empty(pattern.shape[0])
    stop = never() if done is None else done
    launch("sparse", "csr_product", *warps(n), pattern.indptr, pattern.indices, values, n, x, weights, stop, out)
    return out


def _columns(plan: ActivePlan, weights: Array, *, square: bool = False, done: Array | None = None) -> Array:
    """K' weights, or the same with squared entries."""
    pattern, values = plan
    m, out = pattern.shape[1], empty(pattern.shape[1])
    stop = never() if done is None else done
    columns = pattern.column_ptr, pattern.rows, pattern.order, values
    launch("sparse", "csc_product", *warps(m), *columns, m, weights, square, stop, out)
    return out


def _ones(x: Array) -> Array:
    return array_namespace(x).ones_like(x)


def scaling_pass(
    plan: ActivePlan,
    a: Array,
    u: Array,
    v: Array,
    relaxation: float,
    f: Array | None = None,
    reg: float = 1.0,
    aprox: Aprox = RIGID,
) -> tuple[Array, Array, float]:
    rows = Rows(u.copy(), empty(plan.pattern.shape[0]), never())
    sums = _pass_sums(plan, a, v, rows, relaxation, f, reg, aprox)
    return rows.u, sums, float(rows.errors.sum()) if relaxation != 1.0 else 0.0


def _pass_sums(
    plan: ActivePlan,
    a: Array,
    v: Array,
    rows: Rows,
    relaxation: float,
    f: Array | None = None,
    reg: float = 1.0,
    aprox: Aprox = RIGID,
) -> Array:
    """As `_pass_parts` in `stored`, with sums that are whole."""
    row_sums = _rows(plan, v, _ones(a), rows.done)
    weights = finish_scaling(row_sums, a, rows, relaxation, f, reg, aprox, plan="float")
    return _columns(plan, weights, done=rows.done)


def scaling_passes(plan: ActivePlan, a: Array, u: Array, log_v: Array, b: Array, log_b: Array, **rule: Any) -> Queue:
    def one_pass(v: Array, rows: Rows, relaxation: float) -> Array:
        return _pass_sums(plan, a, v, rows, relaxation)[None, :]

    return run_queue(one_pass, u, log_v, b, log_b, **rule)


def shift_pass(plan: ActivePlan, a: Array, growth: Array) -> tuple[Array, Array]:
    shares = _rows(plan, growth, _ones(a))
    change = -shares / (1.0 + shares)
    return change, _columns(plan, a * change)


def laplacian_product(plan: ActivePlan, weights: Array, x: Array) -> Array:
    return _columns(plan, _rows(plan, x, weights))


def solve_laplacian(
    plan: ActivePlan,
    *operator: Array,
    tol: float,
    max_iter: int,
    interrupt: Callable[[], bool],
    memory: None = None,  # noqa: ARG001 -- nothing is kept
) -> tuple[Array, int, None]:
    """As in `cuda`."""

    def product(weights: Array, x: Array, done: Array) -> Array:
        return _columns(plan, _rows(plan, x, weights, done), done=done)[None, :]

    return (*cg.solve(product, *operator, tol=tol, max_iter=max_iter, interrupt=interrupt), None)


def plan_moments(plan: ActivePlan, weights: Array, v: Array) -> tuple[Array, Array, Array]:
    row_sums = _rows(plan, v, _ones(weights))
    return row_sums, _columns(plan, weights), _columns(plan, weights / row_sums, square=True)
