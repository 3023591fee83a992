"""Transport whose marginals have a price: against plain iterations, linear programs, POT, closed forms, and on every library."""

import importlib
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linprog

from otbilevel import ConvergenceWarning, DenseCost, Grid, PointCloud, Status, solve_ot
from otbilevel.ot import KL, AtMost, PartialMass, TotalVariation, partial_mass, reg_path
from otbilevel.ot.methods import METHODS
from otbilevel.ot.penalties import Fixed, make_penalties

INF = math.inf
solve_module = importlib.import_module("otbilevel.ot.solve")
ENTROPIC = [row.name for row in METHODS if row.name != "exact"]
PRICES = [
    pytest.param((KL(0.3), KL(0.3)), id="kl"),
    pytest.param((KL(0.02), KL(5.0)), id="kl-uneven"),
    pytest.param((None, KL(0.3)), id="rows-fixed"),
    pytest.param((KL(0.3), INF), id="columns-fixed"),
    pytest.param((TotalVariation(0.1), TotalVariation(0.1)), id="tv"),
    pytest.param((TotalVariation(0.03), KL(0.1)), id="tv-kl"),
    pytest.param((AtMost(0.1), AtMost(0.0)), id="at-most"),
    pytest.param((None, AtMost(0.05)), id="rows-fixed-at-most"),
    pytest.param((TotalVariation(0.2), None), id="tv-fixed"),
]


def cloud(n=23, m=17, seed=0):
    """Two clouds in the plane, uneven weights, some of them zero, and of unequal mass."""
    rng = np.random.default_rng(seed)
    x, y = rng.random((n, 2)), rng.random((m, 2)) + 0.2
    a, b = rng.dirichlet(np.full(n, 0.7)) + 1e-5, 1.6 * rng.dirichlet(np.full(m, 0.7)) + 1e-5
    a[[0, n // 2]] = 0.0
    b[-1] = 0.0
    return x, y, 2.0 * a, 2.0 * b


def squared(x, y):
    return ((x[:, None] - y[None, :]) ** 2).sum(-1)


def penalty(price, w, r):
    """The penalty of a marginal r, in plain NumPy."""
    if isinstance(price, KL):
        return price.strength * float(
            np.sum(np.where(r > 0, r * np.log(np.where(r > 0, r, 1.0) / np.where(w > 0, w, 1.0)), 0.0) - r + w)
        )
    if isinstance(price, TotalVariation):
        return price.strength * np.abs(r - w).sum()
    return price.price * (w - r).sum() if isinstance(price, AtMost) else 0.0


def plain(a, b, C, reg, prices, n_iter=20_000):
    """Sinkhorn's iteration for unbalanced transport (Chizat et al., Algorithm 1), in the log domain."""

    def soft(v, M):
        t = (v[None, :] - M) / reg
        top = t.max(1)
        return -reg * (top + np.log(np.exp(t - top[:, None]).sum(1)))

    def aprox(price, s):
        if isinstance(price, KL):
            return s * price.strength / (price.strength + reg)
        if isinstance(price, TotalVariation):
            return np.clip(s, -price.strength, price.strength)
        return np.minimum(s, price.price) if isinstance(price, AtMost) else s

    rows, columns = a > 0, b > 0
    a, b, C = a[rows], b[columns], C[np.ix_(rows, columns)]
    f, g = np.zeros(len(a)), np.zeros(len(b))
    for _ in range(n_iter):
        before = f
        f = aprox(prices[0], soft(g + reg * np.log(b), C))
        g = aprox(prices[1], soft(f + reg * np.log(a), C.T))
        if np.abs(f - before).max() < 1e-14:
            break
    plan = np.zeros((len(rows), len(columns)))
    plan[np.ix_(rows, columns)] = a[:, None] * b * np.exp((f[:, None] + g - C) / reg)
    return plan


def check(result, a, b, C, prices, tol=1e-9):
    """Formula, figures and optimality conditions of a result, in plain NumPy."""
    plan, reg = np.asarray(result.plan), result.reg
    f, g = result.potentials
    mean = 0.5 * (a.sum() + b.sum())
    assert result.success and result.marginal_error <= tol, result.message
    formula = a[:, None] * b * np.exp((f[:, None] + g - C) / reg)
    np.testing.assert_allclose(plan, formula, atol=1e-12 * (1 + np.abs(C).max() / reg))
    rows, columns = plan.sum(1), plan.sum(0)
    for price, w, r, p in ((prices[0], a, rows, f), (prices[1], b, columns, g)):
        if isinstance(price, KL):
            wanted = w * np.exp(-p / price.strength)
        elif price is None or price == INF:
            wanted = w
        else:
            less, more = price.prices
            assert np.all(p <= less + 1e-12) and np.all(p >= -more - 1e-12)
            slack = 1e-7 * reg  # a potential that close to its bound may stand for it
            wanted = np.where(p >= less - slack, np.minimum(r, w), np.where(p <= -more + slack, np.maximum(r, w), w))
        assert np.abs(r - wanted).sum() <= 5 * tol * mean, price
    entropy = float(np.sum(np.where(plan > 0, plan * (f[:, None] + g - C), 0.0)) / reg) - plan.sum() + a.sum() * b.sum()
    spent = float((plan * C).sum())
    paid = sum(penalty(price, w, r) for price, w, r in ((prices[0], a, rows), (prices[1], b, columns)))
    assert result.value_linear == pytest.approx(spent, abs=1e-12)
    assert result.value == pytest.approx(spent + reg * entropy + paid, abs=1e-8 * mean)
    assert result.value == pytest.approx(result.dual_value, abs=1e-7 * mean)
    assert 0 <= result.gap <= 1e-7 * mean


@pytest.mark.parametrize("prices", PRICES)
@pytest.mark.parametrize("reg", [0.3, 0.02])
@pytest.mark.parametrize("method", ENTROPIC)
def test_against_the_plain_iteration(method, reg, prices):
    x, y, a, b = cloud()
    C = squared(x, y)
    result = solve_ot(a, b, C, reg=reg, unbalanced=prices, method=method, max_iter=100_000)
    check(result, a, b, C, prices)
    np.testing.assert_allclose(result.plan, plain(a, b, C, reg, prices), atol=3e-8)


@pytest.mark.parametrize("prices", PRICES)
def test_small_reg(prices):
    x, y, a, b = cloud(60, 45, seed=1)
    C = squared(x, y)
    for reg in (1e-3, 1e-4):
        check(solve_ot(a, b, C, reg=reg, unbalanced=prices), a, b, C, prices)


@pytest.mark.parametrize("prices", [KL(0.3), (None, TotalVariation(0.2)), PartialMass(0.7)], ids=str)
@pytest.mark.parametrize("method", ENTROPIC)
def test_on_every_library(method, prices, device_backend, dtype):
    x, y, a, b = cloud()
    arrays = [device_backend.asarray(v, dtype) for v in (a, b, squared(x, y))]
    result = solve_ot(*arrays, reg=0.05, unbalanced=prices, method=method)
    exact = solve_ot(a, b, squared(x, y), reg=0.05, unbalanced=prices)
    assert result.success and device_backend.owns(result.plan) and device_backend.owns(result.f)
    assert device_backend.dtype_name(result.plan) == dtype
    atol = 1e-8 if dtype == "float64" else 1e-4
    np.testing.assert_allclose(device_backend.to_numpy(result.plan), exact.plan, atol=atol)
    for name in ("value", "value_linear", "dual_value"):
        assert getattr(result, name) == pytest.approx(getattr(exact, name), rel=10 * atol)
    assert 0 <= result.gap <= 10 * atol
    assert result.gap_exact == pytest.approx(exact.gap_exact, rel=1e-6 if dtype == "float64" else 1e-2)


def linear_program(a, b, C, prices):
    """Unregularised transport with prices (less, more) for each side, by HiGHS."""
    n, m = C.shape
    sums = sparse.vstack(
        [
            sparse.hstack(
                [sparse.kron(sparse.eye(n), np.ones((1, m))), sparse.eye(n), -sparse.eye(n), sparse.csr_array((n, 2 * m))]
            ),
            sparse.hstack(
                [sparse.kron(np.ones((1, n)), sparse.eye(m)), sparse.csr_array((m, 2 * n)), sparse.eye(m), -sparse.eye(m)]
            ),
        ]
    )
    slack = [np.full(size, 0.0 if price == INF else price) for size, pair in ((n, prices[0]), (m, prices[1])) for price in pair]
    bounds = [(0, None)] * C.size
    bounds += [
        (0, 0.0 if price == INF else None) for size, pair in ((n, prices[0]), (m, prices[1])) for price in pair for _ in range(size)
    ]
    solution = linprog(np.concatenate([C.ravel(), *slack]), A_eq=sums.tocsr(), b_eq=np.concatenate([a, b]), bounds=bounds)
    assert solution.status == 0
    return solution.fun


@pytest.mark.parametrize(
    "prices",
    [(TotalVariation(0.1), TotalVariation(0.02)), (AtMost(0.1), AtMost(0.0)), (None, AtMost(0.05)), (TotalVariation(0.2), None)],
    ids=str,
)
def test_the_certificate_bounds_the_distance_from_the_linear_program(prices):
    x, y, a, b = cloud(30, 25, seed=2)
    C = squared(x, y)
    optimum = linear_program(a, b, C, [(INF, INF) if price is None else price.prices for price in prices])
    for reg in (1e-2, 1e-3, 1e-4):
        result = solve_ot(a, b, C, reg=reg, unbalanced=prices)
        plan = result.plan
        reached = (plan * C).sum() + penalty(prices[0], a, plan.sum(1)) + penalty(prices[1], b, plan.sum(0))
        assert -1e-9 <= reached - optimum <= min(result.gap_exact, 6 * reg) + 1e-9
        if not any(isinstance(price, TotalVariation) for price in prices):  # there no feasible potentials may be found
            assert result.gap_exact <= 20 * reg


@pytest.mark.parametrize("mass", [0.1, 1.0, 1.7])
def test_partial_mass_tends_to_the_linear_program(mass):
    x, y, a, b = cloud(30, 25, seed=3)
    C = squared(x, y)
    n, m = C.shape
    bounds = np.concatenate([a, b])
    sums = sparse.vstack([sparse.kron(sparse.eye(n), np.ones((1, m))), sparse.kron(np.ones((1, n)), sparse.eye(m))]).tocsr()
    optimum = linprog(C.ravel(), A_ub=sums, b_ub=bounds, A_eq=np.ones((1, n * m)), b_eq=[mass]).fun
    for reg in (1e-2, 1e-3, 1e-4):
        result = solve_ot(a, b, C, reg=reg, unbalanced=PartialMass(mass))
        plan = result.plan
        assert result.success and plan.sum() == pytest.approx(mass, abs=1e-9)
        assert np.all(plan.sum(1) <= a + 1e-9) and np.all(plan.sum(0) <= b + 1e-9)
        assert -1e-8 <= result.value_linear - optimum <= 6 * reg
        assert result.value == pytest.approx(result.dual_value, abs=1e-8)
        assert len(result.history["marginal_error"]) == result.nit


@pytest.mark.parametrize("mass", [0.2, 0.7])
def test_partial_mass_against_pot(mass):
    """With uniform weights its entropy, sum P log P, differs by a constant."""
    pot = pytest.importorskip("ot")
    x, y, _, _ = cloud()
    C = squared(x, y)
    a, b = np.full(23, 1 / 23), np.full(17, 1 / 17)
    expected = pot.partial.entropic_partial_wasserstein(a, b, C, 0.05, mass, numItermax=100_000, stopThr=1e-15)
    np.testing.assert_allclose(solve_ot(a, b, C, reg=0.05, unbalanced=PartialMass(mass)).plan, expected, atol=1e-8)


def test_mass_that_no_marginal_limits_takes_the_price_at_once():
    """Then the plan is a b^T exp((price - C)/reg)."""
    C = np.random.default_rng(0).random((30, 40))
    result = solve_ot(None, None, C, reg=0.1, unbalanced=PartialMass(0.1))
    plan = np.exp(-C / 0.1)
    np.testing.assert_allclose(result.plan, 0.1 * plan / plan.sum(), rtol=1e-9)
    assert result.nit <= 2


def test_a_stop_on_the_way_to_a_mass_is_said():
    x, y, a, b = cloud()
    nit = solve_ot(a, b, squared(x, y), reg=0.02, unbalanced=PartialMass(1.5)).nit
    for last in (3, nit // 2):

        def stop(state, left=[last]):  # noqa: B006 -- counts over all solves of one call
            left[0] -= 1
            if left[0] == 0:
                raise StopIteration

        result = solve_ot(a, b, squared(x, y), reg=0.02, unbalanced=PartialMass(1.5), callback=stop)
        assert result.status is Status.CALLBACK_STOP and "the callback asked to stop" in result.message


def test_a_solve_that_stalls_near_its_tolerance_does_not_end_the_search(monkeypatch):
    x, y, a, b = cloud()
    expected = solve_ot(a, b, squared(x, y), reg=0.02, unbalanced=PartialMass(1.5))

    def stalled(solve):
        def run(problem):
            return replace(solve(problem), success=False, status=Status.STALLED)

        return run

    real = partial_mass.solve_partial
    monkeypatch.setattr(solve_module, "solve_partial", lambda problem, mass, solve: real(problem, mass, stalled(solve)))
    with pytest.warns(ConvergenceWarning):
        result = solve_ot(a, b, squared(x, y), reg=0.02, unbalanced=PartialMass(1.5))
    assert result.plan.sum() == pytest.approx(1.5, abs=1e-8)
    np.testing.assert_allclose(result.plan, expected.plan, atol=1e-8)


@pytest.mark.parametrize("reg", [0.5, 0.05])
@pytest.mark.parametrize("price", [0.1, 1.0, (0.5, INF)])
def test_kl_against_pot(price, reg):
    pot = pytest.importorskip("ot")
    x, y, a, b = cloud()
    a, b = a + 1e-3, b + 1e-3
    C = squared(x, y)
    result = solve_ot(a, b, C, reg=reg, unbalanced=price)
    expected = pot.unbalanced.sinkhorn_unbalanced(a, b, C, reg, price, reg_type="kl", numItermax=100_000, stopThr=1e-15)
    np.testing.assert_allclose(result.plan, expected, atol=1e-8)


def test_one_point_on_either_side():
    """p^(reg + r + s) = (a b)^reg a^r b^s exp(-c), by setting the derivative of the objective to 0."""
    a, b, c, reg, r, s = 0.7, 2.5, 0.4, 0.1, 0.5, 1.3
    result = solve_ot([a], [b], [[c]], reg=reg, unbalanced=(r, s))
    p = math.exp((reg * math.log(a * b) + r * math.log(a) + s * math.log(b) - c) / (reg + r + s))
    assert result.plan[0, 0] == pytest.approx(p, rel=1e-9)
    value = c * p + reg * (p * math.log(p / (a * b)) - p + a * b)
    value += r * (p * math.log(p / a) - p + a) + s * (p * math.log(p / b) - p + b)
    assert result.value == pytest.approx(value, rel=1e-9)


def test_a_high_price_is_a_fixed_marginal():
    x, y, a, b = cloud()
    b *= a.sum() / b.sum()
    C = squared(x, y)
    fixed = solve_ot(a, b, C, reg=0.01)
    for price in (1e6, TotalVariation(10.0)):
        np.testing.assert_allclose(
            solve_ot(a, b, C, reg=0.01, unbalanced=price).plan, fixed.plan, atol=1e-5 if price == 1e6 else 1e-8
        )
    for none in (None, INF, (None, INF), (Fixed(), None)):
        assert solve_ot(a, b, C, reg=0.01, unbalanced=none).value == fixed.value


def test_scaling_of_weights_and_costs():
    x, y, a, b = cloud()
    C = squared(x, y)
    one = solve_ot(a, b, C, reg=0.02, unbalanced=0.3)
    costs = solve_ot(a, b, 1e6 * C, reg=0.02e6, unbalanced=0.3e6)
    np.testing.assert_allclose(costs.plan, one.plan, atol=1e-8)
    # P -> s P with a -> s a, b -> s b and C -> C + reg log s, which makes up for KL(P | a b^T)
    s = 1e-4
    weights = solve_ot(s * a, s * b, C + 0.02 * math.log(s), reg=0.02, unbalanced=0.3)
    np.testing.assert_allclose(weights.plan / s, one.plan, atol=1e-8)
    back = solve_ot(b, a, C.T, reg=0.02, unbalanced=0.3)
    np.testing.assert_allclose(back.plan.T, one.plan, atol=1e-8)
    assert back.value == pytest.approx(one.value, abs=1e-9)


@pytest.mark.parametrize("price", [0.2, TotalVariation(0.1)], ids=str)
def test_point_clouds_in_all_their_forms(price):
    rng = np.random.default_rng(0)
    x, y = rng.random((2600, 2)), rng.random((2400, 2)) + 0.1
    cloud_cost, settings = PointCloud(x, y), {"reg": 0.05, "unbalanced": price}
    interpolated = solve_ot(None, None, cloud_cost, **settings)
    assert interpolated.success
    stored = solve_ot(None, None, cloud_cost.to_dense(), **settings)
    assert interpolated.value == pytest.approx(stored.value, abs=1e-9)
    small = PointCloud(x[:90], y[:70], cost="euclidean")
    lazy = solve_ot(None, None, small, options={"memory": 0}, **settings)
    np.testing.assert_allclose(lazy.plan, solve_ot(None, None, small, **settings).plan, atol=1e-9)


def test_points_of_zero_weight_have_potentials():
    """Those of a tiny weight, in the limit."""
    x, y, a, b = cloud()
    C = squared(x, y)
    for price in (0.3, TotalVariation(0.1)):
        zero = solve_ot(a, b, C, reg=0.05, unbalanced=price)
        tiny = solve_ot(np.where(a > 0, a, 1e-13), np.where(b > 0, b, 1e-13), C, reg=0.05, unbalanced=price)
        np.testing.assert_allclose(zero.f, tiny.f, atol=1e-7)
        np.testing.assert_allclose(zero.g, tiny.g, atol=1e-7)
        np.testing.assert_allclose(zero.barycentric_map(y), tiny.barycentric_map(y), atol=1e-6)


def test_a_warm_start_saves_the_path():
    x, y, a, b = cloud(200, 150)
    C = squared(x, y)
    cold = solve_ot(a, b, C, reg=1e-3, unbalanced=0.3)
    warm = solve_ot(a, b, C, reg=1e-3, unbalanced=0.3, init=cold)
    assert warm.success and warm.nit < cold.nit / 4
    assert warm.value == pytest.approx(cold.value, abs=1e-9)
    again = solve_ot(a, b, C, reg=1e-3, unbalanced=0.3, init=cold.potentials)
    assert again.success and again.nit < cold.nit / 2


def test_a_path_in_reg():
    x, y, a, b = cloud()
    C = squared(x, y)
    for price in (0.3, TotalVariation(0.1)):
        path = reg_path(a, b, C, [0.1, 1e-3, 1e-2], unbalanced=price)
        for result in path:
            assert result.success
            assert result.value == pytest.approx(solve_ot(a, b, C, reg=result.reg, unbalanced=price).value, abs=1e-8)


def test_forbidden_pairs():
    x, y, a, b = cloud()
    a, b = a + 1e-3, b + 1e-3
    C = squared(x, y)
    C[:, 3], C[3, 3] = INF, 0.1
    result = solve_ot(a, b, C, reg=0.02, unbalanced=0.3)
    check(result, a, b, np.where(np.isfinite(C), C, 1e6), (KL(0.3), KL(0.3)))
    assert result.plan[0, 3] == 0.0


def test_a_part_of_the_work_is_no_solution():
    x, y, a, b = cloud(60, 45)
    with pytest.warns(ConvergenceWarning, match="max_iter = 3"):
        result = solve_ot(a, b, squared(x, y), reg=1e-3, unbalanced=0.3, max_iter=3)
    assert result.status is Status.ITERATION_LIMIT and result.marginal_error > 1e-9


@pytest.mark.parametrize("excess", [1e-6, 1e-3, 0.1])
@pytest.mark.parametrize(
    "prices",
    [TotalVariation(2.0), AtMost(0.2), (None, AtMost(0.2)), (None, TotalVariation(2.0)), (TotalVariation(2.0), AtMost(0.2))],
    ids=str,
)
@pytest.mark.parametrize("reg", [0.1, 1e-2, 1e-3])
def test_masses_that_nearly_agree(prices, excess, reg):
    """No potential is at its bound until all are shifted far, by a difference of masses that is hardly to be seen.

    Either side may be the one with the price.
    """
    rng = np.random.default_rng(0)
    x, y, a, b = rng.random((12, 2)), rng.random((12, 2)), rng.uniform(0.5, 1.5, 12), rng.uniform(0.5, 1.5, 12)
    for of_a, of_b in ((1.0, 1.0 + excess), (1.0 + excess, 1.0)):
        if not (isinstance(prices, tuple) and prices[0] is None and of_a > of_b and isinstance(prices[1], AtMost)):
            weights, C = (of_a * a / a.sum(), of_b * b / b.sum()), squared(x, y)
            result = solve_ot(*weights, C, reg=reg, unbalanced=prices)
            turned = solve_ot(*weights[::-1], C.T, reg=reg, unbalanced=prices[::-1] if isinstance(prices, tuple) else prices)
            for one in (result, turned):
                assert one.success and one.nit < 250 and one.gap < 1e-7
            assert turned.value == pytest.approx(result.value, abs=1e-8)


@pytest.mark.parametrize("seed", range(60))
def test_gaps_where_prescribed_masses_underflow(seed):
    """A price far below the costs on one side: what it prescribes has no digits left, its logarithm has."""
    rng = np.random.default_rng(seed)
    n, m = rng.integers(1, 9, 2)
    a, b, C = rng.uniform(0.1, 1.0, n), rng.uniform(0.1, 1.0, m), rng.random((n, m))
    result = solve_ot(a, b, C, reg=1e-3, unbalanced=(KL(1e-3), KL(1e3)))
    assert result.success and -1e-9 <= result.gap < 1e-5


A, B, C = np.array([0.5, 0.5]), np.array([0.4, 0.4]), np.array([[0.0, 1.0], [1.0, 0.5]])


@pytest.mark.parametrize(
    ("unbalanced", "error", "words"),
    [
        (0.0, ValueError, ["unbalanced", "0.0", "None"]),
        (-1.0, ValueError, ["unbalanced", "-1.0"]),
        (math.nan, ValueError, ["unbalanced", "nan"]),
        (-INF, ValueError, ["unbalanced", "inf"]),
        ("kl", TypeError, ["unbalanced", "'kl'", "KL"]),
        (True, TypeError, ["unbalanced", "True"]),
        ((1.0, 2.0, 3.0), ValueError, ["unbalanced", "pair", "3"]),
        ((1.0, -2.0), ValueError, ["unbalanced[1]", "-2.0"]),
        (([1.0], 2.0), TypeError, ["unbalanced[0]", "list"]),
        (PartialMass(0.8), ValueError, ["PartialMass(0.8)", "sum(b)", "fix"]),
        (PartialMass(5.0), ValueError, ["PartialMass(5.0)", "sum(a)"]),
        ((None, AtMost(0.0)), ValueError, ["sum(a)", "at most", "0.8"]),
    ],
)
def test_what_is_refused(unbalanced, error, words):
    with pytest.raises(error) as refused:
        solve_ot(A, B, C, reg=0.1, unbalanced=unbalanced)
    assert all(word in str(refused.value) for word in words), str(refused.value)


@pytest.mark.parametrize("kind", [KL, TotalVariation, PartialMass])
@pytest.mark.parametrize("price", [0.0, -1.0, math.nan, INF])
def test_a_price_is_positive_and_finite(kind, price):
    with pytest.raises(ValueError, match=kind.__name__):
        kind(price)
    with pytest.raises(TypeError, match=kind.__name__):
        kind("1")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "exact", "reg": None}, 'method="exact"'),
        ({"method": "sns", "options": {"variant": "paper"}}, 'variant="paper"'),
        ({"method": "sinkhorn", "options": {"relaxation": 1.5}}, "relaxation=1.5"),
    ],
)
def test_methods_that_need_fixed_marginals_say_so(settings, words):
    with pytest.raises(ValueError, match=r"^unbalanced") as refused:
        solve_ot(A, B, C, unbalanced=1.0, **({"reg": 0.1} | settings))
    assert words in str(refused.value)


def test_rows_without_an_allowed_pair_are_refused():
    with pytest.raises(ValueError, match="C forbids every pair of row 1"):
        solve_ot(A, B, [[0.0, 1.0], [INF, INF]], reg=0.1, unbalanced=1.0)


def test_a_path_of_partial_mass_is_refused():
    with pytest.raises(ValueError, match="PartialMass"):
        reg_path(A, B, C, [0.1], unbalanced=PartialMass(0.1))


def test_unequal_masses_need_a_price():
    with pytest.raises(ValueError, match="equal mass"):
        solve_ot(A, B, C, reg=0.1, unbalanced=(None, None))
    assert make_penalties((INF, 1.0)) == (Fixed(), KL(1.0))
    assert solve_ot(A, B, DenseCost(C), reg=0.1, unbalanced=(None, 1.0)).plan.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("prices", [0.2, (None, 0.2), TotalVariation(0.1), (None, AtMost(0.05)), PartialMass(0.5)], ids=str)
def test_grids(prices):
    """Images with black pixels: as between the points of the grid."""
    rng = np.random.default_rng(0)
    a, b = rng.random((5, 4)), rng.random((5, 4))
    a[0, 1], b[2, :2] = 0.0, 0.0
    a, b = a.ravel() / a.sum(), 1.4 * b.ravel() / b.sum()
    grid = Grid((5, 4))
    result, dense = (solve_ot(a, b, cost, reg=0.01, unbalanced=prices) for cost in (grid, grid.to_dense()))
    assert result.success
    np.testing.assert_allclose(result.plan, dense.plan, atol=1e-8)
    np.testing.assert_allclose(result.f, dense.f, atol=1e-7)
    for name in ("value", "value_linear", "dual_value", "gap_exact"):
        assert getattr(result, name) == pytest.approx(getattr(dense, name), abs=1e-8)
    assert 0 <= result.gap <= 1e-7
