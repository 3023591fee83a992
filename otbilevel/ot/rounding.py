"""Rounding a plan to exact marginals, and what that proves.

With Q >= 0 of exact marginals, <Q, C> + reg KL(Q | a b^T) - dual value = reg KL(Q | P): a sum of terms >= 0, free of cancellation.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

from otbilevel._core.array import Array, to_numpy
from otbilevel.ot.kernels.generic import row_blocks
from otbilevel.ot.problem import OTProblem


class Certificates(NamedTuple):
    """Figures of the rounded plan Q, for unit mass: reg KL(Q | P), and <Q, C>. Infinite where no Q was found."""

    gap: float
    linear: float


def certificates(problem: OTProblem, f: Array, g: Array, row_sums: Array) -> Certificates:
    """Round P_ij = a_i exp((f_i + g_j - C_ij)/reg), whose row sums are given, and evaluate.

    O(n m) time; memory for a block of rows, with forbidden pairs for the n x m array.
    """
    if problem.geometry.has_forbidden_pairs:
        return _along_tree(problem, f, g)
    return _by_rank_one(problem, f, g, row_sums)


def _by_rank_one(problem: OTProblem, f: Array, g: Array, row_sums: Array) -> Certificates:
    """Rows, then columns that hold too much are scaled down; what is then missing is filled in by a plan of rank one.

    J. Altschuler, J. Weed, P. Rigollet, NeurIPS 2017, Algorithm 2.
    """
    p, xp, reg = problem, problem.xp, problem.reg
    kernels, cost = p.geometry.kernels, p.geometry.cost
    x = xp.minimum(xp.ones_like(p.a), p.a / xp.where(row_sums > 0, row_sums, p.a))
    columns = kernels.plan_sums(cost, f + reg * xp.log(x), g, reg, p.a)[1]
    y = xp.minimum(xp.ones_like(p.b), p.b / xp.where(columns > 0, columns, p.b))
    rows, columns, linear = kernels.plan_sums(cost, f + reg * xp.log(x), g + reg * xp.log(y), reg, p.a)
    missing_a, missing_b = xp.clip(p.a - rows, 0, None), xp.clip(p.b - columns, 0, None)
    total = float(xp.sum(missing_b))
    if total > 0:
        missing_b = missing_b / total
    gap = 0.0
    for low, high in row_blocks(p.geometry.shape):
        block = p.geometry.rows(low, high)
        log_p = (f[low:high, None] + g[None, :] - block) / reg + xp.log(p.a[low:high, None])
        added = missing_a[low:high, None] * missing_b[None, :]
        gap += float(xp.sum(_relative_entropy(xp, log_p, x[low:high, None] * y[None, :], added)))
        linear += float(xp.sum(added * block))
    return Certificates(reg * gap, linear)


def _relative_entropy(xp: ModuleType, log_p: Array, scaled: Array, added: Array) -> Array:
    """q log(q/p) - q + p for q = scaled p + added, accurate for q near p and for p that underflows."""
    p = xp.exp(log_p)
    near = added < 1e8 * p
    excess = xp.where(near, scaled - 1.0 + added / xp.where(near, p, xp.ones_like(p)), xp.zeros_like(p))
    close = p * ((1.0 + excess) * xp.log1p(excess) - excess)
    q = scaled * p + added
    positive = q > 0
    log_ratio = xp.log(xp.where(positive, q, xp.ones_like(q))) - xp.where(positive, log_p, xp.zeros_like(p))
    return xp.where(near, close, q * log_ratio - q + p)


def _along_tree(problem: OTProblem, f: Array, g: Array) -> Certificates:
    """Send what is missing along the spanning tree of the allowed pairs whose entries of P are largest.

    A plan of rank one would put mass on forbidden pairs. Across every cut the tree holds the largest entry of P, so
    that it can give the most; if even that is too little, no certificate is found.
    """
    n, m = problem.geometry.shape
    cost = to_numpy(problem.geometry.rows(0, n))
    a, b = to_numpy(problem.a), to_numpy(problem.b)
    log_p = (to_numpy(f)[:, None] + to_numpy(g)[None, :] - cost) / problem.reg + np.log(a)[:, None]
    i, j = np.nonzero(np.isfinite(cost))
    weights = 1.0 + log_p[i, j].max() - log_p[i, j]
    tree = minimum_spanning_tree(sparse.csr_array((weights, (i, n + j)), shape=(n + m, n + m)))
    p = np.exp(log_p)
    missing = np.concatenate([a - p.sum(axis=1), b - p.sum(axis=0)])
    gap, linear = 0.0, float(np.sum(p[i, j] * cost[i, j]))
    for source, target, flow in _tree_flows(tree + tree.T, missing):
        old = p[source, target - n]
        new = old + flow
        if new < 0:
            return Certificates(float("inf"), float("inf"))
        linear += flow * cost[source, target - n]
        if new == 0:
            gap += old
        elif abs(flow) < 1e8 * old:
            excess = flow / old
            gap += old * ((1.0 + excess) * np.log1p(excess) - excess)
        else:
            gap += new * (np.log(new) - log_p[source, target - n]) - new + old
    return Certificates(problem.reg * float(gap), linear)


def _tree_flows(tree: sparse.csr_array, missing: np.ndarray) -> list[tuple[int, int, float]]:
    """The flow on each edge of a forest that gives every node what it misses: leaves first, each settles with its parent."""
    open_balance, flows = missing.copy(), []
    unseen = np.ones(len(missing), dtype=bool)
    while unseen.any():
        order, parents = breadth_first_order(tree, int(np.argmax(unseen)), directed=False)
        unseen[order] = False
        for node in order[:0:-1]:
            parent = parents[node]
            flows.append((min(node, parent), max(node, parent), float(open_balance[node])))
            open_balance[parent] -= open_balance[node]
    return flows
