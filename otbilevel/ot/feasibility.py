"""Whether forbidden pairs leave any plan at all: a maximum flow through the allowed ones must move the whole mass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order

from otbilevel._core.array import Array, in_host_memory, to_numpy
from otbilevel.ot import kernels
from otbilevel.ot.kernels.generic import row_blocks
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

    The flow needs host memory. Of arrays elsewhere no more is asked in advance than an allowed pair for every point, and a run that
    fails is looked at by `prove_infeasible`.

    Raises
    ------
    ValueError
        When no plan is feasible.
    """
    if not in_host_memory(problem.a):
        _require_pairs(problem)
        return
    i, j, _ = problem.geometry.pairs()
    n, m = problem.geometry.shape
    for index, size, name, support in ((i, n, "a", problem.sources), (j, m, "b", problem.targets)):
        blocked = np.bincount(index, minlength=size) == 0
        if blocked.any():
            _refuse_point(problem, name, [int(k) for k in _original(support, np.flatnonzero(blocked))])
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
            f"infeasible: the forbidden pairs of C leave no plan, as {named} with {weights[cut.points].sum():.6g} of the mass "
            f"{verb} {reached} with {others[cut.partners].sum():.6g} of it. Allow more pairs, or give some a large finite cost"
        )
        raise ValueError(msg)


def may_be_infeasible(problem: OTProblem) -> bool:
    """Whether forbidden pairs may leave no plan, as nobody has found out."""
    if not problem.geometry.has_forbidden_pairs or in_host_memory(problem.a):
        return False
    return bool(_sides_to_meet(problem))


def prove_infeasible(problem: OTProblem, g: Array) -> str:
    """A set of columns that hold more than all rows that reach them, in words; empty if there is none among the level sets of g.

    Where there is no plan, the semi-dual grows for ever as the potentials of such columns run away from the others, whatever the
    method. One pass over the cost, where it is.
    """
    xp, (rows, columns) = problem.xp, (problem.a, problem.b)
    if not bool(xp.all(xp.isfinite(g))):
        return ""
    highest = _highest_in_reach(problem, g)
    by_g, by_highest = xp.argsort(-g), xp.argsort(-highest)
    held = xp.cumulative_sum(xp.take(columns, by_g))
    # Of columns with the same g some may be left out: these rows are then more than reach the others, which does not harm a proof.
    count = xp.searchsorted(-xp.take(highest, by_highest), -xp.take(g, by_g), side="right")
    room = xp.take(xp.cumulative_sum(xp.take(rows, by_highest), include_initial=True), count)
    met, total, whole = _sides_to_meet(problem), float(xp.sum(rows)), float(xp.sum(columns))
    excess = held - room + (total - whole if met == ("row",) else 0.0)
    k = int(xp.argmax(excess))
    if not len(met) * float(excess[k]) > max(problem.tol, ROUNDING):
        return ""
    mass, limit, reached = float(held[k]), float(room[k]), int(count[k])
    if met == ("row",):  # the same cut, seen from its other side
        n, m = problem.geometry.shape
        cut = f"{n - reached} rows with {total - limit:.6g} of the mass may only reach {m - k - 1} columns with {whole - mass:.6g}"
    else:
        cut = f"{k + 1} columns with {mass:.6g} of the mass may only be reached from {reached} rows with {limit:.6g}"
    return f"infeasible: the forbidden pairs of C leave no plan, as {cut} of it. Allow more pairs, or give some a large finite cost"


def _highest_in_reach(problem: OTProblem, g: Array) -> Array:
    """The largest g of the columns that a row may reach, for every row."""
    xp, blocks, nothing = problem.xp, [], problem.xp.full_like(g, -float("inf"))
    for low, high in row_blocks(problem.geometry.shape):
        allowed = xp.isfinite(problem.geometry.rows(low, high))
        blocks.append(xp.max(xp.where(allowed, g[None, :], nothing[None, :]), axis=1))
    return xp.concat(blocks)


def _require_pairs(problem: OTProblem) -> None:
    """Refuse a point without an allowed pair, where the arrays are."""
    xp, geometry = problem.xp, problem.geometry
    cheapest = geometry.c_transform_rows(xp.zeros_like(problem.b)), geometry.c_transform_columns(xp.zeros_like(problem.a))
    for costs, name, support in zip(cheapest, "ab", (problem.sources, problem.targets), strict=True):
        blocked = costs == float("inf")
        if bool(xp.any(blocked)):
            index = int(xp.argmax(xp.astype(blocked, xp.int64)))
            _refuse_point(problem, name, [index if support.indices is None else int(support.indices[index])])


def _refuse_point(problem: OTProblem, name: str, points: list[int]) -> NoReturn:
    side = "row" if name == "a" else "column"
    others = f" (and {len(points) - 1} more)" if len(points) > 1 else ""
    advice = "Allow a pair of it, or drop it"
    if problem.marginals is not None:
        advice += "; with a price on the marginals a large finite cost leaves its mass where it is"
    msg = f"infeasible: C forbids every pair of {side} {points[0]}{others}, but {name}[{points[0]}] is positive. {advice}"
    raise ValueError(msg)


def largest_mass(problem: OTProblem) -> float:
    """The largest mass of plans with marginals at most a and b, in the problem's unit: that of a minimum cut."""
    if not problem.geometry.has_forbidden_pairs:
        return min(float(problem.xp.sum(weights)) for weights in (problem.a, problem.b))
    if not in_host_memory(problem.a):
        msg = "PartialMass beside forbidden pairs asks a flow for the largest mass, in host memory: move a, b and C there first"
        raise TypeError(msg)
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
