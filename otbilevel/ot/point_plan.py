"""Which plan suits two clouds of points."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otbilevel._core import validate
from otbilevel.ot.lazy_plan import LazyPlan

if TYPE_CHECKING:
    from otbilevel.ot.point_cloud import PointCloud
    from otbilevel.ot.problem import OTProblem
    from otbilevel.ot.row_plan import RowPlan, Work
    from otbilevel.ot.stored_plan import Room

MEMORY = float(2**30)
"""Bytes that plans may take if the user does not say."""
FEW_PAIRS = 4_000_000
"""Below this, storing a plan is so cheap that nothing is gained by interpolation."""
WORTHWHILE = 0.25
"""Share of the pairs that pairs of nodes may make up for interpolation to pay."""
SHARE_OF_TOLERANCE = 1e-2
"""Accuracy of a fine interpolation in terms of the tolerance of the marginals."""
LOW_DIMENSION = 3
"""Up to which far cells can be told from near ones, and interpolation has few nodes."""


def check_memory(memory: float) -> None:
    """Refuse what is not a number of bytes."""
    validate.real(memory, "memory", low=0.0)


def fine_accuracy(tol: float) -> float:
    """What a fine interpolation must be accurate to."""
    return SHARE_OF_TOLERANCE * tol


def point_plan(problem: OTProblem, geometry: PointCloud, work: Work, room: Room, *, single: bool, memory: float) -> RowPlan:
    """Interpolated between few nodes where that pays, else stored where it fits the memory, else computed anew in every pass."""
    n, m = geometry.shape
    fits = geometry.kernels.plan_itemsize(single=single) * n * m <= memory
    if geometry.interpolable and not (fits and n * m <= FEW_PAIRS):
        x, y = (tree.count_nodes(problem.reg, fine_accuracy(problem.tol)) for tree in geometry.trees)
        if x * y <= WORTHWHILE * n * m or (not fits and geometry.x.shape[1] <= LOW_DIMENSION):
            from otbilevel.ot.interpolated_plan import InterpolatedPlan  # noqa: PLC0415 -- brings in numba, which takes a while

            return InterpolatedPlan(geometry, problem.a, work, problem.marginals, tol=problem.tol, memory=memory)
    if fits:
        return room.plan(geometry, problem.a, work, single=single, marginals=problem.marginals)
    return LazyPlan(geometry, problem.a, work, problem.marginals)
