"""Newton's equations of the semi-dual under linear constraints.

With f eliminated the unknowns are g and lam. In row i the plan is a distribution K_i over the columns, and the Hessian is -1/reg
times the sum of its covariances, weighted by a_i: of the indicators of the columns (L, see `row_plan`), of the functions D_k(i,
.) (G), and between them (B),

    [ L   B ] [x]   [ b - K'a    ]          B_jk = sum_i a_i K_ij (D_kij - (K D_k')_ii),
    [ B'  G ] [y] = [ t - <D, P> ],         G_kl = sum_i a_i cov_i(D_k, D_l),       g += reg x,  lam += reg y.

The multipliers are few, or live on one row each: then their part of G falls into small blocks. So they are eliminated, first
those of the rows, then the few, and conjugate gradients work on the Schur complement, a matrix like L.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from otbilevel._core.array import Array, device
from otbilevel.linalg import cg
from otbilevel.ot.constrained_plan import TiltedPlan
from otbilevel.ot.functionals import LowRank, blocks
from otbilevel.ot.row_plan import SMALLEST_SHARE, Laplacian

DAMPING = 1e-12
"""Added to variances, relative to the square of the size of D. Redundant constraints then do no harm, and a multiplier whose
constraint cannot be met takes a step so long that it shows."""


@dataclass(frozen=True)
class Few:
    """B (m, k), G (k, k) and F (n, d, k), the covariances with the features of the rows, of the constraints on the whole plan."""

    b: Array
    g: Array
    f: Array


def covariances(plan: TiltedPlan, free: Array) -> Few:
    """Those of the few constraints, 0 for those that are not free.

    In O(n m k), or with few features in as many products with K as they have pairs.
    """
    xp, system = plan.xp, plan.system
    n, m = plan.entries.shape
    y = xp.zeros((m, 0), dtype=plan.a.dtype, device=device(plan.a)) if system.rows is None else system.rows.y
    if not bool(xp.any(free)):
        k = system.n_few
        return Few(*(xp.zeros(shape, dtype=plan.a.dtype, device=device(plan.a)) for shape in ((m, k), (k, k), (n, y.shape[1], k))))
    if len(system.few) == 1 and isinstance(system.few[0], LowRank):
        return _of_features(plan.entries, plan.a, system.few[0], y)
    return _of_matrices(plan, y, free)


def _of_features(k: Array, a: Array, part: LowRank, y: Array) -> Few:
    """All from the first and second moments of the features in each row, in one product with K and one with K'."""
    xp, v, size = part.xp, part.features, part.size
    q_total, d = v.shape[0], y.shape[1]
    pairs = [(q, r) for q in range(q_total) for r in range(q, q_total)]
    columns = [*(v[q, :] for q in range(q_total)), *(v[q, :] * v[r, :] for q, r in pairs)]
    columns += [y[:, c] for c in range(d)] + [y[:, c] * v[q, :] for q in range(q_total) for c in range(d)]
    moments = k @ xp.stack(columns, axis=1)
    means, second, rest = moments[:, :q_total], moments[:, q_total : q_total + len(pairs)], moments[:, q_total + len(pairs) :]
    g = xp.zeros((size, size), dtype=a.dtype, device=device(a))
    for position, (q, r) in enumerate(pairs):
        weights = a * (second[:, position] - means[:, q] * means[:, r])
        block = part.owners[q].T @ ((part.factors[q] * weights[None, :]) @ part.factors[r].T) @ part.owners[r]
        g = g + block + (block.T if q != r else 0.0)
    per_constraint = [u.T @ owner for u, owner in zip(part.factors, part.owners, strict=True)]  # (n, K) each
    total = sum(u * means[:, q, None] for q, u in enumerate(per_constraint))
    sums = k.T @ (a[:, None] * xp.concat([total, *(u.T for u in part.factors)], axis=1))
    b, before = -sums[:, :size], size
    for q, (u, owner) in enumerate(zip(part.factors, part.owners, strict=True)):
        b = b + v[q, :, None] * (sums[:, before : before + u.shape[0]] @ owner)
        before += u.shape[0]
    f = xp.zeros((k.shape[0], d, size), dtype=a.dtype, device=device(a))
    for q, u in enumerate(per_constraint if d else []):
        mixed = rest[:, d * (q + 1) : d * (q + 2)] - rest[:, :d] * means[:, q, None]
        f = f + mixed[:, :, None] * u[:, None, :]
    return Few(b, g, f)


def _of_matrices(plan: TiltedPlan, y: Array, free: Array) -> Few:
    """By forming blocks of rows of the D_k that are free."""
    xp, a, parts = plan.xp, plan.a, plan.system.few
    widest, chosen, size = max(parts, key=lambda part: part.size), xp.nonzero(free)[0], free.shape[0]
    some = chosen.shape[0] < size
    b: Array = 0.0
    g: Array = 0.0
    f = []
    for low, high in blocks(widest):
        d = parts[0].block(low, high) if len(parts) == 1 else xp.concat([part.block(low, high) for part in parts])
        d = xp.take(d, chosen, axis=0) if some else d
        k, w = plan.entries[low:high, :], a[low:high]
        weighted = k[None, :, :] * d
        means = weighted @ xp.ones_like(k[0, :])  # products: sums over an axis take longer
        f.append(xp.permute_dims(weighted @ y, (1, 2, 0)) - (k @ y)[:, :, None] * means.T[:, None, :])
        b = b + (w[None, None, :] @ weighted)[:, 0, :].T - k.T @ (means * w[None, :]).T
        weighted = weighted * w[None, :, None]
        flat = (d.shape[0], -1)
        g = g + xp.reshape(weighted, flat) @ xp.reshape(d, flat).T - (means * w[None, :]) @ means.T
    chooser = xp.take(xp.eye(size, dtype=a.dtype, device=device(a)), chosen, axis=0)
    return Few(b @ chooser, chooser.T @ (0.5 * (g + g.T)) @ chooser, xp.concat(f) @ chooser)


class Rows:
    """The multipliers of the rows, eliminated: cov_i is the covariance under K_i, S_i that of the features y."""

    def __init__(self, plan: TiltedPlan) -> None:
        assert plan.system.rows is not None
        xp, self.xp, self.k, self.a, self.y = plan.xp, plan.xp, plan.entries, plan.a, plan.system.rows.y
        m, d = self.y.shape
        self.means = self.k @ self.y
        products = xp.reshape(self.y[:, :, None] * self.y[:, None, :], (m, d * d))
        second = xp.reshape(self.k @ products, (-1, d, d)) - self.means[:, :, None] * self.means[:, None, :]
        spread = xp.max(xp.abs(self.y), axis=0)
        damping = DAMPING * xp.where(spread > 0, spread, xp.ones_like(spread)) ** 2
        self.variance = second + xp.eye(d, dtype=second.dtype, device=device(second))[None, :, :] * damping
        self.inverse = xp.linalg.inv(self.variance)

    def solve(self, w: Array) -> Array:
        """S_i^-1 w_i, w of shape (n, d) or (n, d, k)."""
        return self.inverse @ w if len(w.shape) == 3 else (self.inverse @ w[:, :, None])[:, :, 0]

    def covariance(self, x: Array) -> Array:
        """cov_i(y, x), shape (n, d)."""
        return self.k @ (self.y * x[:, None]) - self.means * (self.k @ x)[:, None]

    def adjoint(self, w: Array) -> Array:
        """sum_i a_i K_ij w_i . (y_j - mean of row i), shape (m,)."""
        w = self.a[:, None] * w
        return self.xp.sum(self.y * (self.k.T @ w), axis=1) - self.k.T @ self.xp.sum(w * self.means, axis=1)

    def product(self, x: Array) -> Array:
        """What the elimination subtracts from L x."""
        return self.adjoint(self.solve(self.covariance(x)))

    def diagonal(self) -> Array:
        """Its diagonal, sum_i a_i K_ij^2 (y_j - mean_i)' S_i^-1 (y_j - mean_i)."""
        xp, squares, y, w = self.xp, self.k * self.k, self.y, self.inverse
        d = y.shape[1]
        total = xp.zeros_like(y[:, 0])
        shift = self.solve(self.means)
        for c in range(d):
            for e in range(d):
                total = total + y[:, c] * y[:, e] * (squares.T @ (self.a * w[:, c, e]))
            total = total - 2.0 * y[:, c] * (squares.T @ (self.a * shift[:, c]))
        return total + squares.T @ (self.a * xp.sum(self.means * shift, axis=1))


class Bordered:
    """Newton's equations where the plan is, of which `solve` may leave out some of the few multipliers.

    Attributes
    ----------
    shape : tuple of int
        ``(m, m)``, of the Schur complement.
    """

    def __init__(self, plan: TiltedPlan, free: Array) -> None:
        xp, system = plan.xp, plan.system
        self.plan, self.xp, self.system = plan, xp, system
        self.laplacian: Laplacian = plan.laplacian()
        m = plan.g.shape[0]
        self.shape = (m, m)
        self.full = covariances(plan, free)
        self.rows = None if system.rows is None else Rows(plan)
        b, g = self.full.b, self.full.g
        self.diagonal = 1.0 / self.laplacian.inverse_diagonal
        if self.rows is not None:
            self.of_few = self.rows.solve(self.full.f)  # S_i^-1 F_i
            columns = [self.rows.adjoint(self.of_few[:, :, k]) for k in range(b.shape[1])]
            b = b - xp.stack(columns, axis=1) if columns else b
            weighted = plan.a[:, None, None] * self.full.f
            g = g - xp.tensordot(xp.permute_dims(weighted, (2, 0, 1)), self.of_few, axes=2)
            self.diagonal = self.diagonal - self.rows.diagonal()
        self._b, self._g = b, g

    def _eliminate(self, free: Array) -> None:
        """Take the few multipliers that are free."""
        xp, k = self.xp, self.system.n_few
        mask = xp.astype(free, self._b.dtype)
        scale = xp.sqrt(self.system.sizes[:k] * self.system.scales[:k])
        g = self._g / (scale[:, None] * scale[None, :]) * mask[:, None] * mask[None, :]
        identity = xp.eye(k, dtype=mask.dtype, device=device(mask))
        inverse = xp.linalg.inv(g + identity * (DAMPING + 1.0 - mask)[None, :])
        self._inverse = inverse * (mask / scale)[:, None] * (mask / scale)[None, :]
        diagonal = self.diagonal - xp.sum((self._b @ self._inverse) * self._b, axis=1)
        degree = self.laplacian.degree
        self._precondition = self.plan.vector_kernels.inverse_diagonal(degree, degree - diagonal, SMALLEST_SHARE)

    def matvec(self, x: Array, /) -> Array:
        """The Schur complement times x."""
        out = self.laplacian.matvec(x)
        if self.rows is not None:
            out = out - self.rows.product(x)
        return out - self._b @ (self._inverse @ (x @ self._b)) + DAMPING * self.laplacian.degree * x

    def solve(
        self, r: Array, s: Array, free: Array, *, tol: float, max_iter: int, interrupt: Callable[[], bool]
    ) -> tuple[Array, Array, int]:
        """Solve for x and y with y = 0 for the few that are not free; return the number of steps, too."""
        xp, (few, rows) = self.xp, self.system.split(s)
        self._eliminate(free)
        if self.rows is not None:
            sigma = rows / self.plan.a[:, None]
            lifted = self.rows.solve(sigma)
            r = r - self.rows.adjoint(lifted)
            few = few - xp.tensordot(self.plan.a[:, None] * lifted, self.full.f, axes=2)
        solution = cg(
            self,
            r - self._b @ (self._inverse @ few),
            preconditioner=lambda v: self._precondition * v,
            tol=tol,
            max_iter=max_iter,
            norm=lambda v: float(xp.sum(xp.abs(v))),
            interrupt=interrupt,
            rounding=self.laplacian.degree,
            verify=False,
        )
        x = solution.x
        y = self._inverse @ (few - x @ self._b)
        if self.rows is not None:
            rows = self.rows.solve(sigma - self.rows.covariance(x) - self.full.f @ y)
        return x, self.system.join(y, rows), solution.nit

    def solve_multipliers(self, s: Array, free: Array) -> Array:
        """Solve for y with x = 0."""
        self._eliminate(free)
        few, rows = self.system.split(s)
        if self.rows is None:
            return self.system.join(self._inverse @ few, rows)
        sigma = rows / self.plan.a[:, None]
        lifted = self.rows.solve(sigma)
        y = self._inverse @ (few - self.xp.tensordot(self.plan.a[:, None] * lifted, self.full.f, axes=2))
        return self.system.join(y, self.rows.solve(sigma - self.full.f @ y))

    def product(self, x: Array, y: Array) -> tuple[Array, Array]:
        """The whole matrix times (x, y)."""
        few, rows = self.system.split(y)
        top, bottom = self.laplacian.matvec(x) + self.full.b @ few, x @ self.full.b + self.full.g @ few
        if self.rows is not None:
            top = top + self.rows.adjoint(rows)
            own = (self.rows.variance @ rows[:, :, None])[:, :, 0]
            bottom = bottom + self.xp.tensordot(self.plan.a[:, None] * rows, self.full.f, axes=2)
            rows = self.plan.a[:, None] * (self.rows.covariance(x) + own + self.full.f @ few)
        return top, self.system.join(bottom, rows)
