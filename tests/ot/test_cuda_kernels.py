"""The CUDA kernels against the generic ones, on a GPU or emulated: see `test_cuda.py`."""

import contextlib
import importlib

import numpy as np
import pytest

from otbilevel import DenseCost, PointCloud
from otbilevel.ot.kernels import generic
from otbilevel.ot.kernels.aprox import RIGID
from otbilevel.testing import count_waits, thread_order

pytestmark = pytest.mark.gpu

SHAPES = [(1, 1), (1, 7), (5, 1), (33, 70), (75, 131)]
COSTS = ["dense64", "dense32", "forbidden", *PointCloud.COSTS, "mixed"]
UNBALANCED = (0.4, -0.05, 0.3)
"""Shares and clips both."""
cuda = importlib.import_module("otbilevel.ot.kernels.cuda")
stored = importlib.import_module("otbilevel.ot.kernels.cuda.stored")


@pytest.fixture(autouse=True, params=["ascending", "descending"])
def order(request, cupy):
    """Both orders of the emulated threads; on a device there is only one run."""
    if cupy.__version__ != "0+stand.in":
        if request.param == "descending":
            pytest.skip("a device chooses the order of its threads")
        return contextlib.nullcontext()
    with thread_order(request.param):
        yield


@pytest.fixture(params=["strips", "long rows"])
def rows(request, monkeypatch):
    """Rows in the registers of a block, and a pretence that they are too long for that."""
    if request.param == "long rows":
        monkeypatch.setattr(stored, "LONGEST_ROW", 0)


def make(kind, shape, seed=0):
    rng = np.random.default_rng(seed)
    n, m = shape
    if kind in (*PointCloud.COSTS, "mixed"):
        d = 11 if kind == "euclidean" else 3  # more and fewer coordinates than a chunk has
        x, y = rng.standard_normal((n, d)), rng.standard_normal((m, d))
        return PointCloud(x.astype(np.float32), y) if kind == "mixed" else PointCloud(x, y, cost=kind)
    cost = rng.random(shape)
    if kind == "forbidden" and min(shape) > 1:
        cost[rng.random(shape) < 0.3] = np.inf
        cost[np.arange(n), np.arange(n) % m] = 0.5
    return DenseCost(cost.astype(np.float32) if kind == "dense32" else cost)


def on_device(cupy, geometry):
    """The same geometry, with arrays of CuPy."""
    if isinstance(geometry, DenseCost):
        return DenseCost(cupy.asarray(geometry.matrix))
    return PointCloud(cupy.asarray(geometry.x), cupy.asarray(geometry.y), cost=geometry.cost)


def state(geometry, seed=1):
    """Potentials near those of a plan, and positive weights of sum 1."""
    rng = np.random.default_rng(seed)
    n, m = geometry.shape
    a = rng.random(n) + 0.1
    g, reg = 0.3 * rng.standard_normal(m), 0.07
    f, *_ = generic.softmax_rows(geometry, g, reg, a / a.sum(), None, None, single=False, relaxation=1.0)
    return a / a.sum(), f + 0.02 * rng.standard_normal(n), g, reg


def agree(got, want, **tolerances):
    """Device arrays and numbers, against NumPy's."""
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x if isinstance(x, float) or x is None else x.get(), y, **tolerances)


def masses(a, softmin, reg, aprox):
    share, low, high = aprox
    return a * np.exp((np.clip(share * softmin, low, high) - softmin) / reg)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", COSTS)
def test_rows_and_bounds_of_the_cost(kind, shape, cupy):
    geometry = make(kind, shape)
    device, rows = on_device(cupy, geometry), geometry.rows(0, shape[0])
    assert device.kernels is cuda
    finite = rows[np.isfinite(rows)]
    np.testing.assert_allclose(device.bounds, (finite.min(), finite.max()), rtol=1e-12, atol=1e-15)
    zeros, ones = (cupy.zeros(size) for size in shape), cupy.ones(shape[0])
    block = cuda.plan_rows(device.kernel_cost, *zeros, 1.0, ones, shape[0] // 3, shape[0])
    np.testing.assert_allclose(block.get(), np.exp(-rows[shape[0] // 3 :]), rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extremes_find_what_is_not_finite(dtype, cupy):
    matrix = np.random.default_rng(7).standard_normal((9, 40)).astype(dtype)
    assert cuda.extremes(cupy.asarray(matrix)) == (matrix.min(), matrix.max())
    for bad in (np.nan, np.inf, -np.inf, np.finfo(dtype).max):
        matrix[3, 35] = bad
        np.testing.assert_array_equal(cuda.extremes(cupy.asarray(matrix)), (matrix.min(), matrix.max()))
    with pytest.raises(ValueError, match=r"NaN.*\(1, 2\)"):
        DenseCost(cupy.asarray([[0.0, 1.0, 2.0], [0.0, 1.0, np.nan]]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", COSTS)
def test_softmax_rows(kind, shape, rows, cupy):
    geometry = make(kind, shape)
    device = on_device(cupy, geometry)
    a, f, g, reg = state(geometry)
    on = [cupy.asarray(x) for x in (g, a, f, f + 40 * reg)]
    for start, relaxation, stores in ((None, 1.0, True), (2, 1.6, True), (3, 1.0, False)):
        plan, old = np.empty(shape) if stores else None, None if start is None else f + (40 * reg if start == 3 else 0.0)
        device_plan = cupy.empty(shape) if stores else None
        settings = {"single": False, "relaxation": relaxation}
        warm = None if start is None else on[start]
        got = cuda.softmax_rows(device.kernel_cost, on[0], reg, on[1], warm, device_plan, **settings)
        want = generic.softmax_rows(geometry, g, reg, a, old, plan, **settings)
        if not stores:
            got, want = (got[0], got[2], got[3]), (want[0], want[2], want[3])
        agree(got, want, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(on[2].get(), f)  # what it starts from is not changed


@pytest.mark.parametrize("kind", ["dense64", "sqeuclidean"])
@pytest.mark.parametrize("relaxation", [1.0, 1.6])
def test_masses_that_depend_on_the_softmin(kind, relaxation, rows, cupy):
    geometry = make(kind, (33, 70))
    device = on_device(cupy, geometry)
    a, f, g, reg = state(geometry)
    want_f, want_k, _, _ = generic.softmax_rows(geometry, g, reg, a, f, np.empty((33, 70)), single=False, relaxation=relaxation)
    on = [cupy.asarray(x) for x in (g, a, f)]
    got_f, got_k, sums, _ = cuda.softmax_rows(
        device.kernel_cost, on[0], reg, *on[1:], cupy.empty((33, 70)), single=False, relaxation=relaxation, aprox=UNBALANCED
    )
    agree((got_f, got_k, sums), (want_f, want_k, masses(a, want_f, reg, UNBALANCED) @ want_k), rtol=1e-12)
    u, v = np.linspace(0.5, 2.0, 33), np.linspace(2.0, 0.5, 70)
    want_u, _, _ = generic.scaling_pass(want_k, a, u, v, relaxation, u, 1.0)
    on = [cupy.asarray(x) for x in (want_k, a, u, v, want_f)]
    got_u, sums, error = cuda.scaling_pass(*on[:4], relaxation, on[4], reg, UNBALANCED)
    weights = masses(a, want_f + reg * np.log(want_u), reg, UNBALANCED) * want_u
    agree((got_u, sums), (want_u, weights @ want_k), rtol=1e-12)
    assert error == 0.0 if relaxation == 1.0 else error == pytest.approx(np.sum(weights * np.abs(want_k @ v - 1 / want_u)))


@pytest.mark.parametrize("kind", ["dense64", "dense32", "forbidden", "sqeuclidean", "mixed"])
def test_single_precision_sweep(kind, rows, cupy):
    geometry = make(kind, (33, 131))
    device = on_device(cupy, geometry)
    a, _, g, reg = state(geometry)
    on = [cupy.asarray(x) for x in (g, a)]
    plan = cuda.new_plan(geometry.shape, on[1], single=True)
    f, plan, sums, _ = cuda.softmax_rows(device.kernel_cost, on[0], reg, on[1], None, plan, single=True, relaxation=1.0)
    want = generic.softmax_rows(geometry, g, reg, a, None, np.empty(geometry.shape), single=False, relaxation=1.0)
    np.testing.assert_allclose(f.get(), want[0], atol=1e-6 * reg)
    assert plan.dtype == np.float32
    agree((plan, sums), want[1:3], rtol=1e-5, atol=1e-37)
    small = np.finfo(np.float32).tiny
    assert np.all((plan.get() == 0) | (plan.get() >= small))


def test_rows_of_many_lengths(cupy):
    """Every shape of a block."""
    rng = np.random.default_rng(3)
    for m in (1, 128, 129, 513, 2049, 6145):
        geometry = DenseCost(rng.random((2, m)))
        a, f, g, reg = state(geometry)
        on = [cupy.asarray(x) for x in (geometry.matrix, g, a, f)]
        got = cuda.softmax_rows(on[0], on[1], reg, *on[2:], cupy.empty((2, m)), single=False, relaxation=1.0)
        want = generic.softmax_rows(geometry, g, reg, a, f, np.empty((2, m)), single=False, relaxation=1.0)
        agree(got, want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_passes_over_a_stored_plan(shape, dtype, rows, cupy):
    rng = np.random.default_rng(2)
    n, m = shape
    plan, a, u, v = (rng.random(shape) + 0.01).astype(dtype), rng.random(n), rng.random(n) + 0.5, rng.random(m) + 0.5
    exact, (k, on_a, on_u, on_v) = plan.astype(np.float64), (cupy.asarray(x) for x in (plan, a, u, v))
    for relaxation in (1.0, 1.5):
        got, want = cuda.scaling_pass(k, on_a, on_u, on_v, relaxation), generic.scaling_pass(exact, a, u, v, relaxation, u, 1.0)
        agree(got, want, rtol=1e-12, atol=1e-14)
    agree([cuda.laplacian_product(k, on_a, on_v)], [generic.laplacian_product(exact, a, v)], rtol=1e-12)
    agree(cuda.plan_moments(k, on_a, on_v), generic.plan_moments(exact, a, v), rtol=1e-12)
    growth = 0.1 * (v - 1.0)
    share = (plan / m).astype(dtype)
    got, want = cuda.shift_pass(cupy.asarray(share), on_a, cupy.asarray(growth)), generic.shift_pass(share.astype(float), a, growth)
    agree(got, want, rtol=1e-11, atol=1e-15)
    for squarings in (1, 2):
        got, want = cuda.sharpen(k.copy(), on_a, on_v, squarings), generic.sharpen(exact, a, v, squarings)
        agree(got, want, rtol=3e-6 if dtype == np.float32 else 1e-12)
    np.testing.assert_array_equal(on_u.get(), u)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", COSTS)
def test_lazy_kernels_and_sums(kind, shape, cupy):
    geometry = make(kind, shape)
    device = on_device(cupy, geometry)
    a, f, g, reg = state(geometry)
    x = np.random.default_rng(3).standard_normal(shape[1])
    cost, on = device.kernel_cost, [cupy.asarray(v) for v in (f, g, a, x)]
    got = cuda.lazy_product(cost, *on[:2], reg, on[2], on[3])
    agree([got], [generic.lazy_product(geometry, f, g, reg, a, x)], rtol=1e-5, atol=1e-5)
    agree(cuda.lazy_moments(cost, *on[:2], reg, on[2]), generic.lazy_moments(geometry, f, g, reg, a), rtol=1e-5, atol=1e-30)
    agree(cuda.plan_sums(cost, *on[:2], reg, on[2]), generic.plan_sums(geometry, f, g, reg, a), rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["dense64", "forbidden", "euclidean"])
def test_products_of_the_plan(kind, shape, cupy):
    geometry = make(kind, shape)
    device = on_device(cupy, geometry)
    a, f, g, reg = state(geometry)
    on, rng = [cupy.asarray(v) for v in (f, g, a)], np.random.default_rng(4)
    for axis, length in ((1, shape[1]), (0, shape[0])):
        for width in (1, 6):
            vectors = rng.standard_normal((length, width))
            got = cuda.plan_product(device.kernel_cost, *on[:2], reg, on[2], cupy.asarray(vectors), axis)
            agree([got], [generic.plan_product(geometry, f, g, reg, a, vectors, axis)], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_laplacian_in_single_precision_is_exact(lazy, rows, cupy):
    """L 1 = 0 to double precision, and L is positive semi-definite, although K holds 32-bit numbers."""
    geometry = make("sqeuclidean" if lazy else "dense64", (40, 35))
    cost = on_device(cupy, geometry).kernel_cost
    a, _, g, reg = state(geometry)
    on_g, on_a = cupy.asarray(g), cupy.asarray(a)
    if lazy:
        f, *_ = cuda.softmax_rows(cost, on_g, reg, on_a, None, None, single=True, relaxation=1.0)
        r, degree, _ = cuda.lazy_moments(cost, f, on_g, reg, on_a)
        products = [cuda.lazy_product(cost, f, on_g, reg, on_a / r, cupy.asarray(e)).get() for e in np.eye(35)]
        degree = cuda.lazy_product(cost, f, on_g, reg, on_a / r, cupy.ones(35)).get() * 0.0 + degree.get()
    else:
        plan = cupy.empty(geometry.shape, dtype=np.float32)
        cuda.softmax_rows(cost, on_g, 0.005, on_a, None, plan, single=True, relaxation=1.0)
        r, degree, _ = cuda.plan_moments(plan, on_a, cupy.ones(35))
        products, degree = [cuda.laplacian_product(plan, on_a / r, cupy.asarray(e)).get() for e in np.eye(35)], degree.get()
    laplacian = np.diag(degree) - np.stack(products)
    np.testing.assert_allclose(laplacian.sum(1), 0.0, atol=3e-16)
    assert np.linalg.eigvalsh(laplacian)[0] > -3e-16


@pytest.mark.parametrize("kind", COSTS)
def test_active_set_holds_the_pairs_above_the_threshold(kind, cupy):
    geometry = make(kind, (37, 73))
    cost = on_device(cupy, geometry).kernel_cost
    _, f, g, reg = state(geometry)
    rows = geometry.rows(0, 37)
    exponents = f[:, None] + g[None, :] - rows
    kept = exponents > -3 * reg
    u, v = np.linspace(0.5, 2.0, 37), np.linspace(2.0, 0.5, 73)
    plan = (np.exp(exponents / reg) / u[:, None] / v).astype(np.float32)
    for kernel, known in (
        (cuda.active_set, (cupy.asarray(plan), cupy.asarray(u), cupy.asarray(v), np.exp(-3.0))),
        (cuda.lazy_active_set, (cupy.asarray(f), cupy.asarray(g), -3 * reg)),
    ):
        active = kernel(cost, *known, np.inf)
        assert 0 < kept.sum() < kept.size
        assert kernel(cost, *known, kept.sum() - 1) is None
        np.testing.assert_array_equal(active.indptr.get(), [0, *np.cumsum(kept.sum(1))])
        np.testing.assert_array_equal(np.stack([active.rows.get(), active.indices.get()]), np.nonzero(kept))
        np.testing.assert_allclose(active.values.get(), rows[kept], rtol=1e-12)
        np.testing.assert_array_equal(active.column_ptr.get(), [0, *np.cumsum(kept.sum(0))])
        np.testing.assert_array_equal(active.rows.get()[active.order.get()], np.nonzero(kept.T)[1])


@pytest.mark.parametrize("aprox", [RIGID, UNBALANCED])
def test_sparse_kernels_equal_dense_ones_with_forbidden_pairs(aprox, cupy):
    """Restricting to a pattern is the same as forbidding the rest."""
    geometry = make("forbidden", (37, 73))
    cost = on_device(cupy, geometry).kernel_cost
    a, f, g, reg = state(geometry)
    rng = np.random.default_rng(5)
    a, f, g, u, v = (cupy.asarray(x) for x in (a, f, g, rng.random(37) + 0.5, rng.random(73) + 0.5))
    active, sparse = cuda.lazy_active_set(cost, f, g, -1e300, np.inf), cuda.sparse_kernels
    assert active.values.shape[0] == np.isfinite(geometry.matrix).sum()
    dense_plan = cupy.empty((37, 73), dtype=np.float32)
    settings = {"single": False, "relaxation": 1.0, "aprox": aprox}
    want = cuda.softmax_rows(cost, g, reg, a, None, dense_plan, **settings)
    got = sparse.softmax_rows(active, g, reg, a, None, None, **settings)
    agree((got[0], got[2]), (want[0].get(), want[2].get()), rtol=1e-12, atol=1e-14)
    plan = got[1]
    np.testing.assert_allclose(plan.values.get(), dense_plan.get()[np.isfinite(geometry.matrix)], rtol=3e-7)

    def same(name, *args, rtol=1e-6):
        got, want = getattr(sparse, name)(plan, *args), getattr(cuda, name)(dense_plan, *args)
        got, want = (got, want) if isinstance(got, tuple) else ([got], [want])
        agree(got, [x if isinstance(x, float) else x.get() for x in want], rtol=rtol, atol=1e-9)

    for relaxation in (1.0, 1.4):
        same("scaling_pass", a, u, v, relaxation, want[0], reg, aprox)
    same("shift_pass", a, v - 1.0)
    same("laplacian_product", a, v)
    same("plan_moments", a, v)


@pytest.mark.parametrize("sparse", [False, True])
def test_conjugate_gradients_wait_rarely_and_know_their_end(sparse, rows, cupy):
    kernels = cuda.sparse_kernels if sparse else cuda
    rng = np.random.default_rng(8)
    dense = rng.random((24, 17)).astype(np.float32)
    a, columns = rng.random(24), rng.random(17) + 0.5
    exact = dense.astype(np.float64) * columns
    r = exact.sum(1)
    degree, squares = a @ exact, (a / r) @ exact**2
    plan = cupy.asarray(dense)
    if sparse:
        pattern = cuda.lazy_active_set(cupy.ones((24, 17)), cupy.zeros(24), cupy.zeros(17), -2.0, np.inf)
        plan = kernels.ActivePlan(pattern, cupy.asarray(dense.ravel()))
    operator = plan, *(cupy.asarray(x) for x in (a / r, columns, degree, 1 / (degree - squares)))
    never = {"tol": 1e-9, "max_iter": 100, "interrupt": lambda: False}
    x, nit, _ = kernels.solve_laplacian(*operator, cupy.zeros(17), **never)
    assert (nit, float(abs(x).max())) == (0, 0.0)
    right = 1e-170 * rng.standard_normal(17)  # whose squares underflow
    right -= degree * right.sum() / degree.sum()
    with count_waits() as waits:
        x, nit, _ = kernels.solve_laplacian(*operator, cupy.asarray(right), **never)
        assert waits() <= 1 + nit // 8
    x = x.get()
    np.testing.assert_allclose(degree * x - exact.T @ (a / r * (exact @ x)), right, atol=1e-9 * np.abs(right).sum())
    assert 1 < nit < 30
    short, few, _ = kernels.solve_laplacian(*operator, cupy.asarray(right), **never | {"max_iter": 3})
    assert few == 3
    assert 0 < np.abs(short.get() - x).max() < np.abs(x).max()
    _, nit, _ = kernels.solve_laplacian(*operator, cupy.asarray(right), **never | {"interrupt": lambda: True})
    assert nit == 0
    x, nit, _ = kernels.solve_laplacian(*operator, cupy.asarray(degree), **never)  # outside of the range of L
    assert nit < 100 and np.isfinite(x.get()).all()
    _, nit, _ = kernels.solve_laplacian(*operator, cupy.full(17, np.nan), **never)
    assert nit == 0


def passes_one_by_one(k, a, log_v, b, count, relaxation):
    """Sinkhorn's iterations by the generic kernels: u, log v and column sums after each, its error and its share of the rows."""
    u, seen = np.ones(len(a)), []
    for _ in range(count):
        v, before = np.exp(log_v), log_v
        u, sums, row_error = generic.scaling_pass(k, a, u, v, relaxation, u, 1.0)
        row_error = row_error if relaxation != 1.0 else 0.0
        log_v = log_v + relaxation * generic.vector_kernels.log_ratio(np.log(b), v * sums, 1e-300, 60.0)
        seen.append((u, before, v * sums, log_v, np.abs(v * sums - b).sum() + row_error, row_error))
    return seen


@pytest.mark.parametrize("relaxation", [1.0, 1.4])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_queue_of_scaling_passes_knows_its_end(sparse, relaxation, rows, cupy):
    """As many as asked for, up to the tolerance, and not one beyond the reach; the host waits once."""
    rng = np.random.default_rng(6)
    n, m = 24, 17
    dense = (rng.random((n, m)) + 0.01).astype(np.float32)
    a, b, log_v = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m)), 0.1 * rng.standard_normal(m)
    kernels, plan = cuda, cupy.asarray(dense)
    if sparse:
        kernels = cuda.sparse_kernels
        pattern = cuda.lazy_active_set(cupy.ones((n, m)), cupy.zeros(n), cupy.zeros(m), -2.0, np.inf)
        plan = kernels.ActivePlan(pattern, cupy.asarray(dense.ravel()))
    seen = passes_one_by_one(dense.astype(float), a, log_v, b, 9, relaxation)
    spread = [float(np.ptp(each[3])) for each in seen]
    assert spread[0] > np.ptp(log_v)
    on = [cupy.asarray(x) for x in (a, np.ones(n), log_v, b, np.log(b))]
    settings = {"count": 9, "tol": 0.0, "relaxation": relaxation, "half_step": (1e-300, 60.0), "reach": (50.0, 600.0)}
    for changed, steps, in_reach in (
        ({}, 9, True),
        ({"count": 4}, 4, True),
        ({"tol": seen[4][4] * 1.0001}, 5, True),
        ({"reach": (0.5 * (np.ptp(log_v) + spread[0]), 600.0)}, 1, False),
        ({"reach": (50.0, 0.5 * np.abs(log_v).max())}, 0, False),
    ):
        with count_waits() as waits:
            *arrays, errors, row_error, reached = kernels.scaling_passes(plan, *on, **settings | changed)
            assert waits() in (1, 0)
        assert (len(errors), reached) == (steps, in_reach)
        np.testing.assert_allclose(errors, [each[4] for each in seen[:steps]], rtol=1e-6, atol=1e-13)
        if steps:
            agree((*arrays, row_error), (*seen[steps - 1][:4], seen[steps - 1][5]), rtol=1e-9, atol=1e-13)
        np.testing.assert_array_equal(on[2].get(), log_v)
    on[3] = cupy.full(m, np.nan)
    _, _, _, _, errors, _, _ = kernels.scaling_passes(plan, *on, **settings)
    assert len(errors) == 1 and np.isnan(errors[0])
    on[2] = on[3]
    assert kernels.scaling_passes(plan, *on, **settings)[4:] == ([], 0.0, False)


@pytest.mark.parametrize("length", [1, 7, 64, 2000])
def test_vectors(length, cupy):
    vectors, truth = cuda.vector_kernels, generic.vector_kernels
    rng = np.random.default_rng(length)
    x, y, b = rng.standard_normal(length), rng.standard_normal(length), rng.random(length)
    on_x, on_y, on_b = (cupy.asarray(v) for v in (x, y, b))
    with count_waits() as waits:
        assert vectors.extremes(on_x) == truth.extremes(x)
        assert vectors.distance(on_x, on_y) == pytest.approx(truth.distance(x, y), rel=1e-13)
        got, want = vectors.centred(on_x, on_b), truth.centred(x, b)
        assert waits() in (3, 0)  # one each; a device is not counted
    agree(got, want, rtol=1e-13)
    on_x[length // 2] = np.nan
    assert np.isnan(vectors.extremes(on_x)).all()
    assert np.isnan(vectors.distance(on_x, on_y))
    assert np.isnan(vectors.centred(on_x, on_b)[1:]).all()


def test_every_kernel_has_been_launched(cupy):
    """The last test of this file: no kernel without one."""
    emulator = importlib.import_module("otbilevel.testing.cuda_emulator")
    device = importlib.import_module("otbilevel.ot.kernels.cuda.device")
    if cupy.__version__ != "0+stand.in":
        pytest.skip("only the emulator keeps count")
    known = {name for file in device.FILES for name in emulator.kernel_names(device.source(file))}
    assert len(known) > 25
    assert not known - {name for name, _ in emulator.launches}
