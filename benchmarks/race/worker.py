"""The process in which the contestants of one library solve: ``python -m benchmarks.race.worker LIBRARY``, told by lines of JSON.

A process of its own, because thread counts are read when a library loads, because a solve that exceeds its budget can only be ended
from outside, and because CPU time is then that of one contestant, all its threads included.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
import warnings
from typing import Any, TextIO

import numpy as np

from benchmarks.race.cells import Cell
from benchmarks.race.peers import PEERS, TO_POTENTIALS, Answer, Contestant, Solve, marginal_error, ours
from otbilevel.testing import FAMILIES, TransportProblem

WARM_UP = (Cell("assignment", 60, 0, 1e-2), Cell("assignment", 300, 0, 1e-3), Cell("cloud-2d", 300, 0, 1e-4))
"""Solved once by ours when the process starts: compiles the kernels of every path or reads them from numba's cache."""
USES_TORCH = ("mdot-tnt", "geomloss")


def main() -> int:
    library = sys.argv[1]
    # What a library prints must not be taken for an answer: standard output becomes standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")  # a failure goes into the table
    np.seterr(all="ignore")
    if library in USES_TORCH:
        set_torch_threads()
    server = Server(answers)
    if library == "otbilevel":
        server.warm_up()
    server.say(event="started")
    for line in sys.stdin:
        request = json.loads(line)
        try:
            server.act(request)
        except Exception as error:  # a peer may raise anything; it counts as a failure
            traceback.print_exc()
            server.say(event="failed", reason=f"{type(error).__name__}: {error}"[:200])
    return 0


def set_torch_threads() -> None:
    """PyTorch takes OMP_NUM_THREADS as a wish only."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


class Server:
    """Holds the problem and the prepared contestant between requests."""

    def __init__(self, answers: TextIO) -> None:
        self.answers = answers
        self.problem_key: tuple[str, int, int] | None = None
        self.problem: TransportProblem | None = None
        self.prepared: dict[tuple[str, float], Solve] = {}

    def say(self, **answer: Any) -> None:
        """Write one line."""
        self.answers.write(json.dumps(answer) + "\n")
        self.answers.flush()

    def warm_up(self) -> None:
        """See `WARM_UP`."""
        for cell in WARM_UP:
            problem = FAMILIES[cell.family](cell.size, cell.seed)
            for contestant in ours("sns"):
                contestant.prepare(problem, cell.reg, 1e3)()

    def act(self, request: dict[str, Any]) -> None:
        """Do what a request asks: "prepare" a contestant, let the one prepared last "solve" once, or "forget" the problem."""
        if request["do"] == "prepare":
            cell = Cell(**request["cell"])
            problem = self.set_problem(cell)
            contestant = find(request["contestant"])
            self.reg, self.key = 0.0 if contestant.exact else cell.reg, (contestant.name, cell.reg)
            if self.key not in self.prepared:
                self.prepared[self.key] = contestant.prepare(problem, cell.reg, request["budget"])
            self.say(event="ready", n=list(problem.C.shape))
        elif request["do"] == "solve":
            self.run_clock(judge=request["judge"])
        else:
            self.problem_key = self.problem = None
            self.prepared.clear()

    def set_problem(self, cell: Cell) -> TransportProblem:
        """The problem of a cell, made unless it is there."""
        key = (cell.family, cell.size, cell.seed)
        if self.problem is None or key != self.problem_key:
            self.prepared.clear()
            self.problem_key, self.problem = key, FAMILIES[cell.family](cell.size, cell.seed)
        return self.problem

    def run_clock(self, *, judge: bool) -> None:
        """Solve once. Only the call of `solve` is timed."""
        assert self.problem is not None
        solve = self.prepared[self.key]
        wall, cpu = time.perf_counter(), time.process_time()
        answer: Answer = solve()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        plan = answer.plan()
        figures = dict(answer.figures)
        if judge:
            figures["objective"] = objective(plan, self.problem, self.reg)
        self.say(event="solved", wall=wall, cpu=cpu, error=marginal_error(plan, self.problem), figures=figures)


def find(name: str) -> Contestant:
    """The contestant of a name."""
    for peer in PEERS:
        if peer.name == name:
            return peer
    library, method = name.removesuffix(TO_POTENTIALS).split(" ", 1)
    assert library == "otbilevel"
    return next(contestant for contestant in ours(method) if contestant.name == name)


def objective(plan: np.ndarray, problem: TransportProblem, reg: float) -> float:
    """<P, C> + reg KL(P | a b'), with which the answers to one cell are compared: small marginal errors alone prove little."""
    linear = float(np.vdot(plan, problem.C))
    if reg == 0.0:
        return linear
    with np.errstate(all="ignore"):
        logs = np.log(plan, out=np.zeros_like(plan), where=plan > 0.0)
    logs -= np.log(problem.a)[:, None] + np.log(problem.b)
    return linear + reg * float(np.vdot(plan, logs) - plan.sum() + 1.0)


if __name__ == "__main__":
    sys.exit(main())
