"""The nearest point of the set of both levels' constraints, by SciPy's SLSQP."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from otbilevel.bilevel.scaled import ScaledProblem


def project(problem: ScaledProblem, w: np.ndarray) -> np.ndarray:
    """The nearest point of C, by SLSQP."""
    inside: np.ndarray = np.clip(w, problem.low, problem.high)
    if problem.violation(inside) <= 0:
        return inside
    result = minimize(
        lambda v: 0.5 * float((v - w) @ (v - w)),
        inside,
        jac=lambda v: v - w,
        method="SLSQP",
        constraints=problem.slsqp_rows(),
        bounds=np.c_[problem.low, problem.high],
        options={"ftol": 1e-10, "maxiter": 300},
    )
    found: np.ndarray = np.clip(result.x, problem.low, problem.high)
    return found if np.all(np.isfinite(found)) and problem.violation(found) < problem.violation(inside) else inside
