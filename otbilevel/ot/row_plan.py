"""The plan with exact rows: what Sinkhorn's and Newton's method have in common.

Eliminating f by its own optimality condition, f_i(g) = -reg log sum_j exp((g_j - C_ij)/reg), leaves the concave semi-dual

    S(g) = <a, f(g)> + <b, g>,    gradient b - c(g),    Hessian -(1/reg) L(g),

where K_ij = exp((f_i + g_j - C_ij)/reg) has row sums 1, P = diag(a) K is the plan, c = K'a its column sums, and
L = diag(c) - K' diag(a) K the Laplacian of a graph on the columns (positive semi-definite, L 1 = 0).
Here g carries the weight b: it is the potential of the public formula plus reg log b.

Where marginals are not fixed but have a price, row masses r take the place of a, and a target that depends on g that of b: see
`marginals`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

from otbilevel._core.array import Array, array_namespace
from otbilevel.linalg import cg
from otbilevel.ot.kernels.aprox import RIGID, Aprox
from otbilevel.ot.marginals import Marginals

SMALLEST_SHARE = 1e-9
"""Of the degree of a column that the diagonal of the Laplacian may be: the difference of the two cancels."""
LARGEST_SCALING = 600.0
"""Logarithm up to which a scaling neither overflows nor lets K v underflow."""
LONGEST_STEP = 60.0
"""Logarithm of the largest correction in one step: a column sum that underflowed says no more than that."""
LEAST_SUM = 1e-300
"""What a column sum that underflowed is taken for."""


class Passes(NamedTuple):
    """What came of scaling passes.

    Attributes
    ----------
    log_v : (m,) array
        Where the next one would go.
    errors : list of float
        The marginal error after each.
    in_reach : bool
        Whether the next one may go there, as far as that is known.
    """

    log_v: Array
    errors: list[float]
    in_reach: bool


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
        if plan.marginals is not None:
            response = plan.marginals.row_response(plan.row_potentials(), plan.reg)
            weights, squares = response * weights, float(plan.xp.max(response)) * squares
            degree = plan.marginals.stiffened(degree, plan.g, plan.reg, plan.column_sums, plan.target(plan.marginals.b))
        # Where a column hangs on one row, degree - squares cancels; a column that underflowed has degree 0.
        return cls(plan, weights, degree, plan.vector_kernels.inverse_diagonal(degree, squares, SMALLEST_SHARE))

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
    stores_single : bool
        Whether figures of scaling passes have.
    complete : bool
        Whether all pairs take part: not so on an active set.
    marginals : Marginals or None
        None: fixed.
    preconditioner
        What a solve may leave to the next one, on this plan or on another one between the same points.
    """

    g: Array
    reg: float
    column_sums: Array
    row_error: float
    single: bool
    stores_single = True
    complete = True
    _base_g: Array  # where the last sweep was

    def __init__(self, kernels: ModuleType, cost: Any, a: Array, work: Work, marginals: Marginals | None = None) -> None:
        self.xp: ModuleType = array_namespace(a)
        self.kernels = kernels
        self.vector_kernels: ModuleType = kernels.vector_kernels
        self.cost = cost
        self.a = a
        self.work = work
        self.marginals = marginals
        self.preconditioner: Any = None
        self._measured: tuple[Array, Array, float] | None = None
        self._prescribed: tuple[Array, Array] | None = None
        self.restart()

    def target(self, b: Array) -> Array:
        """What the columns should hold where the plan is: their weights b, or what their price makes of these."""
        if self.marginals is None:
            return b
        if self._prescribed is None or self._prescribed[0] is not self.column_sums:
            self._prescribed = self.column_sums, self.marginals.target(self.g, self.reg, self.column_sums)
        return self._prescribed[1]

    def marginal_error(self, b: Array) -> float:
        """L1 error of both marginals; computed once where the plan is, as rules, monitor and best iterate all ask."""
        if self._measured is None or self._measured[0] is not self.column_sums or self._measured[1] is not b:
            self._measured = self.column_sums, b, self.vector_kernels.distance(self.column_sums, self.target(b)) + self.row_error
        return self._measured[2]

    def half_step(self, log_b: Array) -> Array:
        """How far g has to move, in units of reg, for exact column sums, or for those that suit their price best."""
        log_ratio: Array = self.vector_kernels.log_ratio(log_b, self.column_sums, LEAST_SUM, LONGEST_STEP)
        if self.marginals is None:
            return log_ratio
        target = self.target(self.marginals.b)
        return self.marginals.half_step(self.g, self.reg, self.column_sums, target, log_ratio, self.row_potentials)

    def aprox(self, reg: float) -> Aprox:
        """How the kernels get the row masses."""
        return RIGID if self.marginals is None else self.marginals.aprox(reg)

    def row_masses(self) -> Array:
        """What the rows hold where the plan is."""
        return self.a if self.marginals is None else self.marginals.row_masses(self.row_potentials(), self.reg)

    def restart(self, f: Array | None = None) -> None:
        """Forget the potentials that the next sweep would start from; it starts from `f`, or finds the maximum of every row."""
        self._f = f

    @abstractmethod
    def sweep(self, g: Array, reg: float, *, single: bool = False, relaxation: float = 1.0) -> None:
        """Move to g: compute f(g) and K; `single` allows exponentials in single precision."""

    @abstractmethod
    def scaling_pass(self, log_v: Array, relaxation: float = 1.0) -> None:
        """Move to the last sweep's g plus reg log v, by products with the K of that sweep."""

    def scaling_passes(
        self,
        log_v: Array,
        b: Array,
        log_b: Array,
        count: int,  # noqa: ARG002 -- for plans that queue
        *,
        tol: float,  # noqa: ARG002
        relaxation: float,
    ) -> Passes:
        """Up to `count` scaling passes and half steps, the first of them to log v.

        Fewer when the error is at most `tol`, or at the end of the plan's reach. Here at most one, as the error is known at once.
        """
        if not self.admits(log_v):
            return Passes(log_v, [], in_reach=False)
        self.scaling_pass(log_v, relaxation)
        error = self.marginal_error(b)
        return Passes(log_v + relaxation * self.half_step(log_b), [error], in_reach=True)

    def averaged_passes(self, f: Array, *, tol: float, count: int) -> tuple[Array, Array, list[float]] | None:  # noqa: ARG002
        """Transport of a measure to itself from where K was swept at f, in one compiled call, see `symmetric`.

        At most `count` iterations; ends at the error `tol`, or where it falls too slowly. Returns the last f, the step from there,
        and the errors on the way; None where iterations had better be taken one by one.
        """
        return None

    @property
    def log_v(self) -> Array:
        """How far the plan is from the g of its last sweep, in units of reg."""
        return (self.g - self._base_g) / self.reg

    def admits(self, log_v: Array) -> bool:
        """Whether a scaling pass may go that far from the last sweep."""
        low, high = self.vector_kernels.extremes(log_v)
        return bool(high - low <= self.reach and max(high, -low) <= LARGEST_SCALING)

    def move(self, g: Array, *, single: bool) -> None:
        """Move to g: by scaling the K of the last sweep where single precision is enough and its reach, too, else by a sweep."""
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
    def queues(self) -> bool:
        """Whether several passes can be made before their errors are looked at, and had better be."""
        return False

    @property
    def waits(self) -> bool:
        """Whether that is because the host has to wait for figures."""
        return self.queues and bool(self.kernels.waits)

    @property
    @abstractmethod
    def reach(self) -> float:
        """How far apart the entries of log v may be before entries that underflowed in K could matter."""

    @abstractmethod
    def row_potentials(self) -> Array:
        """Return f: the soft minima, which are the potentials where the marginal is fixed."""

    @abstractmethod
    def laplacian(self) -> Laplacian:
        """Return L where the plan is."""

    def active_set(self, theta: float, most: float) -> Any:
        """The pairs with K_ij > exp(-theta), as kernels want them; None where these are more than `most`, or cannot be told."""
        if self.kernels.lazy_active_set is None:
            return None
        self.work.sweeps += 1
        return self.kernels.lazy_active_set(self.cost, self.row_potentials(), self.g, -theta * self.reg, most)

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
