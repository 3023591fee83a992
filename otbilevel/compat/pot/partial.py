"""POT's `ot.partial`: entropic transport of a part of the mass."""

from __future__ import annotations

import math
from typing import Any

from otbilevel._core import validate
from otbilevel.compat.pot._call import FUNCTIONS, Histograms, in_words_of, mass_of, refuse_others
from otbilevel.compat.pot._relaxed import COUNTING, Relaxed
from otbilevel.compat.pot.bregman import errors
from otbilevel.ot.partial_mass import PartialMass
from otbilevel.ot.penalties import AtMost, Fixed

METHODS = ("sinkhorn", "sinkhorn_log")
"""POT's algorithms for one and the same problem."""
NAMES = {**FUNCTIONS, "unbalanced": "m", "mass": "m"}
ROUNDING = 1e-12
"""Threshold below which the default accuracy is meant; POT's default asks for all iterations."""
WHOLE = 1e-9
"""Relative difference up to which a mass is that of a whole side (1e-5 for float32)."""


def entropic_partial_wasserstein(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    m: float | None = None,
    method: str = "sinkhorn",
    numItermax: int = 1000,
    stopThr: float = 1e-100,
    verbose: bool = False,
    log: bool = False,
) -> Any:
    """Solve entropic partial transport as `ot.partial.entropic_partial_wasserstein` of POT does, by the solver of `solve_ot`.

    The plan minimises <P, M> + reg sum P log P over P >= 0 with P 1 <= a, P' 1 <= b and sum P = m.

    Parameters
    ----------
    a, b : (n,), (m,) array_like
        Weights, of any mass; an empty list or None for uniform ones of mass 1.
    M : (n, m) array_like
        Costs; +inf forbids a pair.
    reg : float
        Regularisation > 0, in units of the cost.
    m : float, optional
        The mass to transport, at most that of either side; by default the smaller of them.
    method : {"sinkhorn", "sinkhorn_log"}
        Accepted; there is one algorithm, ``solve_ot(method="auto")`` with a search for the price of what stays behind.
    numItermax : int
        Limit of the iterations for each price that is tried.
    stopThr : float
        Accuracy: the L1 error of both marginals and of the mass, in units of the mass. Below 1e-12, as by default, the default of
        `solve_ot` is meant: 1e-9 of the mass, 1e-5 for float32 data. POT tests how much the plan changes.
    verbose : bool
        Show a progress bar on stderr.
    log : bool
        Return a pair, of the plan and a dict.

    Returns
    -------
    (n, m) array; with `log` a pair of that and a dict
        The plan, of the library and on the device of the arguments. The dict holds ``"partial_w_dist"`` <P, M>; ``"err"``, what
        `stopThr` bounds, at each iteration and, last, of the returned plan; and ``"result"``, the `otbilevel.OTResult` of the
        problem that was solved, whose cost has reg log(a b^T) added.

    Raises
    ------
    ValueError, TypeError
        When an argument is wrong; the message names it.

    Warns
    -----
    ConvergenceWarning
        When the accuracy is not reached, with what to try.

    Examples
    --------
    >>> from otbilevel.compat import pot as ot
    >>> ot.partial.entropic_partial_wasserstein([0.1, 0.2], [0.1, 0.1], [[0.0, 1.0], [2.0, 3.0]], 1, 0.1).round(2)
    array([[0.06, 0.02],
           [0.01, 0.  ]])
    """
    validate.choice(method.lower() if isinstance(method, str) else method, "method", METHODS)
    for name, flag in (("verbose", verbose), ("log", log)):
        validate.boolean(flag, name)
    with in_words_of(NAMES):
        given = Histograms.of(a, b, M)
        strength = validate.real(reg, "reg", low=0.0, strict=True)
        threshold = validate.real(stopThr, "stopThr", low=0.0)
    if given.several:
        msg = f"b must be one-dimensional, got shape {tuple(given.b.shape)}: call once for each histogram"
        raise ValueError(msg)
    problem = Relaxed.of(given, given.b, strength, _constraint(given, m), COUNTING)
    result = problem.solve(
        names=NAMES,
        tol=None if threshold < ROUNDING else threshold,
        max_iter=numItermax,
        start=None,
        start_name="",
        verbose=verbose,
        stacklevel=3,
    )
    if not log:
        return result.plan
    distance = given.scalar(problem.linear(result), result.f)
    return result.plan, {"err": errors([result], problem.mass), "partial_w_dist": distance, "result": result}


def _constraint(given: Histograms, m: Any) -> Any:
    """What `solve_ot` takes: a mass, or a side that is all of it."""
    sides = given.mass, mass_of(given.b)
    least = min(sides)
    if not 0 < least < math.inf:
        return Fixed(), Fixed()  # for `solve_ot` to say what is wrong with the weights
    wanted = least if m is None else validate.real(m, "m", low=0.0, strict=True)
    xp = given.xp
    single = xp.result_type(given.a, given.b, given.geometry.dtype) == xp.float32
    slack = (1e-5 if single else WHOLE) * least
    if wanted > least + slack:
        msg = f"m must be at most the smaller of sum(a) = {sides[0]!r} and sum(b) = {sides[1]!r}, got {wanted!r}"
        raise ValueError(msg)
    if wanted < least - slack:
        return PartialMass(wanted)
    fixed = [side <= least + slack for side in sides]
    return tuple(Fixed() if whole else AtMost(0.0) for whole in fixed)


__all__ = ["entropic_partial_wasserstein"]
__getattr__ = refuse_others(__name__)
