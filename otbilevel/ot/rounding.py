"""Rounding a plan to exact marginals: what the certificates are evaluated at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree

from otbilevel._core.array import Array, device, to_numpy
from otbilevel.ot import kernels
from otbilevel.ot.kernels.generic import row_blocks
from otbilevel.ot.kernels.pattern import ActiveSet
from otbilevel.ot.problem import OTProblem

LEFTOVER = 1e-14
"""Mass by which the marginals of a component may differ, and that may be missing in all."""

Rows = Callable[[int, int], Array]
"""Gives the rows [low, high) of a plan of unit mass on the support."""


class Rounding(Protocol):
    """Turns rows of a plan P into rows of Q >= 0, which has exact marginals."""

    def rows(self, low: int, high: int, p: Array) -> Array:
        """The rows [low, high) of Q from those of P."""
        ...


@dataclass(frozen=True)
class RankOne:
    """Q = diag(x) P diag(y) + u v'.

    Rows, then columns that hold too much are scaled down, and what is then missing is filled in by a plan of rank one.
    J. Altschuler, J. Weed, P. Rigollet, NeurIPS 2017, Algorithm 2.
    """

    x: Array
    y: Array
    u: Array
    v: Array

    @classmethod
    def of(cls, problem: OTProblem, plan: Rows, row_sums: Array) -> RankOne:
        """Two passes over the plan, a block of rows at a time."""
        xp, a, b, shape = problem.xp, problem.a, problem.b, problem.geometry.shape
        x = xp.minimum(xp.ones_like(a), a / xp.where(row_sums > 0, row_sums, a))
        columns = xp.zeros_like(b)
        for low, high in row_blocks(shape):
            columns = columns + x[low:high] @ plan(low, high)
        y = xp.minimum(xp.ones_like(b), b / xp.where(columns > 0, columns, b))
        rows = x * xp.concat([plan(low, high) @ y for low, high in row_blocks(shape)])
        u, v = xp.clip(a - rows, 0, None), xp.clip(b - y * columns, 0, None)
        total = float(xp.sum(v))
        return cls(x, y, u, v / total if total > 0 else v)

    def rows(self, low: int, high: int, p: Array) -> Array:
        return self.x[low:high, None] * p * self.y[None, :] + self.u[low:high, None] * self.v[None, :]


@dataclass(frozen=True)
class OnPairs:
    """Q by its entries at the allowed pairs, for costs with forbidden ones: a plan of rank one would put mass on those.

    Q is P plus flows along a spanning forest of the allowed pairs. The forest takes the largest entries of P: across every cut it
    holds the largest one, which can give the most. Where some entry cannot give enough, as far from convergence, rows and columns
    that hold too much are scaled down, and a flow through the allowed pairs moves what is then missing.
    """

    matrix: sparse.csr_array
    xp: ModuleType

    @classmethod
    def of(cls, problem: OTProblem, i: np.ndarray, j: np.ndarray, log_p: np.ndarray) -> OnPairs | None:
        """From log P_ij for the allowed pairs (i, j), row by row, with sorted columns; None when no plan is feasible."""
        a, b = to_numpy(problem.a), to_numpy(problem.b)
        q = _along_forest(a, b, i, j, log_p)
        if q is None:
            q = _by_flow(a, b, i, j, np.exp(log_p))
        return None if q is None else cls(sparse.csr_array((q, (i, j)), shape=(len(a), len(b))), problem.xp)

    @classmethod
    def near(cls, problem: OTProblem, matrix: sparse.csr_array) -> OnPairs | None:
        """From a plan, most of whose entries are zero."""
        i, j, _ = problem.geometry.pairs()
        q = _by_flow(to_numpy(problem.a), to_numpy(problem.b), i, j, np.asarray(matrix[i, j]).ravel())
        return None if q is None else cls(sparse.csr_array((q, (i, j)), shape=matrix.shape), problem.xp)

    def rows(self, low: int, high: int, p: Array) -> Array:
        return self.xp.asarray(self.matrix[low:high].toarray(), device=device(p))


def _along_forest(a: np.ndarray, b: np.ndarray, i: np.ndarray, j: np.ndarray, log_p: np.ndarray) -> np.ndarray | None:
    """None when an entry would become negative, or when the marginals of a component do not match."""
    n, m = len(a), len(b)
    q = np.exp(log_p)
    missing = np.concatenate([a - np.bincount(i, q, n), b - np.bincount(j, q, m)])
    ends = i.astype(np.int32), (n + j).astype(np.int32)  # SciPy before 1.17 wants 32-bit indices
    forest = minimum_spanning_tree(sparse.csr_array((1.0 + log_p.max() - log_p, ends), shape=(n + m, n + m)))
    edges, flow, leftover = _settle(forest, missing)
    at = np.searchsorted(i.astype(np.int64) * m + j, edges[:, 0] * m + edges[:, 1] - n)
    q[at] += flow
    return None if leftover > LEFTOVER or np.any(q[at] < 0) else q


def _by_flow(a: np.ndarray, b: np.ndarray, i: np.ndarray, j: np.ndarray, p: np.ndarray) -> np.ndarray | None:
    """None when some mass cannot be moved."""
    n, m = len(a), len(b)
    rows = np.bincount(i, p, n)
    p = p * np.minimum(1.0, a / np.where(rows > 0, rows, a))[i]
    columns = np.bincount(j, p, m)
    p = p * np.minimum(1.0, b / np.where(columns > 0, columns, b))[j]
    pattern, move = ActiveSet.of(i, j, p, (n, m)), kernels.select_sparse().transport_flow
    before = np.inf
    while True:  # flows are rounded to a share of what is missing: the next one moves what the last one could not express
        left, lacking = np.clip(a - np.bincount(i, p, n), 0, None), np.clip(b - np.bincount(j, p, m), 0, None)
        missing = max(float(left.sum()), float(lacking.sum()))
        if missing <= LEFTOVER:
            return p
        if not missing < 0.5 * before:
            return None
        before = missing
        p, _, _ = move(pattern, left, lacking, p)


@dataclass(frozen=True)
class Exact:
    """Q = P: the marginals are exact already."""

    def rows(self, low: int, high: int, p: Array) -> Array:  # noqa: ARG002
        return p


def _settle(forest: sparse.csr_array, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Give every node of a forest what it misses, leaves first, each from the edge to its parent.

    Returns the edges as rows (source node, target node), their flows, and the largest amount that a root still misses.
    """
    size = len(missing)
    _, labels = connected_components(forest, directed=False)
    _, roots = np.unique(labels, return_index=True)
    edges = forest.tocoo()
    # One more node, joined to a node of every component, makes the forest a tree: one search instead of one for each component.
    ends = np.concatenate([edges.row, np.full(len(roots), size)]), np.concatenate([edges.col, roots])
    tree = sparse.csr_array((np.ones(len(ends[0])), ends), shape=(size + 1, size + 1))
    order, parents = breadth_first_order(tree, size, directed=False)
    order, balance = order[:0:-1], [*missing.tolist(), 0.0]
    for node, parent in zip(order.tolist(), parents[order].tolist(), strict=True):
        if parent != size:
            balance[parent] -= balance[node]
    children = order[parents[order] != size]
    nodes = np.stack([children, parents[children]], axis=1).astype(np.int64)
    settled = np.array(balance)
    return np.sort(nodes, axis=1), settled[children], float(np.abs(settled[roots]).max())


def relative_entropy(xp: ModuleType, q: Array, log_p: Array) -> Array:
    """q log(q/p) - q + p >= 0, accurate for q near p and for p that underflows."""
    p = xp.exp(log_p)
    near = xp.abs(q - p) < 0.5 * p
    excess = xp.where(near, (q - p) / xp.where(near, p, xp.ones_like(p)), xp.zeros_like(p))
    close = p * ((1.0 + excess) * xp.log1p(excess) - excess)
    positive = q > 0
    log_ratio = xp.log(xp.where(positive, q, xp.ones_like(q))) - xp.where(positive, log_p, xp.zeros_like(p))
    return xp.where(near, close, q * log_ratio - q + p)
