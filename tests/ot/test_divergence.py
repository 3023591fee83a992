"""The Sinkhorn divergence: its definition in plain NumPy, POT, laws, and derivatives."""

import warnings

import numpy as np
import pytest

from otbilevel import ConvergenceError, ConvergenceWarning, DenseCost, PointCloud, Status, solve_ot
from otbilevel.ot import sinkhorn_divergence

COSTS = PointCloud.COSTS


def clouds(n=30, m=20, d=2, seed=0, *, zeros=False):
    rng = np.random.default_rng(seed)
    x, y = rng.random((n, d)), rng.random((m, d)) + 0.2
    a, b = rng.uniform(0.5, 1.5, n), rng.uniform(0.5, 1.5, m)
    if zeros:
        a[[0, 7]], b[3] = 0.0, 0.0
    return a / a.sum(), b / b.sum(), x, y


def dense(x, y, cost="sqeuclidean"):
    return PointCloud(x, y, cost=cost).to_dense().matrix


def value_by_iteration(a, b, C, reg):
    """Of entropic transport, by Sinkhorn's iteration in the log domain from both sides, to convergence."""
    C, a, b = C[a > 0][:, b > 0], a[a > 0], b[b > 0]
    f, g = np.zeros(len(a)), np.zeros(len(b))
    for _ in range(20_000):
        f = -reg * np.log(np.exp((g - C) / reg) @ b)
        g = -reg * np.log(a @ np.exp((f[:, None] - C) / reg))
        plan = a[:, None] * b * np.exp((f[:, None] + g - C) / reg)
        if np.abs(plan.sum(1) - a).sum() < 1e-13:
            break
    mass = a.sum()
    return a @ f + b @ g - reg * (plan.sum() - mass * b.sum())


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("reg", [1.0, 0.05])
@pytest.mark.parametrize("cost", COSTS)
def test_the_definition(cost, reg, zeros):
    a, b, x, y = clouds(zeros=zeros)
    result = sinkhorn_divergence(a, b, x, y, reg=reg, cost=cost)
    parts = [value_by_iteration(*w, dense(*p, cost), reg) for w, p in (((a, b), (x, y)), ((a, a), (x, x)), ((b, b), (y, y)))]
    assert result.value == pytest.approx(parts[0] - 0.5 * (parts[1] + parts[2]), abs=1e-9)
    assert result.success and result.marginal_error <= 1e-9
    for part, expected in zip((result.result_ab, result.result_aa, result.result_bb), parts, strict=True):
        assert part.value == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("blur", [1.0, 0.3, 0.1])
def test_pot_combines_transport_costs(blur):
    ot = pytest.importorskip("ot")
    a, b, x, y = clouds()
    reg = 2 * blur**2
    expected = ot.bregman.empirical_sinkhorn_divergence(x, y, reg, a=a, b=b, numIterMax=100_000, stopThr=1e-12)
    result = sinkhorn_divergence(a, b, x, y, reg=reg)
    assert max(result.value_linear, 0.0) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("reg", [10.0, 0.1, 1e-3, 1e-4])
@pytest.mark.parametrize("cost", COSTS)
def test_the_problem_of_a_measure_with_itself(cost, reg):
    """Few sweeps at any reg; potentials are equal, and those of the general method."""
    a, _, x, _ = clouds(80)
    result = sinkhorn_divergence(a, a, x, x + 1.0, reg=reg, cost=cost).result_aa
    np.testing.assert_allclose(result.f, result.g, atol=1e-13)
    assert result.success and result.method == "symmetric" and result.nit < 30
    general = solve_ot(a, a, dense(x, x, cost), reg=reg, max_iter=100_000)
    if general.success and reg > 1e-3:
        np.testing.assert_allclose(result.f, general.f, atol=1e-6)
    assert result.dual_value == pytest.approx(general.dual_value, abs=1e-9)


def test_a_cost_without_a_positive_definite_kernel():
    """The far pairs of a bipartite cost are the cheap ones: the averaged iteration then may stall, and the general method helps."""
    rng = np.random.default_rng(0)
    noise = rng.random((12, 12))
    cost = np.ones((12, 12)) + 0.1 * (noise + noise.T)
    cost[:6, :6] += 5.0
    cost[6:, 6:] += 5.0
    a = np.full(12, 1 / 12)
    result = sinkhorn_divergence(a, a, reg=0.1, cost=(cost, cost, cost))
    assert result.success
    assert result.value == pytest.approx(0.0, abs=1e-9)
    assert result.result_aa.value == pytest.approx(value_by_iteration(a, a, cost, 0.1), abs=1e-9)


@pytest.mark.parametrize("reg", [100.0, 1.0, 1e-2, 1e-3])
@pytest.mark.parametrize("cost", COSTS)
def test_it_is_never_negative(cost, reg):
    a, _, x, y = clouds(25, 25)
    for shift in (0.0, 1e-6, 1e-3):
        result = sinkhorn_divergence(a, a, x, x + shift * (y - x), reg=reg, cost=cost)
        assert -1e-12 * (1 + reg) <= result.value
        if shift == 0.0:
            assert result.value <= 1e-9
            np.testing.assert_allclose(result.gradient().x, 0.0, atol=1e-7)


def test_translation_adds_its_square():
    a, _, x, _ = clouds()
    result = sinkhorn_divergence(a, a, x, x + np.array([1.0, 2.0]), reg=0.1)
    assert result.value == pytest.approx(5.0, abs=1e-9)


def test_symmetry_and_scaling():
    a, b, x, y = clouds()
    value = sinkhorn_divergence(a, b, x, y, reg=0.1).value
    assert sinkhorn_divergence(b, a, y, x, reg=0.1).value == pytest.approx(value, abs=1e-10)
    assert sinkhorn_divergence(a, b, 3 * x, 3 * y, reg=0.9).value == pytest.approx(9 * value, abs=1e-9)
    assert sinkhorn_divergence(2 * a, 2 * b, x, y, reg=0.1).value == pytest.approx(2 * value, abs=1e-9)


def test_three_costs_are_as_good_as_points():
    a, b, x, y = clouds()
    points = sinkhorn_divergence(a, b, x, y, reg=0.1)
    costs = sinkhorn_divergence(a, b, reg=0.1, cost=(dense(x, y), DenseCost(dense(x, x)), PointCloud(y)))
    assert costs.value == pytest.approx(points.value, abs=1e-12)
    gradient = costs.gradient()
    np.testing.assert_allclose(gradient.a, points.gradient().a, atol=1e-9)
    np.testing.assert_allclose(gradient.C, costs.result_ab.plan)
    with pytest.raises(ValueError, match="for points only"):
        costs.hvp(a=a)


def difference(function, data, direction, h=1e-4):
    def at(t):
        return function({name: v + t * direction.get(name, 0.0) for name, v in data.items()})

    return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)


def solved(data, cost):
    """With weights that are first scaled to their mean mass."""
    a, b = data["a"], data["b"]
    mass = (a.sum() + b.sum()) / 2
    a, b = a * mass / a.sum(), b * mass / b.sum()
    return sinkhorn_divergence(a, b, data["x"], data["y"], reg=float(data["reg"]), cost=cost, tol=1e-13)


@pytest.mark.filterwarnings("ignore::otbilevel.ConvergenceWarning")  # the tolerance is at the rounding floor
@pytest.mark.parametrize("cost", COSTS)
def test_derivatives(cost):
    a, b, x, y = clouds(6, 5, zeros=False)
    data = {"a": 1.7 * a, "b": 1.7 * b, "x": x, "y": y, "reg": np.asarray(0.3)}
    rng = np.random.default_rng(1)
    result = solved(data, cost)
    gradient = result.gradient()
    for name, value in data.items():
        direction = {name: rng.standard_normal(np.shape(value))}
        expected = difference(lambda d: solved(d, cost).value, data, direction)
        assert np.sum(getattr(gradient, name) * direction[name]) == pytest.approx(expected, abs=1e-8), name
    direction = {name: rng.standard_normal(np.shape(v)) for name, v in data.items()}
    direction["a"] -= a * (direction["a"].sum() - direction["b"].sum())
    change = result.hvp(**direction)
    f, g = rng.standard_normal(6), rng.standard_normal(5)
    pulled = result.vjp(f=f, g=g)
    for name in data:
        expected = difference(lambda d: getattr(solved(d, cost).gradient(), name), data, direction)  # noqa: B023
        np.testing.assert_allclose(getattr(change, name), expected, atol=1e-8, err_msg=name)
        one = {name: direction[name]}
        expected = difference(lambda d: f @ solved(d, cost).f + g @ solved(d, cost).g, data, one)
        assert np.sum(getattr(pulled, name) * one[name]) == pytest.approx(expected, abs=1e-7), name


def test_every_library(device_backend, dtype):
    a, b, x, y = clouds(zeros=True)
    result = sinkhorn_divergence(*(device_backend.asarray(v, dtype) for v in (a, b, x, y)), reg=0.1)
    expected = sinkhorn_divergence(a, b, x, y, reg=0.1)
    close = {"float64": 1e-9, "float32": 1e-4}[dtype]
    assert result.success and result.value == pytest.approx(expected.value, abs=close)
    for array, other in ((result.f, expected.f), (result.gradient().x, expected.gradient().x)):
        assert device_backend.owns(array) and device_backend.dtype_name(array) == dtype
        np.testing.assert_allclose(device_backend.to_numpy(array), other, atol=10 * close)


def test_uniform_weights_and_one_point():
    _, _, x, y = clouds()
    uniform = sinkhorn_divergence(None, None, x, y, reg=0.1).value
    assert uniform == pytest.approx(sinkhorn_divergence(np.full(30, 1 / 30), None, x, y, reg=0.1).value, abs=1e-12)
    assert sinkhorn_divergence(None, None, x[:1], y[:1], reg=0.1).value == pytest.approx(np.sum((x[0] - y[0]) ** 2), abs=1e-12)


def test_a_start_from_a_result():
    a, b, x, y = clouds(60, 50)
    before = sinkhorn_divergence(a, b, x, y, reg=1e-2)
    cold, warm = (sinkhorn_divergence(a, b, x + 1e-4, y, reg=1e-2, init=init) for init in (None, before))
    assert warm.value == pytest.approx(cold.value, abs=1e-10)
    for name in ("result_ab", "result_aa", "result_bb"):
        assert getattr(warm, name).nit < getattr(cold, name).nit
    for mass in (1.0, 3.0):
        before = sinkhorn_divergence(mass * a, mass * b, x, y, reg=1e-2)
        again = sinkhorn_divergence(mass * a, mass * b, x, y, reg=1e-2, init=before)
        assert again.result_aa.nit == 1 and again.result_ab.nsweep == 2


def test_a_start_that_is_not_finite_is_forgotten():
    a, b, x, y = clouds()
    before = sinkhorn_divergence(a, b, x, y, reg=1e-2)
    for result in (before.result_ab, before.result_aa, before.result_bb):
        result._plan.f[:], result._plan.g[:] = np.nan, np.nan
    assert sinkhorn_divergence(a, b, x, y, reg=1e-2, init=before).success


def test_it_says_when_it_stops_short():
    a, b, x, y = clouds()
    with pytest.warns(ConvergenceWarning, match="max_iter = 1") as caught:
        result = sinkhorn_divergence(a, b, x, y, reg=1e-3, max_iter=1)
    assert len(caught) == 1 and not result.success and result.status is Status.ITERATION_LIMIT
    with pytest.raises(ConvergenceError):
        sinkhorn_divergence(a, b, x, y, reg=1e-3, max_iter=1, raise_on_failure=True)
    assert "not converged" in repr(result)


def test_interpolated_plans(monkeypatch):
    from otbilevel.ot import point_plan

    a, b, x, y = clouds(400, 300)
    expected = sinkhorn_divergence(a, b, x, y, reg=0.1)
    monkeypatch.setattr(point_plan, "FEW_PAIRS", 0)
    monkeypatch.setattr(point_plan, "WORTHWHILE", 10.0)
    result = sinkhorn_divergence(a, b, x, y, reg=0.1)
    assert result.success and result.value == pytest.approx(expected.value, abs=1e-9)


A, B, X, Y = clouds(4, 3)
C = dense(X, Y), dense(X, X), dense(Y, Y)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sinkhorn_divergence(A, B, X, reg=1.0), ValueError, "x and y are missing"),
        (lambda: sinkhorn_divergence(A, B, X, Y, reg=1.0, cost=C), ValueError, "take the place of x and y"),
        (lambda: sinkhorn_divergence(A, B, reg=1.0, cost=C[:2]), TypeError, "three costs"),
        (lambda: sinkhorn_divergence(A, B, X, Y, reg=1.0, cost="cubic"), ValueError, "cost must be one of"),
        (lambda: sinkhorn_divergence(A, B, reg=1.0, cost=(C[0], C[2], C[1])), ValueError, r"C_aa in cost must have shape \(4, 4\)"),
        (
            lambda: sinkhorn_divergence(A, B, reg=1.0, cost=(C[0], C[1] + np.arange(4), C[2])),
            ValueError,
            "C_aa in cost must be symm",
        ),
        (lambda: sinkhorn_divergence(A, B, reg=1.0, cost=(C[0], PointCloud(X, X + 1), C[2])), ValueError, "one cloud and itself"),
        (lambda: sinkhorn_divergence(A, B, reg=1.0, cost=(C[0], C[1] + np.diag([np.inf] * 4), C[2])), ValueError, r"\+inf"),
        (lambda: sinkhorn_divergence(A, B, X, Y, reg=1.0, method="exact"), ValueError, "use solve_ot"),
        (lambda: sinkhorn_divergence(A, B, X, Y, reg=0.0), ValueError, "reg must be"),
        (lambda: sinkhorn_divergence(A, B, X, Y, reg=1.0, init=(A, B)), TypeError, "init must be a DivergenceResult"),
        (
            lambda: sinkhorn_divergence(B, B, Y, Y, reg=1.0, init=sinkhorn_divergence(A, B, X, Y, reg=1.0)),
            ValueError,
            r"init must belong to a problem of shape \(3, 3\)",
        ),
        (lambda: sinkhorn_divergence(A, B, X, Y, reg=1.0).gradient("C2"), ValueError, "wrt must hold"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("limit", [20, 60, 61, 62, 70])
@pytest.mark.parametrize("reg", [0.3, 0.05])
def test_the_best_iterate_without_a_positive_kernel(limit, reg):
    """Averages, mixing and the general method follow one another; each goes on from the best, and none loses it."""
    rng = np.random.default_rng(0)
    C = rng.random((12, 12))
    C, cross = C + C.T, rng.random((12, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = sinkhorn_divergence(None, None, reg=reg, cost=(cross, C, C), max_iter=limit).result_aa
    assert result.nit <= limit and result.success == (result.marginal_error <= 1e-9)
    assert result.marginal_error <= 2 * min(result.history["marginal_error"]) + 1e-12


def test_a_start_from_far_away_is_silent():
    rng = np.random.default_rng(0)
    x, y = rng.random((30, 2)), rng.random((20, 2))
    before = sinkhorn_divergence(None, None, 30 * x, 30 * y, reg=100.0)
    again = sinkhorn_divergence(None, None, 30 * x, 30 * y, reg=1e-3, init=before)
    assert again.success


@pytest.mark.parametrize("cost", COSTS)
def test_a_cloud_in_the_place_of_points(cost):
    a, b, x, y = clouds()
    found = sinkhorn_divergence(a, b, PointCloud(x, y, cost=cost), reg=0.1)
    assert found.value == sinkhorn_divergence(a, b, x, y, reg=0.1, cost=cost).value
    assert f"{found.marginal_error:.2g}" in found.message
    with pytest.raises(TypeError, match="x is a DenseCost: give the points"):
        sinkhorn_divergence(a, b, DenseCost(dense(x, y)), reg=0.1)
