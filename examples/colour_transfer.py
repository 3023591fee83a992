"""
Colour transfer between two photos
==================================

A photo takes on the colours of another by optimal transport of its pixels, seen as points in RGB space [1]_. The problem is solved
to a marginal error of 1e-9 by Sinkhorn-Newton-Sparse and, in the same run, by POT's Sinkhorn; one piece of code measures what both
return.

Run it by ``make demo``, or by ``python examples/colour_transfer.py``, where ``--help`` lists the options. It needs scikit-learn and
pillow (for the photos), matplotlib, and POT for the comparison.

.. [1] S. Ferradans, N. Papadakis, G. Peyre, J.-F. Aujol, Regularized discrete optimal transport, SIAM J. Imaging Sciences 7, 2014.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.interpolate import RegularGridInterpolator
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.spatial.distance import cdist
from scipy.special import softmax, xlogy
from sklearn.datasets import load_sample_image

from otbilevel import solve_ot

mpl.use("Agg")  # a file is all that is wanted: no window, no display needed
import matplotlib.pyplot as plt

try:
    import ot as pot
except ImportError:
    pot = None

TOL = 1e-9  # L1 error of both marginals together that both solvers are asked for
OURS, POT = "#d9480f", "#0b7285"  # colours of the two solvers


# %%
# The problem
# -----------
# Some thousand pixels of each photo, all of the same weight, and the squared distances between their colours.


def sample_pixels(photo: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw n pixels without replacement, as an (n, 3) array of RGB values in [0, 1]."""
    pixels = photo.reshape(-1, 3)
    return pixels[rng.choice(len(pixels), n, replace=False)]


# %%
# Two solvers
# -----------
# Both get the same arrays, and both are timed up to the plan as an array.


@dataclass(frozen=True)
class Run:
    """What a solver returned: P_ij = a_i b_j exp((f_i + g_j - C_ij) / reg), and how it got there."""

    seconds: float
    iterations: str
    plan: np.ndarray
    f: np.ndarray
    g: np.ndarray
    curve: tuple[np.ndarray, np.ndarray]  # seconds and marginal errors
    lead_in: int = 0  # points of the curve that belong to a larger reg
    note: str = ""


def run_sns(a: np.ndarray, b: np.ndarray, C: np.ndarray, reg: float, *, progress: bool = False) -> Run:
    """Sinkhorn-Newton-Sparse of this library."""
    start = time.perf_counter()
    result = solve_ot(a, b, C, reg=reg, method="sns", tol=TOL, progress=progress)
    plan = result.plan
    seconds = time.perf_counter() - start
    history = result.history
    return Run(
        seconds,
        f"{result.nit_newton} Newton + {result.nit - result.nit_newton} Sinkhorn",
        plan,
        result.f,
        result.g,
        (history["seconds"], history["marginal_error"]),
        lead_in=int(np.sum(history["reg"] > 1.0001 * reg)),
    )


def run_pot(a: np.ndarray, b: np.ndarray, C: np.ndarray, reg: float, max_iter: int = 20_000) -> Run:
    """POT's plain Sinkhorn: products with a stored exp(-C / reg), which must not underflow where the plan needs it.

    POT stops by the L2 norm of the column error e, its rows being exact. As |e|_1 <= sqrt(m) |e|_2, it is asked for TOL / sqrt(m),
    and its curve shows this bound, or 2 where that is less. It is logged at every tenth iteration, and all are
    taken to last equally long.
    """
    scale = np.sqrt(len(b))
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan, log = pot.sinkhorn(a, b, C, reg, method="sinkhorn", numItermax=max_iter, stopThr=TOL / scale, log=True)
    seconds = time.perf_counter() - start
    done = 1 + 10 * np.arange(len(log["err"]))
    return Run(
        seconds,
        f"{log['niter'] + 1} Sinkhorn",
        plan,
        reg * (np.log(log["u"]) - np.log(a)),
        reg * (np.log(log["v"]) - np.log(b)),
        (seconds * done / (log["niter"] + 1), np.minimum(scale * np.array(log["err"]), 2)),
        note="; ".join(dict.fromkeys(str(warning.message) for warning in caught)),
    )


def warm_up(x: np.ndarray, y: np.ndarray, reg: float, n: int = 300) -> None:
    """Solve a small problem by both: numba compiles, the thread pools start."""
    small = x[:n], y[:n]
    a, b = (np.full(len(points), 1 / len(points)) for points in small)
    C = cdist(*small, "sqeuclidean")
    run_sns(a, b, C, reg)
    if pot is not None:
        run_pot(a, b, C, reg, max_iter=20)


# %%
# The proof
# ---------
# Nothing is taken from what a solver says of itself: marginal error, cost and duality gap come from the plan and the potentials.


def measure(run: Run, a: np.ndarray, b: np.ndarray, C: np.ndarray, reg: float) -> dict[str, float]:
    """Marginal error in L1, transport cost, and duality gap at the plan rounded to exact marginals."""
    plan, f, g = run.plan, run.f, run.g
    error = np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()
    # Rounding by Altschuler, Weed and Rigollet (2017), algorithm 2: scale down what is too heavy, spread what is missing.
    rounded = plan * np.minimum(a / plan.sum(1), 1)[:, None]
    rounded *= np.minimum(b / rounded.sum(0), 1)
    rows, columns = np.maximum(a - rounded.sum(1), 0), np.maximum(b - rounded.sum(0), 0)
    if rows.sum() > 0:
        rounded += np.outer(rows, columns / rows.sum())
    product = np.outer(a, b)
    primal = np.sum(rounded * C) + reg * np.sum(xlogy(rounded, rounded / product) - rounded + product)
    dual = a @ f + b @ g - reg * (plan.sum() - product.sum())
    return {"error": error, "cost": np.sum(plan * C), "gap": primal - dual}


def print_table(runs: dict[str, Run], figures: dict[str, dict[str, float]]) -> None:
    """Print what was measured, a column for each solver."""
    ours, converged = next(iter(runs.values())), [f["error"] <= 1.01 * TOL for f in figures.values()]
    rows = {
        "seconds, up to the plan": [f"{run.seconds:.2f}" for run in runs.values()],
        "time ratio": [
            f"{run.seconds / ours.seconds:.1f}" if done else "not converged"
            for run, done in zip(runs.values(), converged, strict=True)
        ],
        "iterations": [run.iterations for run in runs.values()],
        "marginal error (L1)": [f"{f['error']:.1e}" for f in figures.values()],
        "duality gap": [f"{f['gap']:.1e}" for f in figures.values()],
        "transport cost <P, C>": [f"{f['cost']:.9f}" for f in figures.values()],
    }
    print(f"\n{'':24}" + "".join(f"{name:>24}" for name in runs))
    for label, cells in rows.items():
        print(f"{label:24}" + "".join(f"{cell:>24}" for cell in cells))
    print("\nOne run each by the clock, after a warm-up on a small problem (numba compiles there).")
    print("Other work on the machine distorts the ratio; benchmarks/compare_ot.py repeats its runs.")
    for name, run in runs.items():
        if run.note:
            print(f"{name} warned: {run.note}")
    if pot is None:
        print("POT is not installed: `pip install POT` adds its Sinkhorn to the table.")


# %%
# From some pixels to the whole photo
# -----------------------------------
# The column potentials extend the plan to every colour c. Its mass goes to the targets y_j in proportion to
# ``b_j exp((g_j - |c - y_j|^2) / reg)``, and their mean is the entropic map T(c) [2]_. It is tabulated on a grid of colours, and
# the table is averaged over neighbouring colours: sharp edges of T would show as bands in a clear sky. Where T is steep it also
# magnifies the grain and the compression blocks of a photo; so the change of colour, T(c) - c, goes through a filter that keeps
# the photo's own edges [3]_ [4]_.
#
# .. [2] A.-A. Pooladian, J. Niles-Weed, Entropic estimation of optimal transport maps, arXiv:2109.12004.
# .. [3] J. Rabin, J. Delon, Y. Gousseau, Removing artefacts from color and contrast modifications,
#    IEEE Trans. Image Processing 20, 2011.
# .. [4] K. He, J. Sun, X. Tang, Guided image filtering, IEEE Trans. PAMI 35, 2013.


def colour_table(targets: np.ndarray, b: np.ndarray, g: np.ndarray, reg: float, size: int = 17) -> RegularGridInterpolator:
    """Tabulate the entropic map on a grid of size^3 colours; the result interpolates between them."""
    axis = np.linspace(0, 1, size)
    table = np.empty((size, size, size, 3))
    for k, red in enumerate(axis):  # slab by slab, to need little memory
        colours = np.stack(np.meshgrid(red, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
        scores = (g - cdist(colours, targets, "sqeuclidean")) / reg + np.log(b)
        table[k] = (softmax(scores, axis=1) @ targets).reshape(size, size, 3)
    table = gaussian_filter(table, 0.7, axes=(0, 1, 2), mode="nearest")
    return RegularGridInterpolator((axis, axis, axis), table)


def guided_filter(image: np.ndarray, guide: np.ndarray, width: int = 9, flat: float = 1e-3) -> np.ndarray:
    """Smooth `image` where the grey `guide` is flat (variance below `flat`), follow it at its edges: a local linear fit."""

    def mean(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, width, axes=(0, 1))

    guide = guide[..., None]
    mean_guide, mean_image = mean(guide), mean(image)
    slope = (mean(guide * image) - mean_guide * mean_image) / (mean(guide**2) - mean_guide**2 + flat)
    return mean(slope) * guide + mean(mean_image - slope * mean_guide)


def recolour(photo: np.ndarray, table: RegularGridInterpolator) -> np.ndarray:
    """Apply the map to every pixel."""
    change = table(photo) - photo
    return np.clip(photo + guided_filter(change, photo.mean(axis=2)), 0, 1)


# %%
# The picture
# -----------


def draw(photos: dict[str, np.ndarray], chart_title: str, runs: dict[str, Run], figures: dict[str, dict[str, float]]) -> Figure:
    """Draw four photos in two rows, and beside them how the solvers converged."""
    fig = plt.figure(figsize=(12.6, 5.2), layout="constrained")
    pictures, chart = fig.subfigures(1, 2, width_ratios=(1.43, 1))
    for ax, (title, photo) in zip(pictures.subplots(2, 2).flat, photos.items(), strict=True):
        ax.imshow(photo)
        ax.set_title(title, fontsize=11)
        ax.axis("off")
    ax = chart.subplots()
    ax.set_title(chart_title, fontsize=11)
    draw_convergence(ax, runs, figures)
    return fig


def draw_convergence(ax: Axes, runs: dict[str, Run], figures: dict[str, dict[str, float]]) -> None:
    """Draw marginal errors against seconds; a dot ends each curve at the whole time and the measured error."""
    for (name, run), colour in zip(runs.items(), (OURS, POT), strict=False):
        end = run.seconds, figures[name]["error"]
        seconds, errors = (np.append(values, last) for values, last in zip(run.curve, end, strict=True))
        k = run.lead_in
        ax.plot(seconds[k:], errors[k:], color=colour, lw=2)
        ax.plot(*end, "o", color=colour, ms=7)
        if k:
            ax.plot(
                seconds[: k + 1],
                errors[: k + 1],
                color=colour,
                lw=1.2,
                ls=(0, (2, 1.5)),
                label="while reg is being lowered to its value",
            )
        ax.annotate(f"{name}\n{run.seconds:.3g} s", end, (4, -10), textcoords="offset points", color=colour, ha="right", va="top")
    ax.axhline(TOL, color="0.6", lw=0.8, zorder=0)
    ax.annotate(
        "tolerance", (0, TOL), (4, 3), xycoords=("axes fraction", "data"), textcoords="offset points", color="0.4", fontsize=9
    )
    ax.set(xscale="log", yscale="log", ylim=(TOL / 3000, 5), xlabel="seconds")
    ax.set_ylabel("marginal error, L1" + (" (POT: upper bound)" if len(runs) > 1 else ""))
    ax.xaxis.set_minor_formatter("")
    ax.legend(loc="lower left", frameon=False, fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Solve, print, recolour, draw."""
    parser = argparse.ArgumentParser(description="Colour transfer between two photos, against POT.")
    parser.add_argument("--pixels", type=int, default=2000, help="pixels taken from each photo (default: %(default)s)")
    parser.add_argument("--reg", type=float, default=3e-3, help="regularisation; RGB is in [0, 1] (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pixels (default: %(default)s)")
    default = Path(sys.argv[0]).parent / "output" / "colour_transfer.png"  # the documentation runs this without __file__
    parser.add_argument("--output", type=Path, default=default, help="the picture (default: output/ beside this file)")
    options = parser.parse_args()
    reg, rng = options.reg, np.random.default_rng(options.seed)

    china, flower = (load_sample_image(name) / 255 for name in ("china.jpg", "flower.jpg"))
    x, y = (sample_pixels(photo, options.pixels, rng) for photo in (china, flower))
    a, b = (np.full(len(points), 1 / len(points)) for points in (x, y))
    C = cdist(x, y, "sqeuclidean")
    print(f"{len(a)} pixels of china.jpg to {len(b)} of flower.jpg, squared distance in RGB, reg = {reg:g}, tolerance {TOL:g}")

    warm_up(x, y, reg)
    runs = {"otbilevel, sns": run_sns(a, b, C, reg, progress=True)}
    if pot is not None:
        print("POT's Sinkhorn is running ...", flush=True)
        runs["POT, sinkhorn"] = run_pot(a, b, C, reg)
    figures = {name: measure(run, a, b, C, reg) for name, run in runs.items()}
    print_table(runs, figures)

    start, solution = time.perf_counter(), runs["otbilevel, sns"]
    china_new = recolour(china, colour_table(y, b, solution.g, reg))
    flower_new = recolour(flower, colour_table(x, a, solution.f, reg))
    print(f"Both photos recoloured in {time.perf_counter() - start:.1f} s.")
    photos = {
        "china.jpg": china,
        "flower.jpg": flower,
        "China in the flower's colours": china_new,
        "The flower in China's colours": flower_new,
    }
    fig = draw(photos, f"Solving for {len(a)} x {len(b)} pixels, reg = {reg:g}", runs, figures)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(options.output, dpi=150)
    print(f"Picture: {options.output}")


if __name__ == "__main__":
    main()
