"""Race of curvature products, and what stands on them, with curvlinops and hessian-eigenthings in one process: a table of ratios.

    OMP_NUM_THREADS=1 python benchmarks/compare_curvature.py

The peers come from the dependency group `race`. Everyone gets the same number of products; they take turns, and the median of the
ratios of turns counts. Columns: milliseconds of ours; for each peer its time over ours; errors of a product against double
precision. "once" is an operator and one product, for which nothing is kept. Lanczos' vectors are kept orthogonal by
hessian-eigenthings and not by curvlinops; ours is compared with either in its own way.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings

import curvlinops
import hessian_eigenthings as he
import numpy as np
import torch
from curvlinops.papyan2020traces.spectrum import fast_lanczos
from scipy.sparse.linalg import eigsh as scipy_eigsh
from torch import nn

from otbilevel.curvature import eigsh, spectral_density, trace
from otbilevel.pytorch import from_torch

PEERS = {
    "hessian": (curvlinops.HessianLinearOperator, he.HessianOperator),
    "ggn": (curvlinops.GGNLinearOperator, he.GGNOperator),
    "empirical_fisher": (curvlinops.EFLinearOperator, None),
}
PROBES, STEPS, TOP, BASIS = 4, 40, 3, 32


class Attention(nn.Module):
    """One block of a small transformer."""

    def __init__(self, width=32, classes=10):
        super().__init__()
        self.embed, self.mixed, self.out = nn.Linear(8, width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        h = self.embed(x)
        q, k, v = self.mixed(self.norm(h)).chunk(3, -1)
        h = h + self.out(torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v)
        h = h + self.down(nn.functional.gelu(self.up(h)))
        return self.head(h.mean(1))


def problems():
    """Models with inputs, by name."""
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 10))
    wide = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 10))
    deep = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.GELU())), nn.Linear(64, 10))
    convolutions = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    )
    cnn = nn.Sequential(convolutions, nn.Flatten(), nn.Linear(32 * 49, 10))
    return {
        "MLP 64-128-10": (small, torch.randn(512, 64)),
        "MLP 784-400-10": (wide, torch.randn(512, 784)),
        "MLP of 7 layers": (deep, torch.randn(512, 64)),
        "CNN 1-16-32": (cnn, torch.randn(128, 1, 28, 28)),
        "attention": (Attention(), torch.randn(128, 16, 8)),
    }


def race(functions, repeats):
    """Seconds (repeats, functions), turn by turn, and the last values."""
    seconds, values = np.empty((repeats, len(functions))), [None] * len(functions)
    for function in functions:
        function()
    for k in range(repeats):
        for j, function in enumerate(functions):
            start = time.perf_counter()
            values[j] = function()
            seconds[k, j] = time.perf_counter() - start
    return seconds, values


def tasks(model, data, kind):
    """(name, ours, curvlinops, hessian-eigenthings) as functions without arguments; None where there is none."""
    loss, params = nn.CrossEntropyLoss(), list(model.parameters())
    linops_class, things_class = PEERS[kind]
    linops = linops_class(model, loss, params, data, check_deterministic=False)
    functions = {
        "hessian": [lambda m, batch: loss(m(batch[0]), batch[1])],
        "ggn": [lambda m, batch: m(batch[0]), lambda out, batch: loss(out, batch[1])],
    }
    things = None if things_class is None else things_class(model, data, *functions[kind])
    ours = from_torch(model, loss, data=data, kind=kind)
    v = torch.randn(ours.shape[0])
    exact = from_torch(copy.deepcopy(model).double(), loss, data=[(x.double(), y) for x, y in data], kind=kind, memory=0)
    truth = exact @ v.double()
    yield "product", truth, lambda: ours @ v, lambda: linops @ v, None if things is None else lambda: things.matvec(v)
    yield (
        "once",
        truth,
        lambda: from_torch(model, loss, data=data, kind=kind, hvp="reverse", memory=0, check=False) @ v,
        lambda: linops_class(model, loss, params, data, check_deterministic=False) @ v,
        None if things is None else lambda: things_class(model, data, *functions[kind]).matvec(v),
    )
    if kind != "hessian":
        return
    yield (
        f"trace, {10 * PROBES} products",
        None,
        lambda: trace(ours, n_matvec=10 * PROBES, rng=0),
        lambda: curvlinops.hutchinson_trace(linops, 10 * PROBES),
        lambda: he.trace(things, num_matvecs=10 * PROBES, method="hutchinson"),
    )
    settings = {"n_probes": PROBES, "steps": STEPS, "rng": 0}
    yield (
        f"SLQ, {PROBES} x {STEPS}",
        None,
        lambda: spectral_density(ours, **settings),
        None,
        lambda: he.spectral_density(things, num_runs=PROBES, lanczos_steps=STEPS, num_grid_points=1024),
    )
    yield (
        f"SLQ, {PROBES} x {STEPS}, not orthogonal",
        None,
        lambda: spectral_density(ours, reorthogonalize=False, **settings),
        lambda: [fast_lanczos(linops, STEPS) for _ in range(PROBES)],
        None,
    )
    as_scipy = linops.to_scipy()
    yield (
        f"top {TOP}, {BASIS} products",
        None,
        lambda: eigsh(ours, TOP, basis=BASIS, max_matvec=BASIS, tol=1.0),
        lambda: scipy_eigsh(as_scipy, TOP, which="LA", ncv=BASIS, maxiter=1, tol=1.0),
        lambda: he.lanczos(things, k=TOP, max_iter=BASIS, which="LA"),
    )
    yield (
        f"top {TOP} to 1e-4",
        None,
        lambda: eigsh(ours, TOP, tol=1e-4),
        lambda: scipy_eigsh(as_scipy, TOP, which="LA", ncv=BASIS, tol=1e-4),
        None,
    )


def main() -> int:
    """Print the table; the exit status is 1 where a peer is ahead by more than noise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=None, help="words of the names of models, all by default")
    given = parser.parse_args()
    torch.set_num_threads(1)
    behind = 0
    print(f"{'model':<17}{'n':>8}  {'kind':<17}{'task':<30}{'ours ms':>9}{'curvlinops':>12}{'eigenthings':>12}  errors")
    for name, (model, inputs) in problems().items():
        if given.models and not any(word in name for word in given.models):
            continue
        data = [(inputs, torch.randint(0, 10, (len(inputs),)))]
        for kind in PEERS:
            for task, truth, *functions in tasks(model, data, kind):
                seconds, values = race([f for f in functions if f is not None], given.repeats)
                places = iter(range(len(values)))
                columns = [next(places) if f is not None else None for f in functions]
                ratios = [None if c is None else float(np.median(seconds[:, c] / seconds[:, 0])) for c in columns]
                behind += sum(r is not None and r < 0.9 for r in ratios[1:])
                shown = "".join(f"{'-' if r is None else format(r, '.2f'):>12}" for r in ratios[1:])
                errors = "" if truth is None else "  ".join(f"{float((w - truth).norm() / truth.norm()):.0e}" for w in values)
                n = sum(p.numel() for p in model.parameters())
                print(f"{name:<17}{n:>8}  {kind:<17}{task:<30}{1e3 * np.median(seconds[:, 0]):>9.2f}{shown}  {errors}", flush=True)
    return 1 if behind else 0


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.exit(main())
