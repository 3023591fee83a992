"""Unregularised transport by linear programming: POT's network simplex when it is installed, else SciPy's HiGHS."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar, NamedTuple

import numpy as np
from scipy import sparse

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace, device, to_numpy
from otbilevel._core.monitor import Monitor
from otbilevel._core.result import Status, report
from otbilevel.ot.constrained_exact import constrained_vertex
from otbilevel.ot.constrained_plan import ConstrainedVertex
from otbilevel.ot.explicit_plan import ExplicitPlan
from otbilevel.ot.geometry import finite
from otbilevel.ot.linear_program import LARGEST_LIMIT, Program, Vertex, solve_program
from otbilevel.ot.point_cloud import PointCloud
from otbilevel.ot.problem import OTProblem, make_problem
from otbilevel.ot.result import OTResult


@dataclass(frozen=True)
class ExactOptions:
    """Settings of ``method="exact"``.

    Attributes
    ----------
    solver : {"auto", "network-simplex", "highs"}
        POT's network simplex (needs POT), SciPy's HiGHS, or the first of these that is there; for a `SparseCost` HiGHS, as the
        former needs the n x m cost.
    """

    solver: str = "auto"
    balanced_only: ClassVar[str] = 'method="exact"'

    def __post_init__(self) -> None:
        validate.choice(self.solver, "solver", ("auto", "network-simplex", "highs"))


GAP = 1e-8
"""Duality gap, relative to the range of the cost, up to which a vertex counts as optimal."""


def solve(problem: OTProblem, options: ExactOptions, monitor: Monitor) -> OTResult:
    """Solve the linear program. Needs host memory, and forms the n x m cost, but for HiGHS on a `SparseCost`.

    Raises
    ------
    ImportError
        When ``solver="network-simplex"`` and POT is not installed.
    """
    if problem.constraints is not None and options.solver == "network-simplex":
        msg = 'solver="network-simplex" takes no constraints: use solver="highs"'
        raise ValueError(msg)
    by_pairs = problem.geometry.is_sparse or problem.constraints is not None
    wanted = options.solver == "network-simplex" or (options.solver == "auto" and not by_pairs)
    pot = _import_pot() if wanted else None
    if options.solver == "network-simplex" and pot is None:
        msg = 'solver="network-simplex" needs POT: pip install "otbilevel[pot]"'
        raise ImportError(msg)
    shift, unit = _normalisation(problem)
    a, b = to_numpy(problem.a), to_numpy(problem.b)
    if pot is not None:
        cost = to_numpy(problem.geometry.rows(0, len(a)))
        vertex = _network_simplex(pot, a, b, (cost - shift) / unit, monitor)
    else:
        i, j, costs = problem.geometry.pairs()
        program = Program.of(a, b, i, j, (costs - shift) / unit)
        constraints = problem.constraints
        vertex = solve_program(program, monitor) if constraints is None else constrained_vertex(constraints, program, monitor)
    in_units = vertex._replace(f=unit * vertex.f + shift, g=unit * vertex.g, multipliers=unit * vertex.multipliers)
    return _certified(problem, in_units, monitor)


def _certified(problem: OTProblem, vertex: Vertex, monitor: Monitor) -> OTResult:
    """The result that a vertex with duals in units of the cost is, with the figures that prove it."""
    xp, where, (_, unit) = problem.xp, device(problem.a), _normalisation(problem)
    f, g, multipliers = (xp.asarray(v, dtype=xp.float64, device=where) for v in (vertex.f, vertex.g, vertex.multipliers))
    if vertex.status is not Status.SUCCESS:  # duals on the way may be infeasible: make them feasible
        g = finite(problem.geometry.c_transform_columns(f))
        f = problem.geometry.c_transform_rows(g)
    plan: ExplicitPlan
    if problem.constraints is not None:
        plan = ConstrainedVertex.at(problem, problem.constraints, vertex.coupling, f, g, multipliers)
    else:
        plan = ExplicitPlan(problem, vertex.coupling, f, g)
    status, message = vertex.status, vertex.message
    if status is Status.SUCCESS and plan.residual > problem.tol:
        status, message = Status.NUMERICAL_FAILURE, f"{plan.figures} > tol = {problem.tol:.2g}"
    elif status is Status.SUCCESS and plan.gap_exact() > GAP * problem.mass * unit:
        status, message = Status.NUMERICAL_FAILURE, f"the duality gap is {plan.gap_exact():.2g}, no vertex is proved optimal"
    if status is Status.ITERATION_LIMIT:
        message = f"the limit max_iter = {monitor.max_iter} is reached: raise it"
    success = status is Status.SUCCESS
    return OTResult(
        marginal_error=plan.marginal_error,
        reg=0.0,
        nit=vertex.nit,
        nit_newton=0,
        nsweep=0,
        nproduct=0,
        success=success,
        status=status,
        message="optimal vertex found" if success else f"no optimal vertex found: {message}",
        method="exact",
        history={name: np.asarray(values) for name, values in monitor.history.items()},
        _plan=plan,
        _tol=problem.tol,
    )


def _normalisation(problem: OTProblem) -> tuple[float, float]:
    """A shift and a unit that make costs from 0 to at most 2 of them, as the solvers' tolerances are absolute."""
    low, high = problem.geometry.bounds
    unit = 2.0 ** np.floor(np.log2(high - low)) if high > low else 1.0
    return low, float(unit)


def _import_pot() -> ModuleType | None:
    """POT, or None when it is not installed (a folder called "ot" on the path is not POT)."""
    try:
        import ot  # noqa: PLC0415 -- an optional dependency
    except ImportError:
        return None
    return ot if hasattr(ot, "emd") else None


def _network_simplex(pot: ModuleType, a: np.ndarray, b: np.ndarray, cost: np.ndarray, monitor: Monitor) -> Vertex:
    # A forbidden pair costs more than any detour through allowed ones, of which there are at most min(n, m), each at most 2.
    forbidden = 2.0 * (min(cost.shape) + 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its warnings come back as the result code
        coupling, log = pot.emd(
            a,
            b,
            np.where(np.isfinite(cost), cost, forbidden),
            numItermax=min(monitor.max_iter, LARGEST_LIMIT),
            log=True,
            check_marginals=False,
        )
    # What rounding in the weights leaves on forbidden pairs is dropped, and shows in the marginal error.
    coupling[~np.isfinite(cost)] = 0.0
    code = log["result_code"]
    status = {1: Status.SUCCESS, 3: Status.ITERATION_LIMIT}.get(code, Status.NUMERICAL_FAILURE)
    return Vertex(sparse.csr_array(coupling), log["u"], log["v"], np.zeros(0), 0, status, log["warning"] or "")


class QuickVertex(NamedTuple):
    """An optimal plan (n, m) between weighted points for the squared distance, its cost, and its duals: nothing of it is proved."""

    plan: Array
    cost: float
    f: np.ndarray
    g: np.ndarray

    def prove(self, x: Array, a: Array, y: Array, b: Array) -> OTResult:
        """What `solve_ot` returns for these points and weights, without another solve."""
        problem = make_problem(a, b, PointCloud(x, y), reg=0.0, tol=None)
        (i, f), (j, g) = (
            (np.arange(len(v)), v) if indices is None else (to_numpy(indices), v[to_numpy(indices)])
            for indices, v in ((problem.sources.indices, self.f), (problem.targets.indices, self.g))
        )
        coupling = sparse.csr_array(to_numpy(self.plan)[np.ix_(i, j)])
        vertex = Vertex(coupling, f, g, np.zeros(0), 0, Status.SUCCESS, "")
        return report(_certified(problem, vertex, Monitor(max_iter=LARGEST_LIMIT)), raise_on_failure=False)


def quick_vertex(x: Array, a: Array, y: Array, b: Array) -> QuickVertex | None:
    """By the network simplex of POT; None without it, or in trouble."""
    pot = _import_pot()
    if pot is None:
        return None
    cost = pot.dist(to_numpy(x), to_numpy(y))
    plan, log = pot.emd(to_numpy(a), to_numpy(b), cost, numItermax=LARGEST_LIMIT, log=True, check_marginals=False)
    if log["result_code"] != 1:
        return None
    xp = array_namespace(x)
    return QuickVertex(xp.asarray(plan, dtype=x.dtype, device=device(x)), float(log["cost"]), log["u"], log["v"])
