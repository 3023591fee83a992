"""How solvers converged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from otbilevel._core import validate
from otbilevel.ot.result import OTResult
from otbilevel.plotting.canvas import INK, new_axes, solution_of

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Of Okabe and Ito, which all kinds of colour vision tell apart."""
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))


def plot_convergence(results: Any, *, ax: Any = None, against: str = "iterations") -> Any:
    """Draw the marginal errors of a run, or of several, as they fell.

    Parameters
    ----------
    results : OTResult, sequence of OTResult, or mapping from label to OTResult
        The runs. Labels are by default the method and reg.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a new figure.
    against : {"iterations", "seconds"}
        The horizontal axis.

    Returns
    -------
    matplotlib.axes.Axes
        With the artists in it. While reg was above its final value a curve is thin, and its error is that of the level; a small
        dot stands at the first iteration of every level, and a large one ends the curve at the certified error. Of a single run
        that came by other levels a panel above, in `child_axes`, shows reg.

    Raises
    ------
    ValueError, TypeError
        When an argument is wrong, or a result has no history (``method="exact"``).
    ImportError
        When matplotlib is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from otbilevel import solve_ot
    >>> from otbilevel.plotting import plot_convergence
    >>> C = np.random.default_rng(0).random((40, 50))
    >>> ax = plot_convergence([solve_ot(None, None, C, reg=reg) for reg in (0.1, 0.001)], against="seconds")
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('time in seconds', 'marginal error, L1')
    """
    validate.choice(against, "against", ("iterations", "seconds"))
    runs = _runs(results)
    ax = new_axes(ax)
    for k, (label, result) in enumerate(runs.items()):
        colour, dash = COLOURS[k % len(COLOURS)], DASHES[k // len(COLOURS) % len(DASHES)]
        _draw_curve(ax, result, against, label, colour, dash)
    for tol in sorted({result._tol for result in runs.values()} - {0.0}):
        ax.axhline(tol, color="0.6", lw=0.8, zorder=0)
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        ax.annotate("tolerance", (0, tol), (3, 2), color=INK, fontsize="small", **place)
    if against == "iterations":
        ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(yscale="log", ylabel="marginal error, L1", xlabel="iteration" if against == "iterations" else "time in seconds")
    only = next(iter(runs.values()))
    if len(runs) == 1 and np.ptp(only.history["reg"]) > 0:
        _draw_levels(ax, only, against)
    if len(runs) > 1 or not only.success:
        ax.legend(frameon=False, fontsize="small")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _runs(results: Any) -> dict[str, OTResult]:
    """The runs by their labels."""
    if isinstance(results, Mapping):
        runs = {str(label): solution_of(result, f"results[{label!r}]") for label, result in results.items()}
    else:
        listed = list(results) if isinstance(results, Sequence) else [results]
        solutions = [solution_of(result, "results" if len(listed) == 1 else f"results[{k}]") for k, result in enumerate(listed)]
        labels = [f"{result.method}, reg = {result.reg:.3g}" for result in solutions]
        twice = len(set(labels)) < len(labels)
        runs = {f"{k + 1}: {label}" if twice else label: run for k, (label, run) in enumerate(zip(labels, solutions, strict=True))}
    if not runs:
        msg = "results is empty: give at least one"
        raise ValueError(msg)
    for label, result in runs.items():
        if not len(result.history.get("marginal_error", [])):
            msg = f'the result {label!r} has no history: method="exact" runs in one piece'
            raise ValueError(msg)
    return runs


def _draw_curve(ax: Any, result: OTResult, against: str, label: str, colour: str, dash: Any) -> None:
    """The error of every iteration, thin above the final reg, and the certified error at the end."""
    history, errors = result.history, np.maximum(result.history["marginal_error"], 1e-17)
    places = history["seconds"] if against == "seconds" else np.arange(1, len(errors) + 1)
    final = np.flatnonzero(history["reg"] != result.reg)
    begin = int(final[-1]) + 1 if len(final) else 0
    levels = np.flatnonzero(np.diff(history["reg"], prepend=np.inf))
    ax.plot(places[: begin + 1], errors[: begin + 1], color=colour, lw=0.8, ls=dash, alpha=0.7)
    ax.plot(places[begin:], errors[begin:], color=colour, lw=2, ls=dash, label=label)
    ax.plot(places[levels], errors[levels], ".", color=colour, ms=5)
    ax.plot(places[-1], max(result.marginal_error, 1e-17), "o", color=colour, ms=7)


def _draw_levels(ax: Any, result: OTResult, against: str) -> None:
    """reg of every iteration in a panel above."""
    reg = result.history["reg"]
    places = result.history["seconds"] if against == "seconds" else np.arange(1, len(reg) + 1)
    panel = ax.inset_axes((0, 1.04, 1, 0.22), sharex=ax)
    panel.step(places, reg, where="post", color=INK, lw=1.2)
    panel.set(yscale="log", ylabel="reg")
    panel.tick_params(labelbottom=False)
    panel.spines[["top", "right"]].set_visible(False)
