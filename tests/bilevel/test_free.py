"""Methods for free lower levels behind the same entry: closed forms, and what they refuse."""

import numpy as np
import pytest

from otbilevel import ConvergenceWarning, minimize_bilevel
from otbilevel.testing import bilevel_examples

EXAMPLES = bilevel_examples()


@pytest.mark.parametrize("name", ["unconstrained quadratic", "logarithm", "LamparielloSagratella2017Ex32"])
def test_free_lower_levels(name):
    e = EXAMPLES[name]
    settings = {"jac_upper": e.jac_upper, "jac_lower": e.jac_lower, **e.settings}
    result = minimize_bilevel(e.upper, e.lower, e.x0, e.y0, method="aid-cg", **settings)
    assert result.success and result.method == "aid-cg" and "implicit differentiation" in result.message
    assert abs(result.fun - e.fun) < 1e-7 * max(1.0, abs(e.fun))
    assert result.lower_gap < 1e-10 and result.stationarity < 1e-4
    if e.x is not None:
        np.testing.assert_allclose(result.x, e.x, atol=1e-4)
    assert result.nit == len(result.history["fun"])


@pytest.mark.parametrize("name", ["unconstrained quadratic", "logarithm", "LamparielloSagratella2017Ex32"])
def test_first_order_steps_get_near(name):
    """The bias of x is of order 1/lambda."""
    e = EXAMPLES[name]
    settings = {"jac_upper": e.jac_upper, "jac_lower": e.jac_lower, **e.settings}
    errors = []
    for largest in (10.0, 1000.0):
        options = {"inner": 100, "largest": largest}
        result = minimize_bilevel(e.upper, e.lower, e.x0, e.y0, method="f2sa", options=options, **settings)
        assert result.success and result.method == "f2sa" and result.penalty == largest and result.lower_gap < 1e-9
        errors.append(abs(result.fun - e.fun))
    assert errors[1] < 1e-4 and errors[1] < 0.1 * errors[0] + 1e-12


def test_hundreds_of_variables():
    """Ridge regression with a penalty for each of 200 weights, by their logarithms, against the closed form of the lower level."""
    rng = np.random.default_rng(0)
    A, C = rng.standard_normal((300, 200)), rng.standard_normal((150, 200))
    truth = rng.standard_normal(200) * (rng.random(200) < 0.3)
    b, d = A @ truth + rng.standard_normal(300), C @ truth + rng.standard_normal(150)
    solve = lambda x: np.linalg.solve(A.T @ A + np.diag(np.exp(x)), A.T @ b)  # noqa: E731
    result = minimize_bilevel(
        lambda x, y: 0.5 * np.sum((C @ y - d) ** 2) + 0.05 * np.sum(x**2),
        lambda x, y: 0.5 * np.sum((A @ y - b) ** 2) + 0.5 * np.sum(np.exp(x) * y**2),
        np.zeros(200),
        np.zeros(200),
        jac_upper=lambda x, y: (0.1 * x, C.T @ (C @ y - d)),
        jac_lower=lambda x, y: (np.exp(x) * y**2 / 2, A.T @ (A @ y - b) + np.exp(x) * y),
        method="aid-cg",
    )
    assert result.success
    y = solve(result.x)
    np.testing.assert_allclose(result.y, y, atol=1e-6)
    slope = 0.1 * result.x - np.exp(result.x) * y * np.linalg.solve(A.T @ A + np.diag(np.exp(result.x)), C.T @ (C @ y - d))
    assert np.linalg.norm(slope) < 1e-4 * result.fun
    assert result.fun < 0.5 * np.sum((C @ solve(np.zeros(200)) - d) ** 2)


@pytest.mark.parametrize("settings", [{"bounds_y": (0, 1)}, {"constraints": EXAMPLES["Bard1988Ex1"].settings["constraints"]}])
@pytest.mark.parametrize("method", ["aid-cg", "f2sa"])
def test_constraints_are_refused(method, settings):
    e = EXAMPLES["Bard1988Ex1"]
    with pytest.raises(ValueError, match='the lower level must be free: use method="lv-hba"'):
        minimize_bilevel(e.upper, e.lower, e.x0, e.y0, method=method, **settings)


@pytest.mark.parametrize("method", ["aid-cg", "f2sa"])
def test_what_fails_is_said(method):
    with pytest.warns(ConvergenceWarning):
        result = minimize_bilevel(
            lambda x, y: float(np.sum((y - 1) ** 2)),
            lambda x, y: float(np.sum(-((y - x) ** 2))),  # not convex
            [0.5],
            [0.0],
            jac_upper=lambda x, y: (0 * x, 2 * (y - 1)),
            jac_lower=lambda x, y: (2 * (y - x), -2 * (y - x)),
            method=method,
        )
    assert not result.success
