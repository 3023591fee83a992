"""A stack of problems in the array API's own functions: what `cpu.batch` does, for every array library.

All problems go down a path in reg side by side, with the same number of passes at each level, so that a device need not wait for
decisions. Newton's method then solves the (B, m, m) systems directly.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

from otbilevel._core.array import Array, array_namespace, device
from otbilevel._core.result import Status

READS_COSTS = False
PASSES, LAST_PASSES = 8, 20
MAX_STEPS = 60
CLIP = 6.0
HARD_ERROR = 5e-3
"""Error from which a level of the path needs no Newton step."""
SHORTEST = 2.0**-6
RIDGE = 1e-11
"""Added to the diagonal of L, relative to it: columns that are hardly tied to others make it singular in rounding."""
LEAST = 1e-300


class _Stack:
    """K with row sums 1 for all problems, and where it is."""

    def __init__(self, costs: Array, a: Array, b: Array) -> None:
        self.xp: ModuleType = array_namespace(a)
        self.costs, self.a, self.b = self.xp.astype(costs, self.xp.float64), a, b

    def sweep(self, g: Array, reg: Array) -> None:
        """Compute f(g), K and its column sums."""
        xp = self.xp
        exponents = (g[:, None, :] - self.costs) / reg[:, None, None]
        top = xp.max(exponents, axis=2, keepdims=True)
        top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
        k = xp.exp(exponents - top)
        total = xp.sum(k, axis=2, keepdims=True)
        total = xp.where(total > 0, total, xp.ones_like(total))
        self.f, self.g, self.k = -reg[:, None] * (top + xp.log(total))[:, :, 0], g, k / total
        self.c = self.columns(self.a, self.k)

    def columns(self, weights: Array, k: Array) -> Array:
        """k' weights."""
        return self.xp.matmul(weights[:, None, :], k)[:, 0, :]

    def errors(self) -> Array:
        """L1 errors of the marginals."""
        return self.xp.sum(self.xp.abs(self.c - self.b), axis=1)

    def half_step(self) -> Array:
        """log(b / c), 0 where the weight is 0."""
        xp, positive = self.xp, self.b > 0
        ratio = xp.where(positive, self.b, xp.ones_like(self.b)) / xp.where(
            positive, xp.maximum(self.c, xp.full_like(self.c, LEAST)), 1.0
        )
        return xp.clip(xp.log(ratio), None, 60.0)

    def direction(self) -> Array:
        """L^-1 (b - c) up to constants."""
        xp, m = self.xp, self.b.shape[1]
        mixed = xp.matmul(xp.matrix_transpose(self.k) * self.a[:, None, :], self.k)
        empty = self.c <= LEAST
        diagonal = xp.where(empty, xp.ones_like(self.c), self.c * (1.0 + RIDGE))
        identity = xp.eye(m, dtype=xp.float64, device=device(self.b))[None, :, :]
        system = identity * diagonal[:, :, None] - mixed + self.c[:, :, None] * self.c[:, None, :]
        right = self.b - self.c
        right = right - self.c * xp.sum(right, axis=1, keepdims=True)
        x = xp.linalg.solve(system, xp.where(empty, xp.zeros_like(right), right)[:, :, None])[:, :, 0]
        return xp.where(xp.isfinite(x), x, xp.zeros_like(x))


def bounds(costs: Array) -> tuple[Array, Array, Array]:
    """As `cpu.batches.bounds`."""
    xp = array_namespace(costs)
    forbidden = math.inf == costs
    high = xp.max(xp.where(forbidden, xp.full_like(costs, -math.inf), costs), axis=(1, 2))
    low = xp.min(costs, axis=(1, 2))
    return xp.astype(low, xp.float64), xp.astype(high, xp.float64), xp.any(forbidden, axis=(1, 2))


def plans(costs: Array, f: Array, g: Array, reg: Array, a: Array, dtype: Any) -> Array:
    """As `cpu.batches.plans`."""
    xp = array_namespace(a)
    exponents = (f[:, :, None] + g[:, None, :] - xp.astype(costs, xp.float64)) / reg[:, None, None]
    return xp.astype(a[:, :, None] * xp.exp(exponents), dtype)


def solve_batch(
    costs: Array,
    a: Array,
    b: Array,
    reg: Array,
    extremes: tuple[Array, Array],
    tol: float,
    max_iter: int,
    g: Array,
    *,
    warm: bool,
) -> tuple[Array, Array, Array, Array, tuple[Array, Array]]:
    """As `cpu.batches.solve_batch`."""
    xp, stack = array_namespace(a), _Stack(costs, a, b)
    top = (extremes[1] - extremes[0]) / 8.0
    power = xp.round(xp.log2(xp.maximum(top / reg, xp.ones_like(reg))))
    top = xp.where(top > 2.0 * reg, reg * 2.0**power, reg)
    nit = steps = 0
    if not warm:
        g, nit, steps = _follow_path(stack, reg, top, g)
    stack.sweep(g, reg)
    best = stack.f, stack.g, stack.errors()
    for _ in range(MAX_STEPS):
        if nit >= max_iter or bool(xp.all(best[2] <= 0.3 * tol)):
            break
        _newton_step(stack, reg, done=best[2] <= 0.3 * tol)
        errors = stack.errors()
        better = errors < best[2]
        best = (
            xp.where(better[:, None], stack.f, best[0]),
            xp.where(better[:, None], stack.g, best[1]),
            xp.where(better, errors, best[2]),
        )
        nit, steps = nit + 1, steps + 1
    f, g, _ = best
    figures = _certify(stack, reg, f, g)
    short = Status.ITERATION_LIMIT if nit >= max_iter else Status.STALLED
    status = xp.where(
        figures[:, 0] <= tol,
        xp.zeros_like(reg),
        xp.where(xp.isfinite(figures[:, 0]), xp.full_like(reg, float(short)), xp.full_like(reg, float(Status.NOT_FINITE))),
    )
    counts = xp.stack([status, xp.full_like(reg, float(nit)), xp.full_like(reg, float(steps))], axis=1)
    return f, g, xp.astype(counts, xp.int64), figures, extremes


def _follow_path(stack: _Stack, reg: Array, top: Array, g: Array) -> tuple[Array, int, int]:
    """Lower reg by factors of 2; all problems arrive together. Between levels g is extrapolated linearly in reg."""
    xp, nit, steps = stack.xp, 0, 0
    carries = stack.b > 0
    known, above = xp.zeros_like(g), xp.full_like(reg, float("inf"))  # g and reg of the level above
    for level in range(int(xp.max(xp.round(xp.log2(top / reg)))), -1, -1):
        strength = xp.minimum(reg * 2.0**level, xp.maximum(top, reg))
        stack.sweep(g, strength)
        for _ in range(PASSES if level else LAST_PASSES):
            stack.sweep(stack.g + strength[:, None] * stack.half_step(), strength)
        nit += PASSES if level else LAST_PASSES
        for _ in range(2 if level else 0):
            _newton_step(stack, strength, done=stack.errors() < HARD_ERROR)
            nit, steps = nit + 1, steps + 1
        here = xp.where(carries, stack.g, xp.zeros_like(g))
        lower = xp.minimum(reg * 2.0 ** (level - 1), xp.maximum(top, reg))
        usable = xp.isfinite(above) & (above > strength)
        slope = xp.where(usable, (lower - strength) / xp.where(usable, strength - above, xp.ones_like(above)), xp.zeros_like(above))
        g = xp.where(carries, here + (slope[:, None] * (here - known) if level else 0.0), stack.g)
        known, above = here, strength
    return g, nit, steps


def _newton_step(stack: _Stack, reg: Array, *, done: Array) -> None:
    """A step for all problems that are not `done`, halved where the slope says so, then Sinkhorn's iteration where it was cut."""
    xp, start, errors = stack.xp, stack.g, stack.errors()
    x = stack.direction()
    middle = xp.sum(stack.b * x, axis=1, keepdims=True)
    x = xp.where(stack.b > 0, x - middle, xp.zeros_like(x))
    x = xp.where(done[:, None], xp.zeros_like(x), x)
    cut = xp.max(xp.abs(x), axis=1) > CLIP
    x = xp.clip(x, -CLIP, CLIP)
    slope = xp.sum((stack.b - stack.c) * x, axis=1)
    length = xp.ones_like(slope)
    while True:
        stack.sweep(start + (reg * length)[:, None] * x, reg)
        trial = xp.sum((stack.b - stack.c) * x, axis=1)
        good = done | (xp.abs(trial) <= 0.5 * slope) | ((trial > 0) & (length >= 1.0)) | (stack.errors() < 0.5 * errors)
        if bool(xp.all(good | (length <= SHORTEST))):
            break
        length = xp.where(good, length, 0.5 * length)
    shortened = (cut | (length < 1.0)) & ~done
    if bool(xp.any(shortened)):
        for _ in range(3):
            stack.sweep(stack.g + xp.where(shortened, reg, xp.zeros_like(reg))[:, None] * stack.half_step(), reg)


def _certify(stack: _Stack, reg: Array, f: Array, g: Array) -> Array:
    """Marginal error, <P, C>, <f, P 1> + <g - reg log b, P' 1> and sum P - 1, from the plan that the potentials define."""
    xp = stack.xp
    plan = stack.a[:, :, None] * xp.exp((f[:, :, None] + g[:, None, :] - stack.costs) / reg[:, None, None])
    rows, columns = xp.sum(plan, axis=2), xp.sum(plan, axis=1)
    error = xp.sum(xp.abs(rows - stack.a), axis=1) + xp.sum(xp.abs(columns - stack.b), axis=1)
    carries = plan > 0
    linear = xp.sum(xp.where(carries, plan * xp.where(carries, stack.costs, xp.zeros_like(plan)), xp.zeros_like(plan)), axis=(1, 2))
    positive = stack.b > 0
    public = xp.where(positive, g - reg[:, None] * xp.log(xp.where(positive, stack.b, xp.ones_like(g))), xp.zeros_like(g))
    potential = xp.sum(f * rows, axis=1) + xp.sum(public * columns, axis=1)
    return xp.stack([error, linear, potential, xp.sum(rows, axis=1) - 1.0], axis=1)
