"""The result of `solve_ot`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from otbilevel._core.array import Array, as_array, common_namespace
from otbilevel._core.monitor import Monitor
from otbilevel._core.result import Result, Status
from otbilevel.ot.feasibility import may_be_infeasible, prove_infeasible
from otbilevel.ot.gradients import OTGradient, value_gradient
from otbilevel.ot.plan import EntropicPlan, Plan
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.row_plan import Work
from otbilevel.ot.unbalanced_plan import UnbalancedPlan

UNPROVED = "; the forbidden pairs of C may leave no plan, which is found out in advance for arrays in host memory only"
"""What a failure may come from."""


@dataclass(eq=False, repr=False)
class OTResult(Result):
    """What `solve_ot` returns. The heavy things are computed on first access; for that the cost is kept by reference.

    The plan is P_ij = a_i b_j exp((f_i + g_j - C_ij) / reg), the minimiser of <P, C> + reg KL(P | a b^T) with KL(P |
    Q) = sum P log(P/Q) - P + Q. After ``method="exact"`` it is a sparse optimal plan instead, `reg` is 0, the formula
    does not apply, and f, g are optimal potentials of the linear program.

    Attributes
    ----------
    f, g : (n,), (m,) arrays
        Potentials in units of the cost, with <a, f> = <b, g> where both marginals are fixed; at points of zero weight their
        c-transforms, always finite (0 where all pairs of such a point are forbidden).
        For float32 data they are rounded on return, while the plan and the figures belong to the unrounded ones.
    potentials : tuple
        ``(f, g)``.
    plan : (n, m) array
        The plan. O(n m) time and memory.
    sparse_plan : scipy.sparse.csr_array
        The plan in host memory, without entries that together hold less than min(tol, 1e-6) of the mass: at large
        reg that is nearly all of it.
    reg : float
        Regularisation in use.
    value, value_linear, dual_value : float
        The objective <P, C> + reg KL(P | a b^T), plus the penalties of unbalanced transport; <P, C>; and the dual objective, for
        fixed marginals <a, f> + <b, g> - reg (sum P - sum a b^T).
    gap : float
        With Q the plan rounded to exact marginals, <Q, C> + reg KL(Q | a b^T) (and the penalties) - dual_value >= 0: it tends to 0
        with convergence. For a `Grid` an upper bound of it. Infinite when there is no Q: forbidden pairs may leave plans that are
        feasible up to the tolerance only. Beside forbidden pairs Q takes a flow in host memory: for arrays on a device `gap` and
        `gap_exact` then raise a `TypeError`.
    gap_exact : float
        <Q, C> (and the penalties) minus the value of feasible potentials of *unregularised* transport: it is within `gap_exact` of
        the exact optimum. It stays of the order of reg log n. Infinite when no Q or no feasible potentials are found.
    marginal_error : float
        (||P 1 - a||_1 + ||P' 1 - b||_1) / mass, from a sweep over the returned plan in full precision. Where marginals have a
        price, what the potentials prescribe takes the place of a and b (for KL, a exp(-f / strength)), and the mean of both masses
        that of the mass. For a `PointCloud` of more
        than 5e10 pairs (NumPy, squared Euclidean cost) the sums are interpolated, and their distance from those of 4096 random
        rows and columns is added.
    marginals : tuple
        ``(P 1, P' 1)``.
    multipliers : (K,) array
        With constraints: their dual variables, in units of the cost per unit of D, in the order given; else empty. They tell how
        fast the optimal value rises with the bounds: positive where a lower bound is active, negative where an upper bound is, 0
        where none is, and of either sign for equalities. The plan is then P_ij = a_i b_j exp((f_i + g_j + sum_k multipliers_k
        D_k(i, j) - C_ij) / reg), and `dual_value` has the term sum_k multipliers_k t_k, where t_k is the active bound. `gap` and
        `gap_exact` then also count by how much Q, weighted by the multipliers, is off these bounds.
    constraint_violation : float
        With constraints: by how much <D_k, P> is outside its bounds, the largest over k, in units of D times mass; else 0.
        `success` implies that each is at most tol times mass times sum_i a_i max_j |D_k(i, j)| / sum(a), as large as <D_k, P> may
        be (with sums of products of factors, and test functions, an upper bound of it).
    nit, nit_newton : int
        All iterations (Sinkhorn and Newton, over all levels of regularisation), and Newton steps among them.
    nsweep, nproduct : int
        Passes with an exponential per entry, and passes of products only, which take a tenth of the time to a half: scaling passes,
        trial steps, steps of conjugate gradients. On an active set they go over its pairs only. Where nothing is stored, all are
        sweeps.
    success, status, message
        Whether, why and with what advice the solver stopped.
    method : str
        The method that ran; after ``method="auto"`` the one that was chosen.
    history : dict of (nit,) ndarray
        Per iteration ``"marginal_error"`` (of the current level), ``"reg"`` (of that level), ``"seconds"``; empty after
        ``method="exact"``, and with the steps of conjugate gradients, ``"cg"``, for ``variant="paper"``.
    """

    marginal_error: float
    reg: float
    nit: int
    nit_newton: int
    nsweep: int
    nproduct: int
    success: bool
    status: Status
    message: str
    method: str
    history: dict[str, np.ndarray]
    _plan: Plan
    _tol: float = field(repr=False)
    _summary = (
        "message",
        "success",
        "status",
        "method",
        "reg",
        "marginal_error",
        "nit",
        "nit_newton",
        "nsweep",
        "nproduct",
        "f",
        "g",
    )

    @cached_property
    def potentials(self) -> tuple[Array, Array]:
        """``(f, g)``."""
        return self._plan.potentials()

    @property
    def f(self) -> Array:
        """Row potentials, shape (n,)."""
        return self.potentials[0]

    @property
    def g(self) -> Array:
        """Column potentials, shape (m,)."""
        return self.potentials[1]

    @cached_property
    def value(self) -> float:
        """<P, C> + reg KL(P | a b^T)."""
        return self._plan.value()

    @cached_property
    def value_linear(self) -> float:
        """<P, C>."""
        return self._plan.value_linear()

    @cached_property
    def dual_value(self) -> float:
        """The dual objective at (f, g)."""
        return self._plan.dual_value()

    @cached_property
    def gap(self) -> float:
        """Duality gap at the rounded plan. First access costs a few passes over the cost."""
        return self._plan.gap()

    @cached_property
    def gap_exact(self) -> float:
        """Certificate against unregularised transport. First access costs a few passes over the cost."""
        return self._plan.gap_exact()

    @cached_property
    def plan(self) -> Array:
        """The plan as an (n, m) array. O(n m) time and memory."""
        return self._plan.dense()

    @cached_property
    def sparse_plan(self) -> sparse.csr_array:
        """The plan as a SciPy CSR array in host memory, without entries that together hold less than min(tol, 1e-6) of the mass."""
        return self._plan.csr(min(self._tol, 1e-6))

    @property
    def marginals(self) -> tuple[Array, Array]:
        """``(P 1, P' 1)``."""
        return self._plan.marginals

    @cached_property
    def multipliers(self) -> Array:
        """Dual variables of the constraints, shape (K,)."""
        return self._plan.multipliers

    @cached_property
    def constraint_violation(self) -> float:
        """The largest violation of a constraint."""
        return self._plan.constraint_violation

    def apply(self, v: Any, axis: int = 1) -> Array:
        """Multiply the plan by vectors without an n x m array.

        Parameters
        ----------
        v : (m,) or (m, k) array for axis 1, (n,) or (n, k) array for axis 0
            The vectors.
        axis : {0, 1}
            The axis of the plan that is summed over: 1 gives P v, 0 gives P' v.

        Returns
        -------
        array
            Shape (n,) or (n, k) for axis 1, (m,) or (m, k) for axis 0.

        Notes
        -----
        One sweep, O(n m k) time and O((n + m) k) memory; beyond 5e10 pairs of points it is interpolated, and a sparse plan is
        multiplied in its own time.
        """
        if axis not in (0, 1):
            msg = f"axis must be 0 or 1, got {axis!r}"
            raise ValueError(msg)
        return self._plan.apply(self._vectors(v, "v", axis), axis)

    def barycentric_map(self, y: Any) -> Array:
        """Map every source to the mean of the targets that its mass goes to, sum_j P_ij y_j / sum_j P_ij.

        Parameters
        ----------
        y : (m,) or (m, d) array
            Target points.

        Returns
        -------
        (n,) or (n, d) array
            The images. A source of zero weight is mapped by the conditional plan that its potential defines (after
            ``method="exact"`` to its cheapest target, where C_ij - g_j is least).
        """
        points = self._vectors(y, "y", 1)
        xp = self._plan.problem.xp
        flat = len(points.shape) == 1
        points = xp.astype(points, xp.float64)
        means = self._plan.conditional_means(points[:, None] if flat else points)
        return xp.astype(means[:, 0] if flat else means, self._plan.problem.dtype)

    def gradient(self, wrt: Iterable[str] | None = None) -> OTGradient:
        """Differentiate the optimal value with respect to the data, by the envelope theorem.

        Parameters
        ----------
        wrt : names among "a", "b", "C", "x", "y", "reg", optional
            What to differentiate in: "x" and "y" for a `PointCloud`, else "C". By default everything that the problem is made of;
            the gradient in the entries of C between two clouds, which is the plan, only comes on request.

        Returns
        -------
        OTGradient
            With the fields `a`, `b`, `C`, `x`, `y`, `reg`, each of the shape of what it belongs to, None where not asked for.

        Raises
        ------
        ValueError
            When the problem is not made of what `wrt` names.

        Notes
        -----
        In a it is f + reg (mass - 1), in b g + reg (mass - 1), in C the plan P, in reg KL(P | a b^T), and in the point x_i
        sum_j P_ij dc(x_i, y_j)/dx_i, without an n x m array: for squared Euclidean and cosine costs two products with the plan,
        for the others blocks of rows. At a zero weight it is the derivative to the right. The error is of the order of
        `marginal_error` times the range of the cost. After ``method="exact"`` it is a subgradient, as the value has kinks.
        Where a marginal has a price, the derivative of its penalty takes the place of the potential. Under constraints, which are
        held fixed, there are those in a, b, C and reg; `multipliers` are those in the bounds.
        Derivatives of other outputs, and second ones, take a linear solve: see `otbilevel.ot.linearize`.

        Examples
        --------
        >>> import numpy as np
        >>> from otbilevel import PointCloud, solve_ot
        >>> x, y = np.array([[0.0], [1.0]]), np.array([[0.5], [2.5]])
        >>> solve_ot(None, None, PointCloud(x, y), reg=0.1).gradient("x").x.round(6)
        array([[-0.5],
               [-1.5]])
        """
        return value_gradient(self._plan, wrt)

    def _vectors(self, v: Any, name: str, axis: int) -> Array:
        problem = self._plan.problem
        vectors = as_array(v, name)
        common_namespace({name: vectors, "the plan": problem.a})
        length = problem.whole.shape[axis]
        if len(vectors.shape) not in (1, 2) or vectors.shape[0] != length:
            msg = f"{name} must have shape ({length},) or ({length}, k), got {tuple(vectors.shape)}"
            raise ValueError(msg)
        return vectors


def plan_kind(problem: OTProblem) -> type[EntropicPlan]:
    """What holds the plan of a problem."""
    return EntropicPlan if problem.marginals is None else UnbalancedPlan


def entropic_result(
    problem: OTProblem, f: Array, g: Array, *, method: str, monitor: Monitor, work: Work, nit_newton: int = 0
) -> OTResult:
    """Certify the potentials (g with reg log b in it) and say how the run ended."""
    plan = plan_kind(problem).certify(problem, f, g)
    return plan_result(plan, method=method, monitor=monitor, work=work, nit_newton=nit_newton)


def plan_result(
    plan: EntropicPlan, *, method: str, monitor: Monitor, work: Work, nit_newton: int = 0, advice: str = ""
) -> OTResult:
    """Say how the run ended that led to this certified plan; `advice` is what the method knows better about a failure."""
    problem = plan.problem
    work.sweeps += 1
    status = _status(problem, plan.residual, monitor)
    if status not in (Status.SUCCESS, Status.CALLBACK_STOP) and may_be_infeasible(problem):
        proof = prove_infeasible(problem, plan.g)
        status, advice = (Status.INFEASIBLE, proof) if proof else (status, advice)
    return OTResult(
        marginal_error=plan.marginal_error,
        reg=problem.reg,
        nit=monitor.nit,
        nit_newton=nit_newton,
        nsweep=work.sweeps,
        nproduct=work.products,
        success=status is Status.SUCCESS,
        status=status,
        message=_message(plan, status, monitor, method, advice) + (f" ({plan.sampled})" if plan.sampled else ""),
        method=method,
        history={name: np.asarray(values) for name, values in monitor.history.items()},
        _plan=plan,
        _tol=problem.tol,
    )


def _status(problem: OTProblem, error: float, monitor: Monitor) -> Status:
    if error <= problem.tol:
        return Status.SUCCESS
    if not error < float("inf"):
        return Status.NOT_FINITE
    return monitor.status or Status.STALLED


def _message(plan: EntropicPlan, status: Status, monitor: Monitor, method: str, advice: str) -> str:
    problem, error = plan.problem, plan.residual
    if status is Status.SUCCESS:
        return f"converged: {plan.figures} <= tol = {problem.tol:.2g}"
    floor = problem.rounding_floor
    if not problem.at_floor(error):
        stall = "the steps no longer help, as happens where many costs tie: raise reg, or raise tol"
    else:
        stall = f"no further progress; double precision promises no better than about {floor:.1g} here: raise tol, or raise reg"
    faster = ' use method="sns",' if method == "sinkhorn" else ""
    advice = (
        advice
        or {
            Status.ITERATION_LIMIT: f"the limit max_iter = {monitor.max_iter} is reached: raise it,{faster} or raise reg",
            Status.TIME_LIMIT: f"the time limit of {monitor.time_limit:g} s is reached: raise it, or raise reg or tol",
            Status.CALLBACK_STOP: "the callback asked to stop",
            Status.NOT_FINITE: "a number is not finite: rescale C, and reg by the same factor",
            Status.STALLED: stall,
        }[status]
    )
    unproved = status is not Status.INFEASIBLE and may_be_infeasible(problem)
    return shortfall(plan.figures, problem.tol, advice + (UNPROVED if unproved else ""))


def shortfall(figures: str, tol: float, advice: str) -> str:
    """The message of a result that is not accurate enough."""
    return f"not converged, {figures} > tol = {tol:.2g}: {advice}"
