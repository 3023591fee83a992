"""What a result computes on demand, beyond the laws of `check_ot_result`."""

import numpy as np
import pytest

from otbilevel import PointCloud, solve_ot
from otbilevel.testing.ot_laws import check_ot_result

N, M = 14, 11


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    x, y = rng.random((N, 2)), rng.random((M, 2))
    a, b = rng.dirichlet(np.ones(N)), rng.dirichlet(np.ones(M))
    a[3] = b[0] = b[5] = 0.0
    return x, y, a / a.sum(), b / b.sum()


@pytest.fixture
def result(problem, backend):
    x, y, a, b = problem
    cloud = PointCloud(backend.asarray(x), backend.asarray(y))
    return solve_ot(backend.asarray(3 * a), backend.asarray(3 * b), cloud, reg=0.02)


def test_laws_hold_for_points_too(result, problem, backend):
    x, y, a, b = problem
    C = ((x[:, None] - y[None, :]) ** 2).sum(-1)
    check_ot_result(result, backend.asarray(3 * a), backend.asarray(3 * b), backend.asarray(C), tol=1e-9)


@pytest.mark.parametrize("axis", [0, 1])
def test_apply(result, backend, axis):
    plan = backend.to_numpy(result.plan)
    plan = plan if axis == 1 else plan.T
    rng = np.random.default_rng(1)
    for shape in ((plan.shape[1],), (plan.shape[1], 1), (plan.shape[1], 4)):
        v = rng.standard_normal(shape)
        product = result.apply(backend.asarray(v), axis=axis)
        assert product.shape == (plan.shape[0], *shape[1:])
        np.testing.assert_allclose(backend.to_numpy(product), plan @ v, atol=1e-13)


def test_barycentric_map(result, problem, backend):
    """Also at a point of zero weight, by the plan that its potential defines."""
    x, y, a, b = problem
    f, g = (backend.to_numpy(v) for v in result.potentials)
    cost = ((x[:, None] - y[None, :]) ** 2).sum(-1)
    weights = b[None, :] * np.exp((f[:, None] + g[None, :] - cost) / 0.02)
    expected = weights @ y / weights.sum(1, keepdims=True)
    assert a[3] == 0.0
    np.testing.assert_allclose(backend.to_numpy(result.barycentric_map(backend.asarray(y))), expected, atol=1e-8)
    line = result.barycentric_map(backend.asarray(y[:, 0]))
    np.testing.assert_allclose(backend.to_numpy(line), expected[:, 0], atol=1e-8)


def test_potentials_at_zero_weights_are_c_transforms(result, problem, backend):
    """sum_j b_j exp((f_i + g_j - C_ij) / reg) = 1 / mass at every i, whatever its weight, and likewise for g."""
    x, y, a, b = problem
    f, g = (backend.to_numpy(v) for v in result.potentials)
    kernel = np.exp((f[:, None] + g[None, :] - ((x[:, None] - y[None, :]) ** 2).sum(-1)) / 0.02)
    np.testing.assert_allclose(kernel @ (3 * b), 1.0, atol=1e-6)
    np.testing.assert_allclose((3 * a) @ kernel, 1.0, atol=1e-6)


def test_sparse_plan_keeps_what_matters(result, backend):
    plan, sparse = backend.to_numpy(result.plan), result.sparse_plan
    assert sparse.shape == (N, M)
    assert sparse.nnz <= plan.size
    assert abs(plan.sum() - sparse.sum()) <= 3e-9
    np.testing.assert_allclose(sparse.toarray()[sparse.toarray() > 0], plan[sparse.toarray() > 0], rtol=1e-14)


def test_heavy_things_are_computed_once(result):
    assert result.plan is result.plan
    assert result.sparse_plan is result.sparse_plan
    assert result.potentials is result.potentials


def test_nothing_of_size_n_by_m_for_points(monkeypatch):
    """`apply`, the map and the certificates of a point cloud take blocks of rows."""
    from otbilevel.ot.kernels import generic

    largest = 0
    rows = PointCloud.rows

    def spy(self, low, high):
        nonlocal largest
        largest = max(largest, (high - low) * self.shape[1])
        return rows(self, low, high)

    monkeypatch.setattr(PointCloud, "rows", spy)
    monkeypatch.setattr(generic, "_BLOCK_ENTRIES", 1000)
    rng = np.random.default_rng(2)
    x, y = rng.random((90, 2)), rng.random((100, 2))
    result = solve_ot(None, None, PointCloud(x, y), reg=0.05)
    assert result.gap < 1e-8 < result.gap_exact
    result.barycentric_map(y)
    assert result.sparse_plan.nnz > 0
    assert 0 < largest <= 1000


def test_exact_result(problem, backend):
    x, y, a, b = problem
    cloud = PointCloud(backend.asarray(x), backend.asarray(y))
    result = solve_ot(backend.asarray(2 * a), backend.asarray(2 * b), cloud, method="exact")
    C = ((x[:, None] - y[None, :]) ** 2).sum(-1)
    plan = backend.to_numpy(result.plan)
    assert result.reg == 0.0 and result.success and result.method == "exact"
    np.testing.assert_allclose(plan.sum(1), 2 * a, atol=1e-14)
    np.testing.assert_allclose(plan.sum(0), 2 * b, atol=1e-14)
    assert result.value == result.value_linear == pytest.approx(np.sum(plan * C))
    assert result.dual_value == pytest.approx(result.value)
    f, g = (backend.to_numpy(v) for v in result.potentials)
    assert np.all(f[:, None] + g[None, :] <= C + 1e-12)
    v = np.arange(M, dtype=float)
    np.testing.assert_allclose(backend.to_numpy(result.apply(backend.asarray(v))), plan @ v, atol=1e-14)
    np.testing.assert_allclose(result.sparse_plan.toarray(), plan)
    mapped = backend.to_numpy(result.barycentric_map(backend.asarray(y)))
    np.testing.assert_allclose(mapped[a > 0], (plan @ y)[a > 0] / plan.sum(1)[a > 0, None], atol=1e-12)


def test_printout_names_the_figures(result):
    text = repr(result)
    for field in ("message", "success", "marginal_error", "nit_newton", "reg"):
        assert field in text


def test_exact_map_of_a_source_without_weight(backend):
    """It goes to the cheapest target, where C_ij - g_j is least."""
    rng = np.random.default_rng(3)
    x, y = rng.random((8, 2)), rng.random((8, 2))
    a = np.full(8, 1 / 7)
    a[2] = 0.0
    b = np.full(8, 1 / 8)
    cloud = PointCloud(backend.asarray(x), backend.asarray(y))
    result = solve_ot(backend.asarray(a), backend.asarray(b), cloud, method="exact")
    g = backend.to_numpy(result.g)
    cheapest = np.argmin(((x[2] - y) ** 2).sum(-1) - g)
    np.testing.assert_allclose(backend.to_numpy(result.barycentric_map(backend.asarray(y)))[2], y[cheapest])
