"""
A penalty for every sample of a support vector machine
======================================================

The support vector machine of the paper on LV-HBA [1]_: the lower level is its primal problem with a slack for each of 500 samples,
whose squares cost e^C, with one C for each sample; the upper level moves all 500 of them, so that a smooth count of errors on 150
other samples falls.

    min_C  sum_val LeakyReLU(2 sigmoid(-5 t (w'z + b) / |w|) - 1)
    s.t.   (w, b, xi) in argmin { |w|^2/2 + sum_i e^(C_i) xi_i^2 / 2 : xi_i >= 1 - t_i (w'z_i + b) }

The margins couple all variables below, and the single loop projects on them in each step. `otbilevel.bilevel.projection.Margins`
does that by Newton's method in (w, b) alone; the usual way is a conic or quadratic program by cvxpy, timed here in the same loop,
compiled once with parameters and built anew each time. The loop has the published parameters and length, 80 steps, with C moving
and with C frozen: the released script never updates its C. Rivals tune one common C, with the lower level solved to the end.

The loop ends where the lower level is not solved. So everything is judged twice: at the (w, b) that it returns, and at those of
the lower solution for its C. As margins determine slacks, this problem can also be had without constraints, for implicit
differentiation: that is the last method. C is kept in [-10, 4], for longer runs drive it to where e^C overflows.

Run it by ``python examples/study_svm.py``, which takes some five minutes; ``--quick`` takes two. It needs matplotlib, cvxpy with
its solvers, and statsmodels for the data: answers of 944 voters and of 6366 readers of a magazine [2]_.

.. [1] W. Yao, C. Yu, S. Zeng, J. Zhang, Constrained bi-level optimization: proximal Lagrangian value function approach and
       Hessian-free algorithm, ICLR 2024.
.. [2] American National Election Studies, 1996; R. Fair, A theory of extramarital affairs, Journal of Political Economy, 1978.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cvxpy as cp
import matplotlib as mpl
import numpy as np
import statsmodels.api as sm
from matplotlib.axes import Axes

from otbilevel import ConvergenceWarning, CoupledConstraint, minimize_bilevel
from otbilevel.bilevel.lv_hba_step import Oracles, State, Steps, step
from otbilevel.bilevel.projection import Box, Margins, Product

mpl.use("Agg")  # a file is all that is wanted: no window, no display needed
import matplotlib.pyplot as plt

TRAIN, VALIDATION = 500, 150
LOW, HIGH = -10.0, 4.0  # of C
PUBLISHED = Steps(alpha=0.01, beta=0.1, eta=0.01, gamma1=10.0, gamma2=10.0, c0=1.0, p=0.5, r=1000.0)
LOOP, FROZEN, LONG = "LV-HBA, 80 steps", "LV-HBA, 80 steps, C frozen", "LV-HBA, {} steps"
GRID, RANDOM, IMPLICIT = "one C, grid of 29", "one C, random, time of LV-HBA", "implicit differentiation"
COLOURS = {LOOP: "#0072b2", FROZEN: "#56b4e9", LONG: "#009e73", GRID: "#d55e00", RANDOM: "#aa4499", IMPLICIT: "#555555"}
Vector = np.ndarray


# %%
# The problem
# -----------


def load(name: str, seed: int) -> list[np.ndarray]:
    """Training, validation and test set: labels times (features, 1) as rows, features standardised by the training samples."""
    if name == "anes96":
        table = sm.datasets.anes96.load_pandas().data.drop(columns="popul")  # its logarithm is there, too
        table["vote"] = table.pop("vote")
    else:
        table = sm.datasets.fair.load_pandas().data
    rows = np.random.default_rng(seed).permutation(table.to_numpy(float))
    features, labels = rows[:, :-1], np.where(rows[:, -1:] > 0, 1.0, -1.0)
    features = (features - features[:TRAIN].mean(axis=0)) / features[:TRAIN].std(axis=0)
    margins = labels * np.hstack([features, np.ones((len(rows), 1))])
    return np.split(margins, [TRAIN, TRAIN + VALIDATION])


def loss(v: Vector, A: np.ndarray) -> tuple[float, Vector]:
    """The upper objective at v = (w, b), and its gradient."""
    w, size = v[:-1], np.linalg.norm(v[:-1])
    margins = A @ v / size
    s = 1 / (1 + np.exp(np.minimum(5 * margins, 700.0)))
    slopes = np.where(s > 0.5, 1.0, 0.01)
    pull = -10 * slopes * s * (1 - s)
    slope = pull @ A / size
    slope[:-1] -= (pull @ margins) / size**2 * w
    return float(slopes @ (2 * s - 1)), slope


def accuracy(v: Vector, A: np.ndarray) -> float:
    """In per cent: samples are on the right side of (w, b) where the product with their row is positive."""
    return 100 * float(np.mean(A @ v > 0))


class SVM:
    """Both levels for C and y = (w, b, xi), as `minimize_bilevel` takes them."""

    def __init__(self, train: np.ndarray, validation: np.ndarray, test: np.ndarray) -> None:
        self.A, self.validation, self.test = train, validation, test
        self.l, self.d = self.A.shape
        self.ridge = np.append(np.ones(self.d - 1), 0.0)

    def start(self, seed: int) -> tuple[Vector, Vector]:
        """C as published, w and xi of ones."""
        C = np.random.default_rng(seed).uniform(-6, -5, self.l)
        return C, np.concatenate([self.ridge, np.ones(self.l)])

    def upper(self, C: Vector, y: Vector) -> float:  # noqa: ARG002
        return loss(y[: self.d], self.validation)[0]

    def jac_upper(self, C: Vector, y: Vector) -> tuple[Vector, Vector]:
        return np.zeros_like(C), np.concatenate([loss(y[: self.d], self.validation)[1], np.zeros(self.l)])

    def lower(self, C: Vector, y: Vector) -> float:
        return 0.5 * float(y[: self.d - 1] @ y[: self.d - 1] + np.exp(C) @ y[self.d :] ** 2)

    def jac_lower(self, C: Vector, y: Vector) -> tuple[Vector, Vector]:
        forces = np.exp(C) * y[self.d :]
        return 0.5 * forces * y[self.d :], np.concatenate([self.ridge * y[: self.d], forces])

    def rows(self, C: Vector, y: Vector) -> Vector:  # noqa: ARG002
        return 1.0 - self.A @ y[: self.d] - y[self.d :]

    def vjp(self, C: Vector, y: Vector, lam: Vector) -> tuple[Vector, Vector]:  # noqa: ARG002
        return np.zeros_like(C), -np.concatenate([lam @ self.A, lam])

    def solution(self, C: Vector) -> Vector:
        """(w, b) of the lower solution: Newton's method, slacks eliminated."""
        e, v = np.exp(C), np.zeros(self.d)

        def value(v: Vector) -> float:
            return 0.5 * float(v[:-1] @ v[:-1] + e @ np.maximum(1.0 - self.A @ v, 0.0) ** 2)

        for _ in range(100):
            short = np.maximum(1.0 - self.A @ v, 0.0)
            weighted = self.A * (e * (short > 0))[:, None]
            slope = self.ridge * v - weighted.T @ short
            newton, t = np.linalg.solve(np.diag(self.ridge) + weighted.T @ self.A, -slope), 1.0
            while value(v + t * newton) > value(v) + 1e-4 * t * (slope @ newton) and t > 1e-6:
                t /= 2
            v = v + t * newton
            if np.linalg.norm(newton) < 1e-10 * (1 + np.linalg.norm(v)):
                break
        return v

    def with_slacks(self, v: Vector) -> Vector:
        """The best y for (w, b)."""
        return np.concatenate([v, np.maximum(1.0 - self.A @ v, 0.0)])


# %%
# The loop, and its projections
# -----------------------------
# The library's step is called directly, as its parameters then are those that were published: `minimize_bilevel` scales functions
# and rows first, and proves the end point by solving its lower level.


def conic(A: np.ndarray, solver: str, *, once: bool, **settings: float) -> Callable[[Vector], Vector]:
    """The same projection as `Margins` by cvxpy, compiled once with parameters or built anew for each point."""
    given = [cp.Parameter(A.shape[1]), cp.Parameter(A.shape[0])]

    def build(v0: Any, xi0: Any) -> tuple[cp.Problem, cp.Variable, cp.Variable]:
        v, xi = cp.Variable(A.shape[1]), cp.Variable(A.shape[0])
        return cp.Problem(cp.Minimize(cp.sum_squares(v - v0) + cp.sum_squares(xi - xi0)), [xi + A @ v >= 1]), v, xi

    made = build(*given)

    def project(w: Vector) -> Vector:
        parts = np.split(w, [A.shape[1]])
        for parameter, part in zip(given, parts, strict=True):
            parameter.value = part
        problem, v, xi = made if once else build(*parts)
        problem.solve(solver=solver, **settings)
        return np.concatenate([v.value, xi.value])

    return project


class Point(NamedTuple):
    """Where a method is, and after how many seconds."""

    seconds: float
    C: Vector
    y: Vector


def single_loop(svm: SVM, seed: int, steps: int, margins: Any = None, *, frozen: bool = False) -> list[Point]:
    """LV-HBA with the published parameters: all points on the way."""
    margins = margins or Margins(svm.A)

    A, d, in_C = svm.A, svm.d, 0.0 if frozen else 0.5

    def penalised(C: Vector, y: Vector, c: float) -> tuple[Vector, Vector]:
        forces, in_y = np.exp(C) * y[d:], np.empty_like(y)
        in_y[:d], in_y[d:] = svm.ridge * y[:d] + loss(y[:d], svm.validation)[1] / c, forces
        return in_C * forces * y[d:], in_y

    def lagrangian_y(C: Vector, y: Vector, lam: Vector) -> tuple[Vector, Vector]:
        in_y = np.empty_like(y)
        in_y[:d], in_y[d:] = svm.ridge * y[:d] - lam @ A, np.exp(C) * y[d:] - lam
        return in_y, svm.rows(C, y)

    oracles = Oracles(
        penalised=penalised,
        lagrangian_x=lambda C, y, lam: in_C * np.exp(C) * y[d:] ** 2,  # noqa: ARG005 -- no constraint has C
        lagrangian_y=lagrangian_y,
        equality=np.zeros(svm.l, bool),
        project=lambda C, y: (np.clip(C, LOW, HIGH), margins(y)),
        project_y=lambda y: y,
    )
    C, y = svm.start(seed)
    state = State(C, y, np.ones(svm.l), y, np.ones(svm.l), 0)
    points, start = [Point(0.0, C, y)], time.perf_counter()
    for _ in range(steps):
        state = step(oracles, PUBLISHED, state)
        points.append(Point(time.perf_counter() - start, state.x, state.y))
    return points


def common(svm: SVM, values: Vector, seconds: float = np.inf) -> list[Point]:
    """One C for all samples: the best so far by the validation loss, after each value tried."""
    points, best, start = [], np.inf, time.perf_counter()
    for value in values:
        C = np.full(svm.l, value)
        v = svm.solution(C)
        now, found = time.perf_counter() - start, loss(v, svm.validation)[0]
        if points and now > seconds:
            break
        points.append(Point(now, C, svm.with_slacks(v)) if found < best else points[-1]._replace(seconds=now))
        best = min(best, found)
    return points


def implicit(svm: SVM, seed: int) -> list[Point]:
    """All C by `minimize_bilevel` without slacks and constraints."""
    points, start, (C, _) = [], time.perf_counter(), svm.start(seed)

    def jac_lower(C: Vector, v: Vector) -> tuple[Vector, Vector]:
        short = svm.with_slacks(v)[svm.d :]
        forces = np.exp(C) * short
        return 0.5 * forces * short, svm.ridge * v - forces @ svm.A

    def note(intermediate_result: Any) -> None:
        points.append(Point(time.perf_counter() - start, intermediate_result.x, svm.with_slacks(intermediate_result.y)))

    settings = {"method": "aid-cg", "jac_lower": jac_lower, "bounds_x": (LOW, HIGH), "max_iter": 100, "callback": note}
    settings["jac_upper"] = lambda C, v: (np.zeros_like(C), loss(v, svm.validation)[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the figures say how good it is
        lower = lambda C, v: svm.lower(C, svm.with_slacks(v))  # noqa: E731
        found = minimize_bilevel(svm.upper, lower, C, svm.solution(C), **settings)
    return [*points, Point(time.perf_counter() - start, found.x, svm.with_slacks(found.y))]


def projections(A: np.ndarray) -> dict[str, Callable[[Vector], Vector]]:
    """By name: ours, and cvxpy's with all solvers that are here."""
    found: dict[str, Callable[[Vector], Vector]] = {"Margins": Margins(A)}
    tight = {"eps_abs": 1e-8, "eps_rel": 1e-8, "max_iter": 100_000}
    for once, how in ((True, "compiled once"), (False, "built anew")):
        for solver, settings in (("ECOS", {}), ("CLARABEL", {}), ("OSQP", {}), *[("OSQP", tight)] * once):
            if solver in cp.installed_solvers():
                found[f"cvxpy {solver}{' at 1e-8' * bool(settings)}, {how}"] = conic(A, solver, once=once, **settings)
    return found


def race(svms: list[SVM], steps: int) -> dict[str, tuple[float, float]]:
    """Seconds for 80 steps of the whole loop, mean over data, and the largest difference from `Margins` at the same points."""
    found = {}
    for name in projections(svms[0].A):
        seconds, difference = [], 0.0
        for seed, svm in enumerate(svms):
            project, exact, seen = projections(svm.A)[name], Margins(svm.A), []

            def noted(w: Vector, project: Any = project, seen: Any = seen) -> Vector:
                seen.append((w, project(w)))
                return seen[-1][1]

            for _ in range(20 if name == "Margins" else 1):  # short runs are noisy
                points = single_loop(svm, seed, 80 if name == "Margins" else steps, noted)
                rest = (points[-1].seconds - points[1].seconds) / (len(points) - 2)
                seconds.append(points[1].seconds + 79 * rest)  # the first step compiles
            difference = max(difference, *(np.abs(exact(w) - nearest).max() for w, nearest in seen))
        found[name] = float(np.mean(seconds)), difference
        print(f"{name:36}{found[name][0]:10.3f} s{found[name][0] / found['Margins'][0]:9.0f} x{difference:12.1e}", flush=True)
    return found


def by_library(svm: SVM, seed: int, *, exact: bool = False, **settings: Any) -> Point:
    """Where `minimize_bilevel` ends: its default, or the single loop with its own scaling and steps."""
    start = time.perf_counter()
    C, y = svm.start(seed)
    if not exact:
        settings |= {"projection": Product([(svm.l, Box(LOW, HIGH)), (svm.d + svm.l, Margins(svm.A))])}
        settings["options"] = {"variant": "paper"}
    settings |= {"constraints": CoupledConstraint(svm.rows, vjp=svm.vjp), "bounds_x": (LOW, HIGH), "rng": seed}
    settings |= {"jac_upper": svm.jac_upper, "jac_lower": svm.jac_lower}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the figures say how good it is
        found = minimize_bilevel(svm.upper, svm.lower, C, y, **settings)
    return Point(time.perf_counter() - start, found.x, found.y)


# %%
# Tables and picture
# ------------------


def judge(svm: SVM, point: Point) -> dict[str, float]:
    """Figures of a point, at its (w, b) and at those of the lower solution for its C."""
    solved = svm.solution(point.C)
    lowest = svm.lower(point.C, svm.with_slacks(solved))
    figures = {"seconds": point.seconds, "gap": (svm.lower(point.C, point.y) - lowest) / lowest}
    for star, v in (("", point.y[: svm.d]), ("*", solved)):
        figures |= {f"loss{star}": loss(v, svm.validation)[0]}
        figures |= {f"valid{star}": accuracy(v, svm.validation), f"test{star}": accuracy(v, svm.test)}
    return figures


def compare(name: str, seeds: int, steps: int, size: int = TRAIN) -> dict[str, list[tuple[SVM, list[Point]]]]:
    """All methods on all seeds, and a table of where they end: means and deviations. For few samples, the default solver, too."""
    found: dict[str, list[tuple[SVM, list[Point]]]] = {}
    for seed in range(seeds):
        train, *others = load(name, seed)
        svm, trials = SVM(train[:size], *others), np.random.default_rng(seed).uniform(LOW, HIGH, 10_000)
        runs = {LOOP: single_loop(svm, seed, 80), FROZEN: single_loop(svm, seed, 80, frozen=True)}
        runs[LONG.format(steps)] = single_loop(svm, seed, steps)
        runs |= {GRID: common(svm, np.linspace(LOW, HIGH, 29)), RANDOM: common(svm, trials, runs[LOOP][-1].seconds)}
        runs[IMPLICIT] = implicit(svm, seed)
        if size < TRAIN:
            runs["default options"] = [by_library(svm, seed, exact=True)]
        for method, points in runs.items():
            found.setdefault(method, []).append((svm, points))
    print(f"\n{name}, {size} samples, seeds: {seeds}; figures with a star have the lower level solved")
    for method, runs in found.items():
        rows, cells = [judge(svm, points[-1]) for svm, points in runs], []
        if method == LOOP:
            print(" " * 34 + "".join(f"{figure:>15}" for figure in rows[0]))
        for figure in rows[0]:
            values, digits = [row[figure] for row in rows], 3 if figure in {"seconds", "gap"} else 2
            cells.append(f"{np.mean(values):.{digits}f} +-{np.std(values, ddof=int(seeds > 1)):.{digits}f}")
        print(f"{method:34}" + "".join(f"{cell:>15}" for cell in cells), flush=True)
    return found


def draw_curves(axes: list[Axes], name: str, found: dict[str, list[tuple[SVM, list[Point]]]]) -> None:
    """Validation loss and test accuracy against time, means over the seeds; dashed: at the (w, b) that the loop returns."""
    clock = np.geomspace(1e-3, max(points[-1].seconds for runs in found.values() for _, points in runs), 60)
    for method, runs in found.items():
        tables: dict[str, list[Vector]] = {key: [] for key in ("loss", "loss*", "test", "test*")}
        for svm, points in runs:
            places = np.searchsorted([point.seconds for point in points], clock, side="right") - 1
            rows = {k: judge(svm, points[k]) for k in np.unique(places) if k >= 0}
            for key, table in tables.items():
                table.append(np.array([rows[k][key] if k >= 0 else np.nan for k in places]))
        colour = COLOURS.get(method, COLOURS[LONG])
        shown = clock <= 1.5 * max(points[-1].seconds for _, points in runs)
        for axis, key in zip(axes, ("loss", "test"), strict=True):
            axis.plot(clock, np.mean(tables[f"{key}*"], axis=0), color=colour, linewidth=2, label=method)
            if "LV-HBA" in method:
                axis.plot(clock[shown], np.mean(tables[key], axis=0)[shown], color=colour, linestyle="--")
    axes[0].set(title=f"{name}: validation loss", yscale="log")
    axes[1].set(title=f"{name}: test accuracy, %")
    for axis in axes:
        axis.set(xlabel="seconds", xscale="log")
        axis.grid(color="#e9ecef")


def main() -> None:
    """Run, print, draw."""
    parser = argparse.ArgumentParser(description="Hyper-parameters of a support vector machine, one for each sample.")
    parser.add_argument("--seeds", type=int, default=10, help="splits, and draws of C (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help="of the longer run of LV-HBA (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="two seeds, 500 steps")
    default = Path(sys.argv[0]).parent / "output"
    parser.add_argument("--out", type=Path, default=default, help="folder of the picture (default: output/ beside this file)")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.steps = 2, 500
    print(f"{'80 steps with the projection by':36}{'time':>12}{'ratio':>11}{'difference':>12}")
    seconds = race([SVM(*load("anes96", seed)) for seed in range(min(3, options.seeds))], 5 if options.quick else 40)
    times = [by_library(SVM(*load("anes96", 0)), 0, max_iter=steps).seconds for steps in (80, 880)]
    print(f"minimize_bilevel: 80 steps {(times[1] - times[0]) / 10:.3f} s, with scaling and certificate {times[0]:.2f} s")
    figure, axes = plt.subplots(2, 3, figsize=(17, 9.5), layout="constrained")
    for row, name in zip(axes, ("anes96", "fair"), strict=True):
        draw_curves(row[:2], name, compare(name, options.seeds, options.steps))
        compare(name, min(3, options.seeds), options.steps, 30)
    names = list(seconds)[::-1]
    bars = axes[0, 2].barh(names, [seconds[name][0] for name in names], color=[*[COLOURS[GRID]] * (len(names) - 1), COLOURS[LOOP]])
    axes[0, 2].bar_label(bars, fmt=" {:.2g}")
    axes[0, 2].set(title="seconds for 80 steps, by projection", xscale="log", xlim=(0.01, None))
    axes[0, 2].margins(x=0.15)
    axes[1, 2].axis("off")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    handles += [plt.Line2D([], [], color="black", linestyle=style) for style in ("-", "--")]
    labels += ["lower level solved for the C of the method", "(w, b) as the loop returns it, not lower optimal"]
    axes[1, 2].legend(handles, labels, loc="center left", frameon=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "svm.png", dpi=130)
    print(f"\nPicture: {options.out / 'svm.png'}")


if __name__ == "__main__":
    main()
