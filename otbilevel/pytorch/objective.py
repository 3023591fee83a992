"""The loss of a model on a batch as a function of its parameters, and the graph of a derivative, which can be kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge, saved_tensors_hooks
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

Params = dict[str, Tensor]
Product = Callable[[Params], Params]


class _Runner(torch.nn.Module):
    """A module whose parameters are those of a model, and which runs any function: to replace them while it runs."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


class Objective:
    """The loss of a model on a batch as a function of some of its parameters. The model is not changed.

    Parameters
    ----------
    model : nn.Module
        The model. Its mode (training or evaluation) and its buffers are remembered, its other parameters watched.
    loss : callable
        ``loss(outputs, targets)``.
    params : dict
        Copies of the parameters, by their first name in the model.
    """

    def __init__(self, model: torch.nn.Module, loss: Callable[[Any, Any], Tensor], params: Params) -> None:
        self.loss, self.params = loss, params
        self._runner = _Runner(model)
        self._modes = [(module, module.training) for module in model.modules()]
        self._buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
        self._others = {name: p for name, p in model.named_parameters() if name not in params}
        self._versions = self._stamp()

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.params.values())).device

    def moved(self, params: Params) -> Objective:
        """The same with other values of the parameters."""
        other = copy.copy(self)
        other.params = params
        return other

    def _stamp(self) -> list[tuple[int, int]]:
        return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in self._others.values()]

    def require_unchanged(self) -> None:
        """Raise a RuntimeError when parameters that were not chosen have been changed meanwhile."""
        for name, before, now in zip(self._others, self._versions, self._stamp(), strict=True):
            if before != now:
                msg = f"the parameter {name} of the model was changed since the operator was made: make it anew"
                raise RuntimeError(msg)

    def run(self, params: Params, function: Callable[[], Any]) -> Any:
        """Run a function while the model has these parameters, copies of the buffers, and its remembered mode.

        Backward passes belong inside, too: a checkpoint evaluates its part of the model again in them. Attention takes the one
        implementation that PyTorch can differentiate twice.
        """
        replaced = {**params, **{name: value.clone() for name, value in self._buffers.items()}}
        changed = [(module, module.training) for module, mode in self._modes if module.training != mode]
        for module, mode in changed:
            module.training = not mode
        try:
            with sdpa_kernel(SDPBackend.MATH):
                return functional_call(self._runner, {f"model.{name}": value for name, value in replaced.items()}, (function,))
        finally:
            for module, mode in changed:
                module.training = mode

    def outputs(self, params: Params, inputs: Any) -> Any:
        """The outputs of the model."""
        arguments = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
        return self.run(params, lambda: self._runner.model(*arguments))

    def value(self, params: Params, inputs: Any, targets: Any) -> Tensor:
        """The loss, a scalar."""
        return self.loss(self.outputs(params, inputs), targets)

    def leaves(self) -> Params:
        """The parameters as leaves of a graph."""
        return {name: p.detach().requires_grad_() for name, p in self.params.items()}


def require_scalar(value: Any, name: str, hint: str = "") -> Tensor:
    """What a loss returned, if it is a scalar tensor, else ValueError."""
    if not isinstance(value, Tensor) or value.dim() > 0:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        msg = f"{name} must return a scalar tensor, got {found}{hint}"
        raise ValueError(msg)
    return value


def gradient(objective: Objective, inputs: Any, targets: Any) -> Params:
    """Of the loss; by plain reverse mode, which every model has."""
    with torch.enable_grad():
        params = objective.leaves()

        def run() -> list[Tensor]:
            value = objective.value(params, inputs, targets)
            return LinearMap([value], params.values())([torch.ones_like(value)])

        return dict(zip(params, objective.run(params, run), strict=True))


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
        # Edges of the graph: the values of the outputs are not needed.
        self._outputs = [get_gradient_edge(outputs[k]) for k in self._places]

    def __call__(self, v: Any) -> list[Tensor]:
        weights = [v[k] for k in self._places]
        if not weights:
            return [torch.zeros_like(leaf) for leaf in self._leaves]
        with torch.enable_grad():  # for what a checkpoint evaluates again
            found = torch.autograd.grad(self._outputs, self._leaves, weights, retain_graph=True, allow_unused=True)
        return [_dense(part, leaf) for leaf, part in zip(self._leaves, found, strict=True)]


def _dense(part: Tensor | None, leaf: Tensor) -> Tensor:
    if part is None:
        return torch.zeros_like(leaf)
    return part.to_dense() if part.is_sparse else part


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


def measured(build: Callable[[], Product], leaves: Params, *, on: bool = True) -> tuple[Product, int]:
    """What `build` makes, and the bytes that its graph saves beside the leaves; 0 when the measurement, which is slow, is off."""
    storages: dict[int, int] = {}
    known = {leaf.untyped_storage().data_ptr() for leaf in leaves.values()}

    def note(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return saved.detach()

    with saved_tensors_hooks(note, lambda saved: saved) if on else nullcontext():
        made = build()
    return made, sum(storages.values())
