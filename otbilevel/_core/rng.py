"""Random numbers: drawn by NumPy from the user's generator, then moved, so that every array library sees the same ones."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from otbilevel._core.array import Array

KINDS = ("rademacher", "gaussian")


def generator(rng: Any) -> np.random.Generator:
    """The user's generator, or one made from a seed; None: a fresh one.

    Raises
    ------
    TypeError
        When `rng` is neither.
    """
    if rng is None or isinstance(rng, np.random.Generator):
        return np.random.default_rng(rng)
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool) and rng >= 0:
        return np.random.default_rng(int(rng))
    msg = f"rng must be a numpy.random.Generator, a seed >= 0 or None, got {rng!r}"
    raise TypeError(msg)


def draw(rng: np.random.Generator, kind: str, shape: tuple[int, ...], xp: ModuleType, *, dtype: Any, device: Any) -> Array:
    """Independent numbers of mean 0 and variance 1: signs, or normal ones."""
    numbers = rng.integers(0, 2, size=shape) * 2.0 - 1.0 if kind == "rademacher" else rng.standard_normal(shape)
    return xp.asarray(numbers, dtype=dtype, device=device)
