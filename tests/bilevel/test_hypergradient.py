"""Hypergradients of arrays: against closed forms, against differences of the solved problem, with every solver."""

import numpy as np
import pytest
from array_api_strict import asarray as strict

from otbilevel import ConvergenceError, ConvergenceWarning, HypergradientResult, hypergradient

SOLVERS = {
    "cg": {},
    "minres": {},
    "neumann": {"max_iter": 20_000},
    "lissa": {"max_iter": 4000, "options": {"repeats": 1}},
    "nystrom": {"options": {"rank": 6}},
    "dense": {},
}


class Ridge:
    """min_y |A y - b|^2 / 2 + sum_i exp(x_i) y_i^2 / 2; upper level |C y - d|^2 / 2 + |x|^2 / 20."""

    def __init__(self, seed=0, features=8, move=np.asarray):
        rng = np.random.default_rng(seed)
        self.A, self.b = rng.standard_normal((30, features)), rng.standard_normal(30)
        self.C, self.d = rng.standard_normal((20, features)), rng.standard_normal(20)
        self.x = rng.uniform(0.0, 2.0, features)
        self.move = move

    def y(self, x):
        return np.linalg.solve(self.A.T @ self.A + np.diag(np.exp(x)), self.A.T @ self.b)

    def value(self, x):
        return 0.5 * np.sum((self.C @ self.y(x) - self.d) ** 2) + np.sum(x**2) / 20

    def exact(self):
        """The gradient of `value`, in closed form."""
        y = self.y(self.x)
        v = np.linalg.solve(self.A.T @ self.A + np.diag(np.exp(self.x)), self.C.T @ (self.C @ y - self.d))
        return self.x / 10 - np.exp(self.x) * y * v

    def functions(self):
        """The oracles, in the library of `move`."""
        A, b, C, d = (self.move(a) for a in (self.A, self.b, self.C, self.d))
        exp = lambda x: self.move(np.exp(np.asarray(x)))  # noqa: E731
        return {
            "jac_upper": lambda x, y: (x / 10, C.T @ (C @ y - d)),
            "jac_lower": lambda x, y: (exp(x) * y**2 / 2, A.T @ (A @ y - b) + exp(x) * y),
            "hvp_yy": lambda x, y, v: A.T @ (A @ v) + exp(x) * v,
            "hvp_xy": lambda x, y, v: exp(x) * y * v,
        }


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("library", ["numpy", "array_api_strict", "torch"])
def test_ridge_in_closed_form(solver, library):
    torch = pytest.importorskip("torch") if library == "torch" else None
    move = {"numpy": np.asarray, "array_api_strict": strict, "torch": getattr(torch, "asarray", None)}[library]
    problem = Ridge(move=move)
    x, y = move(problem.x), move(problem.y(problem.x))
    result = hypergradient(None, None, x, y, **problem.functions(), solver=solver, tol=1e-10, **SOLVERS[solver])
    assert isinstance(result, HypergradientResult) and result.success and result.residual <= 1e-10
    assert type(result.grad) is type(x)
    np.testing.assert_allclose(np.asarray(result.grad), problem.exact(), rtol=1e-8, atol=1e-9)
    assert result.error < 1e-8 and result.lower_gradient < 1e-10


def test_mfac_where_the_fisher_matrix_is_the_hessian():
    problem = Ridge()
    x = np.full(8, 0.3)
    problem.x, A = x, problem.A
    functions = problem.functions()
    functions["hvp_yy"] = lambda x, y, v: A.T @ (A @ v)  # the penalty is the damping
    found = hypergradient(
        None,
        None,
        x,
        problem.y(x),
        **functions,
        solver="mfac",
        damping=float(np.exp(0.3)),
        options={"gradients": np.sqrt(len(A)) * A},
        tol=1e-9,
    )
    np.testing.assert_allclose(found.grad, problem.exact(), rtol=1e-9)


def test_derivatives_that_are_not_given():
    problem = Ridge()
    y, functions = problem.y(problem.x), problem.functions()
    upper = lambda x, y: 0.5 * np.sum((problem.C @ y - problem.d) ** 2) + np.sum(x**2) / 20  # noqa: E731
    differences = hypergradient(upper, None, problem.x, y, jac_lower=functions["jac_lower"])
    np.testing.assert_allclose(differences.grad, problem.exact(), rtol=1e-6, atol=1e-8)
    assert "by differences of jac_lower" in differences.message
    together = hypergradient(
        lambda x, y: (upper(x, y), functions["jac_upper"](x, y)),
        lambda x, y: (0.0, functions["jac_lower"](x, y)),
        problem.x,
        y,
        jac_upper=True,
        jac_lower=True,
        hvp_yy=functions["hvp_yy"],
    )
    np.testing.assert_allclose(together.grad, problem.exact(), rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="jac_lower is needed for arrays of numpy"):
        hypergradient(upper, lambda x, y: 0.0, problem.x, y)


def test_functions_of_tensors_are_differentiated():
    torch = pytest.importorskip("torch")
    problem = Ridge()
    A, b, C, d, x, y = (torch.asarray(a) for a in (problem.A, problem.b, problem.C, problem.d, problem.x, problem.y(problem.x)))
    upper = lambda x, y: 0.5 * torch.sum((C @ y - d) ** 2) + torch.sum(x**2) / 20  # noqa: E731
    lower = lambda x, y: 0.5 * torch.sum((A @ y - b) ** 2) + 0.5 * torch.sum(torch.exp(x) * y**2)  # noqa: E731
    result = hypergradient(upper, lower, x, y, tol=1e-12)
    np.testing.assert_allclose(result.grad.numpy(), problem.exact(), rtol=1e-9)
    assert not result.grad.requires_grad and "differences" not in result.message
    with pytest.raises(TypeError, match="requires gradients"):
        hypergradient(upper, lower, x.clone().requires_grad_(), y)
    with pytest.raises(TypeError, match="must return scalar tensors"):
        hypergradient(lambda x, y: 1.0, lower, x, y)


class Logistic:
    """Logistic regression with a penalty exp(x_i) y_i^2 / 2 for every one of 320 weights, and its validation loss."""

    def __init__(self, seed, features=320):
        rng = np.random.default_rng(seed)
        truth = rng.standard_normal(features) * (rng.random(features) < 0.2)
        self.A, self.C = rng.standard_normal((400, features)), rng.standard_normal((200, features))
        self.b, self.d = (np.sign(M @ truth + rng.standard_normal(len(M))) for M in (self.A, self.C))
        self.x = rng.uniform(-1.0, 1.0, features)

    @staticmethod
    def slope(M, signs, y):
        return -M.T @ (signs / (1 + np.exp(signs * (M @ y))))

    def curvature(self, y):
        p = 1 / (1 + np.exp(-self.A @ y))
        return p * (1 - p)

    def solve(self, x):
        """The lower level by Newton's method, to rounding."""
        y = np.zeros_like(x)
        for _ in range(30):
            gradient = self.slope(self.A, self.b, y) + np.exp(x) * y
            if np.linalg.norm(gradient) < 1e-12:
                break
            y = y - np.linalg.solve(self.A.T @ (self.curvature(y)[:, None] * self.A) + np.diag(np.exp(x)), gradient)
        return y

    def value(self, x):
        return np.sum(np.log1p(np.exp(-self.d * (self.C @ self.solve(x)))))

    def functions(self):
        return {
            "jac_upper": lambda x, y: (np.zeros_like(x), self.slope(self.C, self.d, y)),
            "jac_lower": lambda x, y: (np.exp(x) * y**2 / 2, self.slope(self.A, self.b, y) + np.exp(x) * y),
            "hvp_yy": lambda x, y, v: self.A.T @ (self.curvature(y) * (self.A @ v)) + np.exp(x) * v,
            "hvp_xy": lambda x, y, v: np.exp(x) * y * v,
        }


@pytest.mark.parametrize("seed", [0, 1])
def test_logistic_regression_with_320_penalties_against_differences_of_the_solved_problem(seed):
    problem = Logistic(seed)
    x = problem.x
    y = problem.solve(x)
    rng = np.random.default_rng(seed)
    directions = [*np.eye(len(x))[rng.integers(0, len(x), 5)], *rng.standard_normal((5, len(x)))]
    h = 1e-4
    slopes = np.array([(problem.value(x + h * d) - problem.value(x - h * d)) / (2 * h) for d in directions])
    for solver, settings in {**SOLVERS, "nystrom": {"options": {"rank": 60}}}.items():
        result = hypergradient(None, None, x, y, **problem.functions(), solver=solver, tol=1e-8, **settings)
        assert result.success, solver
        np.testing.assert_allclose(directions @ result.grad, slopes, rtol=2e-6, atol=1e-7, err_msg=solver)
    only_gradients = {name: problem.functions()[name] for name in ("jac_upper", "jac_lower")}
    np.testing.assert_allclose(directions @ hypergradient(None, None, x, y, **only_gradients).grad, slopes, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tol", [0.3, 0.1, 1e-2, 1e-4])
def test_the_estimate_of_the_error(tol):
    for seed in range(5):
        problem = Logistic(seed, features=100)
        y, functions = problem.solve(problem.x), problem.functions()
        exact = hypergradient(None, None, problem.x, y, **functions, solver="dense").grad
        result = hypergradient(None, None, problem.x, y, **functions, tol=tol)
        error = np.linalg.norm(result.grad - exact)
        assert 0.5 * error < result.error < 2 * error
        assert np.isnan(hypergradient(None, None, problem.x, y, **functions, tol=tol, estimate_error=False).error)


def test_the_estimate_sees_what_an_approximation_leaves():
    problem = Logistic(0, features=100)
    y, functions = problem.solve(problem.x), problem.functions()
    exact = hypergradient(None, None, problem.x, y, **functions, solver="dense").grad
    for solver, options in (("nystrom", {"rank": 10, "direct": True}), ("mfac", {"gradients": problem.A})):
        with pytest.warns(ConvergenceWarning, match="relative residual"):
            result = hypergradient(None, None, problem.x, y, **functions, solver=solver, options=options, damping=1e-3)
        error = np.linalg.norm(result.grad - exact)
        assert not result.success and 0.5 * error < result.error < 2 * error


def test_the_estimate_knows_of_damping():
    problem = Logistic(0, features=100)
    y, functions = problem.solve(problem.x), problem.functions()
    exact = hypergradient(None, None, problem.x, y, **functions, damping=5.0, solver="dense").grad
    result = hypergradient(None, None, problem.x, y, **functions, damping=5.0, tol=0.3)
    error = np.linalg.norm(result.grad - exact)
    assert 0.5 * error < result.error < 2 * error


def test_the_estimate_is_infinite_where_nothing_was_solved():
    scale = np.logspace(-6, 0, 400)
    functions = {
        "jac_upper": lambda x, y: (0 * x, np.ones(400)),
        "hvp_yy": lambda x, y, v: scale * v,
        "hvp_xy": lambda x, y, v: v[:1],
    }
    with pytest.warns(ConvergenceWarning):
        result = hypergradient(None, None, np.zeros(1), np.zeros(400), **functions, max_iter=5)
    assert result.error == np.inf and np.isnan(result.lower_gradient)


def test_a_solved_system_may_leave_a_large_error():
    scale = np.array([1e-7, 1.0, 1.0])
    functions = {
        "jac_upper": lambda x, y: (0 * x, np.array([1e-7, 1.0, 1.0])),
        "hvp_yy": lambda x, y, v: scale * v,
        "hvp_xy": lambda x, y, v: np.array([v[0]]),
    }
    with pytest.warns(ConvergenceWarning, match="and yet it may leave an error of"):
        result = hypergradient(None, None, np.zeros(1), np.zeros(3), **functions)
    assert result.success and result.error > 0.1 * abs(result.grad[0])


def test_a_solution_that_is_worse_than_none_is_not_used():
    functions = {
        "jac_upper": lambda x, y: (np.ones(1), np.array([1.0, 1.0])),
        "hvp_yy": lambda x, y, v: np.array([1.0, -0.99]) * v,
        "hvp_xy": lambda x, y, v: v[:1],
    }
    with pytest.warns(ConvergenceWarning, match="negative curvature"):
        result = hypergradient(None, None, np.zeros(1), np.zeros(2), **functions)
    np.testing.assert_array_equal(result.v, 0.0)
    assert result.residual == 1.0 and result.grad == [1.0]


def test_warm_start_and_preconditioner_save_iterations():
    problem = Logistic(0)
    y, functions = problem.solve(problem.x), problem.functions()
    first = hypergradient(None, None, problem.x, y, **functions)
    moved = problem.x - 1e-3 * first.grad
    y = problem.solve(moved)
    cold, warm = (hypergradient(None, None, moved, y, **functions, init=init) for init in (None, first))
    assert warm.nit < 0.8 * cold.nit
    np.testing.assert_allclose(warm.grad, cold.grad, rtol=1e-4, atol=1e-5)
    again = hypergradient(None, None, moved, y, **functions, init=cold.v)
    assert again.nit == 0 and again.success
    steep = problem.x + np.linspace(-4.0, 8.0, len(problem.x))
    y = problem.solve(steep)
    diagonal = np.exp(steep) + (problem.A**2).T @ problem.curvature(y)
    plain = hypergradient(None, None, steep, y, **functions)
    better = hypergradient(None, None, steep, y, **functions, preconditioner=lambda r: r / diagonal)
    assert better.nit < 0.5 * plain.nit


def test_what_goes_wrong_is_said():
    problem = Ridge()
    x, y, functions = problem.x, problem.y(problem.x), problem.functions()
    with pytest.warns(ConvergenceWarning, match="left with a relative residual of"):
        result = hypergradient(None, None, x, y, **functions, max_iter=2)
    assert not result.success and result.residual > 1e-6 and result.nit == 2
    with pytest.raises(ConvergenceError):
        hypergradient(None, None, x, y, **functions, max_iter=2, raise_on_failure=True)
    bent = {**functions, "hvp_yy": lambda x, y, v: functions["hvp_yy"](x, y, v) - 40 * v}
    with pytest.warns(ConvergenceWarning, match="negative curvature: y is not a strict minimiser"):
        result = hypergradient(None, None, x, y, **bent)
    assert result.negative_curvature and not result.success
    with pytest.warns(ConvergenceWarning, match="negative curvature"):  # solved, and yet not what it should be
        result = hypergradient(None, None, x, y, **bent, solver="minres")
    assert result.negative_curvature and result.success
    broken = {**functions, "hvp_yy": lambda x, y, v: np.nan * v}
    with pytest.warns(ConvergenceWarning, match="not finite"):
        assert not hypergradient(None, None, x, y, **broken).success
    broken = {**functions, "hvp_xy": lambda x, y, v: np.nan * v}
    with pytest.warns(ConvergenceWarning, match="the hypergradient is not finite"):
        assert not hypergradient(None, None, x, y, **broken).success
    off = hypergradient(None, None, x, y + 0.1, **functions)
    assert off.success and off.lower_gradient > 1.0


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"x": np.ones((2, 4))}, ValueError, r"x must be a vector, got shape \(2, 4\)"),
        ({"y": 1.0}, ValueError, r"y must be a vector, got shape \(\)"),
        ({"solver": "gmres"}, ValueError, "gmres"),
        ({"hvp_yy": 3}, TypeError, "hvp_yy must be a function"),
        ({"hvp_yy": lambda x, y, v: v[:3]}, ValueError, r"hvp_yy must have shape \(8,\), got \(3,\)"),
        ({"hvp_xy": lambda x, y, v: v[:3]}, ValueError, r"hvp_xy must have shape \(8,\), got \(3,\)"),
        ({"jac_upper": lambda x, y: y}, TypeError, "jac_upper must return a pair"),
        ({"jac_upper": lambda x, y: (x, y[:2])}, ValueError, r"grad_y of jac_upper must have shape \(8,\), got \(2,\)"),
        ({"jac_upper": None}, TypeError, "upper must be callable, got NoneType"),
        ({"jac_upper": False, "upper": lambda x, y: 0.0}, TypeError, "jac_upper must be a function"),
        ({"jac_upper": None, "upper": lambda x, y: y}, ValueError, "upper must return a number"),
        ({"damping": -1.0}, ValueError, "damping"),
        ({"init": np.ones(3)}, ValueError, "init must have shape"),
        ({"options": {"rank": 3}}, TypeError, "rank"),
    ],
)
def test_what_is_refused(changes, error, words):
    problem = Ridge()
    given = {"upper": None, "lower": None, "x": problem.x, "y": problem.y(problem.x), **problem.functions(), **changes}
    with pytest.raises(error, match=words):
        hypergradient(**given)
