"""How kernels are compiled."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

from numba import njit

from otbilevel._core.compiled import compiled
from otbilevel.ot.kernels.cpu.exp import SUMS

ARITHMETIC = {"fastmath": SUMS, "error_model": "numpy"}
"""Sums may be reordered; a division by zero is infinite, and no branch that raises."""


def _digest() -> str:
    """Of the sources of all kernels, as far as there are files."""
    files = sorted(pathlib.Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


_SOURCES = _digest()


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled and kept on disk by the name of the function, to which a digest of these sources is added.

    numba looks at one file, not at what a kernel takes from others.
    """
    function.__qualname__ += f"_{_SOURCES}"
    return compiled(function, **ARITHMETIC)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Copied by numba into the kernel that calls it: a real call counts references to every row that it is given, some 50 ns."""
    return njit(inline="always", **ARITHMETIC)(function)
