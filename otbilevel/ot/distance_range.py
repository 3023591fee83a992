"""The closest and the most distant pair of two clouds, without looking at all pairs."""

from __future__ import annotations

import numpy as np
from scipy.spatial import ConvexHull, QhullError, cKDTree
from scipy.spatial.distance import cdist


def distance_range(x: np.ndarray, y: np.ndarray) -> tuple[float, float] | None:
    """Smallest and largest Euclidean distance between points of x (n, d) and y (m, d).

    The most distant pair lies on the convex hulls. None where that does not help: in other than two or three dimensions, or where a
    cloud is flat.

    Notes
    -----
    O((n + m) log(n + m)) for clouds whose hulls have few corners.
    """
    if x.shape[1] not in (2, 3):
        return None
    try:
        corners = [cloud[ConvexHull(cloud).vertices].astype(np.float64) for cloud in (x, y)]
    except QhullError:
        return None
    few = sorted(corners, key=len)
    largest = max(float(cdist(few[0], few[1][k : k + 10_000]).max()) for k in range(0, len(few[1]), 10_000))
    closest, _ = cKDTree(x).query(y)
    return float(closest.min()), largest
