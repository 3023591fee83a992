"""Work on vectors: the compiled kernels and those of every array library against NumPy."""

import math

import numpy as np
import pytest

from otbilevel.ot.kernels import cpu, vectors

compiled = cpu.vector_kernels
SIZES = [1, 2, 7, 64, 1001]


@pytest.mark.parametrize("size", SIZES)
def test_vector_kernels(size, backend):
    for module in (vectors, compiled) if backend.name == "numpy" else (vectors,):
        check(module, size, backend)


def check(module, size, backend):
    rng = np.random.default_rng(size)
    x, y = rng.standard_normal(size), rng.standard_normal(size)
    b, sums = rng.random(size) + 0.1, rng.random(size) + 0.1
    sums[0] = 0.0
    x_, y_, b_, sums_ = (backend.asarray(v) for v in (x, y, b, sums))
    assert module.extremes(x_) == (x.min(), x.max())
    assert module.distance(x_, y_) == pytest.approx(np.abs(x - y).sum(), rel=1e-13)

    ratio = backend.to_numpy(module.log_ratio(backend.asarray(np.log(b)), sums_, 1e-300, 60.0))
    np.testing.assert_allclose(ratio[1:], np.log(b / np.maximum(sums, 1e-300))[1:], rtol=1e-12, atol=1e-15)
    assert ratio[0] == 60.0

    balanced = backend.to_numpy(module.balanced(x_, y_, b_))
    np.testing.assert_allclose(balanced, (x - y) - b * ((x - y).sum() / b.sum()), rtol=1e-12, atol=1e-12)
    assert abs(balanced.sum()) < 1e-12

    d, longest, mean = module.centred(x_, b_)
    np.testing.assert_array_equal(backend.to_numpy(d), x - np.sort(x)[size // 2])
    assert longest == pytest.approx(np.abs(backend.to_numpy(d)).max(), rel=1e-15)
    assert mean == pytest.approx(b @ np.abs(backend.to_numpy(d)), rel=1e-12)

    squares = 0.7 * sums + 0.3 * sums * (x > 0)
    inverse = backend.to_numpy(module.inverse_diagonal(sums_, backend.asarray(squares), 1e-9))
    np.testing.assert_allclose(1 / inverse[1:], np.maximum(sums - squares, 1e-9 * sums)[1:], rtol=1e-12)
    assert inverse[0] == 1.0


@pytest.mark.parametrize("module", [compiled, vectors])
def test_the_median_of_equal_numbers(module):
    for x in (np.full(6, 2.0), np.array([1.0, 1.0, 1.0, 5.0, -3.0])):
        d, _, _ = module.centred(x, np.ones(len(x)))
        np.testing.assert_array_equal(d, x - np.sort(x)[len(x) // 2])


@pytest.mark.parametrize("module", [compiled, vectors])
@pytest.mark.parametrize("position", [0, 3, 6])
def test_vector_kernels_keep_nan(module, position):
    """No comparison may hide it: the solver would go on."""
    x, ones = np.arange(7.0), np.ones(7)
    x[position] = np.nan
    assert all(map(math.isnan, module.extremes(x)))
    assert math.isnan(module.distance(x, ones))
    assert math.isnan(module.centred(x, ones)[1])
    assert np.isnan(module.balanced(x, ones, ones)).all()
    for arguments in ((x, ones), (ones, x)):
        assert math.isnan(module.log_ratio(*arguments, 1e-300, 60.0)[position])
        assert math.isnan(module.inverse_diagonal(*arguments, 1e-9)[position])


@pytest.mark.parametrize("module", [compiled, vectors])
def test_infinities_are_numbers(module):
    assert module.extremes(np.array([np.inf, 0.0, -np.inf])) == (-np.inf, np.inf)
