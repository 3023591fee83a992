"""Compiled sweeps over the stored pairs of a sparse cost: the mathematics of `dense`, in full precision, on a CSR pattern.

Conventions as in `active`, which holds the passes over a stored K.
"""

import numpy as np

from otbilevel.ot.kernels.cpu.active import _add
from otbilevel.ot.kernels.cpu.compile import inlined, kernel
from otbilevel.ot.kernels.cpu.exp import LOG2E, exp2
from otbilevel.ot.kernels.cpu.stored import scaled, yielded


@inlined
def _longest(indptr, low, high):
    """Pairs in the longest of these rows."""
    longest = 0
    for i in range(low, high):
        longest = max(longest, indptr[i + 1] - indptr[i])
    return longest


@inlined
def _exponentials(columns, costs, g, shift, rate, x):
    """x_k <- 2^((g_j - C_ij + shift) rate). Returns their sum."""
    total = 0.0
    for k in range(len(columns)):
        x[k] = g[columns[k]] - costs[k]
    for k in range(len(columns)):
        x[k] = exp2((x[k] + shift) * rate)
        total += x[k]
    return total


@kernel
def softmax_rows(low, high, sums, indptr, indices, values, g, inv_reg, a, f, warm, relaxation, plan, aprox):
    """As `dense.softmax_rows`. The exponents start from the row's maximum, which is cheap here."""
    rate, row_error, column_sums, x = inv_reg * LOG2E, 0.0, sums[0], np.empty(_longest(indptr, low, high))
    for i in range(low, high):
        start, end = indptr[i], indptr[i + 1]
        columns, costs = indices[start:end], values[start:end]
        top = -np.inf
        for k in range(len(columns)):
            top = max(top, g[columns[k]] - costs[k])
        total = _exponentials(columns, costs, g, -top, rate, x)
        fresh, scale = -top - np.log(total) / inv_reg, 1.0 / total
        if relaxation != 1.0 and warm:
            fresh = (1.0 - relaxation) * f[i] + relaxation * fresh
            scale = np.exp((fresh + top) * inv_reg)
            row_error += a[i] * abs(scale * total - 1.0)
        f[i] = fresh
        scaled(x[: len(columns)], scale, plan[start:end])
        _add(x, columns, a[i] * scale * yielded(fresh, inv_reg, aprox), column_sums)
    return row_error


@kernel
def sharpen(low, high, sums, indptr, indices, plan, a, v, squarings, row_sums):
    """As `stored.sharpen`."""
    column_sums, x = sums[0], np.empty(_longest(indptr, low, high))
    for i in range(low, high):
        start, end = indptr[i], indptr[i + 1]
        columns, row, total = indices[start:end], plan[start:end], 0.0
        for k in range(len(columns)):
            power = np.float64(row[k]) * row[k]
            power = power if squarings == 1 else power * power
            x[k] = power * v[columns[k]]
            total += x[k]
        row_sums[i] = total
        scaled(x[: len(columns)], 1.0 / total, row)
        _add(x, columns, a[i] / total, column_sums)
    return 0.0


@kernel
def plan_sums(low, high, sums, indptr, indices, values, f, g, inv_reg, a, row_sums):
    """As `dense.plan_sums`."""
    rate, total_cost, column_sums, x = inv_reg * LOG2E, 0.0, sums[0], np.empty(_longest(indptr, low, high))
    for i in range(low, high):
        start, end = indptr[i], indptr[i + 1]
        columns, costs, t = indices[start:end], values[start:end], 0.0
        row_sums[i] = a[i] * _exponentials(columns, costs, g, f[i], rate, x)
        for k in range(len(columns)):
            t += x[k] * costs[k]
        total_cost += a[i] * t
        _add(x, columns, a[i], column_sums)
    return total_cost


@kernel
def plan_rows(low, high, sums, indptr, indices, values, f, g, inv_reg, a, first, block):  # noqa: ARG001
    """block <- the rows first + [low, high) of the plan, where it is zero so far."""
    rate, x = inv_reg * LOG2E, np.empty(_longest(indptr, first + low, first + high))
    for r in range(low, high):
        i = first + r
        columns, costs, out = indices[indptr[i] : indptr[i + 1]], values[indptr[i] : indptr[i + 1]], block[r]
        _exponentials(columns, costs, g, f[i], rate, x)
        for k in range(len(columns)):
            out[columns[k]] = a[i] * x[k]
    return 0.0


@kernel
def plan_product(low, high, sums, indptr, indices, values, f, g, inv_reg, a, vectors, transpose, out):
    """out_ik <- sum_j P_ij vectors_jk, or (transpose) sums_jk += sum_i P_ij vectors_ik."""
    width, rate, x = vectors.shape[1], inv_reg * LOG2E, np.empty(_longest(indptr, low, high))
    for i in range(low, high):
        columns, costs = indices[indptr[i] : indptr[i + 1]], values[indptr[i] : indptr[i + 1]]
        _exponentials(columns, costs, g, f[i], rate, x)
        for k in range(len(columns)):
            j, p = columns[k], a[i] * x[k]
            for c in range(width):
                if transpose:
                    sums[j, c] += p * vectors[i, c]
                else:
                    out[i, c] += p * vectors[j, c]
    return 0.0


@kernel
def mark(low, high, sums, indptr, indices, plan, v, bars, kept, counts):  # noqa: ARG001
    """kept_k <- whether K_ij v_j > bars_i, counts_i <- how many of row i are. Returns their number."""
    total = 0.0
    for i in range(low, high):
        count, bar = np.int64(0), bars[i]
        for k in range(indptr[i], indptr[i + 1]):
            kept[k] = plan[k] * v[indices[k]] > bar
            count += np.int64(kept[k])
        counts[i] = count
        total += count
    return total


@kernel
def lazy_mark(low, high, sums, indptr, indices, values, f, g, threshold, kept, counts):  # noqa: ARG001
    """kept_k <- whether f_i + g_j - C_ij > threshold, counts_i <- how many of row i are. Returns their number."""
    total = 0.0
    for i in range(low, high):
        count, bar = np.int64(0), threshold - f[i]
        for k in range(indptr[i], indptr[i + 1]):
            kept[k] = g[indices[k]] - values[k] > bar
            count += np.int64(kept[k])
        counts[i] = count
        total += count
    return total


@kernel
def gather(low, high, sums, indptr, indices, values, kept, part_indptr, part_indices, part_values):  # noqa: ARG001
    """The pairs that are kept."""
    for i in range(low, high):
        q = part_indptr[i]
        for k in range(indptr[i], indptr[i + 1]):
            if kept[k]:
                part_indices[q], part_values[q] = indices[k], values[k]
                q += 1
    return 0.0
