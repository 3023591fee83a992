"""Curvature operators of models: Hessian, Gauss-Newton, Fisher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otbilevel._core import validate
from otbilevel._core.array import Array
from otbilevel.linalg.operators import SymmetricOperator
from otbilevel.pytorch.likelihoods import drawn_derivatives, reduction_of, true_derivatives
from otbilevel.pytorch.products import HESSIANS, Objective, Params, fisher, gauss_newton, gradient


@dataclass(frozen=True)
class Batch:
    """Inputs, targets, the factor of their product in the sum over batches, and the seed of targets that are drawn."""

    inputs: Any
    targets: Any
    share: float
    seed: int


@dataclass(frozen=True)
class Setting:
    """What a `ModelOperator` computes, and how: see `from_torch`."""

    kind: str
    way: str
    reduction: str
    microbatch: int | None
    samples: int


KINDS = ("hessian", "ggn", "fisher_mc", "empirical_fisher")
REPEATED = 1e-3
"""Relative difference of two gradients that rounding explains."""


class ModelOperator(SymmetricOperator):
    """A curvature matrix of a model at its present parameters. Made by `from_torch`.

    Vectors are flat, in the order of the parameters, each row-major; NumPy arrays and tensors are taken, and products are like
    them. Sums over batches have double precision.

    Parameters
    ----------
    objective : Objective
        Model, loss and parameters.
    batches : list of Batch
        Inputs and targets with their factors.
    setting : Setting
        The kind of matrix, and how products are computed.

    Attributes
    ----------
    kind : str
        Which matrix.
    names : list of str
        The parameters, by their first name in the model.
    way : str
        How Hessian-vector products are computed: ``"forward"``, ``"reverse"`` or ``"differences"``.
    parts : list of ModelOperator
        One operator a batch; their mean is this one.
    """

    def __init__(self, objective: Objective, batches: list[Batch] | Any, setting: Setting) -> None:
        self._objective, self._batches, self._setting = objective, batches, setting
        self.kind, self.way, self.names = setting.kind, setting.way, list(objective.params)
        self._ends = np.cumsum([p.numel() for p in objective.params.values()])
        device = next(iter(objective.params.values())).device
        like = np.zeros(0) if device.type == "cpu" else torch.zeros(0, dtype=torch.float64, device=device)
        super().__init__(int(self._ends[-1]), like, psd=setting.kind != "hessian")

    @property
    def parts(self) -> list[ModelOperator]:
        """One operator a batch, scaled so that their mean is this one."""
        batches = self._batches
        return [ModelOperator(self._objective, [replace(b, share=b.share * len(batches))], self._setting) for b in batches]

    def unflatten(self, x: Array) -> Params:
        """A flat vector as tensors like the parameters.

        Parameters
        ----------
        x : (n,) array or Tensor
            The vector.

        Returns
        -------
        dict of Tensor
            By name.
        """
        flat = x if isinstance(x, Tensor) else torch.from_numpy(np.require(x, requirements=["C", "W"]))
        parts, low = {}, 0
        for (name, p), high in zip(self._objective.params.items(), self._ends, strict=True):
            parts[name] = flat[low:high].reshape(p.shape).to(dtype=p.dtype, device=p.device)
            low = int(high)
        return parts

    def flatten(self, parts: Params) -> Tensor:
        """Tensors like the parameters as a flat vector in double precision.

        Parameters
        ----------
        parts : dict of Tensor
            By name.

        Returns
        -------
        (n,) Tensor
            The vector.
        """
        return torch.cat([parts[name].detach().reshape(-1).double() for name in self.names])

    @torch.no_grad()
    def _matvec(self, x: Array) -> Array:
        v, total = self.unflatten(x), None
        for batch in self._batches:
            draws = torch.Generator(next(iter(v.values())).device).manual_seed(batch.seed)
            for inputs, targets, part in _chunks(batch, self._setting):
                product = part * self.flatten(self._product(inputs, targets, v, draws))
                total = product if total is None else total.add_(product)
        assert total is not None
        if isinstance(x, Tensor):
            return total.to(dtype=x.dtype, device=x.device)
        return total.cpu().numpy().astype(x.dtype, copy=False)

    def _product(self, inputs: Any, targets: Any, v: Params, draws: torch.Generator) -> Params:
        objective, setting = self._objective, self._setting
        if setting.kind == "hessian":
            return HESSIANS[setting.way](objective, inputs, targets, v)
        if setting.kind == "ggn":
            return gauss_newton(objective, inputs, targets, v)
        outputs = objective.outputs(objective.params, inputs)
        if setting.kind == "empirical_fisher":
            weights, axes = true_derivatives(objective.loss, outputs, targets, setting.reduction)
        else:
            weights, axes = drawn_derivatives(objective.loss, outputs, setting.reduction, setting.samples, draws)
        scale = weights.shape[0] * (outputs.shape[0] if setting.reduction == "mean" else 1)
        found = fisher(objective, inputs, weights, axes, v)
        return {name: value / scale for name, value in found.items()}


def _chunks(batch: Batch, setting: Setting) -> Iterator[tuple[Any, Any, float]]:
    """A batch in pieces of at most `microbatch` samples, with their factors."""
    count = _size(batch.inputs)
    width = setting.microbatch or count
    if width >= count:
        yield batch.inputs, batch.targets, batch.share
        return
    for low in range(0, count, width):
        piece = slice(low, min(low + width, count))
        part = (piece.stop - low) / count if setting.reduction == "mean" else 1.0
        yield _take(batch.inputs, piece), _take(batch.targets, piece), part * batch.share


def _size(inputs: Any) -> int:
    """Samples of a batch: the length of its first tensor."""
    first = (
        inputs[0] if isinstance(inputs, (tuple, list)) else next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
    )
    if not isinstance(first, Tensor) or first.dim() == 0:
        msg = f"the inputs of a batch must be tensors whose first axis counts samples, got {type(first).__name__}"
        raise TypeError(msg)
    return int(first.shape[0])


def _take(values: Any, piece: slice) -> Any:
    if isinstance(values, (tuple, list)):
        return type(values)(_take(one, piece) for one in values)
    if isinstance(values, Mapping):
        return {name: _take(one, piece) for name, one in values.items()}
    return values[piece]


def from_torch(
    model: torch.nn.Module,
    loss: Callable[[Any, Any], Tensor],
    params: Any = None,
    data: Iterable[tuple[Any, Any]] = (),
    *,
    kind: str = "hessian",
    hvp: str = "auto",
    reduction: str | None = None,
    microbatch: int | None = None,
    samples: int = 1,
    seed: int = 0,
    check: bool = True,
) -> ModelOperator:
    """Make the curvature operator of a model on data.

    Parameters
    ----------
    model : nn.Module
        The model, in the mode in which it is (``model.eval()`` for dropout and batch normalisation). It is not changed, nor are its
        buffers.
    loss : callable
        ``loss(model(inputs), targets)`` returns a scalar tensor.
    params : iterable of Tensor, optional
        Parameters of the model, in the order of the vectors; by default all that require gradients. A parameter that is used in
        several places counts once; one that is not used has zeros.
    data : iterable of (inputs, targets)
        Batches, gone through anew for every product. Several inputs are a tuple.
    kind : {"hessian", "ggn", "fisher_mc", "empirical_fisher"}
        The Hessian; the Gauss-Newton matrix; the Fisher matrix with targets drawn from the model, the same for every product; or
        with the targets of the data.
    hvp : {"auto", "forward", "reverse", "differences"}
        Hessian-vector products by forward over reverse differentiation, by reverse over reverse, or by differences of gradients;
        ``"auto"``: the first of these that the model's operations have.
    reduction : {"mean", "sum"}, optional
        How the loss reduces within a batch; by default what ``loss.reduction`` says, else "mean". Means are weighted by the sizes
        of the batches.
    microbatch : int, optional
        Samples that are differentiated at a time, to save memory.
    samples : int
        Draws of each target for ``"fisher_mc"``.
    seed : int
        Of these draws.
    check : bool
        Compute the first gradient twice, and refuse a model that does not repeat itself.

    Returns
    -------
    ModelOperator
        A symmetric operator, with ``@``, sums, `damp`, `restrict`, `to_scipy` and so on.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong, data or loss hold what is not finite, or the model is not deterministic; the message says what to
        do.

    Notes
    -----
    A Hessian-vector product costs some two to three gradients, one with the Gauss-Newton matrix about two. No graph is kept.

    References
    ----------
    B. A. Pearlmutter, Fast exact multiplication by the Hessian, 1994. N. Schraudolph, Fast curvature matrix-vector products, 2002.
    F. Kunstner, L. Balles, P. Hennig, Limitations of the empirical Fisher approximation, NeurIPS 2019.

    Examples
    --------
    >>> import torch
    >>> from otbilevel.pytorch import from_torch
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> x, y = torch.eye(2), torch.zeros(2, 1)
    >>> from_torch(model, torch.nn.MSELoss(), data=[(x, y)]).to_dense()
    array([[1., 0.],
           [0., 1.]])
    """
    setting = Setting(
        kind=validate.choice(kind, "kind", KINDS),
        way=validate.choice(hvp, "hvp", ("auto", *HESSIANS)),
        reduction=reduction_of(loss) if reduction is None else validate.choice(reduction, "reduction", ("mean", "sum")),
        microbatch=None if microbatch is None else validate.integer(microbatch, "microbatch", low=1),
        samples=validate.integer(samples, "samples", low=1),
    )
    if not isinstance(model, torch.nn.Module):
        msg = f"model must be a torch.nn.Module, got {type(model).__name__}"
        raise TypeError(msg)
    objective = Objective(model, loss, _named(model, params))
    batches = _read(data, setting, validate.integer(seed, "seed"))
    _look(objective, batches[0], repeat=validate.boolean(check, "check"))
    if setting.kind == "hessian" and setting.way == "auto":
        setting = replace(setting, way=_way(objective, batches[0]))
    return ModelOperator(objective, batches, setting)


def _named(model: torch.nn.Module, params: Any) -> Params:
    """The chosen parameters by their first name, detached."""
    names = {id(p): name for name, p in reversed(list(model.named_parameters(remove_duplicate=False)))}
    chosen = [p for p in model.parameters() if p.requires_grad] if params is None else list(params)
    if not chosen:
        msg = "the model has no trainable parameter: set requires_grad, or give params"
        raise ValueError(msg)
    found: Params = {}
    for k, p in enumerate(chosen):
        if id(p) not in names:
            msg = f"params[{k}] is no parameter of the model: take them from model.parameters()"
            raise ValueError(msg)
        if names[id(p)] in found:
            msg = f"params[{k}] is there twice ({names[id(p)]}): give every parameter once"
            raise ValueError(msg)
        if not p.dtype.is_floating_point:
            msg = f"params[{k}] ({names[id(p)]}) has dtype {p.dtype}: only floating point is differentiated"
            raise TypeError(msg)
        found[names[id(p)]] = p.detach()
    return found


def _read(data: Any, setting: Setting, seed: int) -> list[Batch]:
    """The batches with their factors."""
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor):
        data = [data]
    pairs = []
    for k, batch in enumerate(data):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            msg = f"data must hold pairs (inputs, targets), but item {k} is {type(batch).__name__}"
            raise TypeError(msg)
        pairs.append((batch[0], batch[1]))
    if not pairs:
        msg = "data is empty: give at least one batch (inputs, targets)"
        raise ValueError(msg)
    sizes = [_size(inputs) for inputs, _ in pairs]
    total = sum(sizes)
    return [
        Batch(inputs, targets, size / total if setting.reduction == "mean" else 1.0, seed + k)
        for k, ((inputs, targets), size) in enumerate(zip(pairs, sizes, strict=True))
    ]


@torch.no_grad()
def _look(objective: Objective, batch: Batch, *, repeat: bool) -> None:
    """One evaluation of the loss, and two of the gradient, to find out what is wrong early."""
    value = objective.value(objective.params, batch.inputs, batch.targets)
    if not isinstance(value, Tensor) or value.numel() != 1 or value.dim() > 0:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        msg = f'loss must return a scalar tensor, got {found}: reduce it, as with reduction="mean"'
        raise ValueError(msg)
    if not bool(torch.isfinite(value)):
        msg = f"the loss of the first batch is {float(value)}: look at the data and at the parameters"
        raise ValueError(msg)
    if not repeat:
        return
    first, second = (gradient(objective, batch.inputs, batch.targets) for _ in range(2))
    scale = max(float(g.abs().max()) for g in first.values())
    difference = max(float((g - second[name]).abs().max()) for name, g in first.items())
    if difference > REPEATED * scale:
        msg = (
            f"two gradients of one batch differ by {difference / scale:.2g} of their size: call model.eval() to switch dropout "
            "off, or fix what else is random (check=False lets it be)"
        )
        raise ValueError(msg)


@torch.no_grad()
def _way(objective: Objective, batch: Batch) -> str:
    """The first way to Hessian-vector products that the model's operations allow."""
    v = {name: torch.ones_like(p) for name, p in objective.params.items()}
    for way, product in HESSIANS.items():
        try:
            product(objective, batch.inputs, batch.targets, v)
        except (RuntimeError, NotImplementedError):
            continue
        return way
    msg = "no way to a Hessian-vector product works for this model: even its gradient fails"
    raise ValueError(msg)
