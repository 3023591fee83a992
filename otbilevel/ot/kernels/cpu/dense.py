"""Compiled sweeps: one exponential per pair, over a stored cost matrix or over points.

Every kernel works on the rows [low, high), adds to its own `sums` and returns a number, as `over_rows` wants it.
K_ij = exp((f_i + g_j - C_ij) / reg), and the plan is P = diag(a) K.
"""

import numpy as np

from otbilevel.ot.kernels.cpu.compile import kernel
from otbilevel.ot.kernels.cpu.cost import cost_row
from otbilevel.ot.kernels.cpu.exp import exp32, exp64

LARGEST = np.finfo(np.float64).max


@kernel
def maximum(values):
    """Maximum by halving, which overwrites `values`: LLVM does not vectorise a plain running maximum."""
    width = len(values)
    while width > 8:
        half = (width + 1) // 2
        for j in range(width - half):
            values[j] = max(values[j], values[half + j])
        width = half
    top = values[0]
    for j in range(width):
        top = max(top, values[j])
    return top


@kernel
def cost_bounds(low, high, sums, cost, width, lows, highs):  # noqa: ARG001
    """lows_i, highs_i <- smallest and largest finite cost of row i; infinite where there is none."""
    up, down, buffer = np.empty(width), np.empty(width), np.empty(width)
    for i in range(low, high):
        row = cost_row(cost, i, buffer)
        for j in range(width):
            down[j] = -row[j]
            up[j] = row[j] if row[j] < np.inf else -np.inf
        lows[i], highs[i] = -maximum(down), maximum(up)
    return 0.0


@kernel
def softmax_rows(low, high, sums, cost, g, inv_reg, a, f, warm, relaxation, single, store, plan):
    """f_i <- -reg log sum_j exp((g_j - C_ij)/reg), the rows of K, and sums[0] += a_i K_i. Returns the L1 error of the row sums.

    A warm start takes the old f_i as the shift of the exponents, which saves the search for the row's maximum; where
    that proves too far off the row is done again. `single` takes the exponentials in single precision: twice as fast,
    relative error 1e-7.
    """
    m = len(g)
    x64, x32, buffer = np.empty(m), np.empty(m, np.float32), np.empty(m)
    row_error = 0.0
    for i in range(low, high):
        row = cost_row(cost, i, buffer)
        shift, total = f[i], 0.0
        for attempt in range(2):
            if attempt == 1 or not warm:
                for j in range(m):
                    x64[j] = g[j] - row[j]
                shift = -maximum(x64)
            if single:
                # Two loops: in one, the double-precision difference would halve the vector width of the exponential.
                for j in range(m):
                    x32[j] = (g[j] - row[j] + shift) * inv_reg
                total32 = np.float32(0.0)
                for j in range(m):
                    x32[j] = exp32(x32[j])
                    total32 += x32[j]
                total = np.float64(total32)
            else:
                total = 0.0
                for j in range(m):
                    x64[j] = exp64((g[j] - row[j] + shift) * inv_reg)
                    total += x64[j]
            if not warm or 1e-8 < total < 1e8:
                break
        previous = f[i]
        f[i] = shift - np.log(total) / inv_reg
        scale = 1.0 / total
        if relaxation != 1.0 and warm:
            f[i] = (1.0 - relaxation) * previous + relaxation * f[i]
            scale = np.exp((f[i] - shift) * inv_reg)
            row_error += a[i] * abs(scale * total - 1.0)
        weight = a[i] * scale
        if single:
            for j in range(m):
                sums[0, j] += weight * x32[j]
            if store:
                scale32 = np.float32(scale)
                for j in range(m):
                    plan[i, j] = x32[j] * scale32
        else:
            for j in range(m):
                sums[0, j] += weight * x64[j]
            if store:
                for j in range(m):
                    plan[i, j] = x64[j] * scale
    return row_error


@kernel
def plan_sums(low, high, sums, cost, f, g, inv_reg, a, row_sums):
    """Row and column sums (sums[0]) of the plan in full precision, and as return value its cost."""
    m = len(g)
    p, buffer = np.empty(m), np.empty(m)
    total_cost = 0.0
    for i in range(low, high):
        row = cost_row(cost, i, buffer)
        s = t = 0.0
        for j in range(m):
            p[j] = exp64((f[i] + g[j] - row[j]) * inv_reg)
            s += p[j]
        for j in range(m):
            sums[0, j] += a[i] * p[j]
            t += p[j] * min(row[j], LARGEST)  # not 0 * inf at a forbidden pair
        row_sums[i] = a[i] * s
        total_cost += a[i] * t
    return total_cost


@kernel
def plan_rows(low, high, sums, cost, f, g, inv_reg, a, first, block):  # noqa: ARG001
    """block <- the rows first + [low, high) of the plan."""
    m = len(g)
    buffer = np.empty(m)
    for i in range(low, high):
        row = cost_row(cost, first + i, buffer)
        for j in range(m):
            block[i, j] = a[first + i] * exp64((f[first + i] + g[j] - row[j]) * inv_reg)
    return 0.0


@kernel
def plan_product(low, high, sums, cost, f, g, inv_reg, a, vectors, transpose, out):
    """out_ik <- sum_j P_ij vectors_kj, or (transpose) sums_kj += sum_i P_ij vectors_ki."""
    m, width = len(g), len(vectors)
    p, buffer = np.empty(m), np.empty(m)
    for i in range(low, high):
        row = cost_row(cost, i, buffer)
        for j in range(m):
            p[j] = exp64((f[i] + g[j] - row[j]) * inv_reg)
        for k in range(width):
            if transpose:
                weight = a[i] * vectors[k, i]
                for j in range(m):
                    sums[k, j] += weight * p[j]
            else:
                s = 0.0
                for j in range(m):
                    s += p[j] * vectors[k, j]
                out[i, k] = a[i] * s
    return 0.0


@kernel
def _kernel_row(cost, i, f, g, inv_reg, buffer, k32):
    """k32 <- row i of K in single precision. The same numbers at every call: Laplacian and products agree."""
    row = cost_row(cost, i, buffer)
    for j in range(len(g)):
        k32[j] = (f[i] + g[j] - row[j]) * inv_reg
    for j in range(len(g)):
        k32[j] = exp32(k32[j])


@kernel
def lazy_moments(low, high, sums, cost, f, g, inv_reg, a, row_sums):
    """As `plan_moments`, with the rows of K computed on the way."""
    m = len(g)
    buffer, k32 = np.empty(m), np.empty(m, np.float32)
    for i in range(low, high):
        _kernel_row(cost, i, f, g, inv_reg, buffer, k32)
        s = 0.0
        for j in range(m):
            s += np.float64(k32[j])
        row_sums[i] = s
        for j in range(m):
            k = np.float64(k32[j])
            sums[0, j] += a[i] * k
            sums[1, j] += a[i] / s * k * k
    return 0.0


@kernel
def lazy_product(low, high, sums, cost, f, g, inv_reg, weights, x):
    """As `laplacian_product`, with the rows of K computed on the way."""
    m = len(g)
    buffer, k32 = np.empty(m), np.empty(m, np.float32)
    for i in range(low, high):
        _kernel_row(cost, i, f, g, inv_reg, buffer, k32)
        s = 0.0
        for j in range(m):
            s += k32[j] * x[j]
        s *= weights[i]
        for j in range(m):
            sums[0, j] += s * k32[j]
    return 0.0
