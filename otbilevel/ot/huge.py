"""Clouds with so many pairs that not even one sweep over all of them is affordable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from otbilevel._core.array import Array
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.point_cloud import PointCloud
from otbilevel.ot.problem import OTProblem

DIRECTLY = 5e10
"""Pairs up to which a result is certified by a sweep over all of them: about a minute on two cores."""
SAMPLE = 4096
"""Rows and columns that are computed directly where the rest is interpolated."""
ACCURACY = 1e-12
"""Of the interpolation."""
MEMORY = 2.0**29
"""Bytes for the kernel between the nodes."""


@dataclass(frozen=True)
class SampledCheck:
    """How far interpolated sums are from direct ones.

    Attributes
    ----------
    discrepancy : float
        L1 distance of both marginals from the direct ones, extrapolated from the sample.
    size : int
        Rows, and columns, in the sample.
    """

    discrepancy: float
    size: int

    def __str__(self) -> str:
        return f"interpolated; {self.size} rows and columns taken at random say that it is off by {self.discrepancy:.1g}"


def is_huge(geometry: Geometry) -> TypeGuard[PointCloud]:
    """Whether a sweep over all pairs is to be avoided, and can be."""
    n, m = geometry.shape
    return n * m > DIRECTLY and isinstance(geometry, PointCloud) and geometry.interpolable


def interpolated_sums(problem: OTProblem, f: Array, g: Array) -> tuple[Array, Array, float, SampledCheck]:
    """Row and column sums of the plan and its cost, and how far they can be trusted."""
    geometry = problem.geometry
    assert isinstance(geometry, PointCloud)
    kernel = _Plan(problem, f, g)
    rows, columns = kernel.product(np.ones_like(g), 1), kernel.product(np.ones_like(f), 0)
    origin = geometry.y.mean(axis=0, dtype=np.float64)  # squares must not cancel more than they need
    x, y = geometry.x - origin, geometry.y - origin
    linear = float(rows @ (x**2).sum(axis=1) + columns @ (y**2).sum(axis=1))
    linear -= 2.0 * sum(float(x[:, k] @ kernel.product(y[:, k], 1)) for k in range(x.shape[1]))
    rng = np.random.default_rng(0)
    discrepancy, size = 0.0, min(SAMPLE, *geometry.shape)
    for axis, sums in enumerate((rows, columns)):
        chosen = np.sort(rng.choice(len(sums), size, replace=False))
        part = geometry.restrict(chosen if axis == 0 else None, chosen if axis == 1 else None)
        a, own_f, own_g = (problem.a[chosen], f[chosen], g) if axis == 0 else (problem.a, f, g[chosen])
        direct = part.kernels.plan_sums(part.kernel_cost, own_f, own_g, problem.reg, a)[axis]
        discrepancy += float(np.abs(direct - sums[chosen]).sum()) * len(sums) / size
    return rows, columns, linear, SampledCheck(discrepancy, size)


def interpolated_product(problem: OTProblem, f: Array, g: Array, vectors: Array, axis: int) -> Array:
    """The plan times vectors, as `plan_product`."""
    kernel = _Plan(problem, f, g)
    return np.stack([kernel.product(np.ascontiguousarray(column), axis) for column in vectors.T], axis=1)


class _Plan:
    """diag(a) K, interpolated."""

    def __init__(self, problem: OTProblem, f: Array, g: Array) -> None:
        from otbilevel.ot.interpolated_kernel import InterpolatedKernel  # noqa: PLC0415 -- brings in numba, which takes a while

        assert isinstance(problem.geometry, PointCloud)
        self._x, self._y = x, y = problem.geometry.trees
        self._a = problem.a
        cuts = x.cut(problem.reg, ACCURACY), y.cut(problem.reg, ACCURACY)
        self._kernel = InterpolatedKernel(*cuts, x.sort(f), y.sort(g), problem.reg, single=False, memory=MEMORY)

    def product(self, v: Array, axis: int) -> Array:
        """Sum over `axis` of the plan times v."""
        if axis == 1:
            return self._a * self._x.restore(self._kernel.times(self._y.sort(v)))
        return self._y.restore(self._kernel.transposed_times(self._x.sort(self._a * v)))
