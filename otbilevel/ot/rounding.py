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
from otbilevel.ot.kernels.generic import row_blocks
from otbilevel.ot.problem import OTProblem

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
class AlongTree:
    """Q = P plus flows on the edges (i, j) of a spanning forest of the allowed pairs, for costs with forbidden ones.

    A plan of rank one would put mass on those. The forest takes the largest entries of P: across every cut it holds the
    largest one, which can give the most. `at` says which of the allowed pairs the edges are.
    """

    i: np.ndarray
    j: np.ndarray
    flow: np.ndarray
    at: np.ndarray
    xp: ModuleType

    @classmethod
    def of(
        cls,
        problem: OTProblem,
        i: np.ndarray,
        j: np.ndarray,
        log_p: np.ndarray,
        missing_a: np.ndarray,
        missing_b: np.ndarray,
    ) -> AlongTree | None:
        """From log P_ij for the allowed pairs (i, j), row by row, with sorted columns.

        None when an entry would become negative, or when the marginals of a component do not match.
        """
        n, m = problem.geometry.shape
        ends = i.astype(np.int32), (n + j).astype(np.int32)  # SciPy before 1.17 wants 32-bit indices
        weights = 1.0 + log_p.max() - log_p
        tree = minimum_spanning_tree(sparse.csr_array((weights, ends), shape=(n + m, n + m)))
        nodes, flow, leftover = _settle(tree, np.concatenate([missing_a, missing_b]))
        rows, columns = nodes[:, 0], nodes[:, 1] - n
        at = np.searchsorted(i.astype(np.int64) * m + j, rows * m + columns)
        if leftover > 1e-14 or np.any(np.exp(log_p[at]) + flow < 0):
            return None
        return cls(rows, columns, flow, at, problem.xp)

    def rows(self, low: int, high: int, p: Array) -> Array:
        q = np.array(to_numpy(p))
        inside = (self.i >= low) & (self.i < high)
        q[self.i[inside] - low, self.j[inside]] += self.flow[inside]
        return self.xp.asarray(q, device=device(p))

    def entries(self, p: np.ndarray) -> np.ndarray:
        """The entries of Q at the allowed pairs from those of P."""
        q = p.copy()
        q[self.at] += self.flow
        return q


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
