"""Compiled kernels on an active set: the same mathematics as `dense` and `stored`, on the pairs that a CSR pattern keeps."""

import numpy as np

from otbilevel.ot.kernels.cpu.compile import kernel
from otbilevel.ot.kernels.cpu.cost import cost_row
from otbilevel.ot.kernels.cpu.exp import LOG2E, exp2
from otbilevel.ot.kernels.cpu.stored import relaxed


@kernel
def count(low, high, sums, plan, v, bars, counts):  # noqa: ARG001
    """counts_i <- how many pairs of row i have K_ij v_j > bars_i. Returns their number."""
    total = 0.0
    for i in range(low, high):
        row, kept, bar = plan[i], np.int64(0), bars[i]
        for j in range(len(v)):
            kept += np.int64(1) if row[j] * v[j] > bar else np.int64(0)
        counts[i] = kept
        total += kept
    return total


@kernel
def fill(low, high, sums, plan, v, bars, cost, indptr, indices, values):  # noqa: ARG001
    """Write the columns and costs of the pairs that `count` counted."""
    buffer = np.empty(len(v))
    for i in range(low, high):
        row, costs, k, bar = plan[i], cost_row(cost, i, buffer), indptr[i], bars[i]
        for j in range(len(v)):
            if row[j] * v[j] > bar:
                indices[k], values[k] = j, costs[j]
                k += 1
    return 0.0


@kernel
def lazy_count(low, high, sums, cost, f, g, threshold, counts):  # noqa: ARG001
    """counts_i <- how many pairs of row i have f_i + g_j - C_ij > threshold. Returns their number."""
    m = len(g)
    buffer = np.empty(m)
    total = 0.0
    for i in range(low, high):
        row = cost_row(cost, i, buffer)
        kept, bar = np.int64(0), threshold - f[i]
        for j in range(m):
            kept += np.int64(1) if g[j] - row[j] > bar else np.int64(0)
        counts[i] = kept
        total += kept
    return total


@kernel
def lazy_fill(low, high, sums, cost, f, g, threshold, indptr, indices, values):  # noqa: ARG001
    """Write the columns and costs of the pairs that `lazy_count` counted."""
    m = len(g)
    buffer = np.empty(m)
    for i in range(low, high):
        row = cost_row(cost, i, buffer)
        k, bar = indptr[i], threshold - f[i]
        for j in range(m):
            if g[j] - row[j] > bar:
                indices[k], values[k] = j, row[j]
                k += 1
    return 0.0


@kernel
def softmax_rows(low, high, sums, indptr, indices, values, g, inv_reg, a, f, plan):
    """As `dense.softmax_rows`, in double precision and without relaxation."""
    longest, rate = 0, inv_reg * LOG2E
    for i in range(low, high):
        longest = max(longest, indptr[i + 1] - indptr[i])
    x = np.empty(longest)
    for i in range(low, high):
        start, width = indptr[i], indptr[i + 1] - indptr[i]
        shift, total = -np.inf, 0.0
        for k in range(width):
            x[k] = g[indices[start + k]] - values[start + k]
            shift = max(shift, x[k])
        for k in range(width):
            x[k] = exp2((x[k] - shift) * rate)
            total += x[k]
        f[i] = -shift - np.log(total) / inv_reg
        for k in range(width):
            plan[start + k] = x[k] / total
            sums[0, indices[start + k]] += a[i] * x[k] / total
    return 0.0


@kernel
def scaling_pass(low, high, sums, indptr, indices, plan, a, u, v, relaxation):
    """As `stored.scaling_pass`."""
    row_error = 0.0
    for i in range(low, high):
        s = 0.0
        for k in range(indptr[i], indptr[i + 1]):
            s += plan[k] * v[indices[k]]
        u[i] = relaxed(u[i], s, relaxation)
        row_error += a[i] * abs(u[i] * s - 1.0)
        for k in range(indptr[i], indptr[i + 1]):
            sums[0, indices[k]] += a[i] * u[i] * plan[k]
    return row_error


@kernel
def shift_pass(low, high, sums, indptr, indices, plan, a, growth, change):
    """As `stored.shift_pass`."""
    for i in range(low, high):
        s = 0.0
        for k in range(indptr[i], indptr[i + 1]):
            s += plan[k] * growth[indices[k]]
        change[i] = -s / (1.0 + s)
        for k in range(indptr[i], indptr[i + 1]):
            sums[0, indices[k]] += a[i] * change[i] * plan[k]
    return 0.0


@kernel
def laplacian_product(low, high, sums, indptr, indices, plan, weights, x):
    """As `stored.laplacian_product`."""
    for i in range(low, high):
        s = 0.0
        for k in range(indptr[i], indptr[i + 1]):
            s += plan[k] * x[indices[k]]
        s *= weights[i]
        for k in range(indptr[i], indptr[i + 1]):
            sums[0, indices[k]] += s * plan[k]
    return 0.0


@kernel
def plan_moments(low, high, sums, indptr, indices, plan, weights, v, row_sums):
    """As `stored.plan_moments`."""
    for i in range(low, high):
        s = 0.0
        for k in range(indptr[i], indptr[i + 1]):
            s += plan[k] * v[indices[k]]
        row_sums[i] = s
        for k in range(indptr[i], indptr[i + 1]):
            p = np.float64(plan[k])
            sums[0, indices[k]] += weights[i] * p
            sums[1, indices[k]] += weights[i] * p * p / s
    return 0.0
