"""Where new points go: the potentials extend a plan out of the sample."""

from __future__ import annotations

from otbilevel._core.array import Array
from otbilevel.ot.geometry import Geometry


def entropic_map(geometry: Geometry, g: Array, b: Array, reg: float, values: Array) -> Array:
    """sum_j values_j b_j exp((g_j - C_ij)/reg) / sum_j b_j exp((g_j - C_ij)/reg) for every row i.

    Parameters
    ----------
    geometry : Geometry
        The cost from any points to the targets, (n, m).
    g : (m,) array
        Potentials of the targets, in double precision.
    b : (m,) array
        Positive weights of the targets.
    reg : float
        Regularisation.
    values : (m, k) array
        What is averaged, in double precision.

    Returns
    -------
    (n, k) array

    Notes
    -----
    Two passes over the cost, O(n m) time, with O(n + m) memory for points.

    References
    ----------
    V. Seguy et al., Large-scale optimal transport and mapping estimation, ICLR 2018. A.-A. Pooladian, J. Niles-Weed,
    Entropic estimation of optimal transport maps, arXiv:2109.12004, equation 3.
    """
    xp, kernels, cost = geometry.xp, geometry.kernels, geometry.kernel_cost
    weighted = g + reg * xp.log(xp.astype(b, xp.float64))
    ones = xp.ones((geometry.shape[0],), dtype=xp.float64, device=geometry.device)
    f = kernels.softmax_rows(cost, weighted, reg, ones, None, None, single=False, relaxation=1.0)[0]
    return kernels.plan_product(cost, f, weighted, reg, ones, values, 1)
