"""Vector-Jacobian products of a solution: from derivatives in the outputs to derivatives in the data.

Differentiating the optimality conditions of `plan_blocks` gives, with w_ij = dC_ij + (dreg/reg)(f_i + g_j - C_ij),

    dS_i + sum_j A_ij b_j dg_j = sum_j A_ij (b_j w_ij - reg t_j db_j),    df = s' dS,
    dT_j + sum_i a_i A_ij df_i = sum_i A_ij (a_i w_ij - reg s_i da_i),    dg = t' dT,

where a, b are masses, da, db changes of weights, s, t the shares, s', t' the responses (all four are 1 where marginals are fixed).
With (mu, nu) the solution of the transposed system for the derivatives in (f, g), the derivative in C_ij is
A_ij (mu_i b_j + a_i nu_j), in a -reg s A nu, in b -reg t A' mu. The other outputs are functions of f, g and the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from otbilevel._core.array import Array, array_namespace
from otbilevel.ot.gradients import OTGradient, balanced_gradient
from otbilevel.ot.plan_blocks import Block, PlanBlocks, matrix_rows
from otbilevel.ot.plan_system import PlanSystem


@dataclass(frozen=True)
class Cotangents:
    """Derivatives of a scalar in the outputs, in double precision; None for 0.

    Attributes
    ----------
    f, g : (n,), (m,) arrays
        In the potentials.
    plan : (n, m) array
        In the plan.
    value_linear : float
        In <P, C>.
    barycentric_map, points : (n, k), (m, k) arrays
        In the barycentric map of `points`.
    """

    f: Array | None = None
    g: Array | None = None
    plan: Any = None
    value_linear: float | None = None
    barycentric_map: Array | None = None
    points: Array | None = None


class Reverse:
    """One vector-Jacobian product."""

    def __init__(self, blocks: PlanBlocks, system: PlanSystem, given: Cotangents) -> None:
        self._blocks, self._system, self._given = blocks, system, given
        self._xp = blocks.xp

    def run(self, names: set[str]) -> OTGradient:
        """Derivatives in the data of these names."""
        mu, nu, of_gauge = self._solve()
        found = self._gather(mu, nu, names)
        p = self._blocks
        found["a"], found["b"] = p.shares[0] * found["a"], p.shares[1] * found["b"]
        if p.is_free:
            f, g = p.potentials
            found["a"], found["b"] = balanced_gradient(p.problem, found["a"] - of_gauge * f, found["b"] + of_gauge * g)
        fields = {name: value if name == "reg" else p.in_user_dtype(value) for name, value in found.items()}
        return OTGradient(**{name: value for name, value in fields.items() if name in names})

    def _solve(self) -> tuple[Array, Array, float]:
        """mu and nu at all points, and the derivative in the shift of f against g where <a, f> = <b, g> determines it."""
        p, xp, of_gauge = self._blocks, self._xp, 0.0
        f, g = self._in_potentials()
        if p.is_free:
            of_gauge = (float(xp.sum(f)) - float(xp.sum(g))) / (2.0 * p.mass)
            f, g = f - of_gauge * p.a, g + of_gauge * p.b
        sources, targets = p.problem.sources, p.problem.targets
        off_f, off_g = (_where(mask, r * v) for mask, r, v in zip(p.empty, p.responses, (f, g), strict=True))
        rho, sigma = f, g
        if off_g is not None:
            rho = rho - p.a * p.times(off_g)
        if off_f is not None:
            sigma = sigma - p.b * p.transposed_times(off_f)
        mu, nu = self._system.solve(sources.restrict(rho) / p.mass, targets.restrict(sigma) / p.mass)
        mu, nu = sources.expand(mu) * p.a * p.responses[0], targets.expand(nu) * p.b * p.responses[1]
        return mu if off_f is None else mu + off_f, nu if off_g is None else nu + off_g, of_gauge

    def _in_potentials(self) -> tuple[Array, Array]:
        """Derivatives in f and g while the data stay: the given ones, and those through what is made of the potentials."""
        p, xp, given = self._blocks, self._xp, self._given
        f = xp.zeros_like(p.a) if given.f is None else given.f
        g = xp.zeros_like(p.b) if given.g is None else given.g
        if not self._has_plan:
            return f, g
        rows, columns = [], xp.zeros_like(p.b)
        for block in p:
            of_plan, of_rows = self._weights(block)
            z = p.coupling(block) * of_plan + block.kernel * p.b[None, :] * of_rows
            rows.append(xp.sum(z, axis=1))
            columns = columns + xp.sum(z, axis=0)
        return f + xp.concat(rows) / p.reg, g + columns / p.reg

    @property
    def _has_plan(self) -> bool:
        given = self._given
        return not (given.plan is None and given.value_linear is None and given.barycentric_map is None)

    def _weights(self, block: Block) -> tuple[Any, Any]:
        """Derivatives in P_ij and in the conditional plan b_j A_ij, as far as they are given; each may be 0."""
        given, low, high = self._given, block.low, block.high
        of_plan: Any = 0.0 if given.plan is None else matrix_rows(given.plan, block)
        if given.value_linear is not None:
            of_plan = of_plan + given.value_linear * self._blocks.cost(block)
        if given.barycentric_map is None or given.points is None:
            return of_plan, 0.0
        cotangent = given.barycentric_map[low:high, :]
        own = self._xp.sum(cotangent * self._means[low:high, :], axis=1)
        return of_plan, cotangent @ given.points.T - own[:, None]

    @cached_property
    def _means(self) -> Array:
        return self._blocks.plan.conditional_means(self._given.points)

    def _gather(self, mu: Array, nu: Array, names: set[str]) -> dict[str, Any]:
        """One pass over the plan for all derivatives."""
        p, xp, given = self._blocks, self._xp, self._given
        a, b, rows, reg = [], xp.zeros_like(p.b), [], 0.0
        on_points = bool({"x", "y"} & names)
        y = xp.zeros_like(p.derivative.y) if on_points else None
        points = None if given.points is None else xp.zeros_like(given.points)
        for block in p:
            low, high, kernel = block
            part, p_a = slice(low, high), p.a[low:high, None]
            of_plan, of_rows = self._weights(block)
            of_a, of_b = -p.reg * (kernel @ nu), -p.reg * (mu[part] @ kernel)
            w = mu[part, None] * p.b[None, :] + p_a * nu[None, :]
            if self._has_plan:
                of_a = of_a + xp.sum(kernel * (p.b[None, :] * of_plan), axis=1)
                of_b = of_b + xp.sum(kernel * (p_a * of_plan + of_rows), axis=0)
                w = w - p.b[None, :] * (p_a * of_plan + of_rows) / p.reg
            w = kernel * w
            a.append(of_a)
            b = b + of_b
            if "reg" in names:
                reg += float(xp.sum(w * p.slack(block))) / p.reg
            if given.value_linear is not None:
                w = w + given.value_linear * p.coupling(block)
            if on_points:
                own, others = p.derivative.pull(low, high, w)
                y = y + others
                rows.append(own)
            elif "C" in names:
                rows.append(p.geometry.kept(w, low))
            if points is not None and given.barycentric_map is not None:
                points = points + (kernel * p.b[None, :]).T @ given.barycentric_map[part, :]
        found = {"a": xp.concat(a), "b": b, "reg": reg}
        if on_points:
            found["x"], found["y"] = p.derivative.outward((xp.concat(rows), y))
        elif "C" in names:
            found["C"] = p.geometry.joined(rows)
        return found if points is None else {**found, "points": points}


def _where(mask: Array | None, v: Array) -> Array | None:
    """The vector with zeros off the mask; None when nothing is left."""
    if mask is None:
        return None
    xp = array_namespace(v)
    off = xp.where(mask, v, xp.zeros_like(v))
    return off if bool(xp.any(off != 0)) else None
