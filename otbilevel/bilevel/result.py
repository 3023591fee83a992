"""What `minimize_bilevel` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from otbilevel._core.array import Array
from otbilevel._core.result import Result, Status


@dataclass(frozen=True, repr=False, eq=False)
class BilevelResult(Result):
    """A solution of a bilevel problem; all figures are in the units of the user's functions.

    Attributes
    ----------
    x, y : (n,), (m,) array
        The point, in the library of the start.
    fun, lower_fun : float
        F(x, y) and f(x, y).
    lower_gap : float
        f(x, y) minus a lower optimum that was computed afresh, a local one where f is not convex in y; infinite when
        none was found.
    stationarity : float
        How far the upper level has settled: the relative change of F between the last two penalties, and by the last move to lower
        optimality; for the single loop the projected gradient of the penalised objective relative to that of F.
    maxcv : float
        The largest violation of a constraint or bound.
    multipliers : list of (l,) array
        Those of the lower level's constraints, one array for each item of `constraints`.
    penalty : float
        The last c, or lambda; infinite for methods without one.
    nit : int
        Iterations: penalty stages over all starts, or steps.
    nfev, njev : dict of int
        Evaluations of values and of gradients, of ``"upper"`` and of ``"lower"``.
    state : dict of array
        What `init` takes to go on.
    success, status, message
        Whether the lower-level gap is at most tol max(1, |f|), and tol times the length of f's gradient, the violation at most
        0.1 tol, and the upper level settled; and how that was found.
    method : str
        The method.
    history : dict of list
        Figures of every iteration.
    """

    x: Array
    y: Array
    fun: float
    lower_fun: float
    lower_gap: float
    stationarity: float
    maxcv: float
    multipliers: list[Array]
    penalty: float
    nit: int
    nfev: dict[str, int]
    njev: dict[str, int]
    state: dict[str, Any]
    success: bool
    status: Status
    message: str
    method: str
    history: dict[str, list[float]]
    _summary = (
        "message",
        "success",
        "status",
        "method",
        "fun",
        "lower_fun",
        "lower_gap",
        "stationarity",
        "maxcv",
        "nit",
        "x",
        "y",
    )
