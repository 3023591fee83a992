"""Derivatives of a solution by implicit differentiation: one linear solve each, with the operator of Newton's method."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from otbilevel._core import validate
from otbilevel._core.array import Array, as_array, common_namespace
from otbilevel._core.result import ConvergenceWarning
from otbilevel.ot.forward import Direction, Forward
from otbilevel.ot.gradients import OTGradient, given_fields, require_unconstrained, wanted
from otbilevel.ot.partial_mass import PartialPlan
from otbilevel.ot.plan import EntropicPlan
from otbilevel.ot.plan_blocks import PlanBlocks
from otbilevel.ot.plan_system import ACCEPTED, PlanSystem
from otbilevel.ot.point_cloud import PointCloud
from otbilevel.ot.result import OTResult
from otbilevel.ot.reverse import Cotangents, Reverse
from otbilevel.ot.sparse_cost import SparseCost


@dataclass(frozen=True, eq=False)
class OTTangent:
    """How the outputs of a transport problem change with its data; None for what was not asked for.

    Attributes
    ----------
    f, g : (n,), (m,) arrays
        Of the potentials.
    value, value_linear : float
        Of the optimal value and of <P, C>.
    plan : (n, m) array
        Of the plan; for a `SparseCost` a sparse array of the pairs that it stores.
    barycentric_map : (n,) or (n, k) array
        Of the barycentric map of the given points.
    """

    f: Array
    g: Array
    value: float
    value_linear: float | None = None
    plan: Any = None
    barycentric_map: Array | None = None

    def __repr__(self) -> str:
        return given_fields(self)


class Linearization:
    """The solution of a transport problem as a function of its data, to first order (of the value: to second order).

    Made by `linearize`. All products share one stored plan and what conjugate gradients learn about it.

    Parameters
    ----------
    result : OTResult
        A solution for reg > 0.
    memory : float
        Bytes that a stored plan between points may take.
    symmetric : bool
        Whether it is the problem of a measure with itself, and only changes and cotangents that are the same on both sides are
        asked for: the linear system is then well conditioned at any reg.

    Attributes
    ----------
    residual : float
        The largest relative residual of the linear systems solved so far. Products warn when theirs is above 1e-7.
    """

    def __init__(self, result: OTResult, memory: float, *, symmetric: bool = False) -> None:
        plan = result._plan
        if not isinstance(plan, EntropicPlan):
            msg = (
                f"result is one of method={result.method!r}, whose solution jumps with the data and has no derivative: "
                "solve with reg > 0"
            )
            raise ValueError(msg)
        require_unconstrained(plan.problem)
        if isinstance(plan, PartialPlan):
            msg = (
                "the result belongs to a plan of given mass (PartialMass), of which only the value has derivatives here: use "
                "`gradient`, or give its price as unbalanced=(AtMost(price), AtMost(0.0))"
            )
            raise ValueError(msg)
        self._blocks, self._plan = PlanBlocks(plan), plan
        self._system = PlanSystem(plan, memory, symmetric, self._responses())
        self._residual = 0.0

    def _responses(self) -> tuple[Array, Array] | None:
        """Those of the points with weight, if one gives way."""
        blocks, problem = self._blocks, self._plan.problem
        if blocks.is_free:
            return None
        rows, columns = blocks.responses
        return problem.sources.restrict(rows), problem.targets.restrict(columns)

    def __repr__(self) -> str:
        return f"Linearization({self._plan.problem.whole!r}, reg={self._plan.problem.reg:.10g}, residual={self._residual:.2g})"

    @property
    def residual(self) -> float:
        """The largest relative residual of the linear systems so far."""
        return self._residual

    def vjp(
        self,
        *,
        f: Any = None,
        g: Any = None,
        plan: Any = None,
        value_linear: float | None = None,
        barycentric_map: Any = None,
        points: Any = None,
        wrt: Iterable[str] | None = None,
    ) -> OTGradient:
        """Vector-Jacobian product, see `otbilevel.ot.vjp`.

        Parameters
        ----------
        f, g, plan, value_linear, barycentric_map, points, wrt
            As there.

        Returns
        -------
        OTGradient
            As there.
        """
        if all(v is None for v in (f, g, plan, value_linear, barycentric_map, points)):
            msg = "nothing to pull back: give f, g, plan, value_linear or barycentric_map; of the value there is `gradient`"
            raise ValueError(msg)
        problem = self._plan.problem
        names = wanted(wrt, problem)
        n, m = problem.whole.shape
        cloud, cotangent, flat = self._map(points, barycentric_map)
        given = Cotangents(
            f=self._array(f, "f", (n,)),
            g=self._array(g, "g", (m,)),
            plan=self._matrix(plan, "plan"),
            value_linear=None if value_linear is None else validate.real(value_linear, "value_linear"),
            barycentric_map=cotangent,
            points=cloud,
        )
        found = Reverse(self._blocks, self._system, given).run(names | ({"points"} if cloud is not None else set()))
        self._check()
        if flat and found.points is not None:
            found = OTGradient(**{**vars(found), "points": found.points[:, 0]})
        return found

    def jvp(
        self,
        *,
        a: Any = None,
        b: Any = None,
        C: Any = None,  # noqa: N803 -- the field's name for the cost
        x: Any = None,
        y: Any = None,
        reg: float | None = None,
        plan: bool = False,
        value_linear: bool = False,
        points: Any = None,
        points_change: Any = None,
    ) -> OTTangent:
        """Jacobian-vector product, see `otbilevel.ot.jvp`.

        Parameters
        ----------
        a, b, C, x, y, reg, plan, value_linear, points, points_change
            As there.

        Returns
        -------
        OTTangent
            As there.
        """
        xp, dtype = self._blocks.xp, self._plan.problem.dtype
        direction = self._direction(a, b, C, x, y, reg, optional=points_change is not None)
        cloud, change, flat = self._map(points, points_change, of_points=True)
        forward = Forward(self._blocks, self._system, direction)
        self._check()
        mapped = None
        if cloud is not None:
            moved = forward.barycentric_map(cloud, change)
            mapped = xp.astype(moved[:, 0] if flat else moved, dtype)
        return OTTangent(
            f=xp.astype(forward.f, dtype),
            g=xp.astype(forward.g, dtype),
            value=forward.value(),
            value_linear=forward.value_linear() if validate.boolean(value_linear, "value_linear") else None,
            plan=forward.plan() if validate.boolean(plan, "plan") else None,
            barycentric_map=mapped,
        )

    def hvp(
        self,
        *,
        a: Any = None,
        b: Any = None,
        C: Any = None,  # noqa: N803
        x: Any = None,
        y: Any = None,
        reg: float | None = None,
        wrt: Iterable[str] | None = None,
    ) -> OTGradient:
        """Hessian-vector product of the optimal value, see `otbilevel.ot.hvp`.

        Parameters
        ----------
        a, b, C, x, y, reg, wrt
            As there.

        Returns
        -------
        OTGradient
            As there.
        """
        names = wanted(wrt, self._plan.problem)
        found = Forward(self._blocks, self._system, self._direction(a, b, C, x, y, reg)).gradient_change(names)
        self._check()
        return found

    def _check(self) -> None:
        residual, self._system.residual = self._system.residual, 0.0
        self._residual = max(self._residual, residual)
        if residual > ACCEPTED:
            msg = (
                f"the linear system of the derivative has a relative residual of {residual:.1g}: its graph falls apart, as "
                "happens at very small reg; raise reg"
            )
            warnings.warn(msg, ConvergenceWarning, stacklevel=4)

    def _direction(self, a: Any, b: Any, matrix: Any, x: Any, y: Any, reg: float | None, *, optional: bool = False) -> Direction:
        geometry = self._plan.problem.whole
        n, m = geometry.shape
        cloud = isinstance(geometry, PointCloud)
        for name, value in (("C", matrix),) if cloud else (("x", x), ("y", y)):
            if value is not None:
                msg = f"{name} is no part of a problem with a {type(geometry).__name__}: leave it out"
                raise ValueError(msg)
        d = geometry.x.shape[1] if isinstance(geometry, PointCloud) else 0
        if not optional and all(v is None for v in (a, b, matrix, x, y, reg)):
            msg = f"the direction is missing: say how {'a, b, x, y' if cloud else 'a, b, C'} or reg change"
            raise ValueError(msg)
        return Direction(
            a=self._array(a, "a", (n,)),
            b=self._array(b, "b", (m,)),
            C=self._matrix(matrix, "C"),
            x=self._array(x, "x", (n, d)),
            y=self._array(y, "y", (m, d)),
            reg=0.0 if reg is None else validate.real(reg, "reg"),
        )

    def _map(self, points: Any, other: Any, *, of_points: bool = False) -> tuple[Array | None, Array | None, bool]:
        """Points and what belongs to them as two-dimensional arrays, and whether they were not."""
        if points is None:
            if other is not None:
                msg = "points is missing: give the points that the barycentric map is taken of"
                raise ValueError(msg)
            return None, None, False
        n, m = self._plan.problem.whole.shape
        shape = tuple(as_array(points, "points").shape)
        flat = len(shape) == 1
        cloud = self._array(points, "points", (m, *shape[1:]))
        name, rows = ("points_change", m) if of_points else ("barycentric_map", n)
        if other is None and not of_points:
            msg = "barycentric_map is missing: give the derivative in the map of points"
            raise ValueError(msg)
        vectors = self._array(other, name, (rows, *shape[1:]))
        if flat and cloud is not None:
            return cloud[:, None], None if vectors is None else vectors[:, None], flat
        return cloud, vectors, flat

    def _matrix(self, value: Any, name: str) -> Any:
        """As `_array`, of the shape of the cost; a sparse cost has sparse derivatives, of which only stored pairs count."""
        shape = self._plan.problem.whole.shape
        if not (sparse.issparse(value) and isinstance(self._plan.problem.whole, SparseCost)):
            return self._array(value, name, shape)
        if value.shape != shape:
            msg = f"{name} must have shape {shape}, got {value.shape}"
            raise ValueError(msg)
        return sparse.csr_array(value, dtype=np.float64)

    def _array(self, value: Any, name: str, shape: tuple[int, ...]) -> Array | None:
        """In double precision, of that shape."""
        if value is None:
            return None
        problem = self._plan.problem
        array = as_array(value, name)
        common_namespace({name: array, "the plan": problem.a})
        if tuple(array.shape) != shape:
            msg = f"{name} must have shape {shape}, got {tuple(array.shape)}"
            raise ValueError(msg)
        if not bool(problem.xp.all(problem.xp.isfinite(array))):
            msg = f"{name} must hold finite numbers, but holds NaN or infinity"
            raise ValueError(msg)
        return problem.xp.astype(array, problem.xp.float64)
