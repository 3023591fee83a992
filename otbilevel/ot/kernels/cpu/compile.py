"""How kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from otbilevel.ot.kernels.cpu.exp import SUMS

ARITHMETIC = {"fastmath": SUMS, "error_model": "numpy"}
"""Sums may be reordered; a division by zero is infinite, and no branch that raises."""


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, without the interpreter lock, and keep the result on disk.

    Where numba finds no folder that it may write to (a read-only installation, a container without a home), nothing is
    kept and every process compiles anew; ``NUMBA_CACHE_DIR`` in the environment names such a folder.
    """
    try:
        return njit(cache=True, nogil=True, **ARITHMETIC)(function)
    except RuntimeError:  # no locator available
        return njit(nogil=True, **ARITHMETIC)(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Copied by numba into the kernel that calls it: a real call counts references to every row that it is given, some 50 ns."""
    return njit(inline="always", **ARITHMETIC)(function)
