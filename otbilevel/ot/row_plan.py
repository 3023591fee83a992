"""The plan with exact rows: what Sinkhorn's and Newton's method have in common.

Eliminating f by its own optimality condition, f_i(g) = -reg log sum_j exp((g_j - C_ij)/reg), leaves the concave semi-dual

    S(g) = <a, f(g)> + <b, g>,    gradient b - c(g),    Hessian -(1/reg) L(g),

where K_ij = exp((f_i + g_j - C_ij)/reg) has row sums 1, P = diag(a) K is the plan, c = K'a its column sums, and
L = diag(c) - K' diag(a) K the Laplacian of a graph on the columns (positive semi-definite, L 1 = 0).
Here g carries the weight b: it is the potential of the public formula plus reg log b.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from otbilevel._core.array import Array, array_namespace
from otbilevel.ot.geometry import Geometry


@dataclass
class Work:
    """Counts of passes over the cost or the plan."""

    sweeps: int = 0
    """Passes with an exponential per entry."""
    products: int = 0
    """Passes of products only."""


@dataclass(frozen=True)
class Laplacian:
    """L = diag(degree) - K' diag(weights) K as a linear operator.

    Row sums and degrees are those of the K in use, so that L is the exact Laplacian of a graph whose weights carry K's
    rounding errors: spectrally equivalent to the true one within them, however small the eigenvalues.
    With the exact a and c instead, single precision makes it indefinite by 1e-8, and Newton's method stalls there.
    """

    plan: RowPlan
    weights: Array
    degree: Array
    inverse_diagonal: Array

    @classmethod
    def of(cls, plan: RowPlan, row_sums: Array, degree: Array, squares: Array) -> Laplacian:
        """The Laplacian from the moments of K, see `plan_moments`."""
        xp = array_namespace(degree)
        # Where a column hangs on one row, degree - squares cancels; a column that underflowed has degree 0.
        diagonal = xp.maximum(degree - squares, 1e-9 * degree)
        inverse = 1.0 / xp.where(diagonal > 0, diagonal, xp.ones_like(diagonal))
        return cls(plan, plan.a / row_sums, degree, inverse)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, m)."""
        return (self.degree.shape[0], self.degree.shape[0])

    def matvec(self, x: Array, /) -> Array:
        """Return L x."""
        return self.degree * x - self.plan.product(self.weights, x)

    def jacobi(self, r: Array) -> Array:
        """Return diag(L)^-1 r."""
        return self.inverse_diagonal * r


class RowPlan(ABC):
    """K at given potentials and regularisation. `sweep` first.

    Attributes
    ----------
    f, g : (n,), (m,) arrays
        Potentials of the last sweep.
    reg : float
        Regularisation of the last sweep.
    column_sums : (m,) array
        c = K'a.
    row_error : float
        L1 error of the row sums: 0 unless over-relaxed.
    """

    f: Array | None = None
    g: Array
    reg: float
    column_sums: Array
    row_error: float

    def __init__(self, kernels: ModuleType, cost: Any, a: Array, work: Work) -> None:
        self.kernels = kernels
        self.cost = cost
        self.a = a
        self.work = work

    @abstractmethod
    def sweep(self, g: Array, reg: float, *, single: bool = False, relaxation: float = 1.0) -> None:
        """Compute f(g) and K; `single` allows exponentials in single precision."""

    @abstractmethod
    def scaling_pass(self, v: Array, relaxation: float = 1.0) -> tuple[Array, float]:
        """Return the column sums, and the L1 error of the row sums, of the plan at g + reg log v."""

    @abstractmethod
    def row_potentials(self) -> Array:
        """Return f after the last sweep or scaling pass."""

    @abstractmethod
    def laplacian(self) -> Laplacian:
        """Return L at the last sweep."""

    @abstractmethod
    def product(self, weights: Array, x: Array) -> Array:
        """Return K' diag(weights) K x."""


class StoredPlan(RowPlan):
    """K kept in memory; a scaling pass and a product cost a fraction of a sweep.

    On an active set (sparse kernels) only the kept pairs exist.
    """

    def __init__(self, kernels: ModuleType, cost: Any, a: Array, work: Work, storage: Any) -> None:
        super().__init__(kernels, cost, a, work)
        self._k = storage
        self._u: Array | None = None  # row scalings since the last sweep

    @classmethod
    def dense(cls, geometry: Geometry, a: Array, work: Work, *, single: bool) -> StoredPlan:
        """Room for all n x m entries, in single or double precision."""
        storage = geometry.kernels.new_plan(geometry.shape, a, single=single)
        return cls(geometry.kernels, geometry.cost, a, work, storage)

    def sweep(self, g: Array, reg: float, *, single: bool = False, relaxation: float = 1.0) -> None:
        xp = array_namespace(self.a)
        self.work.sweeps += 1
        start = None if self.f is None else self.row_potentials()
        self.g, self.reg = g, reg
        self.f, self._k, self.column_sums, self.row_error = self.kernels.softmax_rows(
            self.cost, g, reg, self.a, start, self._k, single=single, relaxation=relaxation
        )
        self._u = xp.ones_like(self.a)

    def scaling_pass(self, v: Array, relaxation: float = 1.0) -> tuple[Array, float]:
        self.work.products += 1
        self._u, sums, row_error = self.kernels.scaling_pass(self._k, self.a, self._u, v, relaxation)
        return v * sums, row_error

    def row_potentials(self) -> Array:
        return self.f if self._u is None else self.f + self.reg * array_namespace(self.a).log(self._u)

    def laplacian(self) -> Laplacian:
        row_sums, degree, squares = self.kernels.plan_moments(self._k, self.a)
        return Laplacian.of(self, row_sums, degree, squares)

    def product(self, weights: Array, x: Array) -> Array:
        self.work.products += 1
        return self.kernels.laplacian_product(self._k, weights, x)


class LazyPlan(RowPlan):
    """K computed anew at every pass, in O(n + m) memory; every pass is a sweep."""

    def __init__(self, geometry: Geometry, a: Array, work: Work) -> None:
        super().__init__(geometry.kernels, geometry.cost, a, work)

    def sweep(self, g: Array, reg: float, *, single: bool = False, relaxation: float = 1.0) -> None:
        self._base, self._single = g, single
        self._evaluate(g, reg, relaxation)

    def _evaluate(self, g: Array, reg: float, relaxation: float) -> None:
        self.work.sweeps += 1
        self.g, self.reg = g, reg
        self.f, _, self.column_sums, self.row_error = self.kernels.softmax_rows(
            self.cost, g, reg, self.a, self.f, None, single=self._single, relaxation=relaxation
        )

    def scaling_pass(self, v: Array, relaxation: float = 1.0) -> tuple[Array, float]:
        xp = array_namespace(v)
        self._evaluate(self._base + self.reg * xp.log(v), self.reg, relaxation)
        return self.column_sums, self.row_error

    def row_potentials(self) -> Array:
        return self.f

    def laplacian(self) -> Laplacian:
        self.work.sweeps += 1
        row_sums, degree, squares = self.kernels.lazy_moments(self.cost, self.f, self.g, self.reg, self.a)
        return Laplacian.of(self, row_sums, degree, squares)

    def product(self, weights: Array, x: Array) -> Array:
        self.work.sweeps += 1
        return self.kernels.lazy_product(self.cost, self.f, self.g, self.reg, weights, x)
