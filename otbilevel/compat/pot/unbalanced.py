"""POT's `ot.unbalanced`: entropic transport between histograms whose marginals have a price."""

from __future__ import annotations

import warnings
from typing import Any

from otbilevel._core import validate
from otbilevel._core.array import array_namespace
from otbilevel.compat.pot._call import FUNCTIONS, Histograms, in_words_of, refuse_others
from otbilevel.compat.pot._relaxed import COUNTING, Relaxed, make_penalties, make_reference
from otbilevel.compat.pot.bregman import entries, errors, start_pairs
from otbilevel.ot.penalties import Fixed
from otbilevel.ot.result import OTResult

METHODS = ("sinkhorn", "sinkhorn_stabilized", "sinkhorn_translation_invariant", "sinkhorn_reg_scaling")
"""POT's algorithms for one and the same problem."""
TUNING = ("tau",)
"""Their own settings, which change the way and not the solution."""
NAMES = {**FUNCTIONS, "unbalanced": "reg_m"}


def sinkhorn_unbalanced(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    reg_m: Any,
    method: str = "sinkhorn",
    reg_type: str = "kl",
    c: Any = None,
    warmstart: Any = None,
    numItermax: int = 1000,
    stopThr: float = 1e-6,
    verbose: bool = False,
    log: bool = False,
    **kwargs: Any,
) -> Any:
    """Solve entropic unbalanced transport as `ot.sinkhorn_unbalanced` of POT does, by the solver of `solve_ot`.

    The plan minimises <P, M> + reg KL(P | R) + reg_m1 KL(P 1 | a) + reg_m2 KL(P' 1 | b).

    Parameters
    ----------
    a : (n,) array_like
        Weights of the sources; an empty list or None for uniform ones of mass 1.
    b : (m,) or (m, k) array_like
        Weights of the targets, of any mass; likewise. With k columns there are k problems, and losses are returned.
    M : (n, m) array_like
        Costs; +inf forbids a pair.
    reg : float
        Regularisation > 0, in units of the cost.
    reg_m : float, or one or two of them in a list or array
        Prices > 0 of the marginals, of both sides or of rows and columns; infinity fixes a side.
    method : str
        One of POT's ``"sinkhorn"``, ``"sinkhorn_stabilized"``, ``"sinkhorn_translation_invariant"``, ``"sinkhorn_reg_scaling"``.
        They solve the same problem; here all names run ``solve_ot(method="auto")``.
    reg_type : {"kl", "entropy"}
        What R is: a b^T, or 1. The plans differ. For several histograms R is 1 in either case, as in POT.
    c : (n, m) array_like, optional
        Another R, for one histogram and ``"kl"``; 0 forbids a pair.
    warmstart : tuple, optional
        ``(log u, log v)``. For k histograms arrays with k columns, or a list of k such pairs.
    numItermax : int
        Limit of the iterations, Sinkhorn's and Newton's together, over all levels of the regularisation.
    stopThr : float
        Accuracy: the L1 distance of both marginals together from those that the potentials prescribe, in units of the mass. POT
        tests how much u and v change.
    verbose : bool
        Show a progress bar on stderr.
    log : bool
        Return a pair, of the plan (or the losses) and a dict.
    **kwargs
        Settings of POT's algorithms (``tau``), which have nothing to set here.

    Returns
    -------
    (n, m) array, or (k,) array of losses <P, M> when b has k columns; with `log` a pair of that and a dict
        Of the library and on the device of the arguments. The dict holds ``"logu"``, ``"logv"`` with
        P = diag(u) (R exp(-M / reg)) diag(v) (also ``"log_u"``, ``"log_v"``, ``"u"``, ``"v"``); ``"err"``, the distance that
        `stopThr` bounds at each iteration and, last, of the returned plan; ``"niter"`` (also ``"n_iter"``); ``"warning"``, None or
        what a solver that stopped short says; and ``"result"``, the `otbilevel.OTResult` with its certificates, of the problem that
        was solved. For one histogram also ``"cost"`` <P, M> and ``"total_cost"``, as `sinkhorn_unbalanced2` defines them; for k
        histograms the vectors have k columns, ``"err"`` is the worst, and ``"result"`` a list.

    Raises
    ------
    ValueError, TypeError
        When an argument is wrong; the message names it.

    Warns
    -----
    ConvergenceWarning
        When the accuracy is not reached, with what to try.
    UserWarning
        When b has several columns and `reg_type` is not ``"entropy"``.

    Notes
    -----
    Another R than a b^T costs no n x m array: weights a^(reg_m1 / (reg_m1 + reg)), and likewise b, have the same minimiser. A
    measure c does cost one.

    Examples
    --------
    >>> from otbilevel.compat import pot as ot
    >>> ot.sinkhorn_unbalanced([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], 1, 1).round(7)
    array([[0.3220536, 0.1184769],
           [0.1184769, 0.3220536]])
    """
    given, problems, results = _solve(a, b, M, reg, reg_m, method, reg_type, c, warmstart, numItermax, stopThr, verbose, kwargs)
    value = _losses(given, problems, results) if given.several else results[0].plan
    return (value, log_of(given, problems, results)) if validate.boolean(log, "log") else value


def sinkhorn_unbalanced2(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    reg_m: Any,
    method: str = "sinkhorn",
    reg_type: str = "kl",
    c: Any = None,
    warmstart: Any = None,
    returnCost: str = "linear",
    numItermax: int = 1000,
    stopThr: float = 1e-6,
    verbose: bool = False,
    log: bool = False,
    **kwargs: Any,
) -> Any:
    """Solve entropic unbalanced transport for its cost, as `ot.sinkhorn_unbalanced2` of POT does.

    Parameters
    ----------
    a, b, M, reg, reg_m, method, reg_type, c, warmstart, numItermax, stopThr, verbose, log, **kwargs
        As in `sinkhorn_unbalanced`. No n x m plan is formed, unless there is a c.
    returnCost : {"linear", "total"}
        <P, M>, or <P, M> + reg sum P log(P / R) + reg_m1 sum r log(r / a) + reg_m2 sum s log(s / b) with the marginals r, s of P:
        POT leaves out the terms of mass that the divergences have in what is minimised, and so the total is 0, but for rounding,
        where no side is fixed. What is minimised is `value` of `log["result"]`, where R is a b^T. For several histograms only
        ``"linear"``.

    Returns
    -------
    float, or (k,) array when b has k columns; with `log` a pair of that and a dict
        The cost. The dict is that of `sinkhorn_unbalanced`.

    Raises
    ------
    ValueError, TypeError
        As `sinkhorn_unbalanced` does.

    Warns
    -----
    ConvergenceWarning, UserWarning
        As `sinkhorn_unbalanced` does.

    Examples
    --------
    >>> from otbilevel.compat import pot as ot
    >>> print(f"{ot.sinkhorn_unbalanced2([0.5, 0.1], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], 1.0, 1.0):.6f}")
    0.196001
    """
    validate.choice(returnCost, "returnCost", ("linear", "total"))
    given, problems, results = _solve(a, b, M, reg, reg_m, method, reg_type, c, warmstart, numItermax, stopThr, verbose, kwargs)
    if given.several:
        if returnCost == "total":
            msg = "returnCost='total' is for one histogram, b has several: call once for each (POT returns the linear cost)"
            raise ValueError(msg)
        value = _losses(given, problems, results)
    else:
        problem, result = problems[0], results[0]
        cost = problem.linear(result) if returnCost == "linear" else problem.total(result, masses=False)
        value = given.scalar(cost, result.f)
    return (value, log_of(given, problems, results)) if validate.boolean(log, "log") else value


def _solve(
    a: Any,
    b: Any,
    M: Any,
    reg: Any,
    reg_m: Any,
    method: Any,
    reg_type: Any,
    c: Any,
    warmstart: Any,
    numItermax: Any,
    stopThr: Any,
    verbose: Any,
    kwargs: dict[str, Any],
) -> tuple[Histograms, list[Relaxed], list[OTResult]]:
    """Solve for every histogram."""
    validate.choice(method.lower() if isinstance(method, str) else method, "method", METHODS)
    validate.choice(reg_type.lower() if isinstance(reg_type, str) else reg_type, "reg_type", ("kl", "entropy"))
    validate.boolean(verbose, "verbose")
    for name in kwargs:
        if name not in TUNING:
            msg = f"unexpected keyword argument {name!r}: of the settings of POT's algorithms, {', '.join(TUNING)} is understood"
            raise TypeError(msg)
    with in_words_of(NAMES):
        given = Histograms.of(a, b, M)
        strength = validate.real(reg, "reg", low=0.0, strict=True)
    penalties = make_penalties(reg_m, "reg_m") or (Fixed(), Fixed())
    reference = _entropic_reference(c, reg_type) if given.several else make_reference(given, reg_type, c)
    starts = [None] * len(given.columns) if warmstart is None else start_pairs(given, warmstart)
    problems = [Relaxed.of(given, column, strength, penalties, reference) for column in given.columns]
    results = []
    for problem, start in zip(problems, starts, strict=True):  # no comprehension: a frame more would misplace the warning
        results.append(
            problem.solve(
                names=NAMES,
                tol=stopThr,
                max_iter=numItermax,
                start=start,
                start_name="warmstart",
                verbose=verbose,
                stacklevel=4,
            )
        )
    return given, problems, results


def _entropic_reference(c: Any, reg_type: str) -> str:
    """The only one that POT has for several histograms."""
    if c is not None:
        msg = "c is for one histogram, b has several: leave it out, or call once for each (POT ignores it)"
        raise ValueError(msg)
    if reg_type.lower() == "kl":
        msg = "for several histograms reg_type is 'entropy', as in POT: say so, or call once for each histogram"
        warnings.warn(msg, stacklevel=4)
    return COUNTING


def _losses(given: Histograms, problems: list[Relaxed], results: list[OTResult]) -> Any:
    like = results[0].f
    costs = [problem.linear(result) for problem, result in zip(problems, results, strict=True)]
    return array_namespace(like).stack([given.scalar(cost, like) for cost in costs])


def log_of(given: Histograms, problems: list[Relaxed], results: list[OTResult]) -> dict[str, Any]:
    """What POT's functions log, and the entries of balanced ones."""
    pairs = [problem.log_scalings(result) for problem, result in zip(problems, results, strict=True)]
    log = entries(given, results, pairs, errors(results, *(problem.mass for problem in problems)))
    if not given.several:
        problem, result = problems[0], results[0]
        log["cost"] = given.scalar(problem.linear(result), result.f)
        log["total_cost"] = given.scalar(problem.total(result, masses=False), result.f)
    return log


__all__ = ["sinkhorn_unbalanced", "sinkhorn_unbalanced2"]
__getattr__ = refuse_others(__name__)
