"""How each contestant is called. One function each: everything that may happen before the clock starts, then a closure to time.

A function takes the problem, the regularisation and the budget in seconds, and returns `solve`, which is timed and returns an
`Answer`. What suits a contestant best is explained where it is set. Libraries are imported inside, as each worker process loads
only one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from otbilevel.testing import TransportProblem

TOLERANCE = 1e-9
"""L1 error of both marginals together."""
MANY = 1_000_000
"""A limit of iterations that only time makes sharp."""


@dataclass
class Answer:
    """What a contestant hands over.

    Attributes
    ----------
    plan : callable
        Returns the dense plan as a NumPy array, after the clock has stopped.
    figures : dict
        What the contestant says about itself, as numbers or words.
    """

    plan: Callable[[], np.ndarray]
    figures: dict[str, Any] = field(default_factory=dict)


Solve = Callable[[], Answer]
Prepare = Callable[[TransportProblem, float, float], Solve]


def otbilevel_sns(problem: TransportProblem, reg: float, budget: float, *, method: str, potentials: bool) -> Solve:
    """Ours: the arrays as they are. The clock stops when the dense plan exists.

    With `potentials` it stops at these, and the plan is formed here from their definition.
    """
    import otbilevel  # noqa: PLC0415

    def solve() -> Answer:
        result = otbilevel.solve_ot(
            problem.a, problem.b, problem.C, reg=reg, method=method, tol=TOLERANCE, options={"time_limit": budget}
        )
        figures = {
            "status": result.status.name,
            "claimed_error": result.marginal_error,
            "nsweep": result.nsweep,
            "nit": result.nit,
            "method": result.method,
        }
        if not potentials:
            plan = result.plan
            return Answer(lambda: plan, figures)
        f, g = result.potentials
        weights = np.log(problem.a), np.log(problem.b)
        return Answer(lambda: np.exp((f[:, None] + g - problem.C) / reg + weights[0][:, None] + weights[1]), figures)

    return solve


def pot_sinkhorn(problem: TransportProblem, reg: float, budget: float, *, method: str, **settings: Any) -> Solve:
    """POT tests the L2 norm of one marginal, the other being exact: 1e-9 / sqrt(m) implies the L1 error.

    It gets as many iterations as fit into the budget, estimated from a short run.
    """
    import ot  # noqa: PLC0415

    def run(limit: int) -> Answer:
        plan, log = ot.sinkhorn(
            problem.a,
            problem.b,
            problem.C,
            reg,
            method=method,
            numItermax=limit,
            stopThr=TOLERANCE / math.sqrt(len(problem.b)),
            log=True,
            **settings,
        )
        return Answer(lambda: plan, {"nit": int(log.get("niter", log.get("n_iter", -1)))})

    return partial(run, affordable_iterations(run, budget))


def affordable_iterations(run: Callable[[int], Any], budget: float, few: int = 1, more: int = 41) -> int:
    """How many iterations fit into the budget; a run that breaks down early is cheap, however many it is given."""
    fastest = {limit: min(seconds(partial(run, limit)) for _ in range(2)) for limit in (few, more)}
    each = max(fastest[more] - fastest[few], 1e-9) / (more - few)
    return max(more, int(min(MANY, budget / each)))


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of a run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def pot_emd(problem: TransportProblem, reg: float, budget: float) -> Solve:  # noqa: ARG001 -- knows no regularisation
    """POT's network simplex; its limit of iterations out of the way, as its default of 1e5 is too small from n = 2000 on."""
    import ot  # noqa: PLC0415

    def solve() -> Answer:
        plan = ot.emd(problem.a, problem.b, problem.C, numItermax=10**9)
        return Answer(lambda: plan)

    return solve


def regot(problem: TransportProblem, reg: float, budget: float, *, solver: str) -> Solve:  # noqa: ARG001 -- stopped from outside
    """It wants a column-major cost, which is copied before the clock starts, and tests the L2 norm of the whole gradient."""
    import regot as library  # noqa: PLC0415

    cost = np.asfortranarray(problem.C)
    function = getattr(library, f"sinkhorn_{solver}")
    tolerance = TOLERANCE / math.sqrt(len(problem.a) + len(problem.b))

    def solve() -> Answer:
        result = function(cost, problem.a, problem.b, reg, tol=tolerance, max_iter=1000)
        plan = result.plan
        return Answer(lambda: plan, {"nit": int(result.niter)})

    return solve


def mdot(problem: TransportProblem, reg: float, budget: float) -> Solve:
    """Its accuracy at inverse temperature gamma is H / gamma^p, with the smaller entropy H: p is chosen to meet the tolerance.

    `solve_OT` fixes p = 1.5, hence the core function. It returns potentials, at which the clock stops. Close to rounding its line
    search fails for some p and not for others: before the clock starts, several are tried, the cheapest first.
    """
    import torch  # noqa: PLC0415
    from mdot_tnt.mdot import mdot as function  # noqa: PLC0415

    a, b, cost = (torch.from_numpy(array) for array in (problem.a, problem.b, problem.C))
    entropy = min(-float(weights @ np.log(weights)) for weights in (problem.a, problem.b))

    def run(accuracy: float) -> Answer:
        exponent = max(1.5, math.log(entropy / accuracy) / math.log(1.0 / reg))
        # Where a projection fails, it returns the potentials of an earlier temperature: with the one asked for they are found out.
        u, v, _, passes, _ = function(a, b, cost, 1.0 / reg, p=exponent)
        return Answer(lambda: np.exp(u.numpy()[:, None] + v.numpy() - problem.C / reg), {"nit": int(passes)})

    attempts = [partial(run, share * TOLERANCE) for share in (0.8, 0.3, 0.1)]
    deadline = time.perf_counter() + 3.0 * budget  # within the patience of `driver`
    for attempt in attempts:
        if marginal_error(attempt().plan(), problem) <= TOLERANCE:
            return attempt
        if time.perf_counter() > deadline:
            break
    return attempts[0]


def ott(problem: TransportProblem, reg: float, budget: float, *, momentum: dict[str, float]) -> Solve:  # noqa: ARG001
    """Compiled for the shapes at hand before the clock starts; in double precision; potentials are returned, at which it stops.

    OTT tests one marginal every ten iterations. With over-relaxation the other one is not exact: half the tolerance each.
    """
    import jax  # noqa: PLC0415

    jax.config.update("jax_enable_x64", val=True)
    from ott.geometry.geometry import Geometry  # noqa: PLC0415
    from ott.problems.linear.linear_problem import LinearProblem  # noqa: PLC0415
    from ott.solvers.linear.acceleration import Momentum  # noqa: PLC0415
    from ott.solvers.linear.sinkhorn import Sinkhorn  # noqa: PLC0415

    solver = Sinkhorn(threshold=0.5 * TOLERANCE, max_iterations=MANY, momentum=Momentum(**momentum))

    def run(cost: Any, a: Any, b: Any) -> Any:
        out = solver(LinearProblem(Geometry(cost_matrix=cost, epsilon=reg), a=a, b=b))
        return out.f, out.g

    arrays = [jax.numpy.asarray(x) for x in (problem.C, problem.a, problem.b)]
    compiled = jax.jit(run).lower(*arrays).compile()

    def solve() -> Answer:
        f, g = (np.asarray(x) for x in compiled(*arrays))
        return Answer(lambda: np.exp((f[:, None] + g - problem.C) / reg))

    return solve


def geomloss(problem: TransportProblem, reg: float, budget: float) -> Solve:
    """It anneals reg over a fixed number of iterations and has no test of its own.

    The count is found before the clock starts: powers of ten until the error is small enough, or the next would exceed the budget.
    """
    import torch  # noqa: PLC0415
    from geomloss.ot import solve as function  # noqa: PLC0415

    a, b, cost = (torch.from_numpy(array) for array in (problem.a, problem.b, problem.C))

    def run(iterations: int) -> Answer:
        plan = function(cost, reg=reg, a=a, b=b, max_iter=iterations).plan
        return Answer(plan.numpy, {"nit": iterations, "out_of_budget": out_of_budget})

    iterations, out_of_budget = 10, False
    while True:
        start = time.perf_counter()
        plan = run(iterations).plan()
        out_of_budget = 10.0 * (time.perf_counter() - start) > budget
        if marginal_error(plan, problem) <= TOLERANCE or out_of_budget:
            return partial(run, iterations)
        iterations *= 10


def marginal_error(plan: np.ndarray, problem: TransportProblem) -> float:
    """||P 1 - a||_1 + ||P' 1 - b||_1; infinite when it is not a number. All are judged by this function, ours too."""
    error = float(np.abs(plan.sum(axis=1) - problem.a).sum() + np.abs(plan.sum(axis=0) - problem.b).sum())
    return error if math.isfinite(error) else math.inf


@dataclass(frozen=True)
class Contestant:
    """Someone in the race.

    Attributes
    ----------
    name : str
        For the table.
    library : str
        The distribution to install; its contestants share a worker process.
    module : str
        What has to be importable.
    prepare : callable
        One of the functions above.
    exact : bool
        Whether it solves the unregularised problem.
    potentials : bool
        Whether it hands over potentials instead of a dense plan.
    """

    name: str
    library: str
    module: str
    prepare: Prepare
    exact: bool = False
    potentials: bool = False


TO_POTENTIALS = ", potentials"
"""What follows the name of ours where it stops at the potentials."""


def ours(method: str) -> tuple[Contestant, Contestant]:
    """A method of `solve_ot`, to the dense plan and to the potentials."""
    name = f"otbilevel {method}"
    return (
        Contestant(name, "otbilevel", "otbilevel", partial(otbilevel_sns, method=method, potentials=False)),
        Contestant(
            name + TO_POTENTIALS, "otbilevel", "otbilevel", partial(otbilevel_sns, method=method, potentials=True), potentials=True
        ),
    )


PEERS = (
    Contestant("POT sinkhorn", "POT", "ot", partial(pot_sinkhorn, method="sinkhorn")),
    # With its default tau = 1e3 it absorbs in every iteration from n = 1000 on, and returns a plan of mass 1 / n^2.
    Contestant("POT stabilized", "POT", "ot", partial(pot_sinkhorn, method="sinkhorn_stabilized", tau=1e30)),
    Contestant("POT log", "POT", "ot", partial(pot_sinkhorn, method="sinkhorn_log")),
    Contestant("regot ssns", "regot", "regot", partial(regot, solver="ssns")),
    Contestant("regot splr", "regot", "regot", partial(regot, solver="splr")),
    Contestant("regot newton", "regot", "regot", partial(regot, solver="newton")),
    Contestant("regot sparse_newton", "regot", "regot", partial(regot, solver="sparse_newton")),
    Contestant("mdot", "mdot-tnt", "mdot_tnt", mdot, potentials=True),
    # A fixed over-relaxation is best for easy problems, the one estimated from the first iterations for hard ones.
    Contestant("OTT 1.5", "ott-jax", "ott", partial(ott, momentum={"value": 1.5}), potentials=True),
    Contestant("OTT adaptive", "ott-jax", "ott", partial(ott, momentum={"start": 100}), potentials=True),
    Contestant("geomloss", "geomloss", "geomloss", geomloss),
    Contestant("POT emd", "POT", "ot", pot_emd, exact=True),
)
"""Everyone else. Left out, as others of the same library are ahead: greenkhorn, epsilon scaling, block coordinate descent."""
