"""How the mass of a row follows from its soft minimum, where its marginal is not fixed.

T. Séjourné, J. Feydy, F.-X. Vialard, A. Trouvé, G. Peyré, Sinkhorn divergences for unbalanced optimal transport, arXiv:1910.12958:
the best potential for a row is the anisotropic proximity operator ("aprox") of its soft minimum S. For the penalties of this
library that is min(max(share S, least), most), and the row then has the mass a exp((aprox(S) - S)/reg).
"""

from __future__ import annotations

import math

from otbilevel._core.array import Array, array_namespace, clamp

Aprox = tuple[float, float, float]
"""``(share, least, most)``."""

RIGID: Aprox = (1.0, -math.inf, math.inf)
"""Of a fixed marginal: the potential is the soft minimum, the mass is the weight."""


def apply(aprox: Aprox, f: Array) -> Array:
    """The potentials that belong to soft minima."""
    share, least, most = aprox
    return f if aprox == RIGID else clamp(share * f, least, most)


def row_masses(f: Array, reg: float, a: Array, aprox: Aprox) -> Array:
    """Masses of rows with soft minima `f` and weights `a`."""
    return a if aprox == RIGID else a * array_namespace(f).exp((apply(aprox, f) - f) / reg)
