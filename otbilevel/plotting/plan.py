"""A plan, as a matrix, as a joint distribution, or as lines between points."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import sparse

from otbilevel._core import validate
from otbilevel._core.array import as_array, to_numpy
from otbilevel.ot.result import OTResult
from otbilevel.plotting.canvas import INK, SOURCE, TARGET, finish_plane, new_axes, read_points, scatter

LARGEST_DENSE = 4_000_000
"""Pairs up to which a plan may be formed as an array."""
CELLS = 200
"""Cells of a matrix view on either side; more rows are summed into these."""


def plot_plan(
    plan: Any,
    x: Any = None,
    y: Any = None,
    *,
    ax: Any = None,
    share: float = 0.9,
    max_lines: int = 2000,
) -> Any:
    """Draw a transport plan: as a matrix with its marginals, or in the plane as lines between points.

    Parameters
    ----------
    plan : OTResult, (n, m) array_like or sparse array
        The plan, or a result that has one.
    x, y : (n, d), (m, d) array_like, optional
        The points. Without them the plan is a matrix, row 0 at the top. In one dimension, (n,) or (n, 1), it is the joint
        distribution, with the sources from left to right and the targets upwards, so that a map appears as its graph. In two
        dimensions each pair is a line, the darker the more mass it carries.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a new figure.
    share : float
        Part of the mass that the lines carry: the heaviest pairs are drawn.
    max_lines : int
        Limit of the lines. Where that is not enough, the pairs are a sample by mass, spread evenly over the sources, as the
        heaviest ones would be those of outliers; the legend says so.

    Returns
    -------
    matplotlib.axes.Axes
        With the artists in it; the marginals are in its `child_axes`.

    Raises
    ------
    ValueError, TypeError
        When an argument is wrong; the message names it.
    ImportError
        When matplotlib is not installed.

    Notes
    -----
    More than 200 rows or columns are summed into as many cells, and of a result with more than 4e6 pairs only the sparse plan is
    formed. Nothing is shown and no setting of matplotlib is changed.

    Examples
    --------
    >>> import numpy as np
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from otbilevel import PointCloud, solve_ot
    >>> from otbilevel.plotting import plot_plan
    >>> x, y = np.random.default_rng(0).normal(size=(2, 50, 2))
    >>> ax = plot_plan(solve_ot(None, None, PointCloud(x, y), reg=0.01), x, y)
    >>> len(ax.collections)  # lines, sources, targets
    3
    """
    share = validate.real(share, "share", low=0.0, high=1.0, strict=True)
    max_lines = validate.integer(max_lines, "max_lines", low=1)
    matrix = _entries(plan)
    if (x is None) != (y is None):
        msg = f"x and y belong together, but {'x' if x is None else 'y'} is missing"
        raise ValueError(msg)
    if x is None:
        return _draw_matrix(new_axes(ax), matrix)
    x, y = read_points(x, "x", matrix.shape[0]), read_points(y, "y", matrix.shape[1])
    if x.shape[1] != y.shape[1]:
        msg = f"x and y must have points of one dimension, got shapes {x.shape} and {y.shape}"
        raise ValueError(msg)
    if x.shape[1] == 1:
        return _draw_joint(new_axes(ax), matrix, x[:, 0], y[:, 0])
    return _draw_lines(new_axes(ax, equal=True), matrix, x, y, share, max_lines)


def _entries(plan: Any) -> sparse.coo_array:
    """The positive entries of a plan, of whatever kind."""
    plan = getattr(plan, "result", plan)
    if isinstance(plan, OTResult):
        small = math.prod(plan._plan.problem.whole.shape) <= LARGEST_DENSE
        plan = to_numpy(plan.plan) if small else plan.sparse_plan
    elif not sparse.issparse(plan):
        plan = to_numpy(as_array(plan, "plan"))
    if len(plan.shape) != 2 or 0 in plan.shape:
        msg = f"plan must be an (n, m) array or a result, got shape {tuple(plan.shape)}"
        raise ValueError(msg)
    entries = sparse.coo_array(plan)
    if not (np.isfinite(entries.data).all() and (entries.data >= 0).all() and entries.data.sum() > 0):
        msg = "plan must hold finite numbers >= 0, not all of them 0"
        raise ValueError(msg)
    return entries


def _draw_matrix(ax: Any, matrix: sparse.coo_array) -> Any:
    """The matrix as a table, row 0 at the top."""
    n, m = matrix.shape
    edges = [np.linspace(0, size, min(size, CELLS) + 1).round() - 0.5 for size in (m, n)]
    label = "mass" if max(n, m) <= CELLS else "mass, mean over a cell"
    _draw_density(ax, matrix.col, matrix.row, matrix.data, edges, (TARGET, SOURCE), label)
    ax.invert_yaxis()
    ax.set(xlabel="target j", ylabel="source i")
    return ax


def _draw_joint(ax: Any, matrix: sparse.coo_array, x: np.ndarray, y: np.ndarray) -> Any:
    """The joint distribution of points on two lines."""
    edges = [_edges(points) for points in (x, y)]
    _draw_density(ax, x[matrix.row], y[matrix.col], matrix.data, edges, (SOURCE, TARGET), "mass per area")
    ax.set(xlabel="source", ylabel="target")
    return ax


def _edges(points: np.ndarray) -> np.ndarray:
    """Borders of cells around points on a line: half-way between neighbours, or of more than one where they are many."""
    places = np.unique(points)
    if len(places) == 1:
        return np.array([places[0] - 0.5, places[0] + 0.5])
    steps = np.diff(places)
    middles = places[:-1] + steps / 2
    borders = np.concatenate([[places[0] - steps[0] / 2], middles, [places[-1] + steps[-1] / 2]])
    if len(places) <= CELLS:
        return borders
    if steps.max() > 2 * steps.min():
        return np.linspace(borders[0], borders[-1], CELLS // 2 + 1)
    count = -(-len(places) // CELLS)  # of a grid every cell must hold as many points, or stripes appear
    return np.append(borders[:-1:count], borders[-1])


def _draw_density(
    ax: Any,
    across: np.ndarray,
    up: np.ndarray,
    mass: np.ndarray,
    edges: list[np.ndarray],
    colours: tuple[str, str],
    label: str,
) -> None:
    """Mass per area in shades, the marginals beside it, and the scale of the shades."""
    widths = [np.diff(edge) for edge in edges]
    cells = np.histogram2d(across, up, bins=edges, weights=mass)[0].T
    density = cells / np.outer(widths[1], widths[0])
    top_shade = float(density.max())
    usual = 4 * float(np.percentile(density[density > 0], 99))  # a few heavy cells must not make the others fade
    cut = usual < top_shade
    picture = ax.pcolormesh(*edges, density, cmap="Blues", vmin=0, vmax=min(usual, top_shade), rasterized=True)
    top = ax.inset_axes((0, 1.02, 1, 0.15), sharex=ax)
    side = ax.inset_axes((1.02, 0, 0.15, 1), sharey=ax)
    top.stairs(cells.sum(axis=0) / widths[0], edges[0], fill=True, color=colours[0])
    side.stairs(cells.sum(axis=1) / widths[1], edges[1], fill=True, color=colours[1], orientation="horizontal")
    for panel in (top, side):
        panel.tick_params(labelbottom=False, labelleft=False, left=False, bottom=False)
        panel.spines[:].set_visible(False)
    bar = ax.figure.colorbar(picture, cax=ax.inset_axes((1.21, 0, 0.04, 1)), label=label, extend="max" if cut else "neither")
    bar.outline.set_visible(False)


def _draw_lines(ax: Any, matrix: sparse.coo_array, x: np.ndarray, y: np.ndarray, share: float, max_lines: int) -> Any:
    """The heaviest pairs as lines, and the points by their weights."""
    from matplotlib.collections import LineCollection  # noqa: PLC0415 -- an optional dependency

    chosen, weights, label = _choose_pairs(matrix, share, max_lines)
    crowd = min(1.0, (200 / len(chosen)) ** 0.8)  # many lines must be thin and pale, or they blacken the picture
    lines = LineCollection(
        list(np.stack([x[matrix.row[chosen]], y[matrix.col[chosen]]], axis=1)),
        colors=INK,
        linewidths=(0.3 + 1.2 * weights) * (0.4 + 0.6 * crowd),
        alpha=np.clip((0.1 + 0.8 * weights) * crowd, 0.02, 1),
        zorder=1,
        label=label,
    )
    ax.add_collection(lines)
    scatter(ax, x, matrix.sum(axis=1), SOURCE, "sources", "o")
    scatter(ax, y, matrix.sum(axis=0), TARGET, "targets", "D")
    return finish_plane(ax)


def _choose_pairs(matrix: sparse.coo_array, share: float, max_lines: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Indices of the entries to draw, the heaviest last and so on top; their weights up to 1, and what to call them."""
    order = np.argsort(-matrix.data, kind="stable")
    drawn = np.cumsum(matrix.data[order]) / matrix.data.sum()
    count = min(int(np.searchsorted(drawn, share - 1e-12)) + 1, len(order))
    if count <= max_lines:
        chosen, label = order[:count][::-1], f"plan: {count} pairs, {100 * drawn[count - 1]:.3g} % of the mass"
        return chosen, matrix.data[chosen] / matrix.data[chosen].max(), label
    by_row = np.argsort(matrix.row, kind="stable")
    mass = np.cumsum(matrix.data[by_row])
    picks = np.searchsorted(mass, (np.arange(max_lines) + 0.5) / max_lines * mass[-1])
    sample = by_row[np.unique(picks)]
    return sample, np.ones(len(sample)), f"plan: a sample of {len(sample)} pairs"  # each stands for as much mass
