"""Interpolated kernels against the kernel itself."""

import numpy as np
import pytest

from otbilevel.ot.cells import PointTree
from otbilevel.ot.interpolated_kernel import InterpolatedKernel


def setting(d, reg, n=900, m=1100):
    """Clouds in the order of their trees, with potentials of a transport between them: rows of K sum to 1."""
    rng = np.random.default_rng(d)
    trees = PointTree(rng.random((n, d))), PointTree(rng.random((m, d)) ** 1.3)
    x, y = (tree.points for tree in trees)
    cost = ((x[:, None, :] - y[None, :, :]) ** 2).sum(axis=2)
    f, g = np.zeros(n), np.zeros(m)
    for _ in range(20):
        f -= reg * np.log(np.exp((f[:, None] + g - cost) / reg).sum(axis=1))
        g -= reg * np.log(m / n * np.exp((f[:, None] + g - cost) / reg).sum(axis=0))
    f -= reg * np.log(np.exp((f[:, None] + g - cost) / reg).sum(axis=1))
    return trees, f, g, np.exp((f[:, None] + g - cost) / reg)


@pytest.mark.parametrize(("d", "reg"), [(1, 1e-1), (1, 1e-3), (2, 0.3), (2, 1e-2), (2, 1e-4), (3, 0.5), (3, 1e-3)])
@pytest.mark.parametrize("accuracy", [1e-4, 1e-11])
@pytest.mark.parametrize("memory", [0.0, 1e9])
def test_products(d, reg, accuracy, memory):
    (tx, ty), f, g, k = setting(d, reg)
    kernel = InterpolatedKernel(tx.cut(reg, accuracy), ty.cut(reg, accuracy), f, g, reg, single=False, memory=memory)
    rng = np.random.default_rng(0)
    z, w = rng.random(len(g)), rng.random(len(f))
    bound = 30 * accuracy + 1e-12
    assert np.abs(kernel.times(z) - k @ z).max() <= bound * np.abs(k @ z).max()
    assert np.abs(kernel.transposed_times(w) - k.T @ w).max() <= bound * np.abs(k.T @ w).max()


def test_stored_and_lazy_kernels_are_the_same():
    (tx, ty), f, g, _ = setting(2, 1e-2)
    x, y = tx.cut(1e-2, 1e-6), ty.cut(1e-2, 1e-6)
    for single in (False, True):
        stored, lazy = (InterpolatedKernel(x, y, f, g, 1e-2, single=single, memory=memory) for memory in (1e9, 0.0))
        np.testing.assert_allclose(stored.times(np.ones_like(g)), lazy.times(np.ones_like(g)), rtol=1e-12)
        np.testing.assert_allclose(stored.transposed_times(f), lazy.transposed_times(f), rtol=1e-10, atol=1e-12)


def test_single_precision():
    (tx, ty), f, g, k = setting(2, 1e-2)
    kernel = InterpolatedKernel(tx.cut(1e-2, 1e-9), ty.cut(1e-2, 1e-9), f, g, 1e-2, single=True, memory=1e9)
    np.testing.assert_allclose(kernel.times(np.ones_like(g)), k.sum(axis=1), rtol=2e-5)


def test_distant_cells_are_left_out():
    reg = 1e-4
    (tx, ty), f, g, _ = setting(2, reg)
    kernel = InterpolatedKernel(tx.cut(reg, 1e-9), ty.cut(reg, 1e-9), f, g, reg, single=False, memory=1e9)
    assert kernel.between.entries < 0.5 * len(f) * len(g)
