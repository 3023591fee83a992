"""The targets of each group, and whether the measurements meet them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from benchmarks.race.cells import GROUPS, Cell
from benchmarks.race.peers import TOLERANCE
from benchmarks.race.records import OK, SLOW, WRONG, Record, Run

SHORT = 0.010
"""Seconds below which a tenth is noise."""


@dataclass(frozen=True)
class Verdict:
    """A target, what was measured, and whether it is met; None where nothing was measured."""

    target: str
    measured: str
    kept: bool | None

    @property
    def word(self) -> str:
        """For the table."""
        return "not measured" if self.kept is None else "met" if self.kept else "**missed**"


@dataclass(frozen=True)
class Ratio:
    """How many times faster than the best converging peer ours is in a cell.

    Attributes
    ----------
    cell : Cell
        The cell.
    value : float
        The ratio; where no peer converged, what its longest attempt gives: the true one is larger.
    peer : str or None
        The peer with the least ratio; None where no one converged.
    ours : float
        Seconds, to what that peer hands over.
    """

    cell: Cell
    value: float
    peer: str | None
    ours: float


def ratio(run: Run, cell: Cell, *, peers: Iterable[str], threads: int = 1, clock: str = "cpu") -> Ratio | None:
    """The ratio in a cell, dense plan against dense plan and potentials against potentials; the least over the peers.

    None where ours failed, or no peer was tried.
    """
    ours = run.find(cell, run.ours, threads)
    if ours is None or ours.outcome != OK:
        return None
    mine = getattr(ours, clock)
    tried = [record for name in peers if (record := run.find(cell, name, threads)) is not None]
    found = []
    for record in (record for record in tried if record.outcome == OK):
        same = run.find(cell, run.match(record.contestant), threads)
        if same is None or same.outcome != OK:
            return None
        found.append(Ratio(cell, getattr(record, clock) / getattr(same, clock), record.contestant, getattr(same, clock)))
    if found:
        return min(found, key=lambda ratio: ratio.value)
    bounds = [bound for record in tried if (bound := spent(run, record)) is not None]
    return Ratio(cell, min(bounds) / mine, None, mine) if bounds else None


def spent(run: Run, record: Record) -> float | None:
    """The budget, where a failure used it up."""
    budget = float(record.figures.get("budget", run.environment["settings"]["budget"]))
    return budget if record.outcome == SLOW or (record.outcome == WRONG and (record.wall or 0.0) > 0.9 * budget) else None


def ratios(run: Run, cells: Iterable[Cell], peers: Iterable[str] | None = None) -> list[Ratio]:
    """The ratios of all cells that have one."""
    names = run.peers(exact=False) if peers is None else list(peers)
    return [r for cell in cells if (r := ratio(run, cell, peers=names)) is not None]


def verdicts(run: Run, group: str) -> list[Verdict]:
    """The verdicts on a group."""
    return list(JUDGES[group](run)) if group in JUDGES else []


def at_least(run: Run, what: str, cells: Iterable[Cell], least: float, peers: Iterable[str] | None = None) -> Verdict:
    """That every cell has this ratio at least."""
    cells = list(cells)
    found = ratios(run, cells, peers)
    target = f"{what}: at least {least:g}"
    if not found:
        return Verdict(target, "-", None)
    smallest = min(found, key=lambda r: r.value)
    kept = smallest.value >= least and len(failures(run, cells)) == 0
    measured = (
        f"smallest {show(smallest)} ({smallest.cell.label}), geometric mean {mean(found):.3g} ({len(found)} of {len(cells)} cells)"
    )
    return Verdict(target, measured, kept)


def show(found: Ratio) -> str:
    """The number, as a bound where it is one."""
    return f"{'' if found.peer else '> '}{found.value:.3g}"


def mean(found: Iterable[Ratio]) -> float:
    """Geometric mean; bounds count as what they are at least."""
    return statistics.geometric_mean([r.value for r in found])


def failures(run: Run, cells: Iterable[Cell], threads: int = 1) -> list[Record]:
    """Where ours was tried and failed."""
    tried = [record for cell in cells if (record := run.find(cell, run.ours, threads)) is not None]
    return [record for record in tried if record.outcome != OK]


def convergence(run: Run, cells: Iterable[Cell]) -> Verdict:
    """That ours converges everywhere."""
    cells = list(cells)
    tried = sum(run.find(cell, run.ours, 1) is not None for cell in cells)
    failed = failures(run, cells)
    listed = "".join(f"; {r.cell.label} reg={r.cell.reg:.3g}: {r.figures.get('status', r.outcome)}, {r.error:.1e}" for r in failed)
    return Verdict("every cell converges", f"{tried - len(failed)} of {tried}{listed}", not failed if tried else None)


def of_size(cells: Iterable[Cell], *sizes: int) -> list[Cell]:
    return [cell for cell in cells if cell.size in sizes]


def of_family(cells: Iterable[Cell], *families: str) -> list[Cell]:
    return [cell for cell in cells if cell.family in families]


def judge_assignment(run: Run) -> Iterator[Verdict]:
    cells = GROUPS["assignment"].cells
    for size, least in ((500, 12.0), (1000, 12.0), (3000, 4.0)):
        yield at_least(run, f"n = {size}", of_size(cells, size), least)


def judge_images(run: Run) -> Iterator[Verdict]:
    cells = GROUPS["images"].cells
    yield at_least(run, "squared Euclidean", of_family(cells, "image-w2"), 20.0)
    yield at_least(run, "L1", of_family(cells, "image-w1"), 12.0)


def judge_mixtures(run: Run) -> Iterator[Verdict]:
    yield at_least(run, "mixtures", GROUPS["mixtures"].cells, 12.0)


def judge_clouds(run: Run) -> Iterator[Verdict]:
    cells = GROUPS["clouds"].cells
    found = ratios(run, cells)
    target = "geometric mean at least 20"
    if not found:
        yield Verdict(target, "-", None)
    else:
        with_peer = [r for r in found if r.peer]
        strict = f", {mean(with_peer):.1f} over the {len(with_peer)} where a peer converged" if with_peer else ""
        yield Verdict(target, f"{mean(found):.1f} over {len(found)} cells{strict}", mean(with_peer or found) >= 20.0)
    yield at_least(run, "every cell", cells, 8.0)
    yield convergence(run, cells)


def judge_easy(run: Run) -> Iterator[Verdict]:
    cells = GROUPS["easy"].cells
    found = [r for r in ratios(run, cells, ["POT sinkhorn"]) if r.peer]
    targets = "never slower than POT's sinkhorn", "geometric mean at least 2"
    if not found:
        yield from (Verdict(target, "-", None) for target in targets)
        return
    slower = [r for r in found if r.value < (0.9 if r.ours < SHORT else 1.0)]
    listed = "".join(f"; {r.cell.label} reg={r.cell.reg:.3g}: {r.value:.2f}" for r in slower)
    yield Verdict(targets[0], f"slower in {len(slower)} of {len(found)} cells{listed}", not slower)
    yield Verdict(targets[1], f"{mean(found):.2f}", mean(found) >= 2.0)


def judge_exact(run: Run) -> Iterator[Verdict]:
    cells = GROUPS["exact"].cells
    for sizes, least in (((1000,), 4.0), ((2000,), 4.0), ((5000,), 2.5)):
        yield at_least(run, f"against ot.emd, n = {sizes[0]}", of_size(cells, *sizes), least, run.peers(exact=True))
    most = run.threads[-1] if run.threads else 1
    gains = []
    for cell in (cell for cell in cells if cell.size >= 2000):
        one, all_ = (run.find(cell, run.ours, threads) for threads in (1, most))
        if one is not None and all_ is not None and most > 1 and one.outcome == all_.outcome == OK and one.wall and all_.wall:
            gains.append(one.wall / all_.wall)
    target = "all threads, from n = 2000 on: at least 1.6 times less wall time"
    measured = (
        f"smallest {min(gains):.2f}, geometric mean {statistics.geometric_mean(gains):.2f} with {most} threads" if gains else "-"
    )
    yield Verdict(target, measured, min(gains) >= 1.6 if gains else None)


def judge_extreme(run: Run) -> Iterator[Verdict]:
    cells = GROUPS["extreme"].cells
    yield convergence(run, cells)
    tried = [record for cell in cells if (record := run.find(cell, run.ours, 1)) is not None and record.error is not None]
    # The claim is made from a sweep, the judgement from the plan: at the tolerance they may differ by rounding.
    false = [r for r in tried if r.figures.get("status") == "SUCCESS" and (r.error or 0.0) > 1.1 * TOLERANCE]
    listed = "".join(f"; {r.cell.label} reg={r.cell.reg:.3g}: {r.error:.1e}" for r in false)
    yield Verdict("no success is claimed falsely", f"{len(false)} of {len(tried)}{listed}", not false if tried else None)


JUDGES: dict[str, Callable[[Run], Iterator[Verdict]]] = {
    "assignment": judge_assignment,
    "images": judge_images,
    "mixtures": judge_mixtures,
    "clouds": judge_clouds,
    "easy": judge_easy,
    "exact": judge_exact,
    "extreme": judge_extreme,
}
"""One function for each group of `GROUPS`."""
