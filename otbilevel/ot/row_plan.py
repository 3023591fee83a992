"""The plan with exact rows: what Sinkhorn's and Newton's method have in common.

Eliminating f by its own optimality condition, f_i(g) = -reg log sum_j exp((g_j - C_ij)/reg), leaves the concave semi-dual

    S(g) = <a, f(g)> + <b, g>,    gradient b - c(g),    Hessian -(1/reg) L(g),

where K_ij = exp((f_i + g_j - C_ij)/reg) has row sums 1, P = diag(a) K is the plan, c = K'a its column sums, and
L = diag(c) - K' diag(a) K the Laplacian of a graph on the columns (positive semi-definite, L 1 = 0).
Here g carries the weight b: it is the potential of the public formula plus reg log b.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from otbilevel._core.array import Array, array_namespace
from otbilevel.linalg import cg
from otbilevel.ot.geometry import Geometry


SQUARINGS = {2.0: 1, 4.0: 2}
"""How often entries of K are squared when reg falls by a factor."""
SINGLE_EPS = 2.0**-24
"""Relative rounding error of a number in single precision."""
ACTIVE_REACH = 50.0
"""As for a dense plan in single precision."""
LARGEST_GROWTH = 1.0
"""Of v - 1 where only that is rounded."""
LARGEST_SCALING = 600.0
"""Logarithm up to which a scaling neither overflows nor lets K v underflow."""


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
    def of(cls, plan: RowPlan, weights: Array, degree: Array, squares: Array) -> Laplacian:
        """The Laplacian from the moments of K, see `plan_moments`."""
        xp = array_namespace(degree)
        # Where a column hangs on one row, degree - squares cancels; a column that underflowed has degree 0.
        diagonal = xp.maximum(degree - squares, 1e-9 * degree)
        inverse = 1.0 / xp.where(diagonal > 0, diagonal, xp.ones_like(diagonal))
        return cls(plan, weights, degree, inverse)

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
    """A plan with exact rows. `sweep` first; scaling passes then move it, until the next sweep.

    Attributes
    ----------
    g : (m,) array
        Where the plan is.
    reg : float
        Its regularisation.
    column_sums : (m,) array
        c = K'a there.
    row_error : float
        L1 error of the row sums: 0 unless over-relaxed.
    single : bool
        Whether these figures have single precision only.
    complete : bool
        Whether all pairs take part: not so on an active set.
    preconditioner
        What a solve may leave to the next one, on this plan or on another one between the same points.
    """

    g: Array
    reg: float
    column_sums: Array
    row_error: float
    single: bool
    complete = True
    _base_g: Array  # where the last sweep was

    def __init__(self, kernels: ModuleType, cost: Any, a: Array, work: Work) -> None:
        self.xp: ModuleType = array_namespace(a)
        self.kernels = kernels
        self.cost = cost
        self.a = a
        self.work = work
        self.preconditioner: Any = None
        self._measured: tuple[Array, float] | None = None
        self.restart()

    def marginal_error(self, b: Array) -> float:
        """L1 error of both marginals; computed once where the plan is, as rules, monitor and best iterate all ask."""
        if self._measured is None or self._measured[0] is not self.column_sums:
            deviation = self.xp.abs(self.column_sums - b)
            self._measured = self.column_sums, float(self.xp.sum(deviation)) + self.row_error
        return self._measured[1]

    def restart(self, f: Array | None = None) -> None:
        """Forget the potentials that the next sweep would start from; it starts from `f`, or finds the maximum of every row."""
        self._f = f

    @abstractmethod
    def sweep(self, g: Array, reg: float, *, single: bool = False, relaxation: float = 1.0) -> None:
        """Move to g: compute f(g) and K; `single` allows exponentials in single precision."""

    @abstractmethod
    def scaling_pass(self, log_v: Array, relaxation: float = 1.0) -> None:
        """Move to the last sweep's g plus reg log v, by products with the K of that sweep."""

    @property
    def log_v(self) -> Array:
        """How far the plan is from the g of its last sweep, in units of reg."""
        return (self.g - self._base_g) / self.reg

    def admits(self, log_v: Array) -> bool:
        """Whether a scaling pass may go that far from the last sweep."""
        low, high = float(self.xp.min(log_v)), float(self.xp.max(log_v))
        return high - low <= self.reach and max(high, -low) <= LARGEST_SCALING

    def move(self, g: Array, *, single: bool) -> None:
        """Move to g: where single precision is enough and the K of the last sweep reaches that far by scaling it, else by a sweep."""
        log_v = (g - self._base_g) / self.reg
        if single and self.admits(log_v):
            self.scaling_pass(log_v)
        else:
            self.sweep(g, self.reg, single=single)

    def shift(self, g: Array, accuracy: float) -> bool:  # noqa: ARG002 -- for plans that can
        """Move to g near the last sweep without another one, if the L1 error of the column sums is then at most `accuracy`."""
        return False

    def lower(self, g: Array, reg: float) -> None:
        """Move to g at a smaller reg, where single precision or a little less is enough."""
        self.sweep(g, reg, single=True)

    @property
    @abstractmethod
    def reach(self) -> float:
        """How far apart the entries of log v may be before entries that underflowed in K could matter."""

    @abstractmethod
    def row_potentials(self) -> Array:
        """Return f."""

    @abstractmethod
    def laplacian(self) -> Laplacian:
        """Return L where the plan is."""

    def active(self, theta: float, most: float) -> StoredPlan | None:  # noqa: ARG002 -- for plans that can
        """Room for a plan of the pairs with K_ij > exp(-theta) only; None where these are more than `most`, or cannot be told."""
        return None

    def _on(self, pattern: Any) -> StoredPlan | None:
        if pattern is None:
            return None
        kernels = self.kernels.sparse_kernels
        plan = StoredPlan(kernels, pattern, self.a, self.work, None, reach=ACTIVE_REACH, complete=False)
        plan.preconditioner = self.preconditioner
        return plan

    def solve(
        self, laplacian: Laplacian, b: Array, *, tol: float, max_iter: int, interrupt: Callable[[], bool]
    ) -> tuple[Array, int]:
        """Solve L x = b until the L1 norm of the residual is `tol` times that of b; return x and the number of steps.

        Stops short at `max_iter` steps, when `interrupt()` says so, and where curvature drowns in rounding.
        """
        xp = self.xp
        solution = cg(
            laplacian,
            b,
            preconditioner=laplacian.jacobi,
            tol=tol,
            max_iter=max_iter,
            norm=lambda v: float(xp.sum(xp.abs(v))),
            interrupt=interrupt,
            rounding=laplacian.degree,
            verify=False,
        )
        return solution.x, solution.nit

    @abstractmethod
    def product(self, weights: Array, x: Array) -> Array:
        """Return K' diag(weights) K x with the K of the last `laplacian`."""


class StoredPlan(RowPlan):
    """K kept in memory; a scaling pass and a product cost a fraction of a sweep.

    On an active set (sparse kernels) only the kept pairs exist.
    """

    def __init__(
        self,
        kernels: ModuleType,
        cost: Any,
        a: Array,
        work: Work,
        storage: Any,
        *,
        reach: float,
        single: bool = False,
        complete: bool = True,
    ) -> None:
        super().__init__(kernels, cost, a, work)
        self._k = storage
        self._reach = reach
        self._stores_single = single
        self.complete = complete

    @classmethod
    def dense(cls, geometry: Geometry, a: Array, work: Work, *, single: bool) -> StoredPlan:
        """Room for all n x m entries, in single or double precision."""
        storage = geometry.kernels.new_plan(geometry.shape, a, single=single)
        # Entries below exp(-88), in double precision exp(-708), are stored as zero.
        return cls(geometry.kernels, geometry.kernel_cost, a, work, storage, reach=50.0 if single else 600.0, single=single)

    @property
    def reach(self) -> float:
        return self._reach

    def restart(self, f: Array | None = None) -> None:
        super().restart(f)
        self._u: Array | None = None  # row scalings since the last sweep; those of the columns are _v

    def sweep(self, g: Array, reg: float, *, single: bool = False, relaxation: float = 1.0) -> None:
        self.work.sweeps += 1
        start = self._f if self._u is None else self.row_potentials()
        self.single = single
        self._f, self._k, self.column_sums, self.row_error = self.kernels.softmax_rows(
            self.cost, g, reg, self.a, start, self._k, single=single, relaxation=relaxation
        )
        self._arrive(g, reg)
        self._exact_sums = None if single or relaxation != 1.0 else self.column_sums

    def _arrive(self, g: Array, reg: float) -> None:
        """K is that of g, unscaled."""
        self.g, self.reg, self._base_g = g, reg, g
        self._u, self._v = self.xp.ones_like(self.a), self.xp.ones_like(g)
        self._exact_sums: Array | None = None  # column sums in double precision, of rows that sum to 1

    def shift(self, g: Array, accuracy: float) -> bool:
        """By scaling K in terms of u - 1 and v - 1: what single precision does to it is then multiplied by these."""
        growth = self.xp.expm1((g - self._base_g) / self.reg)
        if self._exact_sums is None or not self._rounding_of_shift(growth) <= accuracy:
            return False
        self.work.products += 1
        change, sums = self.kernels.shift_pass(self._k, self.a, growth)
        self._u, self._v, self.g = 1.0 + change, 1.0 + growth, g
        self.column_sums, self.row_error, self.single = self._v * (self._exact_sums + sums), 0.0, False
        return True

    def _rounding_of_shift(self, growth: Array) -> float:
        """L1 error of the column sums that v = 1 + growth makes: that of K, times u - 1 and v - 1, weighted by the plan."""
        if float(self.xp.max(self.xp.abs(growth))) > LARGEST_GROWTH:
            return math.inf
        return 3.0 * SINGLE_EPS * float(self.xp.vecdot(self._exact_sums, self.xp.abs(growth)))

    def scaling_pass(self, log_v: Array, relaxation: float = 1.0) -> None:
        self.work.products += 1
        self.single = self.single or self._stores_single  # whatever the exponentials were, these sums are over what was stored
        self._v = self.xp.exp(log_v)
        self._u, sums, self.row_error = self.kernels.scaling_pass(self._k, self.a, self._u, self._v, relaxation)
        self.g, self.column_sums = self._base_g + self.reg * log_v, self._v * sums

    def lower(self, g: Array, reg: float) -> None:
        """By powers of the entries where reg is halved or quartered, which needs neither the cost nor an exponential.

        What underflowed, and the square or fourth power of it, must not matter at g.
        """
        squarings = SQUARINGS.get(round(self.reg / reg, 9))
        log_v = (g - self._base_g) / reg
        if squarings is None or not (self._stores_single and self.admits(2.0 * log_v)):
            self.sweep(g, reg, single=True)
            return
        self.work.products += 1
        middle = 0.5 * (self.xp.max(log_v) + self.xp.min(log_v))  # single precision has room for either end then
        self._k, row_sums, self.column_sums = self.kernels.sharpen(self._k, self.a, self.xp.exp(log_v - middle), squarings)
        self._f = self._f - reg * (self.xp.log(row_sums) + middle)
        self._arrive(g, reg)
        self.single, self.row_error = True, 0.0

    def row_potentials(self) -> Array:
        return self._f + self.reg * self.xp.log(self._u)

    def laplacian(self) -> Laplacian:
        """L of diag(u) K diag(v), as scaling passes may have moved the plan since its last sweep."""
        largest = self.xp.max(self._v)  # only u v matters: make v of a size whose square does not overflow
        weights, v = self.a * self._u * largest, self._v / largest
        row_sums, degree, squares = self.kernels.plan_moments(self._k, weights, v)
        self._columns = v
        return Laplacian.of(self, weights / row_sums, v * degree, v * v * squares)

    def solve(
        self, laplacian: Laplacian, b: Array, *, tol: float, max_iter: int, interrupt: Callable[[], bool]
    ) -> tuple[Array, int]:
        """By a compiled loop where the kernels have one."""
        compiled = self.kernels.solve_laplacian
        if compiled is None:
            return super().solve(laplacian, b, tol=tol, max_iter=max_iter, interrupt=interrupt)
        operator = self._k, laplacian.weights, self._columns, laplacian.degree, laplacian.inverse_diagonal
        x, nit, self.preconditioner = compiled(
            *operator, b, tol=tol, max_iter=max_iter, interrupt=interrupt, memory=self.preconditioner
        )
        self.work.products += nit
        return x, nit

    def active(self, theta: float, most: float) -> StoredPlan | None:
        if self.kernels.active_set is None or not self.complete:
            return None
        return self._on(self.kernels.active_set(self.cost, self._k, self._u, self._v, math.exp(-theta), most))

    def product(self, weights: Array, x: Array) -> Array:
        self.work.products += 1
        return self._columns * self.kernels.laplacian_product(self._k, weights, self._columns * x)


class Room:
    """Keeps the last stored plan, so that the next solve of a run need not ask for n x m numbers again."""

    def __init__(self) -> None:
        self._plan: StoredPlan | None = None
        self._single = False

    def plan(self, geometry: Geometry, a: Array, work: Work, *, single: bool) -> StoredPlan:
        """A plan in single or double precision: the last one if it fits, counting its work anew."""
        if self._plan is None or self._single != single:
            self._plan = None  # never two at a time
            self._plan, self._single = StoredPlan.dense(geometry, a, work, single=single), single
        self._plan.work = work
        return self._plan


class LazyPlan(RowPlan):
    """K computed anew at every pass, in O(n + m) memory; every pass is a sweep."""

    reach = float("inf")

    def __init__(self, geometry: Geometry, a: Array, work: Work) -> None:
        super().__init__(geometry.kernels, geometry.kernel_cost, a, work)

    def sweep(self, g: Array, reg: float, *, single: bool = False, relaxation: float = 1.0) -> None:
        self._base_g, self.reg, self.single = g, reg, single
        self._move(g, relaxation)

    def _move(self, g: Array, relaxation: float) -> None:
        self.work.sweeps += 1
        self.g = g
        self._f, _, self.column_sums, self.row_error = self.kernels.softmax_rows(
            self.cost, g, self.reg, self.a, self._f, None, single=self.single, relaxation=relaxation
        )

    def scaling_pass(self, log_v: Array, relaxation: float = 1.0) -> None:
        self._move(self._base_g + self.reg * log_v, relaxation)

    def row_potentials(self) -> Array:
        return self._f

    def laplacian(self) -> Laplacian:
        self.work.sweeps += 1
        row_sums, degree, squares = self.kernels.lazy_moments(self.cost, self._f, self.g, self.reg, self.a)
        return Laplacian.of(self, self.a / row_sums, degree, squares)

    def active(self, theta: float, most: float) -> StoredPlan | None:
        if self.kernels.lazy_active_set is None:
            return None
        self.work.sweeps += 1
        return self._on(self.kernels.lazy_active_set(self.cost, self._f, self.g, -theta * self.reg, most))

    def product(self, weights: Array, x: Array) -> Array:
        self.work.sweeps += 1
        return self.kernels.lazy_product(self.cost, self._f, self.g, self.reg, weights, x)
