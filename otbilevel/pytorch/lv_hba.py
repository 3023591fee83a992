"""LV-HBA for training loops: parameters in place, mini-batches, constraints by products with their derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otbilevel._core import validate
from otbilevel.bilevel.lipschitz import lipschitz, spectral_norm
from otbilevel.bilevel.lv_hba_step import GROWTH, Oracles, State, Steps, automatic, check_settings, step
from otbilevel.pytorch.levels import Levels, Loss

SMALL = 1e-8
"""A Lipschitz constant that is taken for zero."""


@dataclass(frozen=True)
class LVHBAStep:
    """What a step saw, in the units of the functions.

    Attributes
    ----------
    upper, lower : float
        F and f on the batch, before the step.
    gap : float
        An estimate of f - v on the batch, with the v of the present theta and multipliers: 0 where y is optimal and these have
        followed. A negative one means that theta lags behind y, and a small one does not mean optimal where f is flat.
    violation : float
        Largest violation of a constraint after the step.
    penalty : float
        c, which multiplies f - v.
    r : float
        Bound of the multipliers after the step, for constraints of length one.
    at_bound : bool
        Whether a multiplier has met its bound, and r was given: raise it.
    nit : int
        Steps made.
    """

    upper: float
    lower: float
    gap: float
    violation: float
    penalty: float
    r: float
    at_bound: bool
    nit: int


class LVHBA:
    """Minimise an upper loss where parameters minimise a lower loss under constraints that may couple both, step by step.

        min F(x, y)  s.t.  y in argmin_y { f(x, y) : g(x, y) <= 0 },   x in X, y in Y

    The single loop of the paper: no Hessian, no inner loop, three gradients and one projection a step.

    Parameters
    ----------
    upper, lower : callable
        ``upper(*batch)`` and ``lower(*batch)`` return scalar tensors, computed from `hparams` and `params` when they are called;
        ``batch`` is what `step` is given. Both see the same, and take of it what is theirs.
    hparams, params : iterable of Tensor
        x and y: leaf tensors that require gradients, of one dtype on one device. They are moved in place.
    constraints : CoupledConstraint or sequence of these
        With ``fun()``, which returns (l,), computed from `hparams` and `params`; no `jac` or `vjp`, which come by automatic
        differentiation. Jointly convex, or affine for ``kind="eq"``; not of a batch, as multipliers belong to rows.
    bounds_x, bounds_y : pair of float, optional
        Of all entries of `hparams`, and of `params`.
    projection : callable, optional
        ``projection()`` moves `hparams` and `params` in place to the nearest point that obeys constraints and bounds. By default
        augmented Lagrangians with Newton's method, which evaluates the constraints some 10 to 100 times where they are violated.
    alpha, beta, eta : float, optional
        Step sizes of (x, y), of the multipliers z, and of the saddle point; by default from Lipschitz constants that are estimated
        on the batch of the first step. As below, for F and f that are scaled to constants of one on it, and rows of length one.
    gamma1, gamma2 : float, optional
        Proximal parameters; by default 0.5, or 10 for a linear f.
    c0, p : float
        The penalty of step k is c0 (k + 1)^p, 0 <= p < 1/2. With a larger one y is nearer to lower optimality, and x moves slower.
    r : float, optional
        Bound of multipliers; by default 100, and ten times as much whenever a multiplier meets it.
    tol : float, optional
        Violation of a constraint, scaled to length one, that the default projection leaves; by default 1e-9, for single precision
        1e-5.

    Attributes
    ----------
    steps : Steps or None
        Step sizes and parameters in use; None before the first step.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong; the message names it.

    Notes
    -----
    What a batch draws, such as dropout, is the same in all evaluations of a step. A model with batch normalisation belongs into
    evaluation mode: its buffers would follow three different points.

    References
    ----------
    W. Yao, C. Yu, S. Zeng, J. Zhang, Constrained bi-level optimization: proximal Lagrangian value function approach and
    Hessian-free algorithm, ICLR 2024.

    Examples
    --------
    A ridge regression in a ball, whose radius the loss on other data chooses:

    >>> import torch
    >>> from otbilevel import CoupledConstraint
    >>> from otbilevel.pytorch import LVHBA
    >>> _ = torch.manual_seed(0)
    >>> x, y = torch.tensor([0.1], requires_grad=True), torch.zeros(3, requires_grad=True)
    >>> truth = torch.tensor([1.0, 2.0, -1.0])
    >>> A, B = torch.randn(50, 3), torch.randn(50, 3)
    >>> loss = lambda Z, noise: ((Z @ (y - truth) - noise) ** 2).mean()
    >>> ball = CoupledConstraint(lambda: y.square().sum()[None] - x)
    >>> optimizer = LVHBA(lambda: loss(A, 0.0), lambda: loss(B, 3.0), [x], [y], constraints=ball)
    >>> first = optimizer.step()
    >>> for _ in range(300):
    ...     last = optimizer.step()
    >>> last.upper < 0.3 * first.upper, last.violation < 1e-4
    (True, True)
    """

    def __init__(  # noqa: PLR0913 -- the settings of the paper
        self,
        upper: Loss,
        lower: Loss,
        hparams: Iterable[Tensor],
        params: Iterable[Tensor],
        *,
        constraints: Any = (),
        bounds_x: Any = None,
        bounds_y: Any = None,
        projection: Callable[[], Any] | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        eta: float | None = None,
        gamma1: float | None = None,
        gamma2: float | None = None,
        c0: float = 1.0,
        p: float = 0.3,
        r: float | None = None,
        tol: float | None = None,
    ) -> None:
        for function, name in ((upper, "upper"), (lower, "lower"), (projection, "projection")):
            if not callable(function) and (name != "projection" or function is not None):
                msg = f"{name} must be callable, got {type(function).__name__}"
                raise TypeError(msg)
        self._upper, self._lower = upper, lower
        self._levels = Levels(hparams, params, constraints, (bounds_x, bounds_y), projection, tol)
        self._given = {
            "alpha": alpha, "beta": beta, "eta": eta, "gamma1": gamma1, "gamma2": gamma2, "c0": c0, "p": p, "r": r
        }  # fmt: skip
        check_settings(self._given)
        self.steps: Steps | None = None
        self._factors = (1.0, 1.0)
        self._state: State | None = None

    @torch.inference_mode(mode=False)
    def step(self, *batch: Any) -> LVHBAStep:
        """Make one step of Algorithm 1.

        Parameters
        ----------
        *batch
            What `upper` and `lower` are called with.

        Returns
        -------
        LVHBAStep
            Figures of the step.

        Raises
        ------
        FloatingPointError
            When a function or its gradient is not finite.
        ValueError
            When a function does not return what it must, or the constraints have no point in common.

        Notes
        -----
        After any error, of functions of the user, too, all is as it was before the step, the random numbers included.
        """
        levels, before, drawn = copy(self._levels), self._levels.read(), torch.get_rng_state()
        try:
            levels.seed = int(torch.randint(2**62, ()))
            w, steps, factors, state = before, self.steps, self._factors, self._state
            if steps is None or state is None:
                w, steps, factors, state = self._start(levels, before, batch)
            old, seen = replace(state, x=w[: levels.n], y=w[levels.n :]), dict[str, float]()
            new = step(self._oracles(levels, factors, batch, seen), steps, old)
            after = torch.cat([new.x, new.y])
            if not bool(torch.isfinite(torch.cat([after, new.theta, new.lam, new.z])).all()):
                msg = "the new point is not finite: give smaller steps alpha and eta"
                raise FloatingPointError(msg)
            violation = levels.violation(after)
            levels.write(after)
        except BaseException:
            levels.write(before)
            torch.set_rng_state(drawn)
            raise
        met = bool(len(new.lam)) and float(new.lam.abs().max()) >= steps.r
        grown = replace(steps, r=GROWTH * steps.r) if met and self._given["r"] is None else steps
        self._levels, self.steps, self._factors, self._state = levels, grown, factors, new
        v = seen["lagrangian"] + float((new.theta - old.y).square().sum()) / (2 * steps.gamma1)
        v -= float((new.lam - old.z).square().sum()) / (2 * steps.gamma2)
        return LVHBAStep(
            upper=seen["upper"],
            lower=seen["lower"] / factors[1],
            gap=(seen["lower"] - v) / factors[1],
            violation=violation,
            penalty=steps.penalty(old.k),
            r=grown.r,
            at_bound=met and self._given["r"] is not None,
            nit=new.k,
        )

    @property
    def multipliers(self) -> list[Tensor]:
        """Those of the lower level's constraints, one tensor for each, in the units of the functions."""
        if self._state is None:
            return []
        return list(torch.split(self._state.lam * self._levels.scale / self._factors[1], self._levels.counts))

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on exactly, beside `hparams` and `params`, which are the model's to save."""
        if self._state is None or self.steps is None:
            return {}
        arrays = {name: getattr(self._state, name).clone() for name in ("z", "theta", "lam")}
        rest = {
            "k": self._state.k,
            "factors": list(self._factors),
            "scale": self._levels.scale.clone(),
            "dual": self._levels.dual.clone(),
        }
        return {**arrays, **rest, "steps": asdict(self.steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Parameters
        ----------
        state : mapping
            As saved; tensors may be on any device.

        Raises
        ------
        TypeError, ValueError
            When it is not of the same problem, or not finite; the message names the entry. All is as before then.
        """
        if not isinstance(state, Mapping):
            msg = f"state must be a mapping, as `state_dict` returned it, got {type(state).__name__}"
            raise TypeError(msg)
        if not state:
            self._state = self.steps = None
            return
        wanted = {"z", "theta", "lam", "k", "factors", "scale", "dual", "steps"}
        if set(state) != wanted:
            msg = f"state must have the entries {sorted(wanted)}, got {sorted(state)}"
            raise ValueError(msg)
        levels, w = copy(self._levels), self._levels.read()
        levels.count()
        x, y, rows = w[: levels.n], w[levels.n :], levels.scale
        z, theta, lam, scale, dual = (
            _like(y if name == "theta" else rows, state[name], name) for name in ("z", "theta", "lam", "scale", "dual")
        )
        if not bool((scale > 0).all()):
            msg = "state['scale'] must be positive"
            raise ValueError(msg)
        k, factors = validate.integer(state["k"], "state['k']"), _numbers(state["factors"], "factors", (0, 1))
        steps = Steps(**_numbers(state["steps"], "steps", [f.name for f in fields(Steps)]))
        levels.scale, levels.dual = scale, dual
        self._levels, self.steps, self._factors = levels, steps, (factors[0], factors[1])
        self._state = State(x, y, z, theta, lam, k)

    def _start(self, levels: Levels, w: Tensor, batch: tuple[Any, ...]) -> tuple[Tensor, Steps, tuple[float, float], State]:
        """Scale the functions, choose the steps, and go to the nearest point that obeys the constraints."""
        rng = np.random.default_rng(0)
        levels.measure(w)
        w = levels.project(w)
        slopes: list[Callable[[Tensor], Tensor]] = [
            lambda v: levels.slope(self._upper, "upper", v, batch)[1],
            lambda v: levels.slope(self._lower, "lower", v, batch)[1],
        ]
        if not bool(slopes[1](w)[levels.n :].any()):
            msg = "lower does not depend on params, or is flat there: it must be computed from them when it is called"
            raise ValueError(msg)
        sizes = [lipschitz(slope, w, rng) for slope in slopes]
        # As where a function has no curvature its gradient must be of length one.
        scales = [size if size > SMALL else float(slope(w).norm()) for size, slope in zip(sizes, slopes, strict=True)]

        def in_y(y: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            values, pullback = levels.linearise(torch.cat([w[: levels.n], y]))
            return values, lambda lam: pullback(lam)[levels.n :]

        rows = spectral_norm(in_y, w[levels.n :], rng) if len(levels.scale) else 0.0
        steps = automatic(float(sizes[0] > SMALL), float(sizes[1] > SMALL), rows, self._given)
        if not all(math.isfinite(size) for size in asdict(steps).values()):
            msg = "constraints are not finite near the start, and no measure for step sizes: give alpha, beta and eta"
            raise FloatingPointError(msg)
        none = torch.zeros_like(levels.scale)
        state = State(w[: levels.n], w[levels.n :], none, w[levels.n :], none, 0)
        return w, steps, (1.0 / max(scales[0], SMALL), 1.0 / max(scales[1], SMALL)), state

    def _oracles(self, levels: Levels, factors: tuple[float, float], batch: tuple[Any, ...], seen: dict[str, float]) -> Oracles:
        """Those of a batch; values that they meet are noted."""
        n, (of_upper, of_lower) = levels.n, factors

        def penalised(x: Tensor, y: Tensor, c: float) -> tuple[Tensor, Tensor]:
            w = torch.cat([x, y])
            seen["upper"], upper, _ = levels.slope(self._upper, "upper", w, batch)
            value, lower, _ = levels.slope(self._lower, "lower", w, batch)
            seen["lower"] = of_lower * value
            total = upper * (of_upper / c) + lower * of_lower
            return total[:n], total[n:]

        def lagrangian(x: Tensor, theta: Tensor, lam: Tensor, wrt: str) -> tuple[Tensor, Tensor]:
            value, gradient, rows = levels.slope(self._lower, "lower", torch.cat([x, theta]), batch, lam=lam / of_lower, wrt=wrt)
            seen["lagrangian"] = of_lower * value  # the last one counts: that at the new theta and lam
            return of_lower * gradient, rows

        def project(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            w = levels.project(torch.cat([x, y]))
            return w[:n], w[n:]

        return Oracles(
            penalised=penalised,
            lagrangian_x=lambda x, theta, lam: lagrangian(x, theta, lam, "x")[0],
            lagrangian_y=lambda x, theta, lam: lagrangian(x, theta, lam, "y"),
            equality=levels.equality,
            project=project,
            project_y=lambda y: y.clamp(levels.low_y, levels.high_y),
        )


def _like(wanted: Tensor, found: Any, name: str) -> Tensor:
    """A copy of a tensor of a saved state, if it is of the shape of another one and finite."""
    if not isinstance(found, Tensor):
        msg = f"state[{name!r}] must be a tensor, got {type(found).__name__}"
        raise TypeError(msg)
    if found.shape != wanted.shape:
        msg = f"state[{name!r}] must have shape {tuple(wanted.shape)}, got {tuple(found.shape)}: it is of another problem"
        raise ValueError(msg)
    copied = found.detach().to(wanted).clone()
    if not bool(torch.isfinite(copied).all()):
        msg = f"state[{name!r}] is not finite"
        raise ValueError(msg)
    return copied


def _numbers(found: Any, name: str, keys: Iterable[Any]) -> dict[Any, float]:
    """The positive numbers that an entry of a saved state has under these keys, if it has no others."""
    found = dict(enumerate(found)) if isinstance(found, (list, tuple)) else found
    if not isinstance(found, Mapping) or set(found) != set(keys):
        msg = f"state[{name!r}] must have the entries {list(keys)}, got {list(found) if isinstance(found, Mapping) else found!r}"
        raise ValueError(msg)
    return {
        key: validate.real(
            found[key], f"state[{name!r}][{key!r}]", low=0.0, strict=key != "p", below=0.5 if key == "p" else math.inf
        )
        for key in keys
    }
