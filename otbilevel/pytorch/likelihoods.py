"""Derivatives of a loss in the outputs, sample by sample: with the targets of the data, or with targets drawn from the model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

CONVEX = (nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss, nn.HuberLoss, nn.SmoothL1Loss, nn.SoftMarginLoss)
CONVEX_FUNCTIONS = (nn.functional.cross_entropy, nn.functional.mse_loss, nn.functional.binary_cross_entropy_with_logits)
KNOWN = "nn.CrossEntropyLoss, nn.MSELoss and nn.BCEWithLogitsLoss"


def reduction_of(loss: Any) -> str:
    """How a loss reduces within a batch, as far as it says so."""
    found = getattr(loss, "reduction", "mean")
    if found not in ("mean", "sum"):
        msg = f'loss.reduction must be "mean" or "sum", as the loss must be a scalar; got {found!r}'
        raise ValueError(msg)
    return str(found)


def is_convex(loss: Any) -> bool:
    """Whether a loss is known to be convex in the outputs."""
    return isinstance(loss, CONVEX) or loss in CONVEX_FUNCTIONS


def counted(loss: Any, outputs: Tensor, targets: Any, samples: int, *, mean: bool) -> float:
    """How many samples the mean of a loss is over; 1 for a sum.

    Raises
    ------
    ValueError
        When it is not a mean over samples, each with a loss of its own.
    """
    if outputs.dim() == 0 or outputs.shape[0] != samples:
        found = f"the outputs of {samples} samples have shape {tuple(outputs.shape)}"
        msg = f"Fisher matrices need outputs whose first axis counts samples, but {found}: let the model keep that axis"
        raise ValueError(msg)
    if not mean:
        return 1.0
    if isinstance(loss, nn.CrossEntropyLoss):
        if loss.weight is not None:
            msg = 'a weighted mean of cross-entropies has no Fisher matrix of samples: use reduction="sum", or kind="ggn"'
            raise ValueError(msg)
        if isinstance(targets, Tensor) and not targets.is_floating_point():
            valid = int(torch.sum(targets != loss.ignore_index))
            if valid < targets.numel() and outputs.dim() > 2:
                msg = 'with ignored targets samples have different weights in the mean: use reduction="sum", or kind="ggn"'
                raise ValueError(msg)
            return float(valid if outputs.dim() == 2 else samples)
    return float(samples)


def true_derivatives(loss: Any, outputs: Tensor, targets: Any, count: float) -> tuple[Tensor, tuple[int, ...]]:
    """Derivatives of every sample's own loss in its outputs, (1, *outputs), and the axes of a sample."""
    with torch.enable_grad():
        f = outputs.detach().requires_grad_()
        (found,) = torch.autograd.grad(loss(f, targets), f)
    return (count * found)[None], tuple(range(2, outputs.dim() + 1))


def drawn_derivatives(
    loss: Any, outputs: Tensor, targets: Any, samples: int, generator: torch.Generator, *, mean: bool
) -> tuple[Tensor, tuple[int, ...]]:
    """The same with targets drawn from the likelihood that the loss is the negative logarithm of, (samples, *outputs)."""
    f = outputs.detach()
    like: dict[str, Any] = {"generator": generator, "device": f.device, "dtype": f.dtype}
    if isinstance(loss, nn.CrossEntropyLoss):
        _refuse(loss, weight=None, label_smoothing=0.0)
        probability = torch.movedim(torch.softmax(f, dim=1), 1, -1)
        classes = probability.shape[-1]
        drawn = torch.multinomial(probability.reshape(-1, classes), samples, replacement=True, generator=generator)
        one_hot = nn.functional.one_hot(drawn.T.reshape(samples, *probability.shape[:-1]), classes)
        u = torch.movedim(probability - one_hot.to(f.dtype), -1, 2)
        if isinstance(targets, Tensor) and not targets.is_floating_point():
            u = u * (targets != loss.ignore_index).to(f.dtype)[None, :, None]
        terms = f.numel() // (f.shape[0] * classes)  # positions of a sample, over which the mean goes, too
        return (u / math.sqrt(terms) if mean else u), (2,)
    if isinstance(loss, nn.MSELoss):
        u = math.sqrt(2.0) * torch.randn((samples, *f.shape), **like)
        width = f[0].numel() if mean else 1
        return u / math.sqrt(width), tuple(range(2, f.dim() + 1))
    if isinstance(loss, nn.BCEWithLogitsLoss):
        _refuse(loss, weight=None, pos_weight=None)
        probability = torch.sigmoid(f)
        u = probability - (torch.rand((samples, *f.shape), **like) < probability).to(f.dtype)
        width = f[0].numel() if mean else 1
        return u / math.sqrt(width), tuple(range(2, f.dim() + 1))
    msg = f'kind="fisher_mc" draws targets from the likelihood of {KNOWN}, got {type(loss).__name__}: use kind="ggn", its mean'
    raise TypeError(msg)


def _refuse(loss: Any, **defaults: Any) -> None:
    for name, default in defaults.items():
        if getattr(loss, name) != default:
            msg = f'kind="fisher_mc" does not take {type(loss).__name__}({name}=...): use kind="ggn"'
            raise ValueError(msg)
