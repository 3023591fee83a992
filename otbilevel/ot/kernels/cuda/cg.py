"""Conjugate gradients whose scalars stay on the device: the host looks at them every few steps."""

from __future__ import annotations

from collections.abc import Callable

from otbilevel._core.array import Array
from otbilevel.ot.kernels.cuda.device import empty, launch, read
from otbilevel.ot.kernels.cuda.stored import product_parts
from otbilevel.ot.kernels.cuda.vectors import one_block

CHECK_EVERY = 8
"""Steps between two looks. Those after the end do nothing."""

Product = Callable[[Array, Array, Array], Array]
"""Partial sums of K' diag(weights) K x from weights, x and `done`."""


def solve_laplacian(
    plan: Array,
    *operator: Array,
    tol: float,
    max_iter: int,
    interrupt: Callable[[], bool],
    memory: None = None,  # noqa: ARG001 -- nothing is kept
) -> tuple[Array, int, None]:
    """`operator` is weights, columns, degree, inverse diagonal, right-hand side, as in `cpu`."""

    def product(weights: Array, x: Array, done: Array) -> Array:
        return product_parts(plan, weights, x, done)

    return (*solve(product, *operator, tol=tol, max_iter=max_iter, interrupt=interrupt), None)


def solve(
    product: Product,
    weights: Array,
    columns: Array,
    degree: Array,
    inverse_diagonal: Array,
    b: Array,
    *,
    tol: float,
    max_iter: int,
    interrupt: Callable[[], bool],
) -> tuple[Array, int]:
    """The steps of `linalg.cg` in the L1 norm, with the same tests at every step; `interrupt` is asked when the host looks."""
    m = b.shape[0]
    x, r, p, q, scaled = empty((5, m))
    state = empty(5)
    launch("vectors", "cg_start", *one_block(m), b, inverse_diagonal, columns, m, float(tol), x, r, p, scaled, state)
    queued, figures = 0, [0.0]
    while not figures[0] and queued < max_iter and not interrupt():
        for _ in range(min(CHECK_EVERY, max_iter - queued)):
            parts = product(weights, scaled, state)
            launch("vectors", "cg_apply", (-(-m // 32),), (32, 8), parts, parts.shape[0], m, degree, columns, p, state, q)
            vectors = q, degree, inverse_diagonal, columns, m, x, r, p, scaled, state
            launch("vectors", "cg_step", *one_block(m), *vectors)
            queued += 1
        figures = read(state)
    _, steps, _, _, unit = figures if queued else read(state)
    return x * unit, int(steps)
