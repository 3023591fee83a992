"""The projection of `Margins`, compiled by numba."""

from __future__ import annotations

import math

import numpy as np

from otbilevel._core.compiled import compiled

STEPS = 100
"""Newton steps; some seven are needed."""


def _nearest(A: np.ndarray, w: np.ndarray) -> np.ndarray:  # noqa: N803 -- one loop, compiled
    count, d = A.shape
    start, slack = w[:d], w[d:]
    rest = 1.0 - slack
    v, short = start.copy(), rest - A @ start
    active, H, changed, signed = np.zeros(count, np.bool_), np.eye(d), np.empty((count, d)), np.empty((count, d))  # noqa: N806
    value, t = 0.5 * np.sum(np.maximum(short, 0.0) ** 2), 1.0
    for _ in range(STEPS):
        # H = I + the sum of a a' over the active rows, mended where these have changed.
        n_changed = 0
        for i in range(count):
            if (short[i] > 0.0) != active[i]:
                sign = -1.0 if active[i] else 1.0
                active[i] = not active[i]
                for j in range(d):
                    changed[n_changed, j] = A[i, j]
                    signed[n_changed, j] = sign * A[i, j]
                n_changed += 1
        if n_changed == 0 and t == 1.0:
            break  # quadratic from the last point to this one, which is its minimum
        H += changed[:n_changed].T @ signed[:n_changed]  # noqa: N806
        pull = np.maximum(short, 0.0) @ A
        slope = v - start - pull
        if math.sqrt(slope @ slope) <= 1e-13 * (1.0 + math.sqrt(pull @ pull)):
            break
        step, t = np.linalg.solve(H, -slope), 1.0
        goal = 1e-4 * (slope @ step)
        while True:
            moved = v + t * step
            short = rest - A @ moved
            new = 0.5 * np.sum((moved - start) ** 2) + 0.5 * np.sum(np.maximum(short, 0.0) ** 2)
            if new <= value + t * goal + 1e-15 * value or t <= 1e-8:
                break
            t *= 0.5
        v, value = moved, new
    return np.concatenate((v, np.maximum(slack, 1.0 - A @ v)))


nearest = compiled(_nearest)
