"""The Sinkhorn divergence as a loss for training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from otbilevel import ot
from otbilevel._core import validate
from otbilevel.ot import DivergenceResult, OTGradient, OTResult, sinkhorn_divergence
from otbilevel.pytorch.arrays import to_array
from otbilevel.pytorch.functions import Outputs, Solved, Value, apply
from otbilevel.pytorch.transport import balanced, completed

COSTS = {1: ("euclidean", 1.0), 2: ("sqeuclidean", 0.5)}
"""Name and factor of the cost |x - y|^p / p."""
NAMES = ("a", "b", "x", "y")


class SinkhornLoss(nn.Module):
    """The Sinkhorn divergence between two clouds of points, solved to convergence.

    Parameters
    ----------
    p : {1, 2}
        Exponent of the cost |x - y|^p / p.
    blur : float
        Length down to which details count: the regularisation is blur^p.
    reach : float, optional
        Length up to which mass is moved: marginals then have the price reach^p (``KL``), and masses may differ. By default they are
        fixed.
    debias : bool
        Whether to subtract half of both measures' transport to themselves; without, the loss is the value of entropic transport.
    potentials : bool
        Return the potentials of the loss, a tensor for each measure, in place of its value.
    tol : float, optional
        L1 error of the marginals relative to the mass, by default 1e-9, for lower precision than float64 1e-5.
    method, max_iter, options
        As in `otbilevel.solve_ot`.
    warm_start : bool
        Start from the potentials of the last call when shapes agree. It saves time where the points move little between calls. They
        are kept in `state`, which `reset` forgets; they are no part of the module's `state_dict`.

    Notes
    -----
    The module is called as ``loss(x, y)`` for uniform weights or ``loss(a, x, b, y)``, with x (n, d), y (m, d), a (n,), b (m,), or
    with a batch of B such problems, (B, n, d) and so on, which are solved one after the other. It returns a tensor of shape () or
    (B,).

    Definition, arguments and call follow geomloss's ``SamplesLoss("sinkhorn")``. What differs: the problem is solved to `tol`
    instead of a fixed number of steps, and there are no `scaling`, `diameter`, `truncate` and `backend`. With `reach` and
    ``debias=False`` the loss is the value of unbalanced transport; geomloss's is blur^p ((sum a + sum b)/2 - sum a sum b) more.

    The gradient needs no further solve (envelope theorem). Second derivatives, as of a gradient penalty, take one linear solve for
    each of the three problems; potentials have first derivatives in the same way. Nothing of the iterations is recorded.
    Tensors on the CPU are read where they are; on other devices generic kernels run, which is tested on no GPU.

    Examples
    --------
    >>> import torch
    >>> from otbilevel.pytorch import SinkhornLoss
    >>> x = torch.rand(50, 2, dtype=torch.float64, requires_grad=True)
    >>> loss = SinkhornLoss(blur=0.1)(x, x.detach() + 1.0)
    >>> loss.backward()
    >>> round(loss.item(), 6), [round(v, 6) for v in x.grad.sum(dim=0).tolist()]
    (1.0, [-1.0, -1.0])
    """

    def __init__(
        self,
        p: int = 2,
        blur: float = 0.05,
        reach: float | None = None,
        debias: bool = True,
        potentials: bool = False,
        *,
        tol: float | None = None,
        method: str = "auto",
        max_iter: int | None = None,
        options: Mapping[str, Any] | None = None,
        warm_start: bool = False,
    ) -> None:
        super().__init__()
        if p not in COSTS:
            hint = ": it comes first here, as there is no argument `loss`" if isinstance(p, str) else ""
            msg = f"p must be 1 or 2, got {p!r}{hint}"
            raise ValueError(msg)
        self.p, self.blur = int(p), validate.real(blur, "blur", low=0.0, strict=True)
        self.reach = None if reach is None else validate.real(reach, "reach", low=0.0, strict=True)
        self.debias = validate.boolean(debias, "debias")
        self.potentials = validate.boolean(potentials, "potentials")
        self.warm_start = validate.boolean(warm_start, "warm_start")
        self.settings = {"tol": tol, "method": method, "max_iter": max_iter, "options": options}
        self.state: list[DivergenceResult | OTResult] = []

    def reset(self) -> None:
        """Forget the potentials of the last call."""
        self.state = []

    def extra_repr(self) -> str:
        """The arguments, for the printout of the module."""
        reach = "" if self.reach is None else f"reach={self.reach:g}, "
        flags = f"debias={self.debias}, potentials={self.potentials}, warm_start={self.warm_start}"
        return f"p={self.p}, blur={self.blur:g}, {reach}{flags}"

    def forward(self, *args: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute the loss.

        Parameters
        ----------
        *args : Tensor
            ``x, y`` or ``a, x, b, y``.

        Returns
        -------
        Tensor or tuple of Tensor
            The loss, of shape () or (B,); with ``potentials=True`` one tensor per measure, of the shapes of a and b.
        """
        a, x, b, y = _arguments(args)
        if x.dim() == 2:
            found = self._solve(0, a, x, b, y)
            return found[0] if len(found) == 1 else (found[0], found[1])
        parts = [self._solve(k, _part(a, k), x[k], _part(b, k), y[k]) for k in range(x.shape[0])]
        stacked = [torch.stack(outputs) for outputs in zip(*parts, strict=True)]
        return stacked[0] if len(stacked) == 1 else (stacked[0], stacked[1])

    def _solve(self, index: int, a: Tensor | None, x: Tensor, b: Tensor | None, y: Tensor) -> tuple[Tensor, ...]:
        """The loss of one pair, or its potentials."""
        a, b = (balanced if self.reach is None else completed)(a, b, (x.shape[0], y.shape[0]))
        cost, factor = COSTS[self.p]
        inputs = (a, b, x, y)
        arrays = [None if v is None else to_array(v) for v in inputs]
        start = self._start(index, (x.shape[0], y.shape[0]))
        settings: dict[str, Any] = {**self.settings, "reg": self.blur**self.p / factor, "init": start}
        if self.reach is not None:
            settings["unbalanced"] = self.reach**self.p / factor
        solved: _Debiased | _Plain
        if self.debias:
            solved = _Debiased(sinkhorn_divergence(*arrays, cost=cost, **settings))
        else:
            cloud = ot.PointCloud(arrays[2], arrays[3], cost=cost)
            solved = _Plain(ot.solve_ot(arrays[0], arrays[1], cloud, **settings))
        if self.warm_start:
            self.state[index:] = [solved.result, *self.state[index + 1 :]]
        if not self.potentials:
            return (factor * apply(Value, solved, solved.value, NAMES, *inputs),)
        f, g = apply(Outputs, solved.pullback, solved.result.potentials, NAMES, *inputs)
        return factor * f, factor * g

    def _start(self, index: int, shape: tuple[int, int]) -> Any:
        if not self.warm_start or index >= len(self.state):
            return None
        last = self.state[index]
        return last if (last.f.shape[0], last.g.shape[0]) == shape else None


@dataclass(eq=False)
class _Debiased:
    """A divergence with its derivatives."""

    result: DivergenceResult

    @property
    def value(self) -> float:
        return self.result.value

    def gradient(self, wrt: Any) -> OTGradient:
        """Of the value."""
        return self.result.gradient(wrt)

    def hvp(self, *, wrt: Any, **direction: Any) -> OTGradient:
        """Of the value."""
        return self.result.hvp(wrt=wrt, **direction)

    def pullback(self, f: Any, g: Any, wrt: list[str]) -> OTGradient:
        """Of the potentials."""
        return self.result.vjp(f=f, g=g, wrt=wrt)


class _Plain(Solved):
    """A value of transport with its derivatives."""

    @property
    def value(self) -> float:
        return self.result.dual_value  # its error is quadratic in that of the marginals

    def pullback(self, f: Any, g: Any, wrt: list[str]) -> OTGradient:
        """Of the potentials."""
        return self.pull(("f", "g"), f, g, wrt=wrt)


def _arguments(args: tuple[Any, ...]) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor]:
    """The arguments as a, x, b, y, with agreeing shapes."""
    if len(args) not in (2, 4):
        msg = f"call the loss as loss(x, y) or loss(a, x, b, y), got {len(args)} arguments"
        raise TypeError(msg)
    for v in args:
        if not isinstance(v, Tensor):
            msg = f"the loss takes tensors, got {type(v).__name__}: for other arrays use otbilevel.ot.sinkhorn_divergence"
            raise TypeError(msg)
    a, x, b, y = args if len(args) == 4 else (None, args[0], None, args[1])
    if x.dim() not in (2, 3) or x.dim() != y.dim() or x.shape[:-2] != y.shape[:-2]:
        msg = f"x and y must have shapes (n, d) and (m, d), or (B, n, d) and (B, m, d), got {tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(msg)
    for name, w, points in (("a", a, x), ("b", b, y)):
        if w is not None and w.shape != points.shape[:-1]:
            msg = (
                f"{name} must have shape {tuple(points.shape[:-1])}, as its points have {tuple(points.shape)}; got {tuple(w.shape)}"
            )
            raise ValueError(msg)
    return a, x, b, y


def _part(v: Tensor | None, k: int) -> Tensor | None:
    return None if v is None else v[k]
