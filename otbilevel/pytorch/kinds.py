"""The kinds of curvature matrices, and their product on a piece of data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from otbilevel.pytorch import gauss_newton, hessian
from otbilevel.pytorch.batches import Batch, move, sample_count
from otbilevel.pytorch.likelihoods import counted, drawn_derivatives, true_derivatives
from otbilevel.pytorch.objective import Objective, Product

KINDS = ("hessian", "ggn", "fisher_mc", "empirical_fisher")


@dataclass(frozen=True)
class Setting:
    """What a `ModelOperator` computes, and how: see `from_torch`. `kept` is the number of pieces whose graphs are kept."""

    kind: str
    way: str
    mean: bool
    microbatch: int | None
    samples: int
    kept: int = 0


def product_of(objective: Objective, piece: Batch, setting: Setting) -> Product:
    """The function v -> matrix times v of a piece of data, its factor left out."""
    inputs, targets = move(piece.inputs, objective.device), move(piece.targets, objective.device)
    if setting.kind == "hessian":
        return hessian.WAYS[setting.way](objective, inputs, targets)
    linear = gauss_newton.WAYS[setting.way](objective, inputs)
    if setting.kind == "ggn":
        return gauss_newton.gauss_newton(objective, linear, targets)
    samples = sample_count(inputs)
    count = counted(objective.loss, linear.outputs, targets, samples, mean=setting.mean)
    if setting.kind == "empirical_fisher":
        weights, axes = true_derivatives(objective.loss, linear.outputs, targets, count)
    else:
        draws = torch.Generator(objective.device).manual_seed(piece.seed)
        weights, axes = drawn_derivatives(objective.loss, linear.outputs, targets, setting.samples, draws, mean=setting.mean)
    return gauss_newton.fisher(linear, weights / (weights.shape[0] * count) ** 0.5, axes)
