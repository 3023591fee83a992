"""What `solve` and `solve_sample` return, with the attributes of POT's `OTResult`."""

from __future__ import annotations

from copy import copy
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from otbilevel._core.array import Array
from otbilevel.compat.pot._call import Histograms, log_scalings, log_weights
from otbilevel.compat.pot._relaxed import Relaxed
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.result import OTResult as Solution


class LazyPlan:
    """A plan that computes the entries that are asked for, as POT's `LazyTensor` does.

    Parameters
    ----------
    geometry : Geometry
        The cost.
    log_u, log_v : (n,), (m,) arrays
        P_ij = exp(log_u_i + log_v_j - C_ij / reg).
    reg : float
        Regularisation.
    dtype
        Of the entries.

    Attributes
    ----------
    shape : tuple of int
        ``(n, m)``.
    ndim : int
        2.
    """

    ndim = 2

    def __init__(self, geometry: Geometry, log_u: Array, log_v: Array, reg: float, dtype: Any) -> None:
        self.geometry, self.log_u, self.log_v, self.reg, self.dtype = geometry, log_u, log_v, reg, dtype
        self.shape = geometry.shape

    def __getitem__(self, key: Any) -> Array:
        """The entries that ``plan[key]`` would give, for integers and slices."""
        key = key if isinstance(key, tuple) else (key,)
        if len(key) > 2 or not all(isinstance(part, (int, np.integer, slice)) for part in key):
            msg = f"a lazy plan takes at most two integers or slices, got {key!r}"
            raise TypeError(msg)
        rows, columns = key if len(key) == 2 else (key[0], slice(None))
        xp = self.geometry.xp
        i, j = (self._indices(part, size) for part, size in zip((rows, columns), self.shape, strict=True))
        if 0 in (i.shape[0], j.shape[0]):
            block = xp.zeros((i.shape[0], j.shape[0]), dtype=self.dtype, device=self.geometry.device)
        else:
            cost = self.geometry.restrict(i, j).rows(0, i.shape[0])
            block = xp.exp(xp.take(self.log_u, i)[:, None] + xp.take(self.log_v, j)[None, :] - cost / self.reg)
        block = xp.astype(block, self.dtype)
        block = block if isinstance(columns, slice) else block[:, 0]
        return block if isinstance(rows, slice) else block[0, ...]

    def _indices(self, part: Any, size: int) -> Array:
        if isinstance(part, slice):
            chosen = range(size)[part]
        else:
            if not -size <= part < size:
                msg = f"index {part} is out of range for an axis of {size} entries"
                raise IndexError(msg)
            chosen = [int(part) % size]  # type: ignore[assignment]
        xp = self.geometry.xp
        return xp.asarray(np.asarray(list(chosen), dtype=np.int64).tolist(), dtype=xp.int64, device=self.geometry.device)


class OTResult:
    """The attributes of POT's `OTResult`; the heavy ones are computed when they are first read.

    Parameters
    ----------
    solution : otbilevel.OTResult
        What `solve_ot` found.
    given : Histograms
        The problem.
    entropy : bool
        Whether `value` penalises sum P log P instead of sum P log(P / (a b^T)).
    log : dict
        What the solver tells.

    Attributes
    ----------
    result : otbilevel.OTResult
        What `solve_ot` found: potentials in units of the cost, certificates, and products with the plan that need no n x m
        array.
    log : dict
        That of `sinkhorn`, for unregularised transport that of `emd`; for a debiased value the three results, ``"res_ab"``,
        ``"res_aa"`` and ``"res_bb"``. (POT's `solve` gives none.)
    """

    value_quad = None

    def __init__(self, solution: Solution, given: Histograms, *, entropy: bool, log: dict[str, Any]) -> None:
        self.result, self.log = solution, log
        self._given, self._entropy = given, entropy
        self._against: tuple[OTResult, ...] = ()

    def __repr__(self) -> str:
        n, m = self._given.geometry.shape
        return f"OTResult(value={float(self.value)},value_linear={float(self.value_linear)},plan=(shape={(n, m)}))"

    def _debiased(self, against: tuple[OTResult, ...], log: dict[str, Any]) -> OTResult:
        """The same with the halved values of others taken off."""
        twin = copy(self)
        for name in ("value", "value_linear"):
            twin.__dict__.pop(name, None)
        twin.log, twin._against = log, against
        return twin

    @cached_property
    def potentials(self) -> tuple[Array, Array]:
        """Of unregularised transport the duals; else, as POT has them, log u and log v of P = diag(u) exp(-M / reg) diag(v).

        So they are divided by reg and hold the weights, and are -inf where a weight is 0; `result.f` and `result.g` are the
        potentials in units of the cost.
        """
        if self.result.reg == 0:
            return self.result.potentials
        dtype, xp = self.result.f.dtype, self._given.xp
        u, v = log_scalings(self.result, self._given.a, self._given.b)
        return xp.astype(u, dtype), xp.astype(v, dtype)

    @property
    def potential_a(self) -> Array:
        """The first of the potentials, (n,)."""
        return self.potentials[0]

    @property
    def potential_b(self) -> Array:
        """The second of the potentials, (m,)."""
        return self.potentials[1]

    @cached_property
    def value(self) -> Any:
        """The objective: <P, M>, plus reg sum P log(P / (a b^T)) or reg sum P log P as `reg_type` says."""
        value = self._objective() - 0.5 * sum(float(other.value) for other in self._against)
        return self._given.scalar(value, self.result.f)

    def _objective(self) -> float:
        result, given, xp = self.result, self._given, self._given.xp
        if result.reg == 0:
            return result.value
        sums = [xp.astype(side, xp.float64) for side in result.marginals]
        total = result.value + result.reg * (float(xp.sum(sums[0])) - given.mass**2)  # POT's divergence has no terms of mass
        if self._entropy:
            for side, weights in zip(sums, (given.a, given.b), strict=True):
                logs = log_weights(weights)
                total += result.reg * float(xp.sum(side * xp.where(weights > 0, logs, xp.zeros_like(logs))))
        return total

    @cached_property
    def value_linear(self) -> Any:
        """<P, M>."""
        value = self._linear() - 0.5 * sum(float(other.value_linear) for other in self._against)
        return self._given.scalar(value, self.result.f)

    def _linear(self) -> float:
        return self.result.value_linear

    @property
    def plan(self) -> Array:
        """The plan as an (n, m) array."""
        return self.result.plan

    @cached_property
    def sparse_plan(self) -> Any:
        """The plan in the library's CSR format, without entries that together hold less than min(tol, 1e-6) of the mass.

        For a library without such a format, that of SciPy. For tensors the full plan is formed first, and nothing is left out.
        """
        if hasattr(self.result.f, "to_sparse_csr"):
            return self.plan.to_sparse_csr()
        return sparse.csr_matrix(self.result.sparse_plan)

    @cached_property
    def lazy_plan(self) -> LazyPlan | None:
        """The plan as an object that computes the entries that are asked for; None for unregularised transport."""
        result, given = self.result, self._given
        if result.reg == 0:
            return None
        return LazyPlan(given.geometry, *log_scalings(result, given.a, given.b), result.reg, result.f.dtype)

    @property
    def marginals(self) -> tuple[Array, Array]:
        """Row and column sums of the plan."""
        return self.result.marginals

    @property
    def marginal_a(self) -> Array:
        """Row sums of the plan."""
        return self.marginals[0]

    @property
    def marginal_b(self) -> Array:
        """Column sums of the plan."""
        return self.marginals[1]

    @property
    def status(self) -> str:
        """``"Converged"``, or what a solver that stopped short says."""
        return "Converged" if self.result.success else self.result.message


class UnbalancedResult(OTResult):
    """The same where marginals have a price.

    Parameters
    ----------
    solution : otbilevel.OTResult
        What `solve_ot` found.
    relaxed : Relaxed
        The problem.
    masses : bool
        Whether the divergences in `value` have their terms of mass, as those of one of POT's two solvers.
    log : dict
        What the solver tells.
    """

    def __init__(self, solution: Solution, relaxed: Relaxed, *, masses: bool, log: dict[str, Any]) -> None:
        super().__init__(solution, relaxed.solved, entropy=False, log=log)
        self._relaxed, self._masses = relaxed, masses

    @cached_property
    def potentials(self) -> tuple[Array, Array]:
        """Log u and log v of P = diag(u) (R exp(-M / reg)) diag(v), where R is a b^T, 1 or c, what `reg_type` measures against."""
        dtype, xp = self.result.f.dtype, self._given.xp
        u, v = self._relaxed.log_scalings(self.result)
        return xp.astype(u, dtype), xp.astype(v, dtype)

    def _objective(self) -> float:
        return self._relaxed.total(self.result, masses=self._masses)

    def _linear(self) -> float:
        return self._relaxed.linear(self.result)


__all__ = ["LazyPlan", "OTResult"]
