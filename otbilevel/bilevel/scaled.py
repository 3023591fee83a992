"""A bilevel problem in units in which gradients and rows have length one: tolerances and penalties mean the same everywhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg

from otbilevel.bilevel.constraints import Rows, worst
from otbilevel.bilevel.problem import BilevelProblem

SAMPLES = 6
"""Random points around the start at which lengths are measured, beside the start itself."""
TINY, ROUNDING = 1e-12, 1e-9
"""Length of a row, also relative to its value, up to which it may be noise."""
DEPENDENT = 1e-8
"""Part of a row of length one that does not follow from others, from which on it counts."""
PARALLEL = 1e-7
"""Difference of rows of length one that are the same."""


class ScaledRows:
    """Rows of length one; two opposite inequalities are one equality.

    Parameters
    ----------
    rows : Rows
        As given.
    points : list of (n + m,) ndarray
        Where lengths are measured, and opposites are looked for.

    Attributes
    ----------
    equality : (k,) ndarray of bool
        Which rows are equalities.
    """

    def __init__(self, rows: Rows, points: list[np.ndarray]) -> None:
        self._rows = rows
        lengths = np.median([rows.lengths(w) for w in points], axis=0)
        values = np.array([rows.values(w) for w in points])
        self._all = scale = row_scales(lengths, np.median(np.abs(values), axis=0))
        partners: dict[int, int] = {}
        equality = rows.equality.copy()
        values, jacobian = scale * values, np.zeros((0, 0))
        free = np.flatnonzero(~rows.equality)
        while len(free) > 1:
            i, free = free[0], free[1:]
            sums = np.abs(values[:, free] + values[:, [i]])
            opposite = free[np.all(sums <= 1e-12 + 1e-10 * np.abs(values[:, free]), axis=0)]
            if len(opposite):  # so far at these points only, which may be a single one, where both are active
                jacobian = jacobian if jacobian.size else scale[:, None] * rows.jacobian(points[0])
                opposite = opposite[np.abs(jacobian[opposite] + jacobian[i]).max(axis=1) <= PARALLEL]
            if len(opposite):
                partners[int(i)] = int(opposite[0])
                equality[i] = True
                free = free[free != opposite[0]]
        self._keep = np.setdiff1d(np.arange(rows.count), list(partners.values()))
        self._partners, self._scale = partners, scale[self._keep]
        self.equality = equality[self._keep]

    @property
    def count(self) -> int:
        """How many rows."""
        return int(self.equality.size)

    def values(self, w: np.ndarray) -> np.ndarray:
        """c(w), (k,)."""
        return self._scale * self._rows.values(w)[self._keep] if self.count else np.zeros(0)

    def jacobian(self, w: np.ndarray) -> np.ndarray:
        """Its derivative, (k, n + m)."""
        return self._scale[:, None] * self._rows.jacobian(w)[self._keep] if self.count else np.zeros((0, w.size))

    def vjp(self, w: np.ndarray, lam: np.ndarray) -> np.ndarray:
        """Its transpose times lam, (n + m,), without the derivative itself where the user gave products."""
        return self._rows.vjp(w, self._back(lam))

    def multipliers(self, lam: np.ndarray, factor: float) -> np.ndarray:
        """Multipliers of the rows as they were given, for an objective that was multiplied by `factor`."""
        found = self._back(lam) / factor
        for i, j in self._partners.items():
            found[i], found[j] = max(found[i], 0.0), max(-found[i], 0.0) * self._all[j] / self._all[i]
        return found

    def _back(self, lam: np.ndarray) -> np.ndarray:
        found = np.zeros(self._rows.count)
        found[self._keep] = self._scale * lam
        return found


class ScaledProblem:
    """Functions of w = (x, y) with gradients and rows of length one.

    Parameters
    ----------
    problem : BilevelProblem
        As given.
    start : (n + m,) ndarray
        Around which lengths are measured.
    rng : numpy.random.Generator
        Draws the points.
    """

    def __init__(self, problem: BilevelProblem, start: np.ndarray, rng: np.random.Generator) -> None:
        self.problem, self.n, self.m = problem, problem.n, problem.m
        self.low, self.high = problem.low, problem.high
        self._points = points = problem.around(start, rng, SAMPLES, jacobians=True)
        self._equations: dict[tuple[bool, bool, bool], list[np.ndarray]] = {}
        self.lower_rows, self.upper_rows = (ScaledRows(rows, points) for rows in (problem.lower_rows, problem.upper_rows))
        self.upper_factor, self.lower_factor = problem.factors(points)
        below, above = np.flatnonzero(self.low[self.n :] > -np.inf), np.flatnonzero(self.high[self.n :] < np.inf)
        self._below, self._above = below, above
        self._box = unit_rows(below, above, self.m)
        self.equality = np.concatenate([self.lower_rows.equality, np.zeros(len(self._box), bool)])

    def F(self, w: np.ndarray) -> float:  # noqa: N802 -- the paper's letters
        """The upper objective."""
        return self.upper_factor * self.problem.upper.value(w)

    def dF(self, w: np.ndarray) -> np.ndarray:  # noqa: N802
        """Its gradient."""
        return self.upper_factor * self.problem.upper.gradient(w)

    def f(self, w: np.ndarray) -> float:
        """The lower objective."""
        return self.lower_factor * self.problem.lower.value(w)

    def df(self, w: np.ndarray) -> np.ndarray:
        """Its gradient."""
        return self.lower_factor * self.problem.lower.gradient(w)

    @property
    def has_hvp(self) -> bool:
        """Whether the user gave products with the second derivative of f in y."""
        return self.problem.hvp_yy is not None

    def hvp(self, w: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Such a product."""
        assert self.problem.hvp_yy is not None
        return self.lower_factor * self.problem.hvp_yy(w, v)

    def g(self, w: np.ndarray) -> np.ndarray:
        """The lower rows, those of the bounds of y at the end."""
        y = w[self.n :]
        below, above = self.low[self.n :][self._below] - y[self._below], y[self._above] - self.high[self.n :][self._above]
        return np.concatenate([self.lower_rows.values(w), below, above])

    def dg(self, w: np.ndarray) -> np.ndarray:
        """Their derivative."""
        box = np.hstack([np.zeros((len(self._box), self.n)), self._box])
        return np.vstack([self.lower_rows.jacobian(w), box])

    def force(self, w: np.ndarray, lam: np.ndarray) -> np.ndarray:
        """Its transpose times lam, (n + m,)."""
        count = self.lower_rows.count
        total = self.lower_rows.vjp(w, lam[:count])
        total[self.n :] += lam[count:] @ self._box
        return total

    @staticmethod
    def beside(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """The function y -> (x, y)."""

        def at(y: np.ndarray) -> np.ndarray:
            return np.concatenate([x, y])

        return at

    def violation(self, w: np.ndarray) -> float:
        """The largest violation of any row or bound."""
        rows = [worst(rows.values(w), rows.equality) for rows in (self.lower_rows, self.upper_rows)]
        return max(float(np.max(self.low - w)), float(np.max(w - self.high)), *rows)

    def lower_violation(self, w: np.ndarray) -> float:
        """That of the lower level's rows and bounds."""
        return worst(self.g(w), self.equality)

    def slsqp_rows(self, embed: Any = None, *, lower: bool = True, upper: bool = True) -> list[dict[str, Any]]:
        """The rows of the levels asked for, but bounds, for SLSQP, of w, or of y alone when `embed` makes w of it.

        Of equations that follow from others, or do not contain y, none is left: SLSQP would not move at all.
        """
        place = embed or (lambda w: w)
        columns = slice(None) if embed is None else slice(self.n, None)
        found = []
        for rows, equations in zip(self._levels(lower, upper), self._independent(embed is not None, lower, upper), strict=True):
            for kind, chosen in (("ineq", np.flatnonzero(~rows.equality)), ("eq", equations)):
                if len(chosen):
                    found.append(
                        {
                            "type": kind,
                            "fun": lambda v, rows=rows, chosen=chosen: -rows.values(place(v))[chosen],
                            "jac": lambda v, rows=rows, chosen=chosen: -rows.jacobian(place(v))[chosen][:, columns],
                        }
                    )
        return found

    def _levels(self, lower: bool, upper: bool) -> tuple[ScaledRows, ...]:
        return (self.lower_rows,) * lower + (self.upper_rows,) * upper

    def _independent(self, only_y: bool, lower: bool, upper: bool) -> list[np.ndarray]:
        """The equations of each level, those left out whose derivatives follow from others everywhere, with the same factors.

        For w their values must follow, too: equations that contradict each other remain.
        """
        key = (only_y, lower, upper)
        if key not in self._equations:
            levels = self._levels(lower, upper)
            places = [np.flatnonzero(rows.equality) for rows in levels]
            if any(len(place) for place in places):
                places = self._chosen(levels, places, only_y)
            self._equations[key] = places
        return self._equations[key]

    def _chosen(self, levels: tuple[ScaledRows, ...], places: list[np.ndarray], only_y: bool) -> list[np.ndarray]:
        parts = []
        for w in self._points:
            jacobian = np.concatenate([rows.jacobian(w)[place] for rows, place in zip(levels, places, strict=True)])
            values = np.concatenate([rows.values(w)[place] for rows, place in zip(levels, places, strict=True)])
            parts += [jacobian[:, self.n :]] if only_y else [jacobian, values[:, None] / max(1.0, float(np.abs(w).max()))]
        _, triangle, order = scipy.linalg.qr(np.hstack(parts).T, mode="economic", pivoting=True)
        sizes = np.abs(np.diag(triangle))
        kept = np.sort(order[: int(np.sum(sizes > DEPENDENT * math.sqrt(len(self._points))))])
        ends = np.cumsum([0, *(len(place) for place in places)])
        chosen = [kept[(kept >= a) & (kept < b)] - a for a, b in itertools.pairwise(ends)]
        return [place[c] for place, c in zip(places, chosen, strict=True)]


def row_scales(lengths: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """What makes rows of these lengths ones of length one; 1 where a length may be noise, for values of these sizes."""
    found: np.ndarray = 1.0 / np.where(lengths > np.maximum(TINY, ROUNDING * sizes), lengths, 1.0)
    return found


def unit_rows(below: np.ndarray, above: np.ndarray, size: int) -> np.ndarray:
    """The derivatives of bounds: -e_j for j in `below`, e_j for j in `above`."""
    found = np.zeros((len(below) + len(above), size))
    found[np.arange(len(found)), np.concatenate([below, above])] = np.repeat([-1.0, 1.0], [len(below), len(above)])
    return found
