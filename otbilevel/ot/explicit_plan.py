"""A sparse plan with its entries, as linear programming gives it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from otbilevel._core.array import Array, device, to_numpy
from otbilevel.ot.geometry import Geometry, finite
from otbilevel.ot.plan import Plan, user_csr
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.rounding import OnPairs, RankOne, Rounding
from otbilevel.ot.transforms import extend_potentials


@dataclass(eq=False)
class ExplicitPlan(Plan):
    """A sparse coupling of the support for unit mass, with potentials of unregularised transport."""

    problem: OTProblem
    matrix: sparse.csr_array
    f: Array
    g: Array

    def __post_init__(self) -> None:
        self.row_sums = self._native(self.matrix.sum(axis=1))
        self.column_sums = self._native(self.matrix.sum(axis=0))

    def _native(self, values: np.ndarray) -> Array:
        xp = self.problem.xp
        return xp.asarray(values, dtype=xp.float64, device=device(self.problem.a))

    def double_potentials(self) -> tuple[Array, Array]:
        p, xp = self.problem, self.problem.xp
        shift = 0.5 * (float(xp.sum(p.a * self.f)) - float(xp.sum(p.b * self.g)))
        return extend_potentials(
            p,
            self.f - shift,
            self.g + shift,
            lambda part, g: finite(part.c_transform_rows(g)),
            lambda part, f: finite(part.c_transform_columns(f)),
        )

    @cached_property
    def _entries(self) -> OnPairs:
        """The plan by its entries, with their costs."""
        coo = self.matrix.tocoo()
        return OnPairs(coo.row, coo.col, self.problem.geometry.costs(coo.row, coo.col), coo.data, self.problem)

    def value_linear(self) -> float:
        return self.problem.mass * float(np.sum(self._entries.entries * self._entries.costs))

    def value(self) -> float:
        return self.value_linear()

    def dual_value(self) -> float:
        p, xp = self.problem, self.problem.xp
        return p.mass * (float(xp.sum(p.a * self.f)) + float(xp.sum(p.b * self.g)))

    def gap(self) -> float:
        return self.gap_exact()

    def rows(self, low: int, high: int) -> Array:
        return self._native(self.matrix[low:high].toarray())

    @cached_property
    def rounding(self) -> Rounding | None:
        if self.marginal_error <= 1e-13:
            return self._entries
        if self.problem.geometry.has_forbidden_pairs:
            return OnPairs.near(self.problem, self.matrix)
        return RankOne.of(self)

    def dense(self) -> Array:
        p = self.problem
        full = p.targets.expand(p.sources.expand(self._native(p.mass * self.matrix.toarray())).T).T
        return p.xp.astype(full, p.dtype)

    def csr(self, drop: float) -> sparse.csr_array:  # noqa: ARG002 -- a vertex has at most n + m - 1 entries: all are kept
        coo = self.matrix.tocoo()
        return user_csr(self.problem, coo.row, coo.col, coo.data)

    def _dropped_means(self, part: Geometry, targets: Array) -> Array:
        """The cheapest target, where C_ij - g_j is least."""
        return self.problem.xp.take(targets, part.cheapest(self.g), axis=0)

    def product(self, vectors: Array, axis: int) -> Array:
        matrix = self.matrix if axis == 1 else self.matrix.T
        return self._native(matrix @ to_numpy(vectors))
