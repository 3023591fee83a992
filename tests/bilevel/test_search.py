"""What the search of LV-HBA has beside growing penalties: smoothed lower levels, starts that end early, the polish."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import minimize

from otbilevel import minimize_bilevel
from otbilevel.bilevel import polish as polishing
from otbilevel.bilevel.barrier import SmoothedGap
from otbilevel.testing import bilevel_examples, random_coupled_qp

EXAMPLES = bilevel_examples()


def level(equalities):
    """f = |y|^4/4 + y'x under three coupled rows, the last ones equalities."""
    rows, room = np.array([[1.0, 0.5, 1.0, -1.0], [0.0, 1.0, -1.0, 0.5], [1.0, -1.0, 0.3, 1.0]]), np.array([0.5, 0.4, 0.2])
    return SimpleNamespace(
        n=2,
        m=2,
        equality=np.arange(3) >= 3 - equalities,
        f=lambda w: float((w[2:] @ w[2:]) ** 2 / 4 + w[2:] @ w[:2]),
        df=lambda w: np.concatenate([w[2:], (w[2:] @ w[2:]) * w[2:] + w[:2]]),
        g=lambda w: rows @ w - room,
        dg=lambda w: rows,
    )


@pytest.mark.parametrize("equalities", [0, 1])
def test_the_gap_of_a_smoothed_lower_level(equalities):
    problem, rng = level(equalities), np.random.default_rng(0)
    for t in (1.0, 0.1):
        gap = SmoothedGap(problem, t, 5.0, np.eye(2))
        for _ in range(5):
            w = rng.uniform(-0.4, 0.4, 4)
            w[3] += equalities * (0.2 - np.array([1.0, -1.0, 0.3, 1.0]) @ w)  # on the equality
            value, slope = gap(w)
            assert value >= -1e-12
            steps = 1e-6 * np.eye(4)
            numeric = [(gap(w + step)[0] - gap(w - step)[0]) / 2e-6 for step in steps]
            np.testing.assert_allclose(slope, numeric, atol=2e-5)


def test_its_minimiser_has_no_gap_also_beyond_the_rows():
    problem = level(0)
    gap = SmoothedGap(problem, 0.1, 10.0, np.eye(2))
    x = np.array([0.3, -0.2])
    found = minimize(lambda y: gap(np.concatenate([x, y]))[0], np.zeros(2), jac=lambda y: gap(np.concatenate([x, y]))[1][2:])
    w = np.concatenate([x, found.x])
    value, slope = gap(w)
    assert abs(value) < 1e-8 and np.abs(slope).max() < 1e-4 and problem.g(w).max() < 0
    outside = gap(np.array([3.0, 3.0, 3.0, -3.0]))
    assert np.isfinite(outside[0]) and np.all(np.isfinite(outside[1]))


@pytest.mark.parametrize(("n", "seed"), [(10, 0), *(pytest.param(20, seed, marks=pytest.mark.slow) for seed in (1, 8))])
def test_random_quadratic_problems_with_many_local_optima(n, seed):
    problem = random_coupled_qp(n, n, seed)
    result = minimize_bilevel(problem.upper, problem.lower, np.zeros(n), np.zeros(n), **problem.settings)
    assert result.success and result.lower_gap < 1e-6
    assert result.fun < (1 + (1e-3 if n <= 10 else 0.05)) * problem.reference(10, seed)


def test_starts_end_when_they_cannot_be_the_best():
    problem = random_coupled_qp(5, 5, 0)
    given = (problem.upper, problem.lower, np.zeros(5), np.zeros(5))
    result = minimize_bilevel(*given, **problem.settings, options={"n_starts": 9})
    starts = np.array(result.history["start"])
    stages = [int(np.sum(starts == k)) for k in range(9)]
    assert stages[0] == 7 and min(stages[1:]) < 3  # of c = 100, 1e4, 1e5
    fewer = minimize_bilevel(*given, **problem.settings, options={"n_starts": 2})
    assert result.fun <= fewer.fun


@pytest.mark.parametrize(("n", "seed"), [(5, 0), (5, 2), (10, 3)])
def test_the_polish(n, seed):
    problem = random_coupled_qp(n, n + (n == 2), seed)
    given = (problem.upper, problem.lower, np.zeros(n), np.zeros(n))
    plain, polished = (
        minimize_bilevel(*given, **problem.settings, options={"n_starts": 3, "polish": polish}) for polish in (False, True)
    )
    assert "polish" not in plain.message
    assert "polished: F fell by" in polished.message and "of the lower level's optimality conditions" in polished.message
    assert polished.success and polished.lower_gap < 1e-8 and polished.maxcv < 1e-8
    assert polished.fun < plain.fun and polished.fun == pytest.approx(problem.reference(10, seed), rel=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning:scipy")
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_polish_makes_nothing_worse(name):
    """Nonlinear rows, equalities, upper constraints, lower levels with many solutions or without an interior."""
    e = EXAMPLES[name]
    given = (e.upper, e.lower, e.x0, e.y0)
    settings = {"jac_upper": e.jac_upper, "jac_lower": e.jac_lower, **e.settings}
    plain, polished = (minimize_bilevel(*given, **settings, options={"n_starts": 4, "polish": polish}) for polish in (False, True))
    assert polished.success and polished.lower_gap < 1e-6 and polished.maxcv < 1e-6
    assert polished.fun <= plain.fun + 1e-12 * max(1.0, abs(plain.fun)) and "polish" in polished.message


def test_a_pivot_leaves_a_piece_for_a_better_one():
    """F = (x + 1)^2 + y with y = max(x, 0): on the piece with y > 0 it is least at 0, from where the other one leads to x = -1."""
    problem = SimpleNamespace(
        n=1,
        m=1,
        equality=np.array([False]),
        low=np.array([-3.0, 0.0]),
        high=np.array([3.0, np.inf]),
        F=lambda w: float((w[0] + 1) ** 2 + w[1]),
        dF=lambda w: np.array([2 * (w[0] + 1), 1.0]),
        df=lambda w: np.array([w[0] - w[1], w[1] - w[0]]),
        g=lambda w: -w[1:],
        dg=lambda w: np.array([[0.0, -1.0]]),
        slsqp_rows=lambda lower: [],
        violation=lambda w: max(0.0, -w[1]),
    )
    found, pieces = polishing._descend(problem, np.array([0.5, 0.5]))
    np.testing.assert_allclose(found, [-1.0, 0.0], atol=1e-7)
    assert pieces == 2


def test_a_polish_that_is_no_better_is_not_taken(monkeypatch):
    e = EXAMPLES["Bard1988Ex1"]
    settings = {"jac_upper": e.jac_upper, "jac_lower": e.jac_lower, **e.settings, "options": {"n_starts": 2, "polish": True}}
    monkeypatch.setattr(polishing, "_descend", lambda problem, w: (w - 0.1, 3))
    result = minimize_bilevel(e.upper, e.lower, e.x0, e.y0, **settings)
    assert result.success and result.fun == pytest.approx(17.0, rel=1e-4) and "F did not fall in 3 pieces" in result.message

    def breaks(problem, w):
        msg = "no"
        raise FloatingPointError(msg)

    monkeypatch.setattr(polishing, "_descend", breaks)
    result = minimize_bilevel(e.upper, e.lower, e.x0, e.y0, **settings)
    assert result.success and "the polish broke down (no)" in result.message


def test_where_there_is_no_polish():
    given = (lambda x, y: float(np.sum((y - 1) ** 2)), lambda x, y: float(np.sum((y - x) ** 2)), np.zeros(201), np.zeros(201))
    jacs = {"jac_upper": lambda x, y: (0 * x, 2 * (y - 1)), "jac_lower": lambda x, y: (2 * (x - y), 2 * (y - x))}
    assert "not polished: there are no matrices" in minimize_bilevel(*given, **jacs, options={"polish": True}).message
    for options in ({"variant": "paper"}, {"saddle": "newton-cg"}):
        with pytest.raises(ValueError, match="polish needs"):
            minimize_bilevel(*given, **jacs, options={"polish": True, **options})
