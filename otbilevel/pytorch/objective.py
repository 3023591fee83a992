"""The loss of a model on a batch as a function of its parameters, and the graph of a derivative, which can be kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

Params = dict[str, Tensor]
Product = Callable[[Params], Params]


@dataclass(frozen=True)
class Objective:
    """The loss of a model on a batch as a function of some of its parameters.

    Attributes
    ----------
    model : nn.Module
        The model; it is not changed.
    loss : callable
        ``loss(outputs, targets)``.
    params : dict
        Copies of the parameters, by their first name in the model.
    buffers : dict
        Copies of the buffers; every evaluation gets copies of these.
    """

    model: torch.nn.Module
    loss: Callable[[Any, Any], Tensor]
    params: Params
    buffers: Params

    def outputs(self, params: Params, inputs: Any) -> Any:
        """The outputs of the model."""
        buffers = {name: value.clone() for name, value in self.buffers.items()}
        arguments = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
        return functional_call(self.model, {**params, **buffers}, tuple(arguments))

    def value(self, params: Params, inputs: Any, targets: Any) -> Tensor:
        """The loss, a scalar."""
        return self.loss(self.outputs(params, inputs), targets)

    def leaves(self) -> Params:
        """The parameters as leaves of a graph."""
        return {name: p.detach().requires_grad_() for name, p in self.params.items()}


def gradient(objective: Objective, inputs: Any, targets: Any) -> Params:
    """Of the loss; by plain reverse mode, which every model has."""
    with torch.enable_grad():
        params = objective.leaves()
        value = objective.value(params, inputs, targets)
    return dict(zip(params, LinearMap([value], params.values())([torch.ones_like(value)]), strict=True))


class LinearMap:
    """v -> sum_i (d outputs_i / d leaves)' v_i through a graph that is kept, so that it can be used again and again.

    Parameters
    ----------
    outputs : sequence of Tensor or None
        What is differentiated; None where there is nothing.
    leaves : sequence of Tensor
        In what.
    """

    def __init__(self, outputs: Any, leaves: Any) -> None:
        self._leaves = list(leaves)
        self._places = [k for k, out in enumerate(outputs) if out is not None and out.requires_grad]
        self._outputs = [outputs[k] for k in self._places]

    def __call__(self, v: Any) -> list[Tensor]:
        weights = [v[k] for k in self._places]
        if not weights:
            return [torch.zeros_like(leaf) for leaf in self._leaves]
        found = torch.autograd.grad(self._outputs, self._leaves, weights, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(leaf) if part is None else part for leaf, part in zip(self._leaves, found, strict=True)]


def derivative(output: Tensor, leaves: Iterable[Tensor], weights: Tensor | None = None) -> tuple[Tensor | None, ...]:
    """The derivative of `output` (times `weights`) in `leaves`, with a graph of its own; None where it does not depend on one.

    Raises
    ------
    RuntimeError
        When an operation can be differentiated only once. PyTorch would take what it returns for a constant.
    """
    leaves = list(leaves)
    if not output.requires_grad:
        return (None,) * len(leaves)
    found: tuple[Tensor | None, ...] = torch.autograd.grad(output, leaves, weights, create_graph=True, allow_unused=True)
    if any(node.name().endswith("::Error") for node in _nodes(found)):
        msg = "an operation of the model is marked with @once_differentiable"
        raise RuntimeError(msg)
    return found


def reaches(outputs: Iterable[Tensor | None], leaves: Iterable[Tensor]) -> bool:
    """Whether any of the leaves is in the graph of the outputs."""
    wanted = {id(leaf) for leaf in leaves}
    return any(id(getattr(node, "variable", None)) in wanted for node in _nodes(outputs))


def _nodes(tensors: Iterable[Tensor | None]) -> Iterator[Any]:
    """All operations in the graph of some tensors."""
    waiting = [t.grad_fn for t in tensors if t is not None and t.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        new = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= new
        waiting.extend(new)


def measured(build: Callable[[], Product], *, on: bool = True) -> tuple[Product, int]:
    """What `build` makes, and the bytes that its graph saves for derivatives; 0 when the measurement, which takes time, is off."""
    storages: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return saved.detach()

    with saved_tensors_hooks(note, lambda saved: saved) if on else nullcontext():
        made = build()
    return made, sum(storages.values())
