"""Two levels of a bilevel problem whose functions are closures over tensors, as functions of flat vectors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from otbilevel._core import validate
from otbilevel.bilevel.constraints import CoupledConstraint
from otbilevel.bilevel.projection import ConvexSet
from otbilevel.pytorch.hypergradient import leaves, unflatten, zeros_for
from otbilevel.pytorch.objective import require_scalar

EACH = 64
"""Rows of a constraint up to which each is scaled to length one; beyond, all of them by one factor."""

SAMPLES, SPREAD = 4, 0.1
"""Points around the start at which lengths are measured, too, and their distance relative to the size of the start."""

NOISE = 100.0
"""Multiple of the precision of a row's values up to which its slope is taken for rounding."""

GRAPH = "compute it when it is called, from hparams and params themselves: no detach(), .data, item() or torch.no_grad()"

Loss = Callable[..., Tensor]


class Levels:
    """x and y, flat, which live in lists of tensors; constraints, scaled to length one; bounds.

    Attributes are replaced, and never changed in place: a shallow copy can be worked with, and be thrown away.

    Parameters
    ----------
    hparams, params : iterable of Tensor
        As given by a user.
    constraints : CoupledConstraint or sequence of these
        With closures.
    bounds : pair of (pair of float or None)
        Of x and of y.
    projection : callable or None
        The user's.
    tol : float or None
        Violation that the projection leaves.

    Attributes
    ----------
    n : int
        Entries of x.
    seed : int
        Of what losses draw.
    scale, equality : (l,) Tensor
        Factors of the rows, and which are equations.
    counts : list of int
        Rows of every constraint.
    dual : (l,) Tensor
        Multipliers of the last projection: the next one starts there.
    """

    def __init__(
        self,
        hparams: Iterable[Tensor],
        params: Iterable[Tensor],
        constraints: Any,
        bounds: tuple[Any, Any],
        projection: Callable[[], Any] | None,
        tol: float | None,
    ) -> None:
        x, y = leaves(hparams, "hparams"), leaves(params, "params")
        self._all, self._split, self.n, self.seed = [*x, *y], len(x), sum(t.numel() for t in x), 0
        if len({id(t) for t in self._all}) < len(self._all):
            msg = "a tensor is among hparams and among params: it belongs to one level"
            raise ValueError(msg)
        kinds = {(t.dtype, t.device) for t in self._all}
        if len(kinds) > 1:
            msg = f"hparams and params must have one dtype and be on one device, got {sorted(str(kind) for kind in kinds)}"
            raise ValueError(msg)
        self._constraints, self._user = _listed(constraints), projection
        (self.low_x, self.high_x), (self.low_y, self.high_y) = (
            _pair(pair, name) for pair, name in zip(bounds, ("bounds_x", "bounds_y"), strict=True)
        )
        self._tol = None if tol is None else validate.real(tol, "tol", low=0.0, strict=True)
        self.equality, self.scale, self.counts = torch.zeros(0, dtype=torch.bool), torch.zeros(0), list[int]()
        self.dual = torch.zeros(0)

    def read(self) -> Tensor:
        """(x, y), a copy."""
        return torch.cat([t.detach().reshape(-1) for t in self._all])

    def write(self, w: Tensor) -> None:
        """Into the user's tensors."""
        with torch.no_grad():
            for tensor, part in zip(self._all, unflatten(w, self._all), strict=True):
                tensor.copy_(part)

    def slope(
        self, function: Loss, name: str, w: Tensor, batch: tuple[Any, ...], *, lam: Tensor | None = None, wrt: str = "both"
    ) -> tuple[float, Tensor, Tensor]:
        """At w: a loss (plus lam' rows), its gradient in x, in y or in both, flat, and the rows; what it draws is up to `seed`."""
        self.write(w)
        cuda = [w.device] if w.device.type == "cuda" else []
        with torch.random.fork_rng(cuda), torch.enable_grad():
            torch.default_generator.manual_seed(self.seed)  # torch.manual_seed takes a millisecond
            if cuda:
                torch.cuda.manual_seed(self.seed)
            value, rows = require_scalar(function(*batch), name), self._rows() if lam is not None and len(lam) else w[:0]
            total = value if lam is None or not len(lam) else value + (lam @ rows).to(value)
            wanted = {"both": self._all, "x": self._all[: self._split], "y": self._all[self._split :]}[wrt]
            found = torch.autograd.grad(total, wanted, allow_unused=True) if total.requires_grad else [None] * len(wanted)
        if wrt == "both" and all(part is None for part in found):
            msg = f"{name} returned a tensor without a graph that leads to hparams or params: {GRAPH}"
            raise ValueError(msg)
        number, gradient = float(total.detach()), torch.cat([part.reshape(-1) for part in zeros_for(found, wanted)])
        if not (math.isfinite(number) and bool(torch.isfinite(gradient).all())):
            self._check(rows)
            which = "its gradient or that of a constraint" if len(rows) else "its gradient"
            msg = f"{name} is {number}, or {which} is not finite: give smaller steps alpha and eta, or look at the batch"
            raise FloatingPointError(msg)
        return number, gradient, rows.detach()

    def linearise(self, w: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The rows at w, and products with their transposed Jacobian."""
        self.write(w)
        with torch.enable_grad():
            rows = self._rows()

        def pullback(lam: Tensor) -> Tensor:
            found = torch.autograd.grad(rows, self._all, lam, retain_graph=True, allow_unused=True)
            return torch.cat([part.reshape(-1) for part in zeros_for(found, self._all)])

        return rows.detach(), pullback

    def violation(self, w: Tensor) -> float:
        """The largest one, in the units of the functions."""
        if not self._constraints:
            return 0.0
        self.write(w)
        with torch.no_grad():
            rows = self._rows() / self.scale
        self._check(rows)
        return float(torch.cat([rows.new_zeros(1), torch.where(self.equality, rows.abs(), rows)]).max())

    def project(self, w: Tensor) -> Tensor:
        """The nearest point of C."""
        if self._user is not None:
            self.write(w)
            with torch.no_grad():
                self._user()
            found = self.read()
            if bool(torch.isfinite(w).all()) and not bool(torch.isfinite(found).all()):
                msg = "projection() left numbers in hparams or params that are not finite, of a point that was"
                raise FloatingPointError(msg)
            return found
        if not len(self.scale):
            return self._clip(w)
        low, high = (
            torch.cat([torch.full_like(w[: self.n], one), torch.full_like(w[self.n :], two)])
            for one, two in ((self.low_x, self.low_y), (self.high_x, self.high_y))
        )
        w, self.dual = ConvexSet(self.linearise, self.equality, low, high, self._tol).nearest(w, self.dual)
        return w

    def count(self) -> None:
        """Ask constraints for their rows, where the user's tensors are."""
        with torch.no_grad():
            self.counts = [len(_vector(c, k)) for k, c in enumerate(self._constraints)]
        kinds = [c.kind == "eq" for c, count in zip(self._constraints, self.counts, strict=True) for _ in range(count)]
        device = self._all[0].device
        self.equality = torch.tensor(kinds, dtype=torch.bool, device=device)
        self.scale, self.dual = (fill(len(kinds), dtype=self._all[0].dtype, device=device) for fill in (torch.ones, torch.zeros))

    def measure(self, w: Tensor) -> None:
        """Count the rows, and scale them by the medians of their lengths at w and around it: at w alone one may vanish."""
        self.write(w)
        self.count()
        if not len(self.scale):
            return
        generator, size = torch.Generator().manual_seed(0), max(1.0, float(w.norm()))
        rows, lengths = self._lengths(w, generator)
        self._check(rows)
        found, distance = [lengths], SPREAD * size
        for _ in range(SAMPLES):
            way = torch.randn(len(w), generator=generator, dtype=w.dtype).to(w)
            try:
                lengths = self._lengths(self._clip(w + distance / way.norm() * way), generator)[1]
            except (ArithmeticError, ValueError, torch.linalg.LinAlgError):
                lengths = torch.full_like(rows, math.nan)
            if bool(torch.isfinite(lengths).all()):
                found.append(lengths)
            else:  # far from the start functions need not be defined
                distance *= 0.5
        middle = torch.median(torch.stack(found), dim=0).values
        rounding = NOISE * torch.finfo(w.dtype).eps * rows.abs() / size
        self.scale = torch.where((middle > rounding) & torch.isfinite(middle), 1.0 / middle, torch.ones_like(middle))

    def _clip(self, w: Tensor) -> Tensor:
        """To the bounds."""
        return torch.cat([w[: self.n].clamp(self.low_x, self.high_x), w[self.n :].clamp(self.low_y, self.high_y)])

    def _lengths(self, w: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The rows at w, and the norms of their derivatives; of many rows of a constraint one for all of them."""
        rows, pullback = self.linearise(w)
        lengths = []
        for first, count in zip(itertools.accumulate([0, *self.counts[:-1]]), self.counts, strict=False):
            if count <= EACH:
                units = rows.new_zeros(count, len(rows))
                units[:, first : first + count] = torch.eye(count)
                lengths += [pullback(unit).norm().reshape(1) for unit in units]
            else:  # of random signs the squared length is that of all rows together in the mean
                signs = torch.zeros_like(rows)
                signs[first : first + count] = (2.0 * torch.randint(2, (count,), generator=generator) - 1.0).to(rows)
                lengths.append((pullback(signs).norm() / math.sqrt(count)).expand(count))
        return rows, torch.cat(lengths)

    def _rows(self) -> Tensor:
        """All rows, scaled, with their graph, of what is in the user's tensors."""
        found = [_vector(c, k) for k, c in enumerate(self._constraints)]
        for k, (values, count) in enumerate(zip(found, self.counts, strict=True)):
            if len(values) != count:
                msg = f"fun of constraints[{k}] returned {len(values)} rows, and {count} before: multipliers belong to rows"
                raise ValueError(msg)
            if torch.is_grad_enabled() and count and not values.requires_grad:
                msg = f"fun of constraints[{k}] returned a tensor without a graph: {GRAPH}"
                raise ValueError(msg)
        return torch.cat(found) * self.scale

    def _check(self, rows: Tensor) -> None:
        """Refuse rows that are not finite, by the name of their constraint."""
        if bool(torch.isfinite(rows).all()):
            return
        for k, part in enumerate(torch.split(rows, self.counts)):
            if not bool(torch.isfinite(part).all()):
                msg = f"fun of constraints[{k}] is not finite: give smaller steps alpha and eta, or look at where it is defined"
                raise FloatingPointError(msg)


def _listed(constraints: Any) -> list[CoupledConstraint]:
    found = [constraints] if isinstance(constraints, CoupledConstraint) else list(constraints)
    for k, one in enumerate(found):
        if not isinstance(one, CoupledConstraint):
            msg = f"constraints[{k}] must be a CoupledConstraint, got {type(one).__name__}"
            raise TypeError(msg)
        if one.jac is not None or one.vjp is not None:
            msg = f"constraints[{k}] has jac or vjp: leave them out, derivatives come by automatic differentiation"
            raise ValueError(msg)
    return found


def _pair(bounds: Any, name: str) -> tuple[float, float]:
    low, high = (-math.inf, math.inf) if bounds is None else bounds
    if not float(low) <= float(high):
        msg = f"{name} must be (low, high) with low <= high, got {bounds!r}"
        raise ValueError(msg)
    return float(low), float(high)


def _vector(constraint: CoupledConstraint, k: int) -> Tensor:
    closure: Any = constraint.fun  # without arguments here
    values = closure()
    if not isinstance(values, Tensor) or values.dim() != 1:
        found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        msg = f"fun of constraints[{k}] must return a vector (l,), got {found}"
        raise ValueError(msg)
    return values
