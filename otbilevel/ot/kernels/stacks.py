"""Work on stacks of k vectors, one for each input of a barycentre, in the array API's own functions: the truth for `cpu.stacks`.

Shapes are (k, n), but for b, log b and h, (n,), and for the barycentric coordinates w and other numbers for each input, (k,).
"""

from __future__ import annotations

from otbilevel._core.array import Array, array_namespace

LEAST_DEGREE = 1e-300
"""Diagonals up to which the reciprocal could overflow: of columns that underflowed."""


def scaling_pass(plan: Array, a: Array, v: Array) -> tuple[Array, Array, Array]:
    products = v @ plan.T
    u = a / products
    return products, u, u @ plan


def mean_product(plan: Array, products: Array, u: Array, x: Array) -> Array:
    return (u * ((x @ plan.T) / products)) @ plan


def scaled(logs: Array, lowest: float) -> tuple[Array, Array]:
    xp = array_namespace(logs)
    top = xp.max(logs, axis=1)
    return top, xp.exp(xp.clip(logs - top[:, None], lowest, None))


def columns(sums: Array, top: Array, v: Array) -> tuple[Array, Array]:
    return array_namespace(sums).log(sums) - top[:, None], v * sums


def inner(w: Array, x: Array, y: Array) -> float:
    return float(array_namespace(x).sum(w[:, None] * x * y))


def distances(column_sums: Array, b: Array) -> Array:
    xp = array_namespace(b)
    return xp.sum(xp.abs(column_sums - b), axis=1)


def disagreement(column_sums: Array, b: Array) -> float:
    return float(array_namespace(b).max(distances(column_sums, b)))


def geometric_mean(w: Array, log_sums: Array, column_sums: Array) -> tuple[Array, Array, float]:
    xp = array_namespace(log_sums)
    log_b = w @ log_sums
    log_b = log_b - xp.max(log_b)
    b = xp.exp(log_b)
    b = b / xp.sum(b)
    return log_b, b, disagreement(column_sums, b)


def debiased_step(
    point: Array, w: Array, log_sums: Array, column_sums: Array, self_log_sums: Array
) -> tuple[Array, float, Array, Array]:
    xp, h = array_namespace(point), point[-1, :]
    log_b = h + w @ log_sums
    top = xp.max(log_b)
    log_b = log_b - (top + xp.log(xp.sum(xp.exp(log_b - top))))
    b, diagonal = xp.exp(log_b), xp.exp(h + self_log_sums)
    error = float(xp.maximum(xp.max(distances(column_sums, b)), xp.sum(xp.abs(diagonal - b))))
    target = xp.concat([log_b - log_sums, (0.5 * (h + log_b - self_log_sums))[None, :]])
    return b, error, target - point, xp.sqrt(xp.concat([w[:, None] * column_sums, diagonal[None, :]]))


def inverse(degree: Array) -> Array:
    xp = array_namespace(degree)
    safe = degree > LEAST_DEGREE
    return xp.where(safe, 1.0 / xp.where(safe, degree, xp.ones_like(degree)), xp.ones_like(degree))


def balance(inverse_diagonal: Array, column_sums: Array, b: Array, w: Array) -> tuple[Array, Array]:
    xp = array_namespace(b)
    larger = xp.maximum(column_sums, b)
    positive = larger > 0
    ratio = xp.where(positive, column_sums / xp.where(positive, larger, xp.ones_like(larger)), xp.ones_like(larger))
    inverse_diagonal = ratio * inverse_diagonal
    shares = w[:, None] * inverse_diagonal
    return inverse_diagonal, shares / xp.sum(shares, axis=0)


def precondition(r: Array, inverse_diagonal: Array, shares: Array, w: Array) -> tuple[Array, float]:
    z = inverse_diagonal * (r - array_namespace(r).sum(shares * r, axis=0))
    return z, inner(w, r, z)


def cg_step(
    x: Array, r: Array, p: Array, q: Array, rz: float, inverse_diagonal: Array, shares: Array, w: Array
) -> tuple[Array, Array, Array, float, float]:
    curvature = inner(w, p, q)
    alpha = rz / curvature if curvature > 0 else 0.0
    x, r = x + alpha * p, r - alpha * q
    z, square = precondition(r, inverse_diagonal, shares, w)
    return x, r, z + (square / rz) * p, square, curvature
