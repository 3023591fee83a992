"""Compiled kernels on an active set: the same mathematics as `dense` and `stored`, on the pairs that a CSR pattern keeps.

Column numbers are unsigned, as numba would ask of signed ones whether they count from the end; and sums run four side by side, as
each waits for its last addition.
"""

import numpy as np

from otbilevel.ot.kernels.cpu.compile import inlined, kernel
from otbilevel.ot.kernels.cpu.cost import cost_row
from otbilevel.ot.kernels.cpu.exp import LOG2E, exp2
from otbilevel.ot.kernels.cpu.stored import relaxed, yielded


@inlined
def _write(marks, chosen, costs, columns, values):
    """The marked columns of a row and their costs; nothing, and 1.0 is returned, if these are not as many as there is room for.

    `marks` has zeros up to the next multiple of eight, `chosen` room for one number more than there are columns. Marks are passed
    over eight at a time; where one of them is set there is no branch, as no processor could foresee it.
    """
    m, k = len(costs), np.uint64(0)
    words = marks[: 8 * ((m + 7) // 8)].view(np.uint64)
    for w in range(len(words)):
        if words[w] != np.uint64(0):
            for r in range(8):
                chosen[k] = 8 * w + r
                k += np.uint64(marks[8 * w + r])
    fits = k == np.uint64(len(columns))
    for q in range(len(columns) if fits else 0):
        columns[q] = chosen[q]
        values[q] = costs[chosen[q]]
    return 0.0 if fits else 1.0


@inlined
def _dot(entries, columns, x):
    s0 = s1 = s2 = s3 = 0.0
    fours = len(columns) // 4
    for q in range(fours):
        k = 4 * q
        s0 += entries[k] * x[columns[k]]
        s1 += entries[k + 1] * x[columns[k + 1]]
        s2 += entries[k + 2] * x[columns[k + 2]]
        s3 += entries[k + 3] * x[columns[k + 3]]
    for k in range(4 * fours, len(columns)):
        s0 += entries[k] * x[columns[k]]
    return s0 + s1 + s2 + s3


@inlined
def _add(entries, columns, s, out):
    """out += s times the row."""
    fours = len(columns) // 4
    for q in range(fours):
        k = 4 * q
        out[columns[k]] += s * entries[k]
        out[columns[k + 1]] += s * entries[k + 1]
        out[columns[k + 2]] += s * entries[k + 2]
        out[columns[k + 3]] += s * entries[k + 3]
    for k in range(4 * fours, len(columns)):
        out[columns[k]] += s * entries[k]


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
    """Write the columns and costs of the pairs that `count` counted. Returns how many rows now have another number of them."""
    m, misfits = len(v), 0.0
    buffer, marks, chosen = np.empty(m), np.zeros(m + 7, np.uint8), np.empty(m + 1, np.uint32)
    for i in range(low, high):
        row, bar = plan[i], bars[i]
        for j in range(m):
            marks[j] = np.uint8(1) if row[j] * v[j] > bar else np.uint8(0)
        start, end = indptr[i], indptr[i + 1]
        misfits += _write(marks, chosen, cost_row(cost, i, buffer), indices[start:end], values[start:end])
    return misfits


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
    """Write the columns and costs of the pairs that `lazy_count` counted. Returns how many rows now have another number of them."""
    m, misfits = len(g), 0.0
    buffer, marks, chosen = np.empty(m), np.zeros(m + 7, np.uint8), np.empty(m + 1, np.uint32)
    for i in range(low, high):
        row, bar = cost_row(cost, i, buffer), threshold - f[i]
        for j in range(m):
            marks[j] = np.uint8(1) if g[j] - row[j] > bar else np.uint8(0)
        start, end = indptr[i], indptr[i + 1]
        misfits += _write(marks, chosen, row, indices[start:end], values[start:end])
    return misfits


@kernel
def softmax_rows(low, high, sums, indptr, indices, values, g, inv_reg, a, f, plan, aprox):
    """As `dense.softmax_rows`, in double precision and without relaxation."""
    longest, rate, column_sums = 0, inv_reg * LOG2E, sums[0]
    for i in range(low, high):
        longest = max(longest, indptr[i + 1] - indptr[i])
    x = np.empty(longest)
    for i in range(low, high):
        start, end = indptr[i], indptr[i + 1]
        columns, costs, row = indices[start:end], values[start:end], plan[start:end]
        shift, total = -np.inf, 0.0
        for k in range(len(columns)):
            x[k] = g[columns[k]] - costs[k]
            shift = max(shift, x[k])
        for k in range(len(columns)):
            x[k] = exp2((x[k] - shift) * rate)
            total += x[k]
        f[i] = -shift - np.log(total) / inv_reg
        for k in range(len(columns)):
            row[k] = x[k] / total
        _add(x, columns, a[i] / total * yielded(f[i], inv_reg, aprox), column_sums)
    return 0.0


@kernel
def scaling_pass(low, high, sums, indptr, indices, plan, a, u, v, relaxation, f, inv_reg, aprox):
    """As `stored.scaling_pass`."""
    row_error, column_sums = 0.0, sums[0]
    for i in range(low, high):
        columns, row = indices[indptr[i] : indptr[i + 1]], plan[indptr[i] : indptr[i + 1]]
        s = _dot(row, columns, v)
        u[i] = relaxed(u[i], s, relaxation)
        row_error += a[i] * abs(u[i] * s - 1.0)
        _add(row, columns, a[i] * u[i] * yielded(f[i] + np.log(u[i]) / inv_reg, inv_reg, aprox), column_sums)
    return row_error


@kernel
def shift_pass(low, high, sums, indptr, indices, plan, a, growth, change):
    """As `stored.shift_pass`."""
    column_sums = sums[0]
    for i in range(low, high):
        columns, row = indices[indptr[i] : indptr[i + 1]], plan[indptr[i] : indptr[i + 1]]
        s = _dot(row, columns, growth)
        change[i] = -s / (1.0 + s)
        _add(row, columns, a[i] * change[i], column_sums)
    return 0.0


@kernel
def laplacian_product(low, high, sums, indptr, indices, plan, weights, x):
    """As `stored.laplacian_product`."""
    column_sums = sums[0]
    for i in range(low, high):
        columns, row = indices[indptr[i] : indptr[i + 1]], plan[indptr[i] : indptr[i + 1]]
        _add(row, columns, weights[i] * _dot(row, columns, x), column_sums)
    return 0.0


@kernel
def plan_moments(low, high, sums, indptr, indices, plan, weights, v, row_sums):
    """As `stored.plan_moments`."""
    column_sums, squares = sums[0], sums[1]
    for i in range(low, high):
        columns, row = indices[indptr[i] : indptr[i + 1]], plan[indptr[i] : indptr[i + 1]]
        row_sums[i] = _dot(row, columns, v)
        _add(row, columns, weights[i], column_sums)
        share = weights[i] / row_sums[i]
        for k in range(len(columns)):
            squares[columns[k]] += share * row[k] * row[k]
    return 0.0
