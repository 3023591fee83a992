"""Whole solves with CuPy arrays, on a GPU or on a stand-in, against those with NumPy arrays: see `test_cuda.py`."""

import itertools
import warnings

import numpy as np
import pytest

from otbilevel import ConvergenceWarning, DenseCost, PointCloud, solve_ot
from otbilevel._core.result import Status
from otbilevel.ot import reg_path
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


def test_forbidden_pairs_need_host_memory_and_say_so(cupy):
    """Whether a plan is feasible is a maximum flow, by SciPy: nothing is transferred silently."""
    C = cupy.asarray([[0.0, np.inf], [1.0, 0.0]])
    assert DenseCost(C).has_forbidden_pairs
    with pytest.raises(TypeError, match="host memory"):
        solve_ot(None, None, C, reg=0.1)


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


@pytest.mark.parametrize(("method", "most"), [("sinkhorn", 0.2), ("sns", 6.0)])
def test_the_host_waits_rarely(method, most, cupy):
    """Beyond what checking the input takes: once in ten iterations, and for Newton's method a few times a step."""
    if cupy.__version__ != "0+stand.in":
        pytest.skip("only the stand-in counts")
    known = FAMILIES["cloud-2d"](60, 0)
    on = [cupy.asarray(v) for v in (known.a, known.b, known.C)]
    waits = {}
    for tol in (1e-2, 1e-6):
        with count_waits() as count:
            result = solve_ot(*on, reg=0.02, method=method, tol=tol)
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
