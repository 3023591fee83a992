"""Operators: their algebra against dense matrices, on every library, and what they refuse."""

import numpy as np
import pytest
import scipy.sparse.linalg

from otbilevel.linalg import SymmetricOperator, as_operator, from_hvp

RNG = np.random.default_rng(0)
A, B = (0.5 * (m + m.T) for m in RNG.standard_normal((2, 7, 7)))
V, W = RNG.standard_normal(7), RNG.standard_normal((7, 3))
MAKERS = {
    "itself": (lambda a, b: a, A),
    "sum": (lambda a, b: a + b, A + B),
    "difference": (lambda a, b: a - b, A - B),
    "multiple": (lambda a, b: 2.5 * a, 2.5 * A),
    "quotient": (lambda a, b: a / 4.0, A / 4.0),
    "negative": (lambda a, b: -a, -A),
    "damped": (lambda a, b: a.damp(0.3), A + 0.3 * np.eye(7)),
    "all": (lambda a, b: (2 * a + b * 3).damp(1.0) - a, A + 3 * B + np.eye(7)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_algebra(backend, dtype, name):
    make, dense = MAKERS[name]
    op = make(*(as_operator(backend.asarray(m, dtype)) for m in (A, B)))
    atol = 1e-12 if dtype == "float64" else 1e-5
    for x in (V, W):
        product = op @ backend.asarray(x, dtype)
        assert backend.dtype_name(product) == dtype
        np.testing.assert_allclose(backend.to_numpy(product), dense @ x, atol=atol)
    np.testing.assert_allclose(backend.to_numpy(op.to_dense()), dense, atol=atol)
    assert op.nmatvec == 1 + 3 + (0 if name == "itself" else 7)  # a matrix is there already


@pytest.mark.parametrize("indices", [[4, 0, 2], [-1, 1], np.arange(7) % 2 == 0])
def test_restriction(backend, indices):
    op = as_operator(backend.asarray(A)).restrict(indices)
    part = A[np.ix_(indices, indices)]
    np.testing.assert_allclose(backend.to_numpy(op.to_dense()), part, atol=1e-14)
    np.testing.assert_allclose(backend.to_numpy(op @ backend.asarray(part[0])), part @ part[0], atol=1e-14)


def test_definiteness_is_kept_where_it_holds():
    psd = from_hvp(lambda v: v, 3, psd=True)
    plain = from_hvp(lambda v: v, 3)
    assert (psd + psd).psd and (2 * psd).psd and psd.damp(1.0).psd and psd.restrict([0]).psd
    assert not ((psd + plain).psd or (-psd).psd or (psd - psd).psd or psd.damp(-1.0).psd or (-1.0 * psd).psd)


def test_scipy_takes_them(backend):
    spd = A @ A + np.eye(7)
    op = as_operator(backend.asarray(spd)).to_scipy()
    values = scipy.sparse.linalg.eigsh(op, k=2, which="LA", return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(values), np.linalg.eigvalsh(spd)[-2:], rtol=1e-8)
    x, info = scipy.sparse.linalg.cg(op, V, rtol=1e-10)
    assert info == 0
    np.testing.assert_allclose(x, np.linalg.solve(spd, V), rtol=1e-6)
    np.testing.assert_allclose(op @ W, spd @ W, atol=1e-12)


def test_a_function_and_foreign_operators(backend):
    op = from_hvp(lambda v: backend.asarray(A) @ v, 7, xp=backend.xp)
    assert backend.dtype_name(op.to_dense()) == "float64"
    np.testing.assert_allclose(backend.to_numpy(op @ backend.asarray(V)), A @ V, atol=1e-14)
    foreign = as_operator(scipy.sparse.linalg.aslinearoperator(A))
    np.testing.assert_allclose(foreign @ W, A @ W, atol=1e-14)
    assert repr(op) == f"FunctionOperator(7 x 7, {op.dtype})"


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: from_hvp(3, 3), TypeError, "fn must be callable"),
        (lambda: from_hvp(lambda v: v, 0), ValueError, "n must be >= 1"),
        (lambda: from_hvp(lambda v: v[:2], 3) @ np.ones(3), ValueError, r"fn must return a product of shape \(3,\), got \(2,\)"),
        (lambda: from_hvp(lambda v: v, 3, psd=1), TypeError, "psd"),
        (lambda: as_operator("H"), TypeError, "op must be an operator"),
        (lambda: as_operator(np.ones((2, 3))), ValueError, r"op must be square, got shape \(2, 3\)"),
        (lambda: as_operator(np.triu(np.ones((3, 3)))), ValueError, "op must be symmetric"),
        (lambda: as_operator(A) @ np.ones(3), ValueError, r"arrays of shape \(7,\), got \(3,\)"),
        (lambda: as_operator(A) @ np.ones((3, 7)), ValueError, r"\(7, k\), got \(3, 7\)"),
        (lambda: as_operator(A) @ as_operator(B), TypeError, "need not be symmetric"),
        (lambda: as_operator(A) + as_operator(np.eye(3)), ValueError, "operators of one shape"),
        (lambda: as_operator(A) + 1.0, TypeError, "unsupported operand"),
        (lambda: as_operator(A) * np.nan, ValueError, "the factor must be finite"),
        (lambda: as_operator(A).damp("1"), TypeError, "damping"),
        (lambda: as_operator(A).restrict([0, 7]), ValueError, "between 0 and 6"),
        (lambda: as_operator(A).restrict([0, 0]), ValueError, "different"),
        (lambda: as_operator(A).restrict([]), ValueError, "chooses something"),
        (lambda: as_operator(A).restrict([0.5]), ValueError, "integers"),
    ],
)
def test_what_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_subclass_needs_a_product_only():
    class Twice(SymmetricOperator):
        def _matvec(self, x):
            return 2 * x

    np.testing.assert_array_equal(Twice(3, np.zeros(0)) @ np.ones((3, 2)), 2 * np.ones((3, 2)))


def test_what_is_handed_out_is_not_what_was_handed_in():
    given = A.copy()
    as_operator(given).to_dense()[:] = 0.0
    np.testing.assert_array_equal(given, A)
    assert (from_hvp(lambda v: v, 4) @ np.zeros((4, 0))).shape == (4, 0)


def test_parts_survive_damping():
    class Mean(SymmetricOperator):
        parts = (as_operator(2 * A), as_operator(2 * B))

        def _matvec(self, x):
            return A @ x + B @ x

    damped = Mean(7, np.zeros(0)).damp(0.5)
    np.testing.assert_allclose(sum(part @ V for part in damped.parts) / 2, damped @ V)
    assert as_operator(A).damp(0.5).parts == []


def test_operators_of_two_libraries_cannot_be_added():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="one array library"):
        as_operator(A) + as_operator(torch.from_numpy(B))
