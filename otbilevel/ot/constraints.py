"""Linear constraints on plans, as users state them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from otbilevel._core.array import Array, array_namespace, as_array, common_namespace, device
from otbilevel.ot.functionals import Dense, Functionals, LowRank, RowMeans


class PlanConstraint:
    """Linear constraints lb_k <= <D_k, P> <= ub_k on a transport plan P, for k = 0, ..., K - 1.

    Parameters
    ----------
    D : (K, n, m) or (n, m) array_like
        The matrices, finite, between all n sources and m targets; kept by reference. `separable` and `martingale` make constraints
        that need no such arrays.
    lb, ub : float or (K,) array_like
        Bounds, in the units of D times mass; equal ones for an equality, -inf and +inf for none.

    Attributes
    ----------
    size : int
        K.
    shape : tuple of int
        ``(n, m)``.

    Raises
    ------
    TypeError, ValueError
        When D is not an array of finite numbers of two or three dimensions, when a bound is NaN or has the wrong shape, when lb >
        ub, or when no value satisfies a bound.

    Notes
    -----
    The interface is that of `scipy.optimize.LinearConstraint`. A solve with K matrices D holds them in double precision, and takes
    O(K n m) for each multiplier step and O(K^2 n m) for each step of Newton's method.

    Examples
    --------
    At most half of the mass may stay where it is:

    >>> import numpy as np
    >>> from otbilevel import solve_ot
    >>> from otbilevel.ot import PlanConstraint
    >>> x = np.arange(4.0)
    >>> stays = PlanConstraint(np.eye(4), ub=0.5)
    >>> result = solve_ot(None, None, (x[:, None] - x) ** 2, reg=0.01, constraints=stays)
    >>> float(np.trace(result.plan).round(6)), bool(result.multipliers[0] < 0)
    (0.5, True)
    """

    def __init__(self, D: Any, lb: Any = -math.inf, ub: Any = math.inf) -> None:  # noqa: N803 -- the paper's name
        self.functionals: Functionals = D if isinstance(D, Functionals) else _dense(D)
        self.size, self.shape = self.functionals.size, self.functionals.shape
        like = next(iter(self.functionals.arrays.values()))
        self.lb, self.ub = (_bound(v, name, self.size, like) for v, name in ((lb, "lb"), (ub, "ub")))
        for k, (low, high) in enumerate(zip(map(float, self.lb), map(float, self.ub), strict=True)):
            if low > high:
                msg = f"lb must be <= ub, got lb[{k}] = {low:g} and ub[{k}] = {high:g}"
                raise ValueError(msg)
            if low == math.inf or high == -math.inf:
                msg = f"lb[{k}] = {low:g} and ub[{k}] = {high:g} leave no value: -inf as lb and +inf as ub stand for no bound"
                raise ValueError(msg)

    def __repr__(self) -> str:
        kind = {Dense: "dense", LowRank: "separable", RowMeans: "row means"}[type(self.functionals)]
        return f"PlanConstraint({self.size} x {self.shape}, {kind})"


def separable(u: Any, v: Any, lb: Any = -math.inf, ub: Any = math.inf) -> PlanConstraint:
    """Constraints lb_k <= <D_k, P> <= ub_k with D_k(i, j) = u_k(i) v_k(j), or a sum of few such terms.

    Parameters
    ----------
    u, v : (n,), (m,) or (K, n), (K, m) or (K, r, n), (K, r, m) array_like
        The factors; r terms are summed over.
    lb, ub : float or (K,) array_like
        Bounds, as in `PlanConstraint`.

    Returns
    -------
    PlanConstraint
        For ``solve_ot(..., constraints=)``. O(K r (n + m)) memory; no (K, n, m) array is formed.

    Raises
    ------
    TypeError, ValueError
        As `PlanConstraint` does.

    Examples
    --------
    A prescribed covariance of source and target:

    >>> import numpy as np
    >>> from otbilevel import solve_ot
    >>> from otbilevel.ot import separable
    >>> x, y = np.linspace(-1, 1, 20), np.linspace(-2, 2, 30)
    >>> result = solve_ot(None, None, abs(x[:, None] - y), reg=0.05, constraints=separable(x, y, lb=0.3, ub=0.3))
    >>> round(float(x @ result.plan @ y), 6)
    0.3
    """
    factors = {"u": as_array(u, "u"), "v": as_array(v, "v")}
    xp = common_namespace(factors)
    shapes = tuple(tuple(w.shape) for w in factors.values())
    if not 1 <= len(shapes[0]) <= 3 or len(shapes[0]) != len(shapes[1]) or shapes[0][:-1] != shapes[1][:-1]:
        wanted = "(n,) and (m,), (K, n) and (K, m), or (K, r, n) and (K, r, m)"
        msg = f"u and v must have shapes {wanted}, got {shapes[0]} and {shapes[1]}"
        raise ValueError(msg)
    for name, w in factors.items():
        _require_finite(w, name)
    size = 1 if len(shapes[0]) == 1 else shapes[0][0]
    terms = shapes[0][1] if len(shapes[0]) == 3 else 1
    left, right = (xp.reshape(xp.astype(w, xp.float64), (size * terms, w.shape[-1])) for w in factors.values())
    identity = xp.eye(size, dtype=xp.float64, device=device(left))
    each = [(left[t : t + 1, :], identity[t // terms : t // terms + 1, :]) for t in range(size * terms)]
    offsets = xp.zeros((size, left.shape[1]), dtype=xp.float64, device=device(left))
    return PlanConstraint(LowRank(right, tuple(w for w, _ in each), tuple(w for _, w in each), offsets), lb, ub)


def martingale(x: Any, y: Any, groups: Any = None) -> PlanConstraint:
    """The plan is a martingale: the mass of source x_i goes to targets y_j whose mean is x_i.

    Parameters
    ----------
    x, y : (n,), (m,) or (n, d), (m, d) array_like
        Source and target points.
    groups : (n,) array_like of int, or (n, p) array_like, optional
        For fewer constraints: labels of groups of sources, for each of which only the mean over the group is kept; or p test
        functions h at the sources, for each of which sum_ij P_ij h(x_i) (y_j - x_i) = 0.

    Returns
    -------
    PlanConstraint
        Equality constraints sum_j P_ij (y_j - x_i) = 0 for each source, n d of them in the order of the entries of x; with groups
        those of each label (in increasing order) or test function, one after the other, with its d coordinates.
        O((n + m) d) memory.

    Raises
    ------
    TypeError, ValueError
        When the shapes do not fit, or a number is not finite.

    Notes
    -----
    A martingale between a and b exists if and only if a precedes b in convex order (V. Strassen, 1965): the means agree,
    and b is spread out more. `solve_ot` says so when there is none.

    References
    ----------
    M. Beiglbock, P. Henry-Labordere, F. Penkner, Model-independent bounds for option prices: a mass transport approach,
    Finance and Stochastics 17, 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from otbilevel import solve_ot
    >>> from otbilevel.ot import martingale
    >>> x, y = np.linspace(-1, 1, 9), np.linspace(-2, 2, 17)
    >>> result = solve_ot(None, None, abs(x[:, None] - y), reg=0.1, constraints=martingale(x, y))
    >>> bool(abs(result.barycentric_map(y) - x).max() < 1e-8)
    True
    """
    points = {"x": as_array(x, "x"), "y": as_array(y, "y")}
    xp = common_namespace(points)
    for name, w in points.items():
        if len(w.shape) not in (1, 2) or 0 in w.shape:
            msg = f"{name} must have shape (number of points,) or (number of points, d), got {tuple(w.shape)}"
            raise ValueError(msg)
        _require_finite(w, name)
        points[name] = xp.astype(w if len(w.shape) == 2 else w[:, None], xp.float64)
    x_, y_ = points["x"], points["y"]
    if x_.shape[1] != y_.shape[1]:
        msg = f"x and y must have points of one dimension, got shapes {tuple(x_.shape)} and {tuple(y_.shape)}"
        raise ValueError(msg)
    centre = xp.mean(y_, axis=0)  # differences are then of numbers of their own size
    x_, y_ = x_ - centre, y_ - centre
    if groups is None:
        return PlanConstraint(RowMeans(x_, y_), 0.0, 0.0)
    tests, names = _test_functions(groups, x_)
    return PlanConstraint(_tested_means(x_, y_, tests, names), 0.0, 0.0)


def _test_functions(groups: Any, x: Array) -> tuple[Array, list[str]]:
    """Test functions (p, n) with names: the indicators of the groups, or what was given."""
    xp, n = array_namespace(x), x.shape[0]
    given = as_array(groups, "groups")
    common_namespace({"groups": given, "x": x})
    _require_finite(given, "groups")
    given = xp.astype(given, xp.float64)
    if len(given.shape) == 2 and given.shape[0] == n and given.shape[1] > 0:
        return given.T, [f"test function {p}" for p in range(given.shape[1])]
    if tuple(given.shape) != (n,) or not bool(xp.all(given == xp.round(given))):
        msg = (
            f"groups must be integer labels of shape ({n},) or test functions of shape ({n}, p), "
            f"got {'other numbers' if tuple(given.shape) == (n,) else f'shape {tuple(given.shape)}'}"
        )
        raise ValueError(msg)
    labels = xp.unique_values(given)
    tests = xp.astype(given[None, :] == labels[:, None], xp.float64)
    return tests, [f"group {int(labels[p])}" for p in range(labels.shape[0])]


def _tested_means(x: Array, y: Array, tests: Array, names: list[str]) -> LowRank:
    """sum_ij P_ij h_p(x_i) (y_jc - x_ic) for all p and c: one feature y_c for each coordinate."""
    xp, (p, n), d = array_namespace(x), tests.shape, x.shape[1]
    identity = xp.eye(p * d, dtype=xp.float64, device=device(x))
    owners = tuple(xp.reshape(identity, (p, d, p * d))[:, c, :] for c in range(d))
    offsets = xp.reshape(-tests[:, None, :] * x.T[None, :, :], (p * d, n))
    labels = tuple(name + (f", coordinate {c}" if d > 1 else "") for name in names for c in range(d))
    return LowRank(y.T, (tests,) * d, owners, offsets, labels)


def _dense(D: Any) -> Dense:  # noqa: N803
    matrices = as_array(D, "D")
    if len(matrices.shape) not in (2, 3) or 0 in matrices.shape[-2:]:
        msg = f"D must have shape (K, n, m) or (n, m), got {tuple(matrices.shape)}"
        raise ValueError(msg)
    if 0 not in matrices.shape:
        _require_finite(matrices, "D")
    return Dense(matrices if len(matrices.shape) == 3 else matrices[None, :, :])


def _bound(value: Any, name: str, size: int, like: Array) -> Array:
    """`value` as a (size,) array of the library of `like`."""
    xp = array_namespace(like)
    given = as_array(value, name)
    if isinstance(given, np.ndarray) and not (isinstance(value, np.ndarray) and value.shape):  # a number or a list fits any library
        given = xp.asarray(given.tolist(), dtype=xp.float64, device=device(like))
    common_namespace({name: given, "D": like})
    if tuple(given.shape) not in ((), (size,)):
        msg = f"{name} must be a number or have shape ({size},), got {tuple(given.shape)}"
        raise ValueError(msg)
    bound = xp.broadcast_to(xp.astype(given, xp.float64), (size,))
    if bool(xp.any(xp.isnan(bound))):
        msg = f"{name} holds NaN: for no bound it is {'-' if name == 'lb' else '+'}inf"
        raise ValueError(msg)
    return bound


def _require_finite(values: Array, name: str) -> None:
    xp = array_namespace(values)
    bad = xp.reshape(~xp.isfinite(values), (-1,))
    if bool(xp.any(bad)):
        first = int(xp.argmax(xp.astype(bad, xp.int64)))
        index = []
        for length in reversed(values.shape):
            first, position = divmod(first, length)
            index.append(position)
        msg = f"{name} must be finite, but {name}{index[::-1]} is {float(values[tuple(index[::-1])])!r}"
        raise ValueError(msg)


def as_constraints(given: Any) -> tuple[PlanConstraint, ...]:
    """One constraint or a sequence of them as a tuple.

    Raises
    ------
    TypeError
        For anything else.
    """
    if isinstance(given, PlanConstraint):
        return (given,)
    if isinstance(given, (list, tuple)) and all(isinstance(one, PlanConstraint) for one in given):
        return tuple(given)
    found = type(given).__name__
    if isinstance(given, (list, tuple)):
        found = f"a {found} that holds {next(type(one).__name__ for one in given if not isinstance(one, PlanConstraint))}"
    msg = f"constraints must be a PlanConstraint or a list of them (see also martingale and separable), got {found}"
    raise TypeError(msg)
