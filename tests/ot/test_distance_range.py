"""The closest and most distant pair against all pairs."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from otbilevel import PointCloud
from otbilevel.ot import point_cloud
from otbilevel.ot.distance_range import distance_range


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_range(d, dtype):
    rng = np.random.default_rng(d)
    x, y = rng.standard_normal((500, d)).astype(dtype), (1 + rng.standard_normal((400, d))).astype(dtype)
    distances = cdist(x, y)
    np.testing.assert_allclose(distance_range(x, y), (distances.min(), distances.max()), rtol=1e-12)


def test_where_it_does_not_help():
    flat = np.stack([np.linspace(0, 1, 50), np.zeros(50)], axis=1)
    assert distance_range(flat, np.random.default_rng(0).random((50, 2))) is None
    assert distance_range(np.random.default_rng(0).random((50, 5)), np.random.default_rng(0).random((50, 5))) is None


@pytest.mark.parametrize("cost", PointCloud.COSTS)
def test_bounds_are_the_same_by_either_way(cost, monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((300, 2)), rng.standard_normal((200, 2))
    plain = PointCloud(x, y, cost=cost).bounds
    monkeypatch.setattr(point_cloud, "SMALL", 0)
    np.testing.assert_allclose(PointCloud(x, y, cost=cost).bounds, plain, rtol=1e-10, atol=1e-12)
