"""POT's `ot.solvers`: one function for a cost matrix, one for clouds of points."""

from __future__ import annotations

from typing import Any

from otbilevel._core import validate
from otbilevel.compat.pot import bregman, lp
from otbilevel.compat.pot._call import SAMPLES, SOLVE, Histograms, in_words_of, potentials_of, refuse_others, run
from otbilevel.compat.pot._relaxed import COUNTING, PENALTIES, Relaxed, make_penalties, make_reference
from otbilevel.compat.pot.result import OTResult, UnbalancedResult
from otbilevel.compat.pot.unbalanced import log_of
from otbilevel.compat.pot.utils import cost_between
from otbilevel.ot.penalties import KL, Fixed, Penalty

METHODS = ("sinkhorn", "sinkhorn_log", "mm", "lbfgsb")
"""POT's algorithms that `method` may name; they differ for unbalanced problems only."""
GRADIENTS = ("autodiff", "envelope", "last_step", "detach")


def solve(
    M: Any,
    a: Any = None,
    b: Any = None,
    reg: float | None = None,
    c: Any = None,
    reg_type: Any = "KL",
    unbalanced: Any = None,
    unbalanced_type: str = "KL",
    method: str | None = None,
    n_threads: int | str = 1,
    max_iter: int | None = None,
    plan_init: Any = None,
    potentials_init: Any = None,
    tol: float | None = None,
    verbose: bool = False,
    grad: str = "autodiff",
) -> OTResult:
    """Solve optimal transport as `ot.solve` of POT does, by `solve_ot`.

    Parameters
    ----------
    M : (n, m) array_like
        Costs; +inf forbids a pair.
    a, b : (n,), (m,) array_like, optional
        Weights of equal mass; by default uniform, of mass 1.
    reg : float, optional
        Regularisation, in units of the cost. None and 0: transport without it.
    c : (n, m) array_like, optional
        With `unbalanced` and ``"KL"``, a measure in the place of a b^T. Balanced problems do not take it: minimise with the cost
        ``M - reg * log(c / (a b^T))`` instead (POT ignores it).
    reg_type : {"KL", "entropy"}
        Whether `value` contains reg sum P log(P / (a b^T)) or reg sum P log P. Where marginals are exact the plan is the same, and
        so are the potentials; with `unbalanced` it is another problem.
    unbalanced : float or pair of floats, optional
        Prices > 0 of the marginals, of both sides or of rows and columns. None or infinity: exact marginals. Needs `reg`.
    unbalanced_type : {"KL", "TV"}
        Penalty: Kullback-Leibler divergence or total variation. Only read with `unbalanced`.
    method : {"sinkhorn", "sinkhorn_log", "mm", "lbfgsb"}, optional
        Accepted; there is one algorithm, ``solve_ot(method="auto")`` (``"exact"`` without reg).
    n_threads : int or str
        Accepted; it has no effect, as in POT.
    max_iter : int, optional
        Limit of all iterations; by default that of `solve_ot`.
    plan_init
        Not supported: start from potentials.
    potentials_init : tuple, optional
        ``(log u, log v)`` to start from, as `potentials` of the result are (POT ignores it here). Not for unregularised transport.
    tol : float, optional
        L1 error of both marginals together, in units of the mass; by default 1e-9 of the mass, 1e-5 for float32 data. POT tests the
        L2 error of one. Unregularised transport does not read it. With `unbalanced`, as in `sinkhorn_unbalanced`.
    verbose : bool
        Show a progress bar on stderr.
    grad : {"autodiff", "envelope", "last_step", "detach"}
        Tensors that require gradients are refused, as none are recorded; with ``"detach"`` they are detached first.

    Returns
    -------
    OTResult
        With POT's attributes `plan`, `value`, `value_linear`, `potentials`, `potential_a`, `potential_b`, `marginals`,
        `marginal_a`, `marginal_b`, `sparse_plan`, `lazy_plan`, `status`, `log`; and `result`, what `solve_ot` found.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        When an argument is wrong or not supported; the message names it.

    Warns
    -----
    ConvergenceWarning
        When the accuracy is not reached.

    Notes
    -----
    With `unbalanced`, `value` is what POT reports. For KL in both places that is <P, M> + reg sum P log(P / R) + the sums
    r log(r / w) of the marginals; else it is what is minimised: divergences come with their terms of mass, and ``"entropy"`` is
    sum P log P - sum P. `potentials` are log u, log v with P = diag(u) (R exp(-M / reg)) diag(v) and R = a b^T, c, or 1 for
    ``"entropy"``.

    Examples
    --------
    >>> from otbilevel.compat import pot as ot
    >>> result = ot.solve([[0.0, 1.0], [1.0, 0.0]], reg=1.0)
    >>> result.plan.round(4)
    array([[0.3655, 0.1345],
           [0.1345, 0.3655]])
    >>> print(f"{result.value:.6f}, {result.value_linear:.6f}, {result.status}")
    0.379885, 0.268941, Converged
    """
    del n_threads
    _require_plain(reg_type=reg_type, method=method, plan_init=plan_init, grad=grad)
    penalties = _penalties(unbalanced, unbalanced_type, reg, c)
    M, a, b, c = _detached((M, a, b, c), grad)
    with in_words_of(SOLVE):
        given = Histograms.of(a, b, M)
    return _solve(given, reg, reg_type, penalties, c, max_iter, potentials_init, tol, verbose)


def solve_sample(
    X_a: Any,
    X_b: Any,
    a: Any = None,
    b: Any = None,
    metric: Any = "sqeuclidean",
    reg: float | None = None,
    c: Any = None,
    reg_type: Any = "KL",
    unbalanced: Any = None,
    unbalanced_type: str = "KL",
    lazy: bool = False,
    batch_size: Any = None,
    method: str | None = None,
    n_threads: int | str = 1,
    max_iter: int | None = None,
    plan_init: Any = None,
    rank: int = 100,
    scaling: float = 0.95,
    potentials_init: Any = None,
    X_init: Any = None,
    tol: float | None = None,
    verbose: bool = False,
    grad: str = "autodiff",
    random_state: Any = None,
    debias: bool = False,
    n_projections: int = 50,
    projections: Any = None,
    scaler: Any = None,
) -> OTResult:
    """Solve optimal transport between clouds of points as `ot.solve_sample` of POT does, by `solve_ot`.

    Parameters
    ----------
    X_a, X_b : (n, d), (m, d) array_like
        Points.
    a, b, reg, c, reg_type, unbalanced, unbalanced_type, n_threads, max_iter, plan_init, potentials_init, tol, verbose, grad
        As in `solve`.
    metric : str or callable
        As in `dist`. For ``"sqeuclidean"``, ``"euclidean"``, ``"cityblock"`` and ``"cosine"`` no cost matrix is formed
        (unregularised transport forms it, and so do c, and ``unbalanced_type="TV"`` with ``reg_type="entropy"``).
    lazy : bool
        Accepted: what is heavy is computed when it is read, in either case.
    batch_size : int, optional
        Accepted; passes choose the size of their blocks.
    method : {"sinkhorn", "sinkhorn_log", "mm", "lbfgsb"}, optional
        As in `solve`. POT's other methods (``"1d"``, ``"gaussian"``, ``"lowrank"``, ``"sliced"``, ``"geomloss"`` ...) solve other
        problems or approximate this one, and are not supported.
    debias : bool
        Whether `value` and `value_linear` become those of the Sinkhorn divergence: less the halves of those from `X_a` to itself
        and from `X_b` to itself. ``"split"`` is not supported.
    rank, scaling, X_init, random_state, n_projections, projections
        Belong to methods that are not supported; not read.
    scaler
        Not supported: scale the points first.

    Returns
    -------
    OTResult
        As `solve` does.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `solve` does.

    Warns
    -----
    ConvergenceWarning
        As `solve` does.

    Examples
    --------
    >>> from otbilevel.compat import pot as ot
    >>> result = ot.solve_sample([[0.0], [1.0]], [[0.0], [3.0]], reg=0.1, lazy=True)
    >>> result.lazy_plan[0].round(3), f"{result.value_linear:.3f}"
    (array([0.5, 0. ]), '2.000')
    """
    del n_threads, rank, scaling, X_init, random_state, n_projections, projections
    _require_plain(reg_type=reg_type, method=method, plan_init=plan_init, grad=grad)
    penalties = _penalties(unbalanced, unbalanced_type, reg, c)
    validate.boolean(lazy, "lazy")
    if batch_size is not None:
        validate.integer(batch_size, "batch_size", low=1)
    if scaler is not None:
        msg = "scaler is not supported: scale X_a and X_b before the call"
        raise NotImplementedError(msg)
    if isinstance(debias, str):
        msg = f"debias={debias!r} is not supported: only True, the Sinkhorn divergence, and False are"
        raise NotImplementedError(msg)
    if validate.boolean(debias, "debias") and c is not None:
        msg = "c is not for debias=True, whose three problems have three shapes: leave one of them out"
        raise ValueError(msg)
    X_a, X_b, a, b, c = _detached((X_a, X_b, a, b, c), grad)

    def between(x: Any, y: Any, weights: tuple[Any, Any], sides: tuple[str, str], init: Any = None) -> OTResult:
        cost = cost_between(x, y, metric, sides)
        with in_words_of(SAMPLES):
            given = Histograms.on(cost, *weights)
        return _solve(given, reg, reg_type, penalties, c, max_iter, init, tol, verbose, stacklevel=5)

    crossed = between(X_a, X_b, (a, b), ("X_a", "X_b"), potentials_init)
    if not debias:
        return crossed
    selves = between(X_a, X_a, (a, a), ("X_a", "X_a")), between(X_b, X_b, (b, b), ("X_b", "X_b"))
    log = {"res_ab": crossed, "res_aa": selves[0], "res_bb": selves[1]}
    return crossed._debiased(selves, log)


def _solve(
    given: Histograms,
    reg: Any,
    reg_type: str,
    penalties: tuple[Penalty, Penalty] | None,
    c: Any,
    max_iter: Any,
    potentials_init: Any,
    tol: Any,
    verbose: Any,
    stacklevel: int = 4,
) -> OTResult:
    """Solve with or without regularisation."""
    validate.boolean(verbose, "verbose")
    if given.several:
        msg = f"b must be one-dimensional, got shape {tuple(given.b.shape)}: ot.sinkhorn2 and ot.emd2 take several histograms"
        raise ValueError(msg)
    strength = 0.0 if reg is None else validate.real(reg, "reg", low=0.0)
    if strength == 0:
        lp.refuse_start(potentials_init)
        result = run(given, given.b, names=SOLVE, max_iter=max_iter, stacklevel=stacklevel)
        return OTResult(result, given, entropy=False, log=lp._log(given, result, result.f))
    if penalties is not None:
        problem = Relaxed.of(given, given.b, strength, penalties, make_reference(given, reg_type, c))
        return _solve_relaxed(problem, max_iter, potentials_init, tol, verbose, stacklevel + 1)
    init = None if potentials_init is None else potentials_of(potentials_init, "potentials_init", given.a, given.b, strength)
    result = run(
        given, given.b, names=SOLVE, reg=strength, max_iter=max_iter, tol=tol, init=init, verbose=verbose, stacklevel=stacklevel
    )
    log = bregman._log(given, [result], "sinkhorn")
    return OTResult(result, given, entropy=reg_type.lower() == "entropy", log=log)


def _solve_relaxed(
    problem: Relaxed, max_iter: Any, potentials_init: Any, tol: Any, verbose: bool, stacklevel: int
) -> UnbalancedResult:
    """Solve where marginals have a price."""
    result = problem.solve(
        names=SOLVE,
        tol=tol,
        max_iter=max_iter,
        start=potentials_init,
        start_name="potentials_init",
        verbose=verbose,
        stacklevel=stacklevel,
    )
    kl_alone = all(isinstance(penalty, (KL, Fixed)) for penalty in problem.unbalanced) and problem.reference is not COUNTING
    log = log_of(problem.given, [problem], [result])
    return UnbalancedResult(result, problem, masses=not kl_alone, log=log)


def _penalties(unbalanced: Any, unbalanced_type: Any, reg: Any, c: Any) -> tuple[Penalty, Penalty] | None:
    """The prices of the marginals; None where both are exact."""
    penalties = None
    if unbalanced is not None:
        kind = unbalanced_type.lower() if isinstance(unbalanced_type, str) else ""
        if kind not in PENALTIES:
            msg = f"unbalanced_type={unbalanced_type!r} is not supported: only 'KL' and 'TV' are; use POT's own function"
            raise NotImplementedError(msg)
        penalties = make_penalties(unbalanced, "unbalanced", kind)
    if penalties is None and c is not None:
        msg = "c is not supported without unbalanced: leave it out, and minimise with the cost M - reg * log(c / (a b^T))"
        raise NotImplementedError(msg)
    if penalties is not None and (reg is None or reg == 0):
        msg = f"unbalanced={unbalanced!r} without reg is not supported: give a small reg, as 1e-3 times the range of the costs"
        raise NotImplementedError(msg)
    return penalties


def _require_plain(*, reg_type: Any, method: Any, plan_init: Any, grad: Any) -> None:
    """Refuse by name what `solve_ot` has not."""
    if not isinstance(reg_type, str):
        msg = "reg_type as a pair of functions is not supported: only 'KL' and 'entropy' are; use POT's own function"
        raise NotImplementedError(msg)
    if reg_type.lower() not in ("kl", "entropy"):
        msg = f"reg_type={reg_type!r} is not supported: only 'KL' and 'entropy' are; use POT's own function"
        raise NotImplementedError(msg)
    if method is not None and method not in METHODS:
        msg = f"method={method!r} is not supported: leave it out, or name one of {', '.join(METHODS)}; else use POT's own function"
        raise NotImplementedError(msg)
    if plan_init is not None:
        msg = "plan_init is not supported: start from potentials, potentials_init=(log u, log v)"
        raise NotImplementedError(msg)
    validate.choice(grad, "grad", GRADIENTS)


def _detached(arrays: tuple[Any, ...], grad: str) -> tuple[Any, ...]:
    """The same without the record of gradients, if that is asked for."""
    return tuple(x.detach() if grad == "detach" and hasattr(x, "detach") else x for x in arrays)


__all__ = ["solve", "solve_sample"]
__getattr__ = refuse_others(__name__)
