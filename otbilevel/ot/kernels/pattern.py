"""Some of all pairs, in CSR form: those of a sparse cost, or the few that carry the mass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class ActiveSet(NamedTuple):
    """Pairs (i, indices[k]) with costs values[k], for indptr[i] <= k < indptr[i + 1]."""

    indptr: np.ndarray
    indices: np.ndarray
    values: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def with_room(cls, counts: np.ndarray, m: int) -> ActiveSet:
        """For so many pairs in each row; which ones is not written yet."""
        indptr = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=indptr[1:])
        return cls(indptr, np.empty(indptr[-1], np.uint32), np.empty(indptr[-1]), (len(counts), m))

    @classmethod
    def of(cls, i: np.ndarray, j: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> ActiveSet:
        """Of pairs (i, j) that are given row by row."""
        indptr = np.zeros(shape[0] + 1, np.int64)
        np.cumsum(np.bincount(i, minlength=shape[0]), out=indptr[1:])
        return cls(indptr, j.astype(np.uint32), values, shape)


class ActivePlan(NamedTuple):
    """Entries of K on the pattern of an active set."""

    pattern: ActiveSet
    values: np.ndarray
