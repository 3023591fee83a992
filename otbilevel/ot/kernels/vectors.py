"""Work on vectors of length n or m in the array API's own functions: the truth for `cpu.vectors`; other libraries run it."""

from __future__ import annotations

from otbilevel._core.array import Array, array_namespace

LEAST_DIAGONAL = 1e-300
"""Diagonals of a Laplacian up to which the reciprocal could overflow: of columns that underflowed."""


def extremes(x: Array) -> tuple[float, float]:
    xp = array_namespace(x)
    return float(xp.min(x)), float(xp.max(x))


def distance(x: Array, y: Array) -> float:
    xp = array_namespace(x)
    return float(xp.sum(xp.abs(x - y)))


def log_ratio(log_b: Array, sums: Array, smallest: float, most: float) -> Array:
    xp = array_namespace(sums)
    return xp.minimum(log_b - xp.log(xp.maximum(sums, xp.full_like(sums, smallest))), xp.full_like(sums, most))


def balanced(x: Array, y: Array, weights: Array) -> Array:
    xp = array_namespace(x)
    difference = x - y
    return difference - weights * (xp.sum(difference) / xp.sum(weights))


def centred(x: Array, b: Array) -> tuple[Array, float, float]:
    xp = array_namespace(x)
    d = x - xp.sort(x)[x.shape[0] // 2]
    size = xp.abs(d)
    return d, float(xp.max(size)), float(xp.sum(b * size))


def inverse_diagonal(degree: Array, squares: Array, floor: float) -> Array:
    xp = array_namespace(degree)
    diagonal = xp.maximum(degree - squares, floor * degree)
    return 1.0 / xp.where(diagonal <= LEAST_DIAGONAL, xp.ones_like(diagonal), diagonal)
