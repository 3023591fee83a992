"""Compiling and launching: the only file that imports CuPy."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np

from otbilevel._core.array import Array

FOLDER = Path(__file__).parent
FILES = ("sweeps", "strips", "products", "active", "sparse", "vectors")
"""The .cu files."""


@functools.cache
def source(file: str) -> str:
    """The text of a .cu file with that of its headers: CuPy finds compiled modules again by their text, which must be all of it."""
    text = (FOLDER / f"{file}.cu").read_text()
    return re.sub(r'#include "(\w+\.cuh)"\n', lambda found: (FOLDER / found[1]).read_text(), text)


@functools.cache
def function(file: str, name: str, macros: tuple[tuple[str, str], ...]) -> Any:
    """The kernel `name` of a .cu file, compiled with these macros for the device that it is first launched on."""
    return module(file, macros).get_function(name)


@functools.cache
def module(file: str, macros: tuple[tuple[str, str], ...]) -> Any:
    """A .cu file with these macros; its kernels share one compilation."""
    import cupy  # noqa: PLC0415

    return cupy.RawModule(code=source(file), options=("-std=c++17", *(f"-D{macro}={value}" for macro, value in macros)))


def launch(file: str, name: str, grid: tuple[int, ...], block: tuple[int, ...], *args: Any, **macros: Any) -> None:
    """Run a kernel on the current stream. Python numbers become int32 and float64; arrays must be contiguous."""
    values: list[Any] = []
    for value in args:
        if isinstance(value, (bool, int)):
            values.append(np.int32(value))
        elif isinstance(value, float):
            values.append(np.float64(value))
        else:
            if not value.flags.c_contiguous:  # it would be read as something else
                msg = f"{name} takes contiguous arrays"
                raise ValueError(msg)
            values.append(value)
    function(file, name, tuple(sorted((key, str(value)) for key, value in macros.items())))(grid, block, tuple(values))


def empty(shape: Any, dtype: Any = np.float64) -> Array:
    """Room on the current device."""
    import cupy  # noqa: PLC0415

    return cupy.empty(shape, dtype)


def multiprocessors() -> int:
    """How many the current device has."""
    return _multiprocessors(_device())


def never() -> Array:
    """What a kernel takes for `done` where nothing can be: a zero on the current device."""
    return _zero(_device())


def _device() -> int:
    import cupy  # noqa: PLC0415

    return int(cupy.cuda.runtime.getDevice())


@functools.cache
def _multiprocessors(device: int) -> int:
    import cupy  # noqa: PLC0415

    return int(cupy.cuda.Device(device).attributes["MultiProcessorCount"])


@functools.cache
def _zero(device: int) -> Array:  # noqa: ARG001 -- the key: one for each device
    import cupy  # noqa: PLC0415

    return cupy.zeros(1)


def c_type(x: Array) -> str:
    """How CUDA C++ calls the dtype of an array."""
    return {"float32": "float", "float64": "double"}[str(x.dtype)]


def sum_parts(parts: Array, length: int) -> Array:
    """Add up partial sums, (count, length)."""
    if parts.shape[0] == 1:
        return parts[0]
    out = empty(length)
    launch("vectors", "sum_parts", (-(-length // 32),), (32, 8), parts, parts.shape[0], length, out)
    return out


def read(numbers: Array) -> list[float]:
    """Numbers that the host wants to know: it waits for them, once."""
    return [float(x) for x in numbers.get()]
