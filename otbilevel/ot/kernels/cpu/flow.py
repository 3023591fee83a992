"""A maximum flow from rows to columns through the pairs of a pattern, by pushing and relabelling.

A. V. Goldberg, R. E. Tarjan, A new approach to the maximum-flow problem, Journal of the ACM 35, 1988: first in, first out, with
labels that are made exact by a search from the sink now and then (B. V. Cherkassky, A. V. Goldberg, Algorithmica 19, 1997). Only
its first phase, after which what cannot reach the sink shows the minimum cut. Nodes are the n rows, then the m columns; a row may
send any amount to its columns, a column `room` to the sink, and back to a row what came from there.
"""

import numpy as np

from otbilevel.ot.kernels.cpu.compile import kernel
from otbilevel.ot.kernels.pattern import ActiveSet

PARTS = 2.0**60
"""Of the whole, that flows are counted in: sums of integers are exact."""
SEARCHES = 2
"""Arcs looked at before the next search, in units of those that a search looks at."""


@kernel
def _greedy(indptr, indices, flow, excess, room):
    """Every row sends what its columns have room for."""
    n = len(indptr) - 1
    for i in range(n):
        for k in range(indptr[i], indptr[i + 1]):
            j = indices[k]
            amount = min(excess[i], room[j])
            flow[k] += amount
            excess[i] -= amount
            room[j] -= amount


@kernel
def _search(indptr, indices, starts, rows, flow, room, label, queue):
    """label <- the number of arcs to the sink, n + m at most, or one more where there is no way."""
    n, m = len(indptr) - 1, len(starts) - 1
    tail, nowhere = 0, n + m + 1
    label[:] = nowhere
    for j in range(m):
        if room[j] > 0:
            label[n + j] = 1
            queue[tail] = n + j
            tail += 1
    head = 0
    while head < tail:
        node = queue[head]
        head += 1
        if node < n:
            for k in range(indptr[node], indptr[node + 1]):
                other = n + np.int64(indices[k])
                if flow[k] > 0 and label[other] == nowhere:
                    label[other] = label[node] + 1
                    queue[tail] = other
                    tail += 1
        else:
            for q in range(starts[node - n], starts[node - n + 1]):
                if label[rows[q]] == nowhere:
                    label[rows[q]] = label[node] + 1
                    queue[tail] = rows[q]
                    tail += 1


@kernel
def _discharge_row(i, n, indptr, indices, flow, excess, label):
    """Send all that a row has to its column nearest to the sink. Returns that column's node."""
    best, at = np.int64(label[i] + len(label)), indptr[i]
    for k in range(indptr[i], indptr[i + 1]):
        if label[n + np.int64(indices[k])] < best:
            best, at = label[n + np.int64(indices[k])], k
            if best < label[i]:
                break
    node = n + np.int64(indices[at])
    label[i] = best + 1
    flow[at] += excess[i]
    excess[node] += excess[i]
    excess[i] = 0
    return node


@kernel
def maximum_flow(indptr, indices, starts, pairs, rows, flow, excess, room):
    """flow <- a maximum preflow; excess and room, which start as what rows hold and columns want, <- what is left of them.

    Column j has the `rows` and `pairs` from starts[j] to starts[j + 1].
    """
    n, m = len(indptr) - 1, len(starts) - 1
    size, nowhere = n + m, n + m + 1
    label, queue, waits = np.empty(size, np.int64), np.empty(size, np.int64), np.zeros(size, np.bool_)
    _greedy(indptr, indices, flow, excess, room)
    while True:
        _search(indptr, indices, starts, rows, flow, room, label, queue)
        count, head, work = 0, 0, 0
        for node in range(size):
            waits[node] = excess[node] > 0 and label[node] < nowhere
            if waits[node]:
                queue[count] = node
                count += 1
        if count == 0:
            return
        while count > 0 and work < SEARCHES * len(indices):
            node = queue[head]
            head = 0 if head + 1 == size else head + 1
            count -= 1
            waits[node] = False
            if node < n:
                work += indptr[node + 1] - indptr[node]
                other = _discharge_row(node, n, indptr, indices, flow, excess, label)
                if not waits[other] and label[other] < nowhere:
                    waits[other] = True
                    tail = head + count
                    queue[tail if tail < size else tail - size] = other
                    count += 1
                continue
            j = node - n
            amount = min(excess[node], room[j])
            room[j] -= amount
            excess[node] -= amount
            while excess[node] > 0 and label[node] < nowhere:
                best = nowhere
                work += starts[j + 1] - starts[j]
                for q in range(starts[j], starts[j + 1]):
                    k, i = pairs[q], rows[q]
                    if flow[k] == 0:
                        continue
                    if label[i] < label[node]:
                        amount = min(excess[node], flow[k])
                        flow[k] -= amount
                        excess[node] -= amount
                        excess[i] += amount
                        if not waits[i]:
                            waits[i] = True
                            tail = head + count
                            queue[tail if tail < size else tail - size] = i
                            count += 1
                        if excess[node] == 0:
                            break
                    if flow[k] > 0:
                        best = min(best, label[i])
                if excess[node] > 0:
                    label[node] = best + 1


def transport_flow(
    pattern: ActiveSet, supply: np.ndarray, demand: np.ndarray, flow: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As in `generic_pairs`, with amounts rounded down to multiples of 2^-60 of the whole supply or demand."""
    (n, m), total = pattern.shape, max(float(supply.sum()), float(demand.sum()))
    if total == 0.0:
        return flow, np.zeros(n + m), np.zeros(m)
    order = np.argsort(pattern.indices, kind="stable")
    starts = np.zeros(m + 1, np.int64)
    np.cumsum(np.bincount(pattern.indices, minlength=m), out=starts[1:])
    rows = np.repeat(np.arange(n), np.diff(pattern.indptr))[order]
    # No more than the whole supply ever flows back. Divisions first: tiny totals must not overflow.
    before, excess, room = (np.floor(np.minimum(x / total, 1.0) * PARTS).astype(np.int64) for x in (flow, supply, demand))
    after, excess = before.copy(), np.concatenate([excess, np.zeros(m, np.int64)])
    maximum_flow(pattern.indptr, pattern.indices, starts, order, rows, after, excess, room)
    unit = total / PARTS
    return np.maximum(flow + (after - before) * unit, 0.0), excess * unit, room * unit
