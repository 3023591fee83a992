"""Lipschitz constants of gradients, estimated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

POWER = 12
"""Steps of the power method."""


def lipschitz(gradient: Callable[[np.ndarray], np.ndarray], w: np.ndarray, rng: np.random.Generator) -> float:
    """The norm of the Hessian at w, by the power method on differences of gradients."""
    base, v, size = gradient(w), rng.standard_normal(w.size), 0.0
    h = 1e-5 * max(1.0, float(np.linalg.norm(w)))
    for _ in range(POWER):
        v = v / max(float(np.linalg.norm(v)), 1e-300)
        v = (gradient(w + h * v) - base) / h
        size = float(np.linalg.norm(v))
        if size == 0.0:
            break
    return 1.1 * size
