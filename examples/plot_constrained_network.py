"""
Tune the constraints of a network
=================================

A network learns digits from 400 samples, of which 30 % have a wrong label. What keeps it from learning these by heart is that the
weights of each layer stay in a ball. How large the balls are to be is for the loss on validation data to say: a bilevel problem
whose lower level is constrained, and whose constraints couple both levels,

.. math:: \\min_{r} F(W) \\quad \\text{s.t.} \\quad W \\in \\operatorname{argmin}_W \\{ f(W) : \\lVert W_l \\rVert \\le r_l \\}.

`otbilevel.pytorch.LVHBA` moves radii and weights together [1]_: no inner loop, no Hessian, mini-batches, parameters in place.

Run it by ``python examples/plot_constrained_network.py``. It needs PyTorch, scikit-learn and matplotlib, and takes half a minute.

.. [1] W. Yao, C. Yu, S. Zeng, J. Zhang, Constrained bi-level optimization: proximal Lagrangian value function approach and
   Hessian-free algorithm, ICLR 2024.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from otbilevel import CoupledConstraint
from otbilevel.pytorch import LVHBA

# %%
# Data and losses
# ---------------
# 400 digits to train, 400 clean ones to validate, the others to test.

torch.set_num_threads(1)
rng = np.random.default_rng(0)
digits = load_digits()
order = rng.permutation(len(digits.data))
x, truth = torch.tensor(digits.data[order] / 16, dtype=torch.float32), torch.tensor(digits.target[order])
wrong = rng.random(len(x)) < 0.3
labels = torch.where(torch.tensor(wrong), torch.tensor(rng.integers(0, 10, len(x))), truth)
train, valid, test = slice(400), slice(400, 800), slice(800, None)


def network():
    """The same start every time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def accuracy(model):
    """On test data."""
    with torch.no_grad():
        return (model(x[test]).argmax(1) == truth[test]).double().mean().item()


# %%
# Radii and weights together
# --------------------------
# A constraint is a function without arguments that returns what must not exceed 0. It is convex in weights and radii together, as
# it should be. The radii are 10 times the hyper-parameters: in these units they and the weights move by as much.

model, unit = network(), 10.0
layers = [model[0].weight, model[2].weight]
hparams = torch.full((2,), 3.0 / unit, requires_grad=True)
balls = CoupledConstraint(lambda: torch.stack([layer.norm() for layer in layers]) - unit * hparams)
optimizer = LVHBA(
    lambda batch: cross_entropy(model(x[valid][batch]), truth[valid][batch]),
    lambda batch: cross_entropy(model(x[train][batch]), labels[train][batch]),
    [hparams],
    model.parameters(),
    constraints=balls,
    bounds_x=(0.01, 10.0),
)
path, begin = [], time.perf_counter()
for _ in range(1500):
    figures = optimizer.step(torch.randperm(400)[:200])
    path.append(unit * hparams.detach().numpy())
seconds = time.perf_counter() - begin
print(f"{seconds:.0f} s; last step: {figures}")

# %%
# What the radii are worth
# ------------------------
# The penalty of the last step is finite: the weights still lean towards the validation data. So the lower level is solved again at
# the radii, by projected gradients; that is what is compared with other radii, those of a grid. LV-HBA has come most of the way in
# the time that the grid takes. The validation loss still falls beyond its end, and the accuracy does not: a loss is not what it
# stands for.


def trained(radii, steps=1000):
    """The lower level at fixed radii."""
    model = network()
    params, layers = list(model.parameters()), [model[0].weight, model[2].weight]
    optimizer = torch.optim.SGD(params, lr=0.2, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(x[train]), labels[train]).backward()
        optimizer.step()
        with torch.no_grad():
            for layer, radius in zip(layers, radii, strict=True):
                layer.mul_(min(1.0, float(radius) / float(layer.norm())))
    with torch.no_grad():
        return cross_entropy(model(x[valid]), truth[valid]).item(), accuracy(model)


side, begin = np.linspace(2.0, 12.0, 5), time.perf_counter()
grid = {(a, b): trained((a, b)) for a in side for b in side}
searched = time.perf_counter() - begin
best = min(grid, key=lambda radii: grid[radii][0])
rows = {
    "radii at the start": ((3.0, 3.0), trained((3.0, 3.0))),
    f"LV-HBA, {seconds:.0f} s": (path[-1], trained(path[-1])),
    f"grid of 25, {searched:.0f} s": (best, grid[best]),
    "no constraint": ((np.inf, np.inf), trained((np.inf, np.inf))),
}
print(f"{'':22}{'radii':>14}{'validation loss':>18}{'test accuracy':>16}")
for name, (radii, (loss, score)) in rows.items():
    print(f"{name:22}{radii[0]:>7.2f}{radii[1]:>7.2f}{loss:>18.3f}{score:>16.1%}")
print(f"{'weights of LV-HBA':54}{accuracy(model):>16.1%}")

# %%
figure, axis = plt.subplots(figsize=(6.2, 5), layout="constrained")
heights = np.array([[grid[a, b][0] for a in side] for b in side])
filled = axis.contourf(side, side, heights, levels=20, cmap="viridis_r")
figure.colorbar(filled, label="validation loss of the lower solution")
axis.plot(*np.array(path).T, color="white", linewidth=2.5)
axis.plot(*path[0], "o", color="white", markersize=8, label="start of LV-HBA")
axis.plot(*path[-1], "*", color="white", markersize=16, markeredgecolor="black", label="end of LV-HBA")
axis.plot(*best, "s", color="#d55e00", markersize=10, label="best of the grid")
axis.set(xlabel="radius of the first layer", ylabel="radius of the second layer")
axis.legend(facecolor="#888888", labelcolor="white")
plt.show()
