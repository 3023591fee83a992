"""What potentials give at points of zero weight."""

from __future__ import annotations

from collections.abc import Callable

from otbilevel._core.array import Array
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.problem import OTProblem


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
    f = sources.complete(f, lambda dropped: rows(whole.restrict(dropped, targets.indices), g))
    return f, targets.complete(g, lambda dropped: columns(whole.restrict(None, dropped), f))
