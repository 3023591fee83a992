"""Work on stacks of vectors: the compiled kernels and those of every array library against NumPy."""

import math

import numpy as np
import pytest

from otbilevel.ot.kernels import cpu, stacks

compiled = cpu.stack_kernels
SHAPES = [
    (1, 1, 1),
    (2, 7, 5),
    (3, 8, 9),
    (5, 66, 40),
    (8, 30, 31),
]  # inputs on both sides of what the compiled passes take; rows, columns


def modules(backend):
    return (stacks, compiled) if backend.name == "numpy" else (stacks,)


def close(backend, found, expected):
    np.testing.assert_allclose(backend.to_numpy(found), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_passes_over_a_stored_kernel(shape, backend):
    for module in modules(backend):
        check_passes_over_a_stored_kernel(module, shape, backend)


def check_passes_over_a_stored_kernel(module, shape, backend):
    k, n, m = shape
    rng = np.random.default_rng(n)
    K, a, v, x = rng.random((n, m)) + 0.1, rng.random((k, n)), rng.random((k, m)), rng.standard_normal((k, m))
    a[:, 0] = 0.0
    products, u, sums = module.scaling_pass(*(backend.asarray(z) for z in (K, a, v)))
    close(backend, products, v @ K.T)
    close(backend, u, a / (v @ K.T))
    close(backend, sums, (a / (v @ K.T)) @ K)
    close(backend, module.mean_product(backend.asarray(K), products, u, backend.asarray(x)), (a / (v @ K.T) ** 2 * (x @ K.T)) @ K)


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (8, 65)])
def test_scalings_and_means(shape, backend):
    for module in modules(backend):
        check_scalings_and_means(module, shape, backend)


def check_scalings_and_means(module, shape, backend):
    rng = np.random.default_rng(shape[1])
    logs, w = 50 * rng.standard_normal(shape), rng.dirichlet(np.ones(shape[0]))
    w_, logs_ = backend.asarray(w), backend.asarray(logs)
    top, v = module.scaled(logs_, -20.0)
    close(backend, top, logs.max(axis=1))
    close(backend, v, np.exp(np.maximum(logs - logs.max(axis=1, keepdims=True), -20.0)))

    sums = rng.random(shape) + 0.1
    log_sums, columns = module.columns(backend.asarray(sums), top, v)
    close(backend, log_sums, np.log(sums) - logs.max(axis=1, keepdims=True))
    close(backend, columns, backend.to_numpy(v) * sums)

    log_b, b, error = module.geometric_mean(w_, log_sums, columns)
    expected = w @ backend.to_numpy(log_sums)
    close(backend, log_b, expected - expected.max())
    close(backend, b, np.exp(expected) / np.exp(expected).sum())
    apart = np.abs(backend.to_numpy(columns) - backend.to_numpy(b)).sum(axis=1)
    close(backend, module.distances(columns, b), apart)
    assert error == pytest.approx(apart.max()) == pytest.approx(module.disagreement(columns, b))


@pytest.mark.parametrize("shape", [(1, 1), (3, 20)])
def test_a_step_of_the_debiased_iteration(shape, backend):
    for module in modules(backend):
        check_a_step_of_the_debiased_iteration(module, shape, backend)


def check_a_step_of_the_debiased_iteration(module, shape, backend):
    rng = np.random.default_rng(3)
    k, n = shape
    G, h, log_sums, self_log_sums = (rng.standard_normal(s) for s in (shape, n, shape, n))
    columns, w = rng.random(shape), rng.dirichlet(np.ones(k))
    point = np.concatenate([G, h[None]])
    b, error, step, metric = module.debiased_step(*(backend.asarray(z) for z in (point, w, log_sums, columns, self_log_sums)))
    expected = np.exp(h + w @ log_sums)
    expected /= expected.sum()
    close(backend, b, expected)
    log_b, diagonal = np.log(expected), np.exp(h + self_log_sums)
    assert error == pytest.approx(max(np.abs(columns - expected).sum(axis=1).max(), np.abs(diagonal - expected).sum()))
    close(backend, step, np.concatenate([log_b - log_sums - G, 0.5 * (log_b - h - self_log_sums)[None]]))
    close(backend, metric, np.sqrt(np.concatenate([w[:, None] * columns, diagonal[None]])))


@pytest.mark.parametrize("shape", [(1, 3), (3, 20)])
def test_conjugate_gradients_keep_the_constraint(shape, backend):
    for module in modules(backend):
        check_conjugate_gradients_keep_the_constraint(module, shape, backend)


def check_conjugate_gradients_keep_the_constraint(module, shape, backend):
    """Two steps on a diagonal operator, of which the preconditioner is the inverse: the first one solves."""
    rng = np.random.default_rng(4)
    k, n = shape
    columns, b, w = rng.random(shape) + 0.1, rng.random(n) + 0.1, rng.dirichlet(np.ones(k))
    columns[0, 0] *= k == 1
    columns_, b_, w_ = (backend.asarray(z) for z in (columns, b, w))
    inverse = module.inverse(columns_)
    close(backend, inverse, np.where(columns > 0, 1 / np.where(columns > 0, columns, 1), 1))
    balanced, shares = module.balance(inverse, columns_, b_, w_)
    close(backend, balanced, backend.to_numpy(inverse) * columns / np.maximum(columns, b))
    close(backend, shares, w[:, None] * backend.to_numpy(balanced) / (w @ backend.to_numpy(balanced)))

    r = b - columns
    z, square = module.precondition(backend.asarray(r), balanced, shares, w_)
    np.testing.assert_allclose(w @ backend.to_numpy(z), 0, atol=1e-13)
    assert square == pytest.approx(np.sum(w[:, None] * r * backend.to_numpy(z)), abs=1e-15)
    assert module.inner(w_, columns_, columns_) == pytest.approx(w @ (columns**2).sum(axis=1))

    p = rng.standard_normal(shape)
    q, r, x = 3 * p, rng.standard_normal(shape), rng.standard_normal(shape)
    x_, r_, p_, rz, curvature = module.cg_step(*(backend.asarray(s) for s in (x, r, p, q)), 0.7, balanced, shares, w_)
    assert curvature == pytest.approx(np.sum(w[:, None] * p * q))
    close(backend, x_, x + 0.7 / curvature * p)
    close(backend, r_, r - 0.7 / curvature * q)
    z, square = module.precondition(r_, balanced, shares, w_)
    assert rz == pytest.approx(square)
    close(backend, p_, backend.to_numpy(z) + square / 0.7 * p)


@pytest.mark.parametrize("kernels", [compiled, stacks])
@pytest.mark.parametrize("place", [(0, 0), (1, 3), (2, 6)])
def test_stack_kernels_keep_nan(kernels, place):
    """No comparison may hide it: the solver would go on."""
    x, w, b = np.ones((3, 7)), np.full(3, 1 / 3), np.full(7, 1 / 7)
    x[place] = np.nan
    assert math.isnan(kernels.disagreement(x, b)) and math.isnan(kernels.geometric_mean(w, np.ones((3, 7)), x)[2])
    assert np.isnan(kernels.scaled(x, -700.0)[1][place])
    assert math.isnan(kernels.debiased_step(np.zeros((4, 7)), w, np.zeros((3, 7)), x, np.zeros(7))[1])
    assert math.isnan(kernels.debiased_step(np.zeros((4, 7)), w, np.zeros((3, 7)), np.ones((3, 7)), x[place[0]])[1])
