"""The coupled set of a support vector machine: its projection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Margins:
    """{(v, xi) : xi_i >= 1 - a_i'v}, the coupled set of a support vector machine with margins a_i = label_i (features_i, 1). NumPy.

    Without the slacks, xi_i = max(xi0_i, 1 - a_i'v), a piecewise quadratic problem in v is left, which Newton's method solves in a
    few steps: the first takes O(l d^2), and the others that for the rows that have become active or idle.

    Attributes
    ----------
    A : (l, d) ndarray
        The a_i as rows.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.bilevel.projection import Margins
    >>> Margins(np.array([[1.0, 1.0]]))(np.array([0.0, 0.0, 0.0]))  # by the same everywhere
    array([0.33333333, 0.33333333, 0.33333333])
    """

    A: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "A", np.ascontiguousarray(self.A, dtype=np.float64))

    def __call__(self, w: np.ndarray) -> np.ndarray:
        """The nearest point (v, xi) of the set."""
        from otbilevel.bilevel.projection.margins_kernel import nearest  # noqa: PLC0415 -- numba takes half a second to load

        found: np.ndarray = nearest(self.A, np.ascontiguousarray(w, dtype=np.float64))
        return found
