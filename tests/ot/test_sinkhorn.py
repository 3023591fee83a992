"""Sinkhorn's method: in every regime the same fixed point, and iterations that mean what they say."""

import warnings

import numpy as np
import pytest

from otbilevel import ConvergenceWarning, PointCloud, solve_ot
from otbilevel._core.result import Status
from otbilevel.testing.ot_problems import FAMILIES


def reference(a, b, C, reg, iterations):
    """Textbook log-domain iterations; the errors of the column sums after each."""
    g, errors = np.zeros(len(b)), []
    for _ in range(iterations):
        f = -reg * np.log(np.exp((g[None, :] - C) / reg).sum(1))
        columns = a @ np.exp((f[:, None] + g[None, :] - C) / reg)
        errors.append(np.abs(columns - b).sum())
        g = g + reg * np.log(b / columns)
    return np.array(errors)


@pytest.mark.parametrize("lazy", [False, True])
def test_iterations_are_the_textbook_ones(lazy):
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 2)), rng.random((15, 2))
    a, b = rng.dirichlet(np.ones(20)), rng.dirichlet(np.ones(15))
    cloud = PointCloud(x, y)
    geometry = cloud if lazy else cloud.to_dense()
    result = solve_ot(a, b, geometry, reg=0.05, method="sinkhorn")
    np.testing.assert_allclose(
        result.history["marginal_error"][:30], reference(a, b, cloud.rows(0, 20), 0.05, 30), rtol=1e-6, atol=1e-14
    )


def test_scaling_is_absorbed_before_it_underflows():
    """At reg = 1e-3 of the range a plain kernel exp(-C/reg) underflows; here every row keeps its mass at every iteration."""
    problem = FAMILIES["cloud-2d"](60, 0)
    result = solve_ot(problem.a, problem.b, problem.C, reg=5e-5, method="sinkhorn", max_iter=2000, tol=0.3)
    assert result.success
    assert np.all(np.isfinite(result.history["marginal_error"]))
    assert result.nsweep > 3


@pytest.mark.parametrize("seed", range(12))
def test_scalings_that_sink_together_are_absorbed_too(seed):
    """Far targets pull all log v down for thousands of iterations: absorbed in time, they never underflow K v."""
    rng = np.random.default_rng(seed)
    x, y = rng.random(5), rng.random(5) ** 4
    C = (x[:, None] - y[None, :]) ** 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = solve_ot(None, None, C, reg=2e-4, method="sinkhorn", max_iter=5000)
    assert result.status in (Status.SUCCESS, Status.ITERATION_LIMIT)
    assert np.all(np.isfinite(result.history["marginal_error"]))
    assert np.all(np.diff(result.history["marginal_error"]) < 1e-9)


@pytest.mark.parametrize("lazy", [False, True])
def test_relaxation_saves_iterations_and_keeps_the_solution(lazy):
    rng = np.random.default_rng(1)
    x, y = rng.random((40, 2)), rng.random((40, 2))
    geometry = PointCloud(x, y) if lazy else PointCloud(x, y).to_dense()
    plain, relaxed = (
        solve_ot(None, None, geometry, reg=5e-3, method="sinkhorn", options={"relaxation": w}, max_iter=20_000) for w in (1.0, 1.7)
    )
    assert plain.success and relaxed.success
    assert relaxed.nit < 0.5 * plain.nit
    np.testing.assert_allclose(plain.plan, relaxed.plan, atol=2e-9)


def test_auto_is_sns_with_its_usual_settings():
    problem = FAMILIES["cloud-2d"](150, 0)
    for reg in (0.5, 1e-3):
        mine, same = (solve_ot(problem.a, problem.b, problem.C, reg=reg, method=method) for method in ("auto", "sns"))
        assert (mine.method, mine.nsweep) == ("sns", same.nsweep)
        np.testing.assert_array_equal(mine.g, same.g)
