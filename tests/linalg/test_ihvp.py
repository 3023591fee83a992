"""Inverse-Hessian products: every method against dense solves, what each says when it fails, and warm starts."""

import numpy as np
import pytest

from otbilevel import ConvergenceError, ConvergenceWarning, Status
from otbilevel.linalg import MFAC, SymmetricOperator, as_operator, from_hvp, ihvp, minres, neumann, nystrom
from otbilevel.linalg.ihvp import METHODS

RNG = np.random.default_rng(0)
N = 40
Q = np.linalg.qr(RNG.standard_normal((N, N)))[0]
SPECTRUM = np.concatenate([[20.0, 9.0, 5.0], RNG.uniform(0.5, 2.0, N - 3)])
H = (Q * SPECTRUM) @ Q.T
INDEFINITE = (Q * np.where(np.arange(N) % 5, SPECTRUM, -SPECTRUM)) @ Q.T
SINGULAR = (Q * np.where(np.arange(N) < N // 2, SPECTRUM, 0.0)) @ Q.T
H, INDEFINITE, SINGULAR = (0.5 * (m + m.T) for m in (H, INDEFINITE, SINGULAR))
RHS = RNG.standard_normal(N)
ITERATIVE = ["cg", "minres", "neumann", "nystrom"]


@pytest.mark.parametrize("damping", [0.0, 0.7])
@pytest.mark.parametrize("method", [row.name for row in METHODS if row.name != "mfac"])
def test_all_solve_a_definite_system(backend, method, damping):
    options = {"lissa": {"repeats": 2}, "nystrom": {"rank": 8}}.get(method)
    limit = {"lissa": 1500, "neumann": 3000}.get(method)
    result = ihvp(backend.asarray(H), backend.asarray(RHS), method, damping=damping, tol=1e-8, max_iter=limit, options=options)
    expected = np.linalg.solve(H + damping * np.eye(N), RHS)
    assert result.success and result.residual <= 1e-8 and not result.negative_curvature
    np.testing.assert_allclose(backend.to_numpy(result.x), expected, atol=1e-6)
    off = H @ backend.to_numpy(result.x) + damping * backend.to_numpy(result.x) - RHS
    assert result.residual == pytest.approx(np.linalg.norm(off) / np.linalg.norm(RHS), rel=1e-3, abs=1e-13)


@pytest.mark.parametrize("method", ["auto", "minres", "dense"])
def test_indefinite_systems(method):
    result = ihvp(INDEFINITE, RHS, method, tol=1e-9)
    assert result.success and result.negative_curvature
    np.testing.assert_allclose(result.x, np.linalg.solve(INDEFINITE, RHS), atol=1e-7)


@pytest.mark.parametrize("method", ["cg", "neumann"])
def test_negative_curvature_is_reported(method):
    with pytest.warns(ConvergenceWarning, match="negative curvature"):
        result = ihvp(INDEFINITE, RHS, method)
    assert result.negative_curvature and result.status is Status.NUMERICAL_FAILURE
    with pytest.raises(ConvergenceError):
        ihvp(INDEFINITE, RHS, method, raise_on_failure=True)


def test_auto_goes_by_what_the_operator_says():
    for psd, method in ((True, "cg"), (False, "minres")):
        op = from_hvp(lambda v: H @ v, N, psd=psd)
        with pytest.warns(ConvergenceWarning):
            short = ihvp(op, RHS, max_iter=3)
        with pytest.warns(ConvergenceWarning):
            named = ihvp(op, RHS, method, max_iter=3)
        np.testing.assert_array_equal(short.x, named.x)
    assert np.abs(short.x - ihvp(op, RHS, "cg", max_iter=3, tol=1.0).x).max() > 1e-3


@pytest.mark.parametrize("method", ["cg", "minres", "dense", "nystrom"])
def test_singular_but_consistent_systems(method):
    options = {"rank": N // 2 + 5} if method == "nystrom" else None
    result = ihvp(SINGULAR, SINGULAR @ RHS, method, tol=1e-9, options=options)
    assert result.success
    np.testing.assert_allclose(SINGULAR @ result.x, SINGULAR @ RHS, atol=1e-7)


@pytest.mark.parametrize("size", [1e-170, 1e-3, 1e165])
@pytest.mark.parametrize("method", [row.name for row in METHODS if row.name != "mfac"])
def test_right_hand_sides_of_any_size(method, size):
    options = {"lissa": {"repeats": 1}, "nystrom": {"rank": 8}}.get(method)
    result = ihvp(H, size * RHS, method, tol=1e-8, max_iter={"lissa": 1500, "neumann": 3000}.get(method), options=options)
    assert result.success
    np.testing.assert_allclose(result.x / size, np.linalg.solve(H, RHS), rtol=1e-6, atol=1e-8)
    if method in ("minres", "neumann"):
        direct = {"minres": minres, "neumann": neumann}[method](as_operator(H), size * RHS, tol=1e-8)
        np.testing.assert_allclose(direct.x / size, np.linalg.solve(H, RHS), rtol=1e-6, atol=1e-8)


def test_libraries_and_dtypes_may_differ_in_host_memory():
    torch = pytest.importorskip("torch")
    expected = np.linalg.solve(H, RHS)
    for method in ("cg", "minres", "nystrom", "neumann", "dense"):
        for b in (torch.from_numpy(RHS), torch.from_numpy(RHS).float(), RHS.astype(np.float32)):
            for op in (H, torch.from_numpy(H)):
                found = ihvp(op, b, method, tol=1e-5, max_iter=3000)
                assert type(found.x) is type(b) and found.x.dtype == b.dtype
                np.testing.assert_allclose(np.asarray(found.x), expected, rtol=1e-3, atol=1e-3)


def test_products_in_single_precision():
    """Rounding of a singular operator is neither negative curvature nor an eigenvalue."""
    low = SINGULAR.astype(np.float32)
    b = low @ RHS.astype(np.float32)
    for method in ("neumann", "dense"):
        found = ihvp(low, b, method, tol=1e-3, max_iter=3000)
        assert found.success and not found.negative_curvature
    least = np.linalg.pinv(SINGULAR, rcond=1e-10) @ b
    np.testing.assert_allclose(ihvp(low, b, "dense", tol=1e-3).x, least, rtol=1e-2, atol=1e-2)

    class Rounded(SymmetricOperator):
        def __init__(self):
            super().__init__(N, np.zeros(0), psd=True, precision=2.0**-23)

        def _matvec(self, x):
            return (low @ x.astype(np.float32)).astype(np.float64)

    near = nystrom(Rounded(), N, rng=0)
    np.testing.assert_allclose(near.values[: N // 2], np.sort(np.linalg.eigvalsh(SINGULAR))[::-1][: N // 2], rtol=1e-4)
    assert near.values[N // 2 :].max(initial=0.0) < 1e-3 * near.values[0]


def test_starts_that_are_worse_than_none_are_left_out():
    for method in ("cg", "minres"):
        found = ihvp(H, RHS, method, init=1e12 * np.ones(N), tol=1e-9)
        plain = ihvp(H, RHS, method, tol=1e-9)
        np.testing.assert_array_equal(found.x, plain.x)


def test_approximations_as_preconditioners():
    wide = (Q * np.logspace(0, 5, N)) @ Q.T
    wide = 0.5 * (wide + wide.T)
    plain = ihvp(wide, RHS, "cg", damping=1.0, tol=1e-8)
    for near in (nystrom(wide, 20, rng=0), MFAC.from_gradients(np.sqrt(N) * np.linalg.cholesky(wide).T, 1.0)):
        found = ihvp(wide, RHS, "cg", damping=1.0, tol=1e-8, preconditioner=near)
        assert found.success and found.nit < plain.nit


def test_indefinite_operators_are_named():
    with pytest.warns(ConvergenceWarning, match="the operator is indefinite"):
        ihvp(INDEFINITE, RHS, "minres", max_iter=5, tol=1e-12)


def test_a_series_that_diverges_says_so():
    with pytest.warns(ConvergenceWarning, match="a step beyond"):
        assert ihvp(H, RHS, "lissa", options={"step": 1.0, "repeats": 1}).status is Status.NUMERICAL_FAILURE


def test_what_stands_in_for_the_operator_is_no_solver():
    for method, options in (("mfac", {"gradients": H}), ("nystrom", {"rank": 3, "direct": True})):
        with pytest.warns(ConvergenceWarning, match="what stands in for H leaves this residual"):
            ihvp(H, RHS, method, damping=0.1, options=options)


def test_minres_meets_negative_curvature_when_conjugate_gradients_do():
    """Liu and Roosta: the residuals of the one see what the directions of the other see."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        Q = np.linalg.qr(rng.standard_normal((30, 30)))[0]
        values = np.concatenate([[-(10.0 ** rng.uniform(-4, 0))], rng.uniform(0.1, 5.0, 29)])
        A, b = (Q * values) @ Q.T, rng.standard_normal(30)
        A = 0.5 * (A + A.T)
        with np.errstate(all="ignore"), pytest.warns(ConvergenceWarning):
            first = ihvp(A, b, "cg", tol=1e-13)
        assert first.negative_curvature
        for limit, expected in ((first.nit, False), (first.nit + 1, True)):
            with pytest.warns(ConvergenceWarning):
                assert ihvp(A, b, "minres", max_iter=max(limit, 1), tol=1e-14).negative_curvature is expected or limit == 0


def test_minres_finds_least_squares_and_says_so():
    with pytest.warns(ConvergenceWarning, match="not in the range"):
        result = ihvp(SINGULAR, RHS, "minres", tol=1e-10)
    best = np.linalg.norm(RHS - SINGULAR @ np.linalg.lstsq(SINGULAR, RHS, rcond=1e-10)[0]) / np.linalg.norm(RHS)
    assert result.status is Status.STALLED and result.residual == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("method", ITERATIVE)
def test_a_start_saves_iterations(method):
    x = np.linalg.solve(H, RHS)
    cold = ihvp(H, RHS, method, tol=1e-6, max_iter=5000)
    warm = ihvp(H, RHS, method, tol=1e-6, max_iter=5000, init=x * (1 + 1e-4))
    again = ihvp(H, RHS, method, tol=1e-6, max_iter=5000, init=warm)
    assert warm.success and warm.nit < cold.nit and again.nit == 0 and again.residual <= 1e-6


def test_preconditioners():
    P = np.linalg.inv(H)
    for method in ("cg", "minres"):
        assert ihvp(H, RHS, method, preconditioner=lambda r: P @ r, tol=1e-10).nit <= 3
    near = nystrom(H, 12, rng=0)
    assert ihvp(H, RHS, "nystrom", options={"approximation": near}, tol=1e-8).nit < ihvp(H, RHS, "cg", tol=1e-8).nit


def test_nystrom_alone():
    low = (Q[:, :5] * SPECTRUM[:5]) @ Q[:, :5].T
    for damping in (0.3, 0.0):
        b = RHS if damping else low @ RHS
        result = ihvp(low, b, "nystrom", damping=damping, options={"rank": 8, "direct": True}, tol=1e-6)
        assert result.success and result.nit == 0


def test_mfac_is_exact_for_what_it_is():
    G = RNG.standard_normal((6, N))
    F = G.T @ G / 6
    result = ihvp(F, RHS, "mfac", damping=0.1, options={"gradients": G}, tol=1e-9)
    assert result.success
    np.testing.assert_allclose(result.x, np.linalg.solve(F + 0.1 * np.eye(N), RHS), atol=1e-9)
    with pytest.warns(ConvergenceWarning):
        other = ihvp(H, RHS, "mfac", options={"approximation": MFAC.from_gradients(G, 0.1)})
    assert other.residual > 0.1


def test_lissa_draws_parts():
    noise = 0.3 * np.diag(RNG.standard_normal(N))
    parts = [as_operator(H + noise), as_operator(H - noise)]
    whole = from_hvp(lambda v: H @ v, N, psd=True)
    whole.parts = parts
    result = ihvp(whole, RHS, "lissa", max_iter=400, options={"repeats": 20}, tol=0.2, rng=1)
    assert result.success and result.residual > 1e-4  # the noise of the parts
    again = ihvp(whole, RHS, "lissa", max_iter=400, options={"repeats": 20}, tol=0.2, rng=1)
    np.testing.assert_array_equal(result.x, again.x)


@pytest.mark.parametrize("method", [row.name for row in METHODS if row.name not in ("mfac", "lissa")])
def test_what_is_not_finite_is_said(method):
    op = from_hvp(lambda v: np.nan * v, N, psd=True)
    if method == "nystrom":
        with pytest.raises(ValueError, match="not finite"):
            ihvp(op, RHS, method)
        return
    with pytest.warns(ConvergenceWarning, match="not finite"):
        assert ihvp(op, RHS, method).status is Status.NOT_FINITE


def test_zero_right_hand_sides():
    for method in ("cg", "minres", "neumann", "dense", "nystrom"):
        result = ihvp(H, np.zeros(N), method)
        assert result.success and not result.x.any()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ihvp(H, RHS, "lu"), ValueError, "unknown method 'lu' for ihvp"),
        (lambda: ihvp(H, RHS[:3]), ValueError, "as many entries"),
        (lambda: ihvp(H, RHS, damping=-1.0), ValueError, "damping"),
        (lambda: ihvp(H, RHS, tol=-1.0), ValueError, "tol"),
        (lambda: ihvp(H, RHS, max_iter=0), ValueError, "max_iter"),
        (lambda: ihvp(H, RHS, init=RHS[:2]), ValueError, "init must have shape"),
        (lambda: ihvp(H, RHS, "dense", preconditioner=lambda r: r), ValueError, "preconditioner is for"),
        (lambda: ihvp(H, RHS, "cg", options={"rank": 3}), TypeError, "takes none"),
        (lambda: ihvp(H, RHS, "nystrom", options={"ranks": 3}), TypeError, "did you mean 'rank'"),
        (lambda: ihvp(H, RHS, "mfac"), ValueError, 'needs either options={"gradients": ...}'),
        (lambda: ihvp(H, RHS, "mfac", options={"gradients": np.ones((2, N))}), ValueError, "damping > 0"),
        (lambda: ihvp(INDEFINITE, RHS, "nystrom"), ValueError, "not positive semi-definite"),
        (lambda: ihvp(H, RHS, "neumann", options={"step": 0.0}), ValueError, "step"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
