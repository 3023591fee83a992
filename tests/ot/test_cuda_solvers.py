"""Whole solves with CuPy arrays, on a GPU or on a stand-in, against those with NumPy arrays: see `test_cuda.py`."""

import itertools
import warnings

import numpy as np
import pytest

from otbilevel import ConvergenceWarning, PointCloud, solve_ot, solve_ot_batch
from otbilevel._core.result import Status
from otbilevel.ot import PartialMass, reg_path
from otbilevel.testing import check_ot_result, count_waits
from otbilevel.testing.ot_problems import FAMILIES

pytestmark = pytest.mark.gpu

METHODS = ["sinkhorn", "sns", "auto"]


def problem(dtype="float64", zeros=False):
    rng = np.random.default_rng(0)
    a, b = rng.random(30) + 0.1, rng.random(45) + 0.1
    if zeros:
        a[[0, 7]], b[[3, 44]] = 0.0, 0.0
    x, y = rng.standard_normal((30, 3)), rng.standard_normal((45, 3))
    return [v.astype(dtype) for v in (a / a.sum(), b / b.sum(), x, y)]


def numbers(x):
    """A device array in host memory; nothing else is one."""
    assert type(x).__module__.split(".")[0] == "cupy", type(x)
    return x.get()


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("cost", ["dense", "sqeuclidean", "lazy"])
@pytest.mark.parametrize("method", METHODS)
def test_solvers_give_what_they_give_with_numpy(method, cost, dtype, zeros, cupy):
    a, b, x, y = problem(dtype, zeros)
    on_a, on_b, on_x, on_y = (cupy.asarray(v) for v in (a, b, x, y))
    geometry, device = PointCloud(x, y), PointCloud(on_x, on_y)
    reg, tol = 0.05 * geometry.bounds[1], 1e-9 if dtype == "float64" else 1e-5
    settings = {"reg": reg, "method": method, "options": {"memory": 0} if cost == "lazy" else None}
    if cost == "dense":
        geometry, device = geometry.to_dense(), cupy.asarray(geometry.to_dense().matrix)
    result, want = solve_ot(on_a, on_b, device, **settings), solve_ot(a, b, geometry, **settings)
    assert result.success and want.success
    assert numbers(result.f).dtype == dtype
    for got, expected in zip(result.potentials, want.potentials, strict=True):
        np.testing.assert_allclose(numbers(got), expected, atol=200 * tol * reg, rtol=1e-6 if dtype == "float32" else 1e-9)
    np.testing.assert_allclose(numbers(result.plan), want.plan, atol=2 * tol, rtol=1e-6 if dtype == "float32" else 1e-9)
    for name in ("value", "value_linear", "dual_value", "gap_exact"):
        assert getattr(result, name) == pytest.approx(getattr(want, name), rel=1e-6, abs=10 * tol * geometry.bounds[1])
    assert 0 <= result.gap < 10 * tol * geometry.bounds[1]
    for axis, v in ((1, b), (0, a)):
        product = numbers(result.apply(cupy.asarray(v), axis))
        np.testing.assert_allclose(product, want.apply(v, axis), atol=2 * tol, rtol=1e-6)
    np.testing.assert_allclose(
        numbers(result.barycentric_map(on_y)), want.barycentric_map(y), atol=1e-4 if zeros else 1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("cost", ["euclidean", "cityblock", "cosine"])
def test_other_costs_between_points(cost, cupy):
    a, b, x, y = problem()
    reg = 0.02 * PointCloud(x, y, cost=cost).bounds[1]
    want = solve_ot(a, b, PointCloud(x, y, cost=cost), reg=reg)
    for memory in (0, 2**30):
        result = solve_ot(
            *map(cupy.asarray, (a, b)), PointCloud(*map(cupy.asarray, (x, y)), cost=cost), reg=reg, options={"memory": memory}
        )
        assert result.success
        np.testing.assert_allclose(numbers(result.plan), want.plan, atol=1e-9)


@pytest.mark.parametrize(("family", "reg"), [("assignment", 1e-3), ("cloud-10d", 3e-4)])
def test_small_regularisation_by_active_sets(family, reg, cupy, monkeypatch):
    """Down to where few pairs carry the mass and steps are taken on these."""
    from otbilevel.ot.stored_plan import StoredPlan

    made = []
    monkeypatch.setattr("otbilevel.ot.sns.SMALL", 0)
    restrict = StoredPlan.on
    monkeypatch.setattr(StoredPlan, "on", lambda active, plan: made.append(active.values.shape[0]) or restrict(active, plan))
    known = FAMILIES[family](120, 0)
    C, options = cupy.asarray(known.C), {"active_density": 0.3}
    result = solve_ot(cupy.asarray(known.a), cupy.asarray(known.b), C, reg=reg, method="sns", options=options)
    assert result.success and made
    want = solve_ot(known.a, known.b, known.C, reg=reg, method="sns", options=options)
    assert result.value == pytest.approx(want.value, rel=1e-9)
    np.testing.assert_allclose(numbers(result.plan), want.plan, atol=2e-9)


def test_over_relaxation_starts_and_paths(cupy):
    a, b, x, y = problem()
    C = ((x[:, None] - y) ** 2).sum(-1)
    on_a, on_b, on_c = (cupy.asarray(v) for v in (a, b, C))
    relaxed = solve_ot(on_a, on_b, on_c, reg=0.5, method="sinkhorn", options={"relaxation": 1.5})
    plain = solve_ot(on_a, on_b, on_c, reg=0.5, method="sinkhorn")
    assert relaxed.success and relaxed.nit < plain.nit
    again = solve_ot(on_a, on_b, on_c, reg=0.5, method="sinkhorn", init=plain)
    assert again.nit <= 2
    results = reg_path(on_a, on_b, on_c, [0.5, 0.1])
    np.testing.assert_allclose(numbers(results[0].plan), numbers(plain.plan), atol=1e-8)


def test_one_point_and_no_column_to_spare(cupy):
    for shape in ((1, 1), (1, 40), (40, 1)):
        result = solve_ot(None, None, cupy.asarray(np.random.default_rng(1).random(shape)), reg=0.1)
        assert result.success
        np.testing.assert_allclose(numbers(result.plan), np.full(shape, 1 / max(shape)), atol=1e-12)


def test_what_comes_in_is_not_changed_and_may_have_any_layout(cupy):
    a, b, x, y = problem()
    C = ((x[:, None] - y) ** 2).sum(-1)
    want = solve_ot(a, b, C, reg=0.5).plan
    strided = cupy.asarray(np.repeat(C, 2, axis=1))[:, ::2]
    for on_c in (cupy.asarray(C), cupy.asarray(np.asfortranarray(C)), cupy.asarray(C.T.copy()).T, strided):
        before = on_c.copy()
        result = solve_ot(cupy.asarray(a), cupy.asarray(b), on_c, reg=0.5)
        np.testing.assert_allclose(numbers(result.plan), want, atol=1e-9)
        assert bool((on_c == before).all())


def test_numpy_and_cupy_do_not_mix(cupy):
    a, b, x, y = problem()
    with pytest.raises(TypeError, match="one library"):
        solve_ot(a, b, PointCloud(cupy.asarray(x), cupy.asarray(y)), reg=0.5)
    with pytest.raises(TypeError, match="one library"):
        PointCloud(cupy.asarray(x), y)


def forbidding(slack=None):
    """Weights and costs with some pairs forbidden; with a slack, nine columns hold that much more than all rows that reach them."""
    rng = np.random.default_rng(0)
    a, b, C = rng.dirichlet(np.ones(14)), rng.dirichlet(np.ones(18)), rng.random((14, 18))
    C[rng.random(C.shape) < 0.3] = np.inf
    C[np.arange(18) % 14, np.arange(18)] = 0.5
    if slack is not None:
        C[5:, :9], C[:5, 9:] = np.inf, 0.5
        a = np.concatenate([a[:5] / a[:5].sum() * (0.4 - slack), a[5:] / a[5:].sum() * (0.6 + slack)])
        b = np.concatenate([b[:9] / b[:9].sum() * 0.4, b[9:] / b[9:].sum() * 0.6])
    return a, b, C


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("reg", [500.0, 0.05])
@pytest.mark.parametrize("method", METHODS)
def test_forbidden_pairs(method, reg, zeros, cupy):
    a, b, C = forbidding()
    if zeros:
        a[[0, 6]], b[17] = 0.0, 0.0
        a, b, C[0] = a / a.sum(), b / b.sum(), np.inf
    result, want = solve_ot(*map(cupy.asarray, (a, b, C)), reg=reg, method=method), solve_ot(a, b, C, reg=reg, method=method)
    assert result.success and want.success
    np.testing.assert_allclose(numbers(result.plan), want.plan, atol=3e-9)
    assert np.all(numbers(result.plan)[np.isinf(C)] == 0)
    for name in ("value", "value_linear", "dual_value"):
        assert getattr(result, name) == pytest.approx(getattr(want, name), abs=1e-8 * max(1.0, reg))
    unbalanced = solve_ot(*map(cupy.asarray, (a, b, C)), reg=reg, method=method, unbalanced=1.0)
    same = solve_ot(a, b, C, reg=reg, method=method, unbalanced=1.0)
    assert unbalanced.success and unbalanced.value == pytest.approx(same.value, abs=1e-8 * max(1.0, reg))


def test_stacks_with_forbidden_pairs(cupy):
    feasible, infeasible = forbidding(), forbidding(0.1)
    stack = [np.stack(parts) for parts in zip(feasible, infeasible, strict=True)]
    with pytest.warns(ConvergenceWarning, match="problems \\(1\\) .* forbidden pairs of C may leave no plan"):
        result = solve_ot_batch(*map(cupy.asarray, stack), reg=0.1)
    assert result.statuses.get().tolist() == [Status.SUCCESS, Status.INFEASIBLE]
    np.testing.assert_allclose(result.value.get()[0], solve_ot(*feasible, reg=0.1).value, atol=1e-8)


def test_what_takes_a_flow_beside_forbidden_pairs_says_so(cupy):
    a, b, C = forbidding()
    on = [cupy.asarray(v) for v in (a, b, C)]
    result = solve_ot(*on, reg=0.05)
    for name in ("gap", "gap_exact"):
        with pytest.raises(TypeError, match=r"gap and gap_exact beside forbidden pairs.*host memory.*init"):
            getattr(result, name)
    with pytest.raises(TypeError, match="host memory"):
        _ = result.sparse_plan
    with pytest.raises(TypeError, match=r"PartialMass beside forbidden pairs.*host memory"):
        solve_ot(*on, reg=0.05, unbalanced=PartialMass(0.5))
    here = solve_ot(a, b, C, reg=0.05, init=(result.f.get(), result.g.get()))
    assert here.success and 0 <= here.gap < 1e-8


def test_points_without_an_allowed_pair_are_named(cupy):
    a, b, C = forbidding()
    row, column = C.copy(), C.copy()
    row[3], column[:, 7] = np.inf, np.inf
    for cost, name in ((row, r"row 3, but a\[3\]"), (column, r"column 7, but b\[7\]")):
        for dropped in ([], [1]):
            weights = a.copy(), b.copy()
            for w in weights:
                w[dropped] = 0.0
            with pytest.raises(ValueError, match=f"C forbids every pair of {name} is positive"):
                solve_ot(*(cupy.asarray(w / w.sum()) for w in weights), cupy.asarray(cost), reg=0.1)


@pytest.mark.parametrize("slack", [0.1, 1e-3])
@pytest.mark.parametrize("method", ["sinkhorn", "sns"])
def test_forbidden_pairs_without_a_plan_are_told_from_the_potentials(method, slack, cupy):
    a, b, C = forbidding(slack)
    with pytest.raises(ValueError, match="leave no plan"):
        solve_ot(a, b, C, reg=0.1, method=method)
    on = [cupy.asarray(v) for v in (a, b, C)]
    proof = rf"infeasible: .* 9 columns with 0.4 of the mass may only be reached from 5 rows with {0.4 - slack:.6g} of it"
    with pytest.warns(ConvergenceWarning, match=proof):
        result = solve_ot(*on, reg=0.1, method=method, max_iter=600)
    assert result.status is Status.INFEASIBLE and not result.success
    assert result.marginal_error >= 2 * slack * (1 - 1e-9)
    with pytest.warns(ConvergenceWarning, match="forbidden pairs of C may leave no plan.*host memory"):
        early = solve_ot(*on, reg=0.1, method=method, max_iter=2)  # when potentials have not run away yet
    assert early.status is Status.ITERATION_LIMIT
    assert solve_ot(*on, reg=0.1, method=method, tol=3 * slack, max_iter=600).success  # a plan up to the tolerance


@pytest.mark.parametrize("relaxation", [1.0, 1.4])
@pytest.mark.parametrize(("reg", "max_iter"), [(0.02, 1000), (1e-5, 67)])
def test_iterations_that_the_host_does_not_look_at_are_those_of_numpy(reg, max_iter, relaxation, cupy):
    """The same number with the same errors, to the end and to the limit; in the second case with several absorptions."""
    known = FAMILIES["assignment"](40, 0)
    given = known.a, known.b, known.C
    settings = {"reg": reg, "method": "sinkhorn", "max_iter": max_iter, "options": {"relaxation": relaxation}, "tol": 1e-7}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result, want = solve_ot(*map(cupy.asarray, given), **settings), solve_ot(*given, **settings)
    assert result.success == want.success == (max_iter == 1000)
    for name in ("status", "nit", "nsweep", "nproduct"):
        assert getattr(result, name) == getattr(want, name), name
    assert want.nsweep == 3 or max_iter == 67
    np.testing.assert_allclose(result.history["marginal_error"], want.history["marginal_error"], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(numbers(result.g), want.g, rtol=1e-9, atol=1e-9 * reg)


def test_a_callback_sees_every_iteration(cupy):
    known, seen = FAMILIES["cloud-2d"](40, 0), []
    on = [cupy.asarray(v) for v in (known.a, known.b, known.C)]

    def look(now):
        seen.append((now.nit, now.marginal_error, numbers(now.g).copy()))
        if now.nit == 14:
            raise StopIteration

    result = solve_ot(*on, reg=0.02, method="sinkhorn", callback=look)
    assert result.status is Status.CALLBACK_STOP
    assert [nit for nit, _, _ in seen] == list(range(1, 15))
    np.testing.assert_array_equal(result.history["marginal_error"], [error for _, error, _ in seen])
    assert all(np.ptp(one[2] - other[2]) > 0 for one, other in itertools.pairwise(seen))


@pytest.mark.parametrize("relaxation", [1.0, 1.4])
def test_sinkhorn_is_looked_at_every_tenth_iteration(relaxation, cupy):
    if cupy.__version__ != "0+stand.in":
        pytest.skip("only the stand-in counts")
    known, waits = FAMILIES["cloud-2d"](40, 0), {}
    on = [cupy.asarray(v) for v in (known.a, known.b, known.C)]
    for max_iter in (11, 111):  # the sweep before the first pass is one
        with count_waits() as count, warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            result = solve_ot(*on, reg=5e-3, method="sinkhorn", max_iter=max_iter, options={"relaxation": relaxation}, tol=0.0)
            waits[max_iter] = count()
        assert result.nit == len(result.history["marginal_error"]) == max_iter
    assert waits[111] - waits[11] == 10


@pytest.mark.parametrize(("method", "unbalanced", "most"), [("sinkhorn", None, 0.2), ("sinkhorn", 1.0, 4.0), ("sns", None, 6.0)])
def test_the_host_waits_rarely(method, unbalanced, most, cupy):
    """Beyond what checking the input takes: once in ten iterations, with a price in each, and a few times a step of Newton's."""
    if cupy.__version__ != "0+stand.in":
        pytest.skip("only the stand-in counts")
    known = FAMILIES["cloud-2d"](60, 0)
    on = [cupy.asarray(v) for v in (known.a, known.b, known.C)]
    waits = {}
    for tol in (1e-2, 1e-6):
        with count_waits() as count:
            result = solve_ot(*on, reg=0.02, method=method, tol=tol, unbalanced=unbalanced)
            waits[tol] = count(), result.nit
    (fewer, short), (more, long) = waits.values()
    assert long > short
    assert more - fewer <= most * (long - short) + 5


def test_results_satisfy_the_laws(cupy):
    a, b, x, y = problem()
    C = ((x[:, None] - y) ** 2).sum(-1)
    result = solve_ot(*(cupy.asarray(v) for v in (a, b, C)), reg=0.05)
    check_ot_result(solve_ot(a, b, C, reg=0.05, init=tuple(v.get() for v in result.potentials)), a, b, C, tol=1e-9)
    marginals = [numbers(v) for v in result.marginals]
    assert np.abs(marginals[0] - a).sum() + np.abs(marginals[1] - b).sum() == pytest.approx(result.marginal_error, rel=1e-3)
