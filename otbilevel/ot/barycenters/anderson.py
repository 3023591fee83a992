"""Debiased barycentres: the fixed-point iteration of Janati et al. (2020), Algorithm 1, with Anderson's acceleration.

The barycentre of the Sinkhorn divergences has a plan with itself, diag(exp h) K diag(exp h), and sum_k w_k g_k = reg h. One iteration is

    log b = h + sum_k w_k log(K' u_k),   G_k <- log b - log(K' u_k),   h <- (h + log b - log(K exp h)) / 2.

The objective hardly depends on what the kernel blurs away, so that plain iterations creep. Newton's method does not help: the Jacobian is
an indefinite matrix with eigenvalues down to rounding. Anderson's acceleration needs a tenth to a hundredth of the iterations.
"""

from __future__ import annotations

import math

from otbilevel._core.array import Array, array_namespace, device
from otbilevel._core.monitor import Monitor
from otbilevel.ot.barycenters.newton import disagreement, iterate
from otbilevel.ot.barycenters.stack import Best, PlanStack, Point

MEMORY = 10
"""Differences of iterates that are kept."""
RIDGE = 1e-14
"""Of the trace, added to the diagonal of the normal equations."""
LONGEST = 6.0
"""A step may be so many times as long as that of the plain iteration, or as reg."""
FALLBACK = 100.0
"""Growth of the error over the best one at which the acceleration starts afresh from there."""


def accelerate(stack: PlanStack, w: Array, start: Point, tol: float, monitor: Monitor, best: Best) -> None:
    """Iterate from `start` until the error is at most `tol`, the monitor says stop, or nothing helps."""
    xp, history = stack.xp, _History()
    point = xp.concat([start.scalings, start.h[None, :]])
    while True:
        scalings, h = point[:-1, :], point[-1, :]
        stack.move(scalings, h)
        log_b = h + w @ stack.log_sums
        b, diagonal = xp.exp(log_b), xp.exp(h + stack.self_log_sums)
        error = max(disagreement(xp, stack.column_sums, b), float(xp.sum(xp.abs(diagonal - b))))
        finite = math.isfinite(error)
        if finite:
            best.offer(error, Point(scalings, h))
            if not monitor.record(iterate(b), marginal_error=error, reg=stack.reg) or error <= tol:
                return
        if not (finite and error <= FALLBACK * best.error + 1.0):
            if history.fresh or best.point is None:
                return
            point, history = xp.concat([best.point.scalings, best.point.h[None, :]]), _History(fresh=True)
            continue
        target = xp.concat([log_b - stack.log_sums, (0.5 * (h + log_b - stack.self_log_sums))[None, :]])
        metric = xp.sqrt(xp.concat([w[:, None] * stack.column_sums, diagonal[None, :]]))
        point = history.step(point, target - point, metric)


class _History:
    """Differences of iterates and of their steps."""

    def __init__(self, *, fresh: bool = False) -> None:
        self.fresh = fresh
        self._last: tuple[Array, Array] | None = None
        self._moves: list[Array] = []
        self._changes: list[Array] = []

    def step(self, point: Array, step: Array, metric: Array) -> Array:
        """The next iterate (D. G. Anderson, 1965, in the form of H. F. Walker and P. Ni, SIAM J. Numer. Anal. 49, 2011)."""
        xp = array_namespace(point)
        if self._last is not None:
            self._moves = [*self._moves, point - self._last[0]][-MEMORY:]
            self._changes = [*self._changes, step - self._last[1]][-MEMORY:]
        self._last = point, step
        if not self._moves:
            return point + step
        self.fresh = False
        changes = xp.stack([xp.reshape(change * metric, (-1,)) for change in self._changes])
        gram, right = changes @ changes.T, changes @ xp.reshape(step * metric, (-1,))
        trace = float(xp.linalg.trace(gram))
        if not 0 < trace < math.inf:
            return point + step
        eye = xp.eye(gram.shape[0], dtype=gram.dtype, device=device(gram))
        shares = xp.linalg.solve(gram + RIDGE * trace * eye, right)
        long = step
        for k, (move, change) in enumerate(zip(self._moves, self._changes, strict=True)):
            long = long - shares[k] * (move + change)
        limit = LONGEST * max(1.0, float(xp.max(xp.abs(step))))
        largest = float(xp.max(xp.abs(long)))
        return point + (long if largest <= limit else (limit / largest) * long)
