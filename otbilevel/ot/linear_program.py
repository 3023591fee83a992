"""The linear program of unregularised transport, perhaps with more rows, by SciPy's HiGHS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import optimize, sparse

from otbilevel._core.monitor import Monitor
from otbilevel._core.result import Status

LARGEST_LIMIT = 2**31 - 1
"""The largest iteration limit that the solvers understand."""


class Vertex(NamedTuple):
    """An optimal vertex of the transport polytope with its potentials, and the multipliers of other constraints."""

    coupling: sparse.csr_array
    f: np.ndarray
    g: np.ndarray
    multipliers: np.ndarray
    nit: int
    status: Status
    message: str


@dataclass(frozen=True)
class Program:
    """Minimise <costs, (P, slack)> over P >= 0 with marginals a and b at the allowed pairs, with lower <= rows (P, slack) <= upper.

    Attributes
    ----------
    shape : tuple of int
        ``(n, m)``.
    i, j : (N,) arrays
        The allowed pairs.
    costs : (N + S,) array
        Of these, and of the slack variables >= 0.
    sums : (n + m,) array
        a and b, of exactly equal sums.
    rows : (K, N + S) sparse array
        Further rows.
    lower, upper : (K,) arrays
        Their bounds.
    """

    shape: tuple[int, int]
    i: np.ndarray
    j: np.ndarray
    costs: np.ndarray
    sums: np.ndarray
    rows: sparse.csr_array
    lower: np.ndarray
    upper: np.ndarray

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray, i: np.ndarray, j: np.ndarray, costs: np.ndarray) -> Program:
        """Transport alone."""
        none = np.zeros(0)
        sums = np.concatenate([a, b * (a.sum() / b.sum())])
        return cls((len(a), len(b)), i, j, costs, sums, sparse.csr_array((0, len(i))), none, none)


def solve_program(program: Program, monitor: Monitor) -> Vertex:
    """Solve by HiGHS; slack variables are left out of what it returns."""
    (n, m), i, j = program.shape, program.i, program.j
    pairs, width = np.arange(len(i)), len(program.costs)
    ends = (np.concatenate([i, n + j]), np.concatenate([pairs, pairs]))
    sums = sparse.csr_array((np.ones(2 * len(i)), ends), shape=(n + m, width))
    equal, above, below = program.lower == program.upper, np.isfinite(program.upper), np.isfinite(program.lower)
    above, below = above & ~equal, below & ~equal
    solution = optimize.linprog(
        program.costs,
        A_eq=sparse.vstack([sums, program.rows[equal]]).tocsr(),
        b_eq=np.concatenate([program.sums, program.lower[equal]]),
        A_ub=sparse.vstack([program.rows[above], -program.rows[below]]).tocsr() if above.any() or below.any() else None,
        b_ub=np.concatenate([program.upper[above], -program.lower[below]]) if above.any() or below.any() else None,
        method="highs",
        options={
            "maxiter": min(monitor.max_iter, LARGEST_LIMIT),
            "primal_feasibility_tolerance": 1e-10,
            "dual_feasibility_tolerance": 1e-10,
        },
    )
    statuses = {0: Status.SUCCESS, 1: Status.ITERATION_LIMIT, 2: Status.INFEASIBLE}
    status = statuses.get(solution.status, Status.NUMERICAL_FAILURE)
    multipliers = np.zeros(len(program.lower))
    if solution.x is None:  # it keeps its iterate to itself
        nothing = sparse.csr_array((n, m))
        return Vertex(nothing, np.zeros(n), np.zeros(m), multipliers, int(solution.nit), status, solution.message)
    duals = solution.eqlin.marginals
    multipliers[equal] = duals[n + m :]
    multipliers[above] += solution.ineqlin.marginals[: above.sum()]
    multipliers[below] -= solution.ineqlin.marginals[above.sum() :]
    coupling = sparse.csr_array((solution.x[: len(i)], (i, j)), shape=(n, m))
    coupling.eliminate_zeros()
    return Vertex(coupling, duals[:n], duals[n : n + m], multipliers, int(solution.nit), status, solution.message)
