"""What all pictures share: axes, colours, points, and how their arguments are read."""

from __future__ import annotations

from typing import Any

import numpy as np

from otbilevel._core.array import as_array, to_numpy
from otbilevel.ot.result import OTResult

SOURCE, TARGET, INK = "#0072B2", "#D55E00", "#4D4D4D"
"""Blue and vermilion of Okabe and Ito, which all kinds of colour vision tell apart, and a dark grey."""


def new_axes(ax: Any, *, equal: bool = False) -> Any:
    """`ax`, or the axes of a new figure; with `equal` both directions have one scale."""
    if ax is None:
        import matplotlib.pyplot as plt  # noqa: PLC0415 -- an optional dependency

        _, ax = plt.subplots(layout="constrained")
    elif not hasattr(ax, "add_collection"):
        msg = f"ax must be a matplotlib Axes, got {type(ax).__name__}"
        raise TypeError(msg)
    if equal:
        ax.set_aspect("equal", adjustable="datalim")
    return ax


def solution_of(result: Any, name: str) -> OTResult:
    """The result of `solve_ot`, also where an adapter holds it."""
    solution = getattr(result, "result", result)
    if not isinstance(solution, OTResult):
        msg = f"{name} must be an OTResult, got {type(result).__name__}"
        raise TypeError(msg)
    return solution


def read_points(x: Any, name: str, size: int) -> np.ndarray:
    """Points of one or two dimensions, (size, d)."""
    points = to_numpy(as_array(x, name))
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or len(points) != size:
        msg = f"{name} must hold {size} points, as the plan does, got shape {np.shape(x)}"
        raise ValueError(msg)
    if points.shape[1] not in (1, 2):
        msg = f"{name} has points of {points.shape[1]} dimensions, which cannot be drawn: project them to two"
        raise ValueError(msg)
    if not np.isfinite(points).all():
        msg = f"{name} must hold finite coordinates"
        raise ValueError(msg)
    return points


def scatter(ax: Any, points: np.ndarray, weights: np.ndarray, colour: str, label: str, marker: str) -> None:
    """Points whose area tells their weight; small where they are many."""
    size = min(30.0, max(3.0, 6000.0 / len(points))) * (0.7 if marker == "D" else 1.0)
    areas = size * np.sqrt(np.maximum(weights, 0) / max(float(weights.mean()), 1e-300))
    ax.scatter(*points.T, s=areas, color=colour, marker=marker, lw=0, alpha=0.9, zorder=2, label=label)


def finish_plane(ax: Any) -> Any:
    """Labels, and a legend above the picture, where it hides nothing, with marks of its own, as small and pale ones vanish."""
    from matplotlib.lines import Line2D  # noqa: PLC0415 -- an optional dependency

    ax.set(xlabel="first coordinate", ylabel="second coordinate")
    points = {"sources": {"color": SOURCE, "marker": "o"}, "targets": {"color": TARGET, "marker": "D"}}
    labels = ax.get_legend_handles_labels()[1]
    shown = [Line2D([], [], **({"ls": "", "ms": 5, **points[label]} if label in points else {"color": INK})) for label in labels]
    ax.legend(shown, labels, fontsize="small", frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=3)
    return ax
