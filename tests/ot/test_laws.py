"""Every method of the registry, on every array library: the laws of entropic transport."""

import numpy as np
import pytest

from otbilevel import DenseCost, PointCloud, solve_ot
from otbilevel.ot.methods import METHODS
from otbilevel.testing.ot_laws import check_ot_result

ENTROPIC = [row.name for row in METHODS if row.name != "exact"]
ALL = [row.name for row in METHODS]


def cloud(n=23, m=17, seed=0, *, zeros=True):
    """Two clouds in the plane with uneven weights, some of them zero."""
    rng = np.random.default_rng(seed)
    x, y = rng.random((n, 2)), rng.random((m, 2)) + 0.2
    a, b = rng.dirichlet(np.full(n, 0.7)) + 1e-5, rng.dirichlet(np.full(m, 0.7)) + 1e-5
    if zeros:
        a[[0, n // 2]] = 0.0
        b[-1] = 0.0
    return x, y, a / a.sum(), b / b.sum()


def squared(x, y):
    return ((x[:, None] - y[None, :]) ** 2).sum(-1)


def solve(method, a, b, C, **settings):
    settings.setdefault("max_iter", 200_000)
    if method == "exact":
        settings.pop("reg", None)
        settings.pop("max_iter")
    return solve_ot(a, b, C, method=method, **settings)


@pytest.mark.parametrize("method", ENTROPIC)
@pytest.mark.parametrize("reg", [0.5, 2e-3])
def test_result_on_every_library(method, reg, device_backend, dtype):
    """Zero weights, n != m, and the result in the library, on the device and in the dtype of the input."""
    x, y, a, b = cloud()
    arrays = [device_backend.asarray(v, dtype) for v in (a, b, squared(x, y))]
    reg = max(reg, 0.02) if dtype == "float32" else reg
    result = solve(method, *arrays, reg=reg)
    assert device_backend.owns(result.plan) and device_backend.owns(result.f)
    if device_backend.device is None:
        check_ot_result(result, *arrays, tol=1e-9 if dtype == "float64" else 1e-5)
    else:
        assert result.success
        plan = device_backend.to_numpy(result.plan)
        np.testing.assert_allclose(plan.sum(1), a, atol=1e-5)


@pytest.mark.parametrize("cost", PointCloud.COSTS)
@pytest.mark.parametrize("method", ALL)
def test_point_cloud_equals_its_dense_cost(method, cost, backend):
    x, y, a, b = cloud(19, 14)
    points = PointCloud(backend.asarray(x), backend.asarray(y), cost=cost)
    dense = points.to_dense()
    weights = backend.asarray(a), backend.asarray(b)
    lazy, stored = (solve(method, *weights, geometry, reg=0.01) for geometry in (points, dense))
    assert lazy.success and stored.success
    np.testing.assert_allclose(backend.to_numpy(lazy.plan), backend.to_numpy(stored.plan), atol=2e-9)
    assert lazy.value == pytest.approx(stored.value, abs=1e-9)
    assert lazy.gap_exact == pytest.approx(stored.gap_exact, abs=1e-9)


@pytest.mark.parametrize("method", ALL)
class TestInvariances:
    """What must not, or must in a known way, change the plan."""

    @pytest.fixture
    def problem(self):
        x, y, a, b = cloud()
        return a, b, squared(x, y)

    def plan(self, method, a, b, C, reg=0.01, **settings):
        result = solve(method, a, b, C, reg=reg, **settings)
        assert result.success, result.message
        return result

    def test_shift_of_the_cost(self, method, problem):
        a, b, C = problem
        one, two = self.plan(method, a, b, C), self.plan(method, a, b, C + 3.0)
        np.testing.assert_allclose(one.plan, two.plan, atol=2e-9)
        assert two.value == pytest.approx(one.value + 3.0)

    def test_potentials_absorb_row_and_column_shifts(self, method, problem):
        a, b, C = problem
        rng = np.random.default_rng(1)
        rows, columns = rng.standard_normal(len(a)), rng.standard_normal(len(b))
        one, two = self.plan(method, a, b, C), self.plan(method, a, b, C + rows[:, None] + columns[None, :])
        np.testing.assert_allclose(one.plan, two.plan, atol=2e-9)

    def test_scale_of_the_cost(self, method, problem):
        a, b, C = problem
        one = self.plan(method, a, b, C)
        for scale in (1e-6, 1e8):
            two = self.plan(method, a, b, scale * C, reg=0.01 * scale)
            np.testing.assert_allclose(one.plan, two.plan, atol=2e-9)
            assert two.value == pytest.approx(scale * one.value, rel=1e-7)

    def test_transposition(self, method, problem):
        a, b, C = problem
        one, two = self.plan(method, a, b, C), self.plan(method, b, a, C.T)
        np.testing.assert_allclose(one.plan, two.plan.T, atol=2e-9)
        assert one.value == pytest.approx(two.value, abs=1e-9)

    def test_permutation(self, method, problem):
        a, b, C = problem
        rng = np.random.default_rng(2)
        p, q = rng.permutation(len(a)), rng.permutation(len(b))
        one, two = self.plan(method, a, b, C), self.plan(method, a[p], b[q], C[np.ix_(p, q)])
        np.testing.assert_allclose(one.plan[np.ix_(p, q)], two.plan, atol=2e-9)

    def test_mass(self, method, problem):
        a, b, C = problem
        one, two = self.plan(method, a, b, C), self.plan(method, 50 * a, 50 * b, C)
        np.testing.assert_allclose(50 * one.plan, two.plan, atol=1e-7)
        if method != "exact":
            check_ot_result(two, 50 * a, 50 * b, C, tol=1e-9)

    def test_zero_weights_change_nothing_for_the_others(self, method, problem):
        a, b, C = problem
        whole, part = self.plan(method, a, b, C), self.plan(method, a[a > 0], b[b > 0], C[np.ix_(a > 0, b > 0)])
        np.testing.assert_allclose(whole.plan[np.ix_(a > 0, b > 0)], part.plan, atol=1e-12)
        assert not whole.plan[a == 0].any() and not whole.plan[:, b == 0].any()

    def test_memory_layout(self, method, problem):
        a, b, C = problem
        wide = np.zeros((len(a), 2 * len(b)))
        wide[:, ::2] = C
        one = self.plan(method, a, b, C)
        for other in (np.asfortranarray(C), wide[:, ::2]):
            np.testing.assert_allclose(self.plan(method, a, b, other).plan, one.plan, atol=1e-12)

    def test_symmetric_problem_has_a_symmetric_plan(self, method):
        x, _, a, _ = cloud()
        result = self.plan(method, a, a, squared(x, x), reg=0.1)
        if method != "exact":
            np.testing.assert_allclose(result.plan, result.plan.T, atol=2e-9)
            np.testing.assert_allclose(result.f, result.g, atol=1e-6)

    @pytest.mark.parametrize("shape", [(1, 1), (1, 5), (6, 1)])
    def test_single_points(self, method, shape):
        rng = np.random.default_rng(3)
        a, b = rng.dirichlet(np.ones(shape[0])), rng.dirichlet(np.ones(shape[1]))
        result = self.plan(method, a, b, rng.random(shape))
        np.testing.assert_allclose(result.plan, a[:, None] * b[None, :], atol=1e-10)

    def test_constant_cost_gives_the_product_plan(self, method, problem):
        a, b, _ = problem
        if method != "exact":
            result = solve(method, a, b, np.full((len(a), len(b)), 7.0))
            np.testing.assert_allclose(result.plan, a[:, None] * b[None, :], atol=1e-10)
            assert result.value == pytest.approx(7.0)


@pytest.mark.parametrize("method", ENTROPIC)
def test_optimality_and_monotonicity_in_reg(method):
    """<P, C> falls to the exact value as reg does, and is within gap_exact of it at every reg."""
    x, y, a, b = cloud(zeros=False)
    C = squared(x, y)
    exact = solve_ot(a, b, C, method="exact").value
    linear = []
    for reg in (1.0, 0.1, 1e-2, 1e-3, 1e-4):
        result = solve(method, a, b, C, reg=reg, **({"max_iter": 3_000_000} if method == "sinkhorn" else {}))
        check_ot_result(result, a, b, C, tol=1e-9, exact=exact)
        assert result.gap < 1e-8
        linear.append(result.value_linear)
    assert np.all(np.diff(linear) < 1e-9)
    assert linear[-1] - exact < 1e-3 * C.max()


@pytest.mark.parametrize("method", ALL)
def test_forbidden_pairs(method):
    """Blocks that must be matched among themselves, with a few more pairs forbidden at random."""
    rng = np.random.default_rng(4)
    n = 24
    C = rng.random((n, n))
    C[:10, 10:] = np.inf
    C[10:, :10] = np.inf
    holes = rng.random((n, n)) < 0.2
    np.fill_diagonal(holes, False)
    C[holes] = np.inf
    a = rng.dirichlet(np.ones(n))
    result = solve(method, a, a, C, reg=0.02)
    assert result.success
    assert not result.plan[np.isinf(C)].any()
    if method != "exact":
        exact = solve_ot(a, a, C, method="exact").value
        check_ot_result(result, a, a, C, tol=1e-9, exact=exact)
        assert result.gap < 1e-8 and result.gap_exact < 0.1


@pytest.mark.parametrize("method", ENTROPIC)
def test_a_huge_finite_cost_is_as_good_as_a_forbidden_pair(method):
    rng = np.random.default_rng(5)
    C = rng.random((12, 12))
    C[rng.random((12, 12)) < 0.2] = np.inf
    np.fill_diagonal(C, 0.7)
    large = np.where(np.isinf(C), 1e3, C)
    one, two = (solve(method, None, None, cost, reg=0.02) for cost in (C, large))
    np.testing.assert_allclose(one.plan, two.plan, atol=2e-9)


def test_default_reg_is_a_thousandth_of_the_range():
    C = np.array([[2.0, 5.0], [np.inf, 4.0]])
    result = solve_ot([0.2, 0.8], [0.1, 0.9], C)
    assert result.reg == pytest.approx(3e-3)
    assert solve_ot(None, None, np.full((2, 2), 5.0)).reg > 0


def test_dense_cost_object_is_the_same_as_the_array():
    x, y, a, b = cloud()
    C = squared(x, y)
    one, two = solve_ot(a, b, C, reg=0.1), solve_ot(a, b, DenseCost(C), reg=0.1)
    np.testing.assert_array_equal(one.plan, two.plan)
