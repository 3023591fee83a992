"""A plan that is kept in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

from otbilevel._core.array import Array
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.marginals import Marginals
from otbilevel.ot.row_plan import LARGEST_SCALING, LEAST_SUM, LONGEST_STEP, Laplacian, Passes, RowPlan, Work

SQUARINGS = {2.0: 1, 4.0: 2}
"""How often entries of K are squared when reg falls by a factor."""
SINGLE_EPS = 2.0**-24
"""Relative rounding error of a number in single precision."""
LONGEST_SHIFT = 0.25
"""Of |log v|: row sums of K v are then close to 1."""
LONGEST_CHAIN = 1024.0
"""Factor by which reg may fall by powers of entries alone, whose rounding errors grow by as much."""
HEADROOM = 40.0
"""Of the powers in single precision, whose largest may be far below 1."""
SMALLEST_EXPONENT = {True: 87.0, False: 708.0}
"""Entries of exp(-this), in single and double precision, are the smallest that are stored."""
REACH = {True: 50.0, False: 300.0}
"""How far apart scalings may be before smaller ones could matter."""


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
        marginals: Marginals | None = None,
    ) -> None:
        super().__init__(kernels, cost, a, work, marginals)
        self._k = storage
        self._reach = reach
        self.stores_single = single
        self.complete = complete

    @classmethod
    def dense(cls, geometry: Geometry, a: Array, work: Work, *, single: bool, marginals: Marginals | None = None) -> StoredPlan:
        """Room for all n x m entries, in single or double precision."""
        storage = geometry.kernels.new_plan(geometry.shape, a, single=single)
        where = geometry.kernels, geometry.kernel_cost
        return cls(*where, a, work, storage, reach=REACH[single], single=single, marginals=marginals)

    @classmethod
    def on(cls, active_set: Any, plan: RowPlan) -> StoredPlan:
        """Room for the pairs of an active set of `plan`, to which it hands what was learnt there."""
        kernels = plan.kernels.sparse_kernels
        active = cls(
            kernels, active_set, plan.a, plan.work, None, reach=REACH[True], single=True, complete=False, marginals=plan.marginals
        )
        active.preconditioner = plan.preconditioner
        return active

    @property
    def reach(self) -> float:
        return self._reach

    @property
    def queues(self) -> bool:
        kernels, marginals = self.kernels, self.marginals
        if kernels.scaling_passes is None or self.a.shape[0] * self.g.shape[0] > kernels.QUEUED_ENTRIES:
            return False
        return marginals is None or (not kernels.waits and marginals.strengths is not None)  # on devices the host finds the shift

    def restart(self, f: Array | None = None) -> None:
        super().restart(f)
        self._exact_sums: Array | None = None  # those of the last sweep, where it was in double precision and the rows sum to 1
        self._u: Array | None = None  # row scalings since the last sweep; those of the columns are _v

    def sweep(self, g: Array, reg: float, *, single: bool = False, relaxation: float = 1.0) -> None:
        self.work.sweeps += 1
        start = self._f if self._u is None else self.row_potentials()
        self.single = single = single and self.stores_single
        self._f, self._k, self.column_sums, self.row_error = self.kernels.softmax_rows(
            self.cost, g, reg, self.a, start, self._k, single=single, relaxation=relaxation, aprox=self.aprox(reg)
        )
        self._arrive(g, reg)
        self._swept_reg = reg
        rigid = self.marginals is None and relaxation == 1.0
        self._exact_sums = self.column_sums if rigid and not single else None

    def _arrive(self, g: Array, reg: float) -> None:
        """K is that of g, unscaled."""
        self.g, self.reg, self._base_g = g, reg, g
        self._u, self._v = self.xp.ones_like(self.a), self.xp.ones_like(g)
        self._exact_sums = None

    def shift(self, g: Array, accuracy: float) -> bool:
        """By scaling K in terms of u - 1 and v - 1: what single precision does to it is then multiplied by these."""
        if self._exact_sums is None:
            return False
        log_v = (g - self._base_g) / self.reg
        low, high = self.vector_kernels.extremes(log_v)
        if not max(high, -low) <= LONGEST_SHIFT:
            return False
        growth = self.xp.expm1(log_v)
        if not self._rounding_of_shift(growth) <= accuracy:
            return False
        self.work.products += 1
        change, sums = self.kernels.shift_pass(self._k, self.a, growth)
        self._u, self._v, self.g = 1.0 + change, 1.0 + growth, g
        self.column_sums, self.row_error, self.single = self._v * (self._exact_sums + sums), 0.0, False
        return True

    def _rounding_of_shift(self, growth: Array) -> float:
        """A bound on the L1 error of the column sums: K meets v - 1 and u - 1, and u - 1 itself is at most twice as far off."""
        return 5.0 * SINGLE_EPS * float(self.xp.vecdot(self._exact_sums, self.xp.abs(growth)))

    def scaling_pass(self, log_v: Array, relaxation: float = 1.0) -> None:
        self.work.products += 1
        self.single = self.single or self.stores_single  # whatever the exponentials were, these sums are over what was stored
        self._v = self.xp.exp(log_v)
        self._u, sums, self.row_error = self.kernels.scaling_pass(
            self._k, self.a, self._u, self._v, relaxation, self._f, self.reg, self.aprox(self.reg)
        )
        self.g, self.column_sums = self._base_g + self.reg * log_v, self._v * sums

    def scaling_passes(self, log_v: Array, b: Array, log_b: Array, count: int, *, tol: float, relaxation: float) -> Passes:
        """By a queue that ends itself, where the kernels have one."""
        if not self.queues:
            return super().scaling_passes(log_v, b, log_b, count, tol=tol, relaxation=relaxation)
        rule: dict[str, Any] = {"half_step": (LEAST_SUM, LONGEST_STEP), "reach": (self.reach, LARGEST_SCALING)}
        if self.marginals is not None:
            rule["prices"] = self.marginals.strengths, self.marginals.log_weights, self._f, self._base_g, self.reg
        u, at, sums, log_v, errors, row_error, in_reach = self.kernels.scaling_passes(
            self._k, self.a, self._u, log_v, b, log_b, count=count, tol=tol, relaxation=relaxation, **rule
        )
        if errors:
            self.work.products += len(errors)
            self.single = self.single or self.stores_single
            self._u, self._v, self.g = u, self.xp.exp(at), self._base_g + self.reg * at
            self.column_sums, self.row_error = sums, row_error
            self._measured = sums, b, errors[-1]
        return Passes(log_v, errors, in_reach)

    def averaged_passes(self, f: Array, *, tol: float, count: int) -> tuple[Array, Array, list[float]] | None:
        if self.kernels.averaged_passes is None or not self.queues or self.stores_single:
            return None
        strength = math.inf if self.marginals is None else self.marginals.strengths[0]  # type: ignore[index]  # or it had no queue
        f, step, errors = self.kernels.averaged_passes(
            self._k, self.a, strength, self.row_potentials(), f, self.reg, tol=tol, count=count
        )
        self.work.products += len(errors)
        return f, step, errors

    def move(self, g: Array, *, single: bool) -> None:
        """Scaled entries in double precision are as good as fresh ones."""
        super().move(g, single=single or not self.stores_single)

    def lower(self, g: Array, reg: float) -> None:
        """By powers of the entries where reg is halved or quartered, which needs neither the cost nor an exponential.

        What underflowed, and the square or fourth power of it, must not matter at g.
        """
        squarings = SQUARINGS.get(self.reg / reg)
        log_v = (g - self._base_g) / reg
        accurate = self.marginals is None and self._swept_reg <= LONGEST_CHAIN * reg
        if squarings is None or not (accurate and self.admits(2.0 * log_v)):
            self.sweep(g, reg, single=True)
            return
        self.work.products += 1
        middle = 0.5 * sum(self.vector_kernels.extremes(log_v)) - HEADROOM
        self._k, row_sums, self.column_sums = self.kernels.sharpen(self._k, self.a, self.xp.exp(log_v - middle), squarings)
        self._f = self._f - reg * (self.xp.log(row_sums) + middle)
        self._arrive(g, reg)
        self.single, self.row_error = self.stores_single, 0.0

    def row_potentials(self) -> Array:
        return self._f + self.reg * self.xp.log(self._u)

    def laplacian(self) -> Laplacian:
        """L of diag(u) K diag(v), as scaling passes may have moved the plan since its last sweep."""
        _, largest = self.vector_kernels.extremes(self._v)  # only u v matters: make v of a size whose square does not overflow
        weights, v = self.row_masses() * self._u * largest, self._v / largest
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

    def active_set(self, theta: float, most: float) -> Any:
        """Told from the stored entries."""
        low, high = self.vector_kernels.extremes(self._v)
        if self.kernels.active_set is None or theta + math.log(high / low) > SMALLEST_EXPONENT[self.stores_single]:
            return super().active_set(theta, most)
        return self.kernels.active_set(self.cost, self._k, self._u, self._v, math.exp(-theta), most)

    def product(self, weights: Array, x: Array) -> Array:
        self.work.products += 1
        return self._columns * self.kernels.laplacian_product(self._k, weights, self._columns * x)


class Room:
    """Keeps the last stored plan, so that the next solve of a run need not ask for n x m numbers again."""

    def __init__(self) -> None:
        self._plan: StoredPlan | None = None
        self._single = False

    def plan(self, geometry: Geometry, a: Array, work: Work, *, single: bool, marginals: Marginals | None = None) -> StoredPlan:
        """A plan in single or double precision for the same problem, perhaps with another reg: the last one if there is one."""
        if self._plan is None or self._single != single:
            self._plan = None  # never two at a time
            self._plan, self._single = StoredPlan.dense(geometry, a, work, single=single, marginals=marginals), single
        self._plan.work = work
        return self._plan
