"""Compiled sweeps: one exponential per pair, over a stored cost matrix or over points.

Every kernel works on the rows [low, high), adds to its own `sums` and returns a number, as `over_rows` wants it.
K_ij = exp((f_i + g_j - C_ij) / reg), and the plan is P = diag(a) K.
"""

import numpy as np

from otbilevel.ot.kernels.cpu.compile import inlined, kernel
from otbilevel.ot.kernels.cpu.cost import cost_row
from otbilevel.ot.kernels.cpu.exp import LOG2E, exp2
from otbilevel.ot.kernels.cpu.stored import add4, scaled, yielded

LARGEST = np.finfo(np.float64).max
HEADROOM = 20.0
"""Added to the exponents at a warm start: single precision reaches further up than it needs to, and less far down."""
SMALLEST_SUM, LARGEST_SUM = 1e-8, 1e30
"""Sums of a row at a warm start that are good: no entry at the upper clip, and none that matters near the lower one."""


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
def extremes(low, high, sums, matrix, lows, highs):  # noqa: ARG001
    """lows[low], highs[low] <- smallest and largest entry of these rows. Returns a sum that is NaN when an entry is.

    Column by column, which LLVM vectorises, as it does not a running minimum.
    """
    m, last = matrix.shape[1], high - 1
    down, up, total = np.full(m, np.inf), np.full(m, -np.inf), np.zeros(m)
    for i in range(low, high, 4):  # at the end the last row stands in for those that are missing
        a, b, c, d = matrix[i], matrix[min(i + 1, last)], matrix[min(i + 2, last)], matrix[min(i + 3, last)]
        for j in range(m):
            down[j] = min(down[j], a[j], b[j], c[j], d[j])
            up[j] = max(up[j], a[j], b[j], c[j], d[j])
            total[j] += (a[j] + b[j]) + (c[j] + d[j])
    lows[low], highs[low] = -maximum(-down), maximum(up)
    return total.sum()


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


@inlined
def cold_shift(row, g, scratch):
    """min_j C_ij - g_j, which makes the largest exponent 0; overwrites `scratch`."""
    for j in range(len(g)):
        scratch[j] = g[j] - row[j]
    return -maximum(scratch)


@inlined
def exponentials(row, g, shift, rate, x):
    """x_j <- 2^((g_j - C_ij + shift) rate) in the precision of x. Returns their sum."""
    total = x.dtype.type(0)
    if x.itemsize == 8:
        for j in range(len(g)):
            x[j] = exp2((g[j] - row[j] + shift) * rate)
            total += x[j]
    else:  # two loops: in one, the difference in double precision would halve the vector width of the exponential
        for j in range(len(g)):
            x[j] = (g[j] - row[j] + shift) * rate
        for j in range(len(g)):
            x[j] = exp2(x[j])
            total += x[j]
    return np.float64(total)


@kernel
def softmax_rows(low, high, sums, cost, g, inv_reg, a, f, warm, relaxation, precision, store, plan, aprox):
    """f_i <- -reg log sum_j exp((g_j - C_ij)/reg), the rows of K, and sums[0] += r_i K_i. Returns the L1 error of the row sums.

    A warm start takes the old f_i as the shift of the exponents, which saves the search for the row's maximum; where
    that proves too far off the row is done again. The exponentials have the dtype of `precision`. Four rows wait until
    all of them are added, so that `sums` are read and written once per four rows.
    """
    m, rate, row_error, columns = len(g), inv_reg * LOG2E, 0.0, sums[0]
    buffer, scratch, scales, weights = np.empty(m), np.empty(m), np.empty(4), np.empty(4)
    x = np.zeros((4, m), precision.dtype)
    for first in range(low, high, 4):
        rows = min(4, high - first)
        weights[:] = 0.0
        for r in range(rows):
            i = first + r
            row = cost_row(cost, i, buffer)
            shift, total = f[i] + HEADROOM / inv_reg, 0.0
            for attempt in range(0 if warm else 1, 2):
                if attempt == 1:
                    shift = cold_shift(row, g, scratch)
                total = exponentials(row, g, shift, rate, x[r])
                if SMALLEST_SUM < total < LARGEST_SUM:
                    break
            previous, f[i], scales[r] = f[i], shift - np.log(total) / inv_reg, 1.0 / total
            if relaxation != 1.0 and warm:
                f[i] = (1.0 - relaxation) * previous + relaxation * f[i]
                scales[r] = np.exp((f[i] - shift) * inv_reg)
                row_error += a[i] * abs(scales[r] * total - 1.0)
            weights[r] = a[i] * scales[r] * yielded(f[i], inv_reg, aprox)
        add4(x, 0, weights[0], weights[1], weights[2], weights[3], columns)
        if store:
            for r in range(rows):
                scaled(x[r], scales[r], plan[first + r])
    return row_error


@kernel
def plan_sums(low, high, sums, cost, f, g, inv_reg, a, row_sums):
    """Row and column sums (sums[0]) of the plan in full precision, and as return value its cost."""
    m, rate, total_cost = len(g), inv_reg * LOG2E, 0.0
    buffer, weights, p, columns = np.empty(m), np.empty(4), np.zeros((4, m)), sums[0]
    for first in range(low, high, 4):
        weights[:] = 0.0
        for r in range(min(4, high - first)):
            i = first + r
            row = cost_row(cost, i, buffer)
            s, t = exponentials(row, g, f[i], rate, p[r]), 0.0
            for j in range(m):
                t += p[r, j] * min(row[j], LARGEST)  # not 0 * inf at a forbidden pair
            weights[r], row_sums[i] = a[i], a[i] * s
            total_cost += a[i] * t
        add4(p, 0, weights[0], weights[1], weights[2], weights[3], columns)
    return total_cost


@kernel
def plan_rows(low, high, sums, cost, f, g, inv_reg, a, first, block):  # noqa: ARG001
    """block <- the rows first + [low, high) of the plan. Returns their sum, without which LLVM makes a slower loop."""
    rate, buffer, total = inv_reg * LOG2E, np.empty(len(g)), 0.0
    for i in range(low, high):
        row, out, weight = cost_row(cost, first + i, buffer), block[i], a[first + i]
        total += weight * exponentials(row, g, f[first + i], rate, out)
        for j in range(len(g)):
            out[j] *= weight
    return total


@kernel
def plan_product(low, high, sums, cost, f, g, inv_reg, a, vectors, transpose, out):
    """out_ik <- sum_j P_ij vectors_kj, or (transpose) sums_kj += sum_i P_ij vectors_ki."""
    m, width, rate = len(g), len(vectors), inv_reg * LOG2E
    p, buffer = np.empty(m), np.empty(m)
    for i in range(low, high):
        row = cost_row(cost, i, buffer)
        for j in range(m):
            p[j] = exp2((f[i] + g[j] - row[j]) * rate)
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
    exponentials(cost_row(cost, i, buffer), g, f[i], inv_reg * LOG2E, k32)


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
