"""Laws that every result of `solve_ot` obeys, checked with plain NumPy and no help from the solver."""

from __future__ import annotations

from typing import Any

import numpy as np

from otbilevel._core.array import Array, to_numpy
from otbilevel.ot.result import OTResult


def check_ot_result(
    result: OTResult,
    a: Array,
    b: Array,
    C: Array,  # noqa: N803 -- the field's name for the cost
    *,
    tol: float | None = None,
    exact: float | None = None,
) -> None:
    """Assert that a result of entropic transport is what it says.

    Parameters
    ----------
    result : OTResult
        The result to check.
    a, b : (n,), (m,) arrays
        The weights.
    C : (n, m) array
        The costs, +inf for forbidden pairs.
    tol : float, optional
        The marginal error that the result must have, relative to the mass; by default whatever it reports.
    exact : float, optional
        The value of unregularised transport, to check `gap_exact` against.

    Raises
    ------
    AssertionError
        When a law is broken.

    Notes
    -----
    Checked are: the library and dtype of what is returned; the reported marginal error against that of the plan; the
    formula of the plan; that P >= 0, and 0 on forbidden pairs; potentials finite and in the documented gauge;
    `value`, `value_linear`, `dual_value` and both gaps against their definitions; `marginals`, `apply` and
    `sparse_plan` against the plan. O(n m) memory.
    """
    a_, b_, cost = (np.asarray(to_numpy(v), dtype=np.float64) for v in (a, b, C))
    mass = a_.sum()
    single = to_numpy(result.f).dtype == np.float32
    eps = 1e-6 if single else 1e-13
    plan = np.asarray(to_numpy(result.plan), dtype=np.float64)
    f, g = (np.asarray(to_numpy(v), dtype=np.float64) for v in result.potentials)

    for name, value in (("plan", result.plan), ("f", result.f), ("g", result.g)):
        _require(type(value) is type(C) and value.dtype == C.dtype, f"{name} is not of the library and dtype of C")
    error = (np.abs(plan.sum(1) - a_).sum() + np.abs(plan.sum(0) - b_).sum()) / mass
    _close(error, result.marginal_error, "marginal_error", atol=10 * eps)
    if tol is not None:
        _require(result.success and error <= tol + 10 * eps, f"marginal error {error:.3g} above {tol:.3g}: {result.message}")

    _require(bool(np.all(plan >= 0)), "the plan has negative entries")
    _require(not np.any(plan[np.isinf(cost)]), "a forbidden pair carries mass")
    _require(bool(np.all(np.isfinite(f)) and np.all(np.isfinite(g))), "a potential is not finite")
    _close(a_ @ f, b_ @ g, "the gauge <a, f> = <b, g>", atol=1e3 * eps * mass * (1 + np.abs(f).max()))
    # Rounding of the potentials, of size eps |f|, is divided by reg in the exponent.
    slack = 10 * eps * (1 + (np.abs(f).max() + np.abs(g).max()) / result.reg)
    formula = a_[:, None] * b_[None, :] * np.exp((f[:, None] + g[None, :] - cost) / result.reg)
    _close(formula, plan, "the formula of the plan", atol=slack * mass)

    spent = float(np.sum(plan[plan > 0] * cost[plan > 0]))
    base = (a_[:, None] * b_[None, :])[plan > 0]
    entropy = float(np.sum(plan[plan > 0] * np.log(plan[plan > 0] / base))) - plan.sum() + mass**2
    scale = mass * (
        np.abs(cost[np.isfinite(cost)]).max() + result.reg * (1 + abs(np.log(mass))) + np.abs(f).max() + np.abs(g).max()
    )
    _close(result.value_linear, spent, "value_linear", atol=10 * eps * scale)
    _close(result.value, spent + result.reg * entropy, "value", atol=1e3 * eps * scale)
    dual = a_ @ f + b_ @ g - result.reg * (plan.sum() - mass**2)
    _close(result.dual_value, dual, "dual_value", atol=1e3 * eps * scale)
    _require(result.gap >= 0 and result.gap_exact >= 0, "a gap is negative")
    if exact is not None:
        excess = result.value_linear - exact
        allowance = result.marginal_error * scale + 10 * eps * scale
        _require(
            -allowance <= excess <= result.gap_exact + allowance,
            f"<P, C> exceeds the optimum by {excess}, gap_exact {result.gap_exact}",
        )

    _check_products(result, plan, a_, b_, eps)


def _check_products(result: OTResult, plan: np.ndarray, a: np.ndarray, b: np.ndarray, eps: float) -> None:
    rows, columns = (np.asarray(to_numpy(v), dtype=np.float64) for v in result.marginals)
    mass = a.sum()
    _close(rows, plan.sum(1), "marginals[0]", atol=10 * eps * mass)
    _close(columns, plan.sum(0), "marginals[1]", atol=10 * eps * mass)
    _close(to_numpy(result.apply(result.g)), plan @ to_numpy(result.g), "apply", atol=1e2 * eps * mass * (1 + np.abs(b).max()))
    _close(to_numpy(result.apply(result.f, axis=0)), plan.T @ to_numpy(result.f), "apply(axis=0)", atol=1e2 * eps * mass)
    kept = result.sparse_plan.toarray()
    _require(kept.shape == plan.shape, "sparse_plan has the wrong shape")
    dropped = float(np.abs(plan - kept).sum())
    _require(dropped <= (result._tol + 10 * eps) * mass, f"sparse_plan drops {dropped} of the mass {mass}")


def _close(found: Any, expected: Any, what: str, *, atol: float) -> None:
    difference = float(np.max(np.abs(np.asarray(found) - np.asarray(expected))))
    _require(difference <= atol, f"{what}: off by {difference:.3g}, allowed {atol:.3g}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
