"""Marginals at a price, as POT has them: its penalties, its reference measures and the values that it reports.

POT minimises <P, M> + reg KL(P | R) plus penalties of the marginals, where R is a b^T, 1 ("entropy") or a measure c of the user's.
`solve_ot` has R = a b^T. As KL(P | R) and KL(P | a b^T) differ by <P, log(a b^T / R)> and constants, the cost
M + reg log(a b^T / R) has the same minimiser. The part log a of that cost acts on the marginal r = P 1 alone, and

    reg <r, log a> + rho KL(r | a) - reg <r, log a'> = rho KL(r | a') + const.  for  a' = a^(rho / (rho + reg)),

so that where all penalties are divergences other weights do instead, and the cost M stays what it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace, as_array, common_namespace
from otbilevel.compat.pot._call import Histograms, log_scalings, log_weights, mass_of, mean_mass, potentials_of, run
from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.penalties import KL, Fixed, Penalty, TotalVariation
from otbilevel.ot.result import OTResult

PRODUCT = "a b^T"
COUNTING = "1"
PENALTIES = {"kl": KL, "tv": TotalVariation}


@dataclass(frozen=True, eq=False)
class Relaxed:
    """A problem of POT's with one histogram b, and the one that `solve_ot` solves instead.

    Attributes
    ----------
    given, solved : Histograms
        What the user gave, and what has the same minimiser under KL(P | a b^T).
    reg : float
        Regularisation.
    unbalanced
        What `solve_ot` takes: a pair of penalties, or a `PartialMass`.
    reference : PRODUCT, COUNTING or (n, m) array
        The measure R.
    """

    given: Histograms
    solved: Histograms
    reg: float
    unbalanced: Any
    reference: Any

    @classmethod
    def of(cls, given: Histograms, b: Array, reg: float, unbalanced: Any, reference: Any) -> Relaxed:
        """Find what to solve."""
        given = Histograms(given.a, b, given.geometry)
        if isinstance(reference, str) and reference == PRODUCT:
            return cls(given, given, reg, unbalanced, reference)
        if isinstance(unbalanced, tuple) and all(isinstance(penalty, (KL, Fixed)) for penalty in unbalanced):
            first, second = (_tempered(w, penalty, reg) for w, penalty in zip((given.a, b), unbalanced, strict=True))
            geometry = given.geometry if _is_counting(reference) else _cost(given, reg, reference)
            return cls(given, Histograms(first, second, geometry), reg, unbalanced, reference)
        _require_support(given, unbalanced)
        shift = [reg * _finite_logs(w) for w in (given.a, b)]
        geometry = _cost(given, reg, reference, shift[0][:, None] + shift[1][None, :])
        return cls(given, Histograms(given.a, b, geometry), reg, unbalanced, reference)

    @property
    def _tempers(self) -> bool:
        return self.solved.a is not self.given.a

    @property
    def mass(self) -> float:
        """The mean mass of the measures that are solved for, the unit of `OTResult.marginal_error`."""
        return mean_mass(self.solved.a, self.solved.b)

    def solve(
        self, *, names: Mapping[str, str], tol: Any, max_iter: Any, start: Any, start_name: str, verbose: bool, stacklevel: int
    ) -> OTResult:
        """Run `solve_ot`; `tol` is in units of the mass, by default 1e-9 of that of the measures (1e-5 for float32)."""
        init = None if start is None else self._init(start, start_name)
        if tol is None:
            xp = self.given.xp
            dtype = xp.result_type(self.given.a, self.given.b, self.given.geometry.dtype)
            mass = mean_mass(self.given.a, self.given.b)
            tol = (1e-5 if dtype == xp.float32 else 1e-9) * (mass if 0 < mass < math.inf else 1.0)  # else `solve_ot` refuses it
        if not isinstance(self.reference, str):
            names = {**names, "C": "M or c"}
        return run(
            self.solved,
            self.solved.b,
            names=names,
            reg=self.reg,
            max_iter=max_iter,
            tol=tol,
            init=init,
            unbalanced=self.unbalanced,
            verbose=verbose,
            stacklevel=stacklevel + 1,
        )

    def _init(self, start: Any, name: str) -> tuple[Array, Array]:
        """Potentials from log u and log v."""
        a, b, xp = self.solved.a, self.solved.b, self.given.xp
        if not self._tempers:  # u and v are without weights
            a, b = (xp.where(w > 0, xp.ones_like(w), xp.zeros_like(w)) for w in (a, b))
        return potentials_of(start, name, a, b, self.reg)

    def log_scalings(self, result: OTResult) -> tuple[Array, Array]:
        """log u and log v of P = diag(u) (R exp(-M / reg)) diag(v), in double precision."""
        if self._tempers:
            return log_scalings(result, self.solved.a, self.solved.b)
        f, g = result._plan.double_potentials()
        return f / self.reg, g / self.reg

    def linear(self, result: OTResult) -> float:
        """<P, M>."""
        if self.solved.geometry is self.given.geometry:
            return result.value_linear
        xp = self.given.xp
        plan = xp.astype(result.plan, xp.float64)
        cost = self.given.geometry.rows(0, self.given.geometry.shape[0])
        return float(xp.sum(xp.where(plan > 0, plan * xp.where(plan > 0, cost, xp.zeros_like(cost)), xp.zeros_like(plan))))

    def total(self, result: OTResult, *, masses: bool) -> float:
        """<P, M> + reg sum P log(P / R) and the penalties.

        With `masses` divergences are those that are minimised, with their terms of mass (for R = 1 only - reg sum P); without,
        sums P log P/Q alone.
        """
        xp = self.given.xp
        sums = [xp.astype(side, xp.float64) for side in result.marginals]
        held = float(xp.sum(sums[0]))
        value = self.reg * sum(_product(side, logs) for side, logs in zip(sums, self.log_scalings(result), strict=True))
        if masses:
            value += self.reg * (self._reference_mass() - held)
        for penalty, w, r in zip(self.unbalanced, (self.given.a, self.given.b), sums, strict=True):
            value += _penalty_value(penalty, w, r)
            if isinstance(penalty, KL) and not masses:
                value -= penalty.strength * (mass_of(w) - held)
        return value

    def _reference_mass(self) -> float:
        if not isinstance(self.reference, str):
            return mass_of(self.reference)
        return 0.0 if _is_counting(self.reference) else self.given.mass * mass_of(self.given.b)


def make_penalties(strength: Any, name: str, kind: str = "kl") -> tuple[Penalty, Penalty] | None:
    """The penalties of both sides, from a number or one or two in a list or array; None where infinity leaves both fixed.

    Raises
    ------
    TypeError, ValueError
        When they are not that.
    """
    if getattr(strength, "shape", None) == () or not hasattr(strength, "__len__"):
        sides = [strength]
    else:
        sides = [strength[k] for k in range(len(strength))]
    if not 1 <= len(sides) <= 2:
        msg = f"{name} must be a number or a pair of numbers, got {len(sides)} of them"
        raise ValueError(msg)
    values = [_strength(side, name) for side in sides] * (3 - len(sides))
    if all(value == math.inf for value in values):
        return None
    first, second = (Fixed() if value == math.inf else PENALTIES[kind](value) for value in values[:2])
    return first, second


def _strength(value: Any, name: str) -> float:
    if getattr(value, "shape", None) == ():
        value = float(value)
    return math.inf if isinstance(value, float) and value == math.inf else validate.real(value, name, low=0.0, strict=True)


def make_reference(given: Histograms, reg_type: str, c: Any) -> Any:
    """The measure that `reg_type` and `c` ask for.

    Raises
    ------
    TypeError, ValueError
        When `c` is no measure, or in the way.
    """
    if c is None:
        return COUNTING if reg_type.lower() == "entropy" else PRODUCT
    if reg_type.lower() == "entropy":
        msg = "c is overwritten by ones where reg_type='entropy': leave c out, or give reg_type='kl'"
        raise ValueError(msg)
    reference = as_array(c, "c")
    common_namespace({"c": reference, **given.geometry.arrays})
    if tuple(reference.shape) != given.geometry.shape:
        msg = f"c must have the shape of M, {given.geometry.shape}, got {tuple(reference.shape)}"
        raise ValueError(msg)
    xp = given.xp
    if not bool(xp.all(xp.isfinite(reference) & (reference >= 0))):
        msg = "c must hold finite weights >= 0; 0 forbids a pair"
        raise ValueError(msg)
    return reference


def _is_counting(reference: Any) -> bool:
    return isinstance(reference, str) and reference == COUNTING


def _require_support(given: Histograms, unbalanced: Any) -> None:
    """Refuse points of weight zero that may hold mass: under KL(P | a b^T) they hold none."""
    if not isinstance(unbalanced, tuple):
        return
    for name, w, penalty in zip("ab", (given.a, given.b), unbalanced, strict=True):
        if isinstance(penalty, TotalVariation) and bool(given.xp.any(w == 0)):
            msg = (
                f"{name} has weights that are 0, where total variation lets the plan put mass under this reg_type or c: "
                "leave these points out, or give reg_type='KL' without c"
            )
            raise ValueError(msg)


def _tempered(w: Array, penalty: Penalty, reg: float) -> Array:
    """w^(rho / (rho + reg)); what is not positive is left to the checks of `solve_ot`."""
    xp = array_namespace(w)
    positive = w > 0
    logs = log_weights(xp.where(positive, w, xp.ones_like(w)))
    return xp.where(positive, xp.astype(xp.exp(penalty.aprox(reg)[0] * logs), w.dtype), w)


def _finite_logs(w: Array) -> Array:
    """Logarithms, 0 where there is none."""
    return log_weights(array_namespace(w).where(w > 0, w, array_namespace(w).ones_like(w)))


def _cost(given: Histograms, reg: float, reference: Any, shift: Any = 0.0) -> DenseCost:
    """M - reg log R + shift."""
    xp, geometry = given.xp, given.geometry
    cost = geometry.rows(0, geometry.shape[0]) + shift
    if not _is_counting(reference):
        cost = cost - reg * log_weights(reference)
    return DenseCost(xp.astype(cost, geometry.dtype))


def _product(r: Array, logs: Array) -> float:
    """<r, logs>, where logarithms may be -inf if r is 0."""
    xp = array_namespace(r)
    return float(xp.sum(r * xp.where(r > 0, logs, xp.zeros_like(logs))))


def _penalty_value(penalty: Penalty, w: Array, r: Array) -> float:
    """The penalty on the support of w, off which r is 0."""
    xp = array_namespace(w)
    used = xp.nonzero(w > 0)[0]
    return penalty.value(xp.astype(xp.take(w, used), xp.float64), xp.take(r, used))
