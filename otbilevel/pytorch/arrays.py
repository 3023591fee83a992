"""Tensors as the arrays that the solvers take, and back. No number is copied on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from otbilevel._core.array import array_namespace


def to_array(tensor: Tensor) -> Any:
    """What the solvers take for a tensor: on the CPU a NumPy view of its memory, for which there are compiled kernels, else itself.

    Tensors on another device go through the generic kernels, in PyTorch's own functions, and stay there.
    """
    detached = tensor.detach()
    if detached.dtype == torch.bfloat16:
        detached = detached.float()  # NumPy has none
    return detached.numpy() if detached.device.type == "cpu" else detached


def to_tensor(array: Any, like: Tensor) -> Tensor:
    """An array of a solver, or a number, as a tensor of the dtype and on the device of another one."""
    if isinstance(array, np.ndarray):
        array = torch.from_numpy(array)
    if not isinstance(array, Tensor):
        return torch.tensor(array, dtype=like.dtype, device=like.device)
    return array.to(dtype=like.dtype, device=like.device)


def shared(array: Any) -> Tensor:
    """An array of any library as a tensor where it is, without a copy where its memory allows that."""
    if isinstance(array, Tensor):
        return array
    if isinstance(array, np.ndarray):
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))
    return torch.from_dlpack(array)


def from_tensor(tensor: Tensor, like: Any) -> Any:
    """A tensor as an array of the library, dtype and device of another one."""
    if isinstance(like, Tensor):
        return tensor.to(dtype=like.dtype, device=like.device)
    if isinstance(like, np.ndarray):
        return tensor.cpu().numpy().astype(like.dtype, copy=False)
    xp = array_namespace(like)
    return xp.astype(xp.from_dlpack(tensor), like.dtype, copy=False)
