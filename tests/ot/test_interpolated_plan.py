"""Plans between clouds by interpolation against those that look at every pair."""

import numpy as np
import pytest

from otbilevel import PointCloud, solve_ot
from otbilevel.ot import huge, point_plan
from otbilevel.ot.interpolated_plan import InterpolatedPlan
from otbilevel.ot.lazy_plan import LazyPlan
from otbilevel.ot.problem import make_problem
from otbilevel.ot.row_plan import Work
from otbilevel.ot.stored_plan import Room, StoredPlan

N, M, REG = 700, 900, 0.05


def clouds(d=2, n=N, m=M):
    rng = np.random.default_rng(d)
    return PointCloud(rng.standard_normal((n, d)), 0.5 + rng.standard_normal((m, d)) * np.linspace(0.7, 1.3, d))


@pytest.fixture
def weights():
    rng = np.random.default_rng(5)
    return rng.dirichlet(np.full(N, 2.0)), rng.dirichlet(np.full(M, 2.0))


def both(geometry, a, b, reg):
    problem = make_problem(a, b, geometry, reg=reg, tol=1e-10)
    return (
        LazyPlan(geometry, problem.a, Work()),
        InterpolatedPlan(geometry, problem.a, Work(), tol=1e-10, memory=1e9),
    )


@pytest.mark.parametrize(("d", "reg"), [(1, 0.05), (2, 3.0), (2, 0.1), (2, 1e-3), (3, 0.3)])
def test_a_sweep_and_scaling_passes(d, reg, weights):
    plans = both(clouds(d), *weights, reg)
    rng = np.random.default_rng(0)
    g, log_v = 0.2 * rng.standard_normal(M), rng.standard_normal(M)
    passes = [lambda p, s=s: p.scaling_pass(s * log_v) for s in (1, -1)]
    for move in (lambda p: p.sweep(g, reg), *passes, lambda p: p.sweep(g, reg)):
        for plan in plans:
            move(plan)
        exact, interpolated = plans
        np.testing.assert_allclose(interpolated.row_potentials(), exact.row_potentials(), atol=1e-8 * reg)
        np.testing.assert_allclose(interpolated.g, exact.g, atol=1e-14)
        assert np.abs(interpolated.column_sums - exact.column_sums).sum() <= 1e-9
        assert interpolated.marginal_error(weights[1]) == pytest.approx(exact.marginal_error(weights[1]), rel=1e-6)


@pytest.mark.parametrize("relaxation", [0.5, 1.5])
def test_relaxation(relaxation, weights):
    plans = both(clouds(), *weights, 0.1)
    g, log_v = np.zeros(M), 0.3 * np.random.default_rng(0).standard_normal(M)
    for plan in plans:
        plan.sweep(g, 0.1)
        plan.scaling_pass(log_v, relaxation)
        plan.scaling_pass(-log_v, relaxation)
        plan.sweep(g + 0.02, 0.1, relaxation=relaxation)
    exact, interpolated = plans
    np.testing.assert_allclose(interpolated.row_potentials(), exact.row_potentials(), atol=1e-9)
    assert interpolated.row_error == pytest.approx(exact.row_error, rel=1e-6)
    assert np.abs(interpolated.column_sums - exact.column_sums).sum() <= 1e-9


def test_the_laplacian_is_one_and_close_to_the_exact_one(weights):
    exact, interpolated = both(clouds(), *weights, 0.1)
    x = np.random.default_rng(0).standard_normal(M)
    for single in (False, True):
        for plan in (exact, interpolated):
            plan.sweep(np.zeros(M), 0.1, single=single)
        rough = interpolated.laplacian()
        assert np.abs(rough.matvec(np.ones(M))).sum() <= 1e-6
        difference = np.abs(rough.matvec(x) - exact.laplacian().matvec(x)).sum()
        assert difference <= 1e-3 * np.abs(rough.degree * x).sum()


def test_a_cold_start_at_tiny_reg_does_not_underflow():
    exact, interpolated = both(clouds(), None, None, 1e-4)
    for plan in (exact, interpolated):
        plan.sweep(np.zeros(M), 1e-4)
    np.testing.assert_allclose(interpolated.row_potentials(), exact.row_potentials(), atol=1e-11)


@pytest.mark.parametrize("method", ["sns", "sinkhorn", "auto"])
@pytest.mark.parametrize("reg", [1.0, 0.05])
def test_solutions(method, reg, weights, monkeypatch):
    geometry = clouds()
    plain = solve_ot(*weights, geometry.to_dense(), reg=reg)
    monkeypatch.setattr(point_plan, "FEW_PAIRS", 0)
    monkeypatch.setattr(point_plan, "WORTHWHILE", 2.0)
    result = solve_ot(*weights, geometry, reg=reg, method=method)
    assert result.success
    np.testing.assert_allclose(result.f, plain.f, atol=1e-7)
    np.testing.assert_allclose(result.plan, plain.plan, atol=1e-9)


def test_which_plan_suits(monkeypatch):
    def kind(geometry, reg=REG, memory=point_plan.MEMORY):
        problem = make_problem(None, None, geometry, reg=reg, tol=None)
        return type(point_plan.point_plan(problem, geometry, Work(), Room(), single=True, memory=memory))

    assert kind(clouds()) is StoredPlan
    assert kind(clouds(), memory=0) is InterpolatedPlan
    assert kind(clouds(10), memory=0) is LazyPlan
    assert kind(PointCloud(clouds().x, clouds().y, cost="euclidean"), memory=0) is LazyPlan
    many = clouds(n=3000, m=3000)
    assert kind(many, reg=5.0) is InterpolatedPlan
    assert kind(many, reg=1e-4) is StoredPlan
    monkeypatch.setenv("OTBILEVEL_KERNELS", "generic")
    assert kind(clouds(), memory=0) is LazyPlan


def test_memory_is_checked():
    for method in ("sns", "sinkhorn", "auto"):
        with pytest.raises(ValueError, match="memory"):
            solve_ot(None, None, clouds(), reg=REG, method=method, options={"memory": -1.0})


def test_huge_clouds_are_certified_on_a_sample(monkeypatch):
    """The interpolated figures equal the direct ones; the message says how they were found."""
    geometry = clouds(n=3000, m=2500)
    direct = solve_ot(None, None, geometry, reg=0.2)
    monkeypatch.setattr(huge, "DIRECTLY", 1e6)
    monkeypatch.setattr(huge, "SAMPLE", 200)
    result = solve_ot(None, None, geometry, reg=0.2)
    assert result.success
    assert "200 rows and columns" in result.message
    assert result.marginal_error == pytest.approx(direct.marginal_error, abs=1e-11)
    assert result.value_linear == pytest.approx(direct.value_linear, rel=1e-11)
    assert result.value == pytest.approx(direct.value, rel=1e-11)
    vectors = np.random.default_rng(0).standard_normal((2500, 3))
    np.testing.assert_allclose(result.apply(vectors, axis=1), direct.apply(vectors, axis=1), atol=1e-12)
    np.testing.assert_allclose(result.apply(np.ones(3000), axis=0), direct.apply(np.ones(3000), axis=0), atol=1e-12)
    np.testing.assert_allclose(result.barycentric_map(geometry.y), direct.barycentric_map(geometry.y), atol=1e-8)


def test_the_sample_finds_wrong_sums(monkeypatch):
    """If interpolation were too coarse, the error would say so."""
    geometry = clouds(n=3000, m=2500)
    monkeypatch.setattr(huge, "DIRECTLY", 1e6)
    monkeypatch.setattr(huge, "SAMPLE", 200)
    monkeypatch.setattr(huge, "ACCURACY", 1e-2)
    with pytest.warns(match="not converged"):
        result = solve_ot(None, None, geometry, reg=0.2)
    assert not result.success
    assert result.marginal_error > 1e-6


def test_no_active_set_between_so_many_points_that_pairs_are_not_looked_at(weights, monkeypatch):
    found = []
    for directly in (N * M, N * M - 1):
        monkeypatch.setattr(huge, "DIRECTLY", directly)
        _, plan = both(clouds(), *weights, REG)
        plan.sweep(np.zeros(M), REG)
        found.append(plan.active_set(30.0, np.inf))
    assert len(found[0].values) > 0
    assert found[1] is None
