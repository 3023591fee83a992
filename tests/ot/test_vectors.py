"""The compiled work on vectors against the generic one, which is the truth."""

import math

import numpy as np
import pytest

from otbilevel.ot.kernels import cpu, vectors

compiled = cpu.vector_kernels
SIZES = [1, 2, 7, 64, 1001]


@pytest.mark.parametrize("size", SIZES)
def test_compiled_vector_kernels(size):
    rng = np.random.default_rng(size)
    x, y = rng.standard_normal(size), rng.standard_normal(size)
    b, sums = rng.random(size) + 0.1, rng.random(size) + 0.1
    sums[0] = 0.0
    assert compiled.extent(x) == vectors.extent(x) == (x.min(), x.max())
    assert compiled.distance(x, y) == pytest.approx(vectors.distance(x, y), rel=1e-13)
    ratios = [module.log_ratio(np.log(b), sums, 1e-300, 60.0) for module in (compiled, vectors)]
    np.testing.assert_allclose(*ratios, rtol=1e-13, atol=1e-15)
    assert ratios[0][0] == 60.0
    parts = [module.balanced(x, y, b) for module in (compiled, vectors)]
    np.testing.assert_allclose(*parts, rtol=1e-12, atol=1e-13)
    assert abs(parts[0].sum()) < 1e-12
    centred = [module.centred(x, b) for module in (compiled, vectors)]
    for one, other in zip(*centred, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13)
    assert 0.0 in centred[0][0]
    inverses = [module.inverse_diagonal(sums, 0.7 * sums + 0.2 * (x > 0), 1e-9) for module in (compiled, vectors)]
    np.testing.assert_allclose(*inverses, rtol=1e-13)
    assert inverses[0][0] == 1.0
    assert (inverses[0] > 0).all()


@pytest.mark.parametrize("position", [0, 3, 6])
def test_compiled_vector_kernels_see_nan(position):
    """No comparison may hide it: the solver would go on."""
    x, b = np.arange(7.0), np.ones(7)
    x[position] = np.nan
    assert all(map(math.isnan, compiled.extent(x)))
    assert math.isnan(compiled.distance(x, b))
    assert math.isnan(compiled.centred(x, b)[1])
    assert not (compiled.centred(x, b)[1] <= 1.0)
