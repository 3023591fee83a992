"""Hypergradients by the implicit function theorem: one linear system with the Hessian of the lower level."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace, as_vector, common_namespace
from otbilevel._core.differentiate import Function, Jacobian, gradients, second_derivatives, vector
from otbilevel._core.result import ConvergenceWarning, Result, Status, report
from otbilevel.linalg.conversion import FunctionOperator
from otbilevel.linalg.ihvp import ihvp
from otbilevel.linalg.operators import SymmetricOperator
from otbilevel.linalg.result import LinearResult

LARGE = 0.1
"""Error relative to the hypergradient from which on there is a warning."""
CORRECTION = 10
"""Iterations, at least, of the correction that estimates the error."""


@dataclass(frozen=True, repr=False, eq=False)
class HypergradientResult(Result):
    """What `hypergradient` returns.

    Attributes
    ----------
    grad : (n,) array; in the bridge to PyTorch a tuple of tensors like the hyper-parameters
        The hypergradient dF/dx.
    v : (m,) array
        The solution of (H + damping I) v = grad_y F, H the second derivative of the lower level in y; 0 where the solver found
        nothing better. It serves as `init` of the next call.
    residual : float
        Of that system, relative to its right-hand side, from a product of its own.
    error : float
        An estimate of the norm of the error that the linear system leaves in `grad`, within a factor of two in most cases; NaN when
        it was not asked for, infinite when neither the system nor the correction that the estimate comes from was solved. It does
        not see directions of so little curvature that the solver did not notice them, nor that `y` is not optimal.
    lower_gradient : float
        Norm of grad_y of the lower level at y: 0 at its optimum. The hypergradient is off by a multiple of it.
    negative_curvature : bool
        Whether H turned out not to be positive definite.
    nit : int
        Iterations of the solver.
    success, status, message
        Whether the linear system was solved to the tolerance, and what to try if not.
    """

    grad: Any
    v: Array
    residual: float
    error: float
    lower_gradient: float
    negative_curvature: bool
    nit: int
    success: bool
    status: Status
    message: str
    _summary = ("message", "success", "status", "residual", "error", "lower_gradient", "negative_curvature", "nit", "grad")


@dataclass(frozen=True)
class Implicit:
    """The pieces of a hypergradient at a point, and how to put them together.

    Attributes
    ----------
    op : SymmetricOperator
        H, the second derivative of the lower level in y.
    cross : callable
        v -> the gradient in x of <grad_y lower, v>.
    grad_x, grad_y : (n,), (m,) array
        Those of the upper level.
    lower_gradient : float
        Norm of the gradient of the lower level in y.
    """

    op: SymmetricOperator
    cross: Callable[[Array], Array]
    grad_x: Array
    grad_y: Array
    lower_gradient: float

    def solve(self, solver: str, *, init: Any, estimate_error: bool, note: str = "", **settings: Any) -> HypergradientResult:
        """Solve the linear system, and estimate what its residual does to the hypergradient."""
        start = init.v if isinstance(init, HypergradientResult) else init
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # one is given for the whole
            linear = ihvp(self.op, self.grad_y, solver, init=start, **settings)
        if linear.residual > 1.0:  # v = 0 is better
            linear = replace(linear, x=self.op.xp.zeros_like(linear.x), residual=1.0)
        grad = self.grad_x - self.cross(linear.x)
        finite = bool(array_namespace(grad).all(array_namespace(grad).isfinite(grad)))
        status = linear.status if finite else Status.NOT_FINITE
        error = self._error(linear, **settings) if estimate_error and finite else float("nan")
        size = float(array_namespace(grad).linalg.vector_norm(grad))
        if linear.success and _doubtful(error, size, settings["tol"]):
            note += (
                f"; and yet it may leave an error of {error:.1g} in a hypergradient of norm {size:.1g}: lower tol, or add damping"
            )
        return HypergradientResult(
            grad=grad,
            v=linear.x,
            residual=linear.residual,
            error=error,
            lower_gradient=self.lower_gradient,
            negative_curvature=linear.negative_curvature,
            nit=linear.nit,
            success=status is Status.SUCCESS,
            status=status,
            message=_message(linear, finite=finite) + note,
        )

    def _error(self, linear: LinearResult, *, damping: float, preconditioner: Any, **_: Any) -> float:
        """The norm of cross(d), where d corrects v: some iterations for (H + damping I) d = what is left of the system."""
        norm = self.op.xp.linalg.vector_norm
        rest = self.grad_y - self.op.matvec(linear.x) - damping * linear.x
        if not float(norm(rest)) > 0:
            return 0.0
        method = "minres" if linear.negative_curvature else "cg"
        limit = max(CORRECTION, linear.nit // 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            correction = ihvp(self.op, rest, method, damping=damping, tol=0.1, max_iter=limit, preconditioner=preconditioner)
        if not (correction.success or linear.success):
            return float("inf")
        return float(norm(self.cross(correction.x)))


def _message(linear: LinearResult, *, finite: bool) -> str:
    if not finite:
        return "the hypergradient is not finite: look at what upper and lower return, and at their derivatives"
    if linear.negative_curvature:
        return (
            "negative curvature: y is not a strict minimiser of the lower level; solve that further, add damping, or take "
            'solver="minres"' + ("" if linear.success else f" (relative residual {linear.residual:.2g})")
        )
    if linear.success:
        return "the linear system is solved to the tolerance"
    return f"the linear system is left with a relative residual of {linear.residual:.2g}: {linear.message}"


def hypergradient(  # noqa: PLR0913 -- the public contract
    upper: Function | None,
    lower: Function | None,
    x: Any,
    y: Any,
    *,
    jac_upper: Jacobian | bool | None = None,
    jac_lower: Jacobian | bool | None = None,
    hvp_yy: Callable[[Array, Array, Array], Array] | None = None,
    hvp_xy: Callable[[Array, Array, Array], Array] | None = None,
    solver: str = "cg",
    tol: float = 1e-6,
    max_iter: int | None = None,
    damping: float = 0.0,
    init: Any = None,
    preconditioner: Callable[[Array], Array] | None = None,
    options: Mapping[str, Any] | None = None,
    rng: Any = 0,
    estimate_error: bool = True,
    raise_on_failure: bool = False,
) -> HypergradientResult:
    """Compute the gradient of upper(x, y*(x)), where y*(x) minimises lower(x, .), at y = y*(x).

    With F and f for the two levels it is grad_x F - (d2f/dx dy) v, where (d2f/dy2 + damping I) v = grad_y F.

    Parameters
    ----------
    upper, lower : callable
        ``upper(x, y)`` and ``lower(x, y)`` return a number; not called where their ``jac`` is a function.
    x : (n,) array_like
        Upper variables (hyper-parameters).
    y : (m,) array_like
        Lower variables, at the minimum of the lower level or close to it.
    jac_upper, jac_lower : callable or True, optional
        ``jac(x, y)`` returns ``(grad_x, grad_y)``; True: the function returns ``(value, (grad_x, grad_y))``. By default automatic
        differentiation for tensors; for other arrays differences of `upper`, while `jac_lower` is then needed.
    hvp_yy : callable, optional
        ``hvp_yy(x, y, v)`` returns the second derivative of lower in y times v; by default automatic, or differences of
        `jac_lower`, which `message` reports.
    hvp_xy : callable, optional
        ``hvp_xy(x, y, v)`` returns the gradient in x of <grad_y lower(x, y), v>; by default as for `hvp_yy`.
    solver : str
        A method of `otbilevel.curvature.ihvp`: ``"cg"``, ``"minres"``, ``"neumann"``, ``"lissa"``, ``"nystrom"``, ``"mfac"``,
        ``"dense"``, or ``"auto"``, which is MINRES here.
    tol : float
        Relative residual of the linear system.
    max_iter : int, optional
        Iteration limit of the solver.
    damping : float
        What is added to the diagonal of the Hessian, >= 0.
    init : HypergradientResult or (m,) array_like, optional
        Where v starts, such as the result of the last call.
    preconditioner : callable, MFAC or Nystrom, optional
        ``preconditioner(r)`` approximates (H + damping I)^-1 r, symmetric and positive definite; for ``"cg"`` and ``"minres"``.
    options : dict, optional
        Settings of the solver.
    rng : numpy.random.Generator or int
        Draws what is random.
    estimate_error : bool
        Estimate the error that the residual leaves in the hypergradient, by half as many iterations again at most (ten at least).
    raise_on_failure : bool
        Raise `ConvergenceError` instead of warning when the linear system is not solved.

    Returns
    -------
    HypergradientResult
        `grad`, and the figures that say how good it is.

    Raises
    ------
    TypeError, ValueError
        When an argument, or what a function returns, is wrong; the message names it.
    ConvergenceError
        When the linear system is not solved and `raise_on_failure` is set.

    Warns
    -----
    ConvergenceWarning
        When the linear system is not solved to `tol`, the Hessian is not positive definite there, or `error` is more than a tenth,
        and more than 5 tol, of the hypergradient.

    Notes
    -----
    A product with the Hessian for every iteration, and one with the mixed derivative.

    References
    ----------
    F. Pedregosa, Hyperparameter optimization with approximate gradient, ICML 2016. J. Lorraine, P. Vicol, D. Duvenaud, Optimizing
    millions of hyperparameters by implicit differentiation, AISTATS 2020.

    Examples
    --------
    Ridge regression with the logarithm x of its penalty:

    >>> import numpy as np
    >>> from otbilevel import hypergradient
    >>> A, b = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]), np.array([1.0, 2.0, 3.0])
    >>> jac_lower = lambda x, y: (np.exp(x) * (y @ y) / 2, A.T @ (A @ y - b) + np.exp(x) * y)
    >>> jac_upper = lambda x, y: (0 * x, y - np.array([1.0, 1.0]))
    >>> x = np.zeros(1)
    >>> y = np.linalg.solve(A.T @ A + np.eye(2), A.T @ b)
    >>> hypergradient(None, None, x, y, jac_upper=jac_upper, jac_lower=jac_lower).grad.round(5)
    array([0.01242])
    """
    x, y = as_vector(x, "x"), as_vector(y, "y")
    common_namespace({"x": x, "y": y})
    for name, given in (("hvp_yy", hvp_yy), ("hvp_xy", hvp_xy)):
        if given is not None and not callable(given):
            msg = f"{name} must be a function of (x, y, v), got {type(given).__name__}"
            raise TypeError(msg)
    grad_x, grad_y = gradients(upper, jac_upper, x, y, "upper")
    products_yy, products_xy, lower_gradient, note = None, None, float("nan"), ""
    if hvp_yy is not None and hvp_xy is not None:
        products_yy = lambda v: hvp_yy(x, y, v)  # noqa: E731
        products_xy = lambda v: hvp_xy(x, y, v)  # noqa: E731
        if jac_lower is not None or callable(lower):
            lower_gradient = _norm(gradients(lower, jac_lower, x, y, "lower")[1])
    else:
        second = second_derivatives(lower, jac_lower, x, y, "lower")
        products_yy = second.hvp_yy if hvp_yy is None else lambda v: hvp_yy(x, y, v)
        products_xy = second.hvp_xy if hvp_xy is None else lambda v: hvp_xy(x, y, v)
        lower_gradient = _norm(second.gradient)
        note = "" if jac_lower is None else "; second derivatives by differences of jac_lower"
    op = FunctionOperator(lambda v: vector(products_yy(v), y, "hvp_yy"), y.shape[0], y, psd=False)
    implicit = Implicit(op, lambda v: vector(products_xy(v), x, "hvp_xy"), grad_x, grad_y, lower_gradient)
    settings = {"tol": tol, "max_iter": max_iter, "damping": damping, "preconditioner": preconditioner, "options": options}
    found = implicit.solve(
        solver, init=init, estimate_error=validate.boolean(estimate_error, "estimate_error"), note=note, rng=rng, **settings
    )
    return finished(found, tol=tol, raise_on_failure=validate.boolean(raise_on_failure, "raise_on_failure"))


def finished(found: HypergradientResult, *, tol: float, raise_on_failure: bool) -> HypergradientResult:
    """Report a failure, and a success that may be none: negative curvature was met, or a large error is left."""
    parts = found.grad if isinstance(found.grad, tuple) else (found.grad,)
    size = sum(_norm(part) ** 2 for part in parts) ** 0.5
    if found.success and (found.negative_curvature or _doubtful(found.error, size, tol)):
        warnings.warn(found.message, ConvergenceWarning, stacklevel=3)
    return report(found, raise_on_failure=raise_on_failure, stacklevel=4)


def _doubtful(error: float, size: float, tol: float) -> bool:
    """Whether an error is large for a hypergradient of some size, more than a loose tolerance explains."""
    return error > max(LARGE, 5 * tol) * size > 0


def _norm(v: Array) -> float:
    return float(array_namespace(v).linalg.vector_norm(v))
