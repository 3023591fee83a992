"""Lipschitz constants of gradients and norms of Jacobians, estimated by the power method on differences; any array library."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from otbilevel._core.array import Array, array_namespace, device
from otbilevel.bilevel.projection.convex_set import Linearised

POWER = 12
"""Steps of the power method."""
SAFETY = 1.1
"""By which estimates, which come from below, are enlarged."""


def lipschitz(gradient: Callable[[Array], Array], w: Array, rng: np.random.Generator) -> float:
    """The norm of the Hessian at w."""
    base, along = gradient(w), _Along(w)
    v, size = along.draw(rng), 0.0
    for _ in range(POWER):
        v = along.unit(v)
        v = (gradient(w + along.h * v) - base) / along.h
        size = along.norm(v)
        if size == 0.0:
            break
    return SAFETY * size


def spectral_norm(linearise: Linearised, w: Array, rng: np.random.Generator) -> float:
    """The norm of the Jacobian at w of a function, given with a function that multiplies by its transpose."""
    base, along = linearise(w)[0], _Along(w)
    v, size = along.draw(rng), 0.0
    for _ in range(POWER):
        v = along.unit(v)
        rows = (linearise(w + along.h * v)[0] - base) / along.h
        size = along.norm(rows)
        if size == 0.0:
            break
        v = linearise(w)[1](rows)  # anew: what multiplies is good until the next call
    return SAFETY * size


class _Along:
    """Directions at w, and the step of differences along them."""

    def __init__(self, w: Array) -> None:
        self._w, self._xp = w, array_namespace(w)
        eps = float(self._xp.finfo(w.dtype).eps)
        self.h = eps ** (1 / 3) * max(1.0, self.norm(w))

    def draw(self, rng: np.random.Generator) -> Array:
        """A random one."""
        return self._xp.asarray(rng.standard_normal(self._w.shape[0]), dtype=self._w.dtype, device=device(self._w))

    def norm(self, v: Array) -> float:
        """Its length."""
        return float(self._xp.linalg.vector_norm(v))

    def unit(self, v: Array) -> Array:
        """The same with length one."""
        return v / max(self.norm(v), 1e-30)
