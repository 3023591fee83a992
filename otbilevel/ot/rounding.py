"""Rounding a plan to exact marginals: what the certificates are evaluated at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

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
    largest one, which can give the most.
    """

    i: np.ndarray
    j: np.ndarray
    flow: np.ndarray
    xp: ModuleType

    @classmethod
    def of(cls, problem: OTProblem, log_p: np.ndarray, missing_a: np.ndarray, missing_b: np.ndarray) -> AlongTree | None:
        """None when an entry would become negative, or when the marginals of a component do not match."""
        n, m = log_p.shape
        i, j = np.nonzero(log_p > -np.inf)
        weights = 1.0 + log_p[i, j].max() - log_p[i, j]
        ends = i.astype(np.int32), (n + j).astype(np.int32)  # SciPy before 1.17 wants 32-bit indices
        tree = minimum_spanning_tree(sparse.csr_array((weights, ends), shape=(n + m, n + m)))
        edges, leftover = _settle(tree + tree.T, np.concatenate([missing_a, missing_b]))
        i, j, flow = edges[:, 0].astype(np.int64), edges[:, 1].astype(np.int64) - n, edges[:, 2]
        if leftover > 1e-14 or np.any(np.exp(log_p[i, j]) + flow < 0):
            return None
        return cls(i, j, flow, problem.xp)

    def rows(self, low: int, high: int, p: Array) -> Array:
        q = np.array(to_numpy(p))
        inside = (self.i >= low) & (self.i < high)
        np.add.at(q, (self.i[inside] - low, self.j[inside]), self.flow[inside])
        return self.xp.asarray(q, device=device(p))


@dataclass(frozen=True)
class Exact:
    """Q = P: the marginals are exact already."""

    def rows(self, low: int, high: int, p: Array) -> Array:  # noqa: ARG002
        return p


def _settle(tree: sparse.csr_array, missing: np.ndarray) -> tuple[np.ndarray, float]:
    """Give every node of a forest what it misses, leaves first, each from the edge to its parent.

    Returns the edges as rows (source node, target node, flow), and the largest amount that a root still misses.
    """
    balance, edges, leftover = missing.copy(), [], 0.0
    unseen = np.ones(len(missing), dtype=bool)
    while unseen.any():
        order, parents = breadth_first_order(tree, int(np.argmax(unseen)), directed=False)
        unseen[order] = False
        for node in order[:0:-1]:
            parent = parents[node]
            edges.append((min(node, parent), max(node, parent), balance[node]))
            balance[parent] -= balance[node]
        leftover = max(leftover, abs(float(balance[order[0]])))
    return np.array(edges).reshape(-1, 3), leftover


def relative_entropy(xp: ModuleType, q: Array, log_p: Array) -> Array:
    """q log(q/p) - q + p >= 0, accurate for q near p and for p that underflows."""
    p = xp.exp(log_p)
    near = xp.abs(q - p) < 0.5 * p
    excess = xp.where(near, (q - p) / xp.where(near, p, xp.ones_like(p)), xp.zeros_like(p))
    close = p * ((1.0 + excess) * xp.log1p(excess) - excess)
    positive = q > 0
    log_ratio = xp.log(xp.where(positive, q, xp.ones_like(q))) - xp.where(positive, log_p, xp.zeros_like(p))
    return xp.where(near, close, q * log_ratio - q + p)
