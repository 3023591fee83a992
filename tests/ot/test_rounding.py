"""The certificates against their definitions, with a rounded plan that is built afresh."""

import pickle

import numpy as np
import pytest
from scipy.optimize import linprog

from otbilevel import solve_ot

pytestmark = pytest.mark.filterwarnings("ignore::otbilevel.ConvergenceWarning")


def rounded(plan, a, b):
    """Algorithm 2 of Altschuler, Weed and Rigollet."""
    q = plan * np.minimum(1, a / plan.sum(1))[:, None]
    q = q * np.minimum(1, b / q.sum(0))[None, :]
    rows, columns = a - q.sum(1), b - q.sum(0)
    return q + np.outer(rows, columns) / max(columns.sum(), 1e-300)


def objective(q, a, b, C, reg):
    ab = np.outer(a, b)
    entropy = np.sum(np.where(q > 0, q * np.log(np.where(q > 0, q, 1) / ab), 0) - q + ab)
    return np.sum(q * C) + reg * entropy


@pytest.fixture(params=range(4))
def problem(request):
    rng = np.random.default_rng(request.param)
    a, b = rng.dirichlet(np.ones(18)), rng.dirichlet(np.ones(13))
    mass = 10.0 ** rng.uniform(-2, 2)
    return mass * a, mass * b, rng.random((18, 13))


@pytest.mark.parametrize("method", ["sinkhorn", "sns", "auto"])
@pytest.mark.parametrize("max_iter", [2, 6, 15, None])
def test_gaps_are_what_they_say(problem, method, max_iter):
    """At converged and at interrupted runs alike; the true optimum lies within both."""
    a, b, C = problem
    reg = 0.02
    result = solve_ot(a, b, C, reg=reg, method=method, max_iter=max_iter)
    q = rounded(result.plan, a, b)
    np.testing.assert_allclose(q.sum(1), a, rtol=1e-12)
    np.testing.assert_allclose(q.sum(0), b, rtol=1e-12)
    scale = a.sum() * (1 + a.sum() * reg)
    assert result.gap == pytest.approx(objective(q, a, b, C, reg) - result.dual_value, abs=1e-12 * scale, rel=1e-9)
    g = (C - result.f[:, None]).min(0)
    f = (C - g[None, :]).min(1)
    assert result.gap_exact == pytest.approx(np.sum(q * C) - a @ f - b @ g, rel=1e-9)
    best = solve_ot(a, b, C, reg=reg, tol=1e-12)
    assert result.gap >= best.dual_value - result.dual_value - 1e-11 * scale
    exact = solve_ot(a, b, C, method="exact").value
    assert 0 <= np.sum(q * C) - exact <= result.gap_exact + 1e-12 * scale
    if max_iter is not None and max_iter < 15:
        assert result.gap > 1e-6 * a.sum()


@pytest.mark.parametrize("offset", [1e8, -1e8, 1e9, -1e9])
def test_offsets_of_the_cost_do_not_cancel_in_a_certificate(offset):
    for seed in range(5):
        C = np.random.default_rng(seed).random((20, 20))
        shifted = C + offset
        result = solve_ot(None, None, shifted, reg=0.05, tol=1e-4)
        q = rounded(result.plan, np.full(20, 0.05), np.full(20, 0.05))
        exact = solve_ot(None, None, shifted - offset, method="exact").value
        excess = np.sum(q * (shifted - offset)) - exact
        assert excess <= result.gap_exact * (1 + 1e-6) + 1e-6
        assert result.gap_exact < 0.5


def test_forbidden_pairs():
    """The rounding keeps off them, so that both gaps stay finite and true."""
    rng = np.random.default_rng(1)
    a = rng.dirichlet(np.ones(15))
    C = rng.random((15, 15))
    holes = rng.random((15, 15)) < 0.4
    np.fill_diagonal(holes, False)
    C[holes] = np.inf
    exact = solve_ot(a, a, C, method="exact").value
    tight = solve_ot(a, a, C, reg=0.05, tol=1e-12)
    for tol in (1e-2, 1e-4, 1e-9):
        result = solve_ot(a, a, C, reg=0.05, tol=tol)
        assert 0 <= result.gap < np.inf
        assert result.gap >= tight.dual_value - result.dual_value - 1e-14
        assert result.value_linear - exact <= result.gap_exact + 2 * tol
    assert result.gap < 1e-9


def test_no_certificate_without_a_feasible_plan():
    """Masses of the components that differ by 6e-9 pass the feasibility check, but no Q exists."""
    C = np.array([[1.0, np.inf], [np.inf, 1.0]])
    result = solve_ot([0.5 + 3e-9, 0.5 - 3e-9], [0.5, 0.5], C, reg=0.1, tol=1e-7)
    assert result.gap == result.gap_exact == np.inf


@pytest.mark.parametrize("reg", [1e3, 1e8, 1e12, 1e16])
def test_values_at_large_regularisation(reg):
    """The plan tends to a b^T, and value to <a b^T, C>, from below by at most range^2 / reg."""
    rng = np.random.default_rng(2)
    a, b, C = rng.dirichlet(np.ones(30)), rng.dirichlet(np.ones(20)), rng.random((30, 20))
    result = solve_ot(a, b, C, reg=reg)
    limit = a @ C @ b
    assert result.value == pytest.approx(limit, abs=1 / reg + 1e-13)
    assert result.dual_value == pytest.approx(result.value, abs=1e-12)


@pytest.mark.parametrize("solver", ["network-simplex", "highs"])
@pytest.mark.parametrize("scale", [1e-18, 1e-9, 1.0, 1e12, 1e25])
def test_exact_does_not_depend_on_units(solver, scale):
    rng = np.random.default_rng(3)
    x, y = rng.random((30, 2)), rng.random((30, 2))
    C = ((x[:, None] - y[None, :]) ** 2).sum(-1)
    want = solve_ot(None, None, C, method="exact", options={"solver": solver})
    got = solve_ot(None, None, scale * C, method="exact", options={"solver": solver})
    assert got.success
    assert got.value == pytest.approx(scale * want.value, rel=1e-9)
    assert got.gap_exact <= 1e-9 * scale


@pytest.mark.parametrize("solver", ["network-simplex", "highs"])
def test_an_interrupted_linear_program_is_not_certified(solver):
    rng = np.random.default_rng(4)
    C = rng.random((60, 60)) + 1
    optimum = solve_ot(None, None, C, method="exact").value
    result = solve_ot(None, None, C, method="exact", max_iter=1, options={"solver": solver})
    assert not result.success
    assert result.dual_value <= optimum + 1e-12
    q = rounded(result.plan + 1e-300, np.full(60, 1 / 60), np.full(60, 1 / 60))
    assert result.gap_exact >= np.sum(q * C) - optimum - 1e-9
    assert result.gap_exact > 1e-3


def test_exact_potentials_are_feasible_at_zero_weights_of_both_sides():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        a, b, C = rng.random(6), rng.random(6), rng.random((6, 6))
        a[rng.choice(6, 2, replace=False)] = 0
        b[rng.choice(6, 2, replace=False)] = 0
        result = solve_ot(a / a.sum(), b / b.sum(), C, method="exact")
        assert np.all(result.f[:, None] + result.g[None, :] <= C + 1e-12)
        value = linprog(
            C.ravel(),
            A_eq=np.vstack([np.kron(np.eye(6), np.ones(6)), np.kron(np.ones(6), np.eye(6))]),
            b_eq=np.concatenate([a / a.sum(), b / b.sum()]),
        ).fun
        assert result.value == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("method", ["sns", "auto"])
@pytest.mark.parametrize("max_iter", [5, 7, 10, 15, 25])
def test_an_interrupted_run_returns_the_best_it_saw_at_the_target(method, max_iter):
    C = np.round(np.random.default_rng(2).random((80, 80)) * 6) / 6
    result = solve_ot(None, None, C, reg=1e-3, method=method, max_iter=max_iter)
    seen = result.history["marginal_error"][result.history["reg"] == 1e-3]
    if len(seen):
        assert result.marginal_error <= 1.01 * seen.min() + 2e-6


def test_results_survive_pickling(backend):
    C = backend.asarray(np.random.default_rng(5).random((7, 6)))
    result = solve_ot(None, None, C, reg=0.1)
    if backend.library != "array_api_strict":  # its arrays cannot be pickled
        copy = pickle.loads(pickle.dumps(result))
        np.testing.assert_array_equal(backend.to_numpy(copy.plan), backend.to_numpy(result.plan))
        assert copy.gap == result.gap


def test_callbacks_see_public_potentials_of_their_iteration():
    rng = np.random.default_rng(6)
    a, b, C = rng.dirichlet(np.ones(20)), rng.dirichlet(np.ones(15)), rng.random((20, 15))
    a[0] = 0.0
    a, b = 3 * a / a.sum(), 3 * b

    def check(ir):
        plan = a[:, None] * b[None, :] * np.exp((ir.f[:, None] + ir.g[None, :] - C) / ir.reg)
        error = (np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()) / 3
        assert error == pytest.approx(ir.marginal_error, abs=2e-6, rel=1e-3)
        ir.f[:] = 0.0  # a copy: the run does not mind

    for method in ("sinkhorn", "sns", "auto"):
        assert solve_ot(a, b, C, reg=0.02, method=method, callback=check).success
