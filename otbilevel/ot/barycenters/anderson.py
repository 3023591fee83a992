"""Debiased barycentres: the fixed-point iteration of Janati et al. (2020), Algorithm 1, with Anderson's acceleration.

The barycentre of the Sinkhorn divergences has a plan with itself, diag(exp h) K diag(exp h), and sum_k w_k g_k = reg h. One
iteration is

    log b = h + sum_k w_k log(K' u_k),   G_k <- log b - log(K' u_k),   h <- (h + log b - log(K exp h)) / 2.

The objective hardly depends on what the kernel blurs away, so that plain iterations creep. Newton's method does not help: the
Jacobian is indefinite, with eigenvalues down to rounding. Anderson's acceleration needs a tenth to a hundredth of the iterations.
"""

from __future__ import annotations

import math
from types import ModuleType

from otbilevel._core.array import Array, array_namespace, device
from otbilevel._core.monitor import Monitor
from otbilevel.ot.barycenters.newton import iterate
from otbilevel.ot.barycenters.stack import Best, PlanStack, Point

MEMORY = 6
"""Differences of iterates that are kept."""
RIDGE = 1e-14
"""Of the trace, added to the diagonal of the normal equations."""
LONGEST = 30.0
"""A step may be so many times as long as that of the plain iteration, or as reg."""
PLAIN = 2
"""Plain iterations at first."""
FALLBACK = 100.0
"""Growth of the error over the best one at which the acceleration starts afresh from there."""


def accelerate(stack: PlanStack, w: Array, start: Point, tol: float, monitor: Monitor, best: Best) -> None:
    """Iterate from `start` until the error is at most `tol`, the monitor says stop, or nothing helps."""
    xp, history = stack.xp, Anderson()
    point = xp.concat([start.scalings, start.h[None, :]])
    while True:
        scalings, h = point[:-1, :], point[-1, :]
        stack.move(scalings, h)
        b, error, step, metric = stack.kernels.debiased_step(point, w, stack.log_sums, stack.column_sums, stack.self_log_sums)
        finite = math.isfinite(error)
        if finite:
            best.offer(error, Point(scalings, h))
            if not monitor.record(iterate(b), marginal_error=error, reg=stack.reg) or error <= tol:
                return
        if not (finite and error <= FALLBACK * best.error + 1.0):
            if history.fresh or best.point is None:
                return
            point, history = xp.concat([best.point.scalings, best.point.h[None, :]]), Anderson(fresh=True)
            continue
        point = history.step(point, step, metric)


class Anderson:
    """Anderson's acceleration: the last differences of iterates and of their steps, in a ring of rows."""

    def __init__(self, *, fresh: bool = False) -> None:
        self.fresh = fresh
        self._count = 0
        self._last: tuple[Array, Array] | None = None

    def step(self, point: Array, step: Array, metric: Array) -> Array:
        """The next iterate (D. G. Anderson, 1965, in the form of H. F. Walker and P. Ni, SIAM J. Numer. Anal. 49, 2011).

        Differences are measured in the metric of their time, which saves most of the inner products and settles soon.
        """
        xp = array_namespace(point)
        if self._last is None:
            self._last = point, step
            like = {"dtype": point.dtype, "device": device(point)}
            self._updates, self._changes = (xp.zeros((MEMORY, math.prod(point.shape)), **like) for _ in range(2))
            self._gram, self._eye = xp.zeros((MEMORY, MEMORY), **like), xp.eye(MEMORY, **like)
            return point + step
        self._add(xp, point - self._last[0], step - self._last[1], metric)
        self._last = point, step
        trace = float(xp.linalg.trace(self._gram))
        if self._count <= PLAIN or not 0 < trace < math.inf:
            return point + step
        self.fresh = False
        right = self._changes @ xp.reshape(step * metric, (-1,))
        shares = xp.linalg.solve(self._gram + RIDGE * trace * self._eye, right)
        long = step - xp.reshape(shares @ self._updates, step.shape)
        limit = LONGEST * max(1.0, float(xp.max(xp.abs(step))))
        largest = float(xp.max(xp.abs(long)))
        return point + (long if largest <= limit else (limit / largest) * long)

    def _add(self, xp: ModuleType, move: Array, change: Array, metric: Array) -> None:
        row = self._count % MEMORY
        self._updates[row, :] = xp.reshape(move + change, (-1,))
        self._changes[row, :] = xp.reshape(change * metric, (-1,))
        products = self._changes @ self._changes[row, :]
        self._gram[row, :] = products
        self._gram[:, row] = products
        self._count += 1
