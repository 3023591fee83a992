"""The compiled kernels against the generic ones, which are the truth."""

import importlib

import numpy as np
import pytest

from otbilevel import DenseCost, PointCloud
from otbilevel.ot.kernels import cpu, generic

threads = importlib.import_module("otbilevel.ot.kernels.cpu.threads")

SHAPES = [(1, 1), (1, 7), (5, 1), (4, 4), (7, 9), (33, 18)]
COSTS = ["dense64", "dense32", "forbidden", *PointCloud.COSTS]


def make(kind, shape, seed=0):
    rng = np.random.default_rng(seed)
    n, m = shape
    if kind in PointCloud.COSTS:
        return PointCloud(rng.standard_normal((n, 3)), rng.standard_normal((m, 3)), cost=kind)
    cost = rng.random(shape)
    if kind == "forbidden" and min(shape) > 1:
        cost[rng.random(shape) < 0.3] = np.inf
        cost[np.arange(n), np.arange(n) % m] = 0.5
    return DenseCost(cost.astype(np.float32) if kind == "dense32" else cost)


def state(geometry, seed=1):
    """Potentials near those of a plan, and positive weights of sum 1."""
    rng = np.random.default_rng(seed)
    n, m = geometry.shape
    a = rng.random(n) + 0.1
    g, reg = 0.3 * rng.standard_normal(m), 0.07
    f, *_ = generic.softmax_rows(geometry, g, reg, a / a.sum(), None, None, single=False, relaxation=1.0)
    return a / a.sum(), f + 0.02 * rng.standard_normal(n), g, reg


@pytest.fixture(params=[1, 3])
def n_threads(request, force_threads):
    """Force the kernels into one or three threads, however small the work."""
    return force_threads(request.param)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", COSTS)
def test_rows_of_the_cost(kind, shape):
    geometry = make(kind, shape)
    zeros = np.zeros(shape[0]), np.zeros(shape[1])
    rows = geometry.rows(0, shape[0])
    block = cpu.plan_rows(geometry.kernel_cost, *zeros, 1.0, np.ones(shape[0]), 0, shape[0])
    np.testing.assert_allclose(block, np.exp(-rows), rtol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", COSTS)
def test_bounds_of_the_cost(kind, shape, n_threads):
    geometry = make(kind, shape)
    rows = geometry.rows(0, shape[0])
    expected = rows[np.isfinite(rows)].min(), rows[np.isfinite(rows)].max()
    for kernels, cost in ((cpu, geometry.kernel_cost), (generic, geometry)):
        np.testing.assert_allclose(kernels.cost_bounds(cost, shape), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [*SHAPES, (130, 70)])
def test_extremes(shape, dtype, n_threads):
    matrix = np.random.default_rng(7).standard_normal(shape).astype(dtype)
    assert cpu.extremes(matrix) == (matrix.min(), matrix.max())
    i, j = shape[0] // 2, shape[1] - 1
    for bad in (np.nan, np.inf, -np.inf, np.finfo(dtype).max):
        matrix[i, j] = bad
        np.testing.assert_array_equal(cpu.extremes(matrix), (matrix.min(), matrix.max()))
        matrix[0, 0] = -np.finfo(dtype).max
        np.testing.assert_array_equal(cpu.extremes(matrix), (matrix.min(), matrix.max()))


@pytest.mark.parametrize("n_parts", [1, 2])
@pytest.mark.parametrize("sparse", [False, True])
def test_conjugate_gradients_know_their_end(sparse, n_parts, monkeypatch):
    """Serial and threaded, dense and sparse: the same steps; a right-hand side of zeros, and one outside the range of L."""
    kernels = cpu.sparse_kernels if sparse else cpu
    monkeypatch.setattr(importlib.import_module(kernels.__name__), "team_parts", lambda *_: n_parts)
    rng = np.random.default_rng(8)
    dense = rng.random((24, 17)).astype(np.float32)
    a, ones = np.full(24, 1 / 24), np.ones(17)
    r, degree, squares = generic.plan_moments(dense.astype(np.float64), a, ones)
    plan = dense
    if sparse:
        pattern = cpu.lazy_active_set(DenseCost(np.ones((24, 17))).kernel_cost, np.zeros(24), np.zeros(17), -2.0, np.inf)
        plan = kernels.ActivePlan(pattern, dense.ravel())
    operator = plan, a / r, ones, degree, 1 / (degree - squares)
    settings = {"tol": 1e-9, "max_iter": 100, "interrupt": lambda: False}
    x, nit, _ = kernels.solve_laplacian(*operator, np.zeros(17), **settings)
    assert (nit, np.abs(x).max()) == (0, 0.0)
    right = rng.standard_normal(17)
    right -= degree * right.sum() / degree.sum()
    x, nit, _ = kernels.solve_laplacian(*operator, right, **settings)
    exact = dense.astype(np.float64)
    np.testing.assert_allclose(degree * x - exact.T @ (a / r * (exact @ x)), right, atol=1e-7)
    assert 1 < nit < 30
    x, nit, _ = kernels.solve_laplacian(*operator, degree, **settings)
    assert nit < 100
    assert np.isfinite(x).all()


@pytest.mark.parametrize("shape", [*SHAPES, (130, 70)])
@pytest.mark.parametrize("kind", COSTS)
@pytest.mark.parametrize("start", ["cold", "warm", "far off"])
@pytest.mark.parametrize("relaxation", [1.0, 1.6])
def test_softmax_rows(kind, shape, start, relaxation, n_threads):
    geometry = make(kind, shape)
    a, f, g, reg = state(geometry)
    f = {"cold": None, "warm": f, "far off": f + 40 * reg}[start]
    plan = np.full(shape, np.nan)
    got = cpu.softmax_rows(geometry.kernel_cost, g, reg, a, f, plan, single=False, relaxation=relaxation)
    want = generic.softmax_rows(geometry, g, reg, a, f, plan, single=False, relaxation=relaxation)
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)


APROX = [(0.6, -np.inf, np.inf), (1.0, -0.5, 0.2), (1.0, -np.inf, -0.6)]


@pytest.mark.parametrize("aprox", APROX)
def test_row_masses_of_sweeps(aprox, n_threads):
    """Of a sweep, of a pass over a stored plan and over an active set: as the generic kernels have them."""
    geometry = make("dense", (65, 131))
    a, f, g, reg = state(geometry)
    v, ones = np.random.default_rng(0).random(131) + 0.5, np.ones(65)
    for start in (None, f):
        plan = np.empty(geometry.shape)
        got = cpu.softmax_rows(geometry.kernel_cost, g, reg, a, start, plan, single=False, relaxation=1.0, aprox=aprox)
        want = generic.softmax_rows(geometry, g, reg, a, start, plan, single=False, relaxation=1.0, aprox=aprox)
        for x, y in zip(got, want, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-14)
    f, plan, sums, _ = want
    masses = a * np.exp((np.clip(aprox[0] * f, *aprox[1:]) - f) / reg)
    assert np.abs(masses - a).max() > 0.1 * a.max()
    np.testing.assert_allclose(sums, masses @ plan, rtol=1e-11)
    want = generic.scaling_pass(plan, a, ones, v, 1.0, f, reg, aprox)
    for x, y in zip(cpu.scaling_pass(plan, a, ones, v, 1.0, f, reg, aprox), want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-14)
    sparse = cpu.sparse_kernels
    pattern = cpu.lazy_active_set(geometry.kernel_cost, f, g, -1e4 * reg, np.inf)
    _, active, sums, _ = sparse.softmax_rows(pattern, g, reg, a, None, None, single=False, relaxation=1.0, aprox=aprox)
    np.testing.assert_allclose(sums, masses @ plan, rtol=1e-11)
    for x, y in zip(sparse.scaling_pass(active, a, ones, v, 1.0, f, reg, aprox), want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", COSTS)
def test_single_precision_sweep(kind):
    geometry = make(kind, (65, 131))
    a, f, g, reg = state(geometry)
    plan = np.empty(geometry.shape, np.float32)
    got_f, got_plan, sums, _ = cpu.softmax_rows(geometry.kernel_cost, g, reg, a, f, plan, single=True, relaxation=1.0)
    want_f, want_plan, want_sums, _ = generic.softmax_rows(geometry, g, reg, a, f, plan, single=False, relaxation=1.0)
    np.testing.assert_allclose(got_f, want_f, atol=1e-6 * reg)
    # the exponent, of size up to 88, is rounded to single precision
    np.testing.assert_allclose(got_plan, want_plan, rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(sums, want_sums, rtol=1e-5, atol=1e-37)


def test_forbidden_and_negligible_pairs_are_exact_zeros():
    cost = DenseCost(np.array([[0.0, np.inf, 5000.0], [1.0, 0.0, np.inf]]))
    for single in (False, True):
        plan = np.empty((2, 3), np.float32 if single else np.float64)
        cpu.softmax_rows(cost.kernel_cost, np.zeros(3), 1.0, np.full(2, 0.5), None, plan, single=single, relaxation=1.0)
        assert plan[0, 1] == plan[0, 2] == plan[1, 2] == 0.0
        np.testing.assert_allclose(plan.sum(1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [*SHAPES, (130, 70)])
def test_passes_over_a_stored_plan(shape, dtype, n_threads):
    rng = np.random.default_rng(2)
    n, m = shape
    plan, a, u, v = (rng.random(shape) + 0.01).astype(dtype), rng.random(n), rng.random(n) + 0.5, rng.random(m) + 0.5
    exact = plan.astype(np.float64)
    for relaxation in (1.0, 1.5):
        for x, y in zip(
            cpu.scaling_pass(plan, a, u, v, relaxation, u, 1.0),
            generic.scaling_pass(exact, a, u, v, relaxation, u, 1.0),
            strict=True,
        ):
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(cpu.laplacian_product(plan, a, v), generic.laplacian_product(exact, a, v), rtol=1e-12)
    for x, y in zip(cpu.plan_moments(plan, a, v), generic.plan_moments(exact, a, v), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)
    growth = 0.1 * (v - 1.0)
    for x, y in zip(cpu.shift_pass(plan / m, a, growth), generic.shift_pass(exact / m, a, growth), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6 if dtype == np.float32 else 1e-11, atol=1e-8)
    for squarings in (1, 2):
        got, want = cpu.sharpen(plan.copy(), a, v, squarings), generic.sharpen(exact, a, v, squarings)
        for x, y in zip(got, want, strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", COSTS)
def test_lazy_kernels_and_sums(kind, shape, n_threads):
    geometry = make(kind, shape)
    a, f, g, reg = state(geometry)
    x = np.random.default_rng(3).standard_normal(shape[1])
    weights = a * 1.3
    got = cpu.lazy_product(geometry.kernel_cost, f, g, reg, weights, x)
    np.testing.assert_allclose(got, generic.lazy_product(geometry, f, g, reg, weights, x), rtol=1e-5, atol=1e-5)
    for p, q in zip(
        cpu.lazy_moments(geometry.kernel_cost, f, g, reg, a), generic.lazy_moments(geometry, f, g, reg, a), strict=True
    ):
        np.testing.assert_allclose(p, q, rtol=1e-5, atol=1e-30)
    for p, q in zip(cpu.plan_sums(geometry.kernel_cost, f, g, reg, a), generic.plan_sums(geometry, f, g, reg, a), strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["dense64", "forbidden", "euclidean"])
def test_plan_rows_and_products(kind, shape, n_threads):
    geometry = make(kind, shape)
    a, f, g, reg = state(geometry)
    n, m = shape
    whole = generic.plan_rows(geometry, f, g, reg, a, 0, n)
    np.testing.assert_allclose(cpu.plan_rows(geometry.kernel_cost, f, g, reg, a, n // 2, n), whole[n // 2 :], rtol=1e-12)
    rng = np.random.default_rng(4)
    for axis, length in ((1, m), (0, n)):
        vectors = rng.standard_normal((length, 3))
        expected = whole @ vectors if axis == 1 else whole.T @ vectors
        for kernels, cost in ((cpu, geometry.kernel_cost), (generic, geometry)):
            np.testing.assert_allclose(kernels.plan_product(cost, f, g, reg, a, vectors, axis), expected, rtol=1e-11, atol=1e-14)


def test_a_laplacian_of_the_stored_plan_is_exact_in_single_precision():
    """L 1 = 0 to double precision, and L is positive semi-definite, although K holds 32-bit numbers."""
    geometry = make("dense64", (60, 40))
    a, _, g, _ = state(geometry)
    plan = np.empty(geometry.shape, np.float32)
    cpu.softmax_rows(geometry.kernel_cost, g, 0.005, a, None, plan, single=True, relaxation=1.0)
    r, degree, _ = cpu.plan_moments(plan, a, np.ones(40))
    laplacian = np.diag(degree) - np.stack([cpu.laplacian_product(plan, a / r, e) for e in np.eye(40)])
    np.testing.assert_allclose(laplacian.sum(1), 0.0, atol=2e-16)
    assert np.linalg.eigvalsh(laplacian)[0] > -2e-16


@pytest.mark.parametrize("kind", COSTS)
def test_active_set_holds_the_pairs_above_the_threshold(kind, n_threads):
    geometry = make(kind, (37, 23))
    _, f, g, reg = state(geometry)
    threshold = -3 * reg
    rows = geometry.rows(0, 37)
    exponents = f[:, None] + g[None, :] - rows
    kept = exponents > threshold
    u, v = np.linspace(0.5, 2.0, 37), np.linspace(2.0, 0.5, 23)
    plan = (np.exp(exponents / reg) / u[:, None] / v).astype(np.float32)
    for kernel, known in (
        (cpu.active_set, (geometry.kernel_cost, plan, u, v, np.exp(-3.0))),
        (cpu.lazy_active_set, (geometry.kernel_cost, f, g, threshold)),
    ):
        active = kernel(*known, np.inf)
        assert 0 < kept.sum() < kept.size
        assert kernel(*known, kept.sum() - 1) is None
        i = np.repeat(np.arange(37), np.diff(active.indptr))
        pattern = np.zeros_like(kept)
        pattern[i, active.indices] = True
        np.testing.assert_array_equal(pattern, kept)
        np.testing.assert_allclose(active.values, rows[kept], rtol=1e-12)


@pytest.mark.parametrize("m", [1, 2, 7, 8, 9, 16, 64, 65])
def test_active_sets_of_rows_that_are_empty_full_or_end_late(m, n_threads):
    cost = np.random.default_rng(m).random((9, m))
    kept = np.zeros((9, m), bool)
    kept[0] = kept[8] = kept[1, -1] = kept[2, 0] = True
    kept[3, ::3] = True
    plan = np.where(kept, 0.5, 1e-9).astype(np.float32)
    for active in (
        cpu.active_set(cost, plan, np.ones(9), np.ones(m), 1e-6, np.inf),
        cpu.lazy_active_set(np.where(kept, cost, cost + 5.0), np.zeros(9), np.zeros(m), -2.0, np.inf),
    ):
        assert active.shape == (9, m)
        np.testing.assert_array_equal(np.diff(active.indptr), kept.sum(axis=1))
        np.testing.assert_array_equal(active.indices, np.nonzero(kept)[1])
        np.testing.assert_array_equal(active.values, cost[kept])


@pytest.mark.parametrize("m", range(1, 11))
def test_sparse_kernels_on_rows_of_any_length(m, n_threads):
    """An empty row counts as one of zeros and raises nothing; the solver's monitor sees what comes of it."""
    rng = np.random.default_rng(m)
    plan = np.tril(rng.random((m + 1, m)) + 0.1, -1).astype(np.float32)  # row i has i entries
    pattern = cpu.lazy_active_set(np.where(plan > 0, 0.0, np.inf), np.zeros(m + 1), np.zeros(m), -1.0, np.inf)
    sparse, active = cpu.sparse_kernels, cpu.sparse_kernels.ActivePlan(pattern, plan[plan > 0])
    a, u, v = rng.random(m + 1), np.ones(m + 1), rng.random(m) + 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        np.testing.assert_allclose(sparse.laplacian_product(active, a, v), (a * (plan @ v)) @ plan, rtol=1e-6)
        got, want = sparse.shift_pass(active, a, v), generic.shift_pass(plan.astype(float), a, v)
        for x, y in zip(got, want, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-12)
        row_sums, degree, squares = sparse.plan_moments(active, a, v)
        assert row_sums[0] == 0.0
        np.testing.assert_allclose(row_sums, plan.astype(float) @ v, rtol=1e-12)
        np.testing.assert_allclose(degree, a @ plan.astype(float), rtol=1e-12)
        np.testing.assert_allclose(squares, (a / row_sums)[1:] @ plan[1:].astype(float) ** 2, rtol=1e-12)
        scaled, _, row_error = sparse.scaling_pass(active, a, u, v, 1.0, u, 1.0)
        np.testing.assert_allclose(scaled, 1.0 / row_sums, rtol=1e-12)
        assert np.isnan(row_error)
        f, _, _, _ = sparse.softmax_rows(pattern, v, 0.1, a, None, None, single=False, relaxation=1.0)
        np.testing.assert_allclose(f[0], np.inf)


def test_sparse_kernels_equal_dense_ones_with_forbidden_pairs(n_threads):
    """Restricting to a pattern is the same as forbidding the rest."""
    geometry = make("forbidden", (37, 23))
    a, f, g, reg = state(geometry)
    n, m = geometry.shape
    active = cpu.lazy_active_set(geometry.kernel_cost, f, g, -1e300, np.inf)
    assert len(active.values) == np.isfinite(geometry.matrix).sum()
    sparse = cpu.sparse_kernels
    dense_plan = np.empty((n, m), np.float32)
    want = cpu.softmax_rows(geometry.kernel_cost, g, reg, a, f, dense_plan, single=False, relaxation=1.0)
    got = sparse.softmax_rows(active, g, reg, a, f, None, single=False, relaxation=1.0)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got[2], want[2], rtol=1e-12)
    plan = got[1]
    rng = np.random.default_rng(5)
    u, v = rng.random(n) + 0.5, rng.random(m) + 0.5
    for x, y in zip(
        sparse.scaling_pass(plan, a, u, v, 1.4, u, 1.0), cpu.scaling_pass(dense_plan, a, u, v, 1.4, u, 1.0), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-12)
    for x, y in zip(sparse.shift_pass(plan, a, v - 1), cpu.shift_pass(dense_plan, a, v - 1), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(sparse.laplacian_product(plan, a, v), cpu.laplacian_product(dense_plan, a, v), rtol=1e-12)
    for x, y in zip(sparse.plan_moments(plan, a, v), cpu.plan_moments(dense_plan, a, v), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


def test_environment_forces_the_generic_kernels(monkeypatch):
    monkeypatch.setenv("OTBILEVEL_KERNELS", "generic")
    assert DenseCost(np.ones((2, 2))).kernels is generic
    monkeypatch.setenv("OTBILEVEL_KERNELS", "")
    assert DenseCost(np.ones((2, 2))).kernels is cpu


def test_kernels_compile_where_nothing_can_be_kept_on_disk(monkeypatch):
    """A read-only installation without a writeable home: numba refuses to cache."""
    compiling = importlib.import_module("otbilevel.ot.kernels.cpu.compile")
    real = compiling.njit

    def njit(*, cache=False, **settings):
        if cache:
            msg = "cannot cache function: no locator available"
            raise RuntimeError(msg)
        return real(**settings)

    monkeypatch.setattr(compiling, "njit", njit)
    assert compiling.kernel(lambda x: x + 1)(41) == 42


def test_exponentials():
    from numba import njit

    from otbilevel.ot.kernels.cpu.exp import SUMS, exp2

    @njit(fastmath=SUMS)
    def both(x, y, out64, out32):
        for i in range(len(x)):
            out64[i], out32[i] = exp2(x[i]), exp2(y[i])

    rng = np.random.default_rng(6)
    x = rng.uniform(-1022, 1010, 10_000)
    y = rng.uniform(-126, 115, 10_000).astype(np.float32)
    out64, out32 = np.empty_like(x), np.empty_like(y)
    both(x, y, out64, out32)
    np.testing.assert_array_less(np.abs(out64 / np.exp2(x) - 1), 6e-16)
    np.testing.assert_array_less(np.abs(out32 / np.exp2(y.astype(np.float64)) - 1), 1.2e-7)
    edge = np.array([-np.inf, -1e5, 1e5])
    out64, out32 = np.empty(3), np.empty(3, np.float32)
    both(edge, edge.astype(np.float32), out64, out32)
    np.testing.assert_allclose(out64, [0, 0, 2.0**1010], rtol=1e-15)
    np.testing.assert_allclose(out32, [0, 0, 2.0**115], rtol=1e-6)
