"""Conjugate gradients against dense solves, against their theory, and where they must stop."""

from __future__ import annotations

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from otbilevel import linalg
from otbilevel._core.array import array_namespace
from otbilevel._core.result import Status
from otbilevel.linalg import LinearOperator, LinearResult, cg


class Matrix:
    """A matrix as an operator that counts its products, and hands out no view of what it is given."""

    def __init__(self, matrix):
        self.matrix = matrix
        self.shape = tuple(matrix.shape)
        self.products = 0

    def matvec(self, x, /):
        self.products += 1
        return self.matrix @ x


class Function:
    """Products from a function."""

    def __init__(self, n, product):
        self.shape = (n, n)
        self.matvec = product


def spd(eigenvalues, seed=0):
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    matrix = (q * np.asarray(eigenvalues, float)) @ q.T
    return 0.5 * (matrix + matrix.T)


def laplacian(n, seed=0):
    """The Laplacian of a connected random graph: a path and some chords."""
    rng = np.random.default_rng(seed)
    weights = np.triu(rng.random((n, n)) * (rng.random((n, n)) < 0.2), 1)
    weights[np.arange(n - 1), np.arange(1, n)] += 0.1 + rng.random(n - 1)
    weights += weights.T
    return np.diag(weights.sum(axis=1)) - weights


def rhs(n, seed=1):
    return np.random.default_rng(seed).standard_normal(n)


def relative_residual(matrix, x, b):
    return np.linalg.norm(b - matrix @ x) / np.linalg.norm(b)


def test_a_matrix_is_a_linear_operator():
    assert isinstance(Matrix(np.eye(2)), LinearOperator)
    assert not isinstance(np.eye(2), LinearOperator)
    assert linalg.cg is cg


@pytest.mark.parametrize("spectrum", ["uniform", "geometric", "outliers"])
def test_solves_what_numpy_solves(device_backend, dtype, spectrum):
    n = 40
    eigenvalues = {
        "uniform": np.linspace(1, 10, n),
        "geometric": np.geomspace(1e-1, 1e1, n),
        "outliers": np.r_[np.ones(n - 3), 1e2, 2e2, 1e3],
    }[spectrum]
    matrix, b = spd(eigenvalues), rhs(n)
    tol = 1e-12 if dtype == "float64" else 1e-4  # single precision leaves eps |A| |x| / |b|, up to 6e-5 here
    operator, native = Matrix(device_backend.asarray(matrix, dtype=dtype)), device_backend.asarray(b, dtype=dtype)
    result = cg(operator, native, tol=tol)
    assert isinstance(result, LinearResult)
    assert (result.success, result.status, result.negative_curvature) == (True, Status.SUCCESS, False)
    assert result.residual <= tol
    assert result.nit < operator.products <= result.nit + 3  # one a step, and one for each look at the true residual
    assert device_backend.dtype_name(result.x) == dtype
    x = device_backend.to_numpy(result.x)
    condition = eigenvalues.max() / eigenvalues.min()
    expected = np.linalg.solve(matrix, b)
    eps = np.finfo(dtype).eps
    assert np.linalg.norm(x - expected) <= condition * (tol + 20 * eps) * np.linalg.norm(expected)
    assert relative_residual(matrix, x.astype(float), b) <= tol + 50 * eps * math.sqrt(condition)
    np.testing.assert_array_equal(device_backend.to_numpy(native), b.astype(dtype))


@hypothesis.given(
    eigenvalues=st.lists(st.floats(0.1, 100.0), min_size=1, max_size=12),
    seed=st.integers(0, 2**32 - 1),
    exponent=st.integers(-60, 60),
)
def test_random_spectra_and_the_scaling_law(eigenvalues, seed, exponent):
    """x(A, b) solves, and x(A, 2^k b) = 2^k x(A, b) to the last bit."""
    matrix, b = spd(eigenvalues, seed), rhs(len(eigenvalues), seed)
    result = cg(Matrix(matrix), b, tol=1e-10)
    assert result.success
    np.testing.assert_allclose(result.x, np.linalg.solve(matrix, b), rtol=0, atol=1e-8 * np.linalg.norm(result.x))
    scaled = cg(Matrix(matrix), b * 2.0**exponent, tol=1e-10)
    np.testing.assert_array_equal(scaled.x, result.x * 2.0**exponent)
    assert (scaled.nit, scaled.residual) == (result.nit, result.residual)


@pytest.mark.parametrize(("dtype", "scale"), [("float64", 1e-170), ("float64", 1e170), ("float32", 1e-25), ("float32", 1e25)])
def test_the_size_of_the_right_hand_side_does_not_matter(dtype, scale):
    """Squares of numbers that are far from the range's end under- and overflow: that is no negative curvature, and no NaN."""
    matrix, b = spd(np.linspace(1, 4, 10)).astype(dtype), (rhs(10) * scale).astype(dtype)
    result = cg(Matrix(matrix), b, tol=1e-5)
    assert result.status is Status.SUCCESS, result.message
    np.testing.assert_allclose(
        result.x / scale, np.linalg.solve(matrix.astype(float), b.astype(float)) / scale, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_k_distinct_eigenvalues_take_k_steps(device_backend, k):
    n = 30
    matrix = spd(np.resize(np.geomspace(1, 20, k), n), seed=k)
    b = rhs(n)
    result = cg(Matrix(device_backend.asarray(matrix)), device_backend.asarray(b), tol=1e-9)
    assert result.success
    assert k <= result.nit <= k + 1
    assert relative_residual(matrix, device_backend.to_numpy(result.x), b) < 1e-8


def test_an_eigenvector_takes_one_step():
    matrix = spd([1.0, 3.0, 9.0])
    vector = np.linalg.eigh(matrix)[1][:, 1]
    result = cg(Matrix(matrix), vector)
    assert result.nit == 1
    np.testing.assert_allclose(result.x, vector / 3, atol=1e-12)


@pytest.mark.parametrize("condition", [4.0, 100.0, 1e4])
def test_the_error_falls_as_chebyshev_promises(condition):
    """||x_k - x||_A <= 2 ((sqrt(kappa) - 1)/(sqrt(kappa) + 1))^k ||x||_A, at every k."""
    n = 80
    matrix, b = spd(np.geomspace(1, condition, n)), rhs(n)
    exact = np.linalg.solve(matrix, b)
    rate = (math.sqrt(condition) - 1) / (math.sqrt(condition) + 1)
    previous = math.inf
    for k in range(1, 30, 4):
        error = cg(Matrix(matrix), b, tol=0.0, max_iter=k).x - exact
        size = math.sqrt(error @ matrix @ error)
        assert size <= 2 * rate**k * math.sqrt(exact @ b) + 1e-12
        assert size < previous or size < 1e-10
        previous = size


def test_iterates_are_the_best_of_their_krylov_space():
    """x_k minimises the A-norm of the error over span(b, A b, ..., A^(k-1) b): against a dense least-squares solve."""
    n, k = 12, 4
    matrix, b = spd(np.linspace(1, 5, n)), rhs(n)
    basis = np.linalg.qr(np.stack([np.linalg.matrix_power(matrix, i) @ b for i in range(k)], axis=1))[0]
    best = basis @ np.linalg.solve(basis.T @ matrix @ basis, basis.T @ b)
    result = cg(Matrix(matrix), b, tol=0.0, max_iter=k)
    np.testing.assert_allclose(result.x, best, atol=1e-10)


def test_a_preconditioner_reduces_the_iterations(device_backend):
    n = 60
    core, scales = spd(np.linspace(1, 3, n)), np.geomspace(1, 1e3, n)
    matrix = scales[:, None] * core * scales[None, :]
    b = matrix @ rhs(n)
    operator, native = Matrix(device_backend.asarray(matrix)), device_backend.asarray(b)
    inverse = device_backend.asarray(1.0 / np.diag(matrix))
    plain = cg(operator, native, tol=1e-9, max_iter=1000)
    jacobi = cg(operator, native, tol=1e-9, max_iter=1000, preconditioner=lambda r: inverse * r)
    assert jacobi.success
    assert 3 * jacobi.nit < plain.nit
    assert relative_residual(matrix, device_backend.to_numpy(jacobi.x), b) < 1e-8


def test_the_inverse_as_preconditioner_takes_one_step():
    matrix, b = spd(np.geomspace(1, 1e4, 20)), rhs(20)
    inverse = np.linalg.inv(matrix)
    result = cg(Matrix(matrix), b, preconditioner=lambda r: inverse @ r)
    assert (result.success, result.nit) == (True, 1)


def test_preconditioning_is_a_change_of_variables():
    """With M = D^2: the iterates are D^-1 times those for D^-1 A D^-1 and D^-1 b."""
    n = 15
    matrix, b, d = spd(np.geomspace(1, 50, n)), rhs(n), np.random.default_rng(3).uniform(0.5, 2.0, n)
    left = cg(Matrix(matrix), b, tol=0.0, max_iter=5, preconditioner=lambda r: r / d**2)
    right = cg(Matrix(matrix / np.outer(d, d)), b / d, tol=0.0, max_iter=5)
    np.testing.assert_allclose(left.x, right.x / d, rtol=1e-9, atol=1e-12)


def test_a_consistent_singular_system(device_backend):
    n = 50
    matrix, b = laplacian(n), rhs(n)
    b -= b.mean()
    result = cg(Matrix(device_backend.asarray(matrix)), device_backend.asarray(b), tol=1e-11)
    x = device_backend.to_numpy(result.x)
    assert result.success
    assert relative_residual(matrix, x, b) < 1e-10
    np.testing.assert_allclose(x, np.linalg.pinv(matrix) @ b, atol=1e-8 * np.abs(x).max())
    assert abs(x.mean()) < 1e-9 * np.abs(x).max()


def test_an_inconsistent_singular_system_is_no_success():
    matrix = laplacian(20)
    result = cg(Matrix(matrix), np.ones(20) + rhs(20), tol=1e-8)
    assert not result.success
    assert result.status is not Status.SUCCESS
    assert np.all(np.isfinite(result.x))


def test_negative_curvature_is_reported_with_the_iterate_before(device_backend):
    eigenvalues = np.r_[np.linspace(1, 4, 19), -2.0]
    matrix, b = spd(eigenvalues), rhs(20)
    native = device_backend.asarray(b)
    result = cg(Matrix(device_backend.asarray(matrix)), native, tol=1e-10)
    assert (result.success, result.status, result.negative_curvature) == (False, Status.NUMERICAL_FAILURE, True)
    assert "negative curvature" in result.message
    assert "damping" in result.message
    before = cg(Matrix(device_backend.asarray(matrix)), native, tol=1e-10, max_iter=result.nit)
    assert before.status is Status.ITERATION_LIMIT
    np.testing.assert_array_equal(device_backend.to_numpy(result.x), device_backend.to_numpy(before.x))
    assert result.residual == pytest.approx(relative_residual(matrix, device_backend.to_numpy(result.x), b), rel=1e-6)


@pytest.mark.parametrize("matrix", [-np.eye(3), np.zeros((3, 3))], ids=["negative", "zero"])
def test_negative_curvature_at_once_gives_zero(matrix):
    result = cg(Matrix(matrix), np.array([1.0, -2.0, 3.0]))
    assert (result.negative_curvature, result.nit, result.residual) == (True, 0, 1.0)
    assert result.x.tolist() == [0.0, 0.0, 0.0]


def test_the_iteration_limit(device_backend):
    matrix, b = spd(np.geomspace(1, 1e4, 50)), rhs(50)
    result = cg(Matrix(device_backend.asarray(matrix)), device_backend.asarray(b), tol=1e-12, max_iter=7)
    assert (result.success, result.status, result.nit) == (False, Status.ITERATION_LIMIT, 7)
    assert "max_iter" in result.message
    assert result.residual == pytest.approx(relative_residual(matrix, device_backend.to_numpy(result.x), b), rel=1e-8)


def test_the_default_limit_is_ten_times_the_size():
    rotation = Function(3, lambda x: x + 1e3 * np.array([x[1] - x[2], x[2] - x[0], x[0] - x[1]]))  # x'Ax > 0, but not symmetric
    result = cg(rotation, np.array([1.0, 2.0, -1.0]), tol=1e-14)
    assert (result.success, result.status, result.nit) == (False, Status.ITERATION_LIMIT, 30)


@pytest.mark.parametrize("when", [1, 3])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_product_that_is_not_finite_gives_the_last_good_iterate(device_backend, bad, when):
    matrix, b = spd(np.geomspace(1, 100, 20)), device_backend.asarray(rhs(20))
    good = Matrix(device_backend.asarray(matrix))
    poison = device_backend.asarray(np.r_[bad, np.zeros(19)])
    calls = []

    def product(x):
        calls.append(1)
        return good.matvec(x) + poison if len(calls) >= when else good.matvec(x)

    with np.errstate(invalid="ignore"):
        result = cg(Function(20, product), b, tol=1e-12)
    assert (result.success, result.status, result.negative_curvature) == (False, Status.NOT_FINITE, False)
    assert "not finite" in result.message
    before = cg(good, b, tol=1e-12, max_iter=when - 1)
    np.testing.assert_array_equal(device_backend.to_numpy(result.x), device_backend.to_numpy(before.x))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_right_hand_side_that_is_not_finite(device_backend, bad):
    b = device_backend.asarray([1.0, bad, 2.0])
    result = cg(Matrix(device_backend.asarray(np.eye(3))), b)
    assert (result.success, result.status, result.nit) == (False, Status.NOT_FINITE, 0)
    assert np.all(np.isfinite(device_backend.to_numpy(result.x)))


def test_a_preconditioner_that_is_not_finite():
    matrix = spd(np.geomspace(1, 100, 20))
    result = cg(Matrix(matrix), rhs(20), tol=1e-12, preconditioner=lambda r: r * math.nan)
    assert (result.success, result.status) == (False, Status.NOT_FINITE)
    assert np.all(np.isfinite(result.x))


def test_a_preconditioner_that_is_not_positive_definite_is_no_success():
    matrix = spd(np.geomspace(1, 100, 20))
    for bad in (lambda r: 0 * r, lambda r: -r * np.linspace(-1, 1, 20)):
        with np.errstate(all="ignore"):
            result = cg(Matrix(matrix), rhs(20), tol=1e-12, preconditioner=bad, max_iter=200)
        assert result.success == (relative_residual(matrix, result.x, rhs(20)) <= 1e-10)
        assert np.all(np.isfinite(result.x))


def test_a_zero_right_hand_side(device_backend, dtype):
    b = device_backend.asarray(np.zeros(5), dtype=dtype)
    operator = Matrix(device_backend.asarray(np.eye(5), dtype=dtype))
    result = cg(operator, b, preconditioner=lambda r: 2.0 * r)
    assert (result.success, result.nit, result.residual, operator.products) == (True, 0, 0.0, 0)
    assert device_backend.to_numpy(result.x).tolist() == [0.0] * 5
    assert device_backend.dtype_name(result.x) == dtype


def test_an_interrupt_ends_with_the_present_iterate():
    matrix, b = spd(np.geomspace(1, 1e4, 50)), rhs(50)
    asked = []

    def interrupt():
        asked.append(1)
        return len(asked) > 4

    operator = Matrix(matrix)
    result = cg(operator, b, tol=1e-12, interrupt=interrupt)
    assert (result.success, result.status, result.nit, operator.products) == (False, Status.TIME_LIMIT, 4, 5)
    assert "interrupted" in result.message
    np.testing.assert_array_equal(result.x, cg(operator, b, tol=1e-12, max_iter=4).x)


def test_an_interrupt_that_never_comes_changes_nothing():
    matrix, b = spd(np.geomspace(1, 1e2, 20)), rhs(20)
    calm = cg(Matrix(matrix), b, interrupt=lambda: False)
    np.testing.assert_array_equal(calm.x, cg(Matrix(matrix), b).x)
    assert calm.success


def test_the_stopping_test_uses_the_norm_that_it_is_given(device_backend):
    matrix, b = spd(np.geomspace(1, 1e3, 40)), rhs(40)
    native = device_backend.asarray(b)
    seen = []

    def l1(v):
        xp = array_namespace(v)
        seen.append(float(xp.sum(xp.abs(v))))
        return seen[-1]

    result = cg(Matrix(device_backend.asarray(matrix)), native, tol=1e-4, norm=l1, verify=False)
    x = device_backend.to_numpy(result.x)
    assert result.success
    assert len(seen) == result.nit + 1
    assert math.frexp(np.abs(b).sum() / seen[0])[0] == pytest.approx(0.5)  # the system is scaled by a power of two
    assert seen[-1] <= 1e-4 * seen[0] < seen[-2]
    assert result.residual == seen[-1] / seen[0]
    assert np.abs(b - matrix @ x).sum() / np.abs(b).sum() == pytest.approx(result.residual, rel=1e-6)


@pytest.mark.parametrize("tol", [1e-2, 1e-6, 1e-10])
def test_success_means_that_the_residual_is_below_the_tolerance(tol):
    matrix, b = spd(np.geomspace(1, 1e3, 60)), rhs(60)
    result = cg(Matrix(matrix), b, tol=tol)
    assert result.success
    assert relative_residual(matrix, result.x, b) <= tol * (1 + 1e-3)


@pytest.mark.parametrize(("dtype", "condition", "tol"), [("float64", 1e8, 1e-12), ("float32", 1e4, 1e-5)])
def test_success_is_not_claimed_where_the_recursion_has_lost_the_residual(dtype, condition, tol):
    """In rounding the recursive residual falls for ever, while the true one stalls near eps |A| |x| / |b|."""
    matrix, b = spd(np.geomspace(1, condition, 60)).astype(dtype), rhs(60).astype(dtype)
    result = cg(Matrix(matrix), b, tol=tol, max_iter=5000)
    true = relative_residual(matrix.astype(float), result.x.astype(float), b.astype(float))
    assert not result.success or true <= 3 * tol
    assert result.residual == pytest.approx(true, rel=0.5)


def test_one_unknown(device_backend):
    result = cg(Matrix(device_backend.asarray([[4.0]])), device_backend.asarray([2.0]))
    assert (result.success, result.nit) == (True, 1)
    assert device_backend.to_numpy(result.x).tolist() == [0.5]


@pytest.mark.parametrize("preconditioned", [False, True])
def test_the_right_hand_side_is_not_touched(device_backend, preconditioned):
    """Not by the method, and not by its result: x and b share no memory, even when no step was taken."""
    b = device_backend.asarray([1.0, 2.0, 3.0])
    matrix = device_backend.asarray(np.diag([1.0, 2.0, 3.0]))
    preconditioner = (lambda r: r) if preconditioned else None
    cg(Matrix(matrix), b, preconditioner=preconditioner)
    assert device_backend.to_numpy(b).tolist() == [1.0, 2.0, 3.0]
    stopped = cg(Matrix(matrix), b, preconditioner=preconditioner, max_iter=0)
    assert stopped.x is not b
    assert device_backend.to_numpy(stopped.x).tolist() == [0.0] * 3
    assert (stopped.status, stopped.residual) == (Status.ITERATION_LIMIT, 1.0)


def test_the_result_prints_without_its_vector():
    text = repr(cg(Matrix(np.eye(100)), np.ones(100)))
    assert text.startswith("LinearResult\n")
    assert "array of shape (100,), float64" in text
    assert "success: True" in text


def test_results_can_be_compared_and_hashed():
    """A dataclass compares its fields, and arrays have no truth value: results must compare by identity."""
    one, other = (cg(Matrix(np.eye(3)), np.ones(3)) for _ in range(2))
    assert one == one  # noqa: PLR0124
    assert one != other
    assert len({one, other}) == 2


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        pytest.param({"b": np.ones((3, 1))}, ValueError, ["b", "(3, 1)"], id="two-dimensional"),
        pytest.param({"b": np.ones(4)}, ValueError, ["b", "4", "3"], id="wrong-size"),
        pytest.param({"b": np.ones(3) * 1j}, TypeError, ["b", "complex"], id="complex"),
        pytest.param({"tol": -1.0}, ValueError, ["tol", "-1.0"], id="negative-tol"),
        pytest.param({"tol": math.nan}, ValueError, ["tol", "nan"], id="nan-tol"),
        pytest.param({"tol": "small"}, TypeError, ["tol", "small"], id="string-tol"),
        pytest.param({"max_iter": -1}, ValueError, ["max_iter", "-1"], id="negative-limit"),
        pytest.param({"max_iter": 2.5}, TypeError, ["max_iter", "float"], id="float-limit"),
    ],
)
def test_bad_input_names_the_argument(change, error, words):
    arguments = {"b": np.ones(3)} | change
    with pytest.raises(error) as refused:
        cg(Matrix(np.diag([1.0, 2.0, 3.0])), **arguments)
    for word in words:
        assert word in str(refused.value)


def test_lists_and_integers_are_understood():
    for b in ([1.0, 2.0], np.array([1, 2])):
        result = cg(Matrix(np.diag([1.0, 4.0])), b)
        np.testing.assert_allclose(result.x, [1.0, 0.5])


def test_arguments_other_than_the_system_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        cg(Matrix(np.eye(2)), np.ones(2), lambda r: r)
