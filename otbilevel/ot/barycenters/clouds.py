"""The inputs of barycentres whose points move, checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace, as_array, common_namespace, device
from otbilevel.ot.barycenters.problem import unit_inputs
from otbilevel.ot.geometry import check_matrix


def read_clouds(points: Any, weights: Any) -> tuple[list[Array], list[Array], float, Any]:
    """The clouds in double precision, their weights of unit mass, the mass, and the dtype of what is returned."""
    if not isinstance(points, (list, tuple)) or not points:
        msg = "X must be a list of (m_k, d) arrays, one for each input"
        raise TypeError(msg)
    clouds = [as_array(x, f"X[{k}]") for k, x in enumerate(points)]
    given = [None] * len(clouds) if weights is None else list(weights)
    if len(given) != len(clouds):
        msg = f"a holds weights for {len(given)} inputs, but X has {len(clouds)}"
        raise ValueError(msg)
    for k, x in enumerate(clouds):
        check_matrix(x, f"X[{k}]")
        require_finite(x, f"X[{k}]")
        if x.shape[1] != clouds[0].shape[1]:
            msg = f"all points must have one dimension, got {clouds[0].shape[1]} in X[0] and {x.shape[1]} in X[{k}]"
            raise ValueError(msg)
    vectors = {f"a[{k}]": vector(v, f"a[{k}]", clouds[k].shape[0]) for k, v in enumerate(given) if v is not None}
    xp = common_namespace({**{f"X[{k}]": x for k, x in enumerate(clouds)}, **vectors})
    dtype = xp.result_type(*clouds, *vectors.values())
    masses = [float(xp.sum(v)) for v in vectors.values()]
    mass = masses[0] if masses else 1.0
    full = [
        vectors[f"a[{k}]"]
        if f"a[{k}]" in vectors
        else xp.full((x.shape[0],), mass / x.shape[0], dtype=xp.float64, device=device(x))
        for k, x in enumerate(clouds)
    ]
    unit, mass = unit_inputs(full, single=dtype == xp.float32, name="a")
    return [xp.astype(x, xp.float64) for x in clouds], unit, mass, dtype


def require_finite(points: Array, name: str) -> None:
    """Refuse points with a coordinate that is not finite."""
    xp = array_namespace(points)
    if not bool(xp.all(xp.isfinite(points))):
        msg = f"{name} holds a coordinate that is not finite"
        raise ValueError(msg)


def vector(values: Any, name: str, size: int) -> Array:
    """Weights as an array, one for each of so many points."""
    weights = as_array(values, name)
    if tuple(weights.shape) != (size,):
        msg = f"{name} must hold one weight for each of the {size} points, got shape {tuple(weights.shape)}"
        raise ValueError(msg)
    return weights


def first_points(clouds: list[Array], unit: list[Array], w: np.ndarray, init: Any, n_points: Any, rng: Any) -> Array:
    """The points to start from: those given, or points of the inputs, drawn by their weights."""
    xp = array_namespace(clouds[0])
    if init is not None:
        start = as_array(init, "init")
        common_namespace({"init": start, "X[0]": clouds[0]})
        check_matrix(start, "init")
        if start.shape[1] != clouds[0].shape[1] or (n_points is not None and n_points != start.shape[0]):
            msg = f"init must have shape (n_points, {clouds[0].shape[1]}), got {tuple(start.shape)}"
            raise ValueError(msg)
        require_finite(start, "init")
        return xp.astype(start, xp.float64)
    if n_points is None:
        msg = "n_points is needed, or init: how many points shall the barycentre have?"
        raise ValueError(msg)
    count, generator = validate.integer(n_points, "n_points", low=1), np.random.default_rng(rng)
    chosen = []
    for k in generator.choice(len(clouds), size=count, p=w):
        ends = np.array([float(v) for v in xp.cumulative_sum(unit[k])])
        chosen.append(clouds[k][min(int(np.searchsorted(ends, generator.random(), side="right")), len(ends) - 1), :])
    return xp.stack(chosen)
