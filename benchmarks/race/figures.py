"""Pictures: a performance profile, and how time grows with n and with 1/reg.

E. D. Dolan and J. J. More, Benchmarking optimization software with performance profiles, Math. Program. 91, 2002: for each
contestant the share of cells that it solves within a factor tau of the fastest.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.race.cells import Cell
from benchmarks.race.records import OK, Run

COLOURS = {"otbilevel": "#d1495b", "POT": "#00798c", "regot": "#6a994e", "mdot": "#8d6a9f", "OTT": "#e08e00", "geomloss": "#6c757d"}
DASHES = ("-", "--", ":", "-.")
"""A library has a colour, and its contestants have their dashes."""
EXACT_COLOUR = "black"
DRAWN_OVER_N = {1e-2: ("assignment", "cloud-2d", "cloud-10d"), 1e-3: ("cloud-2d", "cloud-3d", "cloud-10d")}
DRAWN_OVER_REG = ("assignment", "cloud-2d", "cloud-10d")
"""The families whose growth is drawn, a panel for each."""
SIZE_DRAWN = 1000
FEWEST = 3
"""Points that a fit needs."""


@dataclass(frozen=True)
class Picture:
    """A picture, and a table to go with it."""

    title: str
    file: str
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def draw(run: Run, folder: pathlib.Path) -> list[Picture]:
    """Draw what the measurements allow; without matplotlib nothing."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 -- nothing else needs it
    except ImportError:
        return []
    mpl.use("agg")
    mpl.rcParams |= {
        "svg.hashsalt": "race",
        "svg.fonttype": "path",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    makers: list[Callable[[Run, pathlib.Path], Picture | None]] = [profile, growth_with_size, growth_with_precision]
    return [picture for make in makers if (picture := make(run, folder)) is not None]


def styles(run: Run) -> dict[str, dict[str, Any]]:
    """The same in all pictures; ours heavier."""
    looks: dict[str, dict[str, Any]] = {}
    exact = run.peers(exact=True)
    seen = dict.fromkeys(COLOURS, 0)
    for name in [*run.to_the_plan, *run.peers(exact=False), *exact]:
        library = name.split(" ", 1)[0]
        heavy = name in run.methods
        looks[name] = {
            "color": EXACT_COLOUR if name in exact else COLOURS[library],
            "linestyle": "-" if name in exact else DASHES[seen[library] % len(DASHES)],
            "linewidth": 2.4 if heavy else 1.3,
            "zorder": 3 if heavy else 2,
        }
        seen[library] += 1
    return looks


def save(figure: Any, folder: pathlib.Path, name: str) -> str:
    """As SVG for the documentation and as PNG for everything else. Without a date, so that equal data make equal files."""
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=140)
    return f"{name}.svg"


def profile(run: Run, folder: pathlib.Path) -> Picture | None:
    """Over the cells in which every entropic opponent was asked."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    names = [*run.to_the_plan, *run.peers(exact=False)]
    one = min(run.threads)
    peers = run.peers(exact=False)
    cells = {record.cell for record in run.records} if peers else set()
    raced = {cell for cell in cells if all(run.find(cell, peer, one) is not None for peer in peers)}
    times = {name: np.array([seconds(run, cell, name, one) for cell in sorted(raced)]) for name in names}
    if not raced or not np.isfinite(np.concatenate(list(times.values()))).any():
        return None
    best = np.min(list(times.values()), axis=0)
    kept = np.isfinite(best)
    factors = {name: np.sort(t[kept] / best[kept]) for name, t in times.items()}
    finite = np.concatenate([f[np.isfinite(f)] for f in factors.values()])
    widest = 1.5 * max(10.0, finite.max())
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    looks = styles(run)
    shares = {name: np.isfinite(f).mean() for name, f in factors.items()}
    for name in sorted(names, key=lambda name: -shares[name]):
        f = factors[name][np.isfinite(factors[name])]
        x = np.concatenate([[1.0], f, [widest]])
        y = np.concatenate([[0.0], np.arange(1, len(f) + 1), [len(f)]]) / kept.sum()
        axes.step(x, y, where="post", label=f"{name} ({shares[name]:.0%})", **looks[name])
    axes.set(xscale="log", xlim=(0.97, widest), ylim=(0.0, 1.03), xlabel="factor of the fastest CPU time, one thread")
    axes.set_ylabel("share of cells solved")
    axes.grid(visible=True, which="major", alpha=0.25)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), title="(share solved at all)")
    rows = tuple(
        (name, f"{np.mean(f <= 1.0):.0%}", f"{np.mean(f <= 10.0):.0%}", f"{shares[name]:.0%}") for name, f in factors.items()
    )
    return Picture(
        f"Performance profile over {kept.sum()} cells that every contestant was asked to solve",
        save(figure, folder, "profile"),
        ("contestant", "fastest", "within 10x", "solved"),
        rows,
    )


def seconds(run: Run, cell: Cell, name: str, threads: int) -> float:
    """CPU time; infinite where it is not solved."""
    record = run.find(cell, name, threads)
    return record.cpu if record is not None and record.outcome == OK and record.cpu else np.inf


def growth_with_size(run: Run, folder: pathlib.Path) -> Picture | None:
    """Time against n, a row for each reg."""
    panels = [
        (f"{family}, reg {reg:g}", series(run, family, "size", reg=reg)) for reg, drawn in DRAWN_OVER_N.items() for family in drawn
    ]
    return growth(run, folder, "scaling-n", "Time against n", "points n", "n", panels)


def growth_with_precision(run: Run, folder: pathlib.Path) -> Picture | None:
    """Time against 1/reg at a fixed size."""
    panels = [(f"{family}, n = {SIZE_DRAWN}", series(run, family, "reg", size=SIZE_DRAWN)) for family in DRAWN_OVER_REG]
    return growth(run, folder, "scaling-reg", "Time against 1/reg", "1 / reg", "(1/reg)", panels)


Series = dict[str, tuple[np.ndarray, np.ndarray]]


def series(run: Run, family: str, axis: str, **fixed: float) -> Series:
    """Curves of a family by contestant: sizes or 1/reg, and CPU seconds, the median over seeds."""
    one = min(run.threads)
    points: dict[str, dict[float, list[float]]] = {}
    hidden = set(run.methods) - set(run.to_the_plan)
    for record in (record for record in run.records if record.contestant not in hidden):
        cell = record.cell
        matches = cell.family == family and all(getattr(cell, name) == value for name, value in fixed.items())
        if matches and record.threads == one and record.outcome == OK and record.cpu:
            x = float(cell.size) if axis == "size" else 1.0 / cell.reg
            points.setdefault(record.contestant, {}).setdefault(x, []).append(record.cpu)
    curves = {}
    if axis == "reg":  # who solves the unregularised problem has no place there
        points = {name: found for name, found in points.items() if name not in run.peers(exact=True)}
    for name, found in points.items():
        x = np.array(sorted(found))
        curves[name] = x, np.array([np.median(found[value]) for value in x])
    return curves


def exponent(x: np.ndarray, y: np.ndarray) -> float:
    """The slope of a straight line through the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def growth(
    run: Run, folder: pathlib.Path, file: str, title: str, xlabel: str, variable: str, panels: list[tuple[str, Series]]
) -> Picture | None:
    """Curves with their fits, three panels in a row, and a table of the exponents."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    panels = [(name, curves) for name, curves in panels if any(len(x) > 1 for x, _ in curves.values())]
    if not panels:
        return None
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(max(4.6, 3.2 * across), 2.9 * down + 0.9), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    looks, rows, shown = styles(run), [], {}
    for axes, (name, curves) in zip(grid.flat, panels, strict=False):
        for contestant, (x, y) in curves.items():
            label = contestant
            shown[contestant] = axes.plot(x, y, marker="o", markersize=3.5, **looks[contestant])[0]
            if len(x) >= FEWEST:
                slope = exponent(x, y)
                rows.append((name, label, f"{slope:.2f}", f"{variable} = {x[0]:g} .. {x[-1]:g}"))
                if contestant == run.ours:
                    fit = np.exp(np.polyval(np.polyfit(np.log(x), np.log(y), 1), np.log(x)))
                    axes.plot(x, fit, color="black", linewidth=0.9, linestyle=":", zorder=4)
                    middle = float(np.sqrt(x[0] * x[-1])), float(np.sqrt(fit[0] * fit[-1]))
                    axes.annotate(f"{variable}$^{{{slope:.2f}}}$", middle, xytext=(6, -9), textcoords="offset points", va="top")
        axes.set(xscale="log", yscale="log", title=name, xlabel=xlabel)
        axes.grid(visible=True, which="major", alpha=0.25)
        if variable == "n":
            ticks = sorted({value for x, _ in curves.values() for value in x})
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("CPU seconds, one thread")
    order = [name for name in looks if name in shown]
    figure.legend(
        [shown[name] for name in order], order, loc="outside lower center", ncols=min(2 * across, len(order)), frameon=False
    )
    return Picture(title, save(figure, folder, file), ("problem", "contestant", "exponent", "fitted over"), tuple(rows))
