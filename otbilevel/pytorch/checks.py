"""What is found out when the operator of a model is made: whether it can be trusted, and how its products are computed."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from otbilevel.pytorch import gauss_newton, hessian
from otbilevel.pytorch.batches import Batch, move, sample_count
from otbilevel.pytorch.kinds import Setting, product_of
from otbilevel.pytorch.objective import Objective, Params, Product, gradient, measured, require_scalar

REPEATED = 1e-3
"""Relative difference of what should be the same that rounding explains."""
ASYMMETRY = {"forward": 1e-3, "differences": 0.05}
"""Relative difference of u'Hv and v'Hu that rounding, or kinks of the model, explain."""


@torch.no_grad()
def look(objective: Objective, batches: list[Batch], setting: Setting) -> None:
    """The loss of every batch, of one in pieces, and one gradient twice, to find out what is wrong early."""
    values = [_loss(objective, batch, f"batch {k}") for k, batch in enumerate(batches)]
    _look_at_reduction(objective, batches[0], values[0], setting)
    inputs, targets = move(batches[0].inputs, objective.device), move(batches[0].targets, objective.device)
    first, second = (gradient(objective, inputs, targets) for _ in range(2))
    scale = max(float(g.abs().max()) for g in first.values())
    difference = max(float((g - second[name]).abs().max()) for name, g in first.items())
    if not math.isfinite(scale):
        msg = "the gradient of the loss is not finite, though the loss is: look at the model, as for a root or a norm of 0"
        raise ValueError(msg)
    if not difference <= REPEATED * scale:
        msg = (
            f"two gradients of one batch differ by {difference / scale:.2g} of their size: call model.eval() to switch dropout "
            "off, or fix what else is random (check=False lets it be)"
        )
        raise ValueError(msg)
    pieces = list(batches[0].pieces(setting.microbatch, mean=setting.mean))
    if len(pieces) > 1:
        _look_at_pieces(objective, batches[0], pieces, first, setting)


def _look_at_reduction(objective: Objective, batch: Batch, value: float, setting: Setting) -> None:
    """Whether a loss that does not say so sums over samples, and was taken for a mean."""
    count = sample_count(batch.inputs)
    split = isinstance(batch.targets, Tensor) and batch.targets.dim() > 0 and batch.targets.shape[0] == count
    if hasattr(objective.loss, "reduction") or not setting.mean or count < 4 or not split:
        return
    halves = [_loss(objective, half, "a part of batch 0") for half in batch.pieces((count + 1) // 2, mean=False)]
    if abs(sum(halves) - value) <= 1e-5 * abs(value) and abs(value) > 0:
        msg = 'the loss is a sum over samples: say so, by reduction="sum"'
        raise ValueError(msg)


def _look_at_pieces(objective: Objective, batch: Batch, pieces: list[Batch], whole: Params, setting: Setting) -> None:
    """Whether the gradient of a batch is that of its pieces together."""
    total = {name: torch.zeros_like(g) for name, g in whole.items()}
    for piece in pieces:
        _loss(objective, piece, "a piece of batch 0")
        found = gradient(objective, move(piece.inputs, objective.device), move(piece.targets, objective.device))
        total = {name: g + piece.share / batch.share * found[name] for name, g in total.items()}
    size = max(float(g.abs().max()) for g in whole.values())
    if max(float((g - total[name]).abs().max()) for name, g in whole.items()) > REPEATED * max(size, 1e-12):
        msg = (
            f"the gradient of a batch is not that of its pieces together: the loss is no {'mean' if setting.mean else 'sum'} over "
            "samples (batch normalisation? class weights, ignored targets?); leave microbatch out, or say reduction=..."
        )
        raise ValueError(msg)


def _loss(objective: Objective, batch: Batch, name: str) -> float:
    value = objective.value(objective.params, move(batch.inputs, objective.device), move(batch.targets, objective.device))
    require_scalar(value, "loss", ': reduce it, as with reduction="mean"')
    if not bool(torch.isfinite(value)):
        msg = f"the loss of {name} of data is {float(value)}: look at the data and at the parameters"
        raise ValueError(msg)
    return float(value)


@torch.no_grad()
def choose(objective: Objective, batches: list[Batch], setting: Setting, memory: int, *, check: bool) -> Setting:
    """The way to products that the model's operations allow, and how many graphs fit into the memory."""
    pieces = [piece for batch in batches for piece in batch.pieces(setting.microbatch, mean=setting.mean)]
    largest = max(pieces, key=lambda piece: sample_count(piece.inputs))
    failures: dict[str, str] = {}

    def graph_of(way: str) -> int | None:
        """Bytes of the graph of a product, None when PyTorch lacks a derivative that it needs, or has a wrong one."""
        made = lambda: product_of(objective, largest, replace(setting, way=way))  # noqa: E731
        try:
            product, size = measured(made, objective.params, on=way == "reverse")
            objective.run(objective.leaves(), lambda: _try(product, objective.params, ASYMMETRY.get(way) if check else None))
        except (RuntimeError, NotImplementedError) as error:
            failures[way] = str(error)
            return None
        return size

    if setting.way in ("auto", "reverse") and memory > 0:
        size = graph_of("reverse")
        if size is not None and size <= memory:
            fitting = memory // max(size, 1)
            kept = len(pieces) if fitting >= len(pieces) else fitting - 1  # one that is not kept needs room, too
            return replace(setting, way="reverse", kept=kept)
    ways = hessian.WAYS if setting.kind == "hessian" else gauss_newton.WAYS
    order = ("forward", "reverse", "differences") if setting.way == "auto" else (setting.way,)
    if setting.way != "auto" and not check:
        return setting
    for way in order:  # the first takes less memory than the second, and up to twice the time
        if way in ways and way not in failures and graph_of(way) is not None:
            return replace(setting, way=way)
    msg = "no way to these products works for the model: " + "; ".join(f"{way}: {error}" for way, error in failures.items())
    raise ValueError(msg)


def _try(product: Product, params: Params, asymmetry: float | None) -> None:
    """One product, or two with random vectors that show whether the matrix is symmetric."""
    draws = torch.Generator().manual_seed(0)
    u, v = ({name: torch.randn(p.shape, generator=draws).to(p) for name, p in params.items()} for _ in range(2))
    of_v = product(v)
    if asymmetry is None:
        return
    of_u = product(u)
    left, right = (sum(float(torch.sum(a[name].double() * b[name].double())) for name in params) for a, b in ((u, of_v), (v, of_u)))
    size = math.sqrt(max(sum(float(torch.sum(part.double() ** 2)) for part in found.values()) for found in (of_u, of_v)))
    if abs(left - right) > asymmetry * size:
        msg = f"products are not those of a symmetric matrix: u'Hv = {left:.4g}, v'Hu = {right:.4g}"
        raise RuntimeError(msg)
