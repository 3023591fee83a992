"""
Fit a cloud, and a generator, with the Sinkhorn loss
====================================================

Two models learn a distribution from samples by minimising the Sinkhorn divergence [1]_ between their points and the data's. First
the model is a cloud of points itself, which flows into two moons; then it is a small neural network that turns noise into
handwritten digits [2]_. The loss is solved to convergence in every step, and its gradient is that of the envelope theorem: what is
recorded for the backward pass does not depend on how many iterations the solver took.

Run it by ``python examples/fit_point_cloud.py``, where ``--help`` lists the options. It needs PyTorch, scikit-learn and matplotlib.

.. [1] J. Feydy et al., Interpolating between optimal transport and MMD using Sinkhorn divergences, AISTATS 2019.
.. [2] A. Genevay, G. Peyre, M. Cuturi, Learning generative models with Sinkhorn divergences, AISTATS 2018.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits, make_moons
from torch import Tensor, nn

from otbilevel.pytorch import SinkhornLoss

mpl.use("Agg")  # a file is all that is wanted: no window, no display needed
import matplotlib.pyplot as plt

MODEL, DATA = "#d9480f", "#0b7285"  # colours of the model's points and of the data


# %%
# A cloud that flows
# ------------------
# The points are the parameters. The gradient of the loss in a point is the displacement to the mean of the data that it is
# coupled with, minus the same towards its own cloud; without that second term (``debias=False``) the cloud shrinks.


def flow(x: Tensor, y: Tensor, loss: SinkhornLoss, steps: int) -> tuple[list[np.ndarray], list[float]]:
    """Gradient descent on the points with steps that would take a point all the way to its mean; return clouds and losses."""
    x = x.clone().requires_grad_()
    clouds, losses = [x.detach().numpy().copy()], []
    for _ in range(steps):
        value = loss(x, y)
        (gradient,) = torch.autograd.grad(value, x)
        with torch.no_grad():
            x -= len(x) * gradient
        clouds.append(x.detach().numpy().copy())
        losses.append(value.item())
    return clouds, losses


# %%
# A generator
# -----------
# A network of two hidden layers maps noise to images of 8 x 8 pixels. Each step compares a batch of images that it makes with a
# batch of real ones. Batches are drawn anew, so that potentials of the last one are no start (``warm_start``) for the next, as they
# are for the cloud.


@dataclass(frozen=True)
class Training:
    """A generator, how the loss fell, and how long it took."""

    generator: nn.Module
    losses: list[float]
    seconds: float


def make_generator(latent: int, width: int, pixels: int) -> nn.Module:
    """Noise to grey levels in [0, 1]."""
    return nn.Sequential(
        nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, pixels), nn.Sigmoid()
    )


def train(images: Tensor, loss: SinkhornLoss, *, steps: int, batch: int, latent: int = 8, width: int = 256) -> Training:
    """Fit a generator to images, one a row."""
    generator = make_generator(latent, width, images.shape[1])
    optimiser = torch.optim.Adam(generator.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    losses, start = [], time.perf_counter()
    for _ in range(steps):
        real = images[torch.randint(len(images), (batch,))]
        value = loss(generator(torch.randn(batch, latent)), real)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
        losses.append(value.item())
    return Training(generator, losses, time.perf_counter() - start)


# %%
# The pictures
# ------------


def draw_cloud(ax: Axes, x: np.ndarray, y: np.ndarray, title: str) -> None:
    """Draw the model's points over the data."""
    ax.scatter(*y.T, s=5, color=DATA, alpha=0.35, linewidths=0)
    ax.scatter(*x.T, s=5, color=MODEL, linewidths=0)
    ax.set_title(title, fontsize=11)
    ax.set(xlim=(-1.6, 2.6), ylim=(-0.9, 1.4), xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)


def draw_flow(clouds: list[np.ndarray], biased: np.ndarray, y: np.ndarray, shown: tuple[int, ...]) -> Figure:
    """Draw the flow at some steps, and the end without debiasing."""
    fig, axes = plt.subplots(1, len(shown) + 1, figsize=(12.6, 2.2), layout="constrained")
    for ax, step in zip(axes, shown, strict=False):
        draw_cloud(ax, clouds[step], y, {0: "start", 1: "after 1 step"}.get(step, f"after {step} steps"))
    draw_cloud(axes[-1], biased, y, f"after {shown[-1]} steps, not debiased")
    return fig


def mosaic(images: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Images of 8 x 8 pixels side by side."""
    tiles = images[: rows * columns].reshape(rows, columns, 8, 8)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return tiles.transpose(0, 2, 1, 3).reshape(rows * 10, columns * 10)


def draw_digits(real: np.ndarray, first: np.ndarray, made: np.ndarray, training: Training) -> Figure:
    """Draw real images, those of the untrained and of the trained generator, and the loss."""
    fig, axes = plt.subplots(1, 4, figsize=(12.6, 3.3), layout="constrained", width_ratios=(1, 1, 1, 1.15))
    for ax, images, title in zip(axes, (real, first, made), ("real", "generated, untrained", "generated, trained"), strict=False):
        ax.imshow(mosaic(images, 8, 8), cmap="gray_r", vmin=0, vmax=1)
        ax.set_title(title, fontsize=11)
        ax.axis("off")
    axes[-1].plot(training.losses, color=MODEL, lw=1)
    axes[-1].set(ylim=(0, None), xlabel="step")
    axes[-1].set_title("Sinkhorn divergence of a batch", fontsize=11)
    axes[-1].spines[["top", "right"]].set_visible(False)
    return fig


def main() -> None:
    """Fit both, print, draw."""
    parser = argparse.ArgumentParser(description="Fit a point cloud and a generator with the Sinkhorn loss.")
    parser.add_argument("--points", type=int, default=800, help="points of the cloud, and of the moons (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="training steps of the generator (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=300, help="images in a batch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default: %(default)s)")
    default = Path(sys.argv[0]).parent / "output"  # the documentation runs this without __file__
    parser.add_argument("--output", type=Path, default=default, help="folder of the pictures (default: output/ beside this file)")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    options.output.mkdir(parents=True, exist_ok=True)

    moons, _ = make_moons(options.points, noise=0.06, random_state=options.seed)
    y = torch.tensor(moons)
    x = 0.25 * torch.randn(options.points, 2, dtype=torch.float64) + y.mean(dim=0)
    shown, start = (0, 1, 3, 10), time.perf_counter()
    clouds, losses = flow(x, y, SinkhornLoss(blur=0.2, warm_start=True), shown[-1])
    biased, _ = flow(x, y, SinkhornLoss(blur=0.2, debias=False, warm_start=True), shown[-1])
    print(f"cloud of {options.points} points: divergence {losses[0]:.2e} to {losses[-1]:.2e} in {len(losses)} steps, ", end="")
    print(f"{time.perf_counter() - start:.1f} s with the biased one")
    fig = draw_flow(clouds, biased[-1], moons, shown)
    fig.savefig(options.output / "fit_point_cloud.png", dpi=150)

    digits = load_digits().data / 16
    images = torch.tensor(digits, dtype=torch.float32)
    noise = torch.randn(64, 8)
    torch.manual_seed(options.seed)
    with torch.no_grad():
        first = make_generator(8, 256, 64)(noise).numpy()
    torch.manual_seed(options.seed)
    training = train(images, SinkhornLoss(blur=0.5), steps=options.steps, batch=options.batch)
    print(f"generator: divergence of a batch {training.losses[0]:.3f} to {np.mean(training.losses[-20:]):.3f} in ", end="")
    print(f"{options.steps} steps of {options.batch} images, {training.seconds:.1f} s")
    with torch.no_grad():
        made = training.generator(noise).numpy()
    rng = np.random.default_rng(options.seed)
    fig = draw_digits(digits[rng.choice(len(digits), 64, replace=False)], first, made, training)
    fig.savefig(options.output / "fit_generator.png", dpi=150)
    print(f"Pictures: {options.output}")


if __name__ == "__main__":
    main()
