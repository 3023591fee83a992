"""Many passes in one call: what one pass at a time gives, and no more than is asked for."""

import numpy as np
import pytest

from otbilevel import DenseCost, PointCloud, Status, solve_ot
from otbilevel.ot import KL, TotalVariation, sinkhorn_divergence, sns
from otbilevel.ot.penalties import make_penalties
from otbilevel.ot.problem import make_problem
from otbilevel.ot.row_plan import Work
from otbilevel.ot.sinkhorn import scale
from otbilevel.ot.stored_plan import StoredPlan

PRICES = [None, 0.05, 3.0, (None, KL(0.2)), (KL(0.2), None), (KL(2.0), KL(0.1))]


def data(n=23, m=17, seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m)), rng.random((n, m))


def plan_of(problem, *, single, moved=0.0):
    plan = StoredPlan.dense(problem.geometry, problem.a, Work(), single=single, marginals=problem.marginals)
    plan.sweep(problem.zero_potential(problem.reg), problem.reg, single=single)
    if moved:
        plan.scaling_pass(moved * np.random.default_rng(1).standard_normal(len(problem.b)))
    return plan


@pytest.mark.parametrize("moved", [0.0, 0.3])
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("price", PRICES, ids=str)
def test_they_are_those_of_one_pass_at_a_time(price, single, moved):
    a, b, C = data()
    scaled = b if price is None else 1.4 * b
    problem = make_problem(a, scaled, DenseCost(C), reg=0.1, tol=None, penalties=make_penalties(price))
    together, apart = (plan_of(problem, single=single, moved=moved) for _ in range(2))
    g, errors = together.scaling_passes(problem.b, target=1e-300, most=6, expected=1e9)
    expected_g, expected_errors = scale(apart, problem.b, lambda errors: len(errors) == 7)
    assert len(errors) == 6 and together.work.products == apart.work.products
    close = {"rtol": 1e-5, "atol": 1e-8} if single else {"rtol": 1e-9, "atol": 1e-13}
    np.testing.assert_allclose(errors, expected_errors[1:], **close)
    np.testing.assert_allclose(g, expected_g, **close)
    for name in ("g", "column_sums", "_u", "_v"):
        np.testing.assert_allclose(getattr(together, name), getattr(apart, name), err_msg=name, **close)
    np.testing.assert_allclose(together.row_potentials(), apart.row_potentials(), **close)
    assert together.marginal_error(problem.b) == pytest.approx(errors[-1], rel=1e-5 if single else 1e-9, abs=1e-14)
    assert together.single is single


def test_when_they_end():
    a, b, C = data()
    problem = make_problem(a, b, DenseCost(C), reg=0.1, tol=None)
    _, errors = plan_of(problem, single=False).scaling_passes(b, target=1e-6, most=100, expected=100)
    assert errors[-1] <= 1e-6 < errors[-2]
    _, slow = plan_of(problem, single=False).scaling_passes(b, target=1e-6, most=100, expected=4)
    assert len(slow) == 3  # then the contraction is known
    short = plan_of(problem, single=False)
    short._reach = 1e-3
    g, errors = short.scaling_passes(b, target=1e-6, most=100, expected=100)
    np.testing.assert_allclose(g, short.g + short.reg * np.log(b / short.column_sums))
    assert errors == []


def test_prices_that_they_do_not_know_and_plans_that_are_large():
    a, b, C = data()
    problem = make_problem(a, b, DenseCost(C), reg=0.1, tol=None, penalties=make_penalties(TotalVariation(0.3)))
    assert plan_of(problem, single=False).scaling_passes(b, target=0.0, most=6, expected=9) is None
    large = make_problem(None, None, PointCloud(np.random.default_rng(0).random((800, 2))), reg=0.1, tol=None)
    assert plan_of(large, single=True).scaling_passes(large.b, target=0.0, most=6, expected=9) is None


@pytest.mark.parametrize("reg", [1.0, 0.1, 1e-2, 1e-3])
@pytest.mark.parametrize("price", PRICES, ids=str)
def test_a_callback_changes_nothing_but_the_way(price, reg):
    a, b, C = data(40, 30)
    alone = solve_ot(a, b, C, reg=reg, unbalanced=price)
    seen = []
    watched = solve_ot(a, b, C, reg=reg, unbalanced=price, callback=seen.append)
    assert alone.success and watched.success and len(seen) == watched.nit == alone.nit
    np.testing.assert_allclose(alone.plan, watched.plan, atol=1e-9)
    np.testing.assert_allclose(alone.history["marginal_error"], watched.history["marginal_error"], rtol=1e-2, atol=1e-10)
    np.testing.assert_array_equal(alone.history["reg"], watched.history["reg"])
    assert (alone.nsweep, alone.nproduct) == (watched.nsweep, watched.nproduct)


@pytest.mark.parametrize("price", PRICES, ids=str)
def test_small_problems_and_large_ones_are_solved_alike(price, monkeypatch):
    a, b, C = data(40, 30)
    small = solve_ot(a, b, C, reg=1e-2, unbalanced=price)
    monkeypatch.setattr(sns, "SMALL", 0)
    large = solve_ot(a, b, C, reg=1e-2, unbalanced=price)
    np.testing.assert_allclose(small.plan, large.plan, atol=1e-9)
    assert small.success and large.success and small.nsweep != large.nsweep


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8])
def test_the_iteration_limit_holds(limit):
    with pytest.warns(match="max_iter"):
        result = solve_ot(*data(), reg=1e-2, max_iter=limit)
    assert result.nit == limit == len(result.history["reg"]) and result.status is Status.ITERATION_LIMIT


@pytest.mark.parametrize("reg", [1.0, 0.1, 1e-3])
@pytest.mark.parametrize("price", [None, 0.3])
def test_a_measure_with_itself(price, reg, monkeypatch):
    """By plain averages in one call, and by mixing: the same potentials."""
    rng = np.random.default_rng(0)
    x, a = rng.random((60, 2)), rng.dirichlet(np.ones(60))
    averaged = sinkhorn_divergence(a, a, x, x + 1.0, reg=reg, unbalanced=price).result_aa
    monkeypatch.setattr(sns, "SMALL", 0)
    mixed = sinkhorn_divergence(a, a, x, x + 1.0, reg=reg, unbalanced=price).result_aa
    assert averaged.success and mixed.success and averaged.nit > mixed.nit
    assert averaged.nit == len(averaged.history["marginal_error"]) < 40
    np.testing.assert_allclose(averaged.f, mixed.f, atol=1e-8)
    errors = averaged.history["marginal_error"]
    assert np.all(errors[1:] < 0.6 * errors[:-1])


def test_a_measure_with_itself_without_a_positive_kernel():
    """Averages then need not converge, and the general method takes over."""
    rng = np.random.default_rng(0)
    C = rng.random((12, 12))
    C = C + C.T
    cost = (rng.random((12, 12)), C, C)
    result = sinkhorn_divergence(None, None, reg=1e-2, cost=cost)
    for part in (result.result_aa, result.result_bb):
        assert part.success and part.marginal_error <= 1e-9
