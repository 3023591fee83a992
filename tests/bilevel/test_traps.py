"""What implementations of LV-HBA are known to get wrong, one test each."""

import numpy as np
import pytest
from scipy.optimize import LinearConstraint

from otbilevel import ConvergenceWarning, CoupledConstraint, Status, minimize_bilevel
from otbilevel.bilevel import lower
from otbilevel.bilevel.constraints import Rows
from otbilevel.bilevel.lv_hba_step import SETTINGS, automatic
from otbilevel.bilevel.problem import BilevelProblem, Library, Objective
from otbilevel.bilevel.projection import Box, Margins, Product
from otbilevel.bilevel.saddle import SaddlePoint, ValueFunction
from otbilevel.bilevel.scaled import ScaledProblem
from otbilevel.bilevel.search import Search
from otbilevel.testing import bilevel_examples

EXAMPLES = bilevel_examples()


def scaled(upper, below, constraints, start, n=1):
    """A scaled problem without bounds."""
    start, library = np.asarray(start, float), Library(np.zeros(1))
    rows = [Rows(c, start[:n], start[n:], name) for c, name in ((constraints, "constraints"), ((), "upper_constraints"))]
    levels = Objective(upper, None, n, library, "upper"), Objective(below, None, n, library, "lower")
    free = np.full(start.size, np.inf)
    return ScaledProblem(BilevelProblem(*levels, *rows, -free, free, n, start.size - n), start, np.random.default_rng(0))


def test_opposite_inequalities_are_one_equation():
    """SLSQP diverges on them."""
    rows = LinearConstraint([[1.0, 2.0], [-1.0, -2.0], [0.0, 1.0]], ub=[3.0, -3.0, 9.0])
    problem = scaled(lambda x, y: x @ x + y @ y, lambda x, y: y @ y, rows, [5.0, 5.0])
    assert problem.lower_rows.count == 2 and list(problem.lower_rows.equality) == [True, False]
    np.testing.assert_allclose(problem.lower_rows.multipliers(np.array([-np.sqrt(5.0), 0.0]), 1.0), [0.0, 1.0, 0.0])
    start = Search(problem, np.array([5.0, 5.0]), 1e-4, np.random.default_rng(0)).start
    np.testing.assert_allclose(start, [2.6, 0.2], atol=1e-9)


def test_an_unbounded_upper_level_does_not_run_away():
    with pytest.warns(ConvergenceWarning, match="the upper level seems to be unbounded"):
        result = minimize_bilevel(lambda x, y: -x[0], lambda x, y: (y[0] - x[0]) ** 2, [1.0], [0.0], options={"n_starts": 2})
    assert not result.success and np.all(np.isfinite(np.append(result.x, result.y))) and np.isfinite(result.fun)


def test_an_unknown_lower_optimum_is_no_gap(monkeypatch):
    """Inf - inf, and -inf <= tol, pass for success."""
    e = EXAMPLES["Bard1988Ex1"]
    for value in (np.inf, -np.inf, np.nan):
        monkeypatch.setattr("otbilevel.bilevel.search.solve_lower", lambda *_, value=value: lower.LowerSolution(value, None))
        with pytest.warns(ConvergenceWarning):
            result = minimize_bilevel(e.upper, e.lower, e.x0, e.y0, options={"n_starts": 1}, **e.settings)
        assert not result.success and result.lower_gap == np.inf


def test_the_certificate_does_not_reuse_the_saddle_points_of_the_iteration(monkeypatch):
    """A solve that fails and returns theta = y makes f - v = 0, a perfect gap."""
    e = EXAMPLES["Bard1988Ex1"]

    def failed(self, x, y, gamma, **_):
        at = np.concatenate([x, y])
        return SaddlePoint(y.copy(), np.zeros(len(self._problem.equality)), self._problem.f(at))

    monkeypatch.setattr(ValueFunction, "solve", failed)
    with pytest.warns(ConvergenceWarning):
        result = minimize_bilevel(e.upper, e.lower, e.x0, e.y0, options={"n_starts": 1}, **e.settings)
    y = result.y[0]
    least = min(e.lower(result.x, np.array([v])) for v in np.linspace(0, 20, 200_001) if feasible(result.x[0], v))
    assert result.lower_gap == pytest.approx(e.lower(result.x, np.array([y])) - least, abs=1e-3)


def feasible(x, y):
    """Whether y is feasible for Bard1988Ex1."""
    return y - 3 * x + 3 <= 1e-9 and x - 0.5 * y - 4 <= 1e-9 and x + y - 7 <= 1e-9


def test_a_small_gap_is_no_solution():
    """A single loop that starts at a lower solution has gap 0 and has gone nowhere."""
    with pytest.warns(ConvergenceWarning, match="the upper level has not settled"):
        result = minimize_bilevel(
            lambda x, y: (x[0] - 3.0) ** 2,
            lambda x, y: (y[0] - x[0]) ** 2,
            [0.0],
            [0.0],
            max_iter=3,
            tol=0.1,
            options={"variant": "paper"},
        )
    assert result.lower_gap < 0.1 and not result.success and result.status is Status.ITERATION_LIMIT


def test_large_multipliers_do_not_blow_up_the_gap():
    """A lower solution that may violate its rows by 1e-6 is better than the best feasible one by 1e-6 times the multiplier."""
    result = minimize_bilevel(
        lambda x, y: (x[0] - 1.0) ** 2 + y[0] ** 2,
        lambda x, y: 1e4 * y[0],
        [3.0],
        [4.0],
        constraints=LinearConstraint([[1.0, -1.0]], ub=0.0),  # y >= x
    )
    assert result.success and result.lower_gap < 1e-4 and result.fun == pytest.approx(0.5, abs=1e-4)
    np.testing.assert_allclose(result.multipliers[0], [1e4], rtol=1e-3)


def test_the_jump_of_a_lower_solution_is_not_restored_away():
    e = EXAMPLES["a lower solution that jumps"]
    result = minimize_bilevel(e.upper, e.lower, e.x0, e.y0, jac_upper=e.jac_upper, jac_lower=e.jac_lower, **e.settings)
    assert result.success and result.fun == pytest.approx(e.fun, abs=1e-4 * max(1.0, abs(e.fun)))


def test_a_start_from_which_a_function_overflows_is_lost_alone():
    def upper(x, y):
        if abs(x[0]) > 6.0:
            msg = "math range error"
            raise OverflowError(msg)
        return (x[0] - 1.0) ** 2 + y[0] ** 2

    result = minimize_bilevel(upper, lambda x, y: (y[0] - x[0]) ** 2, [3.0], [0.0], bounds_x=(-200.0, 200.0))
    assert result.success and result.fun == pytest.approx(0.5, abs=1e-4) and "lost (math range error)" in result.message


def svm(count=12, seed=0):
    """Weights of samples as hyper-parameters of a support vector machine: rows, F, f with gradients."""
    rng = np.random.default_rng(seed)
    label = np.sign(rng.standard_normal(count))
    rows = label[:, None] * np.column_stack([rng.standard_normal((count, 2)) + 0.8 * label[:, None], np.ones(count)])
    other = rows[rng.permutation(count)] + 0.3 * rng.standard_normal(rows.shape)

    def upper(x, y):
        return float(np.logaddexp(0.0, -other @ y[:3]).sum())

    def jac_upper(x, y):
        return np.zeros(count), np.append(-other.T @ (1.0 / (1.0 + np.exp(other @ y[:3]))), np.zeros(count))

    def below(x, y):
        return float(0.5 * y[:2] @ y[:2] + 0.5 * np.exp(x) @ y[3:] ** 2)

    def jac_lower(x, y):
        weighted = np.exp(x) * y[3:]
        return 0.5 * weighted * y[3:], np.concatenate([y[:2], [0.0], weighted])

    matrix = np.hstack([np.zeros((count, count)), -rows, -np.eye(count)])
    functions = upper, below, np.full(count, -1.0), np.concatenate([np.zeros(3), np.ones(count)])
    settings = {"jac_upper": jac_upper, "jac_lower": jac_lower, "constraints": LinearConstraint(matrix, ub=-1.0)}
    return functions, settings, Product([(count, Box(-6.0, 3.0)), (3 + count, Margins(rows))])


def test_hyper_parameters_of_a_support_vector_machine_move():
    """In a released script the update of C is out of place and lost: only weights and slacks ever change."""
    functions, settings, project = svm()
    settings |= {"projection": project, "options": {"variant": "paper", "c0": 1.0}}
    with pytest.warns(ConvergenceWarning):
        first = minimize_bilevel(*functions, **settings, max_iter=1)
    with pytest.warns(ConvergenceWarning):
        last = minimize_bilevel(*functions, **settings, max_iter=400)
    assert np.abs(last.x - first.x).max() > 0.1 and last.fun < first.fun
    assert last.maxcv < 1e-10 and all(np.all(part >= 0.0) for part in last.multipliers)
    assert last.lower_gap < 0.1 * last.lower_fun


def test_multipliers_stay_in_their_box_and_z_moves_to_lam():
    """In a released script lam is not clipped at 0, and z moves along the gradient of another variable, or not at all."""
    functions, settings, project = svm()
    with pytest.warns(ConvergenceWarning):
        state = minimize_bilevel(*functions, **settings, projection=project, max_iter=2000, options={"variant": "paper"}).state
    assert state["lam"].min() >= 0.0 and state["z"].min() >= 0.0 and state["z"].max() > 0.01
    assert np.linalg.norm(state["z"] - state["lam"]) < 0.2 * np.linalg.norm(state["lam"])


@pytest.mark.parametrize("L", [1.0, 3.0, 50.0])
@pytest.mark.parametrize("rows", [0.0, 0.8, 5.0])
def test_automatic_steps_are_those_of_the_theory(L, rows):
    """In a released script gamma1 = 10 where it must be below 0.81, and eta = 0.01 where it must be below mu / L^2."""
    steps = automatic(1.0, L, rows, dict.fromkeys(SETTINGS))
    assert steps.gamma1 <= 1.0 / (2.0 * L) and 0.0 <= steps.p < 0.5
    convexity, size = min(1.0 / steps.gamma1, 1.0 / steps.gamma2), max(L + 1.0 / steps.gamma1, 1.0 / steps.gamma2) + rows
    assert steps.eta <= convexity / size**2
    assert steps.alpha <= steps.eta * convexity


def test_a_projection_that_is_one():
    """Subtracting (e'w) e from w is none unless e has length one and the plane goes through 0."""
    rows = CoupledConstraint(lambda x, y: np.array([2.0 * x[0] + 3.0 * y[0] - 5.0]), kind="eq")
    with pytest.warns(ConvergenceWarning):
        result = minimize_bilevel(
            lambda x, y: x[0] ** 2,
            lambda x, y: y[0] ** 2,
            [10.0],
            [10.0],
            constraints=rows,
            max_iter=1,
            options={"variant": "paper"},
        )
    assert result.maxcv < 1e-9
