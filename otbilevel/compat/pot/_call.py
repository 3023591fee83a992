"""From a call in POT's terms to one of `solve_ot`, and its messages back."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from otbilevel._core import validate
from otbilevel._core.array import Array, array_namespace, as_array, common_namespace, device
from otbilevel._core.result import ConvergenceError, ConvergenceWarning
from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.geometry import Geometry, check_matrix
from otbilevel.ot.result import OTResult
from otbilevel.ot.solve import solve_ot

if TYPE_CHECKING:
    from collections.abc import Iterator

FUNCTIONS = {"C": "M", "max_iter": "numItermax", "tol": "stopThr"}
"""What arguments of `solve_ot` are called in POT's older functions; `ot.solve` shares all names but that of the cost."""
SOLVE = {"C": "M"}
SAMPLES = {"C": "the cost", "M": "the cost", "x": "X_a", "y": "X_b"}


FUNCTIONS_HERE = (
    "sinkhorn",
    "sinkhorn2",
    "sinkhorn_unbalanced",
    "sinkhorn_unbalanced2",
    "emd",
    "emd2",
    "solve",
    "solve_sample",
    "dist",
    "unif",
)
"""What `otbilevel.compat.pot` stands in for, beside ``partial.entropic_partial_wasserstein``."""
HERE = {
    "barycenter": "otbilevel.ot.barycenter",
    "barycenter_debiased": "otbilevel.ot.barycenter(debias=True)",
    "convolutional_barycenter2d": "otbilevel.ot.barycenter",
    "free_support_barycenter": "otbilevel.ot.free_support_barycenter",
    "free_support_sinkhorn_barycenter": "otbilevel.ot.free_support_barycenter(reg=...)",
    "empirical_sinkhorn_divergence": "otbilevel.ot.sinkhorn_divergence",
    "solve_batch": "otbilevel.solve_ot_batch",
    "da": "otbilevel.compat.sklearn.EntropicTransport",
    "sinkhorn_log": 'sinkhorn(method="sinkhorn_log")',
    "sinkhorn_stabilized": 'sinkhorn(method="sinkhorn_stabilized")',
    "sinkhorn_knopp": "sinkhorn",
    "sinkhorn_knopp_unbalanced": "sinkhorn_unbalanced",
}
"""What other functions of POT have a counterpart for."""


def refuse_others(module: str) -> Callable[[str], NoReturn]:
    """The `__getattr__` of a module, which says where the rest of POT is."""

    def refuse(name: str) -> NoReturn:
        package = "otbilevel.compat.pot"
        other = f"{package}.{name}" if name in FUNCTIONS_HERE else HERE.get(name)
        known = ", ".join((*FUNCTIONS_HERE, "partial.entropic_partial_wasserstein"))
        rest = f"{package} stands in for {known}; the rest is in POT itself: `import ot as POT`"
        msg = f"{module} has no {name!r}: " + (f"{other} does that here" if other else rest)
        raise AttributeError(msg)

    return refuse


@contextmanager
def in_words_of(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors speak of the arguments that the user has written."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise type(error)(translate(str(error), names)) from None


def translate(message: str, names: Mapping[str, str]) -> str:
    """A message of `solve_ot` with the names of POT's arguments."""
    message = message.replace('method="exact"', "ot.emd").replace(' use method="sns",', "")
    return re.sub(rf"\b({'|'.join(names)})\b", lambda match: names[match[0]], message)


@dataclass(frozen=True, eq=False)
class Histograms:
    """The measures and the cost of a call, checked for library and shape; `solve_ot` checks the numbers.

    Attributes
    ----------
    a : (n,) array
        Weights of the sources.
    b : (m,) or (m, k) array
        Weights of the targets, of one histogram or of several.
    geometry : Geometry
        The cost.
    """

    a: Array
    b: Array
    geometry: Geometry

    @classmethod
    def of(cls, a: Any, b: Any, M: Any) -> Histograms:
        """Read weights and a cost matrix. Lists follow the library of the arrays among the arguments."""
        if hasattr(M, "tocoo") or "sparse" in str(getattr(M, "layout", "")):
            msg = "M is sparse, which is not supported here: use otbilevel.solve_ot, or a dense array with +inf in the gaps"
            raise TypeError(msg)
        like = next((x for x in (M, a, b) if x is not None and not isinstance(x, (list, tuple))), None)
        cost = as_array(_like(M, like), "M")
        check_matrix(cost, "M")
        return cls.on(DenseCost(cost), a, b)

    @classmethod
    def on(cls, geometry: Geometry, a: Any, b: Any) -> Histograms:
        """Read weights for a geometry."""
        like = next(iter(geometry.arrays.values()))
        weights = {name: _weights(w, name, size, like) for name, w, size in zip("ab", (a, b), geometry.shape, strict=True)}
        common_namespace({**weights, **geometry.arrays})
        a, b = weights["a"], weights["b"]
        if len(b.shape) not in (1, 2) or b.shape[0] != geometry.shape[1] or 0 in b.shape:
            m = geometry.shape[1]
            msg = f"b must have shape ({m},), or ({m}, k) for k histograms, as M has shape {geometry.shape}; got {tuple(b.shape)}"
            raise ValueError(msg)
        return cls(a, b, geometry)

    @property
    def xp(self) -> ModuleType:
        """Array namespace of all arrays."""
        return self.geometry.xp

    @property
    def several(self) -> bool:
        """Whether b holds several histograms."""
        return len(self.b.shape) == 2

    @property
    def columns(self) -> list[Array]:
        """The histograms in b."""
        return [self.b[:, k] for k in range(self.b.shape[1])] if self.several else [self.b]

    @property
    def mass(self) -> float:
        """Mass of a."""
        return mass_of(self.a)

    def scalar(self, value: float, like: Array) -> Any:
        """A number as POT returns it: of the arrays' library, on their device."""
        return self.xp.asarray(value, dtype=like.dtype, device=device(like))[()]


def _like(x: Any, like: Any) -> Any:
    """A list as an array of the library, device and dtype of `like`."""
    if not isinstance(x, (list, tuple)) or like is None or isinstance(like, np.ndarray):
        return x
    reference = as_array(like, "M")
    return array_namespace(reference).asarray(x, dtype=reference.dtype, device=device(reference))


def _weights(w: Any, name: str, size: int, like: Array) -> Array:
    """Weights as an array; None and an empty list are uniform, of mass 1."""
    if w is None or (getattr(w, "shape", None) != () and hasattr(w, "__len__") and len(w) == 0):
        return array_namespace(like).full((size,), 1.0 / size, dtype=like.dtype, device=device(like))
    return as_array(_like(w, like), name)


def run(
    given: Histograms,
    b: Array,
    *,
    names: Mapping[str, str],
    reg: float | None = None,
    max_iter: Any = None,
    tol: Any = None,
    init: tuple[Array, Array] | None = None,
    unbalanced: Any = None,
    warn: bool = True,
    verbose: bool = False,
    stacklevel: int = 4,
) -> OTResult:
    """Solve for one histogram: `reg=None` exactly. A solver that stops short warns in POT's terms, if `warn`."""
    with in_words_of(names):
        limit = None if max_iter is None else validate.integer(max_iter, "max_iter", low=1)
        options: dict[str, Any] = {"method": "exact"} if reg is None else {"reg": reg, "init": init, "unbalanced": unbalanced}
        if tol is not None:  # an error in units of the mass
            mass = given.mass if unbalanced is None else mean_mass(given.a, b)
            options["tol"] = validate.real(tol, "tol", low=0.0) / (mass if 0 < mass < math.inf else 1.0)  # else refused below
        show = bool(verbose) and reg is not None
        try:
            return solve_ot(given.a, b, given.geometry, max_iter=limit, progress=show, raise_on_failure=True, **options)
        except ConvergenceError as error:
            result: OTResult = error.result
    if warn:
        warnings.warn(translate(result.message, names), ConvergenceWarning, stacklevel=stacklevel)
    return result


def mass_of(w: Array) -> float:
    """The sum in double precision."""
    xp = array_namespace(w)
    return float(xp.sum(xp.astype(w, xp.float64)))


def mean_mass(a: Array, b: Array) -> float:
    """Of both sides: the unit of marginal errors where their masses differ."""
    return 0.5 * (mass_of(a) + mass_of(b))


def log_weights(w: Array) -> Array:
    """The logarithm in double precision, -inf for 0."""
    xp = array_namespace(w)
    w = xp.astype(w, xp.float64)
    return xp.where(w > 0, xp.log(xp.where(w > 0, w, xp.ones_like(w))), xp.full_like(w, -math.inf))


def log_scalings(result: OTResult, a: Array, b: Array) -> tuple[Array, Array]:
    """log u and log v of P = diag(u) exp(-M / reg) diag(v), in double precision; -inf where a weight is 0."""
    f, g = result._plan.double_potentials()
    return log_weights(a) + f / result.reg, log_weights(b) + g / result.reg


def potentials_of(start: Any, name: str, a: Array, b: Array, reg: float) -> tuple[Array, Array]:
    """What `init` of `solve_ot` takes, from log u and log v; where a weight is 0 they say nothing.

    Raises
    ------
    TypeError, ValueError
        When `start` is not a pair of vectors of the right length, finite where the weights are positive.
    """
    if not isinstance(start, (tuple, list)) or len(start) != 2:
        found = f"a {type(start).__name__} of length {len(start)}" if hasattr(start, "__len__") else type(start).__name__
        msg = f"{name} must be a pair of vectors, got {found}"
        raise TypeError(msg)
    xp = array_namespace(a)
    parts = []
    for k, weights in enumerate((a, b)):
        vector = as_array(_like(start[k], weights), f"{name}[{k}]")
        common_namespace({f"{name}[{k}]": vector, "M": weights})
        if vector.shape != weights.shape:
            msg = f"{name}[{k}] must have shape {tuple(weights.shape)}, got {tuple(vector.shape)}"
            raise ValueError(msg)
        used = weights > 0
        zeros, ones = (fill(weights, dtype=xp.float64) for fill in (xp.zeros_like, xp.ones_like))
        logs = xp.where(used, xp.astype(vector, xp.float64), zeros) - xp.log(xp.where(used, xp.astype(weights, xp.float64), ones))
        if not bool(xp.all(xp.isfinite(logs))):
            msg = f"{name}[{k}] must be finite wherever the weight is positive: leave {name} out to start afresh"
            raise ValueError(msg)
        parts.append(reg * logs)
    return parts[0], parts[1]


def exponential(logs: Array, dtype: Any) -> Array:
    """exp in `dtype`, inf where that overflows (without a warning)."""
    xp = array_namespace(logs)
    limit = math.log(float(xp.finfo(dtype).max))
    values = xp.exp(xp.where(logs < limit, logs, xp.zeros_like(logs)))
    return xp.astype(xp.where(logs < limit, values, xp.full_like(logs, math.inf)), dtype)
