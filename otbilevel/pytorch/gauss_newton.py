"""Products with matrices J' M J of one batch, J the Jacobian of a model's outputs: Gauss-Newton and Fisher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp

from otbilevel.pytorch.objective import LinearMap, Objective, Params, Product, derivative


@dataclass(frozen=True)
class Linearization:
    """Outputs, and the products with their Jacobian and its transpose."""

    outputs: Tensor
    push: Callable[[Params], Tensor]
    pull: Callable[[Tensor], Params]


def reverse(objective: Objective, inputs: Any) -> Linearization:
    """Both through graphs that are kept: J v is the derivative of J' w in w."""
    with torch.enable_grad():
        params = objective.leaves()
        outputs = _one_tensor(objective.outputs(params, inputs))
        w = torch.zeros_like(outputs).requires_grad_()
        pulled = objective.run(params, lambda: derivative(outputs, params.values(), w))
    names = list(params)
    forward_map, backward_map = LinearMap(pulled, [w]), LinearMap([outputs], params.values())
    return Linearization(
        outputs.detach(),
        lambda v: forward_map([v[name] for name in names])[0],
        lambda u: dict(zip(names, backward_map([u]), strict=True)),
    )


def forward(objective: Objective, inputs: Any) -> Linearization:
    """J v by forward differentiation, which needs no graph."""
    function = lambda p: objective.outputs(p, inputs)  # noqa: E731
    outputs, pull = vjp(function, objective.params)
    _one_tensor(outputs)
    return Linearization(outputs, lambda v: jvp(function, (objective.params,), (v,))[1], lambda u: pull(u)[0])


def _one_tensor(outputs: Any) -> Tensor:
    if not isinstance(outputs, Tensor):
        msg = f"the model must return one tensor for this kind of matrix, got {type(outputs).__name__}: wrap it, or use the Hessian"
        raise TypeError(msg)
    return outputs


WAYS = {"reverse": reverse, "forward": forward}


def gauss_newton(objective: Objective, linear: Linearization, targets: Any) -> Product:
    """J' H_out J v with the Hessian H_out of the loss in the outputs."""
    with torch.enable_grad():
        outputs = linear.outputs.detach().requires_grad_()
        slope = derivative(objective.loss(outputs, targets), [outputs])
    curved = LinearMap(slope, [outputs])
    return lambda v: linear.pull(curved([linear.push(v)])[0])


def fisher(linear: Linearization, weights: Tensor, axes: tuple[int, ...]) -> Product:
    """sum_s J' u_s (u_s . J v), the dot over `axes`, for derivatives u_s in the outputs: `weights`, (samples, *outputs)."""

    def product(v: Params) -> Params:
        along = weights * linear.push(v)
        if axes:  # without axes the dot is over nothing, for `torch.sum` over everything
            along = torch.sum(along, dim=axes, keepdim=True)
        return linear.pull(torch.sum(along * weights, dim=0))

    return product
