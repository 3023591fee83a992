"""Transport plans as results hold them, with the figures that prove them.

A plan works on the problem of positive weights and unit mass, and answers in the user's points, mass and dtype.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

import numpy as np
from scipy import sparse

from otbilevel._core.array import Array, device, to_numpy
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.kernels.generic import row_blocks
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.rounding import Certificates, certificates


class Plan(ABC):
    """A coupling of the problem's weights.

    Attributes
    ----------
    row_sums, column_sums : (n,), (m,) arrays
        Marginals of the plan on the support, for unit mass.
    """

    problem: OTProblem
    row_sums: Array
    column_sums: Array
    f: Array
    g: Array

    @property
    def marginal_error(self) -> float:
        """L1 error of both marginals, relative to the mass."""
        xp, p = self.problem.xp, self.problem
        return float(xp.sum(xp.abs(self.row_sums - p.a))) + float(xp.sum(xp.abs(self.column_sums - p.b)))

    @property
    def marginals(self) -> tuple[Array, Array]:
        """Both marginals in the user's points, mass and dtype."""
        p = self.problem
        sides = ((p.sources, self.row_sums), (p.targets, self.column_sums))
        first, second = (p.xp.astype(support.expand(p.mass * sums), p.dtype) for support, sums in sides)
        return first, second

    @abstractmethod
    def potentials(self) -> tuple[Array, Array]:
        """The potentials of the public formula at all of the user's points."""

    @abstractmethod
    def value_linear(self) -> float:
        """<P, C>."""

    @abstractmethod
    def value(self) -> float:
        """The objective at P."""

    @abstractmethod
    def dual_value(self) -> float:
        """The dual objective at the potentials."""

    @abstractmethod
    def gap(self) -> float:
        """Objective at the rounded plan minus dual value."""

    @abstractmethod
    def linear_of_rounded(self) -> float:
        """<Q, C> of the rounded plan, for unit mass."""

    @abstractmethod
    def dense(self) -> Array:
        """The plan as an (n, m) array."""

    @abstractmethod
    def csr(self, drop: float) -> sparse.csr_array:
        """The plan as a SciPy CSR array, without entries that together hold less than `drop` of the mass."""

    @abstractmethod
    def product(self, vectors: Array, axis: int) -> Array:
        """The plan of unit mass, on the support, times vectors (k columns), summed over `axis`."""

    def gap_exact(self) -> float:
        """<Q, C> minus the unregularised dual value of the c-transformed potentials."""
        p = self.problem
        g = c_transform_columns(p.geometry, self.f)
        f = c_transform_rows(p.geometry, g)
        dual = float(p.xp.sum(p.a * f)) + float(p.xp.sum(p.b * g))
        return p.mass * max(0.0, self.linear_of_rounded() - dual)

    def apply(self, vectors: Array, axis: int) -> Array:
        """The plan times vectors, in the user's points, mass and dtype."""
        p = self.problem
        inward, outward = (p.targets, p.sources) if axis == 1 else (p.sources, p.targets)
        columns = p.xp.astype(inward.restrict(vectors), p.xp.float64)
        flat = len(columns.shape) == 1
        product = p.mass * self.product(columns[:, None] if flat else columns, axis)
        return p.xp.astype(outward.expand(product[:, 0] if flat else product), p.dtype)

    def conditional_means(self, y: Array) -> Array:
        """sum_j P_ij y_j / sum_j P_ij at the sources that carry weight; `EntropicPlan` knows the others, too."""
        p = self.problem
        means = self.product(p.targets.restrict(y), 1) / self.row_sums[:, None]
        return p.sources.expand(means)


@dataclass(eq=False)
class EntropicPlan(Plan):
    """P_ij = a_i exp((f_i + g_j - C_ij)/reg), where g carries the weight b (the public potential plus reg log b).

    Made by `certify`, which computes the sums.
    """

    problem: OTProblem
    f: Array
    g: Array
    row_sums: Array
    column_sums: Array
    linear: float

    @classmethod
    def certify(cls, problem: OTProblem, f: Array, g: Array) -> EntropicPlan:
        """Sweep once in full precision over the plan that these potentials define, by a kernel that no iteration uses."""
        geometry = problem.geometry
        return cls(problem, f, g, *geometry.kernels.plan_sums(geometry.cost, f, g, problem.reg, problem.a))

    @cached_property
    def _support_potentials(self) -> tuple[Array, Array]:
        """Public potentials on the support, with <a, f> = <b, g>."""
        p, xp = self.problem, self.problem.xp
        f, g = self.f, self.g - p.reg * xp.log(p.b)
        shift = 0.5 * (float(xp.sum(p.a * f)) - float(xp.sum(p.b * g)))
        scale = 0.5 * p.reg * float(np.log(p.mass))  # P = (mass a)(mass b) exp(...) must have mass `mass`
        return f - shift - scale, g + shift - scale

    def potentials(self) -> tuple[Array, Array]:
        p, xp = self.problem, self.problem.xp
        f, g = self._support_potentials
        if p.sources.dropped is not None or p.targets.dropped is not None:
            log_mass = float(np.log(p.mass))
            into_f = g + p.reg * (xp.log(p.b) + log_mass)
            into_g = f + p.reg * (xp.log(p.a) + log_mass)
            if p.sources.dropped is not None:
                part = p.whole.restrict(p.sources.dropped, p.targets.indices)
                f = p.sources.merge(f, _soft_transform(part, into_f, p.reg))
            if p.targets.dropped is not None:
                part = p.whole.restrict(p.sources.indices, p.targets.dropped).transpose()
                g = p.targets.merge(g, _soft_transform(part, into_g, p.reg))
        return xp.astype(f, p.dtype), xp.astype(g, p.dtype)

    def _values(self, rows: Array, columns: Array) -> float:
        """<f, rows> + <g, columns> - reg (sum P - sum a b^T), for user's mass and unit marginals."""
        p, xp = self.problem, self.problem.xp
        f, g = self._support_potentials
        linear = p.mass * (float(xp.sum(f * rows)) + float(xp.sum(g * columns)))
        return linear + p.reg * p.mass * (p.mass - float(xp.sum(self.row_sums)))

    def value_linear(self) -> float:
        return self.problem.mass * self.linear

    def value(self) -> float:
        # reg log(P / (a b^T)) = f + g - C, so that <P, C> cancels.
        return self._values(self.row_sums, self.column_sums)

    def dual_value(self) -> float:
        return self._values(self.problem.a, self.problem.b)

    def gap(self) -> float:
        return self.problem.mass * self._certificates.gap

    def linear_of_rounded(self) -> float:
        return self._certificates.linear

    @cached_property
    def _certificates(self) -> Certificates:
        return certificates(self.problem, self.f, self.g, self.row_sums)

    def dense(self) -> Array:
        p = self.problem
        weights = p.mass * p.a
        block = p.geometry.kernels.plan_rows(p.geometry.cost, self.f, self.g, p.reg, weights, 0, p.geometry.shape[0])
        full = p.sources.expand(block)
        if p.targets.dropped is not None:
            full = p.targets.expand(full.T).T
        return p.xp.astype(full, p.dtype, copy=False)

    def csr(self, drop: float) -> sparse.csr_array:
        p = self.problem
        m = p.geometry.shape[1]
        a = to_numpy(p.a)
        rows, columns, values = [], [], []
        for low, high in row_blocks(p.geometry.shape):
            block = to_numpy(p.geometry.kernels.plan_rows(p.geometry.cost, self.f, self.g, p.reg, p.a, low, high))
            i, j = np.nonzero(block > drop * a[low:high, None] / m)
            rows.append(i + low)
            columns.append(j)
            values.append(block[i, j])
        return user_csr(p, np.concatenate(rows), np.concatenate(columns), np.concatenate(values))

    def product(self, vectors: Array, axis: int) -> Array:
        p = self.problem
        return p.geometry.kernels.plan_product(p.geometry.cost, self.f, self.g, p.reg, p.a, vectors, axis)

    def conditional_means(self, y: Array) -> Array:
        """Also at sources of zero weight: their potentials define a conditional plan as well."""
        p, xp = self.problem, self.problem.xp
        targets = p.targets.restrict(y)
        means = self.product(targets, 1) / self.row_sums[:, None]
        if p.sources.dropped is None:
            return means
        part = p.whole.restrict(p.sources.dropped, p.targets.indices)
        f = _soft_transform(part, self.g, p.reg)
        others = part.kernels.plan_product(part.cost, f, self.g, p.reg, xp.ones_like(f), targets, 1)
        return p.sources.merge(means, others)


def user_csr(problem: OTProblem, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> sparse.csr_array:
    """Entries on the support as a CSR array over all of the user's points."""
    i = rows if problem.sources.indices is None else to_numpy(problem.sources.indices)[rows]
    j = columns if problem.targets.indices is None else to_numpy(problem.targets.indices)[columns]
    dtype = np.float32 if problem.dtype == problem.xp.float32 else np.float64
    return sparse.csr_array(((problem.mass * values).astype(dtype), (i, j)), shape=problem.whole.shape)


def _soft_transform(geometry: Geometry, g: Array, reg: float) -> Array:
    """-reg log sum_j exp((g_j - C_ij)/reg) for every row; 0 for a row whose pairs are all forbidden."""
    xp, parts = geometry.xp, []
    for low, high in row_blocks(geometry.shape):
        exponents = (g[None, :] - geometry.rows(low, high)) / reg
        top = finite(xp, xp.max(exponents, axis=1))
        total = xp.sum(xp.exp(exponents - top[:, None]), axis=1)
        parts.append(-reg * (top + xp.log(xp.where(total > 0, total, xp.ones_like(total)))))
    return xp.concat(parts)


def finite(xp: ModuleType, f: Array) -> Array:
    """The same with 0 for what is not finite: the potential of a point whose pairs are all forbidden."""
    return xp.where(xp.isfinite(f), f, xp.zeros_like(f))


def c_transform_rows(geometry: Geometry, g: Array) -> Array:
    """min_j C_ij - g_j."""
    xp = geometry.xp
    return xp.concat([xp.min(geometry.rows(i, k) - g[None, :], axis=1) for i, k in row_blocks(geometry.shape)])


def c_transform_columns(geometry: Geometry, f: Array) -> Array:
    """min_i C_ij - f_i."""
    xp = geometry.xp
    best = xp.full((geometry.shape[1],), float("inf"), dtype=f.dtype, device=device(f))
    for low, high in row_blocks(geometry.shape):
        best = xp.minimum(best, xp.min(geometry.rows(low, high) - f[low:high, None], axis=0))
    return best
