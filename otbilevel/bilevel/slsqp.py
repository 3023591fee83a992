"""The nearest point of the set of both levels' constraints, by SciPy's SLSQP."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from otbilevel.bilevel.scaled import ScaledProblem


def project(problem: ScaledProblem, w: np.ndarray) -> np.ndarray:
    """The nearest point of C, by SLSQP; w within its bounds when that does not come nearer."""
    inside: np.ndarray = np.clip(w, problem.low, problem.high)
    if problem.violation(inside) <= 0:
        return inside
    try:
        result = minimize(
            lambda v: 0.5 * float((v - w) @ (v - w)),
            inside,
            jac=lambda v: v - w,
            method="SLSQP",
            constraints=problem.slsqp_rows(),
            bounds=np.c_[problem.low, problem.high],
            options={"ftol": 1e-10, "maxiter": 300},
        )
    except FloatingPointError:  # rows that are not defined on the way
        return inside
    found: np.ndarray = np.clip(result.x, problem.low, problem.high)
    return found if np.all(np.isfinite(found)) and problem.violation(found) < problem.violation(inside) else inside
