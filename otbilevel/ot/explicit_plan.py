"""A sparse plan with its entries, as linear programming gives it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from otbilevel._core.array import Array, device, to_numpy
from otbilevel.ot.kernels.generic import row_blocks
from otbilevel.ot.plan import Plan, c_transform_columns, c_transform_rows, finite, user_csr
from otbilevel.ot.problem import OTProblem


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

    def potentials(self) -> tuple[Array, Array]:
        p, xp = self.problem, self.problem.xp
        f, g = self.f, self.g
        shift = 0.5 * (float(xp.sum(p.a * f)) - float(xp.sum(p.b * g)))
        f, g = f - shift, g + shift
        inner_f, inner_g = f, g
        if p.sources.dropped is not None:
            part = p.whole.restrict(p.sources.dropped, p.targets.indices)
            f = p.sources.merge(f, finite(xp, c_transform_rows(part, inner_g)))
        if p.targets.dropped is not None:
            part = p.whole.restrict(p.sources.indices, p.targets.dropped)
            g = p.targets.merge(g, finite(xp, c_transform_columns(part, inner_f)))
        return xp.astype(f, p.dtype), xp.astype(g, p.dtype)

    @cached_property
    def _linear(self) -> float:
        coo = self.matrix.tocoo()
        total = 0.0
        for low, high in row_blocks(self.problem.geometry.shape):
            block = to_numpy(self.problem.geometry.rows(low, high))
            inside = (coo.row >= low) & (coo.row < high)
            total += float(np.sum(coo.data[inside] * block[coo.row[inside] - low, coo.col[inside]]))
        return total

    def value_linear(self) -> float:
        return self.problem.mass * self._linear

    def value(self) -> float:
        return self.value_linear()

    def dual_value(self) -> float:
        p, xp = self.problem, self.problem.xp
        return p.mass * (float(xp.sum(p.a * self.f)) + float(xp.sum(p.b * self.g)))

    def gap(self) -> float:
        return self.gap_exact()

    def linear_of_rounded(self) -> float:
        return self._linear

    def dense(self) -> Array:
        p = self.problem
        full = p.targets.expand(p.sources.expand(self._native(p.mass * self.matrix.toarray())).T).T
        return p.xp.astype(full, p.dtype)

    def csr(self, drop: float) -> sparse.csr_array:  # noqa: ARG002 -- a vertex has at most n + m - 1 entries: all are kept
        coo = self.matrix.tocoo()
        return user_csr(self.problem, coo.row, coo.col, coo.data)

    def product(self, vectors: Array, axis: int) -> Array:
        matrix = self.matrix if axis == 1 else self.matrix.T
        return self._native(matrix @ to_numpy(vectors))
