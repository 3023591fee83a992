"""Strictly convex quadratic programs by non-negative least squares: small and dense, always solvable."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla
from scipy.optimize import nnls

ROOT = 1e4
"""Square root of the gamma_2 that regularises multipliers where the feasible set has no interior."""
SHARE = 1e-13
"""Of the target: a smaller last entry of the least-distance residual means that the rows contradict each other."""


@dataclass(frozen=True)
class QPSolution:
    """Minimiser, and the multipliers of all rows, those of inequalities >= 0.

    Attributes
    ----------
    d : (m,) ndarray
        The minimiser.
    multipliers : (k,) ndarray
        H d + q + A' multipliers = 0.
    feasible : bool
        Whether the rows admit a point; if not, multipliers are regularised, and `d` violates them by little.
    """

    d: np.ndarray
    multipliers: np.ndarray
    feasible: bool


def solve_qp(H: np.ndarray, q: np.ndarray, A: np.ndarray, b: np.ndarray, equality: np.ndarray) -> QPSolution:  # noqa: N803
    """Minimise d'Hd/2 + q'd subject to A d <= b, with equality where `equality` says so.

    Parameters
    ----------
    H : (m, m) ndarray
        Positive definite.
    q : (m,) ndarray
        Linear term.
    A : (k, m) ndarray
        Rows.
    b : (k,) ndarray
        Their bounds.
    equality : (k,) ndarray of bool
        Which rows are equalities.

    Returns
    -------
    QPSolution
        Minimiser and multipliers.

    Raises
    ------
    numpy.linalg.LinAlgError
        When H is not positive definite.

    Notes
    -----
    With H = L L' and z = L'd + L^-1 q this is the least distance |z| under rows, of which equalities are eliminated by a QR
    decomposition, and the rest is a non-negative least-squares problem.

    References
    ----------
    C. Lawson and R. Hanson, Solving Least Squares Problems, chapter 23, 1974.
    """
    L = np.linalg.cholesky(H)  # noqa: N806
    u = sla.solve_triangular(L, q, lower=True)
    if not len(b):
        return QPSolution(sla.solve_triangular(L.T, -u), np.zeros(0), feasible=True)
    B = sla.solve_triangular(L, A.T, lower=True)  # noqa: N806
    h = B.T @ u + b
    z, multipliers, feasible = _least_distance(B, h, equality)
    return QPSolution(sla.solve_triangular(L.T, z - u), multipliers, feasible)


def _least_distance(B: np.ndarray, h: np.ndarray, equality: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:  # noqa: N803
    """min |z|^2/2 s.t. B'z <= h, with equalities: z, multipliers with z + B multipliers = 0, and whether there is such a z."""
    multipliers, inequality = np.zeros(len(h)), ~equality
    z, basis, R = np.zeros(len(B)), np.zeros((len(B), 0)), None  # noqa: N806
    feasible = True
    if equality.any():
        Q, R, order = sla.qr(B[:, equality], mode="economic", pivoting=True)  # noqa: N806
        sizes = np.abs(np.diag(R))
        rank = int(np.sum(sizes > 1e-11 * max(sizes.max(initial=0.0), 1e-300)))
        basis, R = Q[:, :rank], R[:rank]  # noqa: N806
        wanted = h[equality][order]
        z = basis @ sla.solve_triangular(R[:, :rank], wanted[:rank], trans="T")
        feasible = bool(np.all(np.abs(R.T @ (basis.T @ z) - wanted) <= 1e-8 * (1.0 + np.abs(wanted).max())))
    if inequality.any():
        C = B[:, inequality] - basis @ (basis.T @ B[:, inequality])  # noqa: N806
        rest = h[inequality] - B[:, inequality].T @ z
        s, lam, possible = _inequalities(C, rest)
        z, feasible = z + s, feasible and possible
        multipliers[inequality] = lam
    if R is not None and R.size:
        forces = -(z + B[:, inequality] @ multipliers[inequality])
        found = np.zeros(R.shape[1])
        found[: len(R)] = sla.solve_triangular(R[:, : len(R)], basis.T @ forces)
        places = np.flatnonzero(equality)[order]
        multipliers[places] = found
    return z, multipliers, feasible


def _inequalities(C: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:  # noqa: N803
    """min |s|^2/2 s.t. C's <= h."""
    if h.min() >= 0:
        return np.zeros(len(C)), np.zeros(len(h)), True
    scale = max(float(np.abs(h).max()), 1e-300)  # keeps the last entry of the residual away from 0
    E = np.vstack([-C, -h[None] / scale])  # noqa: N806
    target = np.zeros(len(C) + 1)
    target[-1] = 1.0
    lam, _ = nnls(E, target, maxiter=50 * len(h) + 100)
    residual = E @ lam - target
    if residual[-1] < -SHARE:
        s = -residual[:-1] / residual[-1] * scale
        return s, lam / -residual[-1] * scale, True
    lam, _ = nnls(np.vstack([C, np.eye(len(h)) / ROOT]), np.concatenate([np.zeros(len(C)), -ROOT * h]), maxiter=100 * len(h) + 100)
    return -C @ lam, lam, False
