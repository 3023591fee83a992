"""The only seam to array libraries: what comes in is recognised here, and nothing else imports array_api_compat."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np
from array_api_compat import (
    device,
    is_array_api_obj,
    is_cupy_namespace,
    is_numpy_namespace,
    is_torch_array,
)

Array = Any
"""An array of any library that follows the array API standard."""

__all__ = [
    "Array",
    "ModuleType",
    "array_namespace",
    "as_array",
    "clamp",
    "common_namespace",
    "default_float",
    "device",
    "in_host_memory",
    "is_cupy_namespace",
    "is_numpy_namespace",
    "library_name",
    "readonly",
    "to_host",
    "to_numpy",
]


def array_namespace(*arrays: Array) -> ModuleType:
    """The functions for these arrays: NumPy's own, which follow the standard since 2.1 and cost half a microsecond less each."""
    if all(type(x) is np.ndarray for x in arrays):
        return np
    namespace: ModuleType = array_api_compat.array_namespace(*arrays)
    return namespace


def library_name(x: Array) -> str:
    """The name of the array library that `x` belongs to, for messages."""
    return str(type(x).__module__).split(".", 1)[0]


def default_float(xp: ModuleType) -> Any:
    """The default real floating dtype of a namespace (float64 in NumPy, float32 in PyTorch unless set otherwise)."""
    return xp.__array_namespace_info__().default_dtypes()["real floating"]


def as_array(x: Any, name: str) -> Array:
    """Accept an array as it is, convert a list (or any object that NumPy understands) to NumPy, refuse the rest.

    Integers and booleans become the default floating dtype of their library; real floating dtypes are kept.

    Raises
    ------
    TypeError
        For strings, objects, complex numbers, sparse matrices, and tensors that require gradients.
    """
    if isinstance(x, np.ma.MaskedArray):
        msg = f"{name} is a masked array: fill it first (a forbidden pair of C is +inf, a missing point has weight 0)"
        raise TypeError(msg)
    if isinstance(x, (np.ndarray, np.generic)) or not is_array_api_obj(x):
        x = _numpy(x, name)
    if is_torch_array(x):
        _check_tensor(x, name)
    xp = array_namespace(x)
    if xp.isdtype(x.dtype, ("integral", "bool")):
        return xp.astype(x, default_float(xp))
    if not xp.isdtype(x.dtype, "real floating"):
        msg = f"{name} must hold real numbers, got dtype {x.dtype}"
        raise TypeError(msg)
    if x.dtype in (xp.float32, xp.float64):
        return x
    return xp.astype(x, xp.float64 if xp.finfo(x.dtype).bits > 64 else xp.float32)


def as_vector(x: Any, name: str) -> Array:
    """Like `as_array`, for vectors that are not empty.

    Raises
    ------
    TypeError, ValueError
        When it is none.
    """
    array = as_array(x, name)
    if len(array.shape) != 1 or array.shape[0] == 0:
        msg = f"{name} must be a vector, got shape {tuple(array.shape)}"
        raise ValueError(msg)
    return array


def _check_tensor(x: Any, name: str) -> None:
    if x.requires_grad:
        msg = (
            f"{name} is a tensor that requires gradients, which this function does not record: pass {name}.detach(), or take what "
            "otbilevel.pytorch has (solve_ot, SinkhornLoss, hypergradient)"
        )
        raise TypeError(msg)
    if "strided" not in str(x.layout):
        msg = f"{name} is a sparse tensor, which is not supported: pass a dense one ({name}.to_dense())"
        raise TypeError(msg)


def _numpy(x: Any, name: str) -> np.ndarray:
    """A list, an array-like or a subclass of ndarray as a plain NumPy array of real numbers."""
    if hasattr(x, "toarray"):
        msg = f"{name} is a sparse matrix, which is not supported: pass a dense array ({name}.toarray())"
        raise TypeError(msg)
    try:
        converted = np.asarray(x)
    except (ValueError, TypeError, RuntimeError) as error:
        msg = f"{name} cannot be read as an array of numbers: {error}"
        raise TypeError(msg) from error
    if converted.dtype.kind not in "fiub":
        msg = f"{name} must hold real numbers, got dtype {converted.dtype}"
        raise TypeError(msg)
    return converted.astype(converted.dtype.newbyteorder("="), copy=False)


def common_namespace(arrays: dict[str, Array]) -> ModuleType:
    """The one namespace of all `arrays` (a dict from argument name to array).

    Raises
    ------
    TypeError
        When the arrays belong to different libraries or live on different devices.
    """
    libraries = {name: library_name(x) for name, x in arrays.items()}
    if len(set(libraries.values())) > 1:
        found = ", ".join(f"{name}: {library}" for name, library in libraries.items())
        msg = f"all arrays must come from one library, got {found}; convert them first, nothing is transferred silently"
        raise TypeError(msg)
    devices = {name: device(x) for name, x in arrays.items()}
    if len(set(map(str, devices.values()))) > 1:
        found = ", ".join(f"{name}: {where}" for name, where in devices.items())
        msg = f"all arrays must live on one device, got {found}; move them first, nothing is transferred silently"
        raise TypeError(msg)
    namespace: ModuleType = array_namespace(*arrays.values())
    return namespace


def readonly(x: Array) -> Array:
    """A C-contiguous view of a NumPy or CuPy array (a copy only if it is not contiguous), read-only where the library knows that.

    Compiled kernels then see one type for all inputs, writeable or not, and cannot change the caller's data.
    """
    if not isinstance(x, np.ndarray):
        return array_namespace(x).asarray(x, order="C")
    view = np.ascontiguousarray(x).view()
    view.flags.writeable = False
    return view


def clamp(x: Array, low: float, high: float) -> Array:
    """As `clip`, which array_api_compat does by masks for CuPy: the host would wait for how many entries they mark."""
    xp = array_namespace(x)
    x = x if low == -math.inf else xp.maximum(x, xp.full_like(x, low))
    return x if high == math.inf else xp.minimum(x, xp.full_like(x, high))


def in_host_memory(x: Array) -> bool:
    """Whether NumPy can read `x` where it is."""
    try:
        to_numpy(x[:0])
    except TypeError:
        return False
    return True


def to_host(x: Array) -> np.ndarray:
    """A few numbers of any library on the host, for decisions that are taken there: from a device, too, where they are copied."""
    if not isinstance(x, np.ndarray) and hasattr(x, "cpu"):
        x = x.detach().cpu()
    elif not isinstance(x, np.ndarray) and hasattr(x, "get"):
        x = x.get()
    return to_numpy(x)


def to_numpy(x: Array) -> np.ndarray:
    """The same numbers as a NumPy array; for arrays in host memory only.

    Raises
    ------
    TypeError
        When `x` lives on another device: the caller must move it, nothing is transferred silently.
    """
    if isinstance(x, np.ndarray):
        return x
    try:
        return np.asarray(x)
    except (TypeError, RuntimeError, BufferError) as error:
        msg = f"this needs arrays in host memory, got one of {library_name(x)} on {device(x)}: move it first ({error})"
        raise TypeError(msg) from error
