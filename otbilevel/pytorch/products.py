"""Curvature-vector products of one batch, by `torch.func`: all take and return a dict of tensors like the parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp

Params = dict[str, Tensor]


@dataclass
class Objective:
    """The loss of a model on a batch as a function of some of its parameters.

    Attributes
    ----------
    model : nn.Module
        The model; it is not changed, its buffers are copied in every evaluation.
    loss : callable
        ``loss(outputs, targets)``.
    params : dict
        The parameters, detached, by their first name in the model.
    """

    model: torch.nn.Module
    loss: Callable[[Any, Any], Tensor]
    params: Params
    _rest: dict[str, Tensor] = field(default_factory=dict)

    def outputs(self, params: Params, inputs: Any) -> Any:
        """The outputs of the model."""
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        arguments = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
        return functional_call(self.model, {**params, **buffers}, tuple(arguments))

    def value(self, params: Params, inputs: Any, targets: Any) -> Tensor:
        """The loss, a scalar."""
        return self.loss(self.outputs(params, inputs), targets)


def gradient(objective: Objective, inputs: Any, targets: Any) -> Params:
    """Of the loss."""
    found: Params = grad(lambda p: objective.value(p, inputs, targets))(objective.params)
    return found


def hessian_forward(objective: Objective, inputs: Any, targets: Any, v: Params) -> Params:
    """H v, forward over reverse: the directional derivative of the gradient."""
    product: Params = jvp(grad(lambda p: objective.value(p, inputs, targets)), (objective.params,), (v,))[1]
    return product


def hessian_reverse(objective: Objective, inputs: Any, targets: Any, v: Params) -> Params:
    """H v, reverse over reverse: the gradient of <gradient, v>."""
    names = list(objective.params)
    with torch.enable_grad():
        params = {name: p.detach().requires_grad_() for name, p in objective.params.items()}
        value = objective.value(params, inputs, targets)
        first = torch.autograd.grad(value, [params[name] for name in names], create_graph=True, allow_unused=True)
        inner = sum((torch.sum(g * v[name]) for g, name in zip(first, names, strict=True) if g is not None), torch.zeros(()))
        if not inner.requires_grad:
            return {name: torch.zeros_like(p) for name, p in objective.params.items()}
        second = torch.autograd.grad(inner, [params[name] for name in names], allow_unused=True)
    return {name: torch.zeros_like(objective.params[name]) if h is None else h for name, h in zip(names, second, strict=True)}


def hessian_differences(objective: Objective, inputs: Any, targets: Any, v: Params) -> Params:
    """H v by a central difference of gradients, where no second derivative is implemented."""
    size = sum(float(torch.sum(t.double() ** 2)) for t in v.values()) ** 0.5
    if size == 0:
        return {name: torch.zeros_like(t) for name, t in v.items()}
    scale = max(1.0, sum(float(torch.sum(p.double() ** 2)) for p in objective.params.values()) ** 0.5)
    epsilon = torch.finfo(next(iter(v.values())).dtype).eps
    step = epsilon ** (1 / 3) * scale / size
    sides = []
    for sign in (1.0, -1.0):
        moved = Objective(
            objective.model, objective.loss, {name: p + sign * step * v[name] for name, p in objective.params.items()}
        )
        sides.append(gradient(moved, inputs, targets))
    return {name: (sides[0][name] - sides[1][name]) / (2 * step) for name in v}


HESSIANS = {"forward": hessian_forward, "reverse": hessian_reverse, "differences": hessian_differences}
"""Ways to a Hessian-vector product, the cheapest first."""


def gauss_newton(objective: Objective, inputs: Any, targets: Any, v: Params) -> Params:
    """J' H_out J v with the Jacobian J of the outputs and the Hessian of the loss in them."""
    function = lambda p: objective.outputs(p, inputs)  # noqa: E731
    outputs, tangent = jvp(function, (objective.params,), (v,))
    # Reverse over reverse, as H_out is symmetric: forward mode lacks some losses.
    curved = vjp(grad(lambda f: objective.loss(f, targets)), outputs)[1](tangent)[0]
    product: Params = vjp(function, objective.params)[1](curved)[0]
    return product


def fisher(objective: Objective, inputs: Any, weights: Tensor, axes: tuple[int, ...], v: Params) -> Params:
    """sum_s J' u_s (u_s . J v), the dot over `axes`, for derivatives u_s in the outputs: `weights`, (samples, *outputs)."""
    function = lambda p: objective.outputs(p, inputs)  # noqa: E731
    _, tangent = jvp(function, (objective.params,), (v,))
    along = torch.sum(weights * tangent, dim=axes, keepdim=True)
    product: Params = vjp(function, objective.params)[1](torch.sum(along * weights, dim=0))[0]
    return product
