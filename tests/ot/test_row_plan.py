"""The semi-dual: its gradient and Hessian, whatever holds the plan."""

import numpy as np
import pytest

from otbilevel import DenseCost, PointCloud
from otbilevel.ot.lazy_plan import LazyPlan
from otbilevel.ot.row_plan import RowPlan, Work
from otbilevel.ot.stored_plan import StoredPlan


def semi_dual(g, a, b, cost, reg):
    """S(g) = <a, f(g)> + <b, g>, written down afresh."""
    exponents = (g[None, :] - cost) / reg
    top = exponents.max(1)
    f = -reg * (top + np.log(np.exp(exponents - top[:, None]).sum(1)))
    return a @ f + b @ g


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    return (
        rng.random((21, 2)),
        rng.random((13, 2)),
        rng.dirichlet(np.ones(21)),
        rng.dirichlet(np.ones(13)),
        rng.standard_normal(13) * 0.1,
    )


def fresh(backend, values):
    """An array that may be written to, as solvers make them: the kernels are compiled for those."""
    return 1.0 * backend.asarray(values)


def plans(x, y, a, backend):
    cloud = PointCloud(backend.asarray(x), backend.asarray(y))
    weights = fresh(backend, a)
    yield LazyPlan(cloud, weights, Work()), 1e-5
    yield StoredPlan.dense(cloud.to_dense(), weights, Work(), single=True), 1e-5
    yield StoredPlan.dense(cloud.to_dense(), weights, Work(), single=False), 1e-10


def test_gradient_and_laplacian_against_finite_differences(points, backend):
    x, y, a, b, g = points
    cost, reg, h = ((x[:, None] - y[None, :]) ** 2).sum(-1), 0.05, 1e-5
    steps = h * np.eye(13)
    gradient = [(semi_dual(g + e, a, b, cost, reg) - semi_dual(g - e, a, b, cost, reg)) / (2 * h) for e in steps]
    for plan, precision in plans(x, y, a, backend):
        plan.sweep(fresh(backend, g), reg)
        np.testing.assert_allclose(b - backend.to_numpy(plan.column_sums), gradient, atol=1e-8)
        laplacian = plan.laplacian()
        columns = []
        for e in steps:
            plan.sweep(fresh(backend, g + e), reg)
            up = backend.to_numpy(plan.column_sums)
            plan.sweep(fresh(backend, g - e), reg)
            columns.append(reg * (up - backend.to_numpy(plan.column_sums)) / (2 * h))
        plan.sweep(fresh(backend, g), reg)
        matrix = np.stack([backend.to_numpy(laplacian.matvec(fresh(backend, e))) for e in np.eye(13)])
        np.testing.assert_allclose(matrix, np.stack(columns), atol=max(precision, 1e-7))
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-15)
        np.testing.assert_allclose(matrix.sum(1), 0, atol=1e-15)
        inverse = backend.to_numpy(laplacian.jacobi(fresh(backend, np.ones(13))))
        np.testing.assert_allclose(1 / inverse, np.diag(matrix), rtol=1e-4)


def test_a_scaling_pass_is_a_sweep_at_scaled_potentials(points, backend):
    x, y, a, _, g = points
    reg, log_v = 0.05, np.random.default_rng(1).standard_normal(13)
    for plan, _ in plans(x, y, a, backend):
        plan.sweep(fresh(backend, g), reg)
        plan.scaling_pass(fresh(backend, log_v))
        moved = [backend.to_numpy(v) for v in (plan.g, plan.row_potentials(), plan.column_sums)]
        assert plan.row_error < 1e-15
        plan.sweep(fresh(backend, g + reg * log_v), reg)
        swept = [backend.to_numpy(v) for v in (plan.g, plan.row_potentials(), plan.column_sums)]
        for one, other in zip(moved, swept, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shift", [0.0, 400.0])
def test_the_laplacian_of_a_scaled_plan_is_that_of_a_sweep(points, backend, shift):
    """`shift` scales u and v far apart, which leaves the plan as it is."""
    x, y, a, _, g = points
    reg, log_v = 0.05, shift + np.random.default_rng(1).standard_normal(13)
    for plan, precision in plans(x, y, a, backend):
        matrices = []
        for scaled in (True, False):
            plan.sweep(fresh(backend, g if scaled else g + reg * log_v), reg)
            if scaled:
                plan.scaling_pass(fresh(backend, log_v))
            laplacian = plan.laplacian()
            columns = [backend.to_numpy(laplacian.matvec(fresh(backend, e))) for e in np.eye(13)]
            matrices.append(np.stack([*columns, backend.to_numpy(laplacian.inverse_diagonal)]))
        np.testing.assert_allclose(matrices[0][:-1], matrices[1][:-1], atol=precision)
        np.testing.assert_allclose(matrices[0][-1], matrices[1][-1], rtol=1e-4)
        np.testing.assert_allclose(matrices[0][:-1].sum(1), 0, atol=1e-15)


def test_how_far_scaling_passes_reach(points):
    x, y, a, _, g = points
    plan = StoredPlan.dense(PointCloud(x, y).to_dense(), a.copy(), Work(), single=True)
    plan.sweep(g.copy(), 0.05)
    far = np.linspace(0, 1, 13)
    assert plan.admits(49 * far)
    assert not plan.admits(51 * far)
    assert plan.admits(np.full(13, 500.0))
    assert not plan.admits(np.full(13, 700.0))


def test_moves_scale_the_plan_where_that_will_do(points):
    """Single precision and near: by scaling. Else by a sweep. Both arrive where a sweep does."""
    x, y, a, _, g = points
    geometry = PointCloud(x, y).to_dense()
    plan, swept = (StoredPlan.dense(geometry, a.copy(), Work(), single=True) for _ in range(2))
    plan.sweep(g.copy(), 0.05)
    for spread, single, sweeps in ((0.1, True, 1), (0.1, False, 2), (3.0, True, 3)):
        g = g + spread * np.linspace(0, 1, 13)
        plan.move(g, single=single)
        assert plan.work.sweeps == sweeps
        swept.sweep(g, 0.05)
        np.testing.assert_allclose(plan.column_sums, swept.column_sums, rtol=1e-5, atol=1e-12)
        np.testing.assert_allclose(plan.row_potentials(), swept.row_potentials(), atol=1e-6)


def test_a_shift_keeps_double_precision(points, backend):
    """Near a sweep in double precision, and only there, sums of entries in single precision lose nothing."""
    x, y, a, _, g = points
    reg, step = 0.05, 1e-5 * np.random.default_rng(3).standard_normal(13)
    geometry = PointCloud(backend.asarray(x), backend.asarray(y)).to_dense()
    plan = StoredPlan.dense(geometry, fresh(backend, a), Work(), single=True)
    plan.sweep(fresh(backend, g), reg)
    sweeps = plan.work.sweeps
    assert not plan.shift(fresh(backend, g + 1e4 * step), 1e-6)
    assert not plan.shift(fresh(backend, g + step), 1e-14)
    assert plan.shift(fresh(backend, g + step), 1e-9)
    assert plan.work.sweeps == sweeps and not plan.single
    shifted = [backend.to_numpy(v) for v in (plan.g, plan.row_potentials(), plan.column_sums)]
    laplacian, unit = plan.laplacian(), [fresh(backend, e) for e in np.eye(13)]
    matrix = [backend.to_numpy(laplacian.matvec(e)) for e in unit]
    plan.sweep(fresh(backend, g + step), reg)
    for one, other in zip(shifted, (plan.g, plan.row_potentials(), plan.column_sums), strict=True):
        np.testing.assert_allclose(one, backend.to_numpy(other), rtol=0, atol=1e-10)
    laplacian = plan.laplacian()
    np.testing.assert_allclose(matrix, [backend.to_numpy(laplacian.matvec(e)) for e in unit], atol=1e-6)
    plan.scaling_pass(fresh(backend, step / reg))
    plan.sweep(fresh(backend, g), reg, single=True)
    assert not plan.shift(fresh(backend, g + step), 1e-9)  # the sweep was in single precision


@pytest.mark.parametrize("factor", [2.0, 4.0, 3.0])
def test_a_smaller_reg_by_powers_of_the_entries(points, backend, factor):
    """Halving and quartering needs no sweep, wherever scaling passes have moved the plan; other factors do."""
    x, y, a, _, g = points
    geometry = PointCloud(backend.asarray(x), backend.asarray(y)).to_dense()
    plan = StoredPlan.dense(geometry, fresh(backend, a), Work(), single=True)
    plan.sweep(fresh(backend, g), 0.2, single=True)
    plan.scaling_pass(fresh(backend, np.linspace(-0.5, 0.5, 13)))
    target = g + np.linspace(0.0, 0.2, 13)
    plan.lower(fresh(backend, target), 0.2 / factor)
    assert plan.work.sweeps == (1 if factor in (2.0, 4.0) else 2)
    lowered = [backend.to_numpy(v) for v in (plan.g, plan.row_potentials(), plan.column_sums)]
    plan.restart()
    plan.sweep(fresh(backend, target), 0.2 / factor)
    for one, other in zip(lowered, (plan.g, plan.row_potentials(), plan.column_sums), strict=True):
        np.testing.assert_allclose(one, backend.to_numpy(other), rtol=2e-5, atol=1e-7)
    sweeps = plan.work.sweeps
    plan.lower(fresh(backend, g + 100.0 * np.linspace(0.0, 1.0, 13)), 0.1 / factor)  # too far for powers
    assert plan.work.sweeps == sweeps + 1


def test_rounding_does_not_grow_through_many_powers(points):
    """Each squaring doubles it; after a thousandfold smaller reg there is a sweep."""
    x, y, a, _, g = points
    geometry = PointCloud(x, y).to_dense()
    plan, swept = (StoredPlan.dense(geometry, a.copy(), Work(), single=True) for _ in range(2))
    plan.sweep(g.copy(), 4.0, single=True)
    for level in range(1, 15):
        plan.lower(g.copy(), 4.0 / 2**level)
        swept.sweep(g.copy(), 4.0 / 2**level)
        np.testing.assert_allclose(plan.column_sums, swept.column_sums, atol=2e-3)
    assert plan.work.sweeps == 2


def test_active_sets_of_plans_that_were_scaled_far(points):
    """Entries that underflowed may belong to them: then they are told from the cost."""
    x, y, a, _, g = points
    reg = 2e-3
    plan = StoredPlan.dense(PointCloud(x, y).to_dense(), a.copy(), Work(), single=True)
    plan.sweep(g.copy(), reg)
    log_v = np.linspace(-20.0, 20.0, 13)
    plan.scaling_pass(log_v)
    sweeps = plan.work.sweeps
    near, far = plan.active_set(30.0, np.inf), plan.active_set(60.0, np.inf)
    assert plan.work.sweeps == sweeps + 1
    exponents = (plan.row_potentials()[:, None] + plan.g - PointCloud(x, y).to_dense().matrix) / reg
    assert [len(found.values) for found in (near, far)] == [(exponents > -30.0).sum(), (exponents > -60.0).sum()]


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_compiled_conjugate_gradients(points, single, scaled):
    """The compiled loop takes the steps of `linalg.cg`."""
    x, y, a, b, g = points
    plan = StoredPlan.dense(PointCloud(x, y).to_dense(), a.copy(), Work(), single=single)
    plan.sweep(g.copy(), 0.05)
    if scaled:
        plan.scaling_pass(np.linspace(-1, 1, 13))
    laplacian = plan.laplacian()
    r = b - plan.column_sums
    r -= laplacian.degree * (r.sum() / laplacian.degree.sum())
    before = plan.work.products
    for most in (3, 100):
        limits = {"tol": 1e-8, "max_iter": most, "interrupt": lambda: False}
        got, nit = plan.solve(laplacian, r, **limits)
        want, expected = RowPlan.solve(plan, laplacian, r, **limits)
        assert nit == expected <= most
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(laplacian.matvec(got), r, atol=1e-8 * np.abs(r).sum())
    assert plan.work.products > before
    stopped, nit = plan.solve(laplacian, r, tol=1e-8, max_iter=100, interrupt=lambda: True)
    assert nit == 0
    assert not stopped.any()


def test_work_is_counted():
    rng = np.random.default_rng(2)
    a, g = np.full(8, 1 / 8), np.zeros(6)
    stored = StoredPlan.dense(DenseCost(rng.random((8, 6))), a, Work(), single=True)
    lazy = LazyPlan(PointCloud(rng.random((8, 2)), rng.random((6, 2))), a, Work())
    for plan in (stored, lazy):
        plan.sweep(g, 0.1)
        plan.scaling_pass(np.zeros(6))
        plan.laplacian().matvec(g)
    assert (stored.work.sweeps, stored.work.products) == (1, 2)
    assert (lazy.work.sweeps, lazy.work.products) == (4, 0)
