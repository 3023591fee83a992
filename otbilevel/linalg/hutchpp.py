"""Hutch++: the trace of a low-rank part exactly, of the rest by Hutchinson's estimator."""

from __future__ import annotations

import math
from typing import Any

from otbilevel._core import validate
from otbilevel._core.rng import draw, generator
from otbilevel.linalg.conversion import as_operator
from otbilevel.linalg.result import Estimate


def hutchpp(op: Any, n_matvec: int, *, rng: Any = None) -> Estimate:
    """Estimate the trace of an operator by Hutch++.

    Parameters
    ----------
    op : SymmetricOperator or (n, n) array_like
        H.
    n_matvec : int
        Products, six at least: a third each for the range, for the trace on it, and for the rest.
    rng : numpy.random.Generator or int, optional
        Draws the probes.

    Returns
    -------
    Estimate
        Value and standard error, from the scatter of the last third, which are few: it tends to be too small. 0 when the range was
        found whole.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong; the message names it.

    Notes
    -----
    For a positive semi-definite H the relative error falls like 1 / n_matvec, Hutchinson's like 1 / sqrt(n_matvec). O(n n_matvec)
    memory.

    References
    ----------
    R. A. Meyer, C. Musco, C. Musco, D. P. Woodruff, Hutch++: optimal stochastic trace estimation, SOSA 2021, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.linalg import hutchpp
    >>> v = np.arange(5.0)
    >>> round(hutchpp(np.outer(v, v), 6, rng=0).value, 6)
    30.0
    """
    op = as_operator(op)
    count, random = validate.integer(n_matvec, "n_matvec", low=6), generator(rng)
    xp, n = op.xp, op.shape[0]
    like = {"dtype": op.dtype, "device": op.device}
    rank = min(count // 3, n)
    sketch = op.matmat(draw(random, "rademacher", (n, rank), xp, **like))
    q, _ = xp.linalg.qr(sketch)
    exact = xp.sum(q * op.matmat(q))
    if rank == n:
        return Estimate.made(exact, xp.zeros_like(exact), 2 * rank)
    rest = count - 2 * rank
    g = draw(random, "rademacher", (n, rest), xp, **like)
    g = g - q @ (q.T @ g)
    samples = xp.sum(g * op.matmat(g), axis=0)
    return Estimate.made(exact + xp.mean(samples), xp.std(samples, correction=1) / math.sqrt(rest), count)
