"""What solves learn from each other, and the direct solution where they would not end."""

import importlib

import numpy as np
import pytest

from otbilevel import DenseCost, solve_ot
from otbilevel.ot.kernels import cpu, generic
from otbilevel.testing import FAMILIES

ritz = importlib.import_module("otbilevel.ot.kernels.cpu.ritz")
pcg = importlib.import_module("otbilevel.ot.kernels.cpu.pcg")
direct = importlib.import_module("otbilevel.ot.kernels.cpu.direct")
sparse = cpu.sparse_kernels

SETTINGS = {"tol": 1e-6, "max_iter": 2000, "interrupt": lambda: False}


def clustered(n_clusters, size, tie, seed=0):
    """A plan of blocks with ties along a ring of them, and its Laplacian's parts: weights, columns, degree, inverse diagonal."""
    rng = np.random.default_rng(seed)
    m = n_clusters * size
    plan = np.zeros((m, m), np.float32)
    for k in range(n_clusters):
        rows = slice(k * size, (k + 1) * size)
        after = (k + 1) % n_clusters
        plan[rows, rows] = rng.random((size, size)) + 0.5
        plan[k * size, after * size : (after + 1) * size] += tie
    a, ones = np.full(m, 1.0 / m), np.ones(m)
    r, degree, squares = generic.plan_moments(plan.astype(np.float64), a, ones)
    return plan, (a / r, ones, degree, 1.0 / (degree - squares))


def active(plan):
    """The same on the pattern of its entries that are not 0."""
    pattern = cpu.lazy_active_set(
        DenseCost(np.where(plan > 0, 0.0, np.inf)).kernel_cost, np.zeros(len(plan)), np.zeros(len(plan)), -1.0, np.inf
    )
    return sparse.ActivePlan(pattern, plan[plan > 0])


def laplacian(plan, operator):
    weights, columns, degree, _ = operator
    exact = plan.astype(np.float64) * columns
    return np.diag(degree) - exact.T @ (weights[:, None] * exact)


def in_range(rng, degree, n_clusters=None):
    """A right-hand side with the sum 0; the same throughout a cluster if told so."""
    values = rng.standard_normal(n_clusters or len(degree))
    b = np.repeat(values, len(degree) // len(values)) * degree
    return b - degree * b.sum() / degree.sum()


def test_ritz_pairs_are_the_small_eigenvalues_and_their_vectors():
    plan, operator = clustered(6, 8, 1e-3)
    _, _, degree, inverse = operator
    matrix = laplacian(plan, operator)
    _, _, found = pcg.solve(plan, 1.0, 1, *operator, in_range(np.random.default_rng(1), degree), **(SETTINGS | {"tol": 1e-12}))
    scale = np.sqrt(inverse)
    values = np.linalg.eigvalsh(scale[:, None] * matrix * scale)
    small = values[1:][values[1:] < ritz.SMALL]
    assert len(small) == 5  # six clusters that are tied weakly, less the constants
    for theta, w in zip(1.0 / found.weights, found.vectors.astype(np.float64), strict=True):
        residual = inverse * (matrix @ w) - theta * w
        assert np.sqrt(residual @ (residual / inverse)) < 1e-4
        assert w @ (w / inverse) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("n_parts", [1, 3])
def test_a_solve_speeds_up_the_next_one(kind, n_parts):
    """On a long ring of clusters; both find the solution."""
    plan, operator = clustered(60, 4, 1e-3)
    stored = plan if kind == "dense" else (*active(plan).pattern[:2], active(plan).values)
    rng = np.random.default_rng(1)
    memory, steps = None, []
    for _ in range(4):
        b = in_range(rng, operator[2], 60)
        x, nit, memory = pcg.solve(stored, 1.0, n_parts, *operator, b, **SETTINGS, memory=memory)
        assert np.abs(laplacian(plan, operator) @ x - b).sum() < 2e-6 * np.abs(b).sum()
        steps.append(nit)
    assert steps[-1] < 0.5 * steps[0]
    assert 0 < len(memory.weights) <= ritz.MOST


def test_a_long_solve_learns_from_itself(monkeypatch):
    plan, operator = clustered(100, 4, 1e-4)
    b = in_range(np.random.default_rng(2), operator[2], 100)
    _, whole, _ = pcg.solve(plan, 1.0, 1, *operator, b, **SETTINGS)
    monkeypatch.setattr(ritz, "extended", lambda subspace, *_: subspace)
    _, forgetful, memory = pcg.solve(plan, 1.0, 1, *operator, b, **SETTINGS)
    assert len(memory.weights) == 0
    assert whole < forgetful


def test_only_so_many_vectors_are_kept(monkeypatch):
    monkeypatch.setattr(ritz, "MOST", 3)
    plan, operator = clustered(12, 4, 1e-3)
    rng = np.random.default_rng(3)
    _, _, first = pcg.solve(plan, 1.0, 1, *operator, in_range(rng, operator[2]), **SETTINGS)
    assert len(first.weights) == 3
    _, nit, second = pcg.solve(plan, 1.0, 1, *operator, in_range(rng, operator[2]), **SETTINGS, memory=first)
    assert nit >= pcg.FEWEST_STEPS and len(second.weights) == 3
    assert not np.isin(second.weights, first.weights).any()  # the youngest stay


def test_where_no_eigenvalue_is_small_nothing_is_learnt():
    nothing = ritz.nothing(4)
    alpha, beta = np.array([1.0, 1.1, 1.2]), np.array([0.01, 0.01, 0.01])
    assert ritz.extended(nothing, np.ones((3, 4), np.float32), alpha, beta, 3) is nothing


def test_a_breakdown_teaches_nothing():
    nothing = ritz.nothing(4)
    basis = np.ones((3, 4), np.float32)
    alpha, beta = np.array([20.0, 30.0, 40.0]), np.array([0.5, 0.5, 0.5])
    assert len(ritz.extended(nothing, basis, alpha, beta, 3).weights) > 0
    assert ritz.extended(nothing, np.full_like(basis, np.inf), alpha, beta, 3) is nothing
    assert ritz.extended(nothing, basis, np.array([1.0, np.inf, 1.0]), np.array([np.nan, 1.0, 1.0]), 3) is nothing
    assert ritz.extended(nothing, basis, np.array([1e-18, 30.0, 40.0]), beta, 3) is nothing  # all below 0.1 is rounding


@pytest.mark.parametrize("tie", [1e-3, 1e-9])
def test_a_direct_solution(tie):
    plan, operator = clustered(40, 2, np.float32(tie))
    matrix = laplacian(plan, operator)
    b = in_range(np.random.default_rng(4), operator[2])
    x = direct.solve(active(plan), *operator[:3], b)
    assert np.abs(matrix @ x - b).sum() < (1e-9 if tie > 1e-6 else 1e-4) * np.abs(b).sum()


def test_slow_steps_on_few_pairs_give_way_to_a_direct_solution(monkeypatch):
    plan, operator = clustered(60, 2, 1e-4)
    b = in_range(np.random.default_rng(5), operator[2], 60)
    monkeypatch.setattr(sparse, "PATIENCE", 5)
    x, nit, _ = sparse.solve_laplacian(active(plan), *operator, b, **SETTINGS)
    assert nit == 5
    assert np.abs(laplacian(plan, operator) @ x - b).sum() < 1e-8 * np.abs(b).sum()
    monkeypatch.setattr(sparse, "FEW_ENTRIES", 0)
    _, nit, _ = sparse.solve_laplacian(active(plan), *operator, b, **SETTINGS)
    assert nit > 5


def test_a_direct_solution_without_ties():
    """Two components: a step that is far too long, to be clipped, in the right direction."""
    plan, operator = clustered(2, 3, 0.0)
    b = np.repeat([1.0, -1.0], 3) * operator[2]
    x = direct.solve(active(plan), *operator[:3], b)
    assert (x[:3] > 1e6).all() and (x[3:] < -1e6).all()


def test_a_column_without_entries_has_no_direct_solution():
    plan, operator = clustered(2, 3, 1e-2)
    kept, (weights, columns, degree, _) = active(plan), operator
    assert direct.solve(kept, weights, columns * [1, 1, 1, 1, 1, 0], degree * [1, 1, 1, 1, 1, 0], degree) is None


@pytest.mark.parametrize(
    ("family", "size", "reg", "seed"),
    [
        ("image-w1", 196, 1e-4, 0),
        ("image-w1", 196, 1e-5, 1),
        ("image-w2", 196, 1e-5, 0),
        ("cloud-2d", 200, 1e-6, 0),
        ("assignment", 500, 1e-6, 0),
        *(("mixture-2d", 225, 2e-5, seed) for seed in range(4)),
    ],
)
def test_costs_with_ties_and_extreme_regularisation(family, size, reg, seed):
    problem = FAMILIES[family](size, seed)
    assert solve_ot(problem.a, problem.b, problem.C, reg=reg, method="sns").marginal_error < 1e-9
