"""The helpers of POT that nearly every script calls."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from otbilevel._core import validate
from otbilevel._core.array import Array, as_array, is_numpy_namespace
from otbilevel.compat.pot._call import in_words_of, refuse_others
from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.geometry import Geometry, check_matrix
from otbilevel.ot.point_cloud import PointCloud

MINKOWSKI = ("minkowski", "mi", "m", "pnorm")


def unif(n: int) -> np.ndarray:
    """Return uniform weights of mass 1.

    Parameters
    ----------
    n : int
        How many.

    Returns
    -------
    (n,) array
        All 1/n.

    Examples
    --------
    >>> from otbilevel.compat import pot as ot
    >>> ot.unif(4)
    array([0.25, 0.25, 0.25, 0.25])
    """
    n = validate.integer(n, "n", low=1)
    return np.full(n, 1.0 / n)


def dist(x1: Any, x2: Any = None, metric: Any = "sqeuclidean", p: float = 2) -> Array:
    """Return the costs between two clouds of points.

    Parameters
    ----------
    x1 : (n, d) array_like
        Points.
    x2 : (m, d) array_like, optional
        Points, by default those of `x1`.
    metric : str or callable
        ``"sqeuclidean"``, ``"euclidean"``, ``"cityblock"`` or ``"cosine"`` for arrays of any library; for NumPy arrays also what
        `scipy.spatial.distance.cdist` takes.
    p : float
        Of ``metric="minkowski"`` and its short names in `scipy.spatial.distance.cdist`.

    Returns
    -------
    (n, m) array
        The costs. Differences are taken before squares, so that they do not cancel; `solve_sample` needs no such array.

    Examples
    --------
    >>> from otbilevel.compat import pot as ot
    >>> ot.dist([[0.0], [1.0]], [[2.0]])
    array([[4.],
           [1.]])
    """
    geometry = cost_between(x1, x1 if x2 is None else x2, metric, ("x1", "x2"), p)
    return geometry.xp.astype(geometry.rows(0, geometry.shape[0]), geometry.dtype)


def cost_between(x: Any, y: Any, metric: Any, names: tuple[str, str], p: float = 2) -> Geometry:
    """The geometry of two clouds, without a matrix where the metric is one of `PointCloud`."""
    clouds = [as_array(points, name) for points, name in zip((x, y), names, strict=True)]
    for points, name in zip(clouds, names, strict=True):
        check_matrix(points, name)
    known = isinstance(metric, str) and metric in PointCloud.COSTS
    with in_words_of(dict(zip("xy", names, strict=True))):
        geometry = PointCloud(*clouds, cost=metric if known else "sqeuclidean")  # which checks that they belong together
    if known:
        return geometry
    if not is_numpy_namespace(geometry.xp):
        msg = f"metric must be one of {', '.join(map(repr, PointCloud.COSTS))} for arrays that are not NumPy's, got {metric!r}"
        raise ValueError(msg)
    if not isinstance(metric, str) and not callable(metric):
        msg = f"metric must be a name or a function of two points, got {type(metric).__name__}"
        raise TypeError(msg)
    settings = {"p": validate.real(p, "p", low=0.0, strict=True)} if metric in MINKOWSKI else {}
    try:
        return DenseCost(cdist(*clouds, metric=metric, **settings))
    except ValueError as error:
        msg = f"metric={metric!r} gives no costs between these points: {error}"
        raise ValueError(msg) from error


__all__ = ["dist", "unif"]
__getattr__ = refuse_others(__name__)
