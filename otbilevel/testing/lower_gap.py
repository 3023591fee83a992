"""The gap of a lower level by SciPy's solvers: a check of `BilevelResult.lower_gap` that shares nothing with ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, NonlinearConstraint, minimize

from otbilevel.bilevel.constraints import CoupledConstraint

SOLVERS: dict[str, dict[str, Any]] = {
    "SLSQP": {"ftol": 1e-14, "maxiter": 500},
    "trust-constr": {"gtol": 1e-10, "xtol": 1e-12, "maxiter": 3000},
}
FEASIBLE = 1e-7
"""Violation up to which a point counts."""


def independent_lower_gap(
    lower: Callable[[np.ndarray, np.ndarray], float],
    x: np.ndarray,
    y: np.ndarray,
    *,
    constraints: Any = (),
    bounds_y: Any = None,
    solvers: tuple[str, ...] = ("SLSQP", "trust-constr"),
) -> float:
    """lower(x, y) minus the least value that SciPy's solvers find from y, with differences for derivatives.

    Parameters
    ----------
    lower : callable
        ``lower(x, y)``.
    x, y : (n,), (m,) ndarray
        The point.
    constraints : CoupledConstraint, scipy.optimize.LinearConstraint, or sequence of these
        Of the lower level, on the stacked vector (x, y).
    bounds_y : scipy.optimize.Bounds or pair, optional
        Of y.
    solvers : tuple of str
        Which to try: ``"SLSQP"``, ``"trust-constr"``.

    Returns
    -------
    float
        The gap; NaN when no solver ended in a feasible point. It may come out below 0 by what the solvers leave.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.testing import independent_lower_gap
    >>> round(independent_lower_gap(lambda x, y: (y[0] - x[0]) ** 2, np.array([1.0]), np.array([3.0])), 6)
    4.0
    """
    rows: list[Any] = []
    for c in [constraints] if isinstance(constraints, (LinearConstraint, CoupledConstraint)) else constraints:
        if isinstance(c, LinearConstraint):
            matrix = np.atleast_2d(c.A)
            rest = matrix[:, : len(x)] @ x
            rows.append(LinearConstraint(matrix[:, len(x) :], c.lb - rest, c.ub - rest))
        else:
            rows.append(NonlinearConstraint(lambda v, c=c: c.fun(x, v), -np.inf if c.kind == "ineq" else 0.0, 0.0))
    low, high = (bounds_y.lb, bounds_y.ub) if isinstance(bounds_y, Bounds) else (-np.inf, np.inf) if bounds_y is None else bounds_y
    bounds = Bounds(np.broadcast_to(low, y.shape), np.broadcast_to(high, y.shape))
    least = np.inf
    for method in solvers:
        with np.errstate(all="ignore"):
            found = minimize(lambda v: lower(x, v), y, method=method, bounds=bounds, constraints=rows, options=SOLVERS[method])
        out = [np.max(bounds.lb - found.x), np.max(found.x - bounds.ub)]
        for row in rows:
            values = row.A @ found.x if isinstance(row, LinearConstraint) else np.asarray(row.fun(found.x))
            out += [np.max(values - row.ub), np.max(row.lb - values)]
        if max(out) < FEASIBLE:
            least = min(least, float(lower(x, found.x)))
    return float(lower(x, y)) - least if np.isfinite(least) else np.nan
