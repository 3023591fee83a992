"""LV-HBA with default options on problems with known optima; every lower gap is checked by solvers that are not ours."""

import math

import numpy as np
import pytest
from scipy.optimize import LinearConstraint

from otbilevel import BilevelResult, ConvergenceError, ConvergenceWarning, CoupledConstraint, Status, minimize_bilevel
from otbilevel.bilevel import lv_hba_large as large
from otbilevel.bilevel.lv_hba_step import Oracles, State, Steps, step
from otbilevel.bilevel.projection import Box, Margins, Product
from otbilevel.testing import bilevel_examples, independent_lower_gap, random_coupled_qp

EXAMPLES = bilevel_examples()


@pytest.mark.filterwarnings("ignore::UserWarning:scipy")
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_with_default_options(name):
    e = EXAMPLES[name]
    result = minimize_bilevel(e.upper, e.lower, e.x0, e.y0, jac_upper=e.jac_upper, jac_lower=e.jac_lower, **e.settings)
    assert isinstance(result, BilevelResult) and result.success, result.message
    assert abs(result.fun - e.fun) < 1e-4 * max(1.0, abs(e.fun))
    assert result.lower_gap < 1e-6 and result.maxcv < 1e-6
    assert result.fun == pytest.approx(e.upper(result.x, result.y), rel=1e-12, abs=1e-15)
    if e.x is not None:
        np.testing.assert_allclose(result.x, e.x, atol=5e-3)
    settings = {key: value for key, value in e.settings.items() if key in ("constraints", "bounds_y")}
    assert abs(independent_lower_gap(e.lower, result.x, result.y, **settings) - result.lower_gap) < 1e-5
    assert "exact saddle points" in result.message and result.nfev["lower"] > 0


@pytest.mark.parametrize(("n", "seed"), [(2, 0), (2, 1), (5, 1), (5, 2)])
def test_random_quadratic_problems_against_their_optimality_conditions(n, seed):
    problem = random_coupled_qp(n, n + 1, seed)
    result = minimize_bilevel(problem.upper, problem.lower, np.zeros(n), np.zeros(n), **problem.settings)
    assert result.success and result.lower_gap < 1e-6
    assert result.fun < (1 + 1e-3) * problem.reference(10, seed) + 1e-6


def test_derivatives_that_are_not_given_and_tensors():
    e = EXAMPLES["Bard1988Ex1"]
    plain = minimize_bilevel(e.upper, e.lower, e.x0, e.y0, options={"n_starts": 2}, **e.settings)
    assert plain.success and plain.fun == pytest.approx(17.0, rel=1e-4)
    together = minimize_bilevel(
        lambda x, y: (e.upper(x, y), e.jac_upper(x, y)),
        lambda x, y: (e.lower(x, y), e.jac_lower(x, y)),
        e.x0,
        e.y0,
        jac_upper=True,
        jac_lower=True,
        options={"n_starts": 2},
        **e.settings,
    )
    assert together.fun == pytest.approx(17.0, rel=1e-4)
    torch = pytest.importorskip("torch")
    rows = CoupledConstraint(lambda x, y: torch.stack([y[0] - 3 * x[0] + 3, x[0] - y[0] / 2 - 4, x[0] + y[0] - 7]))
    tensor = lambda v: torch.tensor(v, dtype=torch.float64)  # noqa: E731
    settings = {**e.settings, "constraints": rows}
    found = minimize_bilevel(e.upper, e.lower, tensor([4.0]), tensor([0.0]), options={"n_starts": 2}, **settings)
    assert isinstance(found.x, torch.Tensor) and found.fun == pytest.approx(17.0, rel=1e-4)
    assert isinstance(found.multipliers[0], torch.Tensor)


def test_multipliers_in_the_units_of_the_user():
    e = EXAMPLES["Bard1988Ex1"]
    result = minimize_bilevel(e.upper, e.lower, e.x0, e.y0, jac_upper=e.jac_upper, jac_lower=e.jac_lower, **e.settings)
    np.testing.assert_allclose(result.multipliers[0], [3.5, 0, 0], atol=1e-4)  # 2 (y - 1) - 1.5 x + lam = 0 at (1, 0)
    e = EXAMPLES["an equality as two inequalities"]
    result = minimize_bilevel(e.upper, e.lower, e.x0, e.y0, jac_upper=e.jac_upper, jac_lower=e.jac_lower, **e.settings)
    np.testing.assert_allclose(result.multipliers[0], [0.0, result.y[0]], atol=1e-4)  # y + (lam_1 - lam_2) = 0
    both = LinearConstraint([[-1, 1, 1]], 0, 0)
    result = minimize_bilevel(e.upper, e.lower, e.x0, e.y0, jac_upper=e.jac_upper, jac_lower=e.jac_lower, constraints=both)
    np.testing.assert_allclose(result.multipliers[0], [-result.y[0]], atol=1e-4)


def test_the_same_seed_gives_the_same_run_and_a_result_can_be_gone_on_from():
    e = EXAMPLES["BLOCC toy"]
    settings = {"jac_upper": e.jac_upper, "jac_lower": e.jac_lower, **e.settings}
    first, second = (minimize_bilevel(e.upper, e.lower, e.x0, e.y0, rng=3, **settings) for _ in range(2))
    np.testing.assert_array_equal(first.x, second.x)
    again = minimize_bilevel(e.upper, e.lower, e.x0, e.y0, init=first, options={"n_starts": 2}, **settings)
    assert again.fun == pytest.approx(first.fun, rel=1e-6)


def test_callback_and_limits():
    e = EXAMPLES["Bard1988Ex1"]
    seen = []

    def callback(intermediate_result):
        seen.append(intermediate_result)
        if len(seen) == 3:
            raise StopIteration

    settings = {"jac_upper": e.jac_upper, "jac_lower": e.jac_lower, **e.settings}
    result = minimize_bilevel(e.upper, e.lower, e.x0, e.y0, callback=callback, **settings)
    assert len(seen) == 3 and result.nit == 3 and seen[0].x.shape == (1,) and seen[0].penalty == 0.1
    assert len(result.history["penalty"]) == 3
    with pytest.warns(ConvergenceWarning, match="max_iter was reached"):
        short = minimize_bilevel(e.upper, e.lower, e.x0, e.y0, max_iter=6, **settings)
    assert short.nit == 6 and short.status is Status.ITERATION_LIMIT


def test_what_goes_wrong_is_said():
    good = {"upper": lambda x, y: float(np.sum(x**2 + y**2)), "lower": lambda x, y: float(np.sum((y - x) ** 2))}
    start = {"x0": [1.0], "y0": [1.0], "options": {"n_starts": 2}}
    with pytest.warns(ConvergenceWarning, match="no point was found that obeys all constraints"):
        result = minimize_bilevel(**good, **start, constraints=LinearConstraint([[0, 1], [0, -1]], ub=[0, -1]))
    assert not result.success and result.status is Status.INFEASIBLE
    with pytest.warns(ConvergenceWarning, match="is it bounded"):
        result = minimize_bilevel(lambda x, y: float(np.sum(x**2)), lambda x, y: float(y[0]), **start)
    assert not result.success and not np.isfinite(result.lower_gap)
    with pytest.raises(ConvergenceError):
        minimize_bilevel(lambda x, y: float(np.sum(x**2)), lambda x, y: float(y[0]), raise_on_failure=True, **start)

    def breaks(x, y):
        return float("nan") if abs(x[0]) < 0.5 else float(np.sum(x**2 + y**2))

    with pytest.warns(ConvergenceWarning, match="upper is nan"):
        assert not minimize_bilevel(breaks, good["lower"], **start).success


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"upper": 3.0}, TypeError, "upper must be callable"),
        ({"x0": np.ones((2, 2))}, ValueError, "x0 must be a vector"),
        ({"y0": [np.nan]}, ValueError, "must be finite"),
        ({"method": "bome"}, ValueError, "unknown method"),
        ({"options": {"starts": 3}}, TypeError, "did you mean 'n_starts'"),
        ({"options": {"n_starts": 0}}, ValueError, "n_starts"),
        ({"options": {"penalties": (10.0, 1.0)}}, ValueError, "two that ascend"),
        ({"constraints": [3]}, TypeError, r"constraints\[0\] must be a CoupledConstraint"),
        ({"constraints": LinearConstraint(np.ones((1, 5)), ub=1)}, ValueError, "must have n \\+ m = 2 columns"),
        ({"constraints": CoupledConstraint(lambda x, y: np.ones((2, 2)))}, ValueError, "must return a vector"),
        (
            {"constraints": CoupledConstraint(lambda x, y: [y[0]], lambda x, y: ([[1.0, 2.0]], [[1.0]]))},
            ValueError,
            r"jac of constraints\[0\]",
        ),
        ({"bounds_x": (2, 1)}, ValueError, "bounds_x must have lb <= ub"),
        ({"bounds_y": 3}, TypeError, "bounds_y must be a scipy.optimize.Bounds"),
        ({"bounds_y": ([0, 0], [1, 1])}, ValueError, "bounds_y must have bounds of shape"),
        ({"jac_upper": lambda x, y: (x, np.ones(3))}, ValueError, "grad_y of jac_upper must have shape"),
        ({"tol": 0.0}, ValueError, "tol must be"),
    ],
)
def test_what_is_refused(changes, error, words):
    given = {"upper": lambda x, y: float(x[0] ** 2), "lower": lambda x, y: float(y[0] ** 2), "x0": [1.0], "y0": [1.0], **changes}
    with pytest.raises(error, match=words):
        minimize_bilevel(**given)


def test_constraints_check_what_they_are_given():
    with pytest.raises(TypeError, match="fun of a CoupledConstraint must be callable"):
        CoupledConstraint(3)
    with pytest.raises(ValueError, match="kind must be one of"):
        CoupledConstraint(lambda x, y: x, kind="<=")


@pytest.mark.parametrize("n", [100, 1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_merely_convex_lower_level_with_an_equality_at_any_size(n):
    """min |x - y2|^2/2 + |y1 - 1|^2/2, y minimising |y1|^2/2 - x'y1 + 1'y2 with 1'(x + y1 + y2) = 0: x = -0.3, y = (0.7, -0.4)."""
    result = minimize_bilevel(
        lambda x, y: 0.5 * np.sum((x - y[n:]) ** 2) + 0.5 * np.sum((y[:n] - 1) ** 2),
        lambda x, y: 0.5 * y[:n] @ y[:n] - x @ y[:n] + np.sum(y[n:]),
        np.full(n, 10.0),
        np.full(2 * n, 10.0),
        jac_upper=lambda x, y: (x - y[n:], np.concatenate([y[:n] - 1, y[n:] - x])),
        jac_lower=lambda x, y: (-y[:n], np.concatenate([y[:n] - x, np.ones(n)])),
        constraints=LinearConstraint(np.ones((1, 3 * n)), 0, 0),
    )
    assert result.success and result.lower_gap < 1e-6 and result.maxcv < 1e-6
    np.testing.assert_allclose(result.x, -0.3, rtol=1e-5)
    np.testing.assert_allclose(result.y, np.repeat([0.7, -0.4], n), rtol=1e-5)
    np.testing.assert_allclose(result.multipliers[0], [-1.0], rtol=1e-5)
    assert "without matrices, extrapolated in 1/c" in result.message and "the start was projected" in result.message
    y1 = result.x + 1.0  # the lower optimum is known: its multiplier is -1, and sum(y2) = -sum(x + y1)
    independent = 0.5 * y1 @ y1 - result.x @ y1 - np.sum(result.x + y1)
    assert abs(result.lower_fun - independent) < 1e-6 * max(1.0, abs(independent))


def toy(n):
    """The problem above."""
    functions = (
        lambda x, y: 0.5 * np.sum((x - y[n:]) ** 2) + 0.5 * np.sum((y[:n] - 1) ** 2),
        lambda x, y: 0.5 * y[:n] @ y[:n] - x @ y[:n] + np.sum(y[n:]),
    )
    settings = {
        "jac_upper": lambda x, y: (x - y[n:], np.concatenate([y[:n] - 1, y[n:] - x])),
        "jac_lower": lambda x, y: (-y[:n], np.concatenate([y[:n] - x, np.ones(n)])),
        "constraints": LinearConstraint(np.ones((1, 3 * n)), 0, 0),
    }
    return (*functions, np.full(n, 10.0), np.full(2 * n, 10.0)), settings


def test_the_single_loop_of_the_paper():
    """It gets nearer, slowly; a result does not claim more than that, and a run can be interrupted."""
    given, settings = toy(20)
    errors = []
    for limit in (500, 4000, 30_000):
        with pytest.warns(ConvergenceWarning, match="single loop of the paper"):
            result = minimize_bilevel(*given, **settings, max_iter=limit, options={"variant": "paper"})
        errors.append(np.abs(result.x + 0.3).max())
        assert not result.success and result.nit == limit and result.maxcv < 1e-10
    assert errors[2] < 0.05 and errors[2] < min(errors[:2])
    np.testing.assert_allclose(result.multipliers[0], [-1.0], rtol=0.1)
    with pytest.warns(ConvergenceWarning):
        half = minimize_bilevel(*given, **settings, max_iter=250, options={"variant": "paper"})
    with pytest.warns(ConvergenceWarning):
        whole = minimize_bilevel(*given, **settings, max_iter=500, options={"variant": "paper"})
    with pytest.warns(ConvergenceWarning):
        rest = minimize_bilevel(*given, **settings, max_iter=250, init=half, options={"variant": "paper"})
    np.testing.assert_array_equal(rest.x, whole.x)
    np.testing.assert_array_equal(rest.y, whole.y)


def test_a_lower_solve_that_was_cut_short_proves_nothing(monkeypatch):
    monkeypatch.setattr(large, "PROXIMAL_STEPS", 1)
    monkeypatch.setattr("otbilevel.bilevel.saddle_large.NEWTON", 1)
    scales = np.logspace(-4, 0, 420)  # the flat directions need many proximal steps
    with pytest.warns(ConvergenceWarning):
        result = minimize_bilevel(
            lambda x, y: np.sum((x - 1) ** 2) + y @ y,
            lambda x, y: 0.5 * scales @ (y - x[0]) ** 2,
            np.ones(1),
            np.zeros(420),
            jac_upper=lambda x, y: (2 * (x - 1), 2 * y),
            jac_lower=lambda x, y: (-np.array([scales @ (y - x[0])]), scales * (y - x[0])),
            options={"penalties": (1e-4, 1e-3)},
        )
    assert not result.success and result.lower_gap == math.inf
    given, settings = toy(100)
    with pytest.warns(ConvergenceWarning):
        looped = minimize_bilevel(*given, **settings, max_iter=20, options={"variant": "paper"})  # matrices settle it
    y1 = looped.x + 1.0
    least = 0.5 * y1 @ y1 - looped.x @ y1 - np.sum(looped.x + y1)
    assert looped.lower_gap == pytest.approx(looped.lower_fun - least, rel=1e-6)


def test_a_multiplier_at_its_bound_is_no_success():
    given, settings = toy(5)
    with pytest.warns(ConvergenceWarning, match="a multiplier is at its bound: raise r"):
        assert not minimize_bilevel(*given, **settings, max_iter=2000, options={"variant": "paper", "r": 1e-3}).success


@pytest.mark.parametrize("size", [30, 300])
def test_the_single_loop_on_a_support_vector_machine(size):
    """Products with the rows' transpose are the user's, and the certificate agrees with a Newton method that is not ours."""
    rng = np.random.default_rng(0)
    A = np.where(rng.random(size) < 0.5, 1.0, -1.0)[:, None] * np.c_[rng.standard_normal((size, 3)), np.ones(size)] + 0.3
    products = []

    def vjp(x, y, lam):
        products.append(lam)
        return 0 * x, np.concatenate([-(lam @ A), -lam])

    with pytest.warns(ConvergenceWarning, match="single loop"):
        result = minimize_bilevel(
            lambda x, y: y[:4] @ y[:4] + x @ x,
            lambda x, y: 0.5 * y[:3] @ y[:3] + 0.5 * np.exp(x) @ y[4:] ** 2,
            np.zeros(size),
            np.ones(4 + size),
            jac_upper=lambda x, y: (2 * x, np.concatenate([2 * y[:4], np.zeros(size)])),
            jac_lower=lambda x, y: (0.5 * np.exp(x) * y[4:] ** 2, np.concatenate([y[:3], [0.0], np.exp(x) * y[4:]])),
            constraints=CoupledConstraint(lambda x, y: 1 - A @ y[:4] - y[4:], vjp=vjp),
            projection=Product([(size, Box()), (4 + size, Margins(A))]),
            max_iter=20,
            options={"variant": "paper"},
        )
    v, e, ridge = np.zeros(4), np.exp(result.x), np.array([1.0, 1.0, 1.0, 0.0])
    for _ in range(50):
        short = np.maximum(1 - A @ v, 0)
        weighted = A * (e * (short > 0))[:, None]
        v = v - np.linalg.solve(np.diag(ridge) + weighted.T @ A, ridge * v - weighted.T @ short)
    least = 0.5 * v[:3] @ v[:3] + 0.5 * e @ np.maximum(1 - A @ v, 0) ** 2
    assert result.lower_gap == pytest.approx(result.lower_fun - least, rel=1e-6, abs=1e-6)
    assert len(products) > 40 and result.maxcv < 1e-10


def test_a_projection_of_the_user():
    given, settings = toy(5)
    calls = []

    def onto(w):
        calls.append(w)
        return w - np.mean(w)

    with pytest.warns(ConvergenceWarning):
        ours = minimize_bilevel(*given, **settings, max_iter=100, projection=onto, options={"variant": "paper"})
    with pytest.warns(ConvergenceWarning):
        built_in = minimize_bilevel(*given, **settings, max_iter=100, options={"variant": "paper"})
    assert len(calls) == 101
    np.testing.assert_allclose(ours.x, built_in.x, atol=1e-10)
    with pytest.raises(ValueError, match="projection must be a function, and is for"):
        minimize_bilevel(*given, **settings, projection=onto)
    with pytest.raises(ValueError, match='alpha is a setting of variant="paper"'):
        minimize_bilevel(*given, **settings, options={"alpha": 0.1})


def test_steps_that_are_too_long_end_the_run():
    given, settings = toy(5)
    with pytest.warns(ConvergenceWarning, match="it diverged: give smaller steps"):
        result = minimize_bilevel(*given, **settings, max_iter=5000, options={"variant": "paper", "alpha": 50.0, "eta": 5.0})
    assert not result.success and np.all(np.isfinite(result.x))


def test_a_step_is_that_of_the_paper():
    """Algorithm 1 by hand, on numbers."""
    oracles = Oracles(
        penalised=lambda x, y, c: (2 * x / c - y, 3 * y / c + y - x),
        lagrangian_x=lambda x, theta, lam: -theta + lam,
        lagrangian_y=lambda x, theta, lam: (theta - x + lam, x + theta - 1.0),
        equality=np.array([False]),
        project=lambda x, y: (x, y),
        project_y=lambda y: y,
    )
    steps = Steps(alpha=0.1, beta=0.2, eta=0.3, gamma1=0.5, gamma2=2.0, c0=2.0, p=0.25, r=10.0)
    x, y, z, theta, lam, k = 1.0, 0.5, 0.4, 0.7, 0.6, 15
    new_theta = theta - 0.3 * ((theta - x) + lam + (theta - y) / 0.5)
    new_lam = min(max(lam - 0.3 * (-(x + theta - 1) + (lam - z) / 2), 0.0), 10.0)
    c = 2.0 * 16**0.25
    expected_x = x - 0.1 * (2 * x / c - y + new_theta - new_lam)
    expected_y = y - 0.1 * (3 * y / c + (y - x) - (y - new_theta) / 0.5)
    expected_z = min(max(z + 0.2 * (new_lam - z) / 2, 0.0), 10.0)
    found = step(oracles, steps, State(*(np.array([v]) for v in (x, y, z, theta, lam)), k))
    pairs = zip(
        (found.x, found.y, found.z, found.theta, found.lam), (expected_x, expected_y, expected_z, new_theta, new_lam), strict=True
    )
    for value, expected in pairs:
        np.testing.assert_allclose(value, [expected], rtol=1e-14)
    assert found.k == 16


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"jac_upper": lambda x, y: (2 * x, 3 * y)},
            r"jac_upper disagrees .* its derivative in y\[0\] is 3, and .* give 2",
        ),
        ({"jac_lower": lambda x, y: (-2 * (y - x), 2 * (y + x))}, r"jac_lower disagrees .* in y\[0\] is 4"),
        (
            {"constraints": CoupledConstraint(lambda x, y: [x[0] - 5, y[0] - 5], lambda x, y: ([[1], [1]], [[0], [1]]))},
            r"constraints disagrees with the function: its derivative of row 1 in x\[0\] is 1, and differences give",
        ),
        (
            {"constraints": CoupledConstraint(lambda x, y: x + y - 5, vjp=lambda x, y, lam: (lam, -lam))},
            r"the derivative of constraints disagrees .* in y\[0\] is -1",
        ),
    ],
)
def test_wrong_derivatives_are_found_on_request(changes, words):
    given = {
        "upper": lambda x, y: float(np.sum(x**2 + y**2)),
        "lower": lambda x, y: float(np.sum((y - x) ** 2)),
        "x0": [1.0],
        "y0": [1.0],
        "jac_upper": lambda x, y: (2 * x, 2 * y),
        "jac_lower": lambda x, y: (-2 * (y - x), 2 * (y - x)),
        "options": {"n_starts": 1},
    }
    assert minimize_bilevel(**given, check=True).success
    with pytest.raises(ValueError, match=words):
        minimize_bilevel(**{**given, **changes}, check=True)


def test_functions_that_are_not_defined_everywhere():
    """Python's own functions raise where they are not: that start is lost, or a sample of lengths, not the run."""
    result = minimize_bilevel(
        lambda x, y: (y[0] - 1.0) ** 2 + 0.1 * (x[0] - 2.0) ** 2,
        lambda x, y: math.exp(y[0]) - x[0] * y[0],
        [1.0],
        [0.0],
        constraints=CoupledConstraint(lambda x, y: [-math.sqrt(x[0]) - 10.0 + y[0] ** 2 / 100]),
        bounds_x=(0.5, 5.0),
        options={"n_starts": 4},
    )
    e = EXAMPLES["logarithm"]
    assert result.success and result.fun == pytest.approx(e.fun, abs=1e-5)


@pytest.mark.filterwarnings("ignore::otbilevel.ConvergenceWarning", "ignore::UserWarning:scipy")
@pytest.mark.parametrize(
    "settings",
    [
        {"options": {"penalties": (0.5, 1.0), "saddle": "newton-cg"}},
        {"options": {"variant": "paper"}, "max_iter": 100},
    ],
)
def test_gaps_that_are_not_small_are_right_too(settings):
    """Runs that stop early: the gap is that of SciPy's solvers, and nothing is claimed."""
    given, others = toy(5)
    result = minimize_bilevel(*given, **others, **settings)
    independent = independent_lower_gap(given[1], result.x, result.y, constraints=others["constraints"])
    assert not result.success and independent > 1e-3
    assert result.lower_gap == pytest.approx(independent, rel=1e-3)
