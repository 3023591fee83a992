"""Tensors as the arrays that the solvers take, and back. No number is copied on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


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
