"""Transport problems whose solution is known on paper, and independent solvers."""

import numpy as np
import pytest

from otbilevel import PointCloud, solve_ot
from otbilevel.testing.ot_problems import entropic_gaussian, gaussian_w2, wasserstein_1d

METHODS = ["sns", "auto", "sinkhorn"]


@pytest.mark.parametrize("method", METHODS)
def test_two_by_two(method):
    """P = [[p, 1/2 - p], [1/2 - p, p]] with p / (1/2 - p) = exp(1 / reg) for the cost 1 - identity, both ways round."""
    for reg in (2.0, 0.3, 0.05):
        p = 0.5 / (1 + np.exp(-1 / reg))
        plan = solve_ot(None, None, 1.0 - np.eye(2), reg=reg, method=method).plan
        np.testing.assert_allclose(plan, [[p, 0.5 - p], [0.5 - p, p]], atol=1e-9)


@pytest.mark.parametrize("power", [1, 2])
def test_exact_on_the_line(power):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(40), rng.standard_normal(55) + 1
    a, b = rng.dirichlet(np.ones(40)), rng.dirichlet(np.ones(55))
    C = np.abs(x[:, None] - y[None, :]) ** power
    expected = wasserstein_1d(x, a, y, b, power)
    pytest.importorskip("ot")
    for options in ({"solver": "network-simplex"}, {"solver": "highs"}):
        result = solve_ot(a, b, C, method="exact", options=options)
        assert result.success and result.reg == 0.0
        assert result.value == pytest.approx(expected, rel=1e-9)
        assert result.value == result.value_linear
        assert result.gap_exact < 1e-9 and result.gap < 1e-9
        assert np.all(result.f[:, None] + result.g[None, :] <= C + 1e-9)
        assert a @ result.f + b @ result.g == pytest.approx(expected, rel=1e-9)


def test_translation_of_a_cloud_costs_the_squared_length():
    """The optimal map from a cloud to its translate is the translation, which the entropic map approaches."""
    rng = np.random.default_rng(1)
    x, shift = rng.standard_normal((60, 2)), np.array([3.0, -1.0])
    assert solve_ot(None, None, PointCloud(x, x + shift), method="exact").value == pytest.approx(10.0)
    result = solve_ot(None, None, PointCloud(x, x + shift), reg=1e-3)
    assert result.value_linear == pytest.approx(10.0, abs=1e-3)
    np.testing.assert_allclose(result.barycentric_map(x + shift), x + shift, atol=0.05)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reg", [1.0, 0.1, 0.02])
def test_agrees_with_pot(method, reg):
    ot = pytest.importorskip("ot")
    rng = np.random.default_rng(2)
    x, y = rng.random((50, 2)), rng.random((35, 2))
    a, b = rng.dirichlet(np.ones(50)), rng.dirichlet(np.ones(35))
    C = ((x[:, None] - y[None, :]) ** 2).sum(-1)
    expected = ot.sinkhorn(a, b, C, reg, stopThr=1e-13, numItermax=100_000)
    result = solve_ot(a, b, C, reg=reg, method=method, tol=1e-11)
    np.testing.assert_allclose(result.plan, expected, atol=1e-10)
    solution = ot.solve(C, a, b, reg=reg, reg_type="KL", tol=1e-13, max_iter=100_000)
    assert result.value == pytest.approx(float(solution.value), abs=1e-9)
    assert result.value_linear == pytest.approx(float(solution.value_linear), abs=1e-9)


def test_exact_agrees_between_solvers_and_with_the_assignment_problem():
    from scipy.optimize import linear_sum_assignment

    pytest.importorskip("ot")
    C = np.random.default_rng(3).random((40, 40))
    rows, columns = linear_sum_assignment(C)
    for solver in ("network-simplex", "highs"):
        result = solve_ot(None, None, C, method="exact", options={"solver": solver})
        assert result.value == pytest.approx(C[rows, columns].mean())
        assert result.sparse_plan.nnz <= 79
        np.testing.assert_array_equal(result.plan.argmax(1), columns)


def gaussian_weights(points, mean, covariance):
    centred = points - mean
    weights = np.exp(-0.5 * np.sum(centred @ np.linalg.inv(covariance) * centred, axis=1))
    return weights / weights.sum()


@pytest.mark.parametrize("reg", [2.0, 0.5, 0.1])
def test_entropic_gaussians_on_the_line(reg):
    """On a fine grid value and cost are those of the closed form: sums over a grid converge exponentially."""
    grid = np.linspace(-7, 8, 400)[:, None]
    moments = ([0.0], [[0.81]], [0.7], [[1.44]])
    a, b = gaussian_weights(grid, *map(np.array, moments[:2])), gaussian_weights(grid, *map(np.array, moments[2:]))
    expected = entropic_gaussian(*moments, reg)
    result = solve_ot(a, b, PointCloud(grid, grid), reg=reg)
    assert result.value == pytest.approx(expected.value, abs=1e-7)
    assert result.value_linear == pytest.approx(expected.value_linear, abs=1e-7)


def test_entropic_gaussians_in_the_plane():
    axis = np.linspace(-5, 5, 31)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    moments = ([0.2, -0.3], [[0.8, 0.2], [0.2, 0.6]], [-0.3, 0.2], [[0.7, -0.3], [-0.3, 0.9]])
    a, b = gaussian_weights(grid, *map(np.array, moments[:2])), gaussian_weights(grid, *map(np.array, moments[2:]))
    expected = entropic_gaussian(*moments, 1.0)
    result = solve_ot(a, b, PointCloud(grid, grid), reg=1.0)
    assert result.value == pytest.approx(expected.value, abs=1e-5)


def test_bures_distance_from_samples_of_its_optimal_map():
    """The exact cost of a cloud and its image under a symmetric positive definite map is that of the map (Brenier)."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((80, 2))
    map_ = np.array([[1.5, 0.4], [0.4, 0.7]])
    expected = np.mean(np.sum((x - x @ map_) ** 2, axis=1))
    assert solve_ot(None, None, PointCloud(x, x @ map_), method="exact").value == pytest.approx(expected)
    covariance, image = np.cov(x.T, bias=True), np.cov((x @ map_).T, bias=True)
    assert gaussian_w2(x.mean(0), covariance, (x @ map_).mean(0), image) == pytest.approx(expected)
