"""Autograd functions on solved problems. Forward passes read what is solved; backward passes are implicit derivatives.

Nothing of the iterations is recorded: the graph holds the inputs and the result, however many iterations there were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from otbilevel.ot import Linearization, OTGradient, OTResult, linearize
from otbilevel.pytorch.arrays import to_array, to_tensor

Input: TypeAlias = "Tensor | None"
"""A tensor that may be differentiated in, or nothing where a default stands."""


class Differentiable(Protocol):
    """A solved problem whose optimal value has two derivatives."""

    def gradient(self, wrt: Any) -> OTGradient:
        """The gradient of the value in the inputs of these names."""
        ...

    def hvp(self, *, wrt: Any, **direction: Any) -> OTGradient:
        """The Hessian of the value times a change of the inputs."""
        ...


@dataclass(eq=False)
class Solved:
    """A solution with its derivatives, as graphs hold it: it knows no tensor, as a tensor that it held would hold the graph.

    Attributes
    ----------
    result : OTResult
        The solution.
    """

    result: OTResult

    @cached_property
    def linear(self) -> Linearization:
        """Made at the first derivative that needs it."""
        return linearize(self.result)

    def gradient(self, wrt: Any) -> OTGradient:
        """Of the value."""
        return self.result.gradient(wrt)

    def hvp(self, *, wrt: Any, **direction: Any) -> OTGradient:
        """Of the value."""
        return self.linear.hvp(wrt=wrt, **direction)

    def pull(self, outputs: tuple[str, ...], *cotangents: Any, wrt: list[str]) -> OTGradient:
        """Of the outputs of these names."""
        given = dict(zip(outputs, cotangents, strict=True))
        if "value_linear" in given:
            given["value_linear"] = float(given["value_linear"])
        return self.linear.vjp(**given, wrt=wrt)

    def pull_map(self, points: Any, cotangent: Any, *, wrt: list[str]) -> OTGradient:
        """Of the barycentric map of points."""
        names = [name for name in wrt if name != "points"]
        return self.linear.vjp(barycentric_map=cotangent, points=points, wrt=names)


Pullback = Callable[..., OTGradient]
"""``pullback(*cotangents, wrt=names)``: from derivatives in outputs to derivatives in inputs."""


class Value(torch.autograd.Function):
    """The optimal value, with first and second derivatives."""

    @staticmethod
    def forward(ctx: Any, solved: Differentiable, value: float, names: tuple[str, ...], *inputs: Input) -> Tensor:
        ctx.solved, ctx.names = solved, names
        ctx.save_for_backward(*inputs)
        return to_tensor(value, like(inputs))

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        inputs = ctx.saved_tensors
        needed = _needed(ctx, skip=3)
        gradients = iter(apply(ValueGradient, ctx.solved, ctx.names, needed, *inputs))
        found = [outputs[0].to(v.dtype) * next(gradients) if wants else None for v, wants in zip(inputs, needed, strict=True)]
        return None, None, None, *found


class ValueGradient(torch.autograd.Function):
    """The gradient of the optimal value, differentiable once."""

    @staticmethod
    def forward(ctx: Any, solved: Differentiable, names: tuple[str, ...], needed: tuple[bool, ...], *inputs: Input) -> Any:
        ctx.solved, ctx.names, ctx.needed = solved, names, needed
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        wrt = [name for name, wants in zip(names, needed, strict=True) if wants]
        gradient = solved.gradient(wrt)
        return tuple(
            to_tensor(getattr(gradient, name), v)
            for name, v, wants in zip(names, inputs, needed, strict=True)
            if wants and v is not None
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        inputs = ctx.saved_tensors
        given = (name for name, wants in zip(ctx.names, ctx.needed, strict=True) if wants)
        direction = {name: to_array(v) for name, v in zip(given, cotangents, strict=True) if v is not None}
        needed = _needed(ctx, skip=3)
        if not direction or not any(needed):
            return (None,) * (3 + len(inputs))
        if "reg" in direction:
            direction["reg"] = float(direction["reg"])
        wrt = [name for name, wants in zip(ctx.names, needed, strict=True) if wants]
        change = ctx.solved.hvp(wrt=wrt, **direction)
        return None, None, None, *_as_tensors(change, ctx.names, inputs, needed)


class Outputs(torch.autograd.Function):
    """Other outputs than the value, with first derivatives by one linear solve."""

    @staticmethod
    def forward(ctx: Any, pullback: Pullback, outputs: tuple[Any, ...], names: tuple[str, ...], *inputs: Input) -> Any:
        ctx.pullback, ctx.names = pullback, names
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return tuple(to_tensor(output, like(inputs)) for output in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        inputs = ctx.saved_tensors
        needed = _needed(ctx, skip=3)
        if all(v is None for v in cotangents) or not any(needed):
            return (None,) * (3 + len(inputs))
        wrt = [name for name, wants in zip(ctx.names, needed, strict=True) if wants]
        gradient = ctx.pullback(*(None if v is None else to_array(v) for v in cotangents), wrt=wrt)
        return None, None, None, *_as_tensors(gradient, ctx.names, inputs, needed)


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """Call an autograd function."""
    return function.apply(*args)


def like(inputs: tuple[Input, ...]) -> Tensor:
    """A tensor of the dtype and on the device of what comes out: that which the inputs have together."""
    tensors = [v for v in inputs if v is not None]
    dtype = tensors[0].dtype
    for v in tensors[1:]:
        dtype = torch.promote_types(dtype, v.dtype)
    if not dtype.is_floating_point:
        dtype = torch.get_default_dtype()
    return torch.empty(0, dtype=dtype, device=tensors[0].device)


def _needed(ctx: FunctionCtx, *, skip: int) -> tuple[bool, ...]:
    return tuple(ctx.needs_input_grad[skip:])


def _as_tensors(
    gradient: OTGradient, names: tuple[str, ...], inputs: tuple[Input, ...], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    return [
        to_tensor(getattr(gradient, name), v) if wants and v is not None else None
        for name, v, wants in zip(names, inputs, needed, strict=True)
    ]
