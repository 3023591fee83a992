"""Inverse-Hessian-vector products: one entry function, one registry row per method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from otbilevel._core import validate
from otbilevel._core.array import Array
from otbilevel._core.registry import Method, Registry
from otbilevel._core.result import Status, report
from otbilevel.linalg.cg import cg, check_system, power_of_two
from otbilevel.linalg.conversion import as_operator, in_library, like_input
from otbilevel.linalg.minres import minres
from otbilevel.linalg.neumann import lissa, neumann, verified
from otbilevel.linalg.nystrom import Nystrom, nystrom
from otbilevel.linalg.operators import SymmetricOperator
from otbilevel.linalg.result import LinearResult
from otbilevel.linalg.woodbury import MFAC

METHODS = Registry("ihvp")
LONG = 2000
"""Iterations after which those methods stop that might go on for n."""
APPROXIMATE = 'what stands in for H leaves this residual: it is no solver; take it as preconditioner of method="cg"'
EVERYWHERE = ("numpy", "array_api_strict", "torch")


@dataclass(frozen=True)
class System:
    """(H + damping I) x = b, checked.

    Attributes
    ----------
    op : SymmetricOperator
        H + damping I.
    plain : SymmetricOperator
        H.
    damping : float
        As given.
    b : (n,) array
        Right-hand side.
    tol : float
        Relative residual.
    max_iter : int
        Iteration limit.
    preconditioner : callable or None
        Approximates (H + damping I)^-1 r.
    rng : Generator, int or None
        Draws what is random.
    """

    op: SymmetricOperator
    plain: SymmetricOperator
    damping: float
    b: Array
    tol: float
    max_iter: int
    preconditioner: Callable[[Array], Array] | None
    rng: Any


@dataclass(frozen=True)
class NoOptions:
    """There are none."""


@dataclass(frozen=True)
class NeumannOptions:
    """Settings of the Neumann series.

    Attributes
    ----------
    step : float, optional
        Below 2 / lambda_max; by default the reciprocal of a bound of lambda_max.
    """

    step: float | None = None

    def __post_init__(self) -> None:
        if self.step is not None:
            validate.real(self.step, "step", low=0.0, strict=True)


@dataclass(frozen=True)
class LissaOptions(NeumannOptions):
    """Settings of LiSSA.

    Attributes
    ----------
    repeats : int
        Series whose mean is taken; each has `max_iter` terms.
    """

    repeats: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        validate.integer(self.repeats, "repeats", low=1)


@dataclass(frozen=True)
class NystromOptions:
    """Settings of the Nystrom method.

    Attributes
    ----------
    rank : int
        Rank of the approximation, and products that it takes.
    approximation : Nystrom, optional
        One made before, of H or of one like it.
    direct : bool
        Return what the approximation gives, without conjugate gradients (Hataya and Yamada, 2023).
    """

    rank: int = 20
    approximation: Nystrom | None = None
    direct: bool = False

    def __post_init__(self) -> None:
        validate.integer(self.rank, "rank", low=1)
        validate.boolean(self.direct, "direct")
        if self.approximation is not None and not isinstance(self.approximation, Nystrom):
            msg = f"approximation must be a Nystrom, got {type(self.approximation).__name__}"
            raise TypeError(msg)


@dataclass(frozen=True)
class MFACOptions:
    """Settings of M-FAC.

    Attributes
    ----------
    gradients : (m, d) array_like, optional
        Gradients whose empirical Fisher matrix stands in for H.
    approximation : MFAC, optional
        One made before; its damping is used in place of `damping`.
    """

    gradients: Any = None
    approximation: MFAC | None = None

    def __post_init__(self) -> None:
        if (self.gradients is None) == (self.approximation is None):
            msg = 'method="mfac" needs either options={"gradients": ...} or options={"approximation": an MFAC}'
            raise ValueError(msg)
        if self.approximation is not None and not isinstance(self.approximation, MFAC):
            msg = f"approximation must be an MFAC, got {type(self.approximation).__name__}"
            raise TypeError(msg)


def ihvp(
    op: Any,
    b: Any,
    method: str = "auto",
    *,
    damping: float = 0.0,
    tol: float | None = None,
    max_iter: int | None = None,
    init: Any = None,
    preconditioner: Callable[[Array], Array] | MFAC | Nystrom | None = None,
    rng: Any = 0,
    options: Mapping[str, Any] | None = None,
    raise_on_failure: bool = False,
) -> LinearResult:
    """Solve (H + damping I) x = b for a symmetric operator H, such as a Hessian.

    Parameters
    ----------
    op : SymmetricOperator or (n, n) array_like
        H.
    b : (n,) array_like
        Right-hand side. It may be of another library than the products of `op` when both are in host memory.
    method : str
        ``"cg"``, ``"minres"``, ``"neumann"``, ``"lissa"``, ``"nystrom"``, ``"mfac"`` or ``"dense"``; ``"auto"`` takes conjugate
        gradients where `op` says that it is positive semi-definite, else MINRES.
    damping : float
        What is added to the diagonal, >= 0.
    tol : float
        Norm of the residual relative to that of b; by default 1e-6, or 1e-4 where products have single precision.
    max_iter : int, optional
        Iteration limit; by default that of the method, for conjugate gradients and MINRES the lesser of 10 n and 2000.
    init : (n,) array_like or LinearResult, optional
        Where to start: the method solves for the correction. For methods that do not iterate that is a step of refinement.
    preconditioner : callable, MFAC or Nystrom, optional
        ``preconditioner(r)`` approximates (H + damping I)^-1 r, symmetric and positive definite; for ``"cg"`` and ``"minres"``.
    rng : numpy.random.Generator or int, optional
        Draws what is random; the same by default.
    options : dict, optional
        Settings of the method: ``"neumann"``: `step`; ``"lissa"``: `step`, `repeats`; ``"nystrom"``: `rank`, `direct`,
        `approximation`; ``"mfac"``: `gradients` or `approximation`. The documentation's table says what they are.
    raise_on_failure : bool
        Raise `ConvergenceError` instead of warning when the tolerance is not met.

    Returns
    -------
    LinearResult
        `x`, like `b`, and `residual` from a product of its own.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong; the message names it.
    ConvergenceError
        When the tolerance is not met and `raise_on_failure` is set.

    Warns
    -----
    ConvergenceWarning
        When the tolerance is not met. `message` says what to try.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.curvature import ihvp
    >>> ihvp(np.diag([1.0, 3.0]), np.ones(2), damping=1.0).x
    array([0.5 , 0.25])
    """
    plain = as_operator(op)
    given, b = b, check_system(plain, in_library(plain, b, "b"))
    unit = power_of_two(float(plain.xp.max(plain.xp.abs(b))))  # squares must not over- or underflow
    shift = validate.real(damping, "damping", low=0.0)
    if method == "auto":
        method = "cg" if plain.psd else "minres"
    row = METHODS[method]
    settings = row.make_options(options)
    if isinstance(preconditioner, MFAC):
        preconditioner = preconditioner.solve
    elif isinstance(preconditioner, Nystrom):
        preconditioner = partial(preconditioner.precondition, damping=shift)
    if preconditioner is not None and not callable(preconditioner):
        msg = f"preconditioner must be a function of a vector, got {type(preconditioner).__name__}"
        raise TypeError(msg)
    if preconditioner is not None and method not in ("cg", "minres"):
        msg = f'preconditioner is for method="cg" and "minres", not for {method!r}: leave it out'
        raise ValueError(msg)
    limit = row.max_iter if max_iter is None else validate.integer(max_iter, "max_iter", low=1)
    default = 1e-4 if plain.precision > 1e-10 else 1e-6
    target, strict = (
        default if tol is None else validate.real(tol, "tol", low=0.0),
        validate.boolean(raise_on_failure, "raise_on_failure"),
    )
    damped = plain.damp(shift) if shift else plain
    system = System(damped, plain, shift, b / unit, target, limit or min(10 * b.shape[0], LONG), preconditioner, rng)
    start = None if init is None else in_library(plain, init.x if isinstance(init, LinearResult) else init, "init") / unit
    result: LinearResult = _from(start, system, lambda one: row.solve(one, settings))
    return report(replace(result, x=like_input(result.x * unit, given)), raise_on_failure=strict)


def _from(start: Array | None, system: System, solve: Callable[[System], LinearResult]) -> LinearResult:
    """Solve for the correction of a start."""
    if start is None:
        return solve(system)
    if tuple(start.shape) != tuple(system.b.shape):
        msg = f"init must have shape {tuple(system.b.shape)}, got {tuple(start.shape)}"
        raise ValueError(msg)
    norm = system.op.xp.linalg.vector_norm
    rest, whole = system.b - system.op.matvec(start), float(norm(system.b))
    left = float(norm(rest))
    if not left < whole:  # a start that is worse than none
        return solve(system)
    if left <= system.tol * whole:
        return verified(system.op, start, system.b, system.tol, 0, None)
    found = solve(replace(system, b=rest, tol=system.tol * whole / left))
    return replace(found, x=start + found.x, residual=found.residual * left / whole)


def _cg(system: System, options: NoOptions) -> LinearResult:  # noqa: ARG001
    return cg(system.op, system.b, preconditioner=system.preconditioner, tol=system.tol, max_iter=system.max_iter)


def _minres(system: System, options: NoOptions) -> LinearResult:  # noqa: ARG001
    return minres(system.op, system.b, preconditioner=system.preconditioner, tol=system.tol, max_iter=system.max_iter)


def _neumann(system: System, options: NeumannOptions) -> LinearResult:
    return neumann(system.op, system.b, tol=system.tol, max_iter=system.max_iter, step=options.step, rng=system.rng)


def _lissa(system: System, options: LissaOptions) -> LinearResult:
    parts = [part.damp(system.damping) for part in getattr(system.plain, "parts", None) or [system.plain]]
    settings = {"depth": system.max_iter, "repeats": options.repeats, "step": options.step, "rng": system.rng}
    return lissa(system.op, system.b, parts=parts, tol=system.tol, **settings)


def _nystrom(system: System, options: NystromOptions) -> LinearResult:
    near = options.approximation or nystrom(system.plain, options.rank, rng=system.rng)
    if options.direct:
        return verified(system.op, near.solve(system.b, system.damping), system.b, system.tol, 0, None, shortfall=APPROXIMATE)
    precondition = lambda r: near.precondition(r, system.damping)  # noqa: E731
    return cg(system.op, system.b, preconditioner=precondition, tol=system.tol, max_iter=system.max_iter)


def _mfac(system: System, options: MFACOptions) -> LinearResult:
    near = options.approximation
    if near is None:
        if system.damping == 0:
            msg = 'method="mfac" with gradients needs damping > 0: their empirical Fisher matrix is singular'
            raise ValueError(msg)
        near = MFAC.from_gradients(options.gradients, system.damping)
    if near.shape != system.op.shape:
        msg = f"gradients (or approximation) must have n = {system.op.shape[0]} columns, got {near.shape[0]}"
        raise ValueError(msg)
    return verified(system.op, near.solve(system.b), system.b, system.tol, 0, None, shortfall=APPROXIMATE)


def _dense(system: System, options: NoOptions) -> LinearResult:  # noqa: ARG001
    xp, matrix = system.op.xp, system.op.to_dense()
    if not bool(xp.all(xp.isfinite(matrix))):
        return verified(system.op, xp.zeros_like(system.b), system.b, system.tol, 0, Status.NOT_FINITE)
    values, vectors = xp.linalg.eigh(0.5 * (matrix + matrix.T))
    sizes = xp.abs(values)
    floor = float(xp.max(sizes)) * max(values.shape[0] * float(xp.finfo(values.dtype).eps), 10 * system.op.precision)
    inverse = xp.where(sizes > floor, 1.0 / xp.where(sizes > floor, values, xp.ones_like(values)), xp.zeros_like(values))
    x = vectors @ (inverse * (vectors.T @ system.b))
    shortfall = "b is not in the range of the matrix, or rounding allows no smaller residual"
    return verified(system.op, x, system.b, system.tol, 1, None, negative=bool(xp.any(values < -floor)), shortfall=shortfall)


for _row in (
    Method("cg", "conjugate gradients; for positive definite H", _cg, NoOptions, EVERYWHERE, "Hestenes and Stiefel, 1952", 0),
    Method("minres", "least residuals; for any symmetric H", _minres, NoOptions, EVERYWHERE, "Paige and Saunders, 1975", 0),
    Method(
        "neumann",
        "a Neumann series, its step from a bound of the spectrum",
        _neumann,
        NeumannOptions,
        EVERYWHERE,
        "Lorraine et al., 2020",
        1000,
    ),
    Method(
        "lissa", "the mean of Neumann series over random parts of H", _lissa, LissaOptions, EVERYWHERE, "Agarwal et al., 2017", 200
    ),
    Method(
        "nystrom",
        "conjugate gradients preconditioned by a randomised low-rank approximation, or that alone",
        _nystrom,
        NystromOptions,
        EVERYWHERE,
        "Frangella et al., 2023",
        0,
    ),
    Method(
        "mfac",
        "the inverse of a damped empirical Fisher matrix in place of H's",
        _mfac,
        MFACOptions,
        EVERYWHERE,
        "Frantar et al., 2021",
        1,
    ),
    Method("dense", "the matrix, by n products, and its eigenvalues", _dense, NoOptions, EVERYWHERE, "", 1),
):
    METHODS.add(_row)
