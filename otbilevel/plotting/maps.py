"""Where the sources go."""

from __future__ import annotations

from typing import Any

import numpy as np

from otbilevel._core import validate
from otbilevel._core.array import to_numpy
from otbilevel.ot.result import OTResult
from otbilevel.plotting.canvas import INK, SOURCE, TARGET, finish_plane, new_axes, read_points, scatter, solution_of

IDLE = 0.01
"""Of what the mean source carries: below that it has no arrow."""


def plot_map(result: OTResult, x: Any, y: Any, *, ax: Any = None, max_arrows: int = 300) -> Any:
    """Draw where the sources go: an arrow from each to the mean of the targets that its mass goes to.

    Parameters
    ----------
    result : OTResult
        A result whose sources are `x` and whose targets are `y`.
    x, y : (n, d), (m, d) array_like
        The points. In one dimension the map is drawn as a graph, in two with arrows.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a new figure.
    max_arrows : int
        Limit of the arrows; of more sources every k-th has one. Where marginals have a price, sources that carry next to nothing
        have none.

    Returns
    -------
    matplotlib.axes.Axes
        With the artists in it.

    Raises
    ------
    ValueError, TypeError
        When an argument is wrong; the message names it.
    ImportError
        When matplotlib is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from otbilevel import PointCloud, solve_ot
    >>> from otbilevel.plotting import plot_map
    >>> x, y = np.random.default_rng(0).normal(size=(2, 50, 2))
    >>> plot_map(solve_ot(None, None, PointCloud(x, y), reg=0.01), x, y).get_xlabel()
    'first coordinate'
    """
    solution = solution_of(result, "result")
    max_arrows = validate.integer(max_arrows, "max_arrows", low=1)
    n, m = solution._plan.problem.whole.shape
    images = to_numpy(solution.barycentric_map(y)).reshape(n, -1)
    x, y = read_points(x, "x", n), read_points(y, "y", m)
    if x.shape[1] != y.shape[1]:
        msg = f"x and y must have points of one dimension, got shapes {x.shape} and {y.shape}"
        raise ValueError(msg)
    if x.shape[1] == 1:
        ax = new_axes(ax)
        order = np.argsort(x[:, 0])
        style = {"marker": "o", "ms": 3} if n <= 200 else {}
        ax.plot(x[order, 0], images[order, 0], color=INK, lw=1.2, label="barycentric map", **style)
        ax.plot(x[:, 0], np.zeros(n), "|", color=SOURCE, transform=ax.get_xaxis_transform(), ms=8, mew=0.6, label="sources")
        ax.plot(np.zeros(m), y[:, 0], "_", color=TARGET, transform=ax.get_yaxis_transform(), ms=8, mew=0.6, label="targets")
        ax.set(xlabel="source", ylabel="image")
        ax.legend(frameon=False, fontsize="small")
        return ax
    ax = new_axes(ax, equal=True)
    marginals = [np.ones(n), np.ones(m)]
    if solution._plan.problem.marginals is not None:  # then it matters how much of each point is carried
        marginals = [to_numpy(masses) for masses in solution.marginals]
    scatter(ax, y, marginals[1], TARGET, "targets", "D")
    scatter(ax, x, marginals[0], SOURCE, "sources", "o")
    carried = np.flatnonzero(marginals[0] > IDLE * marginals[0].mean())
    chosen = carried[:: -(-len(carried) // max_arrows)]
    moves = images - x
    ax.quiver(
        *x[chosen].T,
        *moves[chosen].T,
        angles="xy",
        scale_units="xy",
        scale=1,
        color=INK,
        alpha=0.8 if len(chosen) <= 100 else 0.5,
        width=0.0025 if len(chosen) <= 100 else 0.0015,
        headwidth=5,
        headlength=6,
        zorder=3,
        label="map" if len(chosen) == n else f"map of {len(chosen)} out of {n}",
    )
    # A quiver does not count for the limits of the axes.
    ax.update_datalim(images)
    ax.autoscale_view()
    return finish_plane(ax)
