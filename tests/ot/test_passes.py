"""Many passes in one call: what one pass at a time gives, and no more than is asked for."""

import numpy as np
import pytest

from otbilevel import DenseCost, PointCloud, Status, solve_ot
from otbilevel.ot import KL, TotalVariation, sinkhorn_divergence, sns
from otbilevel.ot.penalties import make_penalties
from otbilevel.ot.problem import make_problem
from otbilevel.ot.row_plan import Passes, RowPlan, Work
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


def passes(plan, b, count, *, tol=0.0, relaxation=1.0, together=True):
    """What the plan's queue does, or what `RowPlan` does one at a time; and all errors."""
    log_b, errors, before = np.log(b), [], plan.log_v
    step = plan.scaling_passes if together else lambda *args, **rule: RowPlan.scaling_passes(plan, *args, **rule)
    found = Passes(before + relaxation * plan.half_step(log_b), [], in_reach=True)
    while len(errors) < count and found.in_reach and (not errors or errors[-1] > tol):
        found = step(found.log_v, b, log_b, count if together else 1, tol=tol, relaxation=relaxation)
        errors += found.errors
        if together:
            break
    return found, errors


@pytest.mark.parametrize("moved", [0.0, 0.3])
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize(("price", "relaxation"), [*((price, 1.0) for price in PRICES), (None, 1.4)], ids=str)
def test_they_are_those_of_one_pass_at_a_time(price, relaxation, single, moved):
    a, b, C = data()
    scaled = b if price is None else 1.4 * b
    problem = make_problem(a, scaled, DenseCost(C), reg=0.1, tol=None, penalties=make_penalties(price))
    queued, apart = (plan_of(problem, single=single, moved=moved) for _ in range(2))
    assert queued.queues
    found, errors = passes(queued, problem.b, 6, relaxation=relaxation)
    expected, expected_errors = passes(apart, problem.b, 6, relaxation=relaxation, together=False)
    assert len(errors) == 6 and queued.work.products == apart.work.products and found.in_reach
    close = {"rtol": 1e-5, "atol": 1e-8} if single else {"rtol": 1e-9, "atol": 1e-13}
    np.testing.assert_allclose(errors, expected_errors, **close)
    np.testing.assert_allclose(found.log_v, expected.log_v, **close)
    for name in ("g", "column_sums", "_u", "_v", "row_error"):
        np.testing.assert_allclose(getattr(queued, name), getattr(apart, name), err_msg=name, **close)
    np.testing.assert_allclose(queued.row_potentials(), apart.row_potentials(), **close)
    queued._measured = None
    assert queued.marginal_error(problem.b) == pytest.approx(errors[-1], rel=1e-5 if single else 1e-9, abs=1e-14)
    assert queued.single is single


def test_when_they_end():
    a, b, C = data()
    problem = make_problem(a, b, DenseCost(C), reg=0.1, tol=None)
    _, errors = passes(plan_of(problem, single=False), b, 100, tol=1e-6)
    assert errors[-1] <= 1e-6 < errors[-2] and len(errors) < 100
    short = plan_of(problem, single=False)
    short._reach, g = 1e-3, short.g
    found, errors = passes(short, b, 100)
    assert errors == [] and not found.in_reach and short.g is g
    np.testing.assert_allclose(found.log_v, np.log(b / short.column_sums))
    nearly = plan_of(problem, single=False)
    _, first = passes(plan_of(problem, single=False), b, 2)
    nearly._reach = np.ptp(passes(plan_of(problem, single=False), b, 1)[0].log_v)  # the second is within, the third is not
    found, errors = passes(nearly, b, 100)
    assert errors == first and not found.in_reach
    broken = plan_of(problem, single=False)
    broken._k[3, 4] = np.nan
    _, errors = passes(broken, b, 100)
    assert len(errors) == 1 and np.isnan(errors[0])


def test_prices_that_they_do_not_know_and_plans_that_are_large():
    a, b, C = data()
    problem = make_problem(a, b, DenseCost(C), reg=0.1, tol=None, penalties=make_penalties(TotalVariation(0.3)))
    assert not plan_of(problem, single=False).queues
    large = make_problem(None, None, PointCloud(np.random.default_rng(0).random((800, 2))), reg=0.1, tol=None)
    assert not plan_of(large, single=True).queues


@pytest.mark.parametrize("reg", [1.0, 0.1, 1e-2, 1e-3])
@pytest.mark.parametrize("price", PRICES, ids=str)
def test_a_callback_sees_every_iteration(price, reg):
    """Without one, passes are made several at a time, and may be some more."""
    a, b, C = data(40, 30)
    alone = solve_ot(a, b, C, reg=reg, unbalanced=price)
    seen = []
    watched = solve_ot(a, b, C, reg=reg, unbalanced=price, callback=seen.append)
    assert alone.success and watched.success
    np.testing.assert_allclose(alone.plan, watched.plan, atol=1e-9)
    for result in (alone, watched):
        assert all(len(values) == result.nit for values in result.history.values())
    assert [one.marginal_error for one in seen] == watched.history["marginal_error"].tolist()
    first, others = (result.history["marginal_error"][:4] for result in (alone, watched))  # of the first level
    np.testing.assert_allclose(first, others, rtol=1e-6, atol=1e-12)


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
