"""The spectral density by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from otbilevel._core import validate
from otbilevel._core.result import Result, Status, report
from otbilevel._core.rng import KINDS, draw, generator
from otbilevel.linalg.conversion import as_operator
from otbilevel.linalg.lanczos import lanczos
from otbilevel.linalg.result import Estimate

GRID = 1024
FLAT = 1e-6
"""Range of the nodes relative to their size that is taken at least: rounding gives no scale for a kernel."""
MARGIN = 0.05
"""Of the range of the nodes, on either side of the grid."""


@dataclass(frozen=True, repr=False, eq=False)
class SpectralDensity(Result):
    """What `spectral_density` returns; all in host memory.

    Attributes
    ----------
    nodes, weights : (k,) ndarray
        The quadrature: sum_i weights_i f(nodes_i) estimates the mean of f over the eigenvalues. Weights are >= 0 and sum to 1.
    grid, density, stderr : (g,) ndarray
        The density, smoothed by a Gaussian kernel of width `bandwidth`, and its standard error over the probes.
    bandwidth : float
        Standard deviation of the kernel.
    probes : list of (nodes, weights)
        The quadrature of each probe, of which `nodes` and `weights` are made.
    n : int
        Dimension of the operator.
    nmatvec : int
        Products.
    success, status, message
        Whether all products were finite.
    """

    nodes: np.ndarray
    weights: np.ndarray
    grid: np.ndarray
    density: np.ndarray
    stderr: np.ndarray
    bandwidth: float
    probes: list[tuple[np.ndarray, np.ndarray]]
    n: int
    nmatvec: int
    success: bool
    status: Status
    message: str
    _summary = ("message", "n", "nmatvec", "bandwidth", "nodes", "density")

    def trace_of(self, function: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        """Estimate the trace of f(H): of H itself with the identity, of the squared Frobenius norm with the square.

        Parameters
        ----------
        function : callable
            f, of an array of eigenvalues.

        Returns
        -------
        Estimate
            n times the mean of f, with its standard error over the probes.
        """
        if not self.probes:
            return Estimate.made(np.asarray(math.nan), np.asarray(math.nan), self.nmatvec)
        samples = [self.n * float(weights @ np.broadcast_to(function(nodes), nodes.shape)) for nodes, weights in self.probes]
        return Estimate.of(np.array(samples), self.nmatvec)


def spectral_density(
    op: Any,
    *,
    n_probes: int = 8,
    steps: int = 80,
    bandwidth: float | None = None,
    grid: Any = None,
    rng: Any = None,
    probe: str = "rademacher",
    reorthogonalize: bool = True,
) -> SpectralDensity:
    """Estimate the density of the eigenvalues of a symmetric operator by stochastic Lanczos quadrature.

    Parameters
    ----------
    op : SymmetricOperator or (n, n) array_like
        H.
    n_probes : int
        Random vectors; two at least, so that there is an error.
    steps : int
        Lanczos steps for each, with one product each. The quadrature is exact for polynomials of degree 2 steps - 1.
    bandwidth : float, optional
        Standard deviation of the Gaussian kernel, in units of the eigenvalues; by default 1 % of the range of the nodes.
    grid : (g,) array_like, optional
        Where the density is wanted; by default 1024 points over that range and a little more.
    rng : numpy.random.Generator or int, optional
        Draws the probes.
    probe : {"rademacher", "gaussian"}
        Signs, or normal numbers.
    reorthogonalize : bool
        Keep Lanczos' vectors orthogonal, which resolves more with the same products. Without it their work and memory are O(n) for
        a step, which pays where products are cheap and `n` is large; moments and density stay right.

    Returns
    -------
    SpectralDensity
        Nodes and weights, the smoothed density with its standard error, and `trace_of` for functions of H.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong; the message names it.

    Warns
    -----
    ConvergenceWarning
        When a product is not finite.

    Notes
    -----
    With full reorthogonalisation: O(n steps) memory, O(n steps^2) work for a probe beside the products.

    References
    ----------
    S. Ubaru, J. Chen, Y. Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIAM J. Matrix Anal. Appl. 38, 2017.
    B. Ghorbani, S. Krishnan, Y. Xiao, An investigation into neural net optimization via Hessian eigenvalue density, ICML 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.curvature import spectral_density
    >>> found = spectral_density(np.diag(np.repeat([0.0, 1.0], 50)), steps=5, rng=0)
    >>> float(found.weights.sum().round(9)), round(found.trace_of(lambda t: t).value, 6)
    (1.0, 50.0)
    """
    op = as_operator(op)
    count, length = validate.integer(n_probes, "n_probes", low=2), validate.integer(steps, "steps", low=1)
    kind, random = validate.choice(probe, "probe", KINDS), generator(rng)
    probes, before = [], op.nmatvec
    for _ in range(count):
        start = draw(random, kind, (op.shape[0],), op.xp, dtype=op.dtype, device=op.device)
        found = lanczos(op, start, length, reorthogonalize=reorthogonalize)
        if not (np.all(np.isfinite(found.diagonal)) and np.all(np.isfinite(found.off))):
            return report(_not_finite(op.shape[0], op.nmatvec - before), raise_on_failure=False)
        values, vectors = found.ritz()
        probes.append((values, vectors[0, :] ** 2))
    nodes, weights = np.concatenate([v for v, _ in probes]), np.concatenate([w for _, w in probes]) / count
    order = np.argsort(nodes)
    low, high = float(nodes.min()), float(nodes.max())
    spread = max(high - low, FLAT * max(abs(low), abs(high))) or 1.0
    width = 0.01 * spread if bandwidth is None else validate.real(bandwidth, "bandwidth", low=0.0, strict=True)
    margin = MARGIN * spread + 4 * width
    places = np.linspace(low - margin, high + margin, GRID) if grid is None else _grid(grid)
    curves = np.array([_smooth(places, v, w, width) for v, w in probes])
    return SpectralDensity(
        nodes=nodes[order],
        weights=weights[order],
        grid=places,
        density=curves.mean(axis=0),
        stderr=curves.std(axis=0, ddof=1) / math.sqrt(count),
        bandwidth=width,
        probes=probes,
        n=op.shape[0],
        nmatvec=op.nmatvec - before,
        success=True,
        status=Status.SUCCESS,
        message="all products are finite",
    )


def _grid(given: Any) -> np.ndarray:
    places = np.asarray(given, dtype=np.float64)
    if places.ndim != 1 or places.size == 0 or not np.all(np.isfinite(places)):
        msg = f"grid must be a vector of finite numbers, got shape {places.shape}"
        raise ValueError(msg)
    return places


def _smooth(grid: np.ndarray, nodes: np.ndarray, weights: np.ndarray, width: float) -> np.ndarray:
    """sum_i w_i N(t; node_i, width^2)."""
    scaled = (grid[:, None] - nodes[None, :]) / width
    density: np.ndarray = np.exp(-0.5 * scaled**2) @ weights / (width * math.sqrt(2 * math.pi))
    return density


def _not_finite(n: int, nmatvec: int) -> SpectralDensity:
    empty = np.empty(0)
    message = "a product is not finite: look at the function that computes it, and at the data"
    return SpectralDensity(empty, empty, empty, empty, empty, math.nan, [], n, nmatvec, False, Status.NOT_FINITE, message)
