"""Hessian-vector products of one batch: three ways, each from a batch to a function of v."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.func import grad, jvp

from otbilevel.pytorch.objective import LinearMap, Objective, Params, Product, derivative, gradient


def reverse(objective: Objective, inputs: Any, targets: Any) -> Product:
    """Reverse over reverse, through the graph of the gradient: made once, it serves for any number of products."""
    with torch.enable_grad():
        params = objective.leaves()
        first = objective.run(params, lambda: derivative(objective.value(params, inputs, targets), params.values()))
    names, product = list(params), LinearMap(first, params.values())
    return lambda v: dict(zip(names, product([v[name] for name in names]), strict=True))


def forward(objective: Objective, inputs: Any, targets: Any) -> Product:
    """Forward over reverse: the directional derivative of the gradient. No graph is made."""
    function = grad(lambda p: objective.value(p, inputs, targets))

    def product(v: Params) -> Params:
        found: Params = jvp(function, (objective.params,), (v,))[1]
        return found

    return product


def differences(objective: Objective, inputs: Any, targets: Any) -> Product:
    """A central difference of gradients, where no second derivative is implemented."""
    params = objective.params
    scale = max(1.0, _norm(params))
    epsilon = torch.finfo(next(iter(params.values())).dtype).eps ** (1 / 3)

    def product(v: Params) -> Params:
        size = _norm(v)
        if size == 0:
            return {name: torch.zeros_like(t) for name, t in v.items()}
        step = epsilon * scale / size
        ahead, behind = (
            gradient(objective.moved({name: p + sign * step * v[name] for name, p in params.items()}), inputs, targets)
            for sign in (1.0, -1.0)
        )
        return {name: (ahead[name] - behind[name]) / (2 * step) for name in v}

    return product


def _norm(parts: Params) -> float:
    return math.sqrt(sum(float(torch.sum(t.double() ** 2)) for t in parts.values()))


WAYS = {"reverse": reverse, "forward": forward, "differences": differences}
