"""Newton's method for the barycentre's dual, by conjugate gradients under the constraint sum_k w_k g_k = 0.

The step x (in units of reg) solves L_k x_k = b - c_k for all k with sum_k w_k x_k = 0, where b is the multiplier: the barycentre.
The preconditioner is the same problem with the diagonals of L_k, solved in closed form. With diag(c_k) for them its first step is
that of iterative Bregman projections to first order, so that conjugate gradients accelerate these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from otbilevel._core.array import Array
from otbilevel._core.monitor import Monitor
from otbilevel.ot.barycenters.stack import Best, PlanStack, Point

CLIP = 6.0
"""Longest component of a Newton step, in units of reg."""
FEWEST_PROJECTIONS, MOST_PROJECTIONS = 2, 12
"""Projections at the start: so many at least, so many at most while the error is large."""
LARGE_ERROR = 0.3
"""Where projections do as well as Newton's steps."""
NEARLY = 3
"""Projections that may be left to do where the contraction is good; else Newton's method takes over."""
SMOOTHING = 3
"""Projections after a step that was cut."""
MAX_CG = 400
"""Steps of conjugate gradients in one solve."""
STALL_WINDOW = 12
"""Steps within which the error must halve."""


def newton(stack: PlanStack, w: Array, start: Array, tol: float, monitor: Monitor, best: Best) -> Array:
    """Iterate from the log scalings `start` until the error is at most `tol`; return where that ended."""
    log_scalings, h = start, stack.xp.zeros_like(start[0, :])
    stack.move(log_scalings)
    errors: list[float] = []
    projections, smoothing = 0, 0
    while True:
        log_b, b, error = stack.kernels.geometric_mean(w, stack.log_sums, stack.column_sums)  # Benamou et al. (2015), (4.9)
        errors.append(error)
        best.offer(error, Point(log_scalings, h))
        go_on = monitor.record(iterate(b), marginal_error=error, reg=stack.reg)
        if not go_on or error <= tol:
            return log_scalings
        if len(errors) > STALL_WINDOW + MOST_PROJECTIONS and not error < 0.5 * errors[-1 - STALL_WINDOW]:
            return log_scalings
        if smoothing or _projection_is_next(errors, tol, projections):
            projections, smoothing = projections + 1, max(0, smoothing - 1)
            log_scalings = log_b - stack.log_sums
            stack.move(log_scalings)
            continue
        x, clipped = _direction(stack, w, b, error, tol, monitor.overdue)
        log_scalings, length = _line_search(stack, w, x, b)
        smoothing = SMOOTHING if clipped or length < 1.0 else 0
        projections = max(projections, MOST_PROJECTIONS)


def iterate(b: Array) -> Callable[[], dict[str, Any]]:
    """What a callback gets."""
    return lambda: {"barycenter": b}


def _projection_is_next(errors: list[float], tol: float, projections: int) -> bool:
    """Whether a projection, at two passes, is worth more than a Newton step."""
    if projections < FEWEST_PROJECTIONS or (errors[-1] > LARGE_ERROR and projections < MOST_PROJECTIONS):
        return True
    contraction = errors[-1] / errors[-2] if len(errors) > 1 else 1.0
    return contraction < 1 and math.log(tol / errors[-1]) >= NEARLY * math.log(contraction) if tol > 0 else False


def _direction(stack: PlanStack, w: Array, b: Array, error: float, tol: float, interrupt: Callable[[], bool]) -> tuple[Array, bool]:
    """The Newton step, to an accuracy that suits the present error, and whether it had to be clipped."""
    xp, kernels = stack.xp, stack.kernels
    # Of a column of next to no weight that lacks it, a step of 1 is enough: hence the balance. Shares make sum_k w_k z_k = 0.
    preconditioner = *kernels.balance(stack.prepare(), stack.column_sums, b, w), w
    r = b - stack.column_sums
    p, rz = kernels.precondition(r, *preconditioner)
    x, target = xp.zeros_like(r), max(min(0.1, error), 0.3 * tol / error) ** 2 * rz
    for _ in range(MAX_CG):
        if not rz > target or interrupt():
            break
        step = kernels.cg_step(x, r, p, stack.laplacian_product(p), rz, *preconditioner)
        if not 0 < step[-1] < math.inf:  # the curvature
            break
        x, r, p, rz, _ = step
    largest = float(xp.max(xp.abs(x)))
    if not largest > CLIP:
        return x, largest == 0.0
    x = xp.clip(x, -CLIP, CLIP)
    return x - w @ x, True


def _line_search(stack: PlanStack, w: Array, x: Array, b: Array) -> tuple[Array, float]:
    """Move along the concave dual until the slope has halved: values drown in rounding long before slopes do."""
    inner, start, length = stack.kernels.inner, stack.log_scalings, 1.0
    slope = inner(w, b - stack.column_sums, x)
    for _ in range(8):
        stack.move(start + length * x)
        trial = -inner(w, stack.column_sums, x)
        if trial >= -0.5 * slope:
            return stack.log_scalings, length
        length *= 0.5
    stack.move(start)
    return start, 0.0
