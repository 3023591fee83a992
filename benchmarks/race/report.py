"""The measurements as Markdown: the environment, the targets, a table for each group, and what else is worth telling."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from benchmarks.race.cells import GROUPS, Cell
from benchmarks.race.criteria import Ratio, ratio, show, verdicts
from benchmarks.race.figures import Picture
from benchmarks.race.records import CRASHED, OK, SKIPPED, SLOW, WRONG, Record, Run

DEVIATION = 1e-6
"""Objectives that differ by more, relative to the range of the cost, belong to different problems."""


def render(run: Run, pictures: Iterable[Picture]) -> str:
    """The whole page, without a title of its own: it is made to be included."""
    lines = [*header(run), *summary(run)]
    for name in run.groups:
        lines += [*section(run, name)] if cells_of(run, name) else []
    lines += [*pictured(pictures), *notes(run)]
    return "\n".join(lines) + "\n"


def header(run: Run) -> Iterator[str]:
    known = run.environment
    settings = known["settings"]
    yield f"- machine: {known['machine']}"
    yield f"- date: {known['date']}; versions: " + ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    threads = " and ".join(str(threads) for threads in run.threads)
    yield f"- threads: {threads}; L1 error <= {settings['tolerance']:g}"
    yield f"- ours is {run.ours}, to the dense plan; to the potentials where a peer (mdot, OTT) hands over these"
    if settings["missing"]:
        yield f"- not installed: {', '.join(settings['missing'])}"
    yield ""


def span(setting: Iterable[float]) -> str:
    """A setting, or from where to where it went in several runs."""
    values = sorted(setting)
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


def summary(run: Run) -> Iterator[str]:
    """Every target, and whether it is met."""
    rows = [(name, verdict) for name in run.groups for verdict in verdicts(run, name)]
    if not rows:
        return
    yield from ("### Targets", "", "Ratio: CPU time of the best converging peer over ours to the same result, one thread.", "")
    yield from table_head(["group", "target", "measured", ""])
    for name, verdict in rows:
        yield table_row([name, verdict.target, verdict.measured, verdict.word])
    yield ""


def cells_of(run: Run, name: str) -> list[Cell]:
    """The cells of a group that were measured; what no group knows is custom."""
    measured = dict.fromkeys(record.cell for record in run.records)
    if name in GROUPS:  # a cell of two groups counts where its opponents ran
        peers = run.peers(exact=GROUPS[name].only_exact)
        mine = [cell for cell in GROUPS[name].cells if cell in measured]
        return [cell for cell in mine if not peers or any(run.find(cell, peer, min(run.threads)) for peer in peers)]
    known = {cell for other in run.groups if other in GROUPS for cell in GROUPS[other].cells}
    return [cell for cell in measured if cell not in known]


def section(run: Run, name: str) -> Iterator[str]:
    """One group: milliseconds of everyone, and the ratios."""
    cells = cells_of(run, name)
    exact = name in GROUPS and GROUPS[name].only_exact
    peers = run.peers(exact=exact)
    rivals = [peer for peer in peers if any(solved(run, cell, peer, threads) for cell in cells for threads in run.threads)]
    others = [peer for peer in peers if peer not in rivals and any(run.find(cell, peer, min(run.threads)) for cell in cells)]
    yield from (f"### {name.capitalize()}", "")
    if name in GROUPS:
        yield from (f"Target: {GROUPS[name].target}.", "")
    if others:
        yield from (f"Converged nowhere within the budget: {', '.join(others)}.", "")
    most = run.threads[-1]
    wall = most > 1 and any(run.find(cell, peer, most) for cell in cells for peer in peers)
    yield "CPU milliseconds with one thread" + (f"; on the right wall milliseconds with {most}" if wall else "") + "."
    yield conditions(run, cells)
    yield ""
    names = [*run.methods, *rivals]
    yield from table_head(
        ["problem", "reg", *names, "ratio", *(["ours, wall", "best peer, wall", "ratio, wall"] if wall else []), "error", "sweeps"]
    )
    for cell in cells:
        yield table_row(list(cell_fields(run, cell, names, peers, most if wall else 1)))
    yield ""


def conditions(run: Run, cells: list[Cell]) -> str:
    """Budget, turns and commit of ours in these cells."""
    records = [record for cell in cells if (record := run.find(cell, run.ours, min(run.threads))) is not None]
    defaults = run.environment["settings"] | {"commit": run.environment["commit"]}
    values = {name: {record.figures.get(name, defaults[name]) for record in records} for name in ("budget", "turns", "commit")}
    return f"Budget {span(values['budget'])} s, turns {span(values['turns'])}, commit {', '.join(sorted(values['commit']))}."


def cell_fields(run: Run, cell: Cell, names: list[str], peers: list[str], most: int) -> Iterator[str]:
    one = min(run.threads)
    ours = run.find(cell, run.ours, one)
    yield label(cell, ours)
    yield f"{cell.reg:.3g}"
    for name in names:
        yield milliseconds(run.find(cell, name, one), "cpu")
    yield ratio_field(ratio(run, cell, peers=peers, threads=one))
    if most > 1:
        found = ratio(run, cell, peers=peers, threads=most, clock="wall")
        yield milliseconds(run.find(cell, run.match(found.peer or "") if found else run.ours, most), "wall")
        best = run.find(cell, found.peer, most) if found and found.peer else None
        ran = any(run.find(cell, peer, most) for peer in peers)
        yield f"{milliseconds(best, 'wall')} ({found.peer})" if best and found else "x" if ran else "-"
        yield ratio_field(found)
    yield "-" if ours is None or ours.error is None else f"{ours.error:.0e}"
    yield "-" if ours is None else str(ours.figures.get("nsweep", "-"))


def label(cell: Cell, record: Record | None) -> str:
    """With the true number of points: grids round it."""
    size = record.n[0] if record is not None and record.n else cell.size
    return f"{cell.family} n={size}" + (f" seed={cell.seed}" if cell.seed else "")


def ratio_field(found: Ratio | None) -> str:
    return "-" if found is None else show(found)


def milliseconds(record: Record | None, clock: str) -> str:
    """The time, or how it failed: x with the error reached, x alone when it was ended, - when it did not run."""
    if record is None or record.outcome == SKIPPED:
        return "-"
    if record.outcome == OK:
        value = 1e3 * getattr(record, clock)
        return f"{value:.0f}" if value >= 1e3 else f"{value:.3g}"
    if record.outcome == CRASHED:
        return "failed"
    return "x" if record.error is None else f"x ({record.error:.0e})"


def solved(run: Run, cell: Cell, contestant: str, threads: int) -> bool:
    record = run.find(cell, contestant, threads)
    return record is not None and record.outcome == OK


def notes(run: Run) -> Iterator[str]:
    """How everyone failed, and whose answers differ."""
    yield from ("### Who failed, and how", "")
    yield "x (e): over the budget, or above 1e-09 when it stopped by itself; e is the error then, after up to 1.5 times the budget."
    yield "x alone: ended there. failed: an exception, a crash or the like. -: not run, after a failure in an easier cell or with"
    yield "one thread, or not asked to. A ratio with > is of a cell where no peer converged: the budget stands in for the best one."
    yield ""
    yield from table_head(["contestant", OK, SLOW, WRONG, CRASHED, SKIPPED])
    one = min(run.threads)
    for name in [*run.methods, *run.peers(exact=False), *run.peers(exact=True)]:
        outcomes = [record.outcome for record in run.records if record.contestant == name and record.threads == one]
        yield table_row([name, *(str(outcomes.count(word)) for word in (OK, SLOW, WRONG, CRASHED, SKIPPED))])
    yield ""
    different = list(deviations(run))
    yield f"Objectives that differ from ours by more than {DEVIATION:g} (the range of the cost is 1): " + (
        "; ".join(different) or "none."
    )


def deviations(run: Run) -> Iterator[str]:
    """Converged answers to another problem."""
    exact = run.peers(exact=True)
    for record in run.records:
        if record.outcome != OK or record.contestant in exact or record.contestant == run.ours:
            continue
        ours = run.find(record.cell, run.ours, record.threads)
        mine, theirs = (r.figures.get("objective") if r is not None else None for r in (ours, record))
        if mine is not None and theirs is not None and abs(mine - theirs) > DEVIATION:
            yield f"{record.contestant}, {record.cell.label} reg={record.cell.reg:.3g}: {theirs - mine:+.1e}"


def pictured(pictures: Iterable[Picture]) -> Iterator[str]:
    for picture in pictures:
        yield from (f"### {picture.title}", "", f"![{picture.title}]({picture.file})", "")
        if picture.rows:
            yield from table_head(list(picture.head))
            yield from (table_row(list(row)) for row in picture.rows)
            yield ""


def table_head(columns: list[str]) -> list[str]:
    return ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]


def table_row(fields: list[str]) -> str:
    return "| " + " | ".join(fields) + " |"
