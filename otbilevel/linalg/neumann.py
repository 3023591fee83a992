"""The Neumann series of an inverse: Richardson's iteration, and its stochastic form, LiSSA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from otbilevel._core import validate
from otbilevel._core.array import Array
from otbilevel._core.result import Status
from otbilevel._core.rng import draw, generator
from otbilevel.linalg.cg import check_system, power_of_two
from otbilevel.linalg.conversion import as_operator
from otbilevel.linalg.lanczos import lanczos
from otbilevel.linalg.operators import SymmetricOperator
from otbilevel.linalg.result import LinearResult

PROBE_STEPS = 12
"""Steps of Lanczos' method that bound the spectrum."""
DIVERGED, HOPELESS = 1e3, 1e15
LOOKED_AT = 8
"""Parts whose spectra are bounded; the step is halved for what others may be like."""


def spectrum_bounds(op: SymmetricOperator, rng: Any, steps: int = PROBE_STEPS) -> tuple[float, float]:
    """The smallest Ritz value, and a bound of the largest eigenvalue, by a few steps of Lanczos' method from a random vector."""
    start = draw(generator(rng), "gaussian", (op.shape[0],), op.xp, dtype=op.dtype, device=op.device)
    found = lanczos(op, start, steps)
    if not math.isfinite(float(found.diagonal.sum() + found.beta)):
        return math.nan, math.nan
    values, vectors = found.ritz()
    # Zhou and Li (2011): max + beta |last entry| nearly always bounds; a tenth makes up for a start with little of the top.
    slack = found.beta * abs(float(vectors[-1, -1]))
    return float(values[0]), float(values[-1]) + slack + (0.1 * abs(float(values[-1])) if found.beta > 0 else 0.0)


def neumann(
    operator: Any,
    b: Any,
    *,
    tol: float = 1e-6,
    max_iter: int | None = None,
    step: float | None = None,
    rng: Any = 0,
) -> LinearResult:
    """Solve A x = b for a positive definite A by the Neumann series x = step sum_k (I - step A)^k b.

    Parameters
    ----------
    operator : SymmetricOperator or (n, n) array_like
        A.
    b : (n,) array_like
        Right-hand side.
    tol : float
        Stop when the norm of b - A x is at most tol times that of b.
    max_iter : int, optional
        Terms, by default 1000.
    step : float, optional
        Below 2 / lambda_max; by default the reciprocal of a bound of lambda_max, from 12 steps of Lanczos' method.
    rng : numpy.random.Generator or int
        Draws the vector where these start.

    Returns
    -------
    LinearResult
        `success` when the tolerance is met. When a negative Ritz value is met, or the residual grows, the status is
        `Status.NUMERICAL_FAILURE`.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong; the message names it.

    Notes
    -----
    One product per term. The residual falls by 1 - 1/kappa a term for the condition number kappa; conjugate gradients need its
    root.

    References
    ----------
    J. Lorraine, P. Vicol, D. Duvenaud, Optimizing millions of hyperparameters by implicit differentiation, AISTATS 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.linalg import neumann
    >>> neumann(np.diag([1.0, 2.0]), np.ones(2)).x.round(4)
    array([1. , 0.5])
    """
    op = as_operator(operator, "operator")
    b = check_system(op, b)
    tol, limit = validate.real(tol, "tol", low=0.0), 1000 if max_iter is None else validate.integer(max_iter, "max_iter")
    length, lowest = _step(op, step, rng)
    xp = op.xp
    unit = power_of_two(float(xp.max(xp.abs(b))))
    b = b / unit
    scale = float(xp.linalg.vector_norm(b))
    x, r, size, nit, ended = xp.zeros_like(b), b, scale, 0, None
    if lowest < 0:
        ended = Status.NUMERICAL_FAILURE
    while ended is None and size > tol * scale:
        if nit >= limit:
            ended = Status.ITERATION_LIMIT
        elif not size < DIVERGED * scale:
            ended = Status.NUMERICAL_FAILURE if size < math.inf else Status.NOT_FINITE
        else:
            x = x + length * r
            r = r - length * op.matvec(r)
            size, nit = float(xp.linalg.vector_norm(r)), nit + 1
    found = verified(op, x, b, tol, nit, ended, negative=lowest < 0)
    return replace(found, x=found.x * unit)


def lissa(
    operator: Any,
    b: Any,
    *,
    parts: Sequence[Any] | None = None,
    tol: float = 1e-6,
    depth: int = 200,
    repeats: int = 4,
    step: float | None = None,
    rng: Any = 0,
) -> LinearResult:
    """Solve A x = b for A = mean of parts by a Neumann series in which every term takes one part, at random.

    Parameters
    ----------
    operator : SymmetricOperator
        A.
    b : (n,) array_like
        Right-hand side.
    parts : sequence of operators, optional
        What is drawn from, of mean A; by default the operator's own `parts`, and A itself where it has none.
    tol : float
        What `success` asks of the norm of b - A x relative to that of b.
    depth, repeats : int
        Terms of a series, and series whose mean is taken.
    step : float, optional
        Below 2 / lambda_max of every part; by default the reciprocal of a bound for the parts.
    rng : numpy.random.Generator or int
        Draws the parts.

    Returns
    -------
    LinearResult
        The residual is that of the whole operator. It stays at the noise of the parts, so that `success` is for loose tolerances.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong; the message names it.

    References
    ----------
    N. Agarwal, B. Bullins, E. Hazan, Second-order stochastic optimization for machine learning in linear time, JMLR 18, 2017.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.linalg import lissa
    >>> lissa(np.diag([1.0, 2.0]), np.ones(2), repeats=1).x.round(4)
    array([1. , 0.5])
    """
    op, random = as_operator(operator, "operator"), generator(rng)
    b = check_system(op, b)
    drawn = [as_operator(part, "a part of the operator") for part in parts or getattr(op, "parts", None) or [op]]
    terms, series = validate.integer(depth, "depth", low=1), validate.integer(repeats, "repeats", low=1)
    looked_at = random.permutation(len(drawn))[:LOOKED_AT]
    bounds = [_step(drawn[int(k)], step, random) for k in looked_at]
    length, lowest = min(found[0] for found in bounds), min(found[1] for found in bounds)
    if step is None and len(drawn) > LOOKED_AT:
        length *= 0.5
    mean, size = op.xp.zeros_like(b), length * float(op.xp.linalg.vector_norm(b)) or 1.0
    for _ in range(series):
        x = length * b
        for k in random.integers(0, len(drawn), size=terms):
            x = x + length * (b - drawn[int(k)].matvec(x))
            if not float(op.xp.linalg.vector_norm(x)) < HOPELESS * size:
                break
        mean = mean + x / series
    found = verified(op, mean, b, validate.real(tol, "tol", low=0.0), terms * series, Status.ITERATION_LIMIT, negative=lowest < 0)
    if 1.0 <= found.residual < math.inf and not found.success:
        return replace(found, status=Status.NUMERICAL_FAILURE, message=_MESSAGES[Status.NUMERICAL_FAILURE])
    return found


def verified(
    op: SymmetricOperator,
    x: Array,
    b: Array,
    tol: float,
    nit: int,
    ended: Status | None,
    *,
    negative: bool = False,
    shortfall: str = "rounding allows no smaller residual",
) -> LinearResult:
    """A result whose residual is computed here, by one product; `shortfall` says why it may be large when nothing `ended` it."""
    xp = op.xp
    scale, size = float(xp.linalg.vector_norm(b)), float(xp.linalg.vector_norm(b - op.matvec(x)))
    residual = size / scale if scale > 0 else size
    status = Status.SUCCESS if residual <= tol else Status.NOT_FINITE if not residual < math.inf else ended or Status.STALLED
    message = shortfall if status is Status.STALLED else _MESSAGES[status]
    return LinearResult(x, residual, negative, nit, status is Status.SUCCESS, status, message)


def _step(op: SymmetricOperator, step: float | None, rng: Any) -> tuple[float, float]:
    """The step, and the smallest Ritz value: 0 where nobody looked."""
    if step is not None:
        return validate.real(step, "step", low=0.0, strict=True), 0.0
    lowest, highest = spectrum_bounds(op, rng)
    top = max(highest, -lowest)
    negligible = -max(1e-10, 100 * op.precision) * top if top > 0 else 0.0  # rounding of a singular operator
    return (1.0 / top if top > 0 else 1.0), (lowest if lowest < negligible else 0.0)


_MESSAGES = {
    Status.SUCCESS: "the residual is below the tolerance",
    Status.ITERATION_LIMIT: "the terms are used up: raise max_iter or depth, add damping, or take conjugate gradients",
    Status.NUMERICAL_FAILURE: "negative curvature, or a step beyond 2 / lambda_max: add damping, or leave step out",
    Status.NOT_FINITE: "a product, or the right-hand side, is not finite",
}
