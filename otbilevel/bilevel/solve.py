"""The entry of bilevel problems."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from otbilevel._core import validate
from otbilevel._core.array import Array, as_vector, common_namespace, to_numpy
from otbilevel._core.differentiate import Function, Jacobian
from otbilevel._core.monitor import Callback, Monitor
from otbilevel._core.result import report
from otbilevel._core.rng import generator
from otbilevel.bilevel.check import check_gradients
from otbilevel.bilevel.constraints import Rows, bounds_of
from otbilevel.bilevel.methods import METHODS
from otbilevel.bilevel.problem import BilevelProblem, Library, Objective, listed, product, wrapped
from otbilevel.bilevel.result import BilevelResult
from otbilevel.bilevel.task import Task


def minimize_bilevel(  # noqa: PLR0913 -- the public contract
    upper: Function,
    lower: Function,
    x0: Any,
    y0: Any,
    *,
    jac_upper: Jacobian | bool | None = None,
    jac_lower: Jacobian | bool | None = None,
    hvp_yy: Callable[[Array, Array, Array], Array] | None = None,
    hvp_xy: Callable[[Array, Array, Array], Array] | None = None,
    method: str = "lv-hba",
    constraints: Any = (),
    upper_constraints: Any = (),
    bounds_x: Any = None,
    bounds_y: Any = None,
    projection: Any = None,
    init: Any = None,
    tol: float = 1e-4,
    max_iter: int | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    options: Mapping[str, Any] | None = None,
    rng: Any = 0,
    check: bool = False,
    raise_on_failure: bool = False,
) -> BilevelResult:
    """Minimise upper(x, y) where y minimises lower(x, .) under constraints that may couple both.

        min F(x, y)  s.t.  G(x, y) <= 0,  y in argmin_y { f(x, y) : g(x, y) <= 0 }

    Where the lower level has many solutions, the one that suits the upper level best counts (the optimistic choice). The lower
    level must be convex in y, its constraints convex in (x, y): otherwise `lower_gap` is that to a local minimum near y.
    Functions are scaled, variables are not: choose units in which they are of order one.

    Parameters
    ----------
    upper, lower : callable
        ``upper(x, y)`` and ``lower(x, y)`` return numbers.
    x0 : (n,) array_like
        Where to start.
    y0 : (m,) array_like
        Where to start.
    jac_upper, jac_lower : callable or True, optional
        ``jac(x, y)`` returns ``(grad_x, grad_y)``; True: the function returns ``(value, (grad_x, grad_y))``. By default automatic
        differentiation for tensors, and finite differences otherwise.
    hvp_yy : callable, optional
        ``hvp_yy(x, y, v)`` returns the second derivative of lower in y times v, in place of differences of gradients; for
        ``"lv-hba"`` and ``"aid-cg"``.
    hvp_xy : callable, optional
        ``hvp_xy(x, y, v)`` returns the gradient in x of <grad_y lower(x, y), v>, in place of differences; for ``"aid-cg"``.
    method : str
        A row of the registry.
    constraints : CoupledConstraint, scipy.optimize.LinearConstraint, or sequence of these
        Of the lower level, on the stacked vector (x, y).
    upper_constraints : CoupledConstraint, scipy.optimize.LinearConstraint, or sequence of these
        Of the upper level.
    bounds_x : scipy.optimize.Bounds or pair, optional
        Of x, in the upper level.
    bounds_y : scipy.optimize.Bounds or pair, optional
        Of y, in the lower level.
    projection : callable, optional
        ``projection(w)`` returns the point that obeys the constraints of both levels and is nearest to the stacked vector (x, y),
        such as those of `otbilevel.bilevel.projection`; for ``options={"variant": "paper"}``.
    init : BilevelResult or its state, optional
        Where to start, in place of x0 and y0, whose array library and dtype are those of the run even so.
    tol : float
        Of the lower-level gap, relative to max(1, |f|); the violation of constraints is held below a tenth of it.
    max_iter : int, optional
        Iteration limit; by default that of the method.
    callback : callable, optional
        ``callback(intermediate_result)`` after every iteration, with `x`, `y`, `nit` and figures. Raising `StopIteration` stops.
    progress : bool
        Show a progress bar on stderr.
    options : dict, optional
        Settings of the method, and ``"time_limit"`` in seconds.
    rng : numpy.random.Generator or int
        Draws starts; the same by default.
    check : bool
        Compare all derivatives with differences at the start, by 2 (n + m) evaluations, and 2 m of gradients for products, and
        refuse those that disagree, by name.
    raise_on_failure : bool
        Raise `ConvergenceError` instead of warning.

    Returns
    -------
    BilevelResult
        The point, and figures that were computed independently of the iteration.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong; the message names it.
    ConvergenceError
        When it fails and `raise_on_failure` is set.

    Warns
    -----
    ConvergenceWarning
        When no point was found that is feasible and optimal for the lower level, to the tolerances. The best one is returned.

    References
    ----------
    W. Yao, C. Yu, S. Zeng, J. Zhang, Constrained bi-level optimization: proximal Lagrangian value function approach and
    Hessian-free algorithm, ICLR 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.optimize import LinearConstraint
    >>> from otbilevel import minimize_bilevel
    >>> result = minimize_bilevel(
    ...     lambda x, y: (x[0] - 5) ** 2 + (2 * y[0] + 1) ** 2,
    ...     lambda x, y: (y[0] - 1) ** 2 - 1.5 * x[0] * y[0],
    ...     [4.0],
    ...     [0.0],
    ...     constraints=LinearConstraint([[-3, 1], [1, -0.5], [1, 1]], ub=[-3, 4, 7]),
    ...     bounds_x=(0, np.inf),
    ...     bounds_y=(0, np.inf),
    ... )
    >>> result.success, result.x.round(3), result.fun.__round__(3)
    (True, array([1.]), 17.0)
    """
    row = METHODS[method]
    given = dict(options or {})
    limit = given.pop("time_limit", None)
    settings = row.make_options(given)
    x, y = as_vector(x0, "x0"), as_vector(y0, "y0")
    xp = common_namespace({"x0": x, "y0": y})
    library = Library(xp.zeros_like(x) if xp.isdtype(x.dtype, "real floating") else x)
    n, m = x.shape[0], y.shape[0]
    state = _state(init, {"x": n, "y": m})
    start = np.concatenate([state.get("x", to_numpy(x)), state.get("y", to_numpy(y))]).astype(np.float64)
    if not np.all(np.isfinite(start)):
        msg = "x0 and y0 must be finite"
        raise ValueError(msg)
    boxes = [bounds_of(bounds_x, n, "bounds_x"), bounds_of(bounds_y, m, "bounds_y")]
    low, high = (np.concatenate([box[k] for box in boxes]) for k in (0, 1))
    inside = np.clip(start, low, high)
    sets = [
        Rows([wrapped(c, library, f"{name}[{k}]") for k, c in enumerate(listed(each))], inside[:n], inside[n:], name)
        for each, name in ((constraints, "constraints"), (upper_constraints, "upper_constraints"))
    ]
    for function, name in ((upper, "upper"), (lower, "lower")):
        if not callable(function):
            msg = f"{name} must be callable, got {type(function).__name__}"
            raise TypeError(msg)
    problem = BilevelProblem(
        Objective(upper, jac_upper, n, library, "upper"),
        Objective(lower, jac_lower, n, library, "lower"),
        sets[0],
        sets[1],
        low,
        high,
        n,
        m,
        product(hvp_yy, n, library, "hvp_yy"),
        product(hvp_xy, n, library, "hvp_xy"),
    )
    monitor = Monitor(
        max_iter=row.max_iter if max_iter is None else validate.integer(max_iter, "max_iter", low=1),
        time_limit=None if limit is None else validate.real(limit, "time_limit", low=0.0),
        callback=callback,
        progress=validate.boolean(progress, "progress"),
        description=f"minimize_bilevel[{method}]",
    )
    task = Task(problem, start, library, validate.real(tol, "tol", low=0.0, strict=True), monitor, generator(rng), settings, method)
    if projection is not None:
        if not callable(projection) or getattr(settings, "variant", "") != "paper":
            msg = 'projection must be a function, and is for options={"variant": "paper"}: leave it out'
            raise ValueError(msg)
        task.projection = projection
    task.state = state
    if problem.violation(start) > 0:
        task.notes.append("the start was projected onto the constraints")
    if validate.boolean(check, "check"):
        check_gradients(problem, np.clip(start, low, high))
    strict = validate.boolean(raise_on_failure, "raise_on_failure")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Values in x were outside bounds", RuntimeWarning)
            warnings.filterwarnings("ignore", "invalid value encountered|overflow encountered|divide by zero", RuntimeWarning)
            result: BilevelResult = row.solve(task)
    finally:
        monitor.close()
    return report(result, raise_on_failure=strict)


def _state(init: Any, sizes: dict[str, int]) -> dict[str, Any]:
    """Of a run to go on from, in NumPy whatever the library of its arrays is; empty at a start."""
    state = init.state if isinstance(init, BilevelResult) else {} if init is None else init
    if not isinstance(state, Mapping):
        msg = f"init must be a BilevelResult or its state, got {type(init).__name__}"
        raise TypeError(msg)
    found = {name: Library.back(value) if getattr(value, "shape", ()) else value for name, value in state.items()}
    for name, size in sizes.items() if init is not None else ():
        shape = np.shape(found.get(name, ()))
        if shape != (size,):
            msg = f"init must hold a vector {name} of length {size}, as {name}0 has, got shape {shape}"
            raise ValueError(msg)
    return found
