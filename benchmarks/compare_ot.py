"""Race `otbilevel.solve_ot` against every installed peer at an L1 marginal error of 1e-9.

Where otbilevel and its peers are installed (the dependency group `race`, or ``make race``)::

    python benchmarks/compare_ot.py --quick                                      # some ten minutes
    python benchmarks/compare_ot.py                                              # everything: hours
    python benchmarks/compare_ot.py --group clouds                               # one group: build/race/clouds.json, among others
    python benchmarks/compare_ot.py --tables-from build/race/*.json --output docs/race   # page and pictures of several runs
    python benchmarks/compare_ot.py --families cloud-2d --sizes 1000 --regs 1e-2 1e-3 --peers POT

Rules of the race:

* Everyone gets the same dense cost in double precision. Before the clock starts, everyone may bring it into the form it wants
  (columns first, a tensor), compile, and calibrate. `benchmarks/race/peers.py` says how each one is called and why.
* The clock stops when a contestant has handed over its answer: the dense plan for POT, regot and geomloss; potentials, which
  are less work, for mdot-tnt and OTT, which return these. Ours runs twice, to ``result.plan`` and to ``result.potentials``, and
  is compared with each peer by what that hands over.
* Only the answer is judged, ours like theirs: NumPy computes the L1 error of both marginals of the plan handed over, or of the
  plan that the potentials define. It must not exceed 1e-9. The objectives are compared, too, and deviations reported: marginals
  alone prove little.
* A solve that takes longer than the budget counts as not converged ("x"). Who ran out of time in a cell sits out the harder
  ones ("-"): the same family at the same or smaller reg and (but for random assignment) the same or larger size. Who fails with
  one thread sits out the run with all of them.
* The first solve in a cell, and in a turn, is a warm-up, unless it is long. Then all take turns, and the median counts: CPU
  seconds of the process with one thread, wall seconds with all of them.
* The ratio is the time of the best converging peer over ours. Exact transport (``ot.emd``) is counted separately.
* Every library runs in a process of its own (`benchmarks/race/worker.py`), as thread counts are read once and a late solve must
  be ended.

The exit status is 1 when a method of otbilevel misses the tolerance.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys

if not __package__:  # started by its path: the package `benchmarks` is found beside it
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.race import figures, report
from benchmarks.race.cells import GROUPS, Group, grid
from benchmarks.race.driver import Driver, installed
from benchmarks.race.peers import Contestant, ours
from benchmarks.race.records import OK, Run, environment
from otbilevel.ot.methods import METHODS
from otbilevel.testing import FAMILIES

BUDGET, QUICK_BUDGET = 30.0, 3.0
TURNS, QUICK_TURNS = 3, 1


def main() -> int:
    arguments = parse_arguments()
    run = Run.load(arguments.tables_from) if arguments.tables_from else race(arguments)
    markdown = report.render(run, figures.draw(run, arguments.output))
    (arguments.output / "race.md").write_text(markdown, encoding="utf-8")
    print(f"\n{markdown}\nwritten to {arguments.output}", flush=True)
    return int(any(record.contestant in run.methods and record.outcome != OK for record in run.records))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", 1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--group", nargs="+", default=["all"], choices=[*GROUPS, "all"], metavar="GROUP", help=" ".join([*GROUPS, "all"])
    )
    parser.add_argument(
        "--quick", action="store_true", help="the smallest cells of a group, one seed, little time, one turn, one thread"
    )
    parser.add_argument(
        "--families", nargs="+", choices=list(FAMILIES), metavar="FAMILY", help="cells of your own instead of a group"
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[500, 1000], help="for --families")
    parser.add_argument("--regs", nargs="+", type=float, default=[1e-2, 1e-3], help="for --families")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="for --families")
    regularised = [row.name for row in METHODS if row.name != "exact"]
    parser.add_argument("--methods", nargs="+", default=["sns"], choices=regularised, metavar="METHOD", help="of solve_ot")
    parser.add_argument(
        "--peers", nargs="*", metavar="NAME", help="only peers whose names contain one of these; none after --peers"
    )
    parser.add_argument("--threads", nargs="+", type=int, help="one and all cores unless given; with --quick one")
    parser.add_argument(
        "--budget", type=float, help=f"seconds for a solve; {BUDGET:g}, with --quick {QUICK_BUDGET:g}, unless given"
    )
    parser.add_argument("--turns", type=int, help=f"{TURNS}, with --quick {QUICK_TURNS}, unless given")
    parser.add_argument("--tables-from", nargs="+", type=pathlib.Path, metavar="JSON", help="measure nothing, read these files")
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("build/race"), help="folder for results, tables and pictures"
    )
    arguments = parser.parse_args()
    quick = arguments.quick
    if arguments.threads is None:
        arguments.threads = [1] if quick else sorted({1, os.cpu_count() or 1})
    arguments.budget = arguments.budget or (QUICK_BUDGET if quick else BUDGET)
    arguments.turns = arguments.turns or (QUICK_TURNS if quick else TURNS)
    arguments.output.mkdir(parents=True, exist_ok=True)
    return arguments


def race(arguments: argparse.Namespace) -> Run:
    """Measure; results are saved after every cell."""
    groups = choose_groups(arguments)
    peers, missing = installed()
    peers = [peer for peer in peers if wanted(peer, arguments.peers)]
    mine = [contestant for method in arguments.methods for contestant in ours(method)]
    settings = {"budget": arguments.budget, "turns": arguments.turns, "missing": missing}
    run = Run(environment(settings), [group.name for group in groups], [contestant.name for contestant in mine])
    path = arguments.output / ("-".join(run.groups if len(run.groups) < len(GROUPS) else ["all"]) + ".json")
    if missing:
        print("not installed:", ", ".join(missing))

    def tell(line: str) -> None:
        print(line, flush=True)

    driver = Driver(run, [*mine, *peers], arguments.budget, arguments.turns, tell, keep=lambda: run.save(path))
    for threads in sorted(arguments.threads):
        driver.race(groups, threads)
    return run


def choose_groups(arguments: argparse.Namespace) -> list[Group]:
    if arguments.families:
        cells = grid(arguments.families, arguments.sizes, arguments.regs, arguments.seeds)
        return [Group("custom", "cells chosen by hand", cells)]
    groups = [group for group in GROUPS.values() if group.name in arguments.group or "all" in arguments.group]
    return [group.quick() for group in groups] if arguments.quick else groups


def wanted(peer: Contestant, names: list[str] | None) -> bool:
    return names is None or any(name.lower() in peer.name.lower() for name in names)


if __name__ == "__main__":
    sys.exit(main())
