"""POT's `ot.lp`: unregularised transport between histograms."""

from __future__ import annotations

from typing import Any

from otbilevel._core import validate
from otbilevel._core.array import Array
from otbilevel._core.result import Status
from otbilevel.compat.pot._call import FUNCTIONS, Histograms, in_words_of, refuse_others, run, translate
from otbilevel.ot.result import OTResult

CODES = {Status.SUCCESS: 1, Status.ITERATION_LIMIT: 3}
"""POT's codes for how its network simplex ended; the rest is 0."""


def emd(
    a: Any,
    b: Any,
    M: Any,
    numItermax: int = 100000,
    log: bool = False,
    center_dual: bool = True,
    numThreads: int | str = 1,
    check_marginals: bool = True,
    potentials_init: Any = None,
) -> Any:
    """Solve unregularised transport as `ot.emd` of POT does, by ``solve_ot(method="exact")``.

    Parameters
    ----------
    a, b : (n,), (m,) array_like
        Weights of equal mass; an empty list or None for uniform ones of mass 1.
    M : (n, m) array_like
        Costs; +inf forbids a pair.
    numItermax : int
        Limit of the iterations (pivots) of the solver.
    log : bool
        Return a pair, of the plan and a dict.
    center_dual : bool
        Accepted; the duals always have <a, u> = <b, v>, as POT's have by default.
    numThreads : int or str
        Accepted; it has no effect, as in POT.
    check_marginals : bool
        Refuse masses that differ by more than a millionth. Without, `b` is scaled to the mass of `a`.
    potentials_init
        Not supported: leave it out. The plan does not depend on it.

    Returns
    -------
    (n, m) array; with `log` a pair of that and a dict
        An optimal vertex, of the library and on the device of the arguments. The dict holds ``"cost"`` <P, M>; the duals ``"u"``
        and ``"v"``; ``"warning"``, None or what went wrong; ``"result_code"``, 1 at an optimal vertex, 3 at the limit of
        iterations, else 0; and ``"result"``, the `otbilevel.OTResult`.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        When an argument is wrong or not supported; the message names it.

    Warns
    -----
    ConvergenceWarning
        When no vertex is proved optimal.

    Notes
    -----
    The network simplex is POT's where POT is installed, and else the linear program goes to SciPy's HiGHS. Integer weights give a
    plan of floating numbers (in POT one of integers), and costs of double precision one of double precision, whatever the
    weights are.

    Examples
    --------
    >>> from otbilevel.compat import pot as ot
    >>> ot.emd([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]])
    array([[0.5, 0. ],
           [0. , 0.5]])
    """
    del numThreads
    given = _given(a, b, M, center_dual, check_marginals, potentials_init)
    if given.several:
        msg = f"b must be one-dimensional, got shape {tuple(given.b.shape)}: ot.emd2 takes several histograms"
        raise ValueError(msg)
    result = run(given, given.b, names=FUNCTIONS, max_iter=numItermax, stacklevel=3)
    return (result.plan, _log(given, result, result.f)) if validate.boolean(log, "log") else result.plan


def emd2(
    a: Any,
    b: Any,
    M: Any,
    processes: int = 1,
    numItermax: int = 100000,
    log: bool = False,
    return_matrix: bool = False,
    center_dual: bool = True,
    numThreads: int | str = 1,
    check_marginals: bool = True,
    potentials_init: Any = None,
) -> Any:
    """Solve unregularised transport for its cost, as `ot.emd2` of POT does.

    Parameters
    ----------
    a, M, numItermax, center_dual, numThreads, check_marginals, potentials_init
        As in `emd`.
    b : (m,) or (m, k) array_like
        As in `emd`, or k histograms as columns.
    processes : int
        Accepted; it has no effect, as in POT.
    log : bool
        Return a pair, of the cost and the dict of `emd`.
    return_matrix : bool
        Return such a pair too, with the plan as ``"G"`` in the dict.

    Returns
    -------
    float, or a list of k when b has k columns; with `log` or `return_matrix` pairs of that and a dict
        The optimal cost <P, M>.

    Raises
    ------
    ValueError, TypeError, NotImplementedError
        As `emd` does.

    Warns
    -----
    ConvergenceWarning
        As `emd` does.

    Examples
    --------
    >>> from otbilevel.compat import pot as ot
    >>> float(ot.emd2([0.5, 0.5], [0.25, 0.75], [[0.0, 1.0], [1.0, 0.0]]))
    0.25
    """
    del processes, numThreads
    given = _given(a, b, M, center_dual, check_marginals, potentials_init)
    with_log = validate.boolean(log, "log") | validate.boolean(return_matrix, "return_matrix")
    values = []
    for column in given.columns:
        result = run(given, column, names=FUNCTIONS, max_iter=numItermax, stacklevel=3)
        cost = given.scalar(result.value_linear, result.f)
        if not with_log:
            values.append(cost)
            continue
        entries = _log(given, result, result.f)
        values.append((cost, {**entries, "G": result.plan} if return_matrix else entries))
    return values if given.several else values[0]


def _given(a: Any, b: Any, M: Any, center_dual: Any, check_marginals: Any, potentials_init: Any) -> Histograms:
    """The problem; `b` is scaled if the masses are not to be compared."""
    validate.boolean(center_dual, "center_dual")
    refuse_start(potentials_init)
    with in_words_of(FUNCTIONS):
        given = Histograms.of(a, b, M)
    if validate.boolean(check_marginals, "check_marginals"):
        return given
    xp = given.xp
    masses = xp.sum(given.b, axis=0, keepdims=True)
    masses = xp.where(masses > 0, masses, xp.ones_like(masses))  # a histogram without mass is refused later, by name
    return Histograms(given.a, given.b * (xp.sum(given.a) / masses), given.geometry)


def refuse_start(potentials_init: Any) -> None:
    """Refuse a start of the linear program."""
    if potentials_init is not None:
        msg = "potentials_init is not supported for unregularised transport: leave it out, the plan does not depend on it"
        raise NotImplementedError(msg)


def _log(given: Histograms, result: OTResult, like: Array) -> dict[str, Any]:
    return {
        "cost": given.scalar(result.value_linear, like),
        "u": result.f,
        "v": result.g,
        "warning": None if result.success else translate(result.message, FUNCTIONS),
        "result_code": CODES.get(result.status, 0),
        "result": result,
    }


__all__ = ["emd", "emd2"]
__getattr__ = refuse_others(__name__)
