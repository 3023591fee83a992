"""POT's `ot.bregman`: entropic transport between histograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace
from otbilevel.compat.pot._call import (
    FUNCTIONS,
    Histograms,
    exponential,
    in_words_of,
    log_scalings,
    potentials_of,
    refuse_others,
    run,
    translate,
)
from otbilevel.ot.result import OTResult

METHODS = ("sinkhorn", "sinkhorn_log", "sinkhorn_stabilized", "sinkhorn_epsilon_scaling", "greenkhorn")
"""POT's algorithms for one and the same problem."""
ABSORBING = METHODS[2:4]
"""Those whose warm start is (alpha, beta), in units of the cost."""
TUNING = ("tau", "print_period", "epsilon0", "numInnerItermax")
"""Their own settings, which change the way and not the solution."""


def sinkhorn(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    method: str = "sinkhorn",
    numItermax: int = 1000,
    stopThr: float = 1e-9,
    verbose: bool = False,
    log: bool = False,
    warn: bool = True,
    warmstart: Any = None,
    **kwargs: Any,
) -> Any:
    """Solve entropic transport as `ot.sinkhorn` of POT does, by the solver of `solve_ot`.

    Parameters
    ----------
    a : (n,) array_like
        Weights of the sources; an empty list or None for uniform ones of mass 1.
    b : (m,) or (m, k) array_like
        Weights of the targets, of the mass of `a`; likewise. With k columns there are k problems, and losses are returned.
    M : (n, m) array_like
        Costs; +inf forbids a pair.
    reg : float
        Regularisation > 0, in units of the cost.
    method : str
        One of POT's ``"sinkhorn"``, ``"sinkhorn_log"``, ``"sinkhorn_stabilized"``, ``"sinkhorn_epsilon_scaling"``,
        ``"greenkhorn"``. They solve the same problem; here all names run ``solve_ot(method="auto")``, and choose only what
        `warmstart` means.
    numItermax : int
        Limit of the iterations, Sinkhorn's and Newton's together, over all levels of the regularisation.
    stopThr : float
        Accuracy: the L1 error of both marginals together, in units of the mass. POT tests the L2 error of one marginal, which is
        never larger: a plan that passes here passes there.
    verbose : bool
        Show a progress bar on stderr.
    log : bool
        Return a pair, of the plan (or the losses) and a dict.
    warn : bool
        Warn when the accuracy is not reached.
    warmstart : tuple, optional
        Logarithms of the scalings ``(log u, log v)``; for the methods that absorb them (stabilised and epsilon scaling)
        ``(alpha, beta)``, which is reg times these. For k histograms arrays with k columns, or a list of k such pairs.
    **kwargs
        Settings of POT's algorithms (``tau``, ``print_period``, ``epsilon0``, ``numInnerItermax``), which have nothing to set here.

    Returns
    -------
    (n, m) array, or (k,) array of losses <P, M> when b has k columns; with `log` a pair of that and a dict
        Of the library and on the device of the arguments. The dict holds ``"u"``, ``"v"`` with P = diag(u) exp(-M / reg) diag(v),
        ``"log_u"``, ``"log_v"`` (also ``"logu"``, ``"logv"``), ``"alpha"``, ``"beta"`` (reg times these); ``"err"``, the L1 error
        of both marginals at each iteration and, last, of the returned plan; ``"niter"`` (also ``"n_iter"``), the number of
        iterations; ``"warning"``, None or what a solver that stopped short says; and ``"result"``, the `otbilevel.OTResult` with
        its certificates. For k histograms the vectors have k columns, ``"err"`` is the worst, and ``"result"`` a list.
        For the methods that absorb, ``"warmstart"`` is (alpha, beta).

    Raises
    ------
    ValueError, TypeError
        When an argument is wrong; the message names it.

    Warns
    -----
    ConvergenceWarning
        When the accuracy is not reached, with what to try.

    Notes
    -----
    u and v are unique up to a factor that moves from one to the other, and POT's depends on the iterations taken; here reg
    log(u / a) and reg log(v / b) have equal means under a and b. Where exp overflows, u and v are inf, and their logarithms are
    good.

    Examples
    --------
    >>> from otbilevel.compat import pot as ot
    >>> ot.sinkhorn([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], 1).round(8)
    array([[0.36552929, 0.13447071],
           [0.13447071, 0.36552929]])
    """
    given, results = _solve(a, b, M, reg, method, numItermax, stopThr, verbose, warn, warmstart, kwargs)
    value = _losses(given, results) if given.several else results[0].plan
    return (value, _log(given, results, method)) if log else value


def sinkhorn2(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    method: str = "sinkhorn",
    numItermax: int = 1000,
    stopThr: float = 1e-9,
    verbose: bool = False,
    log: bool = False,
    warn: bool = False,
    warmstart: Any = None,
    **kwargs: Any,
) -> Any:
    """Solve entropic transport for its loss <P, M>, as `ot.sinkhorn2` of POT does.

    Parameters
    ----------
    a, b, M, reg, method, numItermax, stopThr, verbose, log, warmstart, **kwargs
        As in `sinkhorn`. No n x m plan is formed.
    warn : bool
        As in `sinkhorn`; off by default, as in POT.

    Returns
    -------
    float, or (k,) array when b has k columns; with `log` a pair of that and a dict
        <P, M>, without the entropy. The dict is that of `sinkhorn`.

    Raises
    ------
    ValueError, TypeError
        As `sinkhorn` does.

    Warns
    -----
    ConvergenceWarning
        As `sinkhorn` does, if `warn`.

    Examples
    --------
    >>> from otbilevel.compat import pot as ot
    >>> print(f"{ot.sinkhorn2([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], 1):.8f}")
    0.26894142
    """
    given, results = _solve(a, b, M, reg, method, numItermax, stopThr, verbose, warn, warmstart, kwargs)
    losses = _losses(given, results)
    value = losses if given.several else losses[0]
    return (value, _log(given, results, method)) if log else value


def _solve(
    a: Any,
    b: Any,
    M: Any,
    reg: Any,
    method: Any,
    numItermax: Any,
    stopThr: Any,
    verbose: bool,
    warn: bool,
    warmstart: Any,
    kwargs: dict[str, Any],
) -> tuple[Histograms, list[OTResult]]:
    """Solve for every histogram."""
    method = validate.choice(method.lower() if isinstance(method, str) else method, "method", METHODS)
    for name in kwargs:
        if name not in TUNING:
            msg = f"unexpected keyword argument {name!r}: of the settings of POT's algorithms, {', '.join(TUNING)} are understood"
            raise TypeError(msg)
    for name, flag in (("verbose", verbose), ("warn", warn)):
        validate.boolean(flag, name)
    with in_words_of(FUNCTIONS):
        given = Histograms.of(a, b, M)
        strength = validate.real(reg, "reg", low=0.0)
        if strength == 0:
            msg = "reg must be > 0, got 0: for unregularised transport use ot.emd"
            raise ValueError(msg)
    starts = _starts(given, warmstart, strength, absorbed=method in ABSORBING)
    results = []
    for column, start in zip(given.columns, starts, strict=True):  # no comprehension: a frame more would misplace the warning
        results.append(
            run(
                given,
                column,
                names=FUNCTIONS,
                reg=strength,
                max_iter=numItermax,
                tol=stopThr,
                init=start,
                warn=warn,
                verbose=verbose,
            )
        )
    return given, results


def _starts(given: Histograms, warmstart: Any, reg: float, *, absorbed: bool) -> Sequence[tuple[Array, Array] | None]:
    """Potentials to start from, for each histogram."""
    columns = given.columns
    if warmstart is None:
        return [None] * len(columns)
    pairs = start_pairs(given, warmstart)
    if absorbed:
        pairs = [tuple(part / reg for part in pair) for pair in pairs]
    return [potentials_of(pair, "warmstart", given.a, b, reg) for pair, b in zip(pairs, columns, strict=True)]


def start_pairs(given: Histograms, warmstart: Any) -> list[Any]:
    """A warm start as a pair for each histogram."""
    count = len(given.columns)
    pairs: list[Any] = [warmstart]
    if given.several:
        stacked = len(warmstart) == 2 and all(getattr(part, "ndim", 1) == 2 for part in warmstart)
        pairs = [tuple(part[:, k] for part in warmstart) for k in range(count)] if stacked else list(warmstart)
    if len(pairs) != count:
        msg = f"warmstart must hold a pair for each of the {count} histograms in b, got {len(pairs)}"
        raise ValueError(msg)
    return pairs


def _losses(given: Histograms, results: list[OTResult]) -> Array:
    like = results[0].f
    return array_namespace(like).stack([given.scalar(result.value_linear, like) for result in results])


def _log(given: Histograms, results: list[OTResult], method: Any) -> dict[str, Any]:
    """What POT's functions log, under the names of all of them."""
    pairs = [log_scalings(result, given.a, b) for result, b in zip(results, given.columns, strict=True)]
    log = entries(given, results, pairs, errors(results, given.mass))
    dtype, reg = results[0].f.dtype, results[0].reg
    log["alpha"], log["beta"] = (given.xp.astype(reg * stacked(given, side), dtype) for side in zip(*pairs, strict=True))
    if method.lower() in ABSORBING:
        log["warmstart"] = log["alpha"], log["beta"]
    return log


def stacked(given: Histograms, vectors: Sequence[Array]) -> Array:
    """One vector for each histogram as columns, where there are several."""
    return given.xp.stack(vectors, axis=1) if given.several else vectors[0]


def entries(given: Histograms, results: list[OTResult], pairs: list[tuple[Array, Array]], err: list[float]) -> dict[str, Any]:
    """The entries that all algorithms have; `pairs` holds log u and log v for each histogram."""
    dtype = results[0].f.dtype
    log: dict[str, Any] = {"err": err}
    log["niter"] = log["n_iter"] = max(result.nit for result in results)
    for name, side in zip("uv", zip(*pairs, strict=True), strict=True):
        vector = stacked(given, side)
        log[name] = exponential(vector, dtype)
        log[f"log_{name}"] = log[f"log{name}"] = given.xp.astype(vector, dtype)
    log["warning"] = next((translate(result.message, FUNCTIONS) for result in results if not result.success), None)
    log["result"] = results if given.several else results[0]
    return log


def errors(results: list[OTResult], *masses: float) -> list[float]:
    """The worst marginal errors of the iterations, and last those of the plans that are returned.

    They are relative to `masses`, one for all or one for each.
    """
    scales = masses * (len(results) if len(masses) == 1 else 1)
    curves = [
        [scale * float(error) for error in (*result.history["marginal_error"], result.marginal_error)]
        for result, scale in zip(results, scales, strict=True)
    ]
    longest = max(map(len, curves))
    padded = [[*curve, *[curve[-1]] * (longest - len(curve))] for curve in curves]
    return [max(column) for column in zip(*padded, strict=True)]


__all__ = ["sinkhorn", "sinkhorn2"]
__getattr__ = refuse_others(__name__)
