"""Plans on the stored pairs of a sparse cost: their figures in O(pairs)."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from otbilevel.ot.explicit_plan import ExplicitPlan
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.plan import EntropicPlan, Plan, user_csr
from otbilevel.ot.rounding import OnPairs, relative_entropy

if TYPE_CHECKING:
    from otbilevel.ot.sparse_cost import SparseCost


class SparsePlan(EntropicPlan):
    """An entropic plan, some of whose pairs are not stored and carry nothing."""

    @property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns, and log P_ij for unit mass."""
        p = self.problem
        i, j, costs = p.geometry.pairs()
        return i, j, (self.f[i] + self.g[j] - costs) / p.reg + np.log(p.a)[i]

    def _direct_entropy(self, f: np.ndarray, g: np.ndarray) -> tuple[float, float]:
        """Pairs that are not stored have t = -inf: each adds a_i b_j to the entropy, and takes it from the sum."""
        p = self.problem
        i, j, costs = p.geometry.pairs()
        t = (f[i] + g[j] - costs) / p.reg
        ab, growth = p.a[i] * p.b[j], np.expm1(t)
        forbidden = p.a * np.clip(1.0 - np.bincount(i, p.b[j], len(p.a)), 0.0, None)
        missing = float(forbidden[np.bincount(i, minlength=len(p.a)) < len(p.b)].sum())
        entropy = float(np.sum(ab * (t * (1.0 + growth) - growth))) + missing
        return entropy, float(np.sum(ab * growth)) - missing

    @cached_property
    def rounding(self) -> OnPairs | None:
        return OnPairs.of(self.problem, *self._pairs)

    def gap(self) -> float:
        if self.rounding is None:
            return float("inf")
        p = self.problem
        return p.mass * p.reg * float(np.sum(relative_entropy(np, self.rounding.matrix.data, self._pairs[2])))

    def gap_exact(self) -> float:
        return float("inf") if self.rounding is None else _gap_exact(self, self.rounding.matrix)

    def csr(self, drop: float) -> sparse.csr_array:
        i, j, log_p = self._pairs
        values = np.exp(log_p)
        kept = values > drop * self.problem.a[i] / self.problem.geometry.shape[1]
        return user_csr(self.problem, i[kept], j[kept], values[kept])


class SparseVertex(ExplicitPlan):
    """A vertex of the transport polytope of the stored pairs."""

    @cached_property
    def _linear(self) -> float:
        i, j, costs = self.problem.geometry.pairs()
        return float(sparse.csr_array((costs, (i, j)), shape=self.matrix.shape).multiply(self.matrix).sum())

    def gap_exact(self) -> float:
        if self.rounding is None:
            return float("inf")
        return _gap_exact(self, self.rounding.matrix if isinstance(self.rounding, OnPairs) else self.matrix)

    def _dropped_means(self, part: Geometry, targets: np.ndarray) -> np.ndarray:
        i, j, costs = part.pairs()
        order = np.lexsort((j, costs - self.g[j], i))  # the first of every row is the cheapest, the first of these where some tie
        rows, first = np.unique(i[order], return_index=True)
        cheapest = np.zeros(part.shape[0], np.int64)
        cheapest[rows] = j[order][first]
        return targets[cheapest]


def _gap_exact(plan: Plan, q: Any) -> float:
    """As `Plan.gap_exact`, for the rounded plan Q as a sparse array."""
    geometry: SparseCost = plan.problem.geometry  # type: ignore[assignment]
    g = geometry.c_transform_columns(plan.f)
    f = geometry.c_transform_rows(g)
    i, j, costs = geometry.pairs()
    slack = sparse.csr_array((np.clip(costs - f[i] - g[j], 0.0, None), (i, j)), shape=geometry.shape)
    return plan.problem.mass * float(slack.multiply(q).sum())
