"""The entry function of optimal transport."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from otbilevel._core.monitor import Callback
from otbilevel._core.result import report
from otbilevel.ot.call import Call, price, regularisation, tolerance
from otbilevel.ot.constraint_system import make_system
from otbilevel.ot.constraints import as_constraints
from otbilevel.ot.init import make_start
from otbilevel.ot.partial_mass import PartialMass, check_mass, solve_partial
from otbilevel.ot.problem import make_geometry, make_problem
from otbilevel.ot.result import OTResult


def solve_ot(
    a: Any,
    b: Any,
    C: Any,  # noqa: N803 -- the field's name for the cost
    *,
    reg: float | None = None,
    method: str = "auto",
    unbalanced: Any = None,
    tol: float | None = None,
    max_iter: int | None = None,
    constraints: Any = (),
    init: Any = None,
    callback: Callback | None = None,
    progress: bool = False,
    options: Mapping[str, Any] | None = None,
    raise_on_failure: bool = False,
) -> OTResult:
    """Solve an optimal transport problem: minimise <P, C> + reg KL(P | a b^T) over P >= 0 with P 1 = a, P' 1 = b, or near.

    Here KL(P | Q) = sum P log(P/Q) - P + Q, and the minimiser is P_ij = a_i b_j exp((f_i + g_j - C_ij) / reg).

    Parameters
    ----------
    a, b : (n,), (m,) array_like or None
        Non-negative weights of equal mass; None for uniform ones, of the other side's mass (1 if both are None). A relative
        difference of mass up to 1e-6 (float32: 1e-4) is rescaled.
    C : (n, m) array_like, SciPy sparse array or geometry
        Costs, or a `PointCloud`, `Grid`, `SparseCost` or `DenseCost`. +inf forbids a pair, and so does a sparse array that does not
        store it. All arrays come from one library and live on one device, and so does the result; a sparse cost belongs to NumPy.
    reg : float, optional
        Regularisation > 0, in units of the cost; by default 1e-3 times the range of C (largest minus smallest finite cost).
        Transport without it is ``method="exact"``, which takes none: 0 is refused.
    unbalanced : float, penalty or pair, optional
        What it costs that a marginal r of P differs from its weights w, for both sides or as a pair (rows, columns). A number rho
        is the Kullback-Leibler divergence rho sum r log(r/w) - r + w, as is ``KL(rho)``; ``TotalVariation(rho)`` is
        rho sum |r - w|; ``AtMost(price)`` is price sum (w - r) with r <= w; None or inf fixes the side. ``PartialMass(s)`` asks for
        a plan of mass s with P 1 <= a, P' 1 <= b. The minimum is then of <P, C> + reg KL(P | a b^T) plus the penalties, and the
        masses of a and b may differ. Not for ``method="exact"``, ``variant="paper"`` and over-relaxation.
    method : {"auto", "sns", "sinkhorn", "exact"}
        The algorithm; the documentation's table says what each is for.
    tol : float, optional
        L1 error of both marginals together, ||P 1 - a||_1 + ||P' 1 - b||_1, relative to the mass (see `OTResult.marginal_error` for
        unbalanced transport). By default 1e-9, for float32 data 1e-5.
    max_iter : int, optional
        Limit of all iterations together; each method has its default.
    constraints : PlanConstraint or list of PlanConstraint
        Linear constraints lb <= <D, P> <= ub on the plan, see `otbilevel.ot.PlanConstraint`, `otbilevel.ot.separable` and
        `otbilevel.ot.martingale`. `multipliers` and `constraint_violation` of the result belong to them. A geometry is then
        expanded to a cost matrix.
    init : OTResult or tuple, optional
        Where to start: a result, of this problem or one like it, or a pair ``(f, g)`` of potentials, (n,) and (m,), in units of the
        cost and with the meaning that they have in a result. Its `reg` may differ from that of this call: "sns" goes on from
        there. A start that proves bad costs a sweep or a few, then the solver starts afresh ("sinkhorn" goes on from it).
        ``method="exact"`` takes none.
    callback : callable, optional
        ``callback(intermediate_result)`` after every iteration, with the fields `f`, `g` (potentials as in the result, for the
        `reg` of the present level), `nit`, `marginal_error` and `reg`. Raising `StopIteration` stops.
        ``method="exact"`` runs in one piece and calls nothing.
    progress : bool
        Show a progress bar on stderr.
    options : dict, optional
        Settings of the method, see the documentation's table. All but "exact" take ``"time_limit"``, in
        seconds, and ``"memory"``, in bytes, for the plan of a `PointCloud`.
    raise_on_failure : bool
        Raise `ConvergenceError` instead of warning when the tolerance is not met.

    Returns
    -------
    OTResult
        Potentials, plan, values and the figures that prove them; heavy ones are computed on first access.

    Raises
    ------
    ValueError, TypeError
        When an argument is wrong; the message names it, says what was found and what to do.
    ConvergenceError
        When the tolerance is not met and `raise_on_failure` is set.

    Warns
    -----
    ConvergenceWarning
        When the solver stops short of the tolerance. `message` says what to try, and the best iterate is returned.

    Notes
    -----
    A dense C is swept in O(n m) per iteration. For NumPy arrays "sns" (and so "auto") keeps one more n x m array in single
    precision, "sinkhorn" one in double precision; other libraries always use double precision, and take several such arrays at
    work. Points of zero weight cost a copy of the rest of C. The plan of a `PointCloud` takes the memory that
    ``options={"memory": ...}`` grants, by default 2^30 bytes; an active set may come on top, of at most a tenth of n m and 2^25
    entries. Beyond 5e10 pairs of NumPy points with squared Euclidean cost the marginal error is interpolated and checked on 4096
    rows and columns taken at random, and `message` says so.
    With constraints four n x m arrays in double precision are at work, whatever the cost.
    A sparse cost takes O(pairs) in everything but `OTResult.plan`, see `SparseCost`. Forbidden pairs cost a check of feasibility by
    a maximum flow, which needs some seventy bytes for each allowed pair. If it fails, the message names points that hold more mass
    than all that they may exchange it with. For arrays on a device only points without an allowed pair are refused in advance;
    where there is no plan for another reason the solver stops short, mostly with such a proof (`Status.INFEASIBLE`), and `gap`,
    `gap_exact` and `sparse_plan` raise a `TypeError` beside forbidden pairs.

    References
    ----------
    M. Cuturi, Sinkhorn distances, NeurIPS 2013. X. Tang et al., Accelerating Sinkhorn algorithm with sparse Newton
    iterations, ICLR 2024. T. Séjourné, G. Peyré, F.-X. Vialard, Unbalanced optimal transport, from theory to numerics, Handbook of
    Numerical Analysis 2023 (arXiv:2211.08775).

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel import solve_ot
    >>> x, y = np.array([0.0, 1.0, 2.0]), np.array([0.5, 2.5])
    >>> result = solve_ot([0.2, 0.3, 0.5], [0.6, 0.4], (x[:, None] - y[None, :]) ** 2, reg=0.01)
    >>> result.success, result.marginal_error < 1e-9
    (True, True)
    >>> result.plan.round(3) + 0.0
    array([[0.2, 0. ],
           [0.3, 0. ],
           [0.1, 0.4]])

    A similar problem, from there:

    >>> C = (x[:, None] - y[None, :] + 0.001) ** 2
    >>> solve_ot([0.2, 0.3, 0.5], [0.6, 0.4], C, reg=0.01, init=result).success
    True

    Mass that is not worth its way stays where it is:

    >>> solve_ot([0.2, 0.3, 0.5], [0.6, 0.4], C, reg=0.01, unbalanced=0.1).plan.sum() < 0.9
    np.True_
    """
    call = Call.of(
        method, max_iter=max_iter, callback=callback, progress=progress, options=options, raise_on_failure=raise_on_failure
    )
    if method == "exact" and init is not None:
        msg = 'method="exact" has no use for init: leave it out, or choose another method'
        raise ValueError(msg)
    geometry = make_geometry(C)
    strength = regularisation(reg, method, geometry)
    penalties = price(unbalanced, call)
    problem = make_problem(a, b, geometry, reg=strength, tol=tolerance(tol), penalties=penalties)
    system = make_system(as_constraints(constraints), problem)
    if system is not None and problem.marginals is not None:
        msg = "constraints need fixed marginals: leave either constraints or unbalanced out"
        raise ValueError(msg)
    if system is not None:
        problem = replace(problem, constraints=system)
    start = make_start(init, problem)
    if start is not None:
        problem = replace(problem, start=start)
    run = partial(call.solve, label=f"solve_ot[{method}]")
    if isinstance(unbalanced, PartialMass):
        check_mass(problem, unbalanced.mass)
        return report(solve_partial(problem, unbalanced.mass, run), raise_on_failure=call.raise_on_failure)
    return report(run(problem), raise_on_failure=call.raise_on_failure)
