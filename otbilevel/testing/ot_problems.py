"""Transport problems: families that tests and benchmarks share, and closed forms to compare with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

FLOOR = 1e-6
"""Added to the weights of mixtures, which sum to 1, so that every point carries some."""
IMAGE_FLOOR = 1e-5
"""The same for the weights of images, most of whose pixels are black."""


@dataclass(frozen=True, eq=False)
class TransportProblem:
    """Weights and costs, in double precision.

    Attributes
    ----------
    name : str
        The family, with size and seed.
    a, b : (n,), (m,) ndarray
        Positive weights, each of sum 1.
    C : (n, m) ndarray
        Non-negative, C-contiguous costs whose maximum is 1: a regularisation means the same for all problems.
    """

    name: str
    a: Vector
    b: Vector
    C: Matrix


def assignment(size: int, seed: int) -> TransportProblem:
    """Random assignment: independent costs, uniform on [0, 1], and uniform weights.

    Parameters
    ----------
    size : int
        Number n of sources, and of targets.
    seed : int
        Draws the costs.

    Returns
    -------
    TransportProblem
        The problem, of shape (n, n).

    Examples
    --------
    >>> from otbilevel.testing.ot_problems import assignment
    >>> problem = assignment(100, seed=0)
    >>> problem.name, problem.C.shape
    ('assignment n=100 seed=0', (100, 100))
    """
    costs = np.random.default_rng(seed).random((size, size))
    uniform = np.full(size, 1.0 / size)
    return _problem("assignment", seed, uniform, uniform.copy(), costs)


def cloud(size: int, seed: int, *, dim: int) -> TransportProblem:
    """Squared Euclidean costs between samples of two Gaussians, the second one shifted by 1 and stretched by 0.7 to 1.3.

    Parameters
    ----------
    size : int
        Points in either cloud.
    seed : int
        Draws the points.
    dim : int
        Dimension of the space.

    Returns
    -------
    TransportProblem
        The problem, of shape (size, size), with uniform weights.

    Examples
    --------
    >>> from otbilevel.testing.ot_problems import cloud
    >>> cloud(100, seed=0, dim=2).name
    'cloud-2d n=100 seed=0'
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((size, dim))
    y = 1.0 / np.sqrt(dim) + rng.standard_normal((size, dim)) * np.linspace(0.7, 1.3, dim)
    uniform = np.full(size, 1.0 / size)
    return _problem(f"cloud-{dim}d", seed, uniform, uniform.copy(), _squared_distances(x, y))


def image(size: int, seed: int, *, order: int) -> TransportProblem:
    """Two handwritten digits on a square grid.

    Parameters
    ----------
    size : int
        Approximate number of pixels: the side of the grid is its square root, rounded (28 x 28 for 784).
    seed : int
        Picks the pair of digits.
    order : {1, 2}
        2 for the squared Euclidean cost (as in W2), 1 for the L1 or cityblock cost (as in W1), which has many ties.

    Returns
    -------
    TransportProblem
        The problem between all pixels. The weights are grey levels with a small floor.

    Raises
    ------
    ImportError
        Without scikit-learn, whose `load_digits` this needs.

    Examples
    --------
    >>> from otbilevel.testing.ot_problems import image
    >>> image(784, seed=0, order=1).name
    'image-w1 n=784 seed=0'
    """
    from scipy.ndimage import zoom  # noqa: PLC0415 -- as the next one, for this family only
    from sklearn.datasets import load_digits  # noqa: PLC0415 -- an optional dependency

    side = _side(size)
    digits = load_digits().images
    pair = np.random.default_rng(seed).choice(len(digits), 2, replace=False)
    grey = (zoom(digits[k], side / digits.shape[1], order=1).ravel() for k in pair)
    a, b = (_with_floor(np.clip(g, 0.0, None), IMAGE_FLOOR) for g in grey)
    grid = _grid(side)
    costs = _squared_distances(grid, grid) if order == 2 else np.abs(grid[:, None, :] - grid[None, :, :]).sum(-1)
    return _problem(f"image-w{order}", seed, a, b, costs)


def mixture(size: int, seed: int, *, dim: int) -> TransportProblem:
    """Two Gaussian mixtures, of three and of two components, on a grid over the unit interval or square.

    Parameters
    ----------
    size : int
        Approximate number of grid points: in two dimensions the side is its square root, rounded.
    seed : int
        Draws centres, widths and weights of the components.
    dim : {1, 2}
        Dimension of the grid.

    Returns
    -------
    TransportProblem
        The problem between all grid points, with squared Euclidean costs. The weights have a small floor.

    Examples
    --------
    >>> from otbilevel.testing.ot_problems import mixture
    >>> mixture(1000, seed=0, dim=2).name
    'mixture-2d n=1024 seed=0'
    """
    rng = np.random.default_rng(seed)
    grid = np.arange(size, dtype=np.float64)[:, None] if dim == 1 else _grid(_side(size))
    unit = grid / grid.max()
    a, b = (_with_floor(_mixture_density(unit, components, rng), FLOOR) for components in (3, 2))
    return _problem(f"mixture-{dim}d", seed, a, b, _squared_distances(grid, grid))


FAMILIES: dict[str, Callable[[int, int], TransportProblem]] = {
    "assignment": assignment,
    "cloud-2d": partial(cloud, dim=2),
    "cloud-3d": partial(cloud, dim=3),
    "cloud-10d": partial(cloud, dim=10),
    "image-w2": partial(image, order=2),
    "image-w1": partial(image, order=1),
    "mixture-1d": partial(mixture, dim=1),
    "mixture-2d": partial(mixture, dim=2),
}
"""Every family as a function ``(size, seed) -> TransportProblem``."""


def gaussian_w2(mean_a: ArrayLike, cov_a: ArrayLike, mean_b: ArrayLike, cov_b: ArrayLike) -> float:
    """Squared 2-Wasserstein (Bures) distance between two Gaussians.

    Parameters
    ----------
    mean_a, mean_b : (d,) array_like
        Means.
    cov_a, cov_b : (d, d) array_like
        Covariances, symmetric positive semi-definite.

    Returns
    -------
    float
        ``|mean_a - mean_b|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2))``.

    References
    ----------
    D. C. Dowson and B. V. Landau, The Frechet distance between multivariate normal distributions, J. Multivariate Anal. 12, 1982.

    Examples
    --------
    >>> from otbilevel.testing import gaussian_w2
    >>> gaussian_w2([0.0], [[1.0]], [3.0], [[4.0]])
    10.0
    """
    shift, a, b = _moments(mean_a, cov_a, mean_b, cov_b)
    root = _root(a)
    cross = _root(root @ b @ root)
    return shift + float(np.trace(a) + np.trace(b) - 2.0 * np.trace(cross))


class EntropicValue(NamedTuple):
    """The optimum of entropic transport.

    Attributes
    ----------
    value : float
        <P, C> + reg KL(P | a x b).
    value_linear : float
        <P, C>.
    """

    value: float
    value_linear: float


def entropic_gaussian(mean_a: ArrayLike, cov_a: ArrayLike, mean_b: ArrayLike, cov_b: ArrayLike, reg: float) -> EntropicValue:
    """Entropic transport between two Gaussians for the cost |x - y|^2.

    Parameters
    ----------
    mean_a, mean_b : (d,) array_like
        Means.
    cov_a, cov_b : (d, d) array_like
        Covariances, symmetric positive semi-definite.
    reg : float
        Regularisation > 0: the objective is <P, |x - y|^2> + reg KL(P | a x b).

    Returns
    -------
    EntropicValue
        The optimal value, and its transport cost alone.

    Notes
    -----
    With reg = 2 s (the paper's s is sigma^2) and D = (4 A^(1/2) B A^(1/2) + s^2 I)^(1/2), the cross-covariance of the optimal plan
    has trace ``(tr D - d s) / 2``, and the value is
    ``|mean_a - mean_b|^2 + tr A + tr B - tr D + d s (1 - log(2 s)) + s log det(D + s I)``.

    References
    ----------
    H. Janati, B. Muzellec, G. Peyre, M. Cuturi, Entropic optimal transport between unbalanced Gaussian measures has a closed form,
    NeurIPS 2020 (arXiv:2006.02572), Theorem 1.

    Examples
    --------
    >>> from otbilevel.testing import entropic_gaussian
    >>> print("%.6f, %.6f" % entropic_gaussian([0.3], [[1.2]], [-0.5], [[0.4]], reg=1.0))
    1.606709, 1.266908
    """
    shift, a, b = _moments(mean_a, cov_a, mean_b, cov_b)
    dim, s = len(a), 0.5 * reg
    root = _root(a)
    eigenvalues = np.sqrt(np.clip(np.linalg.eigvalsh(4.0 * root @ b @ root), 0.0, None) + s**2)
    linear = shift + float(np.trace(a) + np.trace(b) - np.sum(eigenvalues)) + dim * s
    # d s (1 - log(2 s)) + s log det(D + s I) = d s + s sum log((D + s) / (2 s)): small for large s, as it must be.
    return EntropicValue(linear + s * float(np.sum(np.log1p((eigenvalues - s) / (2.0 * s)))), linear)


def wasserstein_1d(x: ArrayLike, a: ArrayLike, y: ArrayLike, b: ArrayLike, p: float) -> float:
    """Optimal cost W_p^p between weighted points on the line, for the costs |x - y|^p.

    Parameters
    ----------
    x, y : (n,), (m,) array_like
        Points, in any order.
    a, b : (n,), (m,) array_like
        Their non-negative weights, of equal mass.
    p : float
        Exponent >= 1.

    Returns
    -------
    float
        The integral over t of |F^-1(t) - G^-1(t)|^p, with the quantile functions F^-1 and G^-1: the p-th power of the distance.

    References
    ----------
    F. Santambrogio, Optimal Transport for Applied Mathematicians, 2015, Proposition 2.17.

    Examples
    --------
    >>> from otbilevel.testing import wasserstein_1d
    >>> wasserstein_1d([0.0, 1.0], [0.5, 0.5], [3.0, 2.0], [0.5, 0.5], p=2)
    4.0
    """
    points_x, levels_x = _quantiles(x, a)
    points_y, levels_y = _quantiles(y, b)
    levels = np.sort(np.concatenate([levels_x, levels_y]))
    lengths = np.diff(levels, prepend=0.0)
    middles = levels - 0.5 * lengths
    from_x = points_x[np.minimum(np.searchsorted(levels_x, middles), len(points_x) - 1)]
    from_y = points_y[np.minimum(np.searchsorted(levels_y, middles), len(points_y) - 1)]
    return float(np.sum(lengths * np.abs(from_x - from_y) ** p))


def _problem(family: str, seed: int, a: Vector, b: Vector, costs: Matrix) -> TransportProblem:
    return TransportProblem(f"{family} n={len(a)} seed={seed}", a, b, np.ascontiguousarray(costs / costs.max()))


def _squared_distances(x: Matrix, y: Matrix) -> Matrix:
    """|x_i - y_j|^2 without cancellation: exact for whole numbers, so that costs on grids tie as they should."""
    total = np.zeros((len(x), len(y)))
    for k in range(x.shape[1]):
        total += (x[:, None, k] - y[None, :, k]) ** 2
    return total


def _side(size: int) -> int:
    return round(float(np.sqrt(size)))


def _grid(side: int) -> Matrix:
    """The points of a side x side grid of spacing 1, shape (side^2, 2)."""
    points: Matrix = np.indices((side, side), dtype=np.float64).reshape(2, -1).T
    return points


def _with_floor(weights: Vector, floor: float) -> Vector:
    raised: Vector = weights / weights.sum() + floor
    raised /= raised.sum()
    return raised


def _mixture_density(grid: Matrix, components: int, rng: np.random.Generator) -> Vector:
    dim = grid.shape[1]
    shares = rng.dirichlet(np.full(components, 5.0))
    centres = rng.uniform(0.15, 0.85, (components, dim))
    widths = rng.uniform(0.04, 0.12, components)
    bumps = np.exp(-0.5 * _squared_distances(grid, centres) / widths**2) / widths**dim
    density: Vector = bumps @ shares
    return density


def _moments(mean_a: ArrayLike, cov_a: ArrayLike, mean_b: ArrayLike, cov_b: ArrayLike) -> tuple[float, Matrix, Matrix]:
    """Squared distance of the means, and the covariances."""
    difference = np.asarray(mean_a, dtype=np.float64) - np.asarray(mean_b, dtype=np.float64)
    return float(difference @ difference), np.asarray(cov_a, dtype=np.float64), np.asarray(cov_b, dtype=np.float64)


def _root(matrix: Matrix) -> Matrix:
    """The square root of a symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T)


def _quantiles(points: ArrayLike, weights: ArrayLike) -> tuple[Vector, Vector]:
    """Sorted points, and the mass up to and including each."""
    x, w = np.asarray(points, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    order = np.argsort(x, kind="stable")
    return x[order], np.cumsum(w[order])
