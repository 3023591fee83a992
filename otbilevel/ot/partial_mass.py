"""Transport of a given part of the mass: a price for what stays behind, found so that the plan has the mass that is asked for."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq

from otbilevel._core import validate
from otbilevel._core.array import Array
from otbilevel._core.result import Status
from otbilevel.ot.feasibility import largest_mass
from otbilevel.ot.penalties import AtMost, Penalty
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.result import OTResult, shortfall
from otbilevel.ot.start import Start
from otbilevel.ot.unbalanced_plan import UnbalancedPlan

SHARE = 0.1
"""Of the tolerance that the mass may be off."""
ALL = 1e-6
"""Relative difference of masses that are taken for the same."""
USABLE = 1e-3
"""Marginal error of a solve that stalled with which the search goes on."""
MAX_SOLVES = 60
SLOWEST = 0.2
"""By what the rate of growth may fall from secant to secant: it vanishes where points are full and others far away."""


@dataclass(frozen=True)
class PartialMass:
    """A plan of this mass with P 1 <= a and P' 1 <= b.

    Parameters
    ----------
    mass : float
        The mass to transport, in the unit of the weights: positive, and less than either side has.

    Notes
    -----
    The mass grows with the price of what stays behind, the potential of the constraint on the mass. The secant method finds it, and
    Brent's method where that overshoots, with a solve for each value that they try, from the potentials of the one before.
    `max_iter` and the time limit hold for each of them.

    References
    ----------
    L. A. Caffarelli, R. J. McCann, Free boundaries in optimal transport and Monge-Ampère obstacle problems, Annals of Math. 2010.
    J.-D. Benamou, G. Carlier, M. Cuturi, L. Nenna, G. Peyré, Iterative Bregman projections, SISC 2015, Section 5.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel import solve_ot
    >>> from otbilevel.ot import PartialMass
    >>> C = np.array([[0.0, 9.0], [9.0, 5.0]])
    >>> result = solve_ot([0.5, 0.5], [0.5, 0.5], C, reg=1e-2, unbalanced=PartialMass(0.6))
    >>> result.plan.round(4) + 0.0
    array([[0.5, 0. ],
           [0. , 0.1]])
    """

    mass: float

    def __post_init__(self) -> None:
        validate.real(self.mass, "the mass of PartialMass", low=0.0, strict=True)


@dataclass(eq=False)
class PartialPlan(UnbalancedPlan):
    """The plan of a given mass. Its price is no part of the objective."""

    @property
    def _paid(self) -> float:
        """What stays behind, times the price."""
        p = self.problem
        price = self._marginals.rows.aprox(p.reg)[2]
        return p.mass * price * (float(p.xp.sum(p.a)) - float(p.xp.sum(self.row_sums)))

    def weight_gradients(self) -> tuple[Array, Array]:
        a, b = super().weight_gradients()
        return a - self._marginals.rows.aprox(self.problem.reg)[2], b

    def value(self) -> float:
        return super().value() - self._paid

    def dual_value(self) -> float:
        return super().dual_value() - self._paid


def penalties(price: float) -> tuple[Penalty, Penalty]:
    """Those of a plan with this price; the other side is content with less."""
    return AtMost(price), AtMost(0.0)


def check_mass(problem: OTProblem, mass: float) -> None:
    """Refuse what a side does not have, or cannot send."""
    xp = problem.xp
    held = {name: problem.mass * float(xp.sum(weights)) for name, weights in (("a", problem.a), ("b", problem.b))}
    for name, has in held.items():
        if mass >= (1.0 - ALL) * has:
            fix = "(None, AtMost(0.0))" if name == "a" else "(AtMost(0.0), None)"
            whole = "leave unbalanced out" if abs(held["a"] - held["b"]) <= ALL * has else f"fix that side by unbalanced={fix}"
            advice = f"to transport all of {name}, {whole}" if mass <= (1.0 + ALL) * has else "no more can be transported"
            msg = f"PartialMass({mass!r}) must be less than sum({name}) = {has!r}: {advice}"
            raise ValueError(msg)
    most = problem.mass * largest_mass(problem)
    if mass >= most:
        msg = (
            f"PartialMass({mass!r}) must be less than the {most!r} that the forbidden pairs of C leave room for: allow more pairs, "
            "or ask for less"
        )
        raise ValueError(msg)


def solve_partial(problem: OTProblem, mass: float, solve: Callable[[OTProblem], OTResult]) -> OTResult:
    """Find the price; `solve` runs a method on a problem."""
    everything_free = Start(problem.xp.zeros_like(problem.b), problem.reg)
    search = _Search(replace(problem, start=problem.start or everything_free), mass / problem.mass, solve)
    with contextlib.suppress(_DoneError):
        below, above = search.climb(_price_of_free_mass(problem, mass / problem.mass))
        # After too many solves it returns quietly: the best one says how far it is off.
        brentq(search.excess, below, above, xtol=1e-300, rtol=4 * np.finfo(float).eps, maxiter=MAX_SOLVES, disp=False)
    return search.finish()


def _price_of_free_mass(problem: OTProblem, mass: float) -> float:
    """The price at which a b^T exp((price - C)/reg) has this mass: too low where the marginals leave less room."""
    xp, reg = problem.xp, problem.reg
    logs = xp.log(problem.a) - problem.geometry.soft_transform(reg * xp.log(problem.b), reg) / reg
    top = xp.max(logs)
    return reg * (math.log(mass) - float(top + xp.log(xp.sum(xp.exp(logs - top)))))


class _DoneError(Exception):
    """The mass is right, or a solve has failed."""


class _Search:
    """The solves for the prices that have been tried."""

    def __init__(self, problem: OTProblem, mass: float, solve: Callable[[OTProblem], OTResult]) -> None:
        self._problem, self._mass, self._solve = problem, mass, solve
        self._results: list[OTResult] = []
        self._best: OTResult | None = None
        self._off = math.inf
        self._known: dict[float, float] = {}

    def excess(self, price: float) -> float:
        """Logarithm of the mass at a price, in units of the one that is wanted."""
        if price not in self._known:
            self._known[price] = self._solved(price)
        return self._known[price]

    def _solved(self, price: float) -> float:
        problem = self._problem
        assert problem.marginals is not None
        rows, columns = penalties(price)
        problem = replace(problem, marginals=replace(problem.marginals, rows=rows, columns=columns))
        result = self._solve(problem)
        plan = result._plan
        assert isinstance(plan, UnbalancedPlan)
        held = float(problem.xp.sum(plan.row_sums))
        self._results.append(result)
        self._problem = replace(self._problem, start=Start(plan.unit_potentials[1], problem.reg if result.success else None))
        if abs(held - self._mass) < self._off or self._best is None:
            self._off, self._best = abs(held - self._mass), result
        usable = result.success or (result.status is Status.STALLED and result.marginal_error <= USABLE)
        if self._off <= SHARE * problem.tol or not usable:
            raise _DoneError
        return math.log(held / self._mass) if held > 0 else -math.inf

    def climb(self, price: float) -> tuple[float, float]:
        """Go up from a price that is too low by the secant method; two prices around the right one where that overshoots.

        The logarithm of the mass grows with the price at a rate of 1/reg, and less the more marginals are full: as a rule it is
        concave, so that secants stay below.
        """
        excess, rate = self.excess(price), 1.0 / self._problem.reg
        for _ in range(MAX_SOLVES):
            step = -excess / rate
            following = self.excess(price + step)
            if (following > 0) != (excess > 0):
                return (price, price + step) if step > 0 else (price + step, price)
            rate = min(max((following - excess) / step, SLOWEST * rate), rate)
            price, excess = price + step, following
        raise _DoneError

    def finish(self) -> OTResult:
        """The best result, with the mass as part of its error and the work of all."""
        best, results = self._best, self._results
        assert best is not None
        inner = best._plan
        assert isinstance(inner, UnbalancedPlan)
        plan = PartialPlan(inner.problem, inner.f, inner.g, inner.row_sums, inner.column_sums, inner.linear, inner.sampled)
        error = best.marginal_error + self._off
        history = {name: np.concatenate([one.history[name] for one in results]) for name in best.history}
        counts = {name: sum(getattr(one, name) for one in results) for name in ("nit", "nit_newton", "nsweep", "nproduct")}
        result = replace(best, _plan=plan, marginal_error=error, history=history, **counts)
        if error > best._tol:
            last = results[-1]  # which ended the search
            stalled = last.success or last.status is Status.STALLED
            advice = "no price gives this mass so accurately: raise tol, or reg" if stalled else f"the last solve: {last.message}"
            figures = f"marginal error {error:.2g}, {self._off:.2g} of it in the mass"
            message = shortfall(figures, best._tol, advice)
            result = replace(result, success=False, status=Status.STALLED if stalled else last.status, message=message)
        return result
