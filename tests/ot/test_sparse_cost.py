"""A sparse cost against the dense one that forbids the same pairs, its kernels against the generic ones, and what is refused."""

import importlib
import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linprog
from scipy.spatial import cKDTree

import otbilevel
from otbilevel import DenseCost, SparseCost, solve_ot
from otbilevel.ot import reg_path
from otbilevel.ot.kernels import generic_pairs
from otbilevel.ot.kernels.aprox import RIGID
from otbilevel.ot.kernels.pattern import ActivePlan, ActiveSet
from otbilevel.testing import check_ot_result

fast = importlib.import_module("otbilevel.ot.kernels.cpu.sparse_cost")

ENTROPIC = ["sinkhorn", "sns", "auto"]
SHAPES = [(1, 1), (1, 6), (5, 1), (9, 9), (14, 8), (7, 20)]


def problem(shape, seed=0, density=0.4, zeros=True):
    """Weights, the dense cost and the same pairs as a CSR array; with zero weights, and zeros among the costs."""
    rng = np.random.default_rng(seed)
    n, m = shape
    C = np.where(rng.random(shape) < density, rng.random(shape), np.inf)
    C[np.arange(max(shape)) % n, np.arange(max(shape)) % m] = rng.random(max(shape))
    allowed = np.argwhere(np.isfinite(C))
    C[tuple(allowed[rng.integers(len(allowed))])] = 0.0
    mass = np.where(np.isfinite(C), rng.random(shape), 0.0)
    if zeros and min(shape) > 4:
        mass[1], mass[:, 3] = 0.0, 0.0
        C[1, ::2] = np.inf
    return mass.sum(axis=1), mass.sum(axis=0), C, stored(C)


def stored(C):
    """The finite entries, zeros included."""
    i, j = np.nonzero(np.isfinite(C))
    return sparse.csr_array((C[i, j], (i, j)), shape=C.shape)


def neighbours(n, k, seed=0, dim=2):
    """Squared distances to k nearest neighbours each way, with uniform weights that leave a plan, and both clouds."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, dim))
    y = x[rng.permutation(n)] + 0.3 / n ** (1 / dim) * rng.standard_normal((n, dim))
    there, back = (cKDTree(to).query(at, k)[1] for at, to in ((x, y), (y, x)))
    own = np.repeat(np.arange(n), k)
    pairs = np.unique(np.concatenate([own * n + there.ravel(), back.ravel() * n + own]))
    i, j = np.divmod(pairs, n)
    return sparse.csr_array((((x[i] - y[j]) ** 2).sum(axis=1), (i, j)), shape=(n, n)), x, y


def agree(got, want, a, b, tol):
    """All fields of two results of one problem, within what marginal errors up to `tol` allow."""
    mass = a.sum()
    for name in ("plan", "sparse_plan"):
        first, second = (getattr(result, name) for result in (got, want))
        np.testing.assert_allclose(*((x.toarray() if sparse.issparse(x) else x) for x in (first, second)), atol=tol * mass)
    for name in ("value", "value_linear", "dual_value", "gap", "gap_exact"):
        scale = mass * (1 + want.reg * (1 + mass + abs(np.log(mass))) + np.abs(want.f).max() + np.abs(want.g).max())
        assert getattr(got, name) == pytest.approx(getattr(want, name), abs=tol * scale, rel=tol), name
    assert got.success
    assert want.success
    rng = np.random.default_rng(5)
    v, w, y = rng.random((len(b), 3)), rng.random(len(a)), rng.random((len(b), 2))
    np.testing.assert_allclose(got.apply(v), want.apply(v), atol=10 * tol * mass)
    np.testing.assert_allclose(got.apply(w, axis=0), want.apply(w, axis=0), atol=10 * tol * mass)
    np.testing.assert_allclose(got.barycentric_map(y)[a > 0], want.barycentric_map(y)[a > 0], atol=1e4 * tol)
    for first, second in zip(got.marginals, want.marginals, strict=True):
        np.testing.assert_allclose(first, second, atol=tol * mass)


# Solutions


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reg", [2e-3, 0.1, 1e4])
@pytest.mark.parametrize("method", ENTROPIC)
def test_it_is_the_dense_problem_with_infinite_costs(shape, reg, method):
    reg = max(reg, 0.02) if method == "sinkhorn" else reg
    for seed in range(3):
        a, b, C, pairs = problem(shape, seed)
        got, want = (solve_ot(a, b, cost, reg=reg, method=method, tol=1e-11, max_iter=200_000) for cost in (pairs, C))
        check_ot_result(got, a, b, C, tol=1e-11)
        agree(got, want, a, b, 1e-8)


@pytest.mark.parametrize("method", ENTROPIC)
def test_potentials_agree_where_all_pairs_hang_together(method):
    for seed in range(3):
        a, b, C, pairs = problem((14, 9), seed, density=0.7)
        got, want = (solve_ot(a, b, cost, reg=0.05, method=method, tol=1e-12) for cost in (pairs, C))
        for first, second in zip(got.potentials, want.potentials, strict=True):
            np.testing.assert_allclose(first, second, atol=1e-9)
        y = np.random.default_rng(1).random((9, 2))
        np.testing.assert_allclose(got.barycentric_map(y), want.barycentric_map(y), atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_exact_transport(shape):
    for seed in range(3):
        a, b, C, pairs = problem(shape, seed)
        got = solve_ot(a, b, pairs, method="exact")
        want = solve_ot(a, b, C, method="exact", options={"solver": "highs"})
        i, j = np.nonzero(np.isfinite(C))
        sums = np.concatenate([i == np.arange(shape[0])[:, None], j == np.arange(shape[1])[:, None]]).astype(float)
        assert got.value == pytest.approx(linprog(C[i, j], A_eq=sums, b_eq=np.concatenate([a, b])).fun, abs=1e-9 * a.sum())
        agree(got, want, a, b, 1e-9)
        assert np.all(got.f[:, None] + got.g[None, :] <= C + 1e-9)
        np.testing.assert_allclose(*(result.barycentric_map(np.arange(shape[1])) for result in (got, want)))
        assert got.gap_exact <= 1e-9 * a.sum()


def test_exact_transport_by_the_network_simplex_on_request():
    pytest.importorskip("ot")
    a, b, _, pairs = problem((14, 8))
    results = [solve_ot(a, b, pairs, method="exact", options={"solver": solver}) for solver in ("auto", "network-simplex")]
    assert results[0].value == pytest.approx(results[1].value, rel=1e-9)


def test_a_small_regularisation_tends_to_exact_transport():
    pairs, *_ = neighbours(120, 12)
    exact = solve_ot(None, None, pairs, method="exact")
    for reg in (1e-3, 1e-4, 1e-5):
        result = solve_ot(None, None, pairs, reg=reg)
        assert -1e-9 <= result.value_linear - exact.value <= result.gap_exact + 1e-9
    assert result.value_linear == pytest.approx(exact.value, rel=1e-2)


def test_enough_neighbours_are_as_good_as_all():
    pairs, x, y = neighbours(300, 60)
    full = solve_ot(None, None, ((x[:, None] - y[None, :]) ** 2).sum(-1), reg=1e-4)
    assert solve_ot(None, None, pairs, reg=1e-4).value == pytest.approx(full.value, rel=1e-6)


def test_a_full_sparse_cost_is_a_dense_one():
    a, b, C, _ = problem((9, 9), density=1.0)
    C = np.where(np.isfinite(C), C, 0.3)
    cost = SparseCost(sparse.coo_array(C + 1.0))
    assert not cost.has_forbidden_pairs
    got, want = (solve_ot(a, b, c, reg=0.05, tol=1e-12) for c in (cost, C + 1.0))
    agree(got, want, a, b, 1e-9)


@pytest.mark.parametrize("reg", [0.05, 50.0])
def test_a_constant_cost(reg):
    """Its range is zero, so that the entropy is summed term by term."""
    a, b, C, _ = problem((14, 8))
    C = np.where(np.isfinite(C), 2.0, np.inf)
    got, want = (solve_ot(a, b, c, reg=reg, tol=1e-12) for c in (stored(C), C))
    agree(got, want, a, b, 1e-9)


@pytest.mark.parametrize("relaxation", [0.7, 1.5])
def test_relaxation(relaxation):
    a, b, C, pairs = problem((14, 8))
    options = {"relaxation": relaxation}
    got, want = (solve_ot(a, b, c, reg=0.05, method="sinkhorn", options=options, tol=1e-11) for c in (pairs, C))
    assert abs(got.nit - want.nit) <= 1
    agree(got, want, a, b, 1e-8)


def test_the_papers_variant():
    a, b, C, pairs = problem((9, 9))
    got, want = (solve_ot(a, b, c, reg=0.1, method="sns", options={"variant": "paper"}) for c in (pairs, C))
    agree(got, want, a, b, 1e-6)


def test_starts_and_paths():
    a, b, C, pairs = problem((14, 8))
    first = solve_ot(a, b, pairs, reg=0.05)
    assert solve_ot(a, b, pairs, reg=0.05, init=first).nsweep == 2
    for got, want in zip(*(reg_path(a, b, c, [0.1, 0.05, 0.02], tol=1e-11) for c in (pairs, C)), strict=True):
        agree(got, want, a, b, 1e-8)


@pytest.mark.parametrize("method", ENTROPIC)
def test_a_large_graph(method):
    pairs, _, y = neighbours(3000, 30)
    reg = 1e-3 if method == "sinkhorn" else 1e-4
    result = solve_ot(None, None, pairs, reg=reg, method=method)
    assert result.success
    i, j = pairs.nonzero() if pairs.data.all() else (None, None)
    p = np.exp((result.f[i] + result.g[j] - pairs.data) / reg) / 3000**2
    rows, columns = np.bincount(i, p, 3000), np.bincount(j, p, 3000)
    assert np.abs(rows - 1 / 3000).sum() + np.abs(columns - 1 / 3000).sum() <= 1e-9
    assert 0 <= result.gap <= 1e-9
    means = np.bincount(i, p * y[j, 0], 3000) / rows
    np.testing.assert_allclose(result.barycentric_map(y)[:, 0], means, atol=1e-9)
    assert result.value == pytest.approx(result.dual_value, rel=1e-8)


def test_nothing_dense_is_formed():
    n = 6000
    pairs, _, y = neighbours(n, 8)
    solve_ot(None, None, pairs[:50, :][:, :50] + sparse.eye_array(50), reg=0.1)  # what is compiled is not counted
    tracemalloc.start()
    for method in ("sns", "sinkhorn"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", otbilevel.ConvergenceWarning)
            result = solve_ot(None, None, pairs, reg=1e-2, method=method, max_iter=20)
        assert np.isfinite([result.value, result.dual_value, result.gap, result.gap_exact]).all()
        assert result.sparse_plan.nnz <= pairs.nnz
        assert np.isfinite(result.barycentric_map(y)).all()
        assert np.isfinite(result.apply(y[:, 0], axis=0)).all()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < n * n * 8 / 4


def test_certificates_of_an_interrupted_run():
    """A plan with exact marginals is found, however far from convergence."""
    pairs, *_ = neighbours(200, 8)
    best = solve_ot(None, None, pairs, reg=1e-4)
    with pytest.warns(otbilevel.ConvergenceWarning):
        early = solve_ot(None, None, pairs, reg=1e-4, max_iter=12)
    assert early.marginal_error > 1e-2
    for result in (early, best):
        q = result._plan.rounding.matrix
        assert q.data.min() >= 0
        assert np.abs(q.sum(axis=0) - 1 / 200).sum() + np.abs(q.sum(axis=1) - 1 / 200).sum() < 1e-13
    assert best.dual_value - early.dual_value - 1e-12 <= early.gap < np.inf
    exact = solve_ot(None, None, pairs, method="exact").value
    i, j, costs = early._plan.problem.geometry.pairs()
    spent = np.sum(early._plan.rounding.matrix[i, j] * costs)
    assert exact - 1e-12 <= spent <= exact + early.gap_exact + 1e-12


@pytest.mark.parametrize("method", [*ENTROPIC, "exact"])
@pytest.mark.parametrize("shape", SHAPES)
def test_points_may_be_put_in_another_order(monkeypatch, method, shape):
    """As they are where vectors are long. Nothing of it shows."""
    monkeypatch.setattr(importlib.import_module("otbilevel.ot.sparse_cost"), "LONG", 1)
    a, b, C, pairs = problem(shape, 3)
    reg, highs = ({}, {"solver": "highs"}) if method == "exact" else ({"reg": 0.02}, None)
    got = solve_ot(a, b, pairs, method=method, tol=1e-11, **reg)
    want = solve_ot(a, b, C, method=method, tol=1e-11, options=highs, **reg)
    agree(got, want, a, b, 1e-8)
    if method != "exact":
        check_ot_result(got, a, b, C, tol=1e-11)
        assert solve_ot(a, b, pairs, method=method, init=got, **reg).nsweep <= 3


def test_neighbours_are_put_together():
    cost = SparseCost(neighbours(40_000, 3)[0])
    rows, columns = cost.local_order()
    assert sorted(rows) == sorted(columns) == list(range(40_000))
    i, j, _ = cost.restrict(rows, columns).pairs()
    before = cost.pairs()
    assert np.abs(i - j).mean() < 0.1 * np.abs(before[0] - before[1]).mean()
    assert SparseCost(neighbours(100, 3)[0]).local_order() is None


# The geometry


FORMATS = ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"]


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("form", FORMATS)
def test_every_format(form, kind):
    _, _, C, pairs = problem((9, 9))
    if form in ("lil", "dok", "bsr"):  # these store no zeros, or blocks of them
        pairs.data = pairs.data + 1.0
        C = C + 1.0
    given = sparse.csr_matrix(pairs) if kind == "matrix" else pairs
    if form == "bsr":
        given = given.tobsr(blocksize=(1, 1))
    elif form != "dia":
        given = given.asformat(form)
    else:
        diagonals = np.array([[0.0, 2.0, 0.0], [9.0, 1.0, 0.0]])
        given = getattr(sparse, f"dia_{kind}")((diagonals, [0, 1]), shape=(3, 3))
        C = np.array([[0.0, 1.0, np.inf], [np.inf, 2.0, 0.0], [np.inf, np.inf, 0.0]])
    before = given.copy()
    np.testing.assert_array_equal(SparseCost(given).to_dense().matrix, C)
    assert (before != given).nnz == 0


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint16, np.int64, np.float32, np.float64, np.longdouble])
def test_every_dtype(dtype):
    values = np.array([1, 0, 1, 1], dtype)
    C = sparse.csr_array((values, ([0, 0, 1, 2], [0, 1, 1, 0])))
    cost = SparseCost(C)
    assert cost.dtype == (np.float32 if dtype is np.float32 else np.float64)
    result = solve_ot(None, None, C, reg=0.5)
    assert result.f.dtype == result.plan.dtype == result.sparse_plan.dtype == cost.dtype
    np.testing.assert_allclose(cost.rows(0, 3), [[1, 0], [np.inf, 1], [1, np.inf]])


def test_single_precision():
    a, b, C, pairs = problem((14, 8))
    a, b, C = (v.astype(np.float32) for v in (a, b, C))
    check_ot_result(solve_ot(a, b, pairs.astype(np.float32), reg=0.05), a, b, C, tol=1e-5)
    assert solve_ot(a, b, pairs, reg=0.05).f.dtype == np.float64


def test_unsorted_columns_and_stored_infinities():
    C = sparse.csr_array((np.array([3.0, 1.0, np.inf, 2.0]), np.array([2, 0, 1, 1]), np.array([0, 3, 4])), shape=(2, 3))
    cost = SparseCost(C)
    np.testing.assert_array_equal(cost.rows(0, 2), [[1, np.inf, 3], [np.inf, 2, np.inf]])
    assert [x.tolist() for x in cost.pairs()] == [[0, 0, 1], [0, 2, 1], [1.0, 3.0, 2.0]]
    assert cost.bounds == (1.0, 3.0)
    assert C.indices.tolist() == [2, 0, 1, 1]


def test_the_users_numbers_are_copied():
    a, b, _, pairs = problem((9, 9))
    cost = SparseCost(pairs)
    result = solve_ot(a, b, cost, reg=0.1)
    before = pairs.copy()
    value = solve_ot(a, b, cost, reg=0.1).value
    np.testing.assert_array_equal(pairs.data, before.data)
    pairs.data[:] = 7.0
    assert result.value == value


def test_parts_and_transposes():
    _, _, C, pairs = problem((14, 8))
    cost = SparseCost(pairs)
    rows, columns = np.array([0, 3, 4, 11]), np.array([1, 2, 7])
    np.testing.assert_array_equal(cost.transpose().rows(0, 8), C.T)
    np.testing.assert_array_equal(cost.restrict(rows, columns).rows(1, 4), C[np.ix_(rows, columns)][1:4])
    np.testing.assert_array_equal(cost.restrict(None, columns).transpose().rows(0, 3), C[:, columns].T)
    assert cost.restrict(None, None) is cost
    np.testing.assert_array_equal(cost.to_dense().matrix, C)
    empty = cost.restrict(np.array([1]), np.array([0]))
    assert empty.bounds == (np.inf, -np.inf)
    dense = DenseCost(C)
    for first, second in zip(cost.pairs(), dense.pairs(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_zero_weights_without_pairs():
    """Rows and columns that weigh nothing need none, and get the potential 0."""
    C = sparse.csr_array(([1.0, 2.0], ([0, 2], [1, 0])), shape=(3, 3))
    result = solve_ot([0.4, 0.0, 0.6], [0.6, 0.4, 0.0], C, reg=0.1)
    np.testing.assert_allclose(result.plan, [[0, 0.4, 0], [0, 0, 0], [0.6, 0, 0]], atol=1e-9)
    assert (result.f[1], result.g[2]) == (0.0, 0.0)
    exact = solve_ot([0.4, 0.0, 0.6], [0.6, 0.4, 0.0], C, method="exact")
    assert exact.value == pytest.approx(1.6)
    assert np.isfinite(exact.barycentric_map(np.arange(3.0))).all()


def test_pickling():
    a, b, _, pairs = problem((9, 9))
    result = solve_ot(a, b, pairs, reg=0.1)
    copy = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(copy.plan, result.plan)
    assert copy.gap == result.gap


# What is refused


def test_pairs_that_are_stored_twice():
    C = sparse.coo_array(([1.0, 2.0, 1.0, 5.0], ([0, 1, 0, 1], [1, 0, 1, 1])))
    for given in (C, sparse.csr_array((C.data, [1, 1, 0, 1], [0, 2, 4]), shape=(2, 2))):
        with pytest.raises(ValueError, match=r"^C stores the pair \(0, 1\) more than once.*sum_duplicates"):
            solve_ot(None, None, given)
    C.sum_duplicates()
    assert SparseCost(C).bounds == (2.0, 5.0)


@pytest.mark.parametrize(("bad", "name"), [(np.nan, "NaN"), (-np.inf, "-inf")])
def test_bad_numbers(bad, name):
    C = sparse.csr_array(([1.0, bad, 2.0, bad], ([0, 1, 1, 2], [1, 0, 2, 2])))
    with pytest.raises(ValueError, match=rf"^C holds 2 entries that are {name}, the first at \(1, 0\)"):
        SparseCost(C)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (np.ones((2, 2)), TypeError, "C must be a sparse array of SciPy, got ndarray"),
        (sparse.coo_array(np.ones(3)), ValueError, "C must be two-dimensional"),
        (sparse.csr_array((0, 3)), ValueError, "C is empty"),
        (sparse.csr_array(np.ones((2, 2)) * 1j), TypeError, "C must hold real numbers"),
    ],
)
def test_what_is_no_cost(given, error, words):
    with pytest.raises(error, match=words):
        SparseCost(given)


def test_other_libraries(make_backend):
    torch = make_backend("torch")
    with pytest.raises(TypeError, match=r"one library, got a: torch, C: numpy"):
        solve_ot(torch.asarray([0.5, 0.5]), None, sparse.csr_array(np.ones((2, 2))))


def test_costs_whose_range_overflows():
    C = sparse.csr_array(np.array([[1e308, -1e308], [1.0, 2.0]]))
    with pytest.raises(ValueError, match="overflows"):
        solve_ot(None, None, C, reg=1.0)


@pytest.mark.parametrize("method", [*ENTROPIC, "exact"])
def test_points_without_pairs_are_named(method):
    C = sparse.csr_array(([1.0, 2.0], ([0, 2], [1, 0])), shape=(3, 3))
    with pytest.raises(ValueError, match=r"row 1, but a\[1\] is positive"):
        solve_ot([0.3, 0.3, 0.4], None, C, method=method)
    with pytest.raises(ValueError, match=r"column 2, but b\[2\] is positive"):
        solve_ot([0.3, 0.0, 0.7], [0.5, 0.3, 0.2], C, method=method)
    with pytest.raises(ValueError, match="every pair of row 0"):
        solve_ot(None, None, sparse.csr_array((3, 3)), method=method)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(("kernels", "long"), [("", 1e9), ("generic", 1e9), ("", 1)])
def test_infeasible_patterns_name_a_cut(monkeypatch, kernels, long, dense, transpose):
    """Rows 3 and 8 hold 0.4 of the mass and share column 5, which holds 0.3; row 0 weighs nothing."""
    monkeypatch.setenv("OTBILEVEL_KERNELS", kernels)
    monkeypatch.setattr(importlib.import_module("otbilevel.ot.sparse_cost"), "LONG", long)
    a, b = np.full(10, 0.075), np.full(7, 0.7 / 6)
    a[[0, 3, 8]], b[5] = [0.0, 0.2, 0.2], 0.3
    a[a == 0.075] = 0.6 / 7
    C = np.ones((10, 7))
    C[np.ix_([3, 8], [0, 1, 2, 3, 4, 6])] = np.inf
    words = "rows [3, 8] with 0.4 of the mass may only reach column 5 with 0.3"
    if transpose:
        a, b, C = b, a, C.T
        words = "columns [3, 8] with 0.4 of the mass may only be reached from row 5 with 0.3"
    with pytest.raises(ValueError, match="leave no plan") as refused:
        solve_ot(a, b, C if dense else stored(C), reg=0.1)
    assert words in str(refused.value)


def test_a_long_cut_is_abridged():
    pairs = sparse.block_diag([sparse.csr_array(np.ones((30, 10))), sparse.csr_array(np.ones((30, 10)))], format="csr")
    a = np.concatenate([np.full(30, 2.0), np.full(30, 1.0)])
    with pytest.raises(
        ValueError, match=r"rows \[0, 1, 2, 3, 4, \.\.\.\] \(30 in all\) with 0\.666667 .* \(10 in all\) with 0\.5 of"
    ):
        solve_ot(a / 90, None, pairs, reg=0.1)


@pytest.mark.parametrize("kernels", [generic_pairs, fast])
def test_flows(kernels):
    """Conservation, and the value of the linear program; on top of a flow that is there already, too."""
    for seed in range(10):
        a, b, C, _ = problem((8, 11), seed, density=0.25, zeros=False)
        rng = np.random.default_rng(seed)
        a, b = rng.dirichlet(np.ones(8)), rng.dirichlet(np.ones(11))
        i, j = np.nonzero(np.isfinite(C))
        pattern = ActiveSet.of(i, j, C[i, j], C.shape)
        for start in (np.zeros(len(i)), 0.1 * rng.random(len(i))):
            flow, left, lacking = kernels.transport_flow(pattern, a, b, start)
            change = flow - start
            assert flow.min() >= 0
            np.testing.assert_allclose(np.bincount(i, change, 8) + left[:8], a, atol=1e-7)
            np.testing.assert_allclose(np.bincount(j, change, 11) - left[8:] + lacking, b, atol=1e-7)
            sums = np.concatenate([i == np.arange(8)[:, None], j == np.arange(11)[:, None]]).astype(float)
            bounds = [(-s, None) for s in start]
            # What may be moved: rows give at most a, and those that got something back give no more; columns take at most b.
            best = linprog(
                -np.ones(len(i)),
                A_ub=np.concatenate([sums, -sums]),
                b_ub=np.concatenate([a, b, np.zeros(8 + 11)]),
                bounds=bounds,
            )
            assert a.sum() - left.sum() == pytest.approx(-best.fun, abs=1e-7)
        nothing = kernels.transport_flow(pattern, 0 * a, 0 * b, start)
        np.testing.assert_array_equal(nothing[0], start)


# Kernels


APROX = [RIGID, (0.8, -np.inf, np.inf), (1.0, -0.1, 0.1)]
"""Of a fixed marginal, of one with a Kullback-Leibler price, and of total variation."""


@pytest.fixture(params=[1, 3])
def n_threads(request, force_threads):
    return force_threads(request.param)


def state(shape, seed=0):
    """A pattern, potentials near those of a plan, and weights."""
    rng = np.random.default_rng(seed)
    _, _, C, pairs = problem(shape, seed, zeros=False)
    cost = SparseCost(pairs).kernel_cost
    a, g, reg = rng.dirichlet(np.ones(shape[0])), 0.3 * rng.standard_normal(shape[1]), 0.07
    f, plan, *_ = generic_pairs.softmax_rows(cost, g, reg, a, None, None, single=False, relaxation=1.0)
    return C, cost, a, f + 0.02 * rng.standard_normal(shape[0]), g, reg, plan


@pytest.mark.parametrize("shape", [*SHAPES, (130, 70)])
@pytest.mark.parametrize("relaxation", [1.0, 1.6])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("price", APROX)
def test_softmax_rows(shape, relaxation, warm, price, n_threads):
    C, cost, a, f, g, reg, _ = state(shape)
    start = f if warm else None
    settings = {"single": False, "relaxation": relaxation, "aprox": price}
    got = fast.softmax_rows(cost, g, reg, a, start, fast.new_plan(shape, a, single=False), **settings)
    want = generic_pairs.softmax_rows(cost, g, reg, a, start, generic_pairs.new_plan(shape, a, single=False), **settings)
    dense = DenseCost(C)
    truth = dense.kernels.softmax_rows(dense.kernel_cost, g, reg, a, start, np.empty(shape), **settings)
    for x, y, z in zip(got, want, truth, strict=True):
        if isinstance(x, ActivePlan):
            np.testing.assert_allclose(x.values, y.values, rtol=1e-12, atol=1e-300)
            np.testing.assert_allclose(x.values, z[np.isfinite(C)], rtol=1e-12, atol=1e-300)
        else:
            np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(x, z, rtol=1e-12, atol=1e-14)


def test_a_single_plan_has_no_subnormal_entries():
    cost = SparseCost(sparse.csr_array(np.array([[1e-3, 88.0, 95.0, 200.0]]))).kernel_cost
    plan = fast.softmax_rows(
        cost, np.zeros(4), 1.0, np.ones(1), None, fast.new_plan((1, 4), np.ones(1), single=True), single=True, relaxation=1.0
    )[1]
    assert plan.values.dtype == np.float32
    np.testing.assert_array_equal(plan.values, [1, 0, 0, 0])


@pytest.mark.parametrize("shape", [*SHAPES, (130, 70)])
def test_passes_over_a_stored_plan(shape, n_threads):
    _, _, a, f, g, reg, plan = state(shape)
    rng = np.random.default_rng(3)
    u, v, x = np.exp(0.1 * rng.standard_normal(shape[0])), np.exp(0.1 * rng.standard_normal(shape[1])), rng.standard_normal(len(g))
    for name, args in [
        *(("scaling_pass", (a, u, v, 1.0, f, reg, price)) for price in APROX),
        ("shift_pass", (a, 0.01 * x)),
        ("laplacian_product", (a, x)),
        ("plan_moments", (a, v)),
    ]:
        got, want = (getattr(kernels, name)(plan, *args) for kernels in (fast, generic_pairs))
        for first, second in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, want)), strict=True):
            np.testing.assert_allclose(first, second, rtol=1e-12, atol=1e-14)
    for squarings in (1, 2):
        copy = ActivePlan(plan.pattern, plan.values.copy())
        got, want = (k.sharpen(p, a, v, squarings) for k, p in ((fast, copy), (generic_pairs, plan)))
        np.testing.assert_allclose(got[0].values, want[0].values, rtol=1e-12, atol=1e-300)
        for first, second in zip(got[1:], want[1:], strict=True):
            np.testing.assert_allclose(first, second, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [*SHAPES, (130, 70)])
def test_figures_of_a_plan(shape, n_threads):
    _, cost, a, f, g, reg, _ = state(shape)
    v, w = np.random.default_rng(4).random((shape[1], 3)), np.random.default_rng(4).random((shape[0], 2))
    for name, args in {
        "plan_sums": (),
        "plan_rows": (0, shape[0]),
    }.items():
        got, want = (getattr(kernels, name)(cost, f, g, reg, a, *args) for kernels in (fast, generic_pairs))
        for first, second in zip(*((r if isinstance(r, tuple) else (r,)) for r in (got, want)), strict=True):
            np.testing.assert_allclose(first, second, rtol=1e-12, atol=1e-14)
    for vectors, axis in ((v, 1), (w, 0)):
        got, want = (kernels.plan_product(cost, f, g, reg, a, vectors, axis) for kernels in (fast, generic_pairs))
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(14, 8), (130, 70)])
def test_active_sets(shape, n_threads):
    """Those of the stored plan and of its potentials are the same pairs; none when they are too many to pay."""
    C, cost, a, _, g, reg, _ = state(shape)
    f, plan, *_ = fast.softmax_rows(cost, g, reg, a, None, fast.new_plan(shape, a, single=False), single=False, relaxation=1.0)
    u, v = np.full(shape[0], 2.0), np.full(shape[1], 0.5)
    kept = np.where(np.isfinite(C), f[:, None] + g[None, :] - C, -np.inf) > reg * np.log(0.2)
    for part in (
        fast.active_set(cost, plan, u, v, 0.2, np.inf),
        fast.lazy_active_set(cost, f, g, reg * np.log(0.2), np.inf),
    ):
        matrix = sparse.csr_array((part.values, part.indices.astype(np.int32), part.indptr), shape=part.shape)
        np.testing.assert_array_equal(matrix.toarray() > 0, kept & (C > 0))
        assert len(part.values) == kept.sum()
        np.testing.assert_array_equal(part.values, C[kept])
    assert fast.active_set(cost, plan, u, v, 0.2, kept.sum() - 1) is None
    assert fast.active_set(cost, plan, u, v, 0.0, np.inf) is None
    assert fast.lazy_active_set(cost, f, g, -np.inf, np.inf) is None


@pytest.mark.parametrize("method", [*ENTROPIC, "exact"])
def test_generic_kernels_solve_it_too(monkeypatch, method):
    a, b, C, pairs = problem((14, 8))
    reg = {} if method == "exact" else {"reg": 0.02}
    want = solve_ot(a, b, pairs, method=method, tol=1e-11, **reg)
    monkeypatch.setenv("OTBILEVEL_KERNELS", "generic")
    got = solve_ot(a, b, pairs, method=method, tol=1e-11, **reg)
    assert got._plan.problem.geometry.kernels is generic_pairs
    agree(got, want, a, b, 1e-8)
    if method != "exact":
        check_ot_result(got, a, b, C, tol=1e-11)
