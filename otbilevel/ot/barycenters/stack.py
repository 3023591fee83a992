"""The plans of all inputs together: what the solvers ask of a kernel."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

from otbilevel._core.array import Array


class Point(NamedTuple):
    """Log scalings G, (k, n), and those of the barycentre's plan with itself, h, (n,): 0 where it has none."""

    scalings: Array
    h: Array

    def at(self, ratio: float) -> Point:
        """The same potentials in units of a reg that is smaller by `ratio`."""
        return Point(ratio * self.scalings, ratio * self.h)


@dataclass
class Best:
    """The iterate of least error."""

    error: float = math.inf
    point: Point | None = None

    def offer(self, error: float, point: Point) -> None:
        """Keep it if it is the best, and in any case when there is none."""
        if error < self.error or self.point is None:
            self.error, self.point = error, point


class PlanStack(ABC):
    """k plans with exact rows on one support. `move` first.

    Attributes
    ----------
    kernels : module
        Work on stacks of vectors, see `otbilevel.ot.kernels`.
    reg : float
        The regularisation.
    log_scalings : (k, n) array
        G, where the stack is.
    log_sums : (k, n) array
        log(K' u_k) there, which is log c_k - G_k without cancellation.
    column_sums : (k, n) array
        c_k.
    h : (n,) array or None
        h, where the stack is, if `move` was given it.
    self_log_sums : (n,) array or None
        log(K exp h) there.
    passes : int
        Passes over the kernel so far: one for each product with K or K' of all inputs.
    """

    xp: ModuleType
    kernels: ModuleType
    reg: float
    log_scalings: Array = None
    log_sums: Array
    column_sums: Array
    h: Array | None = None
    self_log_sums: Array | None = None
    passes: int = 0

    @abstractmethod
    def move(self, log_scalings: Array, h: Array | None = None) -> None:
        """Move to G: two passes."""

    @abstractmethod
    def prepare(self) -> Array:
        """Get ready for products where the stack is; return the approximate inverse diagonals of the Laplacians, (k, n)."""

    @abstractmethod
    def laplacian_product(self, x: Array) -> Array:
        """L_k x_k for every input, (k, n): two passes."""

    @abstractmethod
    def row_potentials(self) -> list[Array]:
        """f_k, in units of the cost."""

    @abstractmethod
    def certify(self, f: list[Array], g: Array) -> tuple[list[float], Array]:
        """L1 errors of the rows of P_k = diag(a_k) exp((f_k + g_k - C)/reg), and its columns, from passes of their own."""

    @abstractmethod
    def _soft_maxima(self, h: Array) -> Array:
        """log(K exp h): a pass of its own."""

    def barycenter(self, w: Array) -> Array:
        """b of unit mass where the stack is."""
        log_sums = self.log_sums if self.h is None else self.log_sums + self.h  # weights have the sum 1
        b: Array = self.kernels.geometric_mean(w, log_sums, self.column_sums)[1]
        return b

    def certify_self(self, h: Array) -> Array:
        """The marginal exp(h) K exp(h) of the plan of the barycentre with itself, h in units of reg."""
        return self.xp.exp(h + self._soft_maxima(h))
