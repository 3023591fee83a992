"""Whether forbidden pairs leave any plan at all: a maximum flow through the allowed ones must move the whole mass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order

from otbilevel._core.array import to_numpy
from otbilevel.ot import kernels
from otbilevel.ot.kernels.pattern import ActiveSet
from otbilevel.ot.penalties import Fixed

if TYPE_CHECKING:
    from otbilevel.ot.problem import OTProblem, Support

ROUNDING = 1e-12
"""Of sums of weights, relative to the mass."""
LISTED = 5
"""Indices that a message names."""


def require_feasible(problem: OTProblem) -> None:
    """Refuse forbidden pairs that leave no plan within the tolerance, and name rows that hold more than they can send.

    By the theorem of maximum flow and minimum cut, there is no plan just when some rows hold more mass than all columns that they
    may reach; the marginals of whatever comes closest are then off by at least twice the difference. What is refused is proved by
    the weights themselves, and not by the flow, which rounds them. Where marginals have a price, only those count that have to be
    met, if the others may not hold more than their weights.

    Raises
    ------
    ValueError
        When no plan is feasible.
    """
    i, j, _ = problem.geometry.pairs()
    n, m = problem.geometry.shape
    for index, size, name, support in ((i, n, "a", problem.sources), (j, m, "b", problem.targets)):
        blocked = np.bincount(index, minlength=size) == 0
        if blocked.any():
            original = int(_original(support, np.flatnonzero(blocked))[0])
            side = "row" if name == "a" else "column"
            msg = f"C forbids every pair of {side} {original}, but {name}[{original}] is positive: no plan is feasible"
            raise ValueError(msg)
    met = _sides_to_meet(problem)
    if not met:
        return
    a, b = to_numpy(problem.a), to_numpy(problem.b)
    sides = {"row": (a, problem.sources, "may only reach"), "column": (b, problem.targets, "may only be reached from")}
    cuts = [cut for cut in _cuts(a, b, i, j) if cut.side in met and len(met) * cut.excess > max(problem.tol, ROUNDING)]
    if cuts:
        cut = min(cuts, key=lambda cut: len(cut.points) + len(cut.partners))
        partner = "column" if cut.side == "row" else "row"
        weights, support, verb = sides[cut.side]
        others, other_support, _ = sides[partner]
        named, reached = _listed(cut.side, support, cut.points), _listed(partner, other_support, cut.partners)
        msg = (
            f"the forbidden pairs of C leave no feasible plan: {named} with {weights[cut.points].sum():.6g} of the mass {verb} "
            f"{reached} with {others[cut.partners].sum():.6g} of it. Allow more pairs, or give some a large finite cost"
        )
        raise ValueError(msg)


def largest_mass(problem: OTProblem) -> float:
    """The largest mass of plans with marginals at most a and b, in the problem's unit: that of a minimum cut."""
    if not problem.geometry.has_forbidden_pairs:
        return min(float(problem.xp.sum(weights)) for weights in (problem.a, problem.b))
    a, b = to_numpy(problem.a), to_numpy(problem.b)
    i, j, _ = problem.geometry.pairs()
    residual, left, _ = _after_flow(a, b, i, j)
    columns = _reached(residual, np.flatnonzero(left))[len(a) :]
    rows = np.bincount(i, ~columns[j], len(a)) == 0
    return float(a[~rows].sum()) + float(b[columns].sum())


def _sides_to_meet(problem: OTProblem) -> tuple[str, ...]:
    """The sides whose weights must be met by partners that may not hold more than theirs."""
    if problem.marginals is None:
        return ("row", "column")
    rows, columns = problem.marginals.rows, problem.marginals.columns
    if isinstance(rows, Fixed) and not columns.takes_any:
        return ("row",)
    return ("column",) if isinstance(columns, Fixed) and not rows.takes_any else ()


class _Cut(NamedTuple):
    """Points of one side that hold more mass, by `excess`, than all their partners, which are all points that they may reach."""

    side: str
    points: np.ndarray
    partners: np.ndarray
    excess: float


def _cuts(a: np.ndarray, b: np.ndarray, i: np.ndarray, j: np.ndarray) -> list[_Cut]:
    """Those that a maximum flow shows, from the point with most mass left over and from the column that lacks most.

    The partners are those of all points that this one can still shift mass to or from; all points that have no others belong to the
    cut. A cut of rows and one of columns prove the same, but one of them may be much smaller.
    """
    n, m = len(a), len(b)
    residual, left, lacking = _after_flow(a, b, i, j)
    cuts = []
    if left.any():
        columns = _reached(residual, np.argmax(left))[n:]
        rows = np.bincount(i, ~columns[j], n) == 0
        cuts.append(_Cut("row", np.flatnonzero(rows), np.flatnonzero(columns), float(a[rows].sum() - b[columns].sum())))
    if lacking.any():
        rows = _reached(residual.T.tocsr(), n + np.argmax(lacking))[:n]
        columns = np.bincount(j, ~rows[i], m) == 0
        cuts.append(_Cut("column", np.flatnonzero(columns), np.flatnonzero(rows), float(b[columns].sum() - a[rows].sum())))
    return cuts


def _after_flow(a: np.ndarray, b: np.ndarray, i: np.ndarray, j: np.ndarray) -> tuple[sparse.csr_array, np.ndarray, np.ndarray]:
    """Through which pairs a maximum flow could shift mass either way; and what is left at rows and columns, and columns lack."""
    n, m = len(a), len(b)
    nothing = np.zeros(len(i))
    flow, left, lacking = kernels.select_sparse().transport_flow(ActiveSet.of(i, j, nothing, (n, m)), a, b, nothing)
    used = flow > 0
    ends = np.concatenate([i, n + j[used]]), np.concatenate([n + j, i[used]])
    return sparse.csr_array((np.ones(len(ends[0]), np.int8), ends), shape=(n + m, n + m)), left, lacking


def _reached(arcs: sparse.csr_array, starts: Any) -> np.ndarray:
    """Which nodes are, from any of these."""
    size, coo, starts = arcs.shape[0], arcs.tocoo(), np.atleast_1d(starts)
    ends = np.concatenate([coo.row, np.full(len(starts), size)]), np.concatenate([coo.col, starts])
    joined = sparse.csr_array((np.ones(len(ends[0]), np.int8), ends), shape=(size + 1, size + 1))
    mask = np.zeros(size + 1, bool)
    mask[breadth_first_order(joined, size, return_predecessors=False)] = True
    return mask[:size]


def _original(support: Support, indices: np.ndarray) -> np.ndarray:
    """As the user numbers them."""
    return indices if support.indices is None else np.sort(to_numpy(support.indices)[indices])


def _listed(side: str, support: Support, indices: np.ndarray) -> str:
    """As in "rows [0, 1, 4, 5, 7, ...] (17 in all)"."""
    original = _original(support, indices)
    if len(original) == 1:
        return f"{side} {original[0]}"
    more = f", ...] ({len(original)} in all)" if len(original) > LISTED else "]"
    return f"{side}s [{', '.join(map(str, original[:LISTED]))}{more}"
