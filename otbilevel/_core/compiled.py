"""Functions that numba compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile at the first call, without the interpreter lock, and keep the result on disk.

    Where numba finds no folder that it may write to (a read-only installation, a container without a home), nothing is kept and
    every process compiles anew; ``NUMBA_CACHE_DIR`` in the environment names such a folder.
    """
    try:
        made: Callable[..., Any] = njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # no locator available
        made = njit(nogil=True, **options)(function)
    return made
