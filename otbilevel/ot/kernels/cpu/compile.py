"""How kernels are compiled."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

from numba import njit

from otbilevel.ot.kernels.cpu.exp import SUMS

ARITHMETIC = {"fastmath": SUMS, "error_model": "numpy"}
"""Sums may be reordered; a division by zero is infinite, and no branch that raises."""


def _digest() -> str:
    """Of the sources of all kernels, as far as there are files."""
    files = sorted(pathlib.Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


_SOURCES = _digest()


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, without the interpreter lock, and keep the result on disk.

    Where numba finds no folder that it may write to (a read-only installation, a container without a home), nothing is
    kept and every process compiles anew; ``NUMBA_CACHE_DIR`` in the environment names such a folder. What is kept goes by the name
    of the function, to which a digest of these sources is added: numba looks at one file, not at what a kernel takes from others.
    """
    function.__qualname__ += f"_{_SOURCES}"
    try:
        return njit(cache=True, nogil=True, **ARITHMETIC)(function)
    except RuntimeError:  # no locator available
        return njit(nogil=True, **ARITHMETIC)(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Copied by numba into the kernel that calls it: a real call counts references to every row that it is given, some 50 ns."""
    return njit(inline="always", **ARITHMETIC)(function)
