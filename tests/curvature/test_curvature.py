"""Estimates within their errors, quadrature moments, eigenvalues with residuals: against dense matrices."""

import numpy as np
import pytest

from otbilevel import ConvergenceWarning, Status
from otbilevel.curvature import diagonal, eigsh, from_hvp, spectral_density, trace

RNG = np.random.default_rng(0)
N = 50
Q = np.linalg.qr(RNG.standard_normal((N, N)))[0]
SPECTRUM = np.concatenate([[50.0, 30.0, 10.0], RNG.uniform(-1.0, 2.0, N - 3)])
H = (Q * SPECTRUM) @ Q.T
H = 0.5 * (H + H.T)


@pytest.mark.parametrize(("method", "n_matvec"), [("hutchinson", 30), ("hutch++", 30), ("xtrace", 30)])
def test_traces_are_unbiased_and_know_their_error(method, n_matvec):
    found = [trace(H, method, n_matvec=n_matvec, rng=seed) for seed in range(300)]
    values = np.array([one.value for one in found])
    assert abs(values.mean() - np.trace(H)) < 4 * values.std() / np.sqrt(300)
    assert np.mean([one.stderr for one in found]) == pytest.approx(values.std(), rel=0.35)
    assert all(one.nmatvec == n_matvec for one in found)


@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_diagonals_are_unbiased_and_know_their_error(method):
    """Of a probe that is not random the diagonal is a row sum: that would show here."""
    found = [diagonal(H, method, n_matvec=30, rng=seed) for seed in range(300)]
    values = np.array([one.value for one in found])
    assert np.all(np.abs(values.mean(0) - np.diag(H)) < 5 * values.std(0) / np.sqrt(300))
    assert np.mean([one.stderr for one in found]) == pytest.approx(values.std(0).mean(), rel=0.4)


def test_the_better_estimators_are_better():
    errors = {
        name: np.std([trace(H, name, n_matvec=40, rng=s).value for s in range(50)]) for name in ("hutchinson", "hutch++", "xtrace")
    }
    assert errors["xtrace"] < errors["hutch++"] < errors["hutchinson"]


def test_enough_products_are_exact(backend):
    op = backend.asarray(H)
    for method, count in (("hutch++", 3 * N), ("xtrace", 2 * N)):
        estimate = trace(op, method, n_matvec=count, rng=0)
        assert estimate.value == pytest.approx(np.trace(H), rel=1e-10) and estimate.stderr == pytest.approx(0.0, abs=1e-9)
    for method in ("exact", "xdiag"):
        np.testing.assert_allclose(backend.to_numpy(diagonal(op, method, n_matvec=2 * N, rng=0).value), np.diag(H), atol=1e-9)


def test_low_rank_is_no_trouble():
    low = np.outer(Q[:, 0], Q[:, 0]) * 3.0
    assert trace(low, "xtrace", n_matvec=20, rng=0).value == pytest.approx(3.0)
    assert trace(low, "hutch++", n_matvec=20, rng=0).value == pytest.approx(3.0)
    np.testing.assert_allclose(diagonal(low, "xdiag", n_matvec=20, rng=0).value, np.diag(low), atol=1e-8)
    assert trace(np.zeros((9, 9)), "xtrace", n_matvec=8, rng=0).value == 0.0


def test_moments_of_the_quadrature(backend):
    found = spectral_density(backend.asarray(H), n_probes=30, steps=12, rng=0)
    assert found.success and found.weights.sum() == pytest.approx(1.0) and np.all(found.weights >= 0)
    for function, exact in ((lambda t: t, np.trace(H)), (lambda t: t**2, np.sum(H**2)), (lambda t: t**3, np.trace(H @ H @ H))):
        estimate = found.trace_of(function)
        assert abs(estimate.value - exact) < 4 * estimate.stderr
    assert np.trapezoid(found.density, found.grid) == pytest.approx(1.0, abs=1e-6)
    assert found.nmatvec == 30 * 12


def test_a_full_quadrature_is_that_of_the_probe():
    """With n steps nodes are the eigenvalues, and weights the squares of the probe's components."""
    found = spectral_density(H, n_probes=2, steps=N, rng=0)
    nodes, weights = found.probes[0]
    np.testing.assert_allclose(nodes, np.linalg.eigvalsh(H), atol=1e-9)
    v = np.random.default_rng(0).integers(0, 2, size=N) * 2.0 - 1.0
    vectors = np.linalg.eigh(H)[1]
    np.testing.assert_allclose(weights, (vectors.T @ v) ** 2 / N, atol=1e-8)


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
@pytest.mark.parametrize("k", [1, 4])
def test_extremal_eigenvalues(backend, which, k):
    found = eigsh(backend.asarray(-H), k, which, tol=1e-9)
    expected = (-SPECTRUM)[np.argsort({"LA": SPECTRUM, "SA": -SPECTRUM, "LM": -np.abs(SPECTRUM)}[which])[:k]]
    assert found.success
    np.testing.assert_allclose(found.values, expected, rtol=1e-9, atol=1e-9)
    V = backend.to_numpy(found.vectors)
    np.testing.assert_allclose(V.T @ V, np.eye(k), atol=1e-7)
    off = -H @ V - V * found.values
    np.testing.assert_allclose(found.residuals, np.linalg.norm(off, axis=0), atol=1e-10)


def test_restarts():
    big = np.diag(np.sqrt(np.linspace(0.0, 1.0, 1500)))
    found = eigsh(big, 3, tol=1e-8, basis=20)
    np.testing.assert_allclose(found.values, np.sort(np.diag(big))[::-1][:3], rtol=1e-10)
    with pytest.warns(ConvergenceWarning, match="products are used up"):
        short = eigsh(big, 3, tol=1e-12, basis=10, max_matvec=40)
    assert not short.success and short.status is Status.ITERATION_LIMIT and np.isfinite(short.residuals).all()


def test_multiple_eigenvalues_and_small_matrices():
    found = eigsh(np.diag([2.0, 2.0, 2.0, 1.0]), 3)
    np.testing.assert_allclose(found.values, [2.0, 2.0, 2.0])
    assert eigsh([[3.0]], 1).values == pytest.approx([3.0])
    np.testing.assert_allclose(eigsh(np.zeros((5, 5)), 2).values, [0.0, 0.0], atol=1e-14)


def test_a_block_finds_all_copies():
    values = np.concatenate([[5.0, 5.0, 5.0, -7.0], np.linspace(0.0, 1.0, 196)])
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((200, 200)))[0]
    op = from_hvp(lambda v: rotation @ (values * (rotation.T @ v)), 200)
    found = eigsh(op, 4, method="lobpcg", tol=1e-8)
    np.testing.assert_allclose(found.values, [5.0, 5.0, 5.0, 1.0], rtol=1e-10)
    assert found.success and found.residuals.max() < 7e-8 and found.nmatvec == op.nmatvec
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(4), atol=1e-7)
    np.testing.assert_allclose(eigsh(op, 2, "SA", method="lobpcg").values, [-7.0, 0.0], atol=1e-8)
    with pytest.warns(ConvergenceWarning):
        assert not eigsh(op, 4, method="lobpcg", tol=1e-12, max_matvec=20).success
    with pytest.warns(ConvergenceWarning, match="not finite"):
        eigsh(from_hvp(lambda v: np.nan * v, 60), method="lobpcg")


def test_quadrature_without_orthogonality():
    """Copies of the outlier appear among the nodes, and share its weight."""
    values = np.concatenate([[1000.0], np.linspace(-1.0, 1.0, 999)])
    settings = {"n_probes": 20, "steps": 60, "rng": 0, "grid": np.linspace(-1.2, 1.2, 50), "bandwidth": 0.1}
    op = from_hvp(lambda v: values * v, 1000)
    found, orthogonal = (spectral_density(op, reorthogonalize=flag, **settings) for flag in (False, True))
    assert sum(abs(found.probes[0][0] - 1000.0) < 1e-6) > 1 == sum(abs(orthogonal.probes[0][0] - 1000.0) < 1e-6)
    for function in (lambda t: t, np.square):
        ours, exact = found.trace_of(function), np.sum(function(values))
        assert abs(ours.value - exact) < 4 * ours.stderr + 1e-9 * abs(exact)
    np.testing.assert_allclose(found.density, orthogonal.density, atol=4 * found.stderr.max())


def test_n_products_are_enough_for_what_is_exact():
    matrix = np.random.default_rng(0).standard_normal((9, 9))
    matrix = matrix + matrix.T
    for method in ("hutchinson", "hutch++", "xtrace"):
        for rng in range(5):
            found = trace(matrix, method, n_matvec=10, rng=rng)
            assert found.value == pytest.approx(np.trace(matrix)) and found.stderr == 0.0 and found.nmatvec == 9
    np.testing.assert_allclose(diagonal(matrix, "xdiag", n_matvec=10, rng=0).value, np.diag(matrix))


@pytest.mark.parametrize("factor", [1e200, 1e-200])
def test_eigenvalues_whose_squares_over_or_underflow(factor):
    with np.errstate(all="ignore"), pytest.warns(ConvergenceWarning):
        assert not eigsh(np.diag(factor * np.linspace(0.0, 1.0, 80)), 1).success


def test_spectra_without_extent_have_a_kernel():
    low = np.linalg.qr(np.random.default_rng(0).standard_normal((50, 50)))[0]
    found = spectral_density(2.0 * low @ low.T, n_probes=4, steps=10, rng=0)
    assert found.bandwidth > 1e-9 and np.trapezoid(found.density, found.grid) == pytest.approx(1.0, abs=1e-3)
    assert found.trace_of(lambda t: 1.0).value == pytest.approx(50.0)


def test_what_is_not_finite_is_said():
    op = from_hvp(lambda v: np.nan * v, 6)
    with pytest.warns(ConvergenceWarning, match="not finite"):
        failed = spectral_density(op, rng=0)
    assert failed.status is Status.NOT_FINITE and failed.trace_of(lambda t: t).status is Status.NOT_FINITE
    for estimate in (trace, diagonal):
        with pytest.warns(ConvergenceWarning, match="not finite"):
            assert estimate(op, rng=0).status is Status.NOT_FINITE
    with pytest.warns(ConvergenceWarning, match="not finite"):
        assert eigsh(op).status is Status.NOT_FINITE


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: trace(H, "exact"), ValueError, "method must be one of"),
        (lambda: trace(H, n_matvec=1), ValueError, "n_matvec must be >= 2"),
        (lambda: trace(H, "xtrace", n_matvec=7), ValueError, "even"),
        (lambda: trace(H, rng="x"), TypeError, "rng must be"),
        (lambda: diagonal(H, "row"), ValueError, "method must be one of"),
        (lambda: spectral_density(H, n_probes=1), ValueError, "n_probes"),
        (lambda: spectral_density(H, bandwidth=0.0), ValueError, "bandwidth"),
        (lambda: spectral_density(H, grid=[[1.0]]), ValueError, "grid must be"),
        (lambda: spectral_density(H, probe="uniform"), ValueError, "probe must be"),
        (lambda: eigsh(H, N + 1), ValueError, "k must be at most"),
        (lambda: eigsh(H, 2, "BE"), ValueError, "which must be"),
        (lambda: eigsh(H, 2, basis=2), ValueError, "basis must be"),
        (lambda: eigsh(H, 2, method="power"), ValueError, "method must be one of"),
        (lambda: eigsh(H, 2, "LM", method="lobpcg"), ValueError, 'use method="lanczos"'),
        (lambda: spectral_density(H, reorthogonalize=1), TypeError, "reorthogonalize"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
