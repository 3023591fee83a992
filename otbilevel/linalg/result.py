"""What solvers of linear systems and estimators return."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from otbilevel._core.array import Array, array_namespace
from otbilevel._core.result import Result, Status


@dataclass(frozen=True, repr=False, eq=False)
class LinearResult(Result):
    """The solution of a linear system A x = b.

    Attributes
    ----------
    x : (n,) array
        The solution, or the last iterate.
    residual : float
        Norm of b - A x relative to the norm of b, from a product of its own unless the caller renounced it.
    negative_curvature : bool
        Whether a direction p with p'Ap <= 0 was met: A is not positive definite there.
    nit : int
        Iterations.
    success, status, message
        Whether and why it stopped, and what to try.
    """

    x: Array
    residual: float
    negative_curvature: bool
    nit: int
    success: bool
    status: Status
    message: str
    _summary = ("message", "success", "status", "residual", "negative_curvature", "nit", "x")


@dataclass(frozen=True, repr=False, eq=False)
class Estimate(Result):
    """A stochastic estimate.

    Attributes
    ----------
    value : float or (n,) array
        The estimate.
    stderr : float or (n,) array
        An estimate of its standard error, from the samples; 0 where it is exact.
    nmatvec : int
        Products that it took.
    success, status, message
        Whether all products were finite.
    """

    value: Any
    stderr: Any
    nmatvec: int
    success: bool
    status: Status
    message: str
    _summary = ("value", "stderr", "nmatvec", "message")

    @classmethod
    def of(cls, samples: Array, nmatvec: int) -> Estimate:
        """The mean of samples, one a row, with what their scatter says about it."""
        xp, count = array_namespace(samples), samples.shape[0]
        mean = xp.mean(samples, axis=0)
        spread = xp.std(samples, axis=0, correction=1) / math.sqrt(count) if count > 1 else xp.full_like(mean, math.inf)
        return cls.made(mean, spread, nmatvec)

    @classmethod
    def made(cls, value: Array, stderr: Array, nmatvec: int) -> Estimate:
        """From a value and its error: numbers become floats."""
        xp = array_namespace(value)
        finite = bool(xp.all(xp.isfinite(value)))
        status = Status.SUCCESS if finite else Status.NOT_FINITE
        scalar = len(value.shape) == 0
        return cls(
            value=float(value) if scalar else value,
            stderr=float(stderr) if scalar else stderr,
            nmatvec=nmatvec,
            success=finite,
            status=status,
            message="all products are finite" if finite else "a product is not finite: look at the function that computes it",
        )
