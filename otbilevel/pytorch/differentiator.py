"""Derivatives of functions of tensors, for the array entries: no graph is left behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from otbilevel._core.differentiate import DIFFERENTIATORS, Function, SecondDerivatives
from otbilevel.pytorch.objective import LinearMap, derivative


class Autograd:
    """By `torch.autograd`."""

    def gradients(self, fun: Function, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of a scalar function in x and in y."""
        with torch.enable_grad():
            leaves = x.detach().requires_grad_(), y.detach().requires_grad_()
            value = _scalar(fun(*leaves))
        gx, gy = LinearMap([value], leaves)([torch.ones_like(value)])
        return gx, gy

    def second(self, fun: Function, x: Tensor, y: Tensor) -> SecondDerivatives:
        """Its second derivatives in y, through a graph that lives as long as they do."""
        with torch.enable_grad():
            x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
            (gradient,) = derivative(_scalar(fun(x, y)), [y])
        in_y, in_x = LinearMap([gradient], [y]), LinearMap([gradient], [x])
        flat = torch.zeros_like(y) if gradient is None else gradient.detach()
        return SecondDerivatives(flat, lambda v: in_y([v])[0], lambda v: in_x([v])[0])

    def vjp(self, fun: Function, x: Tensor, y: Tensor, lam: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """J_x' lam and J_y' lam of a function with vectors as values."""
        with torch.enable_grad():
            leaves = x.detach().requires_grad_(), y.detach().requires_grad_()
            values = fun(*leaves)
        if not isinstance(values, Tensor) or not values.requires_grad:
            found = "a tensor without a graph" if isinstance(values, Tensor) else type(values).__name__
            msg = f"{name} returned {found}: compute a tensor from x and y without detach() and item(), or give jac or vjp"
            raise ValueError(msg)
        gx, gy = LinearMap([values], leaves)([lam.reshape(values.shape).to(values)])
        return gx, gy


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.dim() > 0:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        msg = f"upper and lower must return scalar tensors, got {found}"
        raise TypeError(msg)
    return value


DIFFERENTIATORS["torch"] = Autograd()
