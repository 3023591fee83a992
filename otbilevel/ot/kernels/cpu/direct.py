"""A direct solution on an active set of few pairs, not many more than a forest has, as at extreme regularisation.

There ties between clusters may be weaker than rounding, and conjugate gradients take thousands of steps. The Laplacian
L = diag(degree) - P' P with P = diag(sqrt(weights)) K diag(columns) is the Schur complement of

    ( I   P            )
    ( P'  diag(degree) ),

whose factors have few entries when the pairs are few.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

SHIFT = 1e-14
"""Lifts clusters without ties to others, relative to the degree: they get a step that is too long, and will be clipped."""


def solve(plan: Any, weights: np.ndarray, columns: np.ndarray, degree: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """L x = b with one step of iterative refinement; None when a factor breaks down."""
    (indptr, indices, _, (n, m)), values = plan
    kernel = sparse.csr_array((values.astype(np.float64), indices, indptr), shape=(n, m))
    p = sparse.diags_array(np.sqrt(weights)) @ kernel @ sparse.diags_array(columns)
    whole = sparse.block_array([[sparse.eye_array(n), p], [p.T, sparse.diags_array((1.0 + SHIFT) * degree)]], format="csc")
    try:
        factors = splu(whole, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    except (RuntimeError, MemoryError):  # exactly singular; too many entries after all
        return None
    x = np.zeros(m)
    for _ in range(2):
        residual = b - (degree * x - p.T @ (p @ x))
        x += factors.solve(np.concatenate([np.zeros(n), residual]))[n:]
    return x if np.isfinite(x).all() else None
