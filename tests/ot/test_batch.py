"""Many problems at once: the same as one by one, on every library; and what is refused."""

import math
import warnings

import numpy as np
import pytest

from otbilevel import ConvergenceError, ConvergenceWarning, OTBatchResult, PointCloud, Status, solve_ot, solve_ot_batch
from otbilevel.testing.ot_laws import check_ot_result

INF, NAN = math.inf, math.nan


def problems(count=7, n=12, m=9, seed=0, *, zeros=True):
    """Random costs and uneven weights, some of them zero."""
    rng = np.random.default_rng(seed)
    a, b = rng.dirichlet(np.full(n, 0.7), count) + 1e-5, rng.dirichlet(np.full(m, 0.7), count) + 1e-5
    if zeros:
        a[0, 2] = a[3, :4] = b[1, -1] = b[3, 0] = 0.0
    return a / a.sum(1, keepdims=True), b / b.sum(1, keepdims=True), rng.random((count, n, m))


def check_against_single(result, a, b, C, reg, backend=None, atol=1e-8):
    """Every field, problem by problem."""
    numbers = (lambda x: np.asarray(x)) if backend is None else backend.to_numpy
    assert result.success, result.message
    plan, f, g = numbers(result.plan), numbers(result.f), numbers(result.g)
    figures = {name: np.array([float(v) for v in getattr(result, name)]) for name in ("value", "value_linear", "dual_value")}
    for k in range(len(result)):
        single = solve_ot(a[k], b[k], C[k], reg=reg[k])
        np.testing.assert_allclose(plan[k], single.plan, atol=atol)
        np.testing.assert_allclose(f[k], single.f, atol=1e2 * atol)
        np.testing.assert_allclose(g[k], single.g, atol=1e2 * atol)
        for name, values in figures.items():
            assert values[k] == pytest.approx(getattr(single, name), abs=10 * atol), name


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 10, 20])
@pytest.mark.parametrize("reg", [1e-2, 1e-4])
def test_the_iteration_limit_holds_in_each_problem(reg, limit):
    rng = np.random.default_rng(0)
    a, b, C = rng.dirichlet(np.full(16, 0.3), 20), rng.dirichlet(np.full(16, 0.3), 20), rng.random((20, 16, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = solve_ot_batch(a, b, C, reg=reg, max_iter=limit)
    assert result.nit.max() <= limit and np.all(np.isfinite(result.plan))
    assert np.all(result.converged == (result.marginal_error <= 1e-9))
    assert np.all(result.statuses[~result.converged] == int(Status.ITERATION_LIMIT))


@pytest.mark.parametrize("reg", [1.0, 0.1, 0.01, 1e-3])
def test_as_one_by_one(device_backend, dtype, reg):
    a, b, C = problems()
    if dtype == "float32":
        reg = max(reg, 0.01)
    arrays = [device_backend.asarray(v, dtype) for v in (a, b, C)]
    result = solve_ot_batch(*arrays, reg=reg)
    assert device_backend.owns(result.plan) and device_backend.owns(result.f) and device_backend.owns(result.value)
    assert device_backend.dtype_name(result.plan) == device_backend.dtype_name(result.g) == dtype
    assert (len(result), result.plan.shape, result.f.shape, result.g.shape) == (7, (7, 12, 9), (7, 12), (7, 9))
    check_against_single(result, a, b, C, np.full(7, reg), device_backend, 1e-8 if dtype == "float64" else 1e-4)


@pytest.mark.parametrize("family", ["random", "cloud", "ties"])
@pytest.mark.parametrize("reg", [1e-2, 1e-3, 1e-4])
def test_hard_problems(family, reg):
    rng = np.random.default_rng(1)
    count, n, m = 20, 40, 30
    if family == "cloud":
        x, y = rng.random((count, n, 1, 2)), rng.random((count, 1, m, 2)) + 0.2
        C = ((x - y) ** 2).sum(-1) / 3
    else:
        C = rng.random((count, n, m)) if family == "random" else rng.integers(0, 5, (count, n, m)) / 4
    a, b = rng.dirichlet(np.full(n, 0.5), count), rng.dirichlet(np.full(m, 0.5), count)
    result = solve_ot_batch(a, b, C, reg=reg)
    assert result.success, result.message
    plan = result.plan
    error = np.abs(plan.sum(2) - a).sum(1) + np.abs(plan.sum(1) - b).sum(1)
    assert error.max() < 2e-9
    assert np.abs(np.asarray(result.value) - np.asarray(result.dual_value)).max() < 1e-8


def test_the_generic_solver_at_small_reg(monkeypatch):
    monkeypatch.setenv("OTBILEVEL_KERNELS", "generic")
    a, b, C = problems(6, 15, 12, seed=3)
    result = solve_ot_batch(a, b, C, reg=1e-3)
    check_against_single(result, a, b, C, np.full(6, 1e-3))
    assert result.n_single < 3


def test_shapes_of_the_input():
    a, b, C = problems()
    check_against_single(solve_ot_batch(a, b, C[0], reg=0.05), a, b, np.broadcast_to(C[:1], C.shape), np.full(7, 0.05))
    check_against_single(solve_ot_batch(a[0], b[1], C, reg=0.05), a[[0] * 7], b[[1] * 7], C, np.full(7, 0.05))
    uniform = solve_ot_batch(None, b, C, reg=0.05)
    check_against_single(uniform, np.full((7, 12), 1 / 12), b, C, np.full(7, 0.05))
    regs = np.geomspace(1e-3, 1.0, 7)
    check_against_single(solve_ot_batch(a, b, C, reg=regs), a, b, C, regs)
    check_against_single(solve_ot_batch(a, b, C, reg=list(regs)), a, b, C, regs)
    rng = np.random.default_rng(0)
    cloud = PointCloud(rng.random((12, 2)), rng.random((9, 2)))
    dense = np.broadcast_to(np.asarray(cloud.to_dense().matrix), C.shape)
    check_against_single(solve_ot_batch(a, b, cloud, reg=0.05), a, b, dense, np.full(7, 0.05))
    default = solve_ot_batch(a, b, C)
    np.testing.assert_allclose(default.reg, 1e-3 * (C.max((1, 2)) - C.min((1, 2))))
    lists = solve_ot_batch(a.tolist(), b.tolist(), C.tolist(), reg=0.05)
    np.testing.assert_array_equal(lists.plan, solve_ot_batch(a, b, C, reg=0.05).plan)


def test_masses():
    a, b, C = problems()
    mass = np.geomspace(1e-6, 1e6, 7)
    result = solve_ot_batch(mass[:, None] * a, mass[:, None] * b, C, reg=0.05)
    assert result.success
    np.testing.assert_allclose(result.plan.sum((1, 2)), mass, rtol=1e-9)
    for k in (0, 3, 6):
        single = solve_ot(mass[k] * a[k], mass[k] * b[k], C[k], reg=0.05)
        assert result.value[k] == pytest.approx(single.value, rel=1e-8)
        assert result.dual_value[k] == pytest.approx(single.dual_value, rel=1e-8)
        np.testing.assert_allclose(result.f[k], single.f, atol=1e-7)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 5), (3, 5, 1), (1, 6, 4)])
def test_small_shapes(shape):
    rng = np.random.default_rng(0)
    C, a, b = rng.random(shape), rng.dirichlet(np.ones(shape[1]), shape[0]), rng.dirichlet(np.ones(shape[2]), shape[0])
    check_against_single(solve_ot_batch(a, b, C, reg=0.1), a, b, C, np.full(shape[0], 0.1))


def test_forbidden_pairs():
    a, b, C = problems(zeros=False)
    a, b = a + 0.05, b + 0.05
    a, b = a / a.sum(1, keepdims=True), b / b.sum(1, keepdims=True)
    C[2, 0, :4] = C[5, 3, 1] = INF
    result = solve_ot_batch(a, b, C, reg=0.05)
    assert result.success and np.all(result.plan[np.isinf(C)] == 0.0)
    np.testing.assert_allclose(result.plan[2], solve_ot(a[2], b[2], C[2], reg=0.05).plan, atol=1e-8)
    C[4, 1, :] = INF
    with pytest.raises(ValueError, match="problem 4: infeasible: C forbids every pair of row 1"):
        solve_ot_batch(a, b, C, reg=0.05)


def test_one_of_them_is_a_result_of_its_own():
    a, b, C = problems()
    result = solve_ot_batch(2.0 * a, 2.0 * b, C, reg=0.05)
    for k in (0, 3, -1):
        check_ot_result(result[k], 2.0 * a[k], 2.0 * b[k], C[k], tol=1e-9)
        assert result[k].nit == result.nit[k]
    with pytest.raises(IndexError, match="7 problems"):
        result[7]
    with pytest.raises(TypeError, match="number"):
        result["first"]
    assert "problems" in repr(result)


def test_a_warm_start():
    a, b, C = problems(20, 30, 25)
    cold = solve_ot_batch(a, b, C, reg=1e-3)
    for init in (cold, (cold.f, cold.g)):
        warm = solve_ot_batch(a, b, C, reg=1e-3, init=init)
        assert warm.success and warm.nit.max() <= 2
        np.testing.assert_allclose(warm.plan, cold.plan, atol=1e-9)
    far = solve_ot_batch(a, b, C, reg=1e-3, init=(cold.f, 1e3 * np.random.default_rng(0).random(cold.g.shape)))
    assert far.success
    np.testing.assert_allclose(far.plan, cold.plan, atol=1e-8)


def test_threads_share_the_problems(force_threads):
    a, b, C = problems(50)
    one = solve_ot_batch(a, b, C, reg=0.01)
    force_threads(3)
    np.testing.assert_array_equal(solve_ot_batch(a, b, C, reg=0.01).plan, one.plan)


def test_input_is_not_changed():
    a, b, C = problems()
    copies = a.copy(), b.copy(), C.copy()
    for v in (a, b, C):
        v.flags.writeable = False
    solve_ot_batch(a, b, C, reg=0.05)
    for v, copy in zip((a, b, C), copies, strict=True):
        np.testing.assert_array_equal(v, copy)


def test_problems_that_stop_short_are_named():
    a, b, C = problems(20, 30, 25)
    with pytest.warns(ConvergenceWarning, match=r"20 of 20 problems \(0, 1, 2, 3, 4, \.\.\.\)"):
        result = solve_ot_batch(a, b, C, reg=1e-4, max_iter=2)
    assert not result.converged.any() and result.status is Status.ITERATION_LIMIT
    with pytest.raises(ConvergenceError) as failure:
        solve_ot_batch(a, b, C, reg=1e-4, max_iter=2, raise_on_failure=True)
    assert isinstance(failure.value.result, OTBatchResult)
    with pytest.warns(ConvergenceWarning, match=r"tol = 1e-30"):
        floor = solve_ot_batch(a[:2], b[:2], C[:2], reg=0.1, tol=1e-30)
    assert floor.n_single == 2 and np.all(floor.marginal_error < 1e-13)


A, B, COSTS = problems(4, 3, 2, zeros=False)


def replaced(values, index, value):
    copy = values.copy()
    copy[index] = value
    return copy


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"a": A[0], "b": B[0], "C": COSTS[0]}, ValueError, ["stack", "solve_ot"]),
        ({"a": A[:3]}, ValueError, ["a: 3", "C: 4"]),
        ({"a": np.zeros((0, 3)), "b": None, "C": COSTS[0]}, ValueError, ["a: 0"]),
        ({"a": A[None]}, ValueError, ["a must have shape", "(1, 4, 3)"]),
        ({"b": A}, ValueError, ["b has 3", "2 columns"]),
        ({"C": COSTS[None]}, ValueError, ["C must have shape", "(1, 4, 3, 2)"]),
        ({"C": np.zeros((4, 0, 2))}, ValueError, ["C must have shape", "(4, 0, 2)"]),
        ({"C": replaced(COSTS, (2, 1, 0), NAN)}, ValueError, ["C", "NaN", "problem 2", "(1, 0)"]),
        ({"C": replaced(COSTS, (3, 0, 1), -INF)}, ValueError, ["C", "-inf", "problem 3"]),
        ({"a": replaced(A, (2, 1), -0.1)}, ValueError, ["a[2, 1]", "negative"]),
        ({"b": replaced(B, (1, 0), NAN)}, ValueError, ["b[1, 0]", "finite"]),
        ({"b": replaced(B, (1,), 0.0)}, ValueError, ["b", "mass", "problem 1"]),
        ({"a": replaced(A, (1, 0), 5.0)}, ValueError, ["equal mass", "problem 1"]),
        ({"reg": 0.0}, ValueError, ["reg"]),
        ({"reg": [1.0, 1.0, -1.0, 1.0]}, ValueError, ["reg[2]"]),
        ({"reg": [1.0, 1.0]}, ValueError, ["reg", "(4,)", "(2,)"]),
        ({"reg": 1e-18}, ValueError, ["reg", "rounding"]),
        ({"reg": 5e-324}, ValueError, ["reg", "rounding"]),
        ({"C": replaced(COSTS, (3, 0, 1), 1e300), "reg": 1e-10}, ValueError, ["problem 3", "rounding"]),
        ({"C": np.where(np.median(COSTS) > COSTS, -1.6e308, 1.6e308)}, ValueError, ["problem 0", "overflows"]),
        ({"reg": "small"}, TypeError, ["reg"]),
        ({"tol": -1.0}, ValueError, ["tol"]),
        ({"max_iter": 0}, ValueError, ["max_iter"]),
        ({"init": 3}, TypeError, ["init"]),
        ({"init": (A, A)}, ValueError, ["init", "(4, 2)", "(4, 3)"]),
        ({"init": (A, replaced(B, (0, 0), NAN))}, ValueError, ["init", "finite"]),
        ({"raise_on_failure": 1}, TypeError, ["raise_on_failure"]),
    ],
)
def test_what_is_refused(changes, error, words):
    given = {"a": A, "b": B, "C": COSTS, "reg": 0.1} | changes
    with pytest.raises(error) as refused:
        solve_ot_batch(given.pop("a"), given.pop("b"), given.pop("C"), **given)
    assert all(word in str(refused.value) for word in words), str(refused.value)


def test_mixed_libraries_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="one library"):
        solve_ot_batch(A, B, torch.tensor(COSTS), reg=0.1)
