"""Who solves what, how often, and when it is enough."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import selectors
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.race.cells import Cell, Group
from benchmarks.race.peers import PEERS, TOLERANCE, Contestant
from benchmarks.race.records import CRASHED, OK, SKIPPED, SLOW, WRONG, Record, Run

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 180.0
"""Seconds for what is not timed: loading, compiling, making problems and calibrating."""
GRACE = 1.5
"""A solve is ended at this multiple of its budget, in wall time: who is only a little late can still show the error reached."""
JUDGING = 5.0
"""Seconds that the judgement of a large plan may take in addition."""
LONG_ENOUGH = 3.0
"""Seconds from which on a first solve is no mere warm-up, and after which a cell need not be repeated."""
ENOUGH_SEEDS = 2
"""Who ran out of time for so many seeds, and for no other one converged, need not try the next."""
BURST = 0.1, 5
"""Solves in a turn, after one that warms up: until these many seconds are over, but not more than that many."""


class Lost(Exception):  # noqa: N818 -- lost patience, not an error
    """The worker did not answer in time, or died."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.late = reason == SLOW


class Worker:
    """The process of a library; started when needed, and again after it was ended."""

    def __init__(self, library: str, threads: int) -> None:
        self.command = [sys.executable, "-m", "benchmarks.race.worker", library]
        self.environment = thread_environment(threads)
        self.process: subprocess.Popen[str] | None = None

    def ask(self, patience: float, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the answer."""
        process = self.process or self.start()
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        return self.listen(process, patience)

    def start(self) -> subprocess.Popen[str]:
        """Start the process and wait until it is warm."""
        self.process = process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        self.listen(process, PATIENCE)
        return process

    def listen(self, process: subprocess.Popen[str], patience: float) -> dict[str, Any]:
        """The next answer. The worker writes whole lines, one for each request."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(patience):
                self.stop()
                raise Lost(SLOW)
        line = process.stdout.readline()
        if not line:
            self.stop()
            raise Lost(CRASHED)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def forget(self) -> None:
        """Let the process drop its problem."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.write(json.dumps({"do": "forget"}) + "\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        """End the process, which may be busy."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def thread_environment(threads: int) -> dict[str, str]:
    """Libraries read these once, when they load. NPROC is XLA's."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OTBILEVEL_NUM_THREADS", "NPROC")
    kept = {name: value for name, value in os.environ.items() if name not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    pot = {f"POT_BACKEND_DISABLE_{name}": "1" for name in ("PYTORCH", "JAX", "CUPY", "TENSORFLOW")}
    return kept | dict.fromkeys(names, str(threads)) | pot | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}


def installed() -> tuple[list[Contestant], list[str]]:
    """Peers that can be imported, and the names of those that cannot."""
    found = {peer.name: importlib.util.find_spec(peer.module) is not None for peer in PEERS}
    return [peer for peer in PEERS if found[peer.name]], [name for name, present in found.items() if not present]


@dataclasses.dataclass
class Driver:
    """Runs groups of cells.

    Attributes
    ----------
    run : Run
        Where the records go.
    contestants : list of Contestant
        Everyone who takes part, ours first.
    budget : float
        Seconds of wall time for a solve.
    turns : int
        How often everyone comes round in a cell.
    tell : callable
        Takes a line about what has happened.
    keep : callable
        Called after each cell, to save what there is.
    """

    run: Run
    contestants: list[Contestant]
    budget: float
    turns: int
    tell: Callable[[str], None]
    keep: Callable[[], None]

    def race(self, groups: Iterable[Group], threads: int) -> None:
        """Race on all cells of all groups; a cell that two groups share is measured once."""
        libraries = dict.fromkeys(contestant.library for contestant in self.contestants)
        self.workers = {library: Worker(library, threads) for library in libraries}
        self.threads = threads
        try:
            for group in groups:
                self.tell(f"## {group.name}, {threads} thread{'s' if threads > 1 else ''}: {group.target}")
                for cell in group.cells:
                    self.race_on(cell, [c for c in self.contestants if self.takes_part(c, group)])
                    self.keep()
        finally:
            for worker in self.workers.values():
                worker.stop()

    def takes_part(self, contestant: Contestant, group: Group) -> bool:
        if group.only_exact and contestant.potentials:
            return False
        return contestant.library == "otbilevel" or contestant.exact == group.only_exact

    def race_on(self, cell: Cell, contestants: list[Contestant]) -> None:
        """First everyone solves once, and is judged; then those who made it take turns."""
        running: list[tuple[Contestant, Record]] = []
        for contestant in contestants:
            if self.run.find(cell, contestant.name, self.threads) is not None:
                continue
            record = self.enter(cell, contestant)
            self.run.add(record)
            if record.outcome == OK:
                running.append((contestant, record))
        for _ in range(self.turns):
            for contestant, record in running:
                self.take_turn(cell, contestant, record)
        for worker in self.workers.values():
            worker.forget()
        for contestant in contestants:
            record = self.run.find(cell, contestant.name, self.threads)
            if record is not None:
                self.tell(describe(record))

    def enter(self, cell: Cell, contestant: Contestant) -> Record:
        """The record after the first solve."""
        record = Record(cell, contestant.name, self.threads, SKIPPED)
        if self.hopeless(cell, contestant):
            return record
        try:
            self.prepare(cell, contestant, record)
            seconds = self.solve(contestant, record, judge=True)
        except Lost as lost:
            record.outcome = SLOW if lost.late else CRASHED
            return record
        if seconds > self.budget:
            record.outcome = SLOW
        elif record.error is None or not record.error <= TOLERANCE:
            record.outcome = WRONG
        else:
            record.outcome = OK
        if seconds < LONG_ENOUGH:
            record.times.clear()  # it was a warm-up
        settle(record)
        return record

    def hopeless(self, cell: Cell, contestant: Contestant) -> bool:
        """Whether it failed here with one thread, or out of time in an easier cell or for two other seeds. Ours always runs."""
        if contestant.library == "otbilevel":
            return False
        mine = [r for r in self.run.records if r.contestant == contestant.name]
        if any(r.cell == cell and r.threads < self.threads and r.outcome != OK for r in mine):
            return True
        alike: list[bool] = []
        easier: dict[tuple[int, float], list[bool]] = {}
        for r in mine:
            if r.threads != self.threads or r.outcome == SKIPPED:
                continue
            late = r.outcome == SLOW or (r.outcome == WRONG and used_up(r, self.budget))
            if cell.harder_than(r.cell):
                easier.setdefault((r.cell.size, r.cell.reg), []).append(late)
            elif (r.cell.family, r.cell.size, r.cell.reg) == (cell.family, cell.size, cell.reg):
                alike.append(late)
        return any(all(late) for late in easier.values()) or (len(alike) >= ENOUGH_SEEDS and all(alike))

    def take_turn(self, cell: Cell, contestant: Contestant, record: Record) -> None:
        """Solve a few times; those who are slow need not come again."""
        if record.outcome != OK or sum(wall for _, wall in record.times) > LONG_ENOUGH:
            return
        try:
            self.prepare(cell, contestant, record)
            before = len(record.times)
            self.solve(contestant, record, judge=False)
            last = record.times[-1][1]
            if last < BURST[0]:  # others have had the caches meanwhile: short solves are repeated, without the first one
                del record.times[before:]
                for _ in range(min(BURST[1], math.ceil(BURST[0] / last))):
                    self.solve(contestant, record, judge=False)
        except Lost:
            record.outcome = CRASHED
        if record.error is not None and record.error > TOLERANCE:
            record.outcome = WRONG
        settle(record)

    def prepare(self, cell: Cell, contestant: Contestant, record: Record) -> None:
        answer = self.workers[contestant.library].ask(
            PATIENCE + 4.0 * self.budget,
            do="prepare",
            cell=dataclasses.asdict(cell),
            contestant=contestant.name,
            budget=self.budget,
        )
        if answer["event"] != "ready":
            record.figures["reason"] = answer["reason"]
            raise Lost(CRASHED)
        record.n = answer["n"]

    def solve(self, contestant: Contestant, record: Record, *, judge: bool) -> float:
        """One solve, added to the record. Returns the seconds that count.

        These are CPU seconds with one thread, and wall seconds with many (whichever is less), so that other work on the machine
        puts no one over the budget.
        """
        answer = self.workers[contestant.library].ask(GRACE * self.budget + JUDGING, do="solve", judge=judge)
        if answer["event"] != "solved":
            record.figures["reason"] = answer["reason"]
            raise Lost(CRASHED)
        record.times.append((answer["cpu"], answer["wall"]))
        record.error = max(record.error or 0.0, answer["error"])
        if judge:
            record.figures |= answer["figures"]
        record.wall = record.wall or answer["wall"]
        return min(float(answer["cpu"]), float(answer["wall"]))


def used_up(record: Record, budget: float) -> bool:
    """Whether more time might have helped: limits of iterations are estimated, and may fall short of the budget."""
    return bool(record.figures.get("out_of_budget")) or (record.wall or 0.0) > 0.5 * budget


def settle(record: Record) -> None:
    """Medians."""
    if record.times:
        record.cpu = statistics.median(cpu for cpu, _ in record.times)
        record.wall = statistics.median(wall for _, wall in record.times)


def describe(record: Record) -> str:
    """A line for the terminal."""
    time = "" if record.cpu is None or record.wall is None else f"cpu {1e3 * record.cpu:.4g} ms, wall {1e3 * record.wall:.4g} ms"
    error = "" if record.error is None else f", error {record.error:.1e}"
    reason = record.figures.get("reason", "")
    return f"{record.cell.label} reg={record.cell.reg:.3g} {record.contestant}: {record.outcome} {time}{error} {reason}".rstrip()
