"""What once passed for a solution, or was taken without a word."""

import re

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint
from scipy.sparse import csr_array

from otbilevel import ConvergenceWarning, CoupledConstraint, Status, minimize_bilevel
from otbilevel.bilevel import lower
from otbilevel.bilevel.constraints import Rows, bounds_of
from otbilevel.bilevel.scaled import ScaledRows
from otbilevel.testing import random_coupled_qp


def tracking(x, y):
    """An upper level that wants x = 1 and y = -1."""
    return float(np.sum((x - 1) ** 2) + np.sum((y + 1) ** 2))


def following(x, y):
    """A lower level that wants y = x."""
    return float(np.sum((y - x) ** 2))


@pytest.mark.parametrize("rows", [[[1.0, -1.0, -1.0], [-2.0, 2.0, 2.0]], [[1.0, -1.0, -1.0], [0.5, -0.5, -0.5], [3.0, -3.0, -3.0]]])
def test_equations_that_follow_from_others(rows):
    """SLSQP returns its start on them, which used to count as settled."""
    result = minimize_bilevel(
        lambda x, y: (x[0] - 1) ** 2 + np.sum((y - 1) ** 2),
        lambda x, y: y @ y,
        [5.0],
        [2.0, 3.0],
        constraints=LinearConstraint(rows, 0.0, 0.0),
        options={"n_starts": 4},
    )
    assert result.success
    np.testing.assert_allclose(result.x, 4 / 3, rtol=1e-4)
    np.testing.assert_allclose(result.y, 2 / 3, rtol=1e-4)


def test_equations_without_lower_variables():
    result = minimize_bilevel(
        lambda x, y: np.sum((x - [1.0, 3.0]) ** 2) + 0.0 * y[0],
        lambda x, y: (y[0] - x[0]) ** 2,
        [0.0, 5.0],
        [4.0],
        constraints=LinearConstraint([[1.0, -1.0, 0.0]], 0.0, 0.0),
        options={"n_starts": 4},
    )
    assert result.success
    np.testing.assert_allclose(np.append(result.x, result.y), 2.0, rtol=1e-4)


def test_equations_that_contradict_each_other():
    with pytest.warns(ConvergenceWarning, match="no point was found that obeys all constraints"):
        result = minimize_bilevel(
            tracking,
            following,
            [0.0],
            [0.0],
            constraints=LinearConstraint([[1, 1], [2, 2]], [1, 5], [1, 5]),
            options={"n_starts": 2},
        )
    assert result.status is Status.INFEASIBLE


@pytest.mark.parametrize("method", ["lv-hba", "aid-cg", "f2sa"])
@pytest.mark.parametrize("units", [lambda f: 1e-6 * f, lambda f: f + 1e6, lambda f: 1e5 * f])
def test_units_of_the_lower_level(method, units):
    """A gap of 1e-4 max(1, |f|) is no proof when f is tiny, or has a large constant."""
    options = {"n_starts": 4} if method == "lv-hba" else {}
    result = minimize_bilevel(
        tracking,
        lambda x, y: units(following(x, y)),
        [0.5],
        [0.3],
        jac_upper=lambda x, y: (2 * (x - 1), 2 * (y + 1)),
        jac_lower=lambda x, y: tuple((units(2.0) - units(0.0)) * np.array([x - y, y - x])),
        method=method,
        options=options,
    )
    assert result.success
    np.testing.assert_allclose([result.x[0], result.y[0]], 0.0, atol=2e-3)


def test_rows_that_are_active_at_the_only_point():
    """Values that are opposite at one point make no equation."""
    rows = Rows(LinearConstraint([[1.0, 1.0], [1.0, -1.0]], ub=[0.0, 0.0]), np.zeros(1), np.zeros(1), "constraints")
    assert not ScaledRows(rows, [np.zeros(2)]).equality.any()


def test_opposite_rows_of_different_lengths_have_multipliers_of_their_own():
    rows = Rows(LinearConstraint([[1.0, 2.0], [-2.0, -4.0]], ub=[3.0, -6.0]), np.ones(1), np.ones(1), "constraints")
    scaled = ScaledRows(rows, [np.ones(2), np.zeros(2)])
    assert list(scaled.equality) == [True]
    for lam in (2.0, -2.0):
        given = scaled.multipliers(np.array([lam]), 1.0)
        np.testing.assert_allclose(rows.vjp(np.ones(2), given), scaled.vjp(np.ones(2), np.array([lam])))
        assert np.all(given >= 0)


def test_tiny_rows_are_rows():
    rows = Rows(LinearConstraint([[1e-10, 1e-10]], ub=[1e-10]), np.ones(1), np.ones(1), "constraints")
    np.testing.assert_allclose(np.linalg.norm(ScaledRows(rows, [np.ones(2)]).jacobian(np.ones(2))), 1.0)


def test_a_kink_beyond_the_points_that_looked_affine():
    rows = Rows(CoupledConstraint(lambda x, y: np.maximum(x - 100, 3 * (x - 100)) + y), np.zeros(1), np.zeros(1), "constraints")
    np.testing.assert_allclose(rows.jacobian(np.array([1.0, 0.0])), [[1.0, 1.0]], atol=1e-8)
    np.testing.assert_allclose(rows.jacobian(np.array([200.0, 0.0])), [[3.0, 1.0]], atol=1e-8)
    np.testing.assert_allclose(rows.jacobian(np.array([1.0, 0.0])), [[1.0, 1.0]], atol=1e-8)


@pytest.mark.parametrize("fun", [lambda x, y: np.nan * y, lambda x, y: np.log(-1.0 - y**2)])
def test_a_constraint_that_is_not_a_number(fun):
    """max(0, nan) is 0."""
    with np.errstate(invalid="ignore"), pytest.raises(FloatingPointError, match=r"fun of constraints\[0\] is not finite"):
        minimize_bilevel(tracking, following, [0.0], [0.0], constraints=CoupledConstraint(fun))


def test_a_constraint_that_is_not_a_number_on_the_way():
    row = CoupledConstraint(lambda x, y: np.where(x > 0.3, np.nan, y - 9), lambda x, y: (np.zeros((1, 1)), np.ones((1, 1))))
    with pytest.warns(ConvergenceWarning, match=r"2 lost \(fun of constraints\[0\] is not finite"):
        result = minimize_bilevel(
            lambda x, y: (x[0] - 1) ** 2, following, [0.0], [0.0], constraints=row, bounds_x=(0.0, 2.0), options={"n_starts": 2}
        )
    assert not result.success and result.x[0] <= 0.3


@pytest.mark.parametrize("sparse", [False, True])
def test_shapes_of_jacobians(sparse):
    x0, y0, A = np.zeros(3), np.zeros(3), np.arange(6.0).reshape(2, 3)

    def solve(jac):
        row = CoupledConstraint(lambda x, y: A @ x - 9, jac)
        return minimize_bilevel(tracking, following, x0, y0, constraints=row, options={"n_starts": 1})

    stored = csr_array if sparse else np.asarray
    assert solve(lambda x, y: (stored(A), stored(0 * A))).maxcv < 1e-6
    with pytest.raises(ValueError, match=r"jac of constraints\[0\] must return shape \(2, 3\), got shape \(3, 2\)"):
        solve(lambda x, y: (stored(A.T), stored(0 * A.T)))


@pytest.mark.parametrize("wrong", ["jac", "vjp"])
def test_a_check_of_both_derivatives(wrong):
    factors = {"jac": 1.0, "vjp": 1.0, wrong: 2.0}
    row = CoupledConstraint(
        lambda x, y: x + y - 9,
        jac=lambda x, y: (factors["jac"] * np.eye(1), np.eye(1)),
        vjp=lambda x, y, lam: (factors["vjp"] * lam, lam),
    )
    with pytest.raises(ValueError, match="the derivative of constraints disagrees"):
        minimize_bilevel(tracking, following, [0.0], [0.0], constraints=row, check=True)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ([(0, 1), (0, 1)], TypeError, "not a list of pairs"),
        (Bounds(np.inf, np.inf), ValueError, "lb < inf"),
        ((-np.inf, [-np.inf, 1.0]), ValueError, "ub > -inf"),
    ],
)
def test_bounds_that_are_none(given, error, words):
    with pytest.raises(error, match=words):
        bounds_of(given, 2, "bounds_x")


def test_what_a_callback_raises_comes_out():
    def callback(intermediate):
        msg = "from the callback"
        raise ValueError(msg)

    with pytest.raises(ValueError, match="from the callback"):
        minimize_bilevel(tracking, following, [0.0], [0.0], callback=callback)


def test_a_vertex_at_which_the_point_stands_still():
    """The saddle point is still on its way there."""
    with pytest.warns(ConvergenceWarning):
        result = minimize_bilevel(
            lambda x, y: y[0] + x[0],
            lambda x, y: -y[0],
            [0.0],
            [0.0],
            bounds_x=(0, 1),
            bounds_y=(0, 1),
            max_iter=50,
            options={"variant": "paper", "c0": 0.1},
        )
    assert result.nit > 1 and not result.success


def test_a_lower_solution_above_the_point(monkeypatch):
    """The certificate of a level that is not convex may be a local minimum."""
    monkeypatch.setattr("otbilevel.bilevel.search.solve_lower", lambda *_: lower.LowerSolution(1e3, None))
    with pytest.warns(ConvergenceWarning, match="above this point: f seems not to be convex"):
        result = minimize_bilevel(tracking, following, [0.0], [0.0], options={"n_starts": 1})
    assert result.status is Status.NUMERICAL_FAILURE


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"variant": "paper", "n_starts": 3}, "n_starts is no setting"),
        ({"variant": "paper", "penalties": (1.0, 2.0)}, "penalties is no setting"),
        ({"variant": "paper", "saddle": "exact"}, "saddle is no setting"),
        ({"saddle": "newton-cg", "n_starts": 3}, "n_starts is no setting"),
        ({"penalties": (1.0,)}, "at least two"),
        ({"penalties": (1.0, 1.0)}, "at least two that ascend"),
    ],
)
def test_settings_that_would_have_no_effect(options, words):
    with pytest.raises(ValueError, match=words):
        minimize_bilevel(tracking, following, [0.0], [0.0], options=options)


def test_implicit_differentiation_with_all_of_x_fixed():
    result = minimize_bilevel(tracking, following, [0.0], [0.0], bounds_x=(1.0, 1.0), method="aid-cg")
    np.testing.assert_allclose([result.x[0], result.y[0]], 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("projection", "error", "words"),
    [
        (lambda v: v[:1], ValueError, r"projection must return shape \(2,\)"),
        (lambda v: np.nan * v, FloatingPointError, "projection is"),
    ],
)
def test_projections_that_are_none(projection, error, words):
    with pytest.raises(error, match=words):
        minimize_bilevel(tracking, following, [0.0], [0.0], projection=projection, options={"variant": "paper"})


def test_a_message_says_what_stopped_the_run():
    def stop(intermediate):
        raise StopIteration

    given = (tracking, following, [3.0], [0.0])
    stopped = minimize_bilevel(*given, callback=stop)
    assert stopped.status is Status.CALLBACK_STOP and re.match(r"stopped by the callback: .*1 start\b", stopped.message)
    with pytest.warns(ConvergenceWarning, match="max_iter was reached: .* more iterations"):
        assert minimize_bilevel(*given, max_iter=3, options={"variant": "paper"}).status is Status.ITERATION_LIMIT


def pulling(x, y):
    """With a lower level that wants y = -x: F = 3.2 at x = -0.6."""
    return float((x[0] - 1) ** 2 + 4 * (y[0] - 1) ** 2)


@pytest.mark.filterwarnings("ignore::otbilevel.ConvergenceWarning")
@pytest.mark.parametrize(
    ("start", "settings"),
    [
        (30.0, {"max_iter": 2}),
        (1000.0, {"max_iter": 2}),
        (3.0, {"options": {"penalties": (0.1, 0.2), "n_starts": 1}}),
        (1000.0, {"options": {"penalties": (0.1, 0.2), "n_starts": 1}}),
        (3.0, {"options": {"penalties": (1e-6, 2e-6), "n_starts": 1}}),
    ],
)
def test_lower_optimality_at_any_x_is_no_optimum(start, settings):
    """Runs that were stopped, or had small penalties only."""
    result = minimize_bilevel(pulling, lambda x, y: float((x[0] + y[0]) ** 2), [start], [start], **settings)
    assert result.fun > 3.5 and not result.success
    whole = minimize_bilevel(pulling, lambda x, y: float((x[0] + y[0]) ** 2), [start], [start], options={"n_starts": 1})
    assert whole.success and whole.fun == pytest.approx(3.2, rel=1e-3)


def test_multipliers_are_those_of_the_polished_point():
    problem = random_coupled_qp(5, 5, 0)
    options = {"n_starts": 1, "penalties": (1.0, 10.0, 100.0, 300.0), "polish": True}
    settings = {**problem.settings, "bounds_y": None}
    result = minimize_bilevel(problem.upper, problem.lower, np.zeros(5), np.zeros(5), **settings, options=options)
    rows = Rows(settings["constraints"], result.x, result.y, "constraints")
    force = rows.vjp(np.append(result.x, result.y), np.concatenate([np.abs(lam) for lam in result.multipliers]))[5:]
    slope = problem.settings["jac_lower"](result.x, result.y)[1]
    np.testing.assert_allclose(slope + force, 0.0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::otbilevel.ConvergenceWarning")
def test_states_of_other_problems():
    def run(rows, init=None):
        sets = LinearConstraint(np.ones((rows, 2)), ub=9.0 + np.arange(rows))
        given = {"constraints": sets, "options": {"variant": "paper"}, "max_iter": 5}
        return minimize_bilevel(tracking, following, [0.0], [0.0], **given, init=init)

    first = run(1)
    assert run(1, first).success is False
    with pytest.raises(ValueError, match=r"'z' of init must have shape \(3,\), got \(1,\)"):
        run(3, first)
    with pytest.raises(ValueError, match="init must have 'z'"):
        run(1, {name: first.state[name] for name in ("x", "y", "origin")})


def test_a_first_step_that_diverges():
    with pytest.warns(ConvergenceWarning, match="it diverged"):
        result = minimize_bilevel(tracking, following, [0.0], [0.0], options={"variant": "paper", "alpha": 1e30})
    assert result.stationarity == np.inf
