"""What a second thread saves: the wall time of `solve_ot` with one thread and with more, turn by turn.

    python benchmarks/threads.py                          # clouds at reg 1e-3; the table of docs/benchmarks.md
    python benchmarks/threads.py --threads 4 --sizes 8000

Each has a process of its own, and their turns alternate: a machine that others use changes its speed within minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import statistics
import sys

if not __package__:  # started by its path: the package `benchmarks` is found beside it
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.race.cells import Cell, grid
from benchmarks.race.driver import PATIENCE, Worker
from benchmarks.race.peers import TOLERANCE

FAMILIES, SIZES, REGS = ("cloud-2d", "cloud-3d", "cloud-10d"), (1000, 2000, 5000), (1e-3,)
SOLVES = 3
"""In a turn, after one that warms up; the fastest counts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--regs", nargs="+", type=float, default=REGS)
    parser.add_argument("--turns", type=int, default=8)
    arguments = parser.parse_args()
    workers = [Worker("otbilevel", threads) for threads in (1, arguments.threads)]
    print(f"| problem | reg | 1 thread, ms | {arguments.threads} threads, ms | ratio |")
    print("| :--- | ---: | ---: | ---: | ---: |")
    try:
        for cell in grid(arguments.families, arguments.sizes, arguments.regs):
            print(line(cell, workers, arguments.turns), flush=True)
    finally:
        for worker in workers:
            worker.stop()


def line(cell: Cell, workers: list[Worker], turns: int) -> str:
    """A row of the table: medians over the turns."""
    pairs = [[turn(cell, worker) for worker in workers] for _ in range(turns)]
    one, several = (1e3 * statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    ratio = statistics.median(first / second for first, second in pairs)
    return f"| {cell.family} n={cell.size} | {cell.reg:g} | {one:.0f} | {several:.0f} | {ratio:.2f} |"


def turn(cell: Cell, worker: Worker) -> float:
    """The least wall time of some solves, all of which must reach the race's tolerance."""
    worker.ask(PATIENCE, do="prepare", cell=dataclasses.asdict(cell), contestant="otbilevel sns", budget=PATIENCE)
    answers = [worker.ask(PATIENCE, do="solve", judge=False) for _ in range(1 + SOLVES)]
    worst = max(answer["error"] for answer in answers)
    if worst > TOLERANCE:
        msg = f"{cell.label}: error {worst:.1e}"
        raise SystemExit(msg)
    return min(answer["wall"] for answer in answers[1:])


if __name__ == "__main__":
    main()
