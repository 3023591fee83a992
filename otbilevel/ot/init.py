"""What users may start from: a result, or potentials."""

from __future__ import annotations

from typing import Any

from otbilevel._core.array import Array, as_array, common_namespace
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.result import OTResult
from otbilevel.ot.start import Start


def make_start(init: Any, problem: OTProblem) -> Start | None:
    """Check `init` and put it on the support of the weights.

    Raises
    ------
    TypeError, ValueError
        As `solve_ot` documents them.
    """
    if init is None:
        return None
    multipliers = None
    if isinstance(init, OTResult):
        names = ("init.f", "init.g")
        # In double precision, as results round what they return for float32 data. `reg` is 0 for an exact plan.
        f, g = init._plan.double_potentials()
        reg = init.reg or None
        multipliers = init.multipliers
    elif isinstance(init, (tuple, list)) and len(init) == 2:
        names, reg = ("init[0]", "init[1]"), None
        f, g = (as_array(v, name) for v, name in zip(init, names, strict=True))
    else:
        found = f"a {type(init).__name__} of length {len(init)}" if isinstance(init, (tuple, list)) else type(init).__name__
        msg = f"init must be an OTResult or a pair (f, g) of potentials, got {found}"
        raise TypeError(msg)
    common_namespace({names[0]: f, names[1]: g, **problem.whole.arrays})
    shape = problem.whole.shape
    _, g = (_checked(problem, v, name, size) for v, name, size in zip((f, g), names, shape, strict=True))
    g = problem.targets.restrict(g)
    # Where constants matter, or what is moderate depends on the multipliers, g is taken as it is.
    if problem.marginals is None and (problem.constraints is None or multipliers is None):
        g = _moderate(problem, g)
    return Start(g, reg, multipliers=multipliers)


def _checked(problem: OTProblem, potential: Array, name: str, size: int) -> Array:
    xp = problem.xp
    if tuple(potential.shape) != (size,):
        msg = (
            f"{name} must have shape ({size},), got {tuple(potential.shape)}: init holds one potential per row of C "
            f"and one per column, and C has shape {problem.whole.shape}"
        )
        raise ValueError(msg)
    bad = ~xp.isfinite(potential)
    if bool(xp.any(bad)):
        index = int(xp.argmax(xp.astype(bad, xp.int64)))
        msg = f"{name} must be finite, but {name}[{index}] is {float(potential[index])!r}: leave init out to start afresh"
        raise ValueError(msg)
    return xp.astype(potential, xp.float64)


def _moderate(problem: OTProblem, potential: Array) -> Array:
    """Centred at the median, and without what no solution can hold.

    Optimal potentials differ by at most the range of the cost, as each is a soft minimum of costs minus the other one; with
    forbidden pairs by that much for each step of a detour. What lies outside would only overflow.
    """
    xp, (low, high) = problem.xp, problem.geometry.bounds
    steps = sum(problem.geometry.shape) if problem.geometry.has_forbidden_pairs else 1
    limit = steps * (high - low)
    # Halves, as the difference of two finite numbers may overflow.
    centre = xp.sort(potential)[potential.shape[0] // 2]
    return 2.0 * xp.clip(0.5 * potential - 0.5 * centre, -0.5 * limit, 0.5 * limit)
