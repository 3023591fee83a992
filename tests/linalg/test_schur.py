"""Schur complements against dense block elimination."""

import numpy as np
import pytest

from otbilevel.linalg import SchurComplement, cg

RNG = np.random.default_rng(0)
ROOT = RNG.standard_normal((12, 12))
WHOLE = ROOT @ ROOT.T + np.eye(12)
A, B, C = WHOLE[:7, :7], WHOLE[:7, 7:], WHOLE[7:, 7:]
S = A - B @ np.linalg.solve(C, B.T)


def test_equals_the_dense_one_and_solves_the_whole(backend):
    schur = SchurComplement(*map(backend.asarray, (A, B, C)), psd=True)
    np.testing.assert_allclose(backend.to_numpy(schur.to_dense()), S, atol=1e-11)
    x = RNG.standard_normal(7)
    np.testing.assert_allclose(backend.to_numpy(schur @ backend.asarray(x)), S @ x, atol=1e-11)
    f, g = RNG.standard_normal(7), RNG.standard_normal(5)
    first = cg(schur, schur.reduce(backend.asarray(f), backend.asarray(g)), tol=1e-12).x
    second = schur.expand(first, backend.asarray(g))
    expected = np.linalg.solve(WHOLE, np.concatenate([f, g]))
    np.testing.assert_allclose(np.concatenate([backend.to_numpy(first), backend.to_numpy(second)]), expected, atol=1e-9)


def test_a_function_may_solve_with_the_block():
    schur = SchurComplement(A, B, lambda v: np.linalg.solve(C, v))
    np.testing.assert_allclose(schur.to_dense(), S, atol=1e-11)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SchurComplement(A, B.T, C), r"B must have shape \(7, m\)"),
        (lambda: SchurComplement(A, B, C[:3, :3]), r"C must have shape \(5, 5\)"),
        (lambda: SchurComplement(A, B, -C), "C is not positive definite"),
        (lambda: SchurComplement(B, B, C), "A must be square"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
