"""Kernels in the array API's own functions: the truth that the fast ones are tested against, and what runs on every other library.

`cost` is a geometry; its rows are taken a block at a time, so that a point cloud never becomes an n x m array.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from otbilevel._core.array import Array, array_namespace, device
from otbilevel.ot.kernels import generic_batch, stacks, vectors
from otbilevel.ot.kernels.aprox import RIGID, Aprox, row_masses

if TYPE_CHECKING:
    from otbilevel.ot.dense_cost import DenseCost
    from otbilevel.ot.geometry import Geometry

vector_kernels = vectors
batch_kernels = generic_batch
stack_kernels = stacks
sparse_kernels = active_set = lazy_active_set = None
interpolates = False
solve_laplacian = scaling_passes = averaged_passes = None
_BLOCK_ENTRIES = 2**19


def row_blocks(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Split the rows so that a block holds some half a million entries: four megabytes, and a few times that at work."""
    n, m = shape
    step = max(1, _BLOCK_ENTRIES // max(m, 1))
    for low in range(0, n, step):
        yield low, min(low + step, n)


def extremes(cost: DenseCost) -> tuple[float, float]:
    xp = array_namespace(cost.matrix)
    return float(xp.min(cost.matrix)), float(xp.max(cost.matrix))


def cost_bounds(cost: Geometry, shape: tuple[int, int]) -> tuple[float, float]:
    low, high = float("inf"), -float("inf")
    for first, last in row_blocks(shape):
        block = cost.rows(first, last)
        xp = array_namespace(block)
        low = min(low, float(xp.min(block)))
        high = max(high, float(xp.max(xp.where(xp.isfinite(block), block, xp.full_like(block, -float("inf"))))))
    return low, high


def softmax_rows(
    cost: Geometry,
    g: Array,
    reg: float,
    a: Array,
    f: Array | None,
    plan: Array | None,
    *,
    single: bool,  # noqa: ARG001 -- the truth knows one precision
    relaxation: float,
    aprox: Aprox = RIGID,
) -> tuple[Array, Array | None, Array, float]:
    xp = array_namespace(g)
    potentials, rows, sums, row_error = [], [], xp.zeros_like(g), 0.0
    for low, high in row_blocks(cost.shape):
        exponents = (g[None, :] - cost.rows(low, high)) / reg
        top = xp.max(exponents, axis=1, keepdims=True)
        k = xp.exp(exponents - top)
        total = xp.sum(k, axis=1, keepdims=True)
        fresh = -reg * (top[:, 0] + xp.log(total[:, 0]))
        k = k / total
        if relaxation != 1.0 and f is not None:
            fresh = (1.0 - relaxation) * f[low:high] + relaxation * fresh
            drift = xp.exp((fresh + reg * (top[:, 0] + xp.log(total[:, 0]))) / reg)
            k = k * drift[:, None]
            row_error += float(xp.sum(a[low:high] * xp.abs(drift - 1.0)))
        potentials.append(fresh)
        sums = sums + row_masses(fresh, reg, a[low:high], aprox) @ k
        if plan is not None:
            rows.append(k)
    return xp.concat(potentials), xp.concat(rows) if plan is not None else None, sums, row_error


def plan_itemsize(*, single: bool) -> int:  # noqa: ARG001 -- plans have double precision
    return 8


def new_plan(shape: tuple[int, int], like: Array, *, single: bool) -> Array:  # noqa: ARG001
    return array_namespace(like).empty(shape, dtype=like.dtype, device=device(like))


def scaling_pass(
    plan: Array, a: Array, u: Array, v: Array, relaxation: float, f: Array, reg: float, aprox: Aprox = RIGID
) -> tuple[Array, Array, float]:
    xp = array_namespace(plan)
    row_sums = plan @ v
    u = 1.0 / row_sums if relaxation == 1.0 else u ** (1.0 - relaxation) * row_sums ** (-relaxation)
    masses = a if aprox == RIGID else row_masses(f + reg * xp.log(u), reg, a, aprox)
    return u, (masses * u) @ plan, float(xp.sum(a * xp.abs(u * row_sums - 1.0)))


def shift_pass(plan: Array, a: Array, growth: Array) -> tuple[Array, Array]:
    shares = plan @ growth
    change = -shares / (1.0 + shares)
    return change, (a * change) @ plan


def sharpen(plan: Array, a: Array, v: Array, squarings: int) -> tuple[Array, Array, Array]:
    xp = array_namespace(plan)
    plan = plan ** (2**squarings) * v[None, :]
    row_sums = xp.sum(plan, axis=1)
    plan = plan / row_sums[:, None]
    return plan, row_sums, a @ plan


def laplacian_product(plan: Array, weights: Array, x: Array) -> Array:
    return (weights * (plan @ x)) @ plan


def plan_moments(plan: Array, weights: Array, v: Array) -> tuple[Array, Array, Array]:
    row_sums = plan @ v
    return row_sums, weights @ plan, (weights / row_sums) @ plan**2


def _kernel_rows(cost: Geometry, f: Array, g: Array, reg: float, low: int, high: int) -> Array:
    xp = array_namespace(g)
    return xp.exp((f[low:high, None] + g[None, :] - cost.rows(low, high)) / reg)


def lazy_moments(cost: Geometry, f: Array, g: Array, reg: float, a: Array) -> tuple[Array, Array, Array]:
    xp = array_namespace(g)
    row_sums, sums, squares = [], xp.zeros_like(g), xp.zeros_like(g)
    for low, high in row_blocks(cost.shape):
        r, c, q = plan_moments(_kernel_rows(cost, f, g, reg, low, high), a[low:high], xp.ones_like(g))
        row_sums.append(r)
        sums, squares = sums + c, squares + q
    return xp.concat(row_sums), sums, squares


def lazy_product(cost: Geometry, f: Array, g: Array, reg: float, weights: Array, x: Array) -> Array:
    out = array_namespace(g).zeros_like(g)
    for low, high in row_blocks(cost.shape):
        out = out + laplacian_product(_kernel_rows(cost, f, g, reg, low, high), weights[low:high], x)
    return out


def plan_sums(cost: Geometry, f: Array, g: Array, reg: float, a: Array) -> tuple[Array, Array, float]:
    xp = array_namespace(g)
    row_sums, sums, total_cost = [], xp.zeros_like(g), 0.0
    for low, high in row_blocks(cost.shape):
        c = cost.rows(low, high)
        p = plan_rows(cost, f, g, reg, a, low, high)
        row_sums.append(xp.sum(p, axis=1))
        sums = sums + xp.sum(p, axis=0)
        carries = p > 0  # 0 * inf at a forbidden pair
        total_cost += float(xp.sum(xp.where(carries, p * xp.where(carries, c, xp.zeros_like(c)), xp.zeros_like(p))))
    return xp.concat(row_sums), sums, total_cost


def plan_rows(cost: Geometry, f: Array, g: Array, reg: float, a: Array, low: int, high: int) -> Array:
    return a[low:high, None] * _kernel_rows(cost, f, g, reg, low, high)


def plan_product(cost: Geometry, f: Array, g: Array, reg: float, a: Array, vectors: Array, axis: int) -> Array:
    xp = array_namespace(g)
    if axis == 1:
        return xp.concat([plan_rows(cost, f, g, reg, a, low, high) @ vectors for low, high in row_blocks(cost.shape)])
    out = xp.zeros((cost.shape[1], vectors.shape[1]), dtype=g.dtype, device=device(g))
    for low, high in row_blocks(cost.shape):
        out = out + plan_rows(cost, f, g, reg, a, low, high).T @ vectors[low:high, :]
    return out
