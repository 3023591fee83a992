"""Race `otbilevel.solve_ot` against POT's Sinkhorn solvers, side by side in one process, at an L1 marginal error of 1e-9.

Run it where otbilevel, POT and scikit-learn are installed::

    python benchmarks/compare_pot.py --quick                            # a minute or two
    python benchmarks/compare_pot.py --output benchmarks/results.md     # the whole table
    python benchmarks/compare_pot.py --families cloud-2d image-w1 --sizes 1000 --regs 1e-2 1e-3 --paper without

Rules of the race:

* Everyone gets the same arrays in double precision and must hand over the dense n x m plan; the time includes that.
* The plan alone is judged: the L1 error of both marginals, computed here with NumPy, not what a solver reports about itself.
* POT gets its best settings. It tests the L2 norm of one marginal, so its threshold is 1e-9 / sqrt(n), which implies the L1 error.
  "sinkhorn" runs first; where that fails, "sinkhorn_stabilized" and then "sinkhorn_log". Each may do as many iterations as fit
  into the time budget of a solve, estimated from a short run.
* After a warm-up the contestants take turns, and the median counts.
* <P, C> must lie within `gap_exact` of the exact optimum, which POT's network simplex computes.

The exit status is 1 when a solver of otbilevel misses the tolerance or its certificate.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import math
import os
import pathlib
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

import otbilevel
from otbilevel.ot.methods import METHODS
from otbilevel.testing import FAMILIES, TransportProblem

TOLERANCE = 1e-9
SIZES, QUICK_SIZES = (500, 1000, 2000), (500,)
REGS, QUICK_REGS = (1e-1, 1e-2, 1e-3, 2e-4), (1e-1, 1e-3)
BUDGET, QUICK_BUDGET = 20.0, 2.0
REPETITIONS, QUICK_REPETITIONS = 5, 3
PAPER_REG = 1.0 / 1200.0
"""The regularisation of the experiments in arXiv:2401.12253."""
LONG_ENOUGH = 5.0
"""Seconds after which a contestant need not repeat a cell any more."""
MAX_ITERATIONS = 1_000_000

POT_METHODS = {
    "sinkhorn": {},
    # With the default tau = 1e3 it absorbs in every iteration from n = 1000 on, and returns a plan of mass 1 / n^2.
    "sinkhorn_stabilized": {"tau": 1e30},
    "sinkhorn_log": {},
}
"""POT's solvers in the order in which they are tried, with their settings."""


@dataclass(frozen=True)
class Cell:
    """One line of the table."""

    family: str
    size: int
    seed: int
    reg: float


@dataclass(frozen=True)
class Contestant:
    """Something that solves the problem of a cell: `run` returns the dense plan."""

    run: Callable[[], np.ndarray]
    error: float
    label: str = ""

    @property
    def valid(self) -> bool:
        """Whether the plan of the warm-up met the tolerance."""
        return self.error <= TOLERANCE


@dataclass
class Outcome:
    """What was measured in a cell: everything by contestant, "pot" among them."""

    cell: Cell
    name: str
    contestants: dict[str, Contestant]
    seconds: dict[str, float]
    gap_exact: float
    certified: bool
    exact_seconds: float

    def ratio(self, method: str) -> float | None:
        """How many times faster than POT `method` is; None unless both met the tolerance."""
        both = self.contestants["pot"].valid and self.contestants[method].valid
        return self.seconds["pot"] / self.seconds[method] if both else None


@dataclass
class Report:
    """Prints lines as they come, and keeps them for the file."""

    lines: list[str] = field(default_factory=list)

    def add(self, *lines: str) -> None:
        self.lines += lines
        print(*lines, sep="\n", flush=True)


def main() -> int:
    arguments = parse_arguments()
    settle_environment(arguments.threads)
    methods = tuple(arguments.methods)
    report, outcomes = Report(), []
    report.add(*header(arguments), *table_head(methods))
    for problem, exact, exact_seconds, cells in problems(choose_cells(arguments)):
        for cell in cells:
            outcome = measure(cell, problem, exact, exact_seconds, methods, arguments)
            report.add(table_row(outcome, methods))
            outcomes.append(outcome)
    report.add(*summary(outcomes, methods, arguments.budget))
    if arguments.output:
        arguments.output.write_text("\n".join(report.lines) + "\n", encoding="utf-8")
    failed = any(not o.certified or not all(o.contestants[m].valid for m in methods) for o in outcomes)
    return int(failed)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="size 500, two regularisations, fewer repetitions, less time for POT")
    regularised = [row.name for row in METHODS if row.name != "exact"]
    parser.add_argument("--methods", nargs="+", default=["sns", "auto"], choices=regularised, metavar="METHOD", help="of solve_ot")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--sizes", nargs="+", type=int)
    parser.add_argument("--regs", nargs="+", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--paper", choices=("with", "only", "without"), help="the cells of arXiv:2401.12253")
    parser.add_argument("--budget", type=float, help="seconds that each of POT's solvers may take")
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=pathlib.Path, help="write the table to this file, too")
    arguments = parser.parse_args()
    defaults = {
        "sizes": (SIZES, QUICK_SIZES),
        "regs": (REGS, QUICK_REGS),
        "budget": (BUDGET, QUICK_BUDGET),
        "repetitions": (REPETITIONS, QUICK_REPETITIONS),
        "paper": ("with", "without"),
    }
    for name, (full, quick) in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, quick if arguments.quick else full)
    return arguments


def settle_environment(threads: int) -> None:
    """Start anew if the environment is not the one wanted: NumPy, imported by now, reads it only once."""
    wanted: dict[str, str | None] = {
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OTBILEVEL_NUM_THREADS"), str(threads)),
        **dict.fromkeys(("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")),  # must not be set
        **dict.fromkeys((f"POT_BACKEND_DISABLE_{name}" for name in ("PYTORCH", "JAX", "CUPY", "TENSORFLOW")), "1"),
    }
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    for name, value in wanted.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def choose_cells(arguments: argparse.Namespace) -> list[Cell]:
    cells = []
    if arguments.paper != "only":
        cells += [
            Cell(family, size, arguments.seed, reg)
            for family in arguments.families
            for size in arguments.sizes
            for reg in arguments.regs
        ]
    if arguments.paper != "without":
        paper = [Cell("assignment", 500, seed, PAPER_REG) for seed in range(10)]
        paper += [Cell(family, 784, 0, PAPER_REG) for family in ("image-w2", "image-w1")]
        cells += [cell for cell in paper if cell.family in arguments.families]
    return cells


def problems(cells: list[Cell]) -> Iterator[tuple[TransportProblem, float, float, list[Cell]]]:
    """Every problem once, with its exact optimum, the seconds that this took, and its cells."""
    groups: dict[tuple[str, int, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.family, cell.size, cell.seed), []).append(cell)
    for (family, size, seed), group in groups.items():
        problem = FAMILIES[family](size, seed)
        yield problem, *exact_optimum(problem), group


def exact_optimum(problem: TransportProblem) -> tuple[float, float]:
    import ot  # noqa: PLC0415 -- only now is the environment settled

    start = time.perf_counter()
    value, log = ot.emd2(problem.a, problem.b, problem.C, numItermax=100_000_000, log=True)
    if log["warning"]:
        msg = f"the exact optimum of {problem.name} is not known: {log['warning']}"
        raise RuntimeError(msg)
    return float(value), time.perf_counter() - start


def measure(
    cell: Cell,
    problem: TransportProblem,
    exact: float,
    exact_seconds: float,
    methods: Iterable[str],
    arguments: argparse.Namespace,
) -> Outcome:
    """Warm everyone up, check the plans, then race."""
    contestants, certified, gap_exact = {}, True, 0.0
    for method in methods:
        contestants[method], certificate, holds = enter_ours(problem, cell.reg, method, exact)
        certified &= holds
        gap_exact = max(gap_exact, certificate)
    contestants["pot"] = enter_pot(problem, cell.reg, arguments.budget)
    runs = {name: contestant.run for name, contestant in contestants.items() if contestant.valid or name != "pot"}
    seconds = race(runs, arguments.repetitions)
    return Outcome(cell, problem.name, contestants, seconds, gap_exact, certified, exact_seconds)


def marginal_error(plan: np.ndarray, problem: TransportProblem) -> float:
    """||P 1 - a||_1 + ||P' 1 - b||_1; infinite when it is not a number."""
    error = float(np.abs(plan.sum(axis=1) - problem.a).sum() + np.abs(plan.sum(axis=0) - problem.b).sum())
    return error if math.isfinite(error) else math.inf


def enter_ours(problem: TransportProblem, reg: float, method: str, exact: float) -> tuple[Contestant, float, bool]:
    """The contestant, its `gap_exact`, and whether that certificate holds."""

    def run() -> np.ndarray:
        plan: np.ndarray = solve().plan
        return plan

    def solve() -> otbilevel.OTResult:
        return otbilevel.solve_ot(problem.a, problem.b, problem.C, reg=reg, method=method, tol=TOLERANCE)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", otbilevel.ConvergenceWarning)  # a failure goes into the table
        result = solve()
    error = marginal_error(result.plan, problem)
    label = result.method if result.success else f"{result.method}, {result.status.name}"
    excess = float(np.vdot(result.plan, problem.C)) - exact
    # The certificate is about the plan with exact marginals, which differs from P by at most twice the error.
    slack = 2.0 * error * float(problem.C.max()) + 1e-12
    return Contestant(run, error, label), result.gap_exact, -slack <= excess <= result.gap_exact + slack


def enter_pot(problem: TransportProblem, reg: float, budget: float) -> Contestant:
    """POT's first solver that meets the tolerance, else its best attempt."""
    attempts = []
    for method in POT_METHODS:
        limit = affordable_iterations(problem, reg, method, budget)
        run = partial(run_pot, problem, reg, method, limit)
        attempts.append(Contestant(run, marginal_error(run(), problem), method))
        if attempts[-1].valid:
            break
    return min(attempts, key=lambda attempt: attempt.error)


def run_pot(problem: TransportProblem, reg: float, method: str, limit: int) -> np.ndarray:
    import ot  # noqa: PLC0415 -- only now is the environment settled

    threshold = TOLERANCE / math.sqrt(len(problem.b))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # a failure goes into the table
        plan: np.ndarray = ot.sinkhorn(
            problem.a, problem.b, problem.C, reg, method=method, numItermax=limit, stopThr=threshold, **POT_METHODS[method]
        )
    return plan


def affordable_iterations(problem: TransportProblem, reg: float, method: str, budget: float) -> int:
    """How many iterations fit into the budget. A run that breaks down early is cheap, however many it is given."""
    few, more = 1, 41
    seconds = race({str(limit): partial(run_pot, problem, reg, method, limit) for limit in (few, more)}, repetitions=2)
    each = max(seconds[str(more)] - seconds[str(few)], 1e-9) / (more - few)
    return max(more, int(min(MAX_ITERATIONS, budget / each)))


def race(runs: dict[str, Callable[[], np.ndarray]], repetitions: int) -> dict[str, float]:
    """Median seconds of each run; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            if sum(times[name]) < LONG_ENOUGH:
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def header(arguments: argparse.Namespace) -> list[str]:
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "scipy", "numba", "POT")}
    listed = ", ".join(f"{name} {version}" for name, version in {"otbilevel": otbilevel.__version__, **versions}.items())
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return [
        f"# solve_ot and POT at a marginal error of {TOLERANCE:g}",
        "",
        f"- machine: {processor()}, {os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}",
        f"- threads: {arguments.threads}; repetitions: {arguments.repetitions}; budget for POT: {arguments.budget:g} s a solver",
        f"- date: {date}; versions: {listed}",
        "",
        "Times in milliseconds, with the dense plan. x: not converged, with the error reached. Errors are of the returned plan.",
        "",
    ]


def processor() -> str:
    """The processor's name, where Linux tells it."""
    info = pathlib.Path("/proc/cpuinfo")
    names = [line for line in info.read_text(encoding="utf-8").splitlines() if "model name" in line] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()


def table_head(methods: tuple[str, ...]) -> list[str]:
    columns = ["problem", "reg", *methods, "POT", *(f"POT / {method}" for method in methods)]
    columns += [*(f"error {method}" for method in methods), "error POT", "gap_exact", "ok", "exact"]
    return ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]


def table_row(outcome: Outcome, methods: tuple[str, ...]) -> str:
    ratios = [outcome.ratio(method) for method in methods]
    names = (*methods, "pot")
    fields = [outcome.name, f"{outcome.cell.reg:.3g}", *(timing(outcome, name) for name in names)]
    fields += ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    fields += [f"{outcome.contestants[name].error:.0e}" for name in names]
    fields += [f"{outcome.gap_exact:.1e}", "yes" if outcome.certified else "NO", f"{1e3 * outcome.exact_seconds:.3g}"]
    return "| " + " | ".join(fields) + " |"


def timing(outcome: Outcome, name: str) -> str:
    contestant = outcome.contestants[name]
    label = "" if contestant.label == name else f" ({contestant.label})"
    if not contestant.valid:
        return f"x{label}"
    return f"{1e3 * outcome.seconds[name]:.3g}{label}"


def summary(outcomes: list[Outcome], methods: tuple[str, ...], budget: float) -> list[str]:
    lines = [""]
    for method in methods:
        lines += [f"- {method}: {line}" for line in summarise_ratios(outcomes, method)]
    for name, title in [
        ("pot", f"POT did not converge within {budget:g} s a solver"),
        *((m, f"{m} did not converge") for m in methods),
    ]:
        failed = [outcome for outcome in outcomes if not outcome.contestants[name].valid]
        lines.append(f"- {title}: {len(failed)} of {len(outcomes)} cells: {listing(failed)}")
    lines.append(f"- gap_exact does not hold: {listing(outcome for outcome in outcomes if not outcome.certified)}")
    return lines


def summarise_ratios(outcomes: list[Outcome], method: str) -> Iterator[str]:
    measured = [(ratio, outcome) for outcome in outcomes if (ratio := outcome.ratio(method)) is not None]
    if not measured:
        return
    yield f"geometric mean of POT / {method} over {len(measured)} cells: {statistics.geometric_mean([r for r, _ in measured]):.2f}"
    for reg in sorted({outcome.cell.reg for _, outcome in measured}, reverse=True):
        ratios = [ratio for ratio, outcome in measured if outcome.cell.reg == reg]
        yield f"at reg = {reg:.3g}, {len(ratios)} cells: {statistics.geometric_mean(ratios):.2f}, smallest {min(ratios):.2f}"
    yield f"slower than POT: {listing(outcome for ratio, outcome in measured if ratio < 1.0)}"


def listing(outcomes: Iterable[Outcome]) -> str:
    return "; ".join(f"{outcome.name} reg={outcome.cell.reg:.3g}" for outcome in outcomes) or "none"


if __name__ == "__main__":
    sys.exit(main())
