"""An estimator for scikit-learn, which it needs: the map of entropic optimal transport, for points of the sample and new ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import special
from scipy.stats import qmc

try:
    from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data
except ImportError as error:
    msg = 'otbilevel.compat.sklearn needs scikit-learn 1.6 or newer: pip install "otbilevel[sklearn]"'
    raise ImportError(msg) from error

from otbilevel._core import validate
from otbilevel.ot.entropic_map import entropic_map
from otbilevel.ot.kernels.generic import row_blocks
from otbilevel.ot.point_cloud import PointCloud
from otbilevel.ot.solve import solve_ot

REFERENCES = ("normal", "uniform")
NORMS = ("mean", "max")


class EntropicTransport(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Map points to where entropic optimal transport takes them.

    `fit` solves optimal transport from the samples to the targets, both with uniform weights. `transform` sends any point x to
    T(x) = sum_j y_j exp((g_j - c(x, y_j)) / reg) / sum_j exp((g_j - c(x, y_j)) / reg), with the potentials g of the targets: for a
    sample that is the mean of the targets to which its mass goes, and T extends it to new points. `inverse_transform` does the
    same from the targets to the samples.

    Parameters
    ----------
    target : (m, n_features) array_like, {"normal", "uniform"} or None
        The targets. By default they are the `y` of `fit`. A name stands for as many well-spread points as there are samples, of the
        standard normal distribution or of the uniform one on the unit cube: a multivariate quantile transform.
    reg : float
        Regularisation > 0, in units of `norm`. Smaller is sharper, and follows the sample more closely.
    norm : {"mean", "max"} or None
        The unit of `reg`: the mean or the largest cost between samples and targets, or (None) the cost's own.
    metric : {"sqeuclidean", "euclidean", "cityblock", "cosine"}
        The cost, as in `PointCloud`.
    method : str
        As in `solve_ot`; not ``"exact"``, which has no map for new points.
    tol : float, optional
        As in `solve_ot`.
    max_iter : int, optional
        As in `solve_ot`.

    Attributes
    ----------
    source_, target_ : (n_samples, n_features), (m, n_features) arrays
        The points between which was transported.
    source_potential_, target_potential_ : (n_samples,), (m,) arrays
        Their potentials, in units of the cost.
    reg_ : float
        Regularisation in units of the cost.
    result_ : OTResult
        The result, with the plan, its values and certificates.
    n_iter_ : int
        Iterations of the solver.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array of str
        Their names, where the samples had any.

    Raises
    ------
    ImportError
        When scikit-learn is not installed.

    Warns
    -----
    ConvergenceWarning
        When the solver stops short of `tol`.

    Notes
    -----
    Two ways to give the targets: ``fit(X, Y)`` for two clouds, whose sizes may differ; and ``target=Y``, then `y` is ignored and
    may be what the next steps of a pipeline need, such as labels. With the second, cross-validation splits the samples only.

    No n x m array is needed: points are transported as a `PointCloud`, and a map costs two passes of O(n m) time.

    References
    ----------
    A.-A. Pooladian, J. Niles-Weed, Entropic estimation of optimal transport maps, arXiv:2109.12004. V. Seguy et al., Large-scale
    optimal transport and mapping estimation, ICLR 2018. For distributions as targets: P. Ghosal, B. Sen, Multivariate ranks and
    quantiles using optimal transport, Annals of Statistics 50, 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel.compat.sklearn import EntropicTransport
    >>> rng = np.random.default_rng(0)
    >>> X, Y = rng.normal(size=(200, 2)), rng.normal(size=(150, 2)) + [5.0, 0.0]
    >>> transport = EntropicTransport(reg=0.01).fit(X, Y)
    >>> transport.transform([[0.0, 0.0]]).round(0) + 0.0
    array([[5., 0.]])
    >>> np.allclose(transport.transform(X), transport.result_.barycentric_map(Y))
    True
    """

    def __init__(
        self,
        target: Any = None,
        *,
        reg: float = 0.05,
        norm: str | None = "mean",
        metric: str = "sqeuclidean",
        method: str = "auto",
        tol: float | None = None,
        max_iter: int | None = None,
    ) -> None:
        self.target = target
        self.reg = reg
        self.norm = norm
        self.metric = metric
        self.method = method
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any = None) -> EntropicTransport:  # noqa: N803 -- scikit-learn's names
        """Solve optimal transport from the samples to the targets.

        Parameters
        ----------
        X : (n_samples, n_features) array_like
            Samples.
        y : (m, n_features) array_like, optional
            The targets where `target` is None, else ignored.

        Returns
        -------
        EntropicTransport
            The estimator itself.

        Raises
        ------
        ValueError, TypeError
            When an argument or parameter is wrong; the message names it.
        """
        reg = validate.real(self.reg, "reg", low=0.0, strict=True)
        if self.norm is not None:
            validate.choice(self.norm, "norm", NORMS)
        if self.method == "exact":
            msg = 'method="exact" has no map for new points: choose another method'
            raise ValueError(msg)
        source = validate_data(self, X, dtype=(np.float64, np.float32))
        target = self._targets(source, y)
        cloud = PointCloud(source, target, cost=self.metric)
        self.reg_ = reg * _unit(cloud, self.norm)
        self.result_ = solve_ot(None, None, cloud, reg=self.reg_, method=self.method, tol=self.tol, max_iter=self.max_iter)
        self.source_potential_, self.target_potential_ = self.result_._plan.double_potentials()
        self.source_, self.target_ = source, target
        self.n_iter_ = self.result_.nit
        return self

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Map points from the side of the samples to that of the targets.

        Parameters
        ----------
        X : (k, n_features) array_like
            Any points, of the sample or not.

        Returns
        -------
        (k, n_features) array
            Their images, in the convex hull of the targets. O(k m) time.
        """
        check_is_fitted(self)
        points = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return self._map(points, self.target_, self.target_potential_)

    def inverse_transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Map points from the side of the targets to that of the samples.

        Parameters
        ----------
        X : (k, n_features) array_like
            Any points, targets or not.

        Returns
        -------
        (k, n_features) array
            Their images, in the convex hull of the samples. It is the map of transport in the other direction, and inverts
            `transform` only as far as `reg` is small. O(k n_samples) time.
        """
        check_is_fitted(self)
        points = check_array(X, dtype=(np.float64, np.float32), input_name="X", estimator=self)
        if points.shape[1] != self.n_features_in_:
            msg = (
                f"X has {points.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} features as input"
            )
            raise ValueError(msg)
        return self._map(points, self.source_, self.source_potential_)

    def _targets(self, X: np.ndarray, y: Any) -> np.ndarray:  # noqa: N803
        """The points to go to, checked, in the dtype of the samples."""
        if isinstance(self.target, str):
            validate.choice(self.target, "target", REFERENCES)
            return _reference(self.target, *X.shape).astype(X.dtype)
        points, name = (y, "y") if self.target is None else (self.target, "target")
        if points is None or np.ndim(points) != 2:
            found = "None" if points is None else f"shape {np.shape(points)}"
            msg = (
                f"{name} must hold the targets, (m, {X.shape[1]}), got {found}: give them as fit(X, y), or as target=, "
                "which leaves y to labels"
            )
            raise ValueError(msg)
        target: np.ndarray = check_array(points, dtype=X.dtype, input_name=name, estimator=self)
        if target.shape[1] != X.shape[1]:
            msg = f"{name} must have the {X.shape[1]} features of X, got shape {target.shape}"
            raise ValueError(msg)
        return target

    def _map(self, points: np.ndarray, images: np.ndarray, potentials: np.ndarray) -> np.ndarray:
        """The entropic map from `points` to the hull of `images`."""
        weights = np.full(len(images), 1.0 / len(images))
        cloud = PointCloud(points, images, cost=self.metric)
        mapped: np.ndarray = entropic_map(cloud, potentials, weights, self.reg_, images.astype(np.float64))
        return mapped.astype(points.dtype, copy=False)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.target_tags.required = self.target is None
        return tags


def _reference(name: str, n: int, d: int) -> np.ndarray:
    """n points of the distribution, spread evenly by a Halton sequence, which must be scrambled in many dimensions."""
    points: np.ndarray = qmc.Halton(d, seed=np.random.default_rng(0)).random(n)
    return np.asarray(special.ndtri(points)) if name == "normal" else points


def _unit(cloud: PointCloud, norm: str | None) -> float:
    """The mean or the largest cost, 1 where that is 0; O(n + m) for the mean of squared distances, else a pass over all pairs."""
    if norm is None:
        return 1.0
    if norm == "max":
        unit = cloud.bounds[1]
    elif cloud.cost == "sqeuclidean":
        x, y = (np.asarray(points, dtype=np.float64) for points in (cloud.x, cloud.y))
        unit = float(np.sum(x.var(axis=0) + y.var(axis=0) + (x.mean(axis=0) - y.mean(axis=0)) ** 2))
    else:
        unit = math.fsum(float(np.sum(cloud.rows(*block))) for block in row_blocks(cloud.shape)) / math.prod(cloud.shape)
    return unit if unit > 0 else 1.0


__all__ = ["EntropicTransport"]
