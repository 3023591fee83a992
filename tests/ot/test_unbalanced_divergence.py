"""The unbalanced Sinkhorn divergence: its definition in plain NumPy, geomloss, laws, and derivatives."""

import math

import numpy as np
import pytest

from otbilevel import ConvergenceWarning, DenseCost, Grid, PointCloud
from otbilevel.ot import KL, AtMost, PartialMass, TotalVariation, sinkhorn_divergence

PRICES = [0.3, KL(5.0), KL(0.02), TotalVariation(0.1), TotalVariation(2.0), AtMost(0.2), AtMost(0.0)]


def clouds(n=12, m=9, d=2, seed=0, *, zeros=False):
    rng = np.random.default_rng(seed)
    x, y = rng.random((n, d)), rng.random((m, d)) + 0.3
    a, b = rng.uniform(0.5, 1.5, n) / n, 1.6 * rng.uniform(0.5, 1.5, m) / m
    if zeros:
        a[[0, 7]], b[3] = 0.0, 0.0
    return a, b, x, y


def squared(x, y):
    return ((x[:, None] - y[None]) ** 2).sum(-1)


def parts(price, reg):
    """The proximity operator that gives potentials, and minus the conjugate of the penalty at -p (for each unit of weight)."""
    if isinstance(price, (float, KL)):
        rho = price if isinstance(price, float) else price.strength
        return (lambda s: s * rho / (rho + reg)), (lambda p: -rho * np.expm1(-p / rho))
    least, most = (-price.strength, price.strength) if isinstance(price, TotalVariation) else (-np.inf, price.price)
    return (lambda s: np.clip(s, least, most)), (lambda p: np.clip(p, least, most))


def value_by_iteration(a, b, C, reg, price):
    """The dual value at the fixed point of both half steps."""
    C, a, b = C[a > 0][:, b > 0], a[a > 0], b[b > 0]
    prox, dual = parts(price, reg)
    f, g = np.zeros(len(a)), np.zeros(len(b))
    for _ in range(100_000):
        before = f
        f = prox(-reg * np.log(np.exp((g - C) / reg) @ b))
        g = prox(-reg * np.log(a @ np.exp((f[:, None] - C) / reg)))
        if np.abs(f - before).max() < 1e-15:
            break
    mass = (a[:, None] * b * np.exp((f[:, None] + g - C) / reg)).sum()
    return a @ dual(f) + b @ dual(g) - reg * (mass - a.sum() * b.sum())


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("reg", [1.0, 0.05])
@pytest.mark.parametrize("price", PRICES, ids=str)
def test_the_definition(price, reg, zeros):
    a, b, x, y = clouds(zeros=zeros)
    result = sinkhorn_divergence(a, b, x, y, reg=reg, unbalanced=price)
    ab, aa, bb = (
        value_by_iteration(*w, squared(*p), reg, price) for w, p in (((a, b), (x, y)), ((a, a), (x, x)), ((b, b), (y, y)))
    )
    assert result.success and result.marginal_error <= 1e-9
    for part, expected in zip((result.result_ab, result.result_aa, result.result_bb), (ab, aa, bb), strict=True):
        assert part.dual_value == pytest.approx(expected, abs=1e-9)
        assert -1e-12 <= part.gap < 1e-7
    expected = ab - 0.5 * (aa + bb) + 0.5 * reg * (a.sum() - b.sum()) ** 2
    assert result.value == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("reach", [0.3, 2.0])
@pytest.mark.parametrize("blur", [1.0, 0.5])
def test_values_are_those_of_geomloss(blur, reach):
    torch, geomloss = pytest.importorskip("torch"), pytest.importorskip("geomloss")
    theirs = geomloss.SamplesLoss("sinkhorn", p=2, blur=blur, reach=reach, debias=True, scaling=0.9999, backend="tensorized")
    a, b, x, y = clouds()
    expected = theirs(*(torch.tensor(v) for v in (a, x, b, y))).item()
    found = sinkhorn_divergence(a, b, x, y, reg=2 * blur**2, unbalanced=2 * reach**2).value / 2
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("reg", [10.0, 0.1, 1e-3])
@pytest.mark.parametrize("price", PRICES, ids=str)
def test_it_is_0_for_equal_measures_and_never_negative(price, reg):
    a, b, x, y = clouds(12, 12)
    same = sinkhorn_divergence(a, a, x, x, reg=reg, unbalanced=price)
    assert same.value == pytest.approx(0.0, abs=1e-9)
    np.testing.assert_allclose(same.gradient().x, 0.0, atol=1e-8)
    for share in (1e-3, 0.1, 1.0):
        weights, points = a + share * (b - a), x + share * (y - x)
        assert sinkhorn_divergence(a, weights, x, points, reg=reg, unbalanced=price).value >= -1e-11


@pytest.mark.parametrize("price", PRICES, ids=str)
def test_the_problem_of_a_measure_with_itself(price):
    """Few sweeps at any reg, and potentials that are equal."""
    a, _, x, _ = clouds(60)
    for reg in (10.0, 0.1, 1e-3, 1e-5):
        result = sinkhorn_divergence(a, a, x, x + 1.0, reg=reg, unbalanced=price).result_aa
        assert result.success and result.method == "symmetric" and result.nit < 30
        np.testing.assert_allclose(result.f, result.g, atol=1e-13)


def test_symmetry_scaling_and_limits():
    a, b, x, y = clouds()
    value = sinkhorn_divergence(a, b, x, y, reg=0.1, unbalanced=0.3).value
    assert sinkhorn_divergence(b, a, y, x, reg=0.1, unbalanced=0.3).value == pytest.approx(value, abs=1e-10)
    assert sinkhorn_divergence(a, b, 3 * x, 3 * y, reg=0.9, unbalanced=2.7).value == pytest.approx(9 * value, abs=1e-9)
    assert sinkhorn_divergence(a, b, x, y, reg=0.1, unbalanced=(0.3, KL(0.3))).value == value
    b = b * a.sum() / b.sum()
    balanced = sinkhorn_divergence(a, b, x, y, reg=0.1)
    assert sinkhorn_divergence(a, b, x, y, reg=0.1, unbalanced=TotalVariation(9.0)).value == pytest.approx(balanced.value, abs=1e-8)
    assert sinkhorn_divergence(a, b, x, y, reg=0.1, unbalanced=1e7).value == pytest.approx(balanced.value, abs=1e-6)
    assert sinkhorn_divergence(a, b, x, y, reg=0.1, unbalanced=math.inf).value == pytest.approx(balanced.value, abs=1e-12)


def test_one_point_each():
    """Far apart: each measure is worth what its own plan is, of mass t: rho and reg pull at t log t."""
    rho, reg = 0.7, 0.2
    value = sinkhorn_divergence([1.5], [0.5], [[0.0]], [[40.0]], reg=reg, unbalanced=rho).value

    def alone(w):
        t = w ** (2 * (rho + reg) / (2 * rho + reg))
        return 2 * rho * (t * np.log(t / w) - t + w) + reg * (t * np.log(t / w**2) - t + w**2)

    apart = rho * (1.5 + 0.5) + reg * 1.5 * 0.5
    assert value == pytest.approx(apart - 0.5 * (alone(1.5) + alone(0.5)) + 0.5 * reg, abs=1e-9)


def test_three_costs_are_as_good_as_points():
    a, b, x, y = clouds()
    points = sinkhorn_divergence(a, b, x, y, reg=0.1, unbalanced=0.3)
    costs = (DenseCost(squared(x, y)), squared(x, x), PointCloud(y))
    costs = sinkhorn_divergence(a, b, reg=0.1, unbalanced=0.3, cost=costs)
    assert costs.value == pytest.approx(points.value, abs=1e-11)
    np.testing.assert_allclose(costs.gradient().b, points.gradient().b, atol=1e-8)


def test_images():
    a, b, _, _ = clouds(20, 20)
    a[3] = 0.0
    grid = Grid((5, 4))
    found = sinkhorn_divergence(a, b, reg=0.1, unbalanced=0.3, cost=(grid,) * 3)
    expected = sinkhorn_divergence(a, b, reg=0.1, unbalanced=0.3, cost=(grid.to_dense(),) * 3)
    assert found.success and found.value == pytest.approx(expected.value, abs=1e-9)


def difference(function, data, direction, h=1e-4):
    def at(t):
        return function({name: v + t * direction.get(name, 0.0) for name, v in data.items()})

    return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)


def solved(data, price):
    return sinkhorn_divergence(*(data[name] for name in "abxy"), reg=float(data["reg"]), unbalanced=price, tol=1e-13)


@pytest.mark.filterwarnings("ignore::otbilevel.ConvergenceWarning")  # the tolerance is at the rounding floor
@pytest.mark.parametrize("price", [0.3, KL(5.0), TotalVariation(0.1), TotalVariation(2.0), AtMost(0.05)], ids=str)
def test_derivatives(price):
    data = dict(zip("abxy", clouds(6, 5), strict=True)) | {"reg": np.asarray(0.2)}
    result, rng = solved(data, price), np.random.default_rng(1)
    gradient = result.gradient()
    for name, value in data.items():
        direction = {name: rng.standard_normal(np.shape(value)) * (0.1 if name in "ab" else 1.0)}
        expected = difference(lambda d: solved(d, price).value, data, direction)
        assert np.sum(getattr(gradient, name) * direction[name]) == pytest.approx(expected, abs=1e-7), name
    direction = {name: rng.standard_normal(np.shape(v)) * (0.1 if name in "ab" else 1.0) for name, v in data.items()}
    change = result.hvp(**direction)
    f, g = rng.standard_normal(6), rng.standard_normal(5)
    pulled = result.vjp(f=f, g=g)
    for name in data:
        expected = difference(lambda d: getattr(solved(d, price).gradient(), name), data, direction)  # noqa: B023
        np.testing.assert_allclose(getattr(change, name), expected, atol=1e-7, err_msg=name)
        one = {name: direction[name]}
        expected = difference(lambda d: f @ solved(d, price).f + g @ solved(d, price).g, data, one)
        assert np.sum(getattr(pulled, name) * one[name]) == pytest.approx(expected, abs=1e-7), name


def test_the_gradient_in_a_weight_of_0_is_that_to_the_right():
    data = dict(zip("abxy", clouds(6, 5), strict=True)) | {"reg": np.asarray(0.2)}
    data["a"][2] = 0.0
    at = [solved(data | {"a": data["a"] + k * 1e-5 * np.eye(6)[2]}, 0.3).value for k in range(3)]
    assert solved(data, 0.3).gradient("a").a[2] == pytest.approx((4 * at[1] - 3 * at[0] - at[2]) / 2e-5, abs=1e-6)


def test_every_library(device_backend, dtype):
    arrays = clouds(zeros=True)
    settings = {"reg": 0.1, "unbalanced": 0.3}
    result = sinkhorn_divergence(*(device_backend.asarray(v, dtype) for v in arrays), **settings)
    expected = sinkhorn_divergence(*arrays, **settings)
    close = {"float64": 1e-9, "float32": 1e-4}[dtype]
    assert result.success and result.value == pytest.approx(expected.value, abs=close)
    found, wanted = result.gradient(), expected.gradient()
    for array, other in ((result.f, expected.f), (found.a, wanted.a), (found.b, wanted.b), (found.x, wanted.x)):
        assert device_backend.owns(array) and device_backend.dtype_name(array) == dtype
        np.testing.assert_allclose(device_backend.to_numpy(array), other, atol=10 * close)


def test_a_start_from_a_result():
    a, b, x, y = clouds(60, 50)
    for price in (0.3, TotalVariation(0.1)):
        before = sinkhorn_divergence(a, b, x, y, reg=1e-2, unbalanced=price)
        again = sinkhorn_divergence(a, b, x, y, reg=1e-2, unbalanced=price, init=before)
        assert again.value == pytest.approx(before.value, abs=1e-10)
        assert again.result_aa.nit == 1 and again.result_ab.nsweep <= 3
        other = sinkhorn_divergence(a, b, x + 1e-4, y, reg=1e-2, unbalanced=0.5, init=before)
        assert other.success


def test_it_says_when_it_stops_short():
    a, b, x, y = clouds()
    with pytest.warns(ConvergenceWarning, match="max_iter = 1") as caught:
        result = sinkhorn_divergence(a, b, x, y, reg=1e-3, unbalanced=0.3, max_iter=1)
    assert len(caught) == 1 and not result.success


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"unbalanced": (0.3, 0.4)}, ValueError, ["unbalanced must be the same for both sides", "(0.3, 0.4)"]),
        ({"unbalanced": (None, KL(1.0))}, ValueError, ["unbalanced must be the same for both sides"]),
        ({"unbalanced": PartialMass(0.5)}, ValueError, ["PartialMass(mass=0.5)", "is no price"]),
        ({"unbalanced": -1.0}, ValueError, ["unbalanced", "-1.0"]),
        ({"unbalanced": "kl"}, TypeError, ["unbalanced", "'kl'"]),
        ({"unbalanced": 1.0, "method": "sinkhorn", "options": {"relaxation": 1.5}}, ValueError, ["unbalanced", "relaxation"]),
        ({}, ValueError, ["equal mass"]),
    ],
)
def test_what_is_refused(settings, error, words):
    with pytest.raises(error) as refused:
        sinkhorn_divergence(*clouds(), reg=0.1, **settings)
    assert all(word in str(refused.value) for word in words), str(refused.value)
