"""XTrace and XDiag: every probe serves both the low-rank part and the rest, by leaving one out at a time.

With Y = H W for probes W, Q R = Y and s_i the normalised column i of R^-T, the range of Y without column i is Q (I - s_i s_i').
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from otbilevel._core import validate
from otbilevel._core.array import Array
from otbilevel._core.rng import draw, generator
from otbilevel.linalg.conversion import as_operator
from otbilevel.linalg.operators import SymmetricOperator
from otbilevel.linalg.result import Estimate


class _Sketch(NamedTuple):
    """Probes W (n, m), Q (n, m), R (m, m), the s_i as columns, and Z = H Q."""

    W: Array
    Q: Array
    R: Array
    S: Array
    Z: Array


def xtrace(op: Any, n_matvec: int, *, rng: Any = None) -> Estimate:
    """Estimate the trace of an operator by XTrace.

    Parameters
    ----------
    op : SymmetricOperator or (n, n) array_like
        H.
    n_matvec : int
        Products, an even number of at least four; no more than 2 n are made.
    rng : numpy.random.Generator or int, optional
        Draws the probes.

    Returns
    -------
    Estimate
        Value and standard error, from the scatter of the estimates that leave one probe out. These share all other probes, so that
        it tends to be too small; 0 with n probes, where the trace is exact.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong; the message names it.

    Notes
    -----
    O(n n_matvec) memory, O(n n_matvec^2) work. The rest of a probe is scaled to the length that it has in the mean, which suits
    normal probes.

    References
    ----------
    E. N. Epperly, J. A. Tropp, R. J. Webber, XTrace: making the most of every sample in stochastic trace estimation, SIAM J. Matrix
    Anal. Appl. 45, 2024, section 2.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.linalg import xtrace
    >>> H = np.diag(1.0 / np.arange(1.0, 101.0) ** 2)
    >>> estimate = xtrace(H, 40, rng=0)
    >>> abs(estimate.value - np.trace(H)) < 5 * estimate.stderr < 0.02
    True
    """
    op = as_operator(op)
    sketch = _sketch(op, n_matvec, rng, "gaussian")
    xp, (n, m) = op.xp, sketch.W.shape
    H = sketch.Q.T @ sketch.Z  # noqa: N806 -- the paper's name
    whole = xp.linalg.trace(H)
    if m == n:
        return Estimate.made(whole, xp.zeros_like(whole), 2 * m)
    W, S = sketch.Q.T @ sketch.W, sketch.S  # noqa: N806
    X = W - S * xp.sum(S * W, axis=0)  # noqa: N806 -- Q X is the part of the probes in the range without them
    lengths = xp.sum(sketch.W**2, axis=0) - xp.sum(X**2, axis=0)
    on_probe = xp.sum((sketch.Q.T @ sketch.W) * sketch.R, axis=0)  # w'Hw = w'Q R
    rest = (on_probe - 2.0 * xp.sum(X * sketch.R, axis=0) + xp.sum(X * (H @ X), axis=0)) * ((n - m + 1) / lengths)
    estimates = whole - xp.sum(S * (H @ S), axis=0) + rest
    return Estimate.made(xp.mean(estimates), xp.std(estimates, correction=1) / math.sqrt(m), 2 * m)


def xdiag(op: Any, n_matvec: int, *, rng: Any = None) -> Estimate:
    """Estimate the diagonal of an operator by XDiag.

    Parameters
    ----------
    op : SymmetricOperator or (n, n) array_like
        H.
    n_matvec : int
        Products, an even number of at least four; no more than 2 n are made.
    rng : numpy.random.Generator or int, optional
        Draws the probes.

    Returns
    -------
    Estimate
        Vectors of values and standard errors, from the scatter of the estimates that leave one probe out, which tend to be too
        small; 0 with n probes, where it is exact.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong; the message names it.

    References
    ----------
    E. N. Epperly, J. A. Tropp, R. J. Webber, XTrace: making the most of every sample in stochastic trace estimation, SIAM J. Matrix
    Anal. Appl. 45, 2024, section 2.4.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.linalg import xdiag
    >>> v = np.arange(5.0)
    >>> xdiag(np.outer(v, v), 10, rng=0).value.round(6) + 0.0
    array([ 0.,  1.,  4.,  9., 16.])
    """
    op = as_operator(op)
    sketch = _sketch(op, n_matvec, rng, "rademacher")
    xp, (n, m) = op.xp, sketch.W.shape
    whole = xp.sum(sketch.Q * sketch.Z, axis=1)
    if m == n:
        return Estimate.made(whole, xp.zeros_like(whole), 2 * m)
    left_out = sketch.Q @ sketch.S
    rest = sketch.W * left_out * xp.sum(sketch.S * sketch.R, axis=0)
    estimates = whole[:, None] - left_out * (sketch.Z @ sketch.S) + rest
    return Estimate.made(xp.mean(estimates, axis=1), xp.std(estimates, axis=1, correction=1) / math.sqrt(m), 2 * m)


def _sketch(op: SymmetricOperator, n_matvec: Any, rng: Any, kind: str) -> _Sketch:
    count = validate.integer(n_matvec, "n_matvec", low=4)
    if count % 2:
        msg = f"n_matvec must be even, as every probe takes two products; got {count}"
        raise ValueError(msg)
    xp, n = op.xp, op.shape[0]
    W = draw(generator(rng), kind, (n, min(count // 2, n)), xp, dtype=op.dtype, device=op.device)  # noqa: N806
    Q, R = xp.linalg.qr(op.matmat(W))  # noqa: N806
    # R is singular where H has a smaller rank: the least change that makes it invertible leaves out what carries nothing.
    sizes = xp.abs(xp.linalg.diagonal(R))
    floor = 1e-14 * float(xp.max(sizes)) or 1.0
    regular = R + floor * xp.eye(R.shape[0], dtype=R.dtype, device=op.device) * xp.astype(sizes < floor, R.dtype)
    S = xp.linalg.inv(regular).T  # noqa: N806
    return _Sketch(W, Q, R, S / xp.linalg.vector_norm(S, axis=0, keepdims=True), op.matmat(Q))
