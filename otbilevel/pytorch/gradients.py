"""Gradients of a model's loss, one a row: of every sample, or of every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from otbilevel._core import validate
from otbilevel.pytorch.batches import Batch, move, read, sample_count, take
from otbilevel.pytorch.objective import Objective, Params, gradient
from otbilevel.pytorch.operators import named

CHUNK = 2**24
"""Numbers of gradients that are computed at a time."""


@torch.inference_mode(mode=False)
def gradients(
    model: torch.nn.Module,
    loss: Callable[[Any, Any], Tensor],
    params: Any = None,
    data: Iterable[tuple[Any, Any]] = (),
    *,
    per: str = "sample",
) -> Tensor:
    """Compute the gradients of a model's loss, such as M-FAC takes.

    Parameters
    ----------
    model : nn.Module
        The model, in the mode in which it is. It is not changed.
    loss : callable
        ``loss(model(inputs), targets)`` returns a scalar tensor.
    params : iterable of Tensor, optional
        Parameters of the model, in the order of the columns; by default all that require gradients.
    data : iterable of (inputs, targets)
        Batches.
    per : {"sample", "batch"}
        The gradient of every sample's own loss, or of every batch's.

    Returns
    -------
    (m, n) Tensor
        One a row, in the precision of the parameters and where they are; ``.numpy()`` shares its memory.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong; the message names it.

    Notes
    -----
    O(m n) memory. Samples are differentiated together by `torch.func.vmap`, one by one where an operation of the model has no rule
    for that.

    Examples
    --------
    >>> import torch
    >>> from otbilevel.curvature import MFAC
    >>> from otbilevel.pytorch import gradients
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> data = [(torch.eye(2), torch.ones(2, 1))]
    >>> G = gradients(model, torch.nn.MSELoss(), data=data)
    >>> G.shape
    torch.Size([2, 2])
    >>> F = MFAC.from_gradients(G, damping=1e-3)
    """
    if not isinstance(model, torch.nn.Module):
        msg = f"model must be a torch.nn.Module, got {type(model).__name__}"
        raise TypeError(msg)
    single = validate.choice(per, "per", ("sample", "batch")) == "sample"
    if (
        single
        and getattr(loss, "reduction", "") == "mean"
        and isinstance(loss, torch.nn.CrossEntropyLoss)
        and loss.weight is not None
    ):
        msg = 'the weight of a class cancels in the mean over a single sample: use reduction="sum"'
        raise ValueError(msg)
    chosen = {name: p.detach() for name, p in named(model, params).items()}
    objective = Objective(model, loss, chosen)
    rows = []
    for batch in read(data, mean=False):
        inputs, targets = move(batch.inputs, objective.device), move(batch.targets, objective.device)
        found = _of_samples(objective, inputs, targets) if single else _row(gradient(objective, inputs, targets))
        rows.append(found)
    return torch.cat(rows)


def _row(parts: Params) -> Tensor:
    return torch.cat([part.detach().reshape(1, -1) for part in parts.values()], dim=1)


def _of_samples(objective: Objective, inputs: Any, targets: Any) -> Tensor:
    """The gradients of a batch's samples, (samples, n)."""
    count, n = sample_count(inputs), sum(p.numel() for p in objective.params.values())

    def of_one(params: Params, x: Any, y: Any) -> Params:
        inputs, targets = take(x, None), take(y, None)  # a batch of one
        found: Params = grad(lambda p: objective.value(p, inputs, targets))(params)
        return found

    axes = (None, 0, None if targets is None else 0)
    together: Callable[..., Params] = vmap(of_one, in_dims=axes, randomness="different", chunk_size=max(1, CHUNK // n))
    try:
        parts = together(objective.params, inputs, targets)
        return torch.cat([part.detach().reshape(count, -1) for part in parts.values()], dim=1)
    except RuntimeError:
        pieces = Batch(inputs, targets, 1.0, 0).pieces(1, mean=False)
        return torch.cat([_row(gradient(objective, piece.inputs, piece.targets)) for piece in pieces])
