"""Potentials that a solve starts from."""

from __future__ import annotations

from dataclasses import dataclass

from otbilevel._core.array import Array, array_namespace

LONGEST_EXTRAPOLATION = 3.0
"""How far a line through two values of reg is followed, in units of their distance: beyond, it magnifies their errors."""


@dataclass(frozen=True, eq=False)
class Start:
    """A potential of the public formula, on the support and for unit mass, up to a constant.

    Attributes
    ----------
    g : (m,) float64 array
        The potential of the columns, in units of the cost: the first sweep computes the best f for it.
    reg : float or None
        The regularisation that they solve the problem for, where it is known.
    before : Start or None
        A solution for a larger reg.
    multipliers : (K,) array or None
        Those of the constraints that this solution had, in the user's order.
    """

    g: Array
    reg: float | None = None
    before: Start | None = None
    multipliers: Array | None = None

    def column_potential(self, b: Array, reg: float) -> Array:
        """Guess g at `reg`, with the weight b in it as `row_plan` has it.

        Linear in reg through both solutions where there are two, as the potentials tend to those of unregularised
        transport at a rate of reg; else as it is, in units of the cost.
        """
        g = self.g
        if self.reg is not None and self.before is not None and self.before.reg is not None:
            slope = (reg - self.reg) / (self.reg - self.before.reg)
            if 0 < slope <= LONGEST_EXTRAPOLATION:
                g = g + slope * (g - self.before.g)
        return g + reg * array_namespace(b).log(b)
