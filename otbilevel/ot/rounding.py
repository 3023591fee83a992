"""Rounding a plan to exact marginals: what the certificates are evaluated at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Self

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree

from otbilevel._core.array import Array, device, in_host_memory, to_numpy
from otbilevel.ot import kernels
from otbilevel.ot.kernels.generic import row_blocks
from otbilevel.ot.kernels.pattern import ActiveSet

if TYPE_CHECKING:
    from otbilevel.ot.plan import EntropicPlan, Plan
    from otbilevel.ot.problem import OTProblem

LEFTOVER = 1e-14
"""Mass by which the marginals of a component may differ, and that may be missing in all."""


class Rounding(ABC):
    """A plan Q >= 0 near a plan P, with marginals that are exact as far as they have to be."""

    @abstractmethod
    def rows(self, low: int, high: int, p: Array) -> Array:
        """The rows [low, high) of Q from those of P."""

    @abstractmethod
    def marginals(self, plan: Plan) -> tuple[Array, Array]:
        """The sums of rows and columns of Q, for P = `plan`."""

    @abstractmethod
    def slack(self, plan: Plan, f: Array, g: Array) -> float:
        """<Q, C - f - g> for potentials with f_i + g_j <= C_ij up to rounding, a sum of terms >= 0."""

    @abstractmethod
    def divergence(self, plan: EntropicPlan) -> float:
        """KL(Q | P)."""


@dataclass(frozen=True)
class RankOne(Rounding):
    """Q = diag(x) P diag(y) + u v'.

    Rows, then columns that hold too much are scaled down, and what is then missing is filled in by a plan of rank one.
    J. Altschuler, J. Weed, P. Rigollet, NeurIPS 2017, Algorithm 2.
    """

    x: Array
    y: Array
    u: Array
    v: Array

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Two passes over the plan, a block of rows at a time."""
        problem = plan.problem
        xp, a, b, shape = problem.xp, problem.a, problem.b, problem.geometry.shape
        x = xp.minimum(xp.ones_like(a), a / xp.where(plan.row_sums > 0, plan.row_sums, a))
        columns = xp.zeros_like(b)
        for low, high in row_blocks(shape):
            columns = columns + x[low:high] @ plan.rows(low, high)
        y = xp.minimum(xp.ones_like(b), b / xp.where(columns > 0, columns, b))
        rows = x * xp.concat([plan.rows(low, high) @ y for low, high in row_blocks(shape)])
        return cls.filled(problem, x, y, rows, y * columns)

    @classmethod
    def filled(cls, problem: OTProblem, x: Array, y: Array, rows: Array, columns: Array) -> Self:
        """With what diag(x) P diag(y), whose marginals are given, lacks."""
        xp = problem.xp
        u, v = xp.clip(problem.a - rows, 0, None), xp.clip(problem.b - columns, 0, None)
        total = float(xp.sum(v))
        return cls(x, y, u, v / total if total > 0 else v)

    def rows(self, low: int, high: int, p: Array) -> Array:
        return self.x[low:high, None] * p * self.y[None, :] + self.u[low:high, None] * self.v[None, :]

    def marginals(self, plan: Plan) -> tuple[Array, Array]:
        xp = plan.problem.xp
        rows = self.x * plan.product(self.y[:, None], 1)[:, 0] + self.u * xp.sum(self.v)
        return rows, self.y * plan.product(self.x[:, None], 0)[:, 0] + self.v * xp.sum(self.u)

    def slack(self, plan: Plan, f: Array, g: Array) -> float:
        geometry, xp, total = plan.problem.geometry, plan.problem.xp, 0.0
        for low, high in row_blocks(geometry.shape):
            slack = geometry.rows(low, high) - f[low:high, None] - g[None, :]
            total += float(xp.sum(self.rows(low, high, plan.rows(low, high)) * xp.clip(slack, 0, None)))
        return total

    def divergence(self, plan: EntropicPlan) -> float:
        """By a pass over all pairs, or if nothing is filled in, by one over the plan."""
        xp = plan.problem.xp
        if not bool(xp.any(self.u > 0)):
            rows, columns = self.marginals(plan)
            logs = float(xp.sum(rows * xp.log(self.x))) + float(xp.sum(columns * xp.log(self.y)))
            return max(logs + float(xp.sum(plan.row_sums)) - float(xp.sum(rows)), 0.0)
        total = 0.0
        for low, high in row_blocks(plan.problem.geometry.shape):
            q = self.rows(low, high, plan.rows(low, high))
            total += float(xp.sum(relative_entropy(xp, q, plan.log_rows(low, high))))
        return total


@dataclass(frozen=True)
class OnPairs(Rounding):
    """Q by its entries at some pairs (i, j): all that a vertex has, or the allowed ones of a cost that forbids others.

    A plan of rank one would put mass on those that are forbidden. Instead Q is P plus flows along a spanning forest of the allowed
    pairs. The forest takes the largest entries of P: across every cut it holds the largest one, which can give the most. Where some
    entry cannot give enough, as far from convergence, rows and columns that hold too much are scaled down, and a flow through the
    allowed pairs moves what is then missing.
    """

    i: np.ndarray
    j: np.ndarray
    costs: np.ndarray
    entries: np.ndarray
    problem: OTProblem

    @classmethod
    def of(cls, plan: EntropicPlan) -> OnPairs | None:
        """None when no plan is feasible."""
        problem = plan.problem
        i, j, costs = _allowed_pairs(problem)
        a, b, log_p = to_numpy(problem.a), to_numpy(problem.b), plan.log_entries(i, j, costs)
        q = _along_forest(a, b, i, j, log_p)
        if q is None:
            q = _by_flow(a, b, i, j, np.exp(log_p))
        return None if q is None else cls(i, j, costs, q, problem)

    @classmethod
    def near(cls, problem: OTProblem, matrix: sparse.csr_array) -> OnPairs | None:
        """From a plan, most of whose entries are zero."""
        i, j, costs = _allowed_pairs(problem)
        q = _by_flow(to_numpy(problem.a), to_numpy(problem.b), i, j, np.asarray(matrix[i, j]).ravel())
        return None if q is None else cls(i, j, costs, q, problem)

    @classmethod
    def scaled(cls, plan: EntropicPlan, x: Array, y: Array, fill: tuple[bool, bool]) -> OnPairs | None:
        """diag(x) P diag(y), with a flow for what the rows, or the columns, then lack, where they are to be filled."""
        problem = plan.problem
        i, j, costs = _allowed_pairs(problem)
        a, b, x, y = (to_numpy(v) for v in (problem.a, problem.b, x, y))
        p = np.exp(plan.log_entries(i, j, costs)) * x[i] * y[j]
        q: np.ndarray | None = p
        if fill[0]:
            q = _by_flow(a, b, i, j, p)
        elif fill[1]:
            by_columns = np.lexsort((i, j))
            i, j, costs = i[by_columns], j[by_columns], costs[by_columns]
            q = _by_flow(b, a, j, i, p[by_columns])
        return None if q is None else cls(i, j, costs, q, problem)

    @cached_property
    def matrix(self) -> sparse.csr_array:
        """Q."""
        return sparse.csr_array((self.entries, (self.i, self.j)), shape=self.problem.geometry.shape)

    def rows(self, low: int, high: int, p: Array) -> Array:
        return self.problem.xp.asarray(self.matrix[low:high].toarray(), device=device(p))

    def marginals(self, plan: Plan) -> tuple[Array, Array]:  # noqa: ARG002
        xp, where, (n, m) = self.problem.xp, device(self.problem.a), self.problem.geometry.shape
        sums = np.bincount(self.i, self.entries, n), np.bincount(self.j, self.entries, m)
        return xp.asarray(sums[0], device=where), xp.asarray(sums[1], device=where)

    def slack(self, plan: Plan, f: Array, g: Array) -> float:  # noqa: ARG002
        slack = self.costs - to_numpy(f)[self.i] - to_numpy(g)[self.j]
        return float(np.sum(self.entries * np.clip(slack, 0, None)))

    def divergence(self, plan: EntropicPlan) -> float:
        return float(np.sum(relative_entropy(np, self.entries, plan.log_entries(self.i, self.j, self.costs))))


def _allowed_pairs(problem: OTProblem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if not in_host_memory(problem.a):
        msg = (
            "gap and gap_exact beside forbidden pairs take a flow through the allowed ones, in host memory: solve there, with "
            "these potentials as init"
        )
        raise TypeError(msg)
    return problem.geometry.pairs()


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
    """Fill the rows, by columns that may hold no more than b. None when some mass cannot be moved."""
    n, m = len(a), len(b)
    rows = np.bincount(i, p, n)
    p = p * np.minimum(1.0, a / np.where(rows > 0, rows, a))[i]
    columns = np.bincount(j, p, m)
    p = p * np.minimum(1.0, b / np.where(columns > 0, columns, b))[j]
    pattern, move = ActiveSet.of(i, j, p, (n, m)), kernels.select_sparse().transport_flow
    before = np.inf
    while True:  # flows are rounded to a share of what is missing: the next one moves what the last one could not express
        left, lacking = np.clip(a - np.bincount(i, p, n), 0, None), np.clip(b - np.bincount(j, p, m), 0, None)
        missing = float(left.sum())
        if missing <= LEFTOVER:
            return p
        if not missing < 0.5 * before:
            return None
        before = missing
        p, _, _ = move(pattern, left, lacking, p)


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
