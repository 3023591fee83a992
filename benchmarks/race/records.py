"""Measurements, and the file they are kept in."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import otbilevel
from benchmarks.race.cells import Cell
from benchmarks.race.peers import PEERS, TO_POTENTIALS, TOLERANCE

OK, SLOW, WRONG, CRASHED, SKIPPED = "ok", "over budget", "not converged", "failed", "not run"
"""How it went; only OK counts as solved. SKIPPED: it ran out of the budget in an easier cell, or failed with one thread."""


@dataclass
class Record:
    """What came of one contestant in one cell with one number of threads.

    Attributes
    ----------
    cell, contestant, threads
        Who, where, how.
    outcome : str
        One of the words above.
    n : list of int
        Shape of the problem.
    cpu, wall : float or None
        Medians of seconds.
    times : list of (cpu, wall)
        What they are the medians of.
    error : float or None
        L1 error of both marginals, the largest of all solves.
    figures : dict
        What the contestant says, and `objective`, computed from its plan.
    """

    cell: Cell
    contestant: str
    threads: int
    outcome: str
    n: list[int] = field(default_factory=list)
    cpu: float | None = None
    wall: float | None = None
    times: list[tuple[float, float]] = field(default_factory=list)
    error: float | None = None
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """A run of the race, or several of them together.

    Attributes
    ----------
    environment : dict
        Machine, date, versions and settings; of several runs, the last one's.
    groups : list of str
        The names of the groups raced on.
    methods : list of str
        Contestants of this library; the first one is what "ours" means, the second one the same to the potentials.
    records : list of Record
        The measurements.
    """

    environment: dict[str, Any]
    groups: list[str]
    methods: list[str]
    records: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._by_key = {(r.cell, r.contestant, r.threads): r for r in self.records}

    def add(self, record: Record) -> None:
        """Take in a record."""
        self.records.append(record)
        self._by_key[record.cell, record.contestant, record.threads] = record

    def find(self, cell: Cell, contestant: str, threads: int) -> Record | None:
        """The record, if there is one."""
        return self._by_key.get((cell, contestant, threads))

    @property
    def ours(self) -> str:
        """The contestant that the targets are about."""
        return self.methods[0]

    def match(self, peer: str) -> str:
        """Which of ours a peer is compared with: the one that hands over the same."""
        potentials = next((p.potentials for p in PEERS if p.name == peer), False)
        return self.ours + TO_POTENTIALS if potentials else self.ours

    @property
    def to_the_plan(self) -> list[str]:
        """Contestants of this library that hand over the dense plan."""
        return [name for name in self.methods if not name.endswith(TO_POTENTIALS)]

    @property
    def threads(self) -> list[int]:
        """The numbers of threads, ascending."""
        return sorted({record.threads for record in self.records})

    def peers(self, *, exact: bool) -> list[str]:
        """Contestants other than this library's, in the table's order, as far as they ran."""
        present = {record.contestant for record in self.records}
        return [peer.name for peer in PEERS if peer.exact == exact and peer.name in present]

    def save(self, path: pathlib.Path) -> None:
        """Write JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, paths: Iterable[pathlib.Path]) -> Run:
        """Read one or more files. Where two measured the same, the later file counts. Settings become lists.

        Budget, turns and commit, which may differ between files, are kept with each record's figures.
        """
        merged: dict[tuple[Cell, str, int], Record] = {}
        groups: dict[str, None] = {}
        settings: dict[str, list[float]] = {"budget": [], "turns": []}
        data = None
        for path in paths:
            data = json.loads(path.read_text(encoding="utf-8"))
            groups |= dict.fromkeys(data["groups"])
            for name, values in settings.items():
                values.append(data["environment"]["settings"][name])
            own = {name: data["environment"]["settings"][name] for name in settings} | {"commit": data["environment"]["commit"]}
            for entry in data.pop("records"):
                times = [(cpu, wall) for cpu, wall in entry["times"]]
                figures = own | entry["figures"]
                record = Record(**entry | {"cell": Cell(**entry["cell"]), "times": times, "figures": figures})
                merged[record.cell, record.contestant, record.threads] = record
        if data is None:
            msg = "there is no file to read"
            raise ValueError(msg)
        data["environment"]["settings"] |= {name: sorted(set(values)) for name, values in settings.items()}
        return cls(**data | {"groups": list(groups), "records": list(merged.values())})


def environment(settings: dict[str, Any]) -> dict[str, Any]:
    """Machine, date, versions and settings."""
    libraries = ("numpy", "scipy", "numba", "torch", "jax", *dict.fromkeys(peer.library for peer in PEERS))
    versions = {"otbilevel": otbilevel.__version__}
    for name in libraries:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "versions": versions,
        "commit": commit(),
        "settings": settings | {"tolerance": TOLERANCE},
    }


def commit() -> str:
    """The commit of this checkout, where it is one."""
    root = pathlib.Path(__file__).parents[2]
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def processor() -> str:
    """The processor's name, where Linux tells it."""
    info = pathlib.Path("/proc/cpuinfo")
    names = [line for line in info.read_text(encoding="utf-8").splitlines() if "model name" in line] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()
