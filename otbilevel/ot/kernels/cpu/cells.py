"""Compiled kernels of interpolated plans: the tree over the points, transfers between points and nodes, the kernel between nodes.

See `otbilevel.ot.cells` for what the arrays mean. Kernels with (low, high, sums) work on that part of their rows, as
`over_rows` wants it.
"""

import numpy as np

from otbilevel.ot.kernels.cpu.compile import kernel
from otbilevel.ot.kernels.cpu.exp import LOG2E, exp2_32, exp2_64

STRIP = 1024
"""Columns that are worked on at a time: their buffers stay in the first-level cache."""


@kernel
def build_tree(points, order, leaf, start, end, left, low, high):
    """Split boxes at the middle of their longest side down to `leaf` points; returns the number of boxes.

    Sorts `points` and `order` in place, so that box k holds the points [start_k, end_k); its parts are left_k and
    left_k + 1, and left_k = -1 where it is not split. low_k, high_k are the corners of the tight box.
    """
    n, d = points.shape
    start[0], end[0] = 0, n
    count, box = 1, 0
    while box < count:
        first, last = start[box], end[box]
        axis = 0
        for k in range(d):
            lo = hi = points[first, k]
            for i in range(first, last):
                lo, hi = min(lo, points[i, k]), max(hi, points[i, k])
            low[box, k], high[box, k] = lo, hi
            if hi - lo > high[box, axis] - low[box, axis]:
                axis = k
        left[box] = -1
        middle = 0.5 * (low[box, axis] + high[box, axis])
        if last - first > leaf and low[box, axis] < middle:
            i, j = first, last - 1
            while i <= j:
                if points[i, axis] < middle:
                    i += 1
                else:
                    for k in range(d):
                        points[i, k], points[j, k] = points[j, k], points[i, k]
                    order[i], order[j] = order[j], order[i]
                    j -= 1
            left[box] = count
            start[count], end[count], start[count + 1], end[count + 1] = first, i, i, last
            count += 2
        box += 1
    return count


@kernel
def cheapest_cut(start, end, left, nodes, tile, chosen):
    """The cut of the tree with the fewest nodes, in the order of the points; returns the number of cells.

    A box may stand for itself by nodes_k interpolation nodes, or by its points where it holds at most `tile` of them.
    """
    count = len(left)
    cost = np.empty(count)
    for box in range(count - 1, -1, -1):
        size, parts = np.float64(end[box] - start[box]), np.inf
        if left[box] >= 0:
            parts = cost[left[box]] + cost[left[box] + 1]
        cost[box] = min(nodes[box], size, parts)
    stack = np.empty(count, np.int64)
    stack[0], depth, cells = 0, 1, 0
    while depth > 0:
        depth -= 1
        box = stack[depth]
        size = np.float64(end[box] - start[box])
        interpolated = nodes[box] <= cost[box] and nodes[box] < size
        if interpolated or left[box] < 0 or (size <= tile and size <= cost[box]):
            chosen[cells] = box
            cells += 1
        else:
            stack[depth], stack[depth + 1] = left[box] + 1, left[box]
            depth += 2
    return cells


@kernel
def lagrange(low, high, sums, points, starts, degrees, centre, radius, offsets, values):  # noqa: ARG001
    """Values at the points of the Lagrange polynomials of every direction's Chebyshev nodes (barycentric formula).

    Those of point i of cell c begin at offsets_c + (i - starts_c) * sum_k degrees_ck, direction after direction.
    """
    d = points.shape[1]
    c = np.searchsorted(starts, low, side="right") - 1
    for i in range(low, high):
        while i >= starts[c + 1]:
            c += 1
        if degrees[c, 0] == 0:
            continue
        width = 0
        for k in range(d):
            width += degrees[c, k]
        at = offsets[c] + (i - starts[c]) * width
        for k in range(d):
            p = degrees[c, k]
            t = (points[i, k] - centre[c, k]) / radius[c, k] if radius[c, k] > 0 else 0.0
            total, hit = 0.0, -1
            for j in range(p):
                angle = (2 * j + 1) * np.pi / (2 * p)
                gap = t - np.cos(angle)
                if gap == 0.0:
                    hit = j
                    break
                w = np.sin(angle) / gap
                values[at + j] = w if j % 2 == 0 else -w
                total += values[at + j]
            for j in range(p):
                values[at + j] = (1.0 if j == hit else 0.0) if hit >= 0 else values[at + j] / total
            at += p
    return 0.0


@kernel
def _heads(values, at, degrees, c, head):
    """Products of the Lagrange values of all directions but the last; returns their number and where the last begin."""
    d = degrees.shape[1]
    head[0], size = 1.0, 1
    for k in range(d - 1):
        p = degrees[c, k]
        for h in range(size - 1, -1, -1):
            for j in range(p - 1, -1, -1):
                head[h * p + j] = head[h] * values[at + j]
        at += p
        size *= p
    return size, at


@kernel
def to_nodes(low, high, sums, starts, nodes, degrees, offsets, values, charges):
    """sums[0] += W' charges: what the points carry, spread over the nodes of their cells."""
    d = degrees.shape[1]
    head = np.empty(int(degrees.max()) ** (d - 1) + 1)
    out = sums[0]
    c = np.searchsorted(starts, low, side="right") - 1
    for i in range(low, high):
        while i >= starts[c + 1]:
            c += 1
        if degrees[c, 0] == 0:
            out[nodes[c] + i - starts[c]] += charges[i]
            continue
        width = 0
        for k in range(d):
            width += degrees[c, k]
        size, at = _heads(values, offsets[c] + (i - starts[c]) * width, degrees, c, head)
        p, base = degrees[c, d - 1], nodes[c]
        for h in range(size):
            weight = charges[i] * head[h]
            for j in range(p):
                out[base + h * p + j] += weight * values[at + j]
    return 0.0


@kernel
def to_points(low, high, sums, starts, nodes, degrees, offsets, values, field, out):  # noqa: ARG001
    """out <- W field: the interpolant through the nodes, at the points."""
    d = degrees.shape[1]
    head = np.empty(int(degrees.max()) ** (d - 1) + 1)
    c = np.searchsorted(starts, low, side="right") - 1
    for i in range(low, high):
        while i >= starts[c + 1]:
            c += 1
        if degrees[c, 0] == 0:
            out[i] = field[nodes[c] + i - starts[c]]
            continue
        width = 0
        for k in range(d):
            width += degrees[c, k]
        size, at = _heads(values, offsets[c] + (i - starts[c]) * width, degrees, c, head)
        p, base, total = degrees[c, d - 1], nodes[c], 0.0
        for h in range(size):
            part = 0.0
            for j in range(p):
                part += field[base + h * p + j] * values[at + j]
            total += head[h] * part
        out[i] = total
    return 0.0


@kernel
def linear_models(low, high, sums, starts, nodes, degrees, points, centre, slopes, places, potential, at_points, at_nodes):  # noqa: ARG001
    """Fit a linear function to the potential in every interpolated cell, and evaluate it at points and nodes.

    Where a cell is its points, both are the potential itself. `slopes` (n, d) maps values to the fitted gradient.
    """
    d = points.shape[1]
    gradient = np.empty(d)
    for c in range(low, high):
        first, last = starts[c], starts[c + 1]
        if degrees[c, 0] == 0:
            for i in range(first, last):
                at_points[i] = potential[i]
                at_nodes[nodes[c] + i - first] = potential[i]
            continue
        mean = 0.0
        for i in range(first, last):
            mean += potential[i]
        mean /= last - first
        for k in range(d):
            s = 0.0
            for i in range(first, last):
                s += slopes[i, k] * (potential[i] - mean)
            gradient[k] = s
        for i in range(first, last):
            s = mean
            for k in range(d):
                s += gradient[k] * (points[i, k] - centre[c, k])
            at_points[i] = s
        for q in range(nodes[c], nodes[c + 1]):
            s = mean
            for k in range(d):
                s += gradient[k] * (places[q, k] - centre[c, k])
            at_nodes[q] = s
    return 0.0


@kernel
def near_ranges(low, high, sums, lows, highs, top_f, other_lows, other_highs, top_g, other_nodes, cut, counts, firsts, lasts, fill):  # noqa: ARG001
    """Ranges of target nodes that a source cell can reach: max f + max g - dist^2 > cut. Neighbouring ranges are joined.

    First with ``fill=False`` to count them, then with the cumulated counts to write them.
    """
    d = lows.shape[1]
    for b in range(low, high):
        found, end = np.int64(0), np.int64(-1)
        at = counts[b] if fill else np.int64(0)
        for s in range(len(top_g)):
            distance = 0.0
            for k in range(d):
                gap = max(lows[b, k] - other_highs[s, k], other_lows[s, k] - highs[b, k], 0.0)
                distance += gap * gap
            if top_f[b] + top_g[s] - distance > cut:
                if end != other_nodes[s]:
                    if fill:
                        firsts[at + found] = other_nodes[s]
                    found += 1
                end = other_nodes[s + 1]
                if fill:
                    lasts[at + found - 1] = end
        if not fill:
            counts[b] = found
    return 0.0


@kernel
def _slacks(point, yt, f, g, out):
    """out <- f + g_j - |point - y_j|^2, in one loop where there are two or three coordinates: it is all arithmetic then."""
    d = len(yt)
    if d == 2:
        x0, x1 = point[0], point[1]
        for j in range(len(g)):
            out[j] = f + g[j] - (x0 - yt[0, j]) ** 2 - (x1 - yt[1, j]) ** 2
    elif d == 3:
        x0, x1, x2 = point[0], point[1], point[2]
        for j in range(len(g)):
            out[j] = f + g[j] - (x0 - yt[0, j]) ** 2 - (x1 - yt[1, j]) ** 2 - (x2 - yt[2, j]) ** 2
    else:
        for j in range(len(g)):
            out[j] = f + g[j]
        for k in range(d):
            for j in range(len(g)):
                out[j] -= (point[k] - yt[k, j]) ** 2


@kernel
def _row(x, yt, f, g, inv_reg, single, q, first, last, z, z32, out):
    """out <- exp((f_q + g_l - |x_q - y_l|^2) / reg) for the nodes l of [first, last)."""
    rate = inv_reg * LOG2E
    for strip in range(first, last, STRIP):
        width, at = min(STRIP, last - strip), strip - first
        _slacks(x[q], yt[:, strip : strip + width], f[q], g[strip : strip + width], z)
        if single:
            for j in range(width):
                z32[j] = z[j] * rate
            for j in range(width):
                out[at + j] = exp2_32(z32[j])
        else:
            for j in range(width):
                out[at + j] = exp2_64(z[j] * rate)


@kernel
def fill(low, high, sums, x, yt, f, g, inv_reg, single, cells, ptr, firsts, lasts, offsets, values):  # noqa: ARG001
    """Store the kernel between nodes: row q, in cell cells_q, begins at offsets_q, range after range."""
    z, z32 = np.empty(STRIP), np.empty(STRIP, np.float32)
    for q in range(low, high):
        c, at = cells[q], offsets[q]
        for r in range(ptr[c], ptr[c + 1]):
            size = lasts[r] - firsts[r]
            _row(x, yt, f, g, inv_reg, single, q, firsts[r], lasts[r], z, z32, values[at : at + size])
            at += size
    return 0.0


@kernel
def multiply(low, high, sums, cells, ptr, firsts, lasts, offsets, values, v, out):  # noqa: ARG001
    """out_q <- sum_l K_ql v_l for a stored kernel between nodes."""
    for q in range(low, high):
        c, at, total = cells[q], offsets[q], 0.0
        for r in range(ptr[c], ptr[c + 1]):
            part, first = 0.0, firsts[r]
            for j in range(lasts[r] - first):
                part += values[at + j] * v[first + j]
            total += part
            at += lasts[r] - first
        out[q] = total
    return 0.0


@kernel
def multiply_transposed(low, high, sums, cells, ptr, firsts, lasts, offsets, values, u):
    """sums[0]_l += sum_q K_ql u_q for a stored kernel between nodes."""
    out = sums[0]
    for q in range(low, high):
        c, at = cells[q], offsets[q]
        for r in range(ptr[c], ptr[c + 1]):
            first = firsts[r]
            for j in range(lasts[r] - first):
                out[first + j] += u[q] * values[at + j]
            at += lasts[r] - first
    return 0.0


@kernel
def multiply_lazy(low, high, sums, x, yt, f, g, inv_reg, single, cells, ptr, firsts, lasts, v, out):  # noqa: ARG001
    """As `multiply`, with the kernel computed on the way."""
    z, z32, row = np.empty(STRIP), np.empty(STRIP, np.float32), np.empty(STRIP)
    for q in range(low, high):
        c, total = cells[q], 0.0
        for r in range(ptr[c], ptr[c + 1]):
            for first in range(firsts[r], lasts[r], STRIP):
                last = min(first + STRIP, lasts[r])
                _row(x, yt, f, g, inv_reg, single, q, first, last, z, z32, row)
                part = 0.0
                for j in range(last - first):
                    part += row[j] * v[first + j]
                total += part
        out[q] = total
    return 0.0


@kernel
def multiply_transposed_lazy(low, high, sums, x, yt, f, g, inv_reg, single, cells, ptr, firsts, lasts, u):
    """As `multiply_transposed`, with the kernel computed on the way."""
    z, z32, row, out = np.empty(STRIP), np.empty(STRIP, np.float32), np.empty(STRIP), sums[0]
    for q in range(low, high):
        c = cells[q]
        for r in range(ptr[c], ptr[c + 1]):
            for first in range(firsts[r], lasts[r], STRIP):
                last = min(first + STRIP, lasts[r])
                _row(x, yt, f, g, inv_reg, single, q, first, last, z, z32, row)
                for j in range(last - first):
                    out[first + j] += u[q] * row[j]
    return 0.0
