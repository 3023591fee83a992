"""Transport plans as results hold them, with the figures that prove them.

A plan works on the problem of positive weights and unit mass, and answers in the user's points, mass and dtype.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from otbilevel._core.array import Array, device, to_numpy
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.huge import SampledCheck, interpolated_product, interpolated_sums, is_huge
from otbilevel.ot.kernels.generic import row_blocks
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.rounding import OnPairs, Rounding
from otbilevel.ot.transforms import extend_potentials


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
    def residual(self) -> float:
        """What must be at most `tol`: the marginal error, or what constraints are off by if that is more."""
        return self.marginal_error

    @property
    def figures(self) -> str:
        """The same in words."""
        return f"marginal error {self.marginal_error:.2g}"

    @property
    def multipliers(self) -> Array:
        """Dual variables of constraints on the plan, in the user's order and dtype."""
        p = self.problem
        return p.xp.zeros((0,), dtype=p.dtype, device=device(p.a))

    @property
    def constraint_violation(self) -> float:
        """By how much a constraint on the plan is violated, in its own units."""
        return 0.0

    @property
    def marginals(self) -> tuple[Array, Array]:
        """Both marginals in the user's points, mass and dtype."""
        p = self.problem
        sides = ((p.sources, self.row_sums), (p.targets, self.column_sums))
        first, second = (p.xp.astype(support.expand(p.mass * sums), p.dtype) for support, sums in sides)
        return first, second

    @abstractmethod
    def double_potentials(self) -> tuple[Array, Array]:
        """The potentials of the public formula at all of the user's points, in double precision."""

    def potentials(self) -> tuple[Array, Array]:
        """The same in the user's dtype."""
        xp, dtype = self.problem.xp, self.problem.dtype
        f, g = self.double_potentials()
        return xp.astype(f, dtype), xp.astype(g, dtype)

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
    def rows(self, low: int, high: int) -> Array:
        """The rows [low, high) of the plan of unit mass, on the support."""

    @cached_property
    @abstractmethod
    def rounding(self) -> Rounding | None:
        """How to make the marginals exact; None when no way was found."""

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
        """<Q, C> minus the unregularised dual value of the c-transformed potentials; infinite when there is no Q.

        As Q has the exact marginals, that is sum Q_ij (C_ij - f_i - g_j), a sum of terms >= 0: it cannot cancel.
        """
        if self.rounding is None:
            return float("inf")
        geometry = self.problem.geometry
        g = geometry.c_transform_columns(self.f)
        return self.problem.mass * self.rounding.slack(self, geometry.c_transform_rows(g), g)

    def apply(self, vectors: Array, axis: int) -> Array:
        """The plan times vectors, in the user's points, mass and dtype."""
        p = self.problem
        inward, outward = (p.targets, p.sources) if axis == 1 else (p.sources, p.targets)
        columns = p.xp.astype(inward.restrict(vectors), p.xp.float64)
        flat = len(columns.shape) == 1
        product = p.mass * self.product(columns[:, None] if flat else columns, axis)
        return p.xp.astype(outward.expand(product[:, 0] if flat else product), p.dtype)

    def conditional_means(self, y: Array) -> Array:
        """sum_j P_ij y_j / sum_j P_ij at every source, those of zero weight included."""
        p = self.problem
        targets = p.targets.restrict(y)
        means = self.product(targets, 1) / self.row_sums[:, None]
        return p.sources.complete(means, lambda dropped: self._dropped_means(p.whole.restrict(dropped, p.targets.indices), targets))

    @abstractmethod
    def _dropped_means(self, part: Geometry, targets: Array) -> Array:
        """Where the sources of zero weight go; `part` has these and the targets that carry weight."""


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
    sampled: SampledCheck | None = None

    @classmethod
    def certify(cls, problem: OTProblem, f: Array, g: Array) -> EntropicPlan:
        """Sweep once in full precision over the plan that these potentials define, by a kernel that no iteration uses.

        Where that would take minutes, the sums are interpolated and checked directly on a sample of rows and columns.
        """
        geometry = problem.geometry
        if is_huge(geometry):
            return cls(problem, f, g, *interpolated_sums(problem, f, g))
        return cls(problem, f, g, *geometry.kernels.plan_sums(geometry.kernel_cost, f, g, problem.reg, problem.a))

    @property
    def marginal_error(self) -> float:
        return super().marginal_error + (0.0 if self.sampled is None else self.sampled.discrepancy)

    @cached_property
    def unit_potentials(self) -> tuple[Array, Array]:
        """Public potentials on the support for unit mass, with <a, f> = <b, g>."""
        p, xp = self.problem, self.problem.xp
        f, g = self.f, self.g - p.reg * xp.log(p.b)
        shift = 0.5 * (float(xp.sum(p.a * f)) - float(xp.sum(p.b * g)))
        return f - shift, g + shift

    def double_potentials(self) -> tuple[Array, Array]:
        p = self.problem
        f, g = self.unit_potentials
        f, g = extend_potentials(p, f, g, self._soft_rows, self._soft_columns)
        scale = 0.5 * p.reg * float(np.log(p.mass))  # P = (mass a)(mass b) exp(...) must have mass `mass`
        return f - scale, g - scale

    def _soft_rows(self, part: Geometry, g: Array) -> Array:
        return part.soft_transform(g + self.problem.reg * self.problem.xp.log(self.problem.b), self.problem.reg)

    def _soft_columns(self, part: Geometry, f: Array) -> Array:
        p = self.problem
        weighted = p.sources.restrict(f) + p.reg * p.xp.log(p.a)
        return part.restrict(p.sources.indices, None).transpose().soft_transform(weighted, p.reg)

    def value_linear(self) -> float:
        return self.problem.mass * self.linear

    @cached_property
    def _entropy(self) -> tuple[float, float]:
        """reg KL(P | a b^T), and sum P - sum a b^T, for unit mass.

        With t = log(P / (a b^T)) = (f + g - C)/reg they are reg sum a b (t exp(t) - expm1(t)) and sum a b expm1(t). For large reg,
        where t is tiny, that is how to compute them; else the sums of the certifying sweep do.
        """
        p, xp = self.problem, self.problem.xp
        f, g = self.unit_potentials
        low, high = p.geometry.bounds
        if p.reg <= 100 * (high - low):
            excess = float(xp.sum(self.row_sums)) - 1.0
            products = float(xp.sum(f * self.row_sums)) + float(xp.sum(g * self.column_sums))
            return products - self.linear - p.reg * excess, excess
        entropy, excess = self._direct_entropy(f, g)
        return p.reg * entropy, excess

    def _direct_entropy(self, f: Array, g: Array) -> tuple[float, float]:
        """KL(P | a b^T), and sum P - sum a b^T, term by term."""
        p, xp = self.problem, self.problem.xp
        if p.geometry.is_sparse:
            return _entropy_on_pairs(p, f, g)
        entropy = excess = 0.0
        for first, last in row_blocks(p.geometry.shape):
            t = (f[first:last, None] + g[None, :] - p.geometry.rows(first, last)) / p.reg
            ab, growth = p.a[first:last, None] * p.b[None, :], xp.expm1(t)
            if p.geometry.has_forbidden_pairs:  # where t exp(t) is 0
                t = xp.where(t == -float("inf"), xp.zeros_like(t), t)
            excess += float(xp.sum(ab * growth))
            entropy += float(xp.sum(ab * (t * (1.0 + growth) - growth)))
        return entropy, excess

    def value(self) -> float:
        mass, reg = self.problem.mass, self.problem.reg
        entropy, excess = self._entropy
        return mass * (self.linear + entropy) + reg * mass * (mass - 1.0 - float(np.log(mass)) * (1.0 + excess))

    def weight_gradients(self) -> tuple[Array, Array]:
        """The derivatives of the optimal value in a and b, see `gradients.value_gradient`."""
        f, g = self.double_potentials()
        shift = self.problem.reg * (self.problem.mass - 1.0)
        return f + shift, g + shift

    def divergence(self) -> float:
        """KL(P | a b^T)."""
        mass = self.problem.mass
        entropy, excess = self._entropy
        return mass * entropy / self.problem.reg + mass * (mass - 1.0 - float(np.log(mass)) * (1.0 + excess))

    def dual_value(self) -> float:
        p, xp = self.problem, self.problem.xp
        f, g = self.unit_potentials
        excess = self._entropy[1]
        unit = float(xp.sum(p.a * f)) + float(xp.sum(p.b * g)) - p.reg * excess
        return p.mass * unit + p.reg * p.mass * (p.mass - 1.0 - float(np.log(p.mass)))

    def rows(self, low: int, high: int) -> Array:
        p = self.problem
        return p.geometry.kernels.plan_rows(p.geometry.kernel_cost, self.f, self.g, p.reg, p.a, low, high)

    @cached_property
    def rounding(self) -> Rounding | None:
        geometry = self.problem.geometry
        return OnPairs.of(self) if geometry.has_forbidden_pairs else geometry.rank_one.of(self)

    def log_rows(self, low: int, high: int) -> Array:
        """The logarithms of `rows`."""
        p = self.problem
        exponents = (self.f[low:high, None] + self.g[None, :] - p.geometry.rows(low, high)) / p.reg
        return exponents + p.xp.log(p.a[low:high, None])

    def log_entries(self, i: np.ndarray, j: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """log P_ij at pairs (i, j) with these costs, for unit mass, in host memory."""
        f, g, a = (to_numpy(v) for v in (self.f, self.g, self.problem.a))
        logs: np.ndarray = (f[i] + g[j] - costs) / self.problem.reg + np.log(a)[i]
        return logs

    def gap(self) -> float:
        """reg KL(Q | P), which is <Q, C> + reg KL(Q | a b^T) - dual value as Q has the exact marginals.

        Between grids an upper bound of it.
        """
        p = self.problem
        return float("inf") if self.rounding is None else p.mass * p.reg * self.rounding.divergence(self)

    def dense(self) -> Array:
        p = self.problem
        weights = p.mass * p.a
        block = p.geometry.kernels.plan_rows(p.geometry.kernel_cost, self.f, self.g, p.reg, weights, 0, p.geometry.shape[0])
        full = p.sources.expand(block)
        if p.targets.dropped is not None:
            full = p.targets.expand(full.T).T
        return p.xp.astype(full, p.dtype, copy=False)

    def csr(self, drop: float) -> sparse.csr_array:
        p = self.problem
        return user_csr(p, *p.geometry.large_entries(self.f, self.g, p.reg, p.a, drop / p.geometry.shape[1]))

    def product(self, vectors: Array, axis: int) -> Array:
        p = self.problem
        if is_huge(p.geometry):
            return interpolated_product(p, self.f, self.g, vectors, axis)
        return p.geometry.kernels.plan_product(p.geometry.kernel_cost, self.f, self.g, p.reg, p.a, vectors, axis)

    def _dropped_means(self, part: Geometry, targets: Array) -> Array:
        """By the conditional plan that their potentials define."""
        p = self.problem
        f = part.soft_transform(self.g, p.reg)
        return part.kernels.plan_product(part.kernel_cost, f, self.g, p.reg, p.xp.ones_like(f), targets, 1)


def _entropy_on_pairs(problem: OTProblem, f: Array, g: Array) -> tuple[float, float]:
    """Forbidden pairs have t = -inf: each adds a_i b_j to KL(P | a b^T), and takes it from sum P - sum a b^T."""
    i, j, costs = problem.geometry.pairs()
    f, g, a, b = (to_numpy(v) for v in (f, g, problem.a, problem.b))
    t = (f[i] + g[j] - costs) / problem.reg
    ab, growth = a[i] * b[j], np.expm1(t)
    forbidden = a * np.clip(1.0 - np.bincount(i, b[j], len(a)), 0.0, None)
    missing = float(forbidden[np.bincount(i, minlength=len(a)) < len(b)].sum())
    return float(np.sum(ab * (t * (1.0 + growth) - growth))) + missing, float(np.sum(ab * growth)) - missing


def user_csr(problem: OTProblem, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> sparse.csr_array:
    """Entries on the support as a CSR array over all of the user's points."""
    i = rows if problem.sources.indices is None else to_numpy(problem.sources.indices)[rows]
    j = columns if problem.targets.indices is None else to_numpy(problem.targets.indices)[columns]
    dtype = np.float32 if problem.dtype == problem.xp.float32 else np.float64
    return sparse.csr_array(((problem.mass * values).astype(dtype), (i, j)), shape=problem.whole.shape)
