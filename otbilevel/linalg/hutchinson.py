"""Hutchinson's estimators of the trace and of the diagonal."""

from __future__ import annotations

from typing import Any

from otbilevel._core import validate
from otbilevel._core.rng import KINDS, draw, generator
from otbilevel.linalg.conversion import as_operator
from otbilevel.linalg.result import Estimate

CHUNK = 2**22
"""Numbers of probes that are multiplied at a time."""


def hutchinson_trace(op: Any, n_matvec: int, *, rng: Any = None, probe: str = "rademacher") -> Estimate:
    """Estimate the trace of an operator by the mean of z'Hz over random probes.

    Parameters
    ----------
    op : SymmetricOperator or (n, n) array_like
        H.
    n_matvec : int
        Probes, each with one product; two at least, so that there is an error.
    rng : numpy.random.Generator or int, optional
        Draws the probes.
    probe : {"rademacher", "gaussian"}
        Signs, whose variance is 2 sum_(i != j) H_ij^2, or normal numbers, 2 ||H||_F^2.

    Returns
    -------
    Estimate
        Value and standard error.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong; the message names it.

    References
    ----------
    M. F. Hutchinson, A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines, 1989.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.linalg import hutchinson_trace
    >>> hutchinson_trace(np.diag([1.0, 2.0, 4.0]), 10, rng=0).value
    7.0
    """
    return _estimate(op, n_matvec, rng, probe, trace=True)


def hutchinson_diagonal(op: Any, n_matvec: int, *, rng: Any = None, probe: str = "rademacher") -> Estimate:
    """Estimate the diagonal of an operator by the mean of z * Hz over random probes.

    Parameters
    ----------
    op : SymmetricOperator or (n, n) array_like
        H.
    n_matvec : int
        Probes, each with one product; two at least, so that there is an error.
    rng : numpy.random.Generator or int, optional
        Draws the probes.
    probe : {"rademacher", "gaussian"}
        Signs, whose variance is sum_(j != i) H_ij^2 for entry i, or normal numbers, with H_ii^2 twice on top.

    Returns
    -------
    Estimate
        Vectors of values and standard errors.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong; the message names it.

    References
    ----------
    C. Bekas, E. Kokiopoulou, Y. Saad, An estimator for the diagonal of a matrix, Appl. Numer. Math. 57, 2007.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.linalg import hutchinson_diagonal
    >>> hutchinson_diagonal(np.diag([1.0, 2.0, 4.0]), 10, rng=0).value
    array([1., 2., 4.])
    """
    return _estimate(op, n_matvec, rng, probe, trace=False)


def _estimate(op: Any, n_matvec: int, rng: Any, probe: str, *, trace: bool) -> Estimate:
    op = as_operator(op)
    count = validate.integer(n_matvec, "n_matvec", low=2)
    kind, random = validate.choice(probe, "probe", KINDS), generator(rng)
    xp, n, parts = op.xp, op.shape[0], []
    if trace:
        width = max(1, CHUNK // n)
        for low in range(0, count, width):
            z = draw(random, kind, (min(width, count - low), n), xp, dtype=op.dtype, device=op.device)
            parts.append(xp.sum(z * op.matmat(z.T).T, axis=1))
        return Estimate.of(xp.concat(parts), count)
    mean = square = xp.zeros((n,), dtype=op.dtype, device=op.device)
    for k in range(count):  # Welford's way: no more than a few vectors are kept
        z = draw(random, kind, (n,), xp, dtype=op.dtype, device=op.device)
        sample = z * op.matvec(z)
        step = sample - mean
        mean = mean + step / (k + 1)
        square = square + step * (sample - mean)
    return Estimate.made(mean, xp.sqrt(square / ((count - 1) * count)), count)
