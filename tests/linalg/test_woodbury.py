"""M-FAC against the dense inverse: windows that are part full, full and wrapped around; blocks; libraries; what is refused."""

import numpy as np
import pytest

from otbilevel.linalg import MFAC

RNG = np.random.default_rng(0)
D, WINDOW = 23, 8
G = RNG.standard_normal((21, D))
X = RNG.standard_normal(D)


def fisher(rows, damping, block=None):
    """The dense matrix."""
    F = rows.T @ rows / max(len(rows), 1)
    if block is not None:
        F *= np.arange(D)[:, None] // block == np.arange(D) // block
    return F + damping * np.eye(D)


@pytest.mark.parametrize("block", [None, 1, 5, 23, 99])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 21])
def test_equals_the_dense_inverse(backend, count, block):
    F = MFAC(D, WINDOW, 0.1, block_size=block, like=backend.asarray(np.zeros(0)))
    for g in G[:count]:
        F.add(backend.asarray(g))
    dense = fisher(G[max(0, count - WINDOW) : count], 0.1, block)
    inverse = np.linalg.inv(dense)
    assert F.count == count and F.size == min(count, WINDOW)
    np.testing.assert_allclose(backend.to_numpy(F.solve(backend.asarray(X))), inverse @ X, atol=1e-8)
    np.testing.assert_allclose(backend.to_numpy(F.solve(backend.asarray(np.eye(D)))), inverse, atol=1e-8)
    np.testing.assert_allclose(backend.to_numpy(F.diagonal()), np.diag(inverse), atol=1e-8)
    for place in ((0, 0), (3, 4), (4, 5), (22, 0)):
        assert F.element(*place) == pytest.approx(inverse[place], abs=1e-8)
    np.testing.assert_allclose(backend.to_numpy(F @ backend.asarray(X)), dense @ X, atol=1e-10)


def test_all_at_once_is_one_after_the_other(backend):
    F = MFAC(D, 21, 1e-3, block_size=6, like=backend.asarray(np.zeros(0)))
    for g in G:
        F.add(backend.asarray(g))
    whole = MFAC.from_gradients(backend.asarray(G), 1e-3, block_size=6)
    first, second = (backend.to_numpy(one.solve(backend.asarray(X))) for one in (F, whole))
    np.testing.assert_allclose(first, second, rtol=1e-9)


def test_the_order_in_the_window_does_not_matter():
    forward, backward = (MFAC.from_gradients(rows, 0.01) for rows in (G, G[::-1].copy()))
    np.testing.assert_allclose(forward.solve(X), backward.solve(X), rtol=1e-10)


def test_single_precision_stays_single():
    F = MFAC.from_gradients(G.astype(np.float32), 1e-2)
    x = F.solve(X.astype(np.float32))
    assert x.dtype == np.float32
    exact = np.linalg.solve(fisher(G, 1e-2), X)
    assert np.linalg.norm(x - exact) <= 1e-4 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: MFAC(0, 3, 0.1), ValueError, "d must be"),
        (lambda: MFAC(3, 0, 0.1), ValueError, "window must be"),
        (lambda: MFAC(3, 3, 0.0), ValueError, "damping must be"),
        (lambda: MFAC(3, 3, 0.1, block_size=0), ValueError, "block_size must be"),
        (lambda: MFAC(3, 3, 0.1).add(np.ones(2)), ValueError, r"shape \(3,\), got \(2,\)"),
        (lambda: MFAC(3, 3, 0.1).add([1.0, np.nan, 0.0]), ValueError, "the gradient must be finite"),
        (lambda: MFAC.from_gradients(np.ones(3), 0.1), ValueError, r"shape \(m, d\)"),
        (lambda: MFAC(3, 3, 0.1).element(3, 0), ValueError, "k must be less than 3"),
        (lambda: MFAC(3, 3, 0.1).solve(np.ones(4)), ValueError, r"shape \(3,\), got \(4,\)"),
    ],
)
def test_what_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_the_gradients_of_the_caller_stay_as_they_are():
    given = G[:WINDOW].copy()
    F = MFAC.from_gradients(given, 0.1)
    F.add(np.full(D, 7.0))
    np.testing.assert_array_equal(given, G[:WINDOW])
    np.testing.assert_allclose(F.solve(X), np.linalg.solve(fisher(np.vstack([given[1:], np.full(D, 7.0)]), 0.1), X), rtol=1e-8)


def test_other_libraries_and_precisions_are_taken():
    torch = pytest.importorskip("torch")
    F = MFAC.from_gradients(torch.from_numpy(G[:WINDOW]).float(), 0.1)
    F.add(G[9])
    expected = np.linalg.solve(fisher(np.vstack([G[1:WINDOW], G[9]]), 0.1), X)
    for x in (X, torch.from_numpy(X), torch.from_numpy(X).float()):
        found = F.solve(x)
        assert type(found) is type(x) and found.dtype == x.dtype
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-3, atol=1e-3)
        product = F @ found
        assert type(product) is type(x) and product.dtype == x.dtype
        np.testing.assert_allclose(np.asarray(product), X, rtol=1e-2, atol=1e-2)
