"""Sparse costs together with all else: prices of marginals, constraints, gradients. The truth is the dense cost that forbids the
same pairs, and what makes no sense is refused by name."""

import importlib
import math

import numpy as np
import pytest
from scipy import sparse

from otbilevel import ConvergenceWarning, Grid, PointCloud, SparseCost, solve_ot, solve_ot_batch
from otbilevel.ot import (
    KL,
    AtMost,
    PartialMass,
    PlanConstraint,
    TotalVariation,
    barycenter,
    hvp,
    jvp,
    linearize,
    martingale,
    reg_path,
    separable,
    sinkhorn_divergence,
    vjp,
)

INF = math.inf
ENTROPIC = ["sinkhorn", "sns", "auto"]
FIGURES = ("value", "value_linear", "dual_value")
PRICES = [
    pytest.param(0.3, id="kl"),
    pytest.param((KL(0.02), KL(5.0)), id="kl-uneven"),
    pytest.param((None, KL(0.3)), id="rows-fixed"),
    pytest.param((0.3, INF), id="columns-fixed"),
    pytest.param(TotalVariation(0.3), id="tv"),
    pytest.param((TotalVariation(0.2), KL(0.1)), id="tv-kl"),
    pytest.param((AtMost(0.3), AtMost(0.0)), id="at-most"),
    pytest.param((None, AtMost(0.05)), id="rows-fixed-at-most"),
    pytest.param((AtMost(0.05), None), id="columns-fixed-at-most"),
    pytest.param((TotalVariation(0.2), None), id="tv-fixed"),
    pytest.param(PartialMass(0.5), id="partial"),
]


def stored(C):
    """The finite entries, zeros included."""
    i, j = np.nonzero(np.isfinite(C))
    return sparse.csr_array((C[i, j], (i, j)), shape=C.shape)


def problem(n=17, m=13, seed=0, ratio=1.0, density=0.5):
    """Uneven weights that leave a plan, some of them zero, b of `ratio` times the mass of a; the dense cost, and the stored one."""
    rng = np.random.default_rng(seed)
    C = np.where(rng.random((n, m)) < density, rng.random((n, m)), INF)
    C[np.arange(max(n, m)) % n, np.arange(max(n, m)) % m] = rng.random(max(n, m))
    mass = np.where(np.isfinite(C), rng.random((n, m)) ** 2, 0.0)
    mass[2], mass[:, 4] = 0.0, 0.0
    mass /= mass.sum()
    return mass.sum(axis=1), ratio * mass.sum(axis=0), C, stored(C)


@pytest.fixture(params=[False, True], ids=["in-order", "reordered"])
def order(request, monkeypatch):
    """Points as they come, and in another order, as they are where vectors are long."""
    if request.param:
        monkeypatch.setattr(importlib.import_module("otbilevel.ot.sparse_cost"), "LONG", 1)


def agree(got, want, tol):
    assert got.success
    assert want.success
    np.testing.assert_allclose(got.plan, want.plan, atol=tol)
    for name in FIGURES:
        assert getattr(got, name) == pytest.approx(getattr(want, name), abs=10 * tol), name


# Prices


@pytest.mark.parametrize("prices", PRICES)
@pytest.mark.parametrize("method", ENTROPIC)
@pytest.mark.parametrize("reg", [0.5, 0.02])
def test_prices(method, prices, reg, order):
    a, b, C, pairs = problem(ratio=0.8 if prices == (AtMost(0.05), None) else 1.3)
    settings = {"reg": reg, "unbalanced": prices, "method": method, "max_iter": 200_000}
    got, want = (solve_ot(a, b, cost, **settings) for cost in (pairs, C))
    agree(got, want, 1e-8)
    if not isinstance(prices, PartialMass) and prices != (AtMost(0.3), AtMost(0.0)):  # a constant may move between f and g
        np.testing.assert_allclose(got.f, want.f, atol=1e-6)
        np.testing.assert_allclose(got.g, want.g, atol=1e-6)
    assert 0 <= got.gap <= 1e-7
    assert got.gap_exact == pytest.approx(want.gap_exact, abs=1e-7)


@pytest.mark.parametrize("prices", [0.3, (None, TotalVariation(0.3)), (None, AtMost(0.05))], ids=str)
def test_prices_and_certificates_of_interrupted_runs(prices, order):
    """Bounds of the distance from the optimum, however far it is."""
    a, b, _, pairs = problem(40, 30, ratio=1.4, density=0.2)
    best = solve_ot(a, b, pairs, reg=1e-3, unbalanced=prices)
    with pytest.warns(ConvergenceWarning):
        early = solve_ot(a, b, pairs, reg=1e-3, unbalanced=prices, max_iter=4)
    assert early.marginal_error > 1e-4
    assert best.value - early.dual_value - 1e-12 <= early.gap < INF
    q, plan = early._plan.rounding, early._plan
    assert q.entries.min() >= 0
    if prices == (None, AtMost(0.05)):
        rows, columns = q.marginals(plan)
        np.testing.assert_allclose(rows, plan.problem.a, atol=1e-13)
        assert np.all(columns <= plan.problem.b + 1e-13)


def test_prices_take_time_for_stored_pairs_only():
    """Between so many points that all pairs would take hours."""
    n = 200_000
    pairs = sparse.diags_array([0.1, 0.0, 0.1], offsets=[-1, 0, 1], shape=(n, n))
    for prices in (0.5, (None, AtMost(0.5))):
        result = solve_ot(None, None, pairs, reg=0.01, unbalanced=prices)
        assert result.success
        assert 0 <= result.gap < 1e-8
        assert 0 <= result.gap_exact < 0.2
        assert result.gradient("C").C.sum() == pytest.approx(result.marginals[0].sum())


def test_rows_that_must_be_met_by_columns_that_may_hold_no_more():
    """Rows 0 and 1 hold 0.6 and share column 0, which holds 0.4."""
    pairs = sparse.csr_array(([1.0, 2.0, 1.0, 3.0], ([0, 1, 2, 2], [0, 0, 1, 2])))
    a, b = [0.3, 0.3, 0.4], [0.4, 0.5, 0.6]
    for cost, weights, prices, words in (
        (pairs, (a, b), (None, AtMost(0.0)), "rows [0, 1] with 0.48 of the mass may only reach column 0 with 0.32"),
        (pairs.T, (b, a), (AtMost(0.0), None), "columns [0, 1] with 0.48 of the mass may only be reached from row 0 with 0.32"),
    ):
        with pytest.raises(ValueError, match="leave no plan") as refused:
            solve_ot(*weights, cost, reg=0.1, unbalanced=prices)
        assert words in str(refused.value)
    for prices in (0.5, TotalVariation(0.5), (None, 0.5), (AtMost(1.0), AtMost(0.0))):
        assert solve_ot(a, b, pairs, reg=0.1, unbalanced=prices).success


@pytest.mark.parametrize("dense", [False, True])
def test_partial_mass_that_the_pairs_cannot_carry(dense):
    """Two stars: 0.4 through one, and 0.3 through the other."""
    C = np.full((4, 4), INF)
    C[:2, 0], C[2, 1:] = 1.0, 2.0
    C[3, 3] = 0.0
    a, b = [0.3, 0.3, 0.3, 0.0], [0.4, 0.2, 0.2, 0.2]
    cost = C if dense else stored(C)
    with pytest.raises(ValueError, match=r"PartialMass\(0.8\) must be less than the 0\.7.* that the forbidden pairs of C leave"):
        solve_ot(a, b, cost, reg=0.1, unbalanced=PartialMass(0.8))
    result = solve_ot(a, b, cost, reg=0.1, unbalanced=PartialMass(0.6))
    assert result.success
    assert result.plan.sum() == pytest.approx(0.6, abs=1e-8)


def test_a_path_with_prices(order):
    a, b, C, pairs = problem(ratio=1.3)
    for got, want in zip(*(reg_path(a, b, cost, [0.3, 0.1, 0.02], unbalanced=0.3) for cost in (pairs, C)), strict=True):
        agree(got, want, 1e-8)
    again = solve_ot(a, b, pairs, reg=0.02, unbalanced=0.3, init=got)
    assert again.nsweep <= 3


def test_points_of_zero_weight_have_potentials(order):
    a, b, C, pairs = problem(ratio=1.3)
    for prices in (0.3, TotalVariation(0.2)):
        got, want = (solve_ot(a, b, cost, reg=0.05, unbalanced=prices, tol=1e-12) for cost in (pairs, C))
        for first, second in zip(got.potentials, want.potentials, strict=True):
            np.testing.assert_allclose(first, second, atol=1e-9)
        y = np.random.default_rng(0).random((len(b), 2))
        np.testing.assert_allclose(got.barycentric_map(y), want.barycentric_map(y), atol=1e-9)
        np.testing.assert_allclose(got.sparse_plan.toarray(), want.plan, atol=1e-8)


# Constraints


@pytest.mark.parametrize("method", [*ENTROPIC, "exact"])
def test_constraints(method, order):
    a, b, C, pairs = problem()
    rng = np.random.default_rng(1)
    D = rng.random(C.shape)
    free = solve_ot(a, b, C, method="exact", options={"solver": "highs"}).plan
    u, v = rng.random(len(a)), rng.random(len(b))
    constraints = [PlanConstraint(D, ub=0.97 * (D * free).sum()), separable(u, v, lb=1.01 * (u @ free @ v))]
    reg = {} if method == "exact" else {"reg": 0.02, "method": method}
    got, want = (solve_ot(a, b, cost, constraints=constraints, **({"method": "exact"} | reg)) for cost in (pairs, C))
    agree(got, want, 1e-8)
    np.testing.assert_allclose(got.multipliers, want.multipliers, atol=1e-6)
    assert np.all(got.plan[np.isinf(C)] == 0)
    assert got.constraint_violation < 1e-8
    assert 0 <= got.gap < 1e-6
    assert got.gap_exact == pytest.approx(want.gap_exact, abs=1e-6)
    np.testing.assert_allclose(got.f, want.f, atol=1e-5)


def test_martingales_on_some_pairs(order):
    x, y = np.array([-1.0, 0.0, 1.0]), np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    P = np.array([[0.1, 0.1, 0.1, 0, 0], [0.0, 0.2, 0.0, 0.2, 0.0], [0, 0, 0.1, 0.1, 0.1]])
    C = np.where(P > 0, np.abs(x[:, None] - y[None, :]), INF)
    result = solve_ot(P.sum(1), P.sum(0), stored(C), reg=0.1, constraints=martingale(x, y))
    assert result.success
    np.testing.assert_allclose(result.barycentric_map(y), x, atol=1e-7)
    np.testing.assert_array_equal(result.plan > 0, P > 0)


def test_constraints_on_too_many_pairs_are_refused():
    n = 50_000
    pairs = sparse.eye_array(n, format="csr")
    with pytest.raises(ValueError, match=r'costs of all pairs are stored.*options\["memory"\]'):
        solve_ot(None, None, pairs, reg=0.1, constraints=separable(np.ones(n), np.ones(n), ub=2.0))


# Derivatives


@pytest.mark.parametrize("prices", [None, 0.3, (None, TotalVariation(0.4))], ids=str)
def test_gradients_of_the_value(prices, order):
    a, b, C, pairs = problem(ratio=1.3 if prices else 1.0)
    settings = {"reg": 0.05, "unbalanced": prices, "tol": 1e-12}
    got, want = (solve_ot(a, b, cost, **settings).gradient() for cost in (pairs, C))
    np.testing.assert_allclose(got.a, want.a, atol=1e-8)
    np.testing.assert_allclose(got.b, want.b, atol=1e-8)
    assert got.reg == pytest.approx(want.reg, abs=1e-8)
    assert got.C.nnz == pairs.nnz
    np.testing.assert_array_equal(got.C.indices, pairs.indices)
    np.testing.assert_allclose(got.C.toarray(), want.C, atol=1e-9)
    change = np.random.default_rng(2).random(pairs.nnz)
    values = [solve_ot(a, b, stored_like(pairs, s * change), **settings).value for s in (1e-5, -1e-5)]
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(got.C.data @ change, abs=1e-7)


def stored_like(pairs, change):
    return sparse.csr_array((pairs.data + change, pairs.indices, pairs.indptr), shape=pairs.shape)


def test_gradient_of_the_exact_value():
    a, b, _, pairs = problem()
    got = solve_ot(a, b, pairs, method="exact")
    gradient = got.gradient()
    np.testing.assert_allclose(gradient.C.toarray(), got.plan, atol=1e-12)
    assert gradient.C.nnz == pairs.nnz
    np.testing.assert_allclose(gradient.a, got.f)


def test_single_precision_gradients():
    a, b, _, pairs = problem()
    gradient = solve_ot(a.astype(np.float32), b.astype(np.float32), pairs.astype(np.float32), reg=0.05).gradient()
    assert gradient.C.dtype == gradient.a.dtype == np.float32


def test_implicit_derivatives(order):
    a, b, C, pairs = problem(density=0.7)
    got, want = (linearize(solve_ot(a, b, cost, reg=0.05, tol=1e-13)) for cost in (pairs, C))
    rng = np.random.default_rng(3)
    f, g, plan, points = rng.random(len(a)), rng.random(len(b)), rng.random(C.shape), rng.random((len(b), 2))
    given = {"f": f, "g": g, "value_linear": 0.7, "barycentric_map": rng.random((len(a), 2)), "points": points}
    first, second = (one.vjp(plan=plan, **given) for one in (got, want))
    for name in ("a", "b", "points"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), atol=1e-6)
    assert first.reg == pytest.approx(second.reg, abs=1e-6)
    assert first.C.nnz == pairs.nnz
    np.testing.assert_allclose(first.C.toarray(), second.C, atol=1e-6)
    sparse_plan = got.vjp(plan=stored(np.where(np.isfinite(C), plan, INF)), **given)
    np.testing.assert_allclose(sparse_plan.C.toarray(), first.C.toarray(), atol=1e-10)
    assert max(got.residual, want.residual) < 1e-9


def test_forward_and_second_derivatives(order):
    a, b, C, pairs = problem(density=0.7)
    got, want = (solve_ot(a, b, cost, reg=0.05, tol=1e-13) for cost in (pairs, C))
    rng = np.random.default_rng(4)
    dC, points = rng.random(C.shape), rng.random((len(b), 2))
    sparse_change = stored(np.where(np.isfinite(C), dC, INF))
    outputs = {"reg": 0.1, "plan": True, "value_linear": True, "points": points}
    first, second = jvp(got, C=sparse_change, **outputs), jvp(want, C=dC, **outputs)
    for name in ("f", "g", "barycentric_map"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), atol=1e-6)
    for name in ("value", "value_linear"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), abs=1e-8)
    np.testing.assert_allclose(first.plan.toarray(), second.plan, atol=1e-7)
    first, second = hvp(got, C=sparse_change), hvp(want, C=dC)
    np.testing.assert_allclose(first.C.toarray(), second.C, atol=1e-6)
    np.testing.assert_allclose(first.a, second.a, atol=1e-6)
    np.testing.assert_allclose(hvp(got, C=dC, wrt="C").C.toarray(), first.C.toarray(), atol=1e-12)
    step = 1e-5
    moved = [solve_ot(a, b, stored_like(pairs, s * sparse_change.data), reg=0.05, tol=1e-13).gradient("C").C for s in (step, -step)]
    np.testing.assert_allclose((moved[0] - moved[1]).toarray() / (2 * step), first.C.toarray(), atol=1e-5)


def test_changes_of_another_shape_are_refused():
    a, b, C, pairs = problem()
    result = solve_ot(a, b, pairs, reg=0.1)
    with pytest.raises(ValueError, match=r"C must have shape \(17, 13\), got \(13, 17\)"):
        jvp(result, C=pairs.T)
    with pytest.raises(ValueError, match="x is no part of a problem with a SparseCost"):
        jvp(result, x=np.ones((17, 2)))
    with pytest.raises(TypeError, match="plan is a sparse matrix"):
        vjp(solve_ot(a, b, C, reg=0.1), plan=pairs)


# Other entry functions


def test_a_batch_forms_the_matrix():
    a, b, C, pairs = problem()
    stack = np.stack([a, a])
    for cost in (pairs, SparseCost(pairs)):
        got, want = (solve_ot_batch(stack, b, c, reg=0.05) for c in (cost, C))
        np.testing.assert_allclose(got.plan, want.plan, atol=1e-9)


def test_divergences():
    rng = np.random.default_rng(0)
    x, y = rng.random((12, 2)), rng.random((12, 2))
    full = [PointCloud(*pair).to_dense().matrix for pair in ((x, y), (x, x), (y, y))]
    near = np.where(full[0] < 0.6, full[0], INF)
    got, want = (sinkhorn_divergence(None, None, reg=0.05, cost=(c, *full[1:])) for c in (stored(near), near))
    assert got.success
    assert got.value == pytest.approx(want.value, abs=1e-9)
    np.testing.assert_allclose(got.gradient().a, want.gradient().a, atol=1e-7)
    np.testing.assert_allclose(got.gradient("C").C.toarray(), want.gradient("C").C, atol=1e-9)
    stored_own = sinkhorn_divergence(None, None, reg=0.05, cost=(full[0], *map(stored, full[1:])))
    assert stored_own.value == pytest.approx(sinkhorn_divergence(None, None, reg=0.05, cost=tuple(full)).value, abs=1e-9)
    for own in (stored(np.where(full[1] < 0.3, full[1], INF)), np.where(full[1] < 0.3, full[1], INF)):
        with pytest.raises(ValueError, match="C_aa in cost forbids pairs"):
            sinkhorn_divergence(None, None, reg=0.05, cost=(full[0], own, full[2]))
    uneven = full[1] + np.arange(12.0)
    with pytest.raises(ValueError, match="C_aa in cost must be symmetric"):
        sinkhorn_divergence(None, None, reg=0.05, cost=(full[0], stored(uneven), full[2]))


def test_barycentres_refuse_forbidden_pairs():
    a, _, _, pairs = problem()
    with pytest.raises(ValueError, match=r"the cost of input 0 forbids pairs.*large finite costs"):
        barycenter([a, a], pairs, reg=0.1)


def test_other_geometries_are_no_sparse_arrays():
    _, _, _, pairs = problem()
    for make in (lambda: PointCloud(pairs), lambda: Grid((2, 2), cost=[pairs, pairs])):
        with pytest.raises(TypeError, match="sparse matrix"):
            make()
