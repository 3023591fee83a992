"""How strictly a plan must have its marginals: exactly, or at a price.

A plan of unbalanced transport minimises <P, C> + reg KL(P | a b^T) + A(P 1 | a) + B(P' 1 | b). Each penalty is a sum over points,
and enters a solver through its conjugate: with p the potential of a side and w its weights, the dual is
-A*(-f) - B*(-g) - reg sum a b (exp((f + g - C)/reg) - 1).

M. Liero, A. Mielke, G. Savaré, Optimal entropy-transport problems, Invent. math. 2018; L. Chizat, G. Peyré, B. Schmitzer,
F.-X. Vialard, Scaling algorithms for unbalanced optimal transport problems, Math. Comp. 2018 (arXiv:1607.05816).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace, clamp
from otbilevel.ot.kernels.aprox import RIGID, Aprox

LEAST_SHARE = 1e-300
"""Of its weight that the mass of a point is taken for where it underflowed."""
UNDERFLOW = 1e-290
"""Mass that has hardly digits left, or none."""
ROUNDING = 1e-13
"""How far a potential at its bound may be off, relative to that."""


class Penalty(ABC):
    """The price of a marginal r that differs from its weights w; `p` is the potential of the same side."""

    @property
    @abstractmethod
    def takes_any(self) -> bool:
        """Whether a point may hold more than its weight."""

    @abstractmethod
    def aprox(self, reg: float) -> Aprox:
        """The proximity operator that turns soft minima into potentials, see `kernels.aprox`."""

    @abstractmethod
    def prescribed(self, p: Array, w: Array, r: Array, reg: float) -> Array:
        """The mass that is optimal at p; where there is a choice, that of the next half step of Sinkhorn's iteration from r."""

    @abstractmethod
    def stiffness(self, p: Array, w: Array, r: Array, reg: float) -> Array:
        """How fast that mass falls as p grows; infinite where p is at a bound that it would cross."""

    @abstractmethod
    def value(self, w: Array, r: Array) -> float:
        """The penalty itself."""

    @abstractmethod
    def dual(self, p: Array, w: Array) -> float:
        """Minus its conjugate at -p."""

    @abstractmethod
    def dual_rate(self, p: Array) -> Array:
        """The derivative of `dual` in each weight."""

    @abstractmethod
    def gap(self, p: Array, w: Array, r: Array) -> float:
        """value - dual + <r, p> >= 0, free of cancellation: zero where r and p belong together."""


@dataclass(frozen=True)
class Fixed(Penalty):
    """The marginal has to be w."""

    @property
    def takes_any(self) -> bool:
        return False

    def aprox(self, reg: float) -> Aprox:  # noqa: ARG002
        return RIGID

    def prescribed(self, p: Array, w: Array, r: Array, reg: float) -> Array:  # noqa: ARG002
        return w

    def stiffness(self, p: Array, w: Array, r: Array, reg: float) -> Array:  # noqa: ARG002
        return array_namespace(w).zeros_like(w)

    def value(self, w: Array, r: Array) -> float:  # noqa: ARG002
        return 0.0

    def dual(self, p: Array, w: Array) -> float:
        return _dot(w, p)

    def dual_rate(self, p: Array) -> Array:
        return p

    def gap(self, p: Array, w: Array, r: Array) -> float:
        return _dot(r - w, p)


@dataclass(frozen=True)
class KL(Penalty):
    """Kullback-Leibler divergence: ``strength * sum(r log(r/w) - r + w)``.

    Parameters
    ----------
    strength : float
        The price rho > 0, in units of the cost: mass is hardly carried farther than where the cost is some rho.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel import solve_ot
    >>> from otbilevel.ot import KL
    >>> result = solve_ot([1.0], [2.0], np.array([[0.0]]), reg=1e-6, unbalanced=KL(1.0))
    >>> result.plan.round(4)
    array([[1.4142]])
    """

    strength: float

    def __post_init__(self) -> None:
        _check(self)

    @property
    def takes_any(self) -> bool:
        return True

    def aprox(self, reg: float) -> Aprox:
        return self.strength / (self.strength + reg), -math.inf, math.inf

    def prescribed(self, p: Array, w: Array, r: Array, reg: float) -> Array:  # noqa: ARG002
        return w * array_namespace(p).exp(-p / self.strength)

    def stiffness(self, p: Array, w: Array, r: Array, reg: float) -> Array:
        return self.prescribed(p, w, r, reg) / self.strength

    def value(self, w: Array, r: Array) -> float:
        return self.strength * relative_entropy_of_sums(r, w)

    def dual(self, p: Array, w: Array) -> float:
        return _dot(w, self.dual_rate(p))

    def dual_rate(self, p: Array) -> Array:
        return -self.strength * array_namespace(p).expm1(-p / self.strength)

    def gap(self, p: Array, w: Array, r: Array) -> float:
        xp, prescribed = array_namespace(p), self.prescribed(p, w, r, 0.0)
        lost = ~(prescribed > UNDERFLOW) | ~(prescribed < 1.0 / UNDERFLOW)
        if not bool(xp.any(lost)):
            return self.strength * relative_entropy_of_sums(r, prescribed)
        # r log(r / (w exp(-p / strength))) from the exponent, where exp has no digits left
        held = xp.where(r > 0, r, xp.ones_like(r))
        direct = xp.where(r > 0, r * (xp.log(held / w) + p / self.strength), xp.zeros_like(r)) - r + prescribed
        kept = xp.where(lost, xp.ones_like(r), prescribed)
        close = relative_entropy_of_sums(xp.where(lost, kept, r), kept)
        return self.strength * (float(xp.sum(xp.where(lost, direct, xp.zeros_like(r)))) + close)


class Linear(Penalty):
    """So much for each unit of mass that is missing, and so much for each that is too much; infinite forbids it.

    The potential lies in [-more, less], and the marginal is met where it is inside.
    """

    @property
    def takes_any(self) -> bool:
        return self.prices[1] < math.inf

    @property
    @abstractmethod
    def prices(self) -> tuple[float, float]:
        """``(less, more)``, in units of the cost."""

    def aprox(self, reg: float) -> Aprox:  # noqa: ARG002
        less, more = self.prices
        return 1.0, -more, less

    def prescribed(self, p: Array, w: Array, r: Array, reg: float) -> Array:
        xp, (less, more) = array_namespace(p), self.prices
        held = xp.maximum(r, LEAST_SHARE * w)
        return held * xp.exp((clamp(p + reg * xp.log(w / held), -more, less) - p) / reg)

    def stiffness(self, p: Array, w: Array, r: Array, reg: float) -> Array:  # noqa: ARG002
        xp, (less, more) = array_namespace(p), self.prices
        stays = (p >= less - ROUNDING * abs(less)) & (r <= w)
        if more < math.inf:
            stays = stays | ((p <= -more + ROUNDING * abs(more)) & (r >= w))
        return xp.where(stays, xp.full_like(p, math.inf), xp.zeros_like(p))

    def value(self, w: Array, r: Array) -> float:
        xp, (less, more) = array_namespace(w), self.prices
        zero = xp.zeros_like(w)
        too_much = (
            more * float(xp.sum(xp.maximum(r - w, zero))) if more < math.inf else 0.0
        )  # a marginal error, as of a fixed marginal
        return less * float(xp.sum(xp.maximum(w - r, zero))) + too_much

    def dual(self, p: Array, w: Array) -> float:
        return _dot(w, self.dual_rate(p))

    def dual_rate(self, p: Array) -> Array:
        less, more = self.prices
        return array_namespace(p).clip(p, -more, less)

    def gap(self, p: Array, w: Array, r: Array) -> float:
        xp, (less, more) = array_namespace(p), self.prices
        p = xp.clip(p, -more, less)
        missing, excess = xp.maximum(w - r, xp.zeros_like(w)), xp.maximum(r - w, xp.zeros_like(w))
        paid = excess * (more + p) if more < math.inf else xp.zeros_like(p)  # rounding leaves none
        return float(xp.sum(missing * (less - p) + paid))


@dataclass(frozen=True)
class TotalVariation(Linear):
    """Total variation: ``strength * sum(|r - w|)``.

    Parameters
    ----------
    strength : float
        The price rho > 0, in units of the cost: a pair that costs more than the prices of both sides together is not worth its way.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel import solve_ot
    >>> from otbilevel.ot import TotalVariation
    >>> result = solve_ot([0.5, 0.5], [0.5, 0.5], np.array([[0.0, 9.0], [9.0, 5.0]]), reg=1e-2, unbalanced=TotalVariation(1.0))
    >>> result.plan.round(4) + 0.0
    array([[0.5, 0. ],
           [0. , 0. ]])
    """

    strength: float

    def __post_init__(self) -> None:
        _check(self)

    @property
    def prices(self) -> tuple[float, float]:
        return self.strength, self.strength


@dataclass(frozen=True)
class AtMost(Linear):
    """No more than the weights, and a price for what is missing: ``price * sum(w - r)`` with r <= w. A negative price is a fee.

    Parameters
    ----------
    price : float
        In units of the cost.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel import solve_ot
    >>> from otbilevel.ot import AtMost
    >>> C = np.array([[0.0, 9.0], [9.0, 5.0]])
    >>> solve_ot([1.0, 1.0], [0.5, 2.0], C, reg=1e-2, unbalanced=(None, AtMost(0.0))).plan.round(4) + 0.0
    array([[0.5, 0.5],
           [0. , 1. ]])
    """

    price: float

    def __post_init__(self) -> None:
        validate.real(self.price, "the price of AtMost")

    @property
    def prices(self) -> tuple[float, float]:
        return self.price, math.inf


def _check(penalty: KL | TotalVariation) -> None:
    validate.real(penalty.strength, f"the strength of {type(penalty).__name__}", low=0.0, strict=True)


def _dot(x: Array, y: Array) -> float:
    return float(array_namespace(x).sum(x * y))


def relative_entropy_of_sums(r: Array, w: Array) -> float:
    """sum r log(r/w) - r + w, by the series where r is close to w."""
    xp = array_namespace(r)
    t = (r - w) / w
    near = xp.abs(t) < 0.5
    close = (1.0 + t) * xp.log1p(xp.where(near, t, xp.zeros_like(t))) - t
    positive = xp.where(r > 0, r, xp.ones_like(r))
    far = r * xp.log(positive / w) - r + w
    return float(xp.sum(xp.where(near, w * close, far)))


def make_penalties(unbalanced: Any) -> tuple[Penalty, Penalty]:
    """The penalties of rows and columns from what the user gave.

    Raises
    ------
    TypeError, ValueError
        As `solve_ot` documents them.
    """
    if isinstance(unbalanced, (tuple, list)):
        if len(unbalanced) != 2:
            msg = f"unbalanced must be one price for both sides or a pair, got a {type(unbalanced).__name__} of {len(unbalanced)}"
            raise ValueError(msg)
        first, second = (_penalty(one, f"unbalanced[{k}]") for k, one in enumerate(unbalanced))
        return first, second
    both = _penalty(unbalanced, "unbalanced")
    return both, both


def _penalty(given: Any, name: str) -> Penalty:
    if given is None:
        return Fixed()
    if isinstance(given, Penalty):
        return given
    try:
        price = validate.real(given, name, low=0.0, strict=True) if given != math.inf else math.inf
    except (TypeError, ValueError) as error:
        msg = (
            f"{error}; it is the price of a marginal that differs from its weights: a number > 0, inf or None for a fixed one, or "
        )
        msg += "KL(...), TotalVariation(...) or AtMost(...); PartialMass(...) stands for both sides"
        raise type(error)(msg) from None
    return Fixed() if price == math.inf else KL(price)
