"""Potentials from the other side's: soft minima, c-transforms, and what they give at points of zero weight."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from otbilevel._core.array import Array, device
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.grid import Grid
from otbilevel.ot.kernels import separable
from otbilevel.ot.kernels.generic import row_blocks
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.sparse_cost import SparseCost


def extend_potentials(
    problem: OTProblem,
    f: Array,
    g: Array,
    rows: Callable[[Geometry, Array], Array],
    columns: Callable[[Geometry, Array], Array],
) -> tuple[Array, Array]:
    """Potentials at the points of zero weight, too.

    ``rows(geometry, g)`` gives those of the sources that were dropped, then ``columns(geometry, f)``, with all sources,
    those of the targets.
    """
    sources, targets, whole = problem.sources, problem.targets, problem.whole
    if sources.dropped is not None:
        f = sources.merge(f, rows(whole.restrict(sources.dropped, targets.indices), g))
    if targets.dropped is not None:
        g = targets.merge(g, columns(whole.restrict(None, targets.dropped), f))
    return f, g


def soft_transform(geometry: Geometry, g: Array, reg: float) -> Array:
    """-reg log sum_j exp((g_j - C_ij)/reg) for every row; 0 for a row whose pairs are all forbidden."""
    if isinstance(geometry, Grid):
        return -reg * separable.SeparableKernel(geometry, g, reg).log_sums
    if isinstance(geometry, SparseCost):
        return geometry.soft_transform(g, reg)
    xp, parts = geometry.xp, []
    for low, high in row_blocks(geometry.shape):
        exponents = (g[None, :] - geometry.rows(low, high)) / reg
        top = finite(xp, xp.max(exponents, axis=1))
        total = xp.sum(xp.exp(exponents - top[:, None]), axis=1)
        parts.append(-reg * (top + xp.log(xp.where(total > 0, total, xp.ones_like(total)))))
    return xp.concat(parts)


def finite(xp: ModuleType, f: Array) -> Array:
    """The same with 0 for what is not finite: the potential of a point whose pairs are all forbidden."""
    return xp.where(xp.isfinite(f), f, xp.zeros_like(f))


def c_transform_rows(geometry: Geometry, g: Array) -> Array:
    """min_j C_ij - g_j."""
    if isinstance(geometry, Grid):
        return separable.c_transform(geometry, g)
    if isinstance(geometry, SparseCost):
        return geometry.c_transform_rows(g)
    xp = geometry.xp
    return xp.concat([xp.min(geometry.rows(i, k) - g[None, :], axis=1) for i, k in row_blocks(geometry.shape)])


def c_transform_columns(geometry: Geometry, f: Array) -> Array:
    """min_i C_ij - f_i."""
    if isinstance(geometry, Grid):
        return separable.c_transform(geometry.transpose(), f)
    if isinstance(geometry, SparseCost):
        return geometry.c_transform_columns(f)
    xp = geometry.xp
    best = xp.full((geometry.shape[1],), float("inf"), dtype=f.dtype, device=device(f))
    for low, high in row_blocks(geometry.shape):
        best = xp.minimum(best, xp.min(geometry.rows(low, high) - f[low:high, None], axis=0))
    return best
