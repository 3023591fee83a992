"""
A single loop, and exact saddle points
======================================

The two toy problems of the paper on LV-HBA [1]_: a lower level that is merely convex, with an equation that couples both levels
and a known optimum, for any number of variables; and one that is strongly convex [2]_, under 90 equations, with 45 more for the
upper level. Three ways are compared: the default options, which solve saddle points exactly; the single loop of the paper with the
step sizes that `minimize_bilevel` finds by itself; and the same loop with the parameters of the released script, on the problem as
it is, neither functions nor rows scaled. Methods that differentiate through a free lower level cannot take part: it is not free.

What is drawn against time comes from closed forms: the error of x where the optimum is known, and for the other problem how far
the upper objective at x *and the exact lower solution for that x* is above its least value. The latter is known, too: the upper
objective is a function of one number plus one of a quadratic form, which leaves a problem in one variable. It has many local
minima, so the best so far is drawn. On that problem exact saddle points from one start, with dense matrices, take part, too: its
135 equations are so ill conditioned that the default, which is without matrices from 200 variables on, does not settle, and goes
on with them, from many starts.

Run it by ``python examples/study_bilevel_toys.py``, which takes some three minutes; ``--quick`` takes one, ``--large`` adds 300
000 variables. It needs matplotlib.

.. [1] W. Yao, C. Yu, S. Zeng, J. Zhang, Constrained bi-level optimization: proximal Lagrangian value function approach and
       Hessian-free algorithm, ICLR 2024.
.. [2] Q. Xiao, H. Shen, W. Yin, T. Chen, Alternating projected SGD for equality-constrained bilevel optimization, AISTATS 2023.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from scipy.optimize import LinearConstraint, minimize_scalar

from otbilevel import ConvergenceWarning, minimize_bilevel
from otbilevel.bilevel.lv_hba_step import State, Steps, oracles_of, step
from otbilevel.bilevel.projection import Affine

mpl.use("Agg")  # a file is all that is wanted: no window, no display needed
import matplotlib.pyplot as plt

DEFAULT, DENSE = "default options", "exact saddle points, dense, one start"
LOOP, RELEASED = "single loop, automatic steps", "single loop, released script's parameters"
LINES = {DEFAULT: ("#0072b2", "-", "o"), LOOP: ("#d55e00", "--", ""), RELEASED: ("#555555", ":", ""), DENSE: ("#009e73", "-", "s")}


# %%
# The problems
# ------------


class Toy(NamedTuple):
    """A problem, its equations L w = 0 of the lower level and U x = 0 of the upper one, and what is known of it.

    `error` says how far x is from optimal, `gap` how far (x, y) is from the optimum of the lower level at x.
    """

    name: str
    upper: Callable[..., float]
    lower: Callable[..., float]
    jac_upper: Callable[..., Any]
    jac_lower: Callable[..., Any]
    L: np.ndarray
    U: np.ndarray
    start: tuple[np.ndarray, np.ndarray]
    error: Callable[[np.ndarray], float]
    gap: Callable[[np.ndarray, np.ndarray], float]
    released: Steps
    steps: int


def merely_convex(n: int) -> Toy:
    """min |x - y2|^2/2 + |y1 - 1|^2/2, (y1, y2) minimising |y1|^2/2 - x'y1 + 1'y2 with 1'(x + y1 + y2) = 0.

    Its optimum is x = -0.3, y1 = 0.7, y2 = -0.4. At x, lower solutions are y1 = x + 1 and any y2 that obeys the equation.
    """

    def gap(x: np.ndarray, y: np.ndarray) -> float:
        return 0.5 * float(np.sum((y[:n] - x - 1) ** 2)) + float(
            np.sum(x) + np.sum(y)
        )  # the last sum is 0 where the equation holds

    return Toy(
        f"lower level merely convex, n = {n}",
        lambda x, y: 0.5 * np.sum((x - y[n:]) ** 2) + 0.5 * np.sum((y[:n] - 1) ** 2),
        lambda x, y: 0.5 * y[:n] @ y[:n] - x @ y[:n] + np.sum(y[n:]),
        lambda x, y: (x - y[n:], np.concatenate([y[:n] - 1, y[n:] - x])),
        lambda x, y: (-y[:n], np.concatenate([y[:n] - x, np.ones(n)])),
        np.ones((1, 3 * n)),
        np.zeros((0, n)),
        (np.full(n, 10.0), np.full(2 * n, 10.0)),
        lambda x: float(np.linalg.norm(x + 0.3)) / (0.3 * np.sqrt(n)),
        gap,
        Steps(alpha=0.008, beta=0.02, eta=0.01, gamma1=10.0, gamma2=10.0, c0=0.025, p=0.3, r=1000.0),
        1500,
    )


def strongly_convex(seed: int, n: int = 100) -> Toy:
    """min sin(c'x + d'y) + log(|x + y|^2 + 1) with B x = 0, y minimising |x - y|^2/2 with A y + H x = 0.

    The lower solution is y = x - A^+ (A + H) x. On B x = 0, x = N u, the objective is sin(a'u) + log(|M u|^2 + 1), whose least
    value for t = a'u is that of sin(t) + log(t^2 / k + 1), k = a' (M'M)^-1 a.
    """
    rng = np.random.default_rng(seed)
    A, H, B = rng.random((90, n)), rng.random((90, n)), rng.random((45, n))
    c, d = rng.random(n), rng.random(n)
    solution = np.eye(n) - np.linalg.pinv(A) @ (A + H)
    N = np.linalg.svd(B)[2][45:].T
    a, M = (c + solution.T @ d) @ N, (np.eye(n) + solution) @ N
    k = a @ np.linalg.solve(M.T @ M, a)
    reduced = lambda t: np.sin(t) + np.log(t**2 / k + 1)  # noqa: E731
    grid = np.linspace(-10 * np.pi, 10 * np.pi, 20_001)
    at = grid[np.argmin(reduced(grid))]
    least = minimize_scalar(reduced, bounds=(at - 0.1, at + 0.1), method="bounded", options={"xatol": 1e-12}).fun

    def upper(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.sin(c @ x + d @ y) + np.log((x + y) @ (x + y) + 1))

    def jac_upper(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wave, pull = np.cos(c @ x + d @ y), 2 * (x + y) / ((x + y) @ (x + y) + 1)
        return wave * c + pull, wave * d + pull

    return Toy(
        f"lower level strongly convex, n = {n}",
        upper,
        lambda x, y: 0.5 * float((x - y) @ (x - y)),
        jac_upper,
        lambda x, y: (x - y, y - x),
        np.hstack([H, A]),
        B,
        (np.full(n, 10.0), np.full(n, 10.0)),
        lambda x: upper(x, solution @ x) - least,
        lambda x, y: 0.5 * float((x - y) @ (x - y)) - 0.5 * float(np.sum((x - solution @ x) ** 2)),
        Steps(alpha=0.02, beta=0.001, eta=0.1, gamma1=1.0, gamma2=1.0, c0=1.0, p=0.3, r=1000.0),
        1000,
    )


# %%
# The runs
# --------


class Run(NamedTuple):
    """What came out, the time it took with and without the certificate, and the errors of x on the way."""

    method: str
    x: np.ndarray
    y: np.ndarray
    steps: int
    seconds: float
    success: str
    curve: list[tuple[float, float]]


def by_library(toy: Toy, method: str, options: dict[str, Any], max_iter: int | None) -> Run:
    """One call of `minimize_bilevel`; errors are taken in the callback, and their time does not count."""
    curve, idle, start = [], 0.0, time.perf_counter()

    def note(intermediate_result: Any) -> None:
        nonlocal idle
        now = time.perf_counter()
        curve.append((now - start - idle, toy.error(intermediate_result.x)))
        idle += time.perf_counter() - now

    sets = {"constraints": LinearConstraint(toy.L, 0, 0)}
    if len(toy.U):
        sets["upper_constraints"] = LinearConstraint(np.hstack([toy.U, np.zeros((len(toy.U), toy.start[1].size))]), 0, 0)
    gradients = {"jac_upper": toy.jac_upper, "jac_lower": toy.jac_lower}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it says what the table says
        found = minimize_bilevel(
            toy.upper, toy.lower, *toy.start, **gradients, **sets, max_iter=max_iter, callback=note, options=options
        )
    seconds = time.perf_counter() - start - idle
    curve.append((seconds, toy.error(found.x)))
    return Run(method, found.x, found.y, found.nit, seconds, "yes" if found.success else "no", curve)


def by_steps(toy: Toy) -> Run:
    """The released script's parameters, by the step of the library's single loop; multipliers start from 0, theta from y."""
    n, (x, y) = toy.start[0].size, toy.start
    project = Affine(np.vstack([toy.L, np.hstack([toy.U, np.zeros((len(toy.U), y.size))])]), np.zeros(len(toy.L) + len(toy.U)))

    def nearest(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        w = project(np.concatenate([x, y]))
        return w[:n], w[n:]

    oracles = oracles_of(
        upper=toy.jac_upper,
        lower=toy.jac_lower,
        g=lambda x, y: toy.L @ np.concatenate([x, y]),
        vjp=lambda x, y, lam: (lam @ toy.L[:, :n], lam @ toy.L[:, n:]),  # noqa: ARG005
        equality=np.ones(len(toy.L), bool),
        project=nearest,
        project_y=lambda y: y,
    )
    curve, seconds = [], 0.0
    x, y = nearest(x, y)
    state = State(x, y, np.zeros(len(toy.L)), y, np.zeros(len(toy.L)), 0)
    for _ in range(toy.steps):
        start = time.perf_counter()
        state = step(oracles, toy.released, state)
        seconds += time.perf_counter() - start
        curve.append((seconds, toy.error(state.x)))
    return Run(RELEASED, state.x, state.y, toy.steps, seconds, "-", curve)


def race(toy: Toy, options: argparse.Namespace) -> list[Run]:
    """All of them, and a table."""
    print(f"\n{toy.name}\n{'':44}{'steps':>8}{'s':>9}{'error of x':>13}{'F':>13}{'lower gap':>12}{'success':>10}")
    runs = []
    for method in LINES:
        if method == RELEASED:
            run = by_steps(toy)
        elif method == LOOP:
            run = by_library(toy, method, {"variant": "paper", "time_limit": options.limit}, options.steps)
        elif method == DEFAULT or len(toy.U):
            run = by_library(toy, method, {"saddle": "exact", "n_starts": 1} if method == DENSE else {}, None)
        else:
            continue  # it would give what the default gives, later
        figures = f"{run.steps:8}{run.seconds:9.2f}{toy.error(run.x):13.1e}{toy.upper(run.x, run.y):13.6g}"
        print(f"{method:44}{figures}{toy.gap(run.x, run.y):12.1e}{run.success:>10}", flush=True)
        runs.append(run)
    return runs


# %%
# Picture
# -------


def draw(axis: Axes, toy: Toy, runs: list[Run], quantity: str) -> None:
    """Errors against seconds, both logarithmic."""
    for run in runs:
        colour, style, marker = LINES[run.method]
        seconds, errors = np.array(run.curve).T
        shown = np.unique(np.searchsorted(seconds, np.geomspace(seconds[0], seconds[-1], 300)))  # thousands would be a black patch
        # Where there are many local minima, starts are one after the other.
        seconds, errors = seconds[shown], (np.minimum.accumulate(errors) if len(toy.U) else errors)[shown]
        axis.plot(seconds, np.maximum(errors, 1e-16), color=colour, linestyle=style, marker=marker, linewidth=2, label=run.method)
    axis.set(title=toy.name, xlabel="seconds", ylabel=quantity, xscale="log", yscale="log")
    axis.grid(color="#e9ecef")
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Run, print, draw."""
    parser = argparse.ArgumentParser(description="The toy problems of the paper on LV-HBA.")
    parser.add_argument("--steps", type=int, default=20_000, help="of the single loop with automatic steps (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=60.0, help="its time limit in seconds (default: %(default)s)")
    parser.add_argument("--large", action="store_true", help="300 000 variables, too")
    parser.add_argument("--quick", action="store_true", help="300 and 3000 variables only, and 2000 steps")
    default = Path(sys.argv[0]).parent / "output"
    parser.add_argument("--out", type=Path, default=default, help="folder of the picture (default: output/ beside this file)")
    options = parser.parse_args()
    sizes = [100, 1000] if options.quick else [100, 1000, 10_000]
    options.steps = 2000 if options.quick else options.steps
    toys = [*(merely_convex(n) for n in (*sizes, 100_000) if n in sizes or options.large), strongly_convex(0)]
    figure, axes = plt.subplots(2, (len(toys) + 1) // 2, figsize=(13, 8.5), layout="constrained", squeeze=False)
    for axis, toy in zip(axes.flat, toys, strict=False):
        draw(
            axis, toy, race(toy, options), "relative error of x" if toy is not toys[-1] else "upper objective above its least value"
        )
    for axis in axes.flat[len(toys) :]:
        axis.set_visible(False)
    figure.legend(*axes.flat[len(toys) - 1].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "bilevel_toys.png", dpi=150)
    print(f"\nPicture: {options.out / 'bilevel_toys.png'}")


if __name__ == "__main__":
    main()
