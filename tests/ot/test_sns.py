"""Sinkhorn-Newton-Sparse: it converges where others do not, and says so when it does not."""

import numpy as np
import pytest

from otbilevel import ConvergenceWarning, PointCloud, solve_ot
from otbilevel._core.result import Status
from otbilevel.ot.stored_plan import StoredPlan
from otbilevel.testing.ot_laws import check_ot_result
from otbilevel.testing.ot_problems import FAMILIES

CELLS = [(family, reg) for family in FAMILIES for reg in (1e-1, 1e-2, 1e-3, 2e-4)]


def l1_error(plan, a, b):
    return np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()


@pytest.mark.parametrize("method", ["sns", "auto"])
@pytest.mark.parametrize(("family", "reg"), CELLS)
def test_every_cell_converges(family, reg, method):
    problem = FAMILIES[family](300, 0)
    result = solve_ot(problem.a, problem.b, problem.C, reg=reg, method=method)
    assert result.success
    assert l1_error(result.plan, problem.a, problem.b) <= 1e-9
    assert 0 <= result.gap < 1e-8


@pytest.mark.parametrize("seed", range(10))
def test_headline_of_the_paper(seed):
    """Random assignment, n = 500, reg = 1/1200: the paper's 29 iterations against 56,199 of Sinkhorn."""
    problem = FAMILIES["assignment"](500, seed)
    result = solve_ot(None, None, problem.C, reg=1 / 1200, method="sns")
    assert result.success and result.nit_newton <= 40
    assert l1_error(result.plan, problem.a, problem.b) <= 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_uneven_weights_and_sides(seed):
    """Rectangular problems with Dirichlet(1/2) weights, some of them tiny, down to reg = 1e-4."""
    rng = np.random.default_rng(seed)
    n, m = rng.integers(20, 300, 2)
    a, b = rng.dirichlet(np.full(n, 0.5)), rng.dirichlet(np.full(m, 0.5))
    x, y = rng.standard_normal((n, 2 + seed)), rng.standard_normal((m, 2 + seed))
    C = ((x[:, None] - y[None, :]) ** 2).sum(-1)
    exact = solve_ot(a, b, C, method="exact").value
    for reg in (1e-2, 1e-3, 1e-4):
        result = solve_ot(a, b, C, reg=reg * C.max(), method="sns")
        check_ot_result(result, a, b, C, tol=1e-9, exact=exact)


@pytest.mark.parametrize("seed", [5, 7, 9])
def test_weights_over_many_orders_of_magnitude(seed):
    rng = np.random.default_rng(seed)
    a, b, C = 10.0 ** rng.uniform(-40, 0, 40), 10.0 ** rng.uniform(-40, 0, 30), rng.random((40, 30))
    a, b = a / a.sum(), b / b.sum()
    check_ot_result(solve_ot(a, b, C, reg=1e-3, method="sns"), a, b, C, tol=1e-9)


@pytest.mark.parametrize("reg", [1e-5, 1e-6])
def test_extreme_regularisation(reg):
    problem = FAMILIES["cloud-2d"](200, 1)
    result = solve_ot(problem.a, problem.b, problem.C, reg=reg, method="sns")
    assert result.success and l1_error(result.plan, problem.a, problem.b) <= 1e-9
    exact = solve_ot(problem.a, problem.b, problem.C, method="exact").value
    assert abs(result.value_linear - exact) <= result.gap_exact + result.marginal_error * problem.C.max()


def test_active_set_is_used_and_changes_nothing(monkeypatch):
    """Where few entries carry the mass, steps on them replace steps on all, and the certified plan is the same."""
    made = []
    restrict = StoredPlan.on
    monkeypatch.setattr(StoredPlan, "on", lambda active, plan: made.append(len(active.values)) or restrict(active, plan))
    problem = FAMILIES["cloud-10d"](400, 0)
    sparse = solve_ot(problem.a, problem.b, problem.C, reg=2e-4, method="sns")
    assert made and max(made) <= 0.1 * sparse.plan.size
    made.clear()
    dense = solve_ot(problem.a, problem.b, problem.C, reg=2e-4, method="sns", options={"active_density": 0.0})
    assert not made
    assert sparse.success and dense.success
    np.testing.assert_allclose(sparse.plan, dense.plan, atol=3e-9)


def test_points_without_the_matrix():
    rng = np.random.default_rng(8)
    x, y = rng.random((500, 2)), rng.random((450, 2))
    result = solve_ot(None, None, PointCloud(x, y), reg=1e-3, method="sns")
    C = ((x[:, None] - y[None, :]) ** 2).sum(-1)
    check_ot_result(result, np.full(500, 1 / 500), np.full(450, 1 / 450), C, tol=1e-9)


def test_rounding_floor_is_reported():
    """reg so small that double precision cannot represent the plan to tol: an honest status, and the best iterate."""
    rng = np.random.default_rng(9)
    C = 1e6 + rng.random((50, 50))
    with pytest.warns(ConvergenceWarning, match="double precision promises no better than about"):
        result = solve_ot(None, None, C, reg=1e-4, method="sns", tol=1e-12)
    assert result.status is Status.STALLED and not result.success
    assert l1_error(result.plan, np.full(50, 0.02), np.full(50, 0.02)) < 1e-4


def test_history_follows_the_path():
    problem = FAMILIES["assignment"](100, 0)
    result = solve_ot(None, None, problem.C, reg=1e-3, method="sns")
    history = result.history
    assert all(len(values) == result.nit for values in history.values())
    assert np.all(np.diff(history["reg"]) <= 0) and history["reg"][-1] == 1e-3
    assert np.all(np.diff(history["seconds"]) >= 0)
    assert history["marginal_error"][-1] == pytest.approx(result.marginal_error, rel=0.5)


@pytest.mark.parametrize("method", ["sns", "auto"])
@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 15, 19, 20, 21])
def test_stopping_anywhere_returns_an_honest_iterate(stop_at, method):
    """Whatever phase is interrupted, the result is finite and its error is that of its plan at the target."""
    problem = FAMILIES["cloud-2d"](120, 3)

    def callback(intermediate_result):
        assert intermediate_result.f.shape == intermediate_result.g.shape == (120,)
        if intermediate_result.nit == stop_at:
            raise StopIteration

    result = solve_ot(problem.a, problem.b, problem.C, reg=1e-4, method=method, callback=callback)
    assert result.status is Status.CALLBACK_STOP and result.nit == stop_at
    assert result.marginal_error == pytest.approx(l1_error(result.plan, problem.a, problem.b), abs=1e-12)
    assert np.all(np.isfinite(result.f)) and result.gap >= 0


class TestPaperVariant:
    """Algorithm 1 as published."""

    @pytest.mark.parametrize("seed", range(3))
    def test_assignment(self, seed, backend):
        problem = FAMILIES["assignment"](100, seed)
        C = backend.asarray(problem.C)
        result = solve_ot(None, None, C, reg=1 / 400, method="sns", options={"variant": "paper"})
        assert result.success and result.marginal_error <= 1e-9
        steps = result.history["cg"]
        assert np.all(steps[:20] == 0) and np.all(steps[20:] > 0)
        assert result.nit == 20 + result.nit_newton
        robust = solve_ot(None, None, C, reg=1 / 400, method="sns")
        np.testing.assert_allclose(backend.to_numpy(result.plan), backend.to_numpy(robust.plan), atol=2e-9)

    def test_full_hessian_converges_quadratically(self):
        problem = FAMILIES["assignment"](60, 0)
        options = {"variant": "paper", "hessian_density": 1.0, "n_sinkhorn": 200}
        errors = solve_ot(None, None, problem.C, reg=0.01, method="sns", options=options, tol=1e-13).history["marginal_error"][200:]
        assert len(errors) <= 8
        fast = errors[errors > 1e-6]
        assert np.all(fast[1:] <= 50 * fast[:-1] ** 2)

    def test_stall_on_an_image_is_reported(self):
        problem = FAMILIES["image-w1"](100, 0)
        options = {"variant": "paper"}
        with pytest.warns(ConvergenceWarning):
            result = solve_ot(problem.a, problem.b, problem.C, reg=1 / 1200, method="sns", options=options, max_iter=40)
        assert not result.success and result.status in (Status.ITERATION_LIMIT, Status.STALLED)
        robust = solve_ot(problem.a, problem.b, problem.C, reg=1 / 1200, method="sns")
        assert robust.success
