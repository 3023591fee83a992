"""Many transport problems in one call."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
from scipy import sparse

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace, as_array, common_namespace, device, to_numpy
from otbilevel._core.result import report
from otbilevel.ot.batch_result import OTBatchResult
from otbilevel.ot.call import RELATIVE_REG, SMALLEST_REG, tolerance
from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.kernels import select
from otbilevel.ot.problem import make_geometry, make_problem

MAX_ITER = 10_000
"""Default limit of iterations for each problem."""
MASSES = {True: 1e-4, False: 1e-6}
"""Relative difference of masses that is rescaled, for single and double precision."""


@dataclass(frozen=True, eq=False)
class Stack:
    """A stack of problems between weights of unit mass, checked.

    Attributes
    ----------
    a, b : (B, n), (B, m) float64 arrays
        Weights, each of sum 1; some may be 0.
    C : (B, n, m) or (1, n, m) array
        Costs, in the user's dtype.
    reg, mass : (B,) float64 arrays
        Regularisation, and the mass of the user's weights.
    extremes : pair of (B,) float64 arrays, or None
        The smallest and the largest cost of each problem; None while nobody has looked.
    tol : float
        Marginal error.
    dtype
        Of what is returned.
    """

    a: Array
    b: Array
    C: Array
    reg: Array
    mass: Array
    extremes: tuple[Array, Array] | None
    tol: float
    dtype: Any

    @property
    def xp(self) -> ModuleType:
        """Array namespace of all arrays."""
        return array_namespace(self.a)

    @property
    def kernels(self) -> ModuleType:
        """What works on stacks of these arrays."""
        return _kernels(self.xp)

    @property
    def range(self) -> Array:
        """The range of the costs of each problem."""
        assert self.extremes is not None
        return self.extremes[1] - self.extremes[0]


def _kernels(xp: ModuleType) -> ModuleType:
    kernels: ModuleType = select(xp).batch_kernels
    return kernels


def solve_ot_batch(
    a: Any,
    b: Any,
    C: Any,  # noqa: N803 -- the field's name for the cost
    *,
    reg: Any = None,
    tol: float | None = None,
    max_iter: int | None = None,
    init: Any = None,
    raise_on_failure: bool = False,
) -> OTBatchResult:
    """Solve many problems of entropic transport at once, each as `solve_ot` would.

    Problem k is to minimise <P, C_k> + reg_k KL(P | a_k b_k^T) over P >= 0 with P 1 = a_k, P' 1 = b_k.

    Parameters
    ----------
    a, b : (B, n), (B, m) array_like, (n,), (m,) array_like, or None
        Non-negative weights, of equal mass in each problem; one-dimensional ones are shared by all problems, None is uniform.
    C : (B, n, m) or (n, m) array_like, SciPy sparse array or geometry
        Costs, one matrix for each problem or one for all; +inf forbids a pair. The cost matrix of a geometry is formed, also of a
        `SparseCost`, which a sparse array becomes.
    reg : float or (B,) array_like, optional
        Regularisation > 0, in units of the cost; by default 1e-3 times the range of the costs, of each problem if C is a stack.
    tol : float, optional
        L1 error of both marginals relative to the mass, in each problem. By default 1e-9, for float32 data 1e-5.
    max_iter : int, optional
        Limit of iterations for each problem, by default 10,000.
    init : OTBatchResult or tuple, optional
        Where to start: a result, or potentials (f, g) of shapes (B, n) and (B, m), for the same reg. A start that proves bad is
        forgotten.
    raise_on_failure : bool
        Raise `ConvergenceError` instead of warning when a problem does not meet the tolerance.

    Returns
    -------
    OTBatchResult
        Potentials, values and figures of all problems, stacked; ``result[k]`` is the `OTResult` of one.

    Raises
    ------
    ValueError, TypeError
        When an argument is wrong; the message names it, and the problem.
    ConvergenceError
        When a tolerance is not met and `raise_on_failure` is set.

    Warns
    -----
    ConvergenceWarning
        One for the whole batch, which says how many problems stop short of the tolerance and which come first.

    Notes
    -----
    For NumPy arrays every problem is solved in compiled code by the algorithm of ``method="sns"``, in double precision, and the
    problems are shared out over threads; beside input and output each thread keeps one (n, m) array. It pays where problems are
    so small that `solve_ot` would mostly wait for Python: up to a few hundred points. Other array libraries work on the whole
    stack, with some (B, n, m) and (B, m, m) arrays in double precision. Problems that stall are handed to `solve_ot`, one by one.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel import solve_ot_batch
    >>> rng = np.random.default_rng(0)
    >>> a, C = rng.dirichlet(np.ones(16), size=100), rng.random((20, 16))
    >>> result = solve_ot_batch(a, None, C.T, reg=0.01)
    >>> len(result), result.success, result.plan.shape
    (100, True, (100, 16, 20))
    >>> result[7].marginal_error < 1e-9
    True
    """
    stack = _make_stack(a, b, C, reg, tol)
    limit = MAX_ITER if max_iter is None else validate.integer(max_iter, "max_iter", low=1)
    strict, start = validate.boolean(raise_on_failure, "raise_on_failure"), None if init is None else _start(init, stack)
    solved, extremes = _solve(stack, limit, start)
    if stack.extremes is None:
        if extremes is not None:
            stack = replace(stack, extremes=extremes)
        else:  # what is wrong, or forbidden, is found out at leisure
            stack = _make_stack(a, b, C, reg, tol, look=True)
            solved, _ = _solve(stack, limit, start)
    return report(OTBatchResult.of(stack, *solved, limit), raise_on_failure=strict)


def _solve(stack: Stack, limit: int, start: Array | None) -> tuple[tuple[Array, Array, Array, Array], Any]:
    """f, g, counts and figures, and the extremes of the costs."""
    first, warm = _start_of(stack) if start is None else start, start is not None
    kernels = stack.kernels
    f, g, counts, figures, extremes = kernels.solve_batch(
        stack.C, stack.a, stack.b, stack.reg, stack.extremes, stack.tol, limit, first, warm=warm
    )
    return (f, g, counts, figures), extremes


def _make_stack(a: Any, b: Any, C: Any, reg: Any, tol: Any, *, look: bool = False) -> Stack:  # noqa: N803
    """Check the arguments; the costs only if `look`, or if the solver cannot do it on its way."""
    given = {name: as_array(w, name) for name, w in (("a", a), ("b", b)) if w is not None}
    if isinstance(C, Geometry) or sparse.issparse(C):
        C = make_geometry(C)  # noqa: N806
        dense = C.beside(given).to_dense()
        assert isinstance(dense, DenseCost)
        C = dense.matrix  # noqa: N806
    C = as_array(C, "C")  # noqa: N806
    if len(C.shape) not in (2, 3) or 0 in C.shape:
        msg = f"C must have shape (B, n, m), or (n, m) for a cost that all problems share, without zeros; got {tuple(C.shape)}"
        raise ValueError(msg)
    xp = common_namespace({**given, "C": C})
    dtype = xp.result_type(*given.values(), C.dtype)
    count = _count(given, C)
    n, m = C.shape[-2:]
    C = C if len(C.shape) == 3 else C[None, :, :]  # noqa: N806
    look = look or reg is None or C.shape[0] < count or not _kernels(xp).READS_COSTS
    low, high, forbids = _cost_range(xp, C) if look else (None, None, None)
    weights, masses = {}, {}
    for name, size in (("a", n), ("b", m)):
        if name in given:
            weights[name], masses[name] = _weights(xp, given[name], name, count, size)
        else:
            weights[name], masses[name] = xp.full((count, size), 1.0 / size, dtype=xp.float64, device=device(C)), None
    single = dtype == xp.float32
    mass = _common_masses(xp, masses["a"], masses["b"], MASSES[single], count, device(C))
    strength = _strengths(xp, reg, low, high, count, C)
    target, extremes = tolerance(tol), None
    if look:
        extremes = xp.broadcast_to(low, (count,)), xp.broadcast_to(high, (count,))
    target = (1e-5 if single else 1e-9) if target is None else target
    stack = Stack(weights["a"], weights["b"], C, strength, mass, extremes, target, dtype)
    if look:
        _require_feasible(stack, forbids)
    return stack


def _count(given: dict[str, Array], C: Array) -> int:  # noqa: N803
    """The number of problems, on which all stacks must agree."""
    stacks = {"C": C.shape[0]} if len(C.shape) == 3 else {}
    for name, w in given.items():
        if len(w.shape) not in (1, 2):
            msg = f"{name} must have shape (B, size), or (size,) for weights that all problems share, got {tuple(w.shape)}"
            raise ValueError(msg)
        if len(w.shape) == 2:
            stacks[name] = w.shape[0]
    if not stacks:
        msg = "nothing is a stack: give C as (B, n, m), or a or b as (B, size); a single problem is one for solve_ot"
        raise ValueError(msg)
    if len(set(stacks.values())) > 1 or 0 in stacks.values():
        found = ", ".join(f"{name}: {count}" for name, count in stacks.items())
        msg = f"all stacks must hold the same number of problems, at least one; got {found}"
        raise ValueError(msg)
    return int(next(iter(stacks.values())))


def _cost_range(xp: ModuleType, C: Array) -> tuple[Array, Array, Array]:  # noqa: N803
    """The smallest and the largest finite cost of each problem, in double precision, and whether it forbids pairs."""
    low, high, forbids = _kernels(xp).bounds(C)
    for bad, what in ((xp.isnan, "NaN"), (lambda v: v == -math.inf, "-inf")):
        if bool(xp.any(bad(low))):
            place = _first(xp, bad(C))
            msg = f"C holds {what}, first in problem {place[0]} at {place[1:]}; a forbidden pair is +inf"
            raise ValueError(msg)
    wide = xp.isfinite(low) & ~(0.5 * high - 0.5 * low <= 0.5 * float(np.finfo(np.float64).max))
    if bool(xp.any(wide)):
        k = _first(xp, wide)[0]
        ends = f"{float(low[k]):g} to {float(high[k]):g}"
        msg = f"C of problem {k} ranges from {ends}, whose difference overflows: rescale C, and reg"
        raise ValueError(msg)
    empty = ~xp.isfinite(low)
    return xp.where(empty, xp.zeros_like(low), low), xp.where(empty, xp.zeros_like(high), high), forbids


def _first(xp: ModuleType, mask: Array) -> tuple[int, ...]:
    """Index of the first True."""
    flat = int(xp.argmax(xp.reshape(xp.astype(mask, xp.int64), (-1,))))
    return tuple(int(i) for i in np.unravel_index(flat, tuple(mask.shape)))


def _weights(xp: ModuleType, w: Array, name: str, count: int, size: int) -> tuple[Array, Array]:
    """Weights of sum 1 in double precision, and their sums."""
    if w.shape[-1] != size:
        msg = f"{name} has {w.shape[-1]} weights for each problem, but C has {size} {_side(name)}"
        raise ValueError(msg)
    w = xp.astype(w, xp.float64)
    if not (float(xp.min(w)) >= 0 and float(xp.max(w)) < math.inf):
        bad = ~(xp.isfinite(w) & (w >= 0))
        place = _first(xp, bad)
        index, found = ", ".join(map(str, place)), float(w[place])
        what = "negative" if found < 0 and math.isfinite(found) else "not finite"
        msg = f"{name} must hold finite weights >= 0, but {name}[{index}] is {what} ({found!r})"
        raise ValueError(msg)
    w = xp.broadcast_to(w if len(w.shape) == 2 else w[None, :], (count, size))
    largest = xp.max(w, axis=1, keepdims=True)
    w = w / xp.where(largest > 0, largest, xp.ones_like(largest))  # sums of the weights themselves could leave double precision
    total = xp.sum(w, axis=1)
    mass = total * largest[:, 0]
    bad = ~((mass > 0) & xp.isfinite(mass))
    if bool(xp.any(bad)):
        k = _first(xp, bad)[0]
        msg = f"{name} must have positive, finite total mass, but that of problem {k} is {float(mass[k])!r}"
        raise ValueError(msg)
    w, least = w / total[:, None], float(np.finfo(np.float64).tiny)
    return (w if float(xp.min(w)) >= least else xp.where(w >= least, w, xp.zeros_like(w))), mass


def _side(name: str) -> str:
    return "rows" if name == "a" else "columns"


def _common_masses(xp: ModuleType, of_a: Array | None, of_b: Array | None, tolerated: float, count: int, where: Any) -> Array:
    if of_a is None or of_b is None:
        either = of_a if of_b is None else of_b
        return xp.ones((count,), dtype=xp.float64, device=where) if either is None else either
    bad = xp.abs(of_a - of_b) > tolerated * xp.maximum(of_a, of_b)
    if bool(xp.any(bad)):
        k = _first(xp, bad)[0]
        msg = (
            f"a and b must have equal mass in each problem, but in problem {k} sum(a) = {float(of_a[k])!r} and "
            f"sum(b) = {float(of_b[k])!r}: rescale one of them"
        )
        raise ValueError(msg)
    return of_a


def _strengths(xp: ModuleType, reg: Any, low: Array, high: Array, count: int, like: Array) -> Array:
    """One regularisation for each problem, checked against its cost where that is known (else `low` and `high` are None)."""
    if reg is None:
        spread, largest = high - low, xp.maximum(xp.abs(low), xp.abs(high))
        unit = xp.broadcast_to(xp.where(spread > 0, spread, largest), (count,))
        strength = RELATIVE_REG * xp.where(unit > 0, unit, xp.ones_like(unit))
    elif getattr(reg, "shape", ()) == () and not isinstance(reg, (list, tuple)):
        strength = xp.full((count,), validate.real(reg, "reg", low=0.0, strict=True), dtype=xp.float64, device=device(like))
    else:
        strength = as_array(reg, "reg")
        if type(strength) is not type(like):  # a list, or numbers of another library
            strength = xp.asarray(to_numpy(strength), device=device(like))
        if tuple(strength.shape) != (count,):
            msg = f"reg must be a number or have shape ({count},), got {tuple(strength.shape)}"
            raise ValueError(msg)
        strength = xp.astype(strength, xp.float64)
    bad = ~(xp.isfinite(strength) & (strength > 0))
    if bool(xp.any(bad)):
        k = _first(xp, bad)[0]
        msg = f"reg must be finite and > 0, but reg[{k}] is {float(strength[k])!r}"
        raise ValueError(msg)
    lost = _lost(xp, strength, low, high) if low is not None else bad
    if bool(xp.any(lost)):
        k = _first(xp, lost)[0]
        largest = xp.broadcast_to(xp.maximum(xp.abs(low), xp.abs(high)), (count,))
        msg = (
            f"reg = {float(strength[k]):g} of problem {k} is lost in the rounding of C, whose largest cost is {float(largest[k]):g}"
        )
        raise ValueError(msg)
    return strength


def _lost(xp: ModuleType, reg: Array, low: Array, high: Array) -> Array:
    """Where reg is lost in the rounding of the costs."""
    largest = xp.maximum(xp.abs(low), xp.abs(high))
    return reg < xp.maximum(float(np.finfo(np.float64).eps) * largest, xp.full_like(largest, SMALLEST_REG))


def _require_feasible(stack: Stack, forbids: Array) -> None:
    """Let `solve_ot`'s check look at problems with forbidden pairs."""
    if not bool(stack.xp.any(forbids)):
        return
    for k in range(stack.a.shape[0]):
        shared = stack.C.shape[0] == 1
        if bool(forbids[0 if shared else k]):
            try:
                make_problem(stack.a[k, :], stack.b[k, :], DenseCost(stack.C[0 if shared else k, :, :]), reg=1.0, tol=None)
            except ValueError as error:
                msg = f"problem {k}: {error}"
                raise ValueError(msg) from None


def _start_of(stack: Stack) -> Array:
    """g = 0, -inf at columns of zero weight."""
    xp = stack.xp
    return xp.where(stack.b > 0, xp.zeros_like(stack.b), xp.full_like(stack.b, -math.inf))


def _start(init: Any, stack: Stack) -> Array:
    """The potentials of the columns that the user starts from, with log b in them."""
    xp = stack.xp
    if isinstance(init, OTBatchResult):
        g = init._potentials[1]
    elif isinstance(init, (tuple, list)) and len(init) == 2:
        g = as_array(init[1], "init[1]")
        common_namespace({"init[1]": g, "C": stack.C})
    else:
        msg = f"init must be an OTBatchResult or a pair (f, g) of potentials, got {type(init).__name__}"
        raise TypeError(msg)
    if tuple(g.shape) != tuple(stack.b.shape):
        msg = f"the potentials g of init must have shape {tuple(stack.b.shape)}, got {tuple(g.shape)}"
        raise ValueError(msg)
    g = xp.astype(g, xp.float64)
    if not bool(xp.all(xp.isfinite(g))):
        msg = "the potentials g of init must be finite: leave init out to start afresh"
        raise ValueError(msg)
    logs = xp.log(xp.where(stack.b > 0, stack.b, xp.ones_like(stack.b)))
    return xp.where(stack.b > 0, g + stack.reg[:, None] * logs, xp.full_like(g, -math.inf))
