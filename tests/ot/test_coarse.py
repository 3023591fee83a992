"""The coarse space of conjugate gradients: clusters, and a solve that would take hundreds of steps without it."""

import importlib
import math

import numpy as np
import pytest

from otbilevel import DenseCost, solve_ot
from otbilevel.ot.kernels import cpu, generic
from otbilevel.testing import FAMILIES

coarse = importlib.import_module("otbilevel.ot.kernels.cpu.coarse")
pcg = importlib.import_module("otbilevel.ot.kernels.cpu.pcg")


def clustered(n_clusters, size, tie, seed=0):
    """A plan of blocks with ties along a ring of them, and its Laplacian's parts."""
    rng = np.random.default_rng(seed)
    m = n_clusters * size
    plan = np.full((m, m), tie * 1e-6, np.float32)
    for k in range(n_clusters):
        rows = slice(k * size, (k + 1) * size)
        after = (k + 1) % n_clusters
        plan[rows, rows] = rng.random((size, size)) + 0.5
        plan[k * size, after * size : (after + 1) * size] = tie
    a, ones = np.full(m, 1.0 / m), np.ones(m)
    r, degree, squares = generic.plan_moments(plan.astype(np.float64), a, ones)
    return plan, (a / r, ones, degree, 1.0 / (degree - squares))


def stored(plan, sparse):
    """The plan as the compiled loop takes it."""
    if not sparse:
        return plan
    n, m = plan.shape
    pattern = cpu.active_set(DenseCost(np.ones((n, m))).kernel_cost, np.zeros(n), np.zeros(m), -2.0, np.inf)
    return pattern.indptr, pattern.indices, plan.ravel().copy()


@pytest.mark.parametrize("sparse", [False, True])
def test_clusters_are_the_blocks(sparse):
    plan, (_, ones, *_) = clustered(5, 8, 1e-4)
    labels, count = coarse.clusters(stored(plan, sparse), 40, ones)
    assert count == 5
    np.testing.assert_array_equal(labels, np.repeat(np.arange(5), 8))


@pytest.mark.parametrize("sparse", [False, True])
def test_the_coarse_inverse_is_that_of_the_sums_over_clusters(sparse):
    plan, (weights, ones, degree, _) = clustered(5, 8, 1e-2)
    labels, count = coarse.clusters(stored(plan, sparse), 40, ones)
    space = coarse.build(stored(plan, sparse), weights, ones, labels, count)
    exact = plan.astype(np.float64)
    laplacian = np.diag(degree) - exact.T @ (weights[:, None] * exact)
    sums = np.equal.outer(np.arange(count), labels).astype(float)
    total = sums @ degree
    matrix = sums @ laplacian @ sums.T + np.outer(total, total / total.sum())
    np.testing.assert_allclose(space.inverse @ matrix, np.eye(count), atol=1e-6)
    np.testing.assert_array_equal(space.inverse, space.inverse.T)
    assert np.linalg.eigvalsh(space.inverse)[0] > 0


def test_an_empty_cluster_leaves_no_coarse_space():
    plan, (weights, ones, *_) = clustered(3, 4, 1e-2)
    plan[:, :4] = 0.0
    assert coarse.build(plan, weights, ones, *coarse.clusters(plan, 12, ones)) is None


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("threaded", [False, True])
def test_slow_steps_buy_a_coarse_space(sparse, threaded):
    """On a long ring of clusters; the next solve starts with it, and both find the solution."""
    plan, operator = clustered(100, 4, 1e-3)
    weights, _, degree, _ = operator
    exact = plan.astype(np.float64)
    rng = np.random.default_rng(1)
    b = np.repeat(rng.standard_normal(100), 4) * degree
    b -= degree * b.sum() / degree.sum()
    product = (lambda y: exact.T @ (weights * (exact @ y))) if threaded else None
    settings = {"tol": 1e-6, "max_iter": 2000, "interrupt": lambda: False}
    x, slow, memory = pcg.solve(stored(plan, sparse), 1.0, product, *operator, b, **settings)
    assert len(memory.coarse.inverse) == 1
    assert memory.spent == pytest.approx(slow - pcg.PATIENCE)
    memory.spent = math.inf
    y, first, memory = pcg.solve(stored(plan, sparse), 1.0, product, *operator, b, **settings, memory=memory)
    assert len(memory.coarse.inverse) == 100
    z, second, memory = pcg.solve(stored(plan, sparse), 1.0, product, *operator, b, **settings, memory=memory)
    assert second < 20 < pcg.PATIENCE < first < pcg.PATIENCE + 20 < slow
    for solution in (x, y, z):
        residual = degree * solution - exact.T @ (weights * (exact @ solution)) - b
        assert np.abs(residual).sum() < 1e-5 * np.abs(b).sum()


@pytest.mark.parametrize(("family", "size", "reg"), [("image-w1", 196, 1e-4), ("cloud-2d", 200, 1e-6), ("mixture-2d", 225, 2e-5)])
def test_costs_with_ties_and_extreme_regularisation(family, size, reg):
    problem = FAMILIES[family](size, 0)
    assert solve_ot(problem.a, problem.b, problem.C, reg=reg, method="sns").marginal_error < 1e-9
