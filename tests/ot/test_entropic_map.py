"""The map of new points against its formula, in every array library."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.spatial.distance import cdist
from scipy.special import softmax

from otbilevel import DenseCost, PointCloud, solve_ot
from otbilevel.ot.entropic_map import entropic_map

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 2)), RNG.normal(size=(9, 2)) + 1.0
B = RNG.dirichlet(np.ones(9))


@pytest.mark.parametrize("reg", [10.0, 0.1, 1e-4])
@pytest.mark.parametrize("metric", PointCloud.COSTS)
def test_the_map_is_a_mean_under_the_conditional_plan(device_backend, metric, reg):
    g = RNG.normal(size=9)
    cloud = PointCloud(device_backend.asarray(X), device_backend.asarray(Y), cost=metric)
    images = entropic_map(cloud, device_backend.asarray(g), device_backend.asarray(B), reg, device_backend.asarray(Y))
    expected = softmax((g - cdist(X, Y, metric)) / reg + np.log(B), axis=1) @ Y
    assert_allclose(device_backend.to_numpy(images), expected, atol=1e-9)


def test_at_the_sources_it_is_the_barycentric_map():
    result = solve_ot(None, B, PointCloud(X, Y), reg=0.1)
    assert_allclose(entropic_map(PointCloud(X, Y), result.g, B, 0.1, Y), result.barycentric_map(Y), atol=1e-8)


def test_forbidden_pairs_carry_nothing():
    C = cdist(X, Y)
    C[0, 1:] = np.inf
    assert_allclose(entropic_map(DenseCost(C), np.zeros(9), B, 0.1, Y)[0], Y[0])


def test_far_away_points_do_not_underflow():
    far = np.array([[1e5, 0.0], [-1e5, 0.0]])
    images = entropic_map(PointCloud(far, Y), np.zeros(9), B, 0.01, Y)
    assert_allclose(images, [Y[np.argmax(Y[:, 0])], Y[np.argmin(Y[:, 0])]])
