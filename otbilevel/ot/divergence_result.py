"""The result of `sinkhorn_divergence`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from otbilevel._core.array import Array, device
from otbilevel._core.result import Result, Status
from otbilevel.ot.gradients import OTGradient, balanced_change, balanced_gradient, only, wanted
from otbilevel.ot.linearization import Linearization
from otbilevel.ot.point_cloud import PointCloud
from otbilevel.ot.point_plan import MEMORY
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.result import OTResult


@dataclass(eq=False, repr=False)
class DivergenceResult(Result):
    """What `sinkhorn_divergence` returns.

    Attributes
    ----------
    value : float
        S(a, b) = OT(a, b) - OT(a, a)/2 - OT(b, b)/2, and for unbalanced transport reg (sum a - sum b)^2 / 2 more, from the dual
        values: its error is quadratic in `marginal_error`, and lies between minus half the `gap` of the last two problems and that
        of the first. For converged problems and a positive definite kernel exp(-C/reg) it is >= 0 up to rounding, and 0 for equal
        measures only.
    value_linear : float
        The same combination of the transport costs <P, C>, which can be negative.
    result_ab, result_aa, result_bb : OTResult
        The three problems.
    f, g : (n,), (m,) arrays
        Potentials of the divergence, f_ab - f_aa and g_ab - f_bb: its gradient in a and b, where marginals have no price.
    marginal_error : float
        The largest of the three.
    success, status, message
        Those of the first problem that did not converge, if there is one.
    """

    result_ab: OTResult
    result_aa: OTResult
    result_bb: OTResult
    success: bool
    status: Status
    message: str
    _summary = ("message", "success", "status", "value", "marginal_error")
    _memory: float = MEMORY
    _linear: list[Linearization] = field(default_factory=list)

    @property
    def marginal_error(self) -> float:
        """The largest marginal error of the three problems, relative to the mass."""
        return max(result.marginal_error for result in self._results)

    @property
    def _results(self) -> tuple[OTResult, OTResult, OTResult]:
        return self.result_ab, self.result_aa, self.result_bb

    @cached_property
    def value(self) -> float:
        """The divergence."""
        ab, aa, bb = (result.dual_value for result in self._results)
        return combine(ab, aa, bb, self.result_ab.reg, self._masses)

    @property
    def _masses(self) -> tuple[float, float]:
        return self.result_aa._plan.problem.mass, self.result_bb._plan.problem.mass

    @property
    def _balanced(self) -> bool:
        return self._problem.marginals is None

    @cached_property
    def value_linear(self) -> float:
        """The same combination of the transport costs."""
        ab, aa, bb = (result.value_linear for result in self._results)
        return ab - 0.5 * (aa + bb)

    @cached_property
    def potentials(self) -> tuple[Array, Array]:
        """``(f, g)``."""
        return self.result_ab.f - self.result_aa.f, self.result_ab.g - self.result_bb.g

    @property
    def f(self) -> Array:
        """Potential of the first measure, shape (n,)."""
        return self.potentials[0]

    @property
    def g(self) -> Array:
        """Potential of the second measure, shape (m,)."""
        return self.potentials[1]

    @property
    def _problem(self) -> OTProblem:
        return self.result_ab._plan.problem

    def gradient(self, wrt: Iterable[str] | None = None) -> OTGradient:
        """Differentiate the divergence with respect to the data, by the envelope theorem.

        Parameters
        ----------
        wrt : names among "a", "b", "C", "x", "y", "reg", optional
            As in `OTResult.gradient`. "C" is the first of three costs; in the other two the derivatives are minus half of the plans
            of `result_aa` and `result_bb`.

        Returns
        -------
        OTGradient
            With the fields asked for.

        Notes
        -----
        A few products with the plans, see `OTResult.gradient`.
        """
        names = wanted(wrt, self._problem)
        needed = _with_both_weights(names)
        cross = self.result_ab.gradient(needed)
        own_a, own_b = (_renamed(needed, own) for own in (("a", "x"), ("b", "y")))
        first = self.result_aa.gradient({"a": "a", "x": "x", "reg": "reg"}[name] for name in own_a)
        second = self.result_bb.gradient({"b": "a", "y": "x", "reg": "reg"}[name] for name in own_b)
        found = self._projected(_combined(cross, first, second))
        if not self._balanced:
            excess = self._excess
            found = found.combine(self._of_masses(self.result_ab.reg * excess, 0.5 * excess**2), 1.0)
        return only(found, names)

    @property
    def _excess(self) -> float:
        return self._masses[0] - self._masses[1]

    def _of_masses(self, rate: float, in_reg: float) -> OTGradient:
        """What the term of the masses adds: the same in each weight of a, and the opposite in those of b."""
        p = self._problem
        sides = zip(p.whole.shape, (rate, -rate), strict=True)
        a, b = (p.xp.full((size,), v, dtype=p.dtype, device=device(p.a)) for size, v in sides)
        return OTGradient(a=a, b=b, reg=in_reg)

    def hvp(
        self,
        *,
        a: Any = None,
        b: Any = None,
        x: Any = None,
        y: Any = None,
        reg: float | None = None,
        wrt: Iterable[str] | None = None,
    ) -> OTGradient:
        """Multiply the Hessian of the divergence by a change of the data.

        Parameters
        ----------
        a, b, x, y, reg
            The change, as in `otbilevel.ot.jvp`; not for three costs.
        wrt : names among "a", "b", "x", "y", "reg", optional
            As in `gradient`.

        Returns
        -------
        OTGradient
            How the gradient changes.

        Notes
        -----
        A linear solve for each of the three problems, see `otbilevel.ot.linearize`; those of a measure with itself are well
        conditioned, whatever reg is.
        """
        problem = self._problem
        names = wanted(wrt, problem)
        of_ab, of_aa, of_bb = self._linearized()
        cross = of_ab.hvp(a=a, b=b, x=x, y=y, reg=reg, wrt=_with_both_weights(names))
        da, db = self._weight_changes(a, b)
        first = of_aa.hvp(a=da, b=da, x=x, y=x, reg=reg, wrt=("a", "x", "reg"))
        second = of_bb.hvp(a=db, b=db, x=y, y=y, reg=reg, wrt=("a", "x", "reg"))
        change, xp = self._projected(_combined(cross, first, second)), problem.xp
        if not self._balanced:
            grows = float(xp.sum(da)) - float(xp.sum(db))
            rate = (reg or 0.0) * self._excess + self.result_ab.reg * grows
            change = change.combine(self._of_masses(rate, self._excess * grows), 1.0)
        elif change.a is not None and change.b is not None:
            # The shift that makes <gradient in a, a> = <gradient in b, b> changes with the weights.
            now = self.gradient(("a", "b"))
            shift = 0.5 * (float(xp.sum(now.a * da)) - float(xp.sum(now.b * db))) / problem.mass
            change = replace(change, a=change.a - shift, b=change.b + shift)
        return only(change, names)

    def _weight_changes(self, a: Any, b: Any) -> tuple[Array, Array]:
        """In double precision; where masses have to agree, as they are after scaling to the mean mass."""
        p, xp = self._problem, self._problem.xp
        given = (None if v is None else xp.astype(v, xp.float64) for v in (a, b))
        if self._balanced:
            return balanced_change(p, *given)[:2]
        sides = zip(given, p.whole.shape, strict=True)
        first, second = (xp.zeros((n,), dtype=xp.float64, device=device(p.a)) if v is None else v for v, n in sides)
        return first, second

    def vjp(self, *, f: Any = None, g: Any = None, wrt: Iterable[str] | None = None) -> OTGradient:
        """Differentiate a scalar in the data, given its derivatives in the potentials of the divergence.

        Parameters
        ----------
        f, g : (n,), (m,) array_like, optional
            Derivatives in the potentials.
        wrt : names among "a", "b", "x", "y", "reg", optional
            As in `gradient`.

        Returns
        -------
        OTGradient
            Derivatives in the data.

        Notes
        -----
        A linear solve for each of the three problems, as for `hvp`.
        """
        if f is None and g is None:
            msg = "nothing to pull back: give f or g; of the value there is `gradient`"
            raise ValueError(msg)
        names = wanted(wrt, self._problem)
        of_ab, of_aa, of_bb = self._linearized()
        total = of_ab.vjp(f=f, g=g, wrt=_with_both_weights(names))
        if f is not None:
            own = of_aa.vjp(f=0.5 * f, g=0.5 * f, wrt=("a", "b", "x", "y", "reg"))
            total = total.combine(OTGradient(a=own.a + own.b, x=own.x + own.y, reg=own.reg), -1.0)  # type: ignore[operator]
        if g is not None:
            own = of_bb.vjp(f=0.5 * g, g=0.5 * g, wrt=("a", "b", "x", "y", "reg"))
            total = total.combine(OTGradient(b=own.a + own.b, y=own.x + own.y, reg=own.reg), -1.0)  # type: ignore[operator]
        return only(self._projected(total), names)

    def _linearized(self) -> list[Linearization]:
        """All three solutions, for first derivatives of their potentials; kept for the next call."""
        if not isinstance(self._problem.whole, PointCloud):
            msg = "these derivatives are there for points only, not for three costs: use linearize on each of the three results"
            raise ValueError(msg)
        if not self._linear:
            symmetric = (False, True, True)
            self._linear = [Linearization(r, self._memory, symmetric=s) for r, s in zip(self._results, symmetric, strict=True)]
        return self._linear

    def _projected(self, total: OTGradient) -> OTGradient:
        """With the gradients in the weights as `OTGradient` defines them."""
        if total.a is None or total.b is None or not self._balanced:
            return total
        a, b = balanced_gradient(self._problem, total.a, total.b)
        return replace(total, a=a, b=b)


def _combined(cross: OTGradient, first: OTGradient, second: OTGradient) -> OTGradient:
    """A measure enters its own problem on both sides, each with the factor 1/2."""
    moved = OTGradient(a=first.a, b=second.a, x=first.x, y=second.x)
    if first.reg is not None and second.reg is not None:
        moved = replace(moved, reg=0.5 * (first.reg + second.reg))
    return cross.combine(moved, -1.0)


def _with_both_weights(names: set[str]) -> set[str]:
    """The gauge of the gradient in one weight asks for that in the other."""
    return names | {"a", "b"} if {"a", "b"} & names else names


def _renamed(names: set[str], own: tuple[str, str]) -> list[str]:
    return [name for name in (*own, "reg") if name in names]


def combine(ab: float, aa: float, bb: float, reg: float, masses: tuple[float, float]) -> float:
    """The divergence from three values, with the mass term that makes it vanish at a = b also for unequal masses.

    See Th. Séjourné et al., Sinkhorn divergences for unbalanced optimal transport, arXiv:1910.12958, definition 6.
    """
    return ab - 0.5 * (aa + bb) + 0.5 * reg * (masses[0] - masses[1]) ** 2
