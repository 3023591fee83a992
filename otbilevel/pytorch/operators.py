"""Curvature operators of models: Hessian, Gauss-Newton, Fisher."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otbilevel._core import validate
from otbilevel._core.array import Array
from otbilevel.linalg.operators import SymmetricOperator
from otbilevel.pytorch import hessian
from otbilevel.pytorch.arrays import from_tensor, shared
from otbilevel.pytorch.batches import Batch, read
from otbilevel.pytorch.checks import choose, look
from otbilevel.pytorch.kinds import KINDS, Setting, product_of
from otbilevel.pytorch.likelihoods import is_convex, reduction_of
from otbilevel.pytorch.objective import Objective, Params, Product

MEMORY = 2**30
"""Bytes of graphs that an operator keeps by default."""


class ModelOperator(SymmetricOperator):
    """A curvature matrix of a model at the parameters that it had when the operator was made. Made by `from_torch`.

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
        How products are computed where no graph is kept: ``"reverse"``, ``"forward"`` or ``"differences"``.
    kept : float
        The part of the pieces of data whose graphs are kept, between 0 and 1.
    parts : list of ModelOperator
        One operator a batch; their mean is this one.
    """

    def __init__(
        self, objective: Objective, batches: list[Batch], setting: Setting, graphs: dict[tuple[int, int], Product] | None = None
    ) -> None:
        self._objective, self._batches, self._setting = objective, batches, setting
        self.kind, self.way, self.names = setting.kind, setting.way, list(objective.params)
        self._pieces = [
            ((batch.number, k), piece)
            for batch in batches
            for k, piece in enumerate(batch.pieces(setting.microbatch, mean=setting.mean))
        ]
        self.kept = min(1.0, setting.kept / len(self._pieces))
        self._graphs = {} if graphs is None else graphs
        self._ends = np.cumsum([p.numel() for p in objective.params.values()])
        like = np.zeros(0) if objective.device.type == "cpu" else torch.zeros(0, dtype=torch.float64, device=objective.device)
        rounding = max(torch.finfo(p.dtype).eps for p in objective.params.values())
        psd = (
            setting.kind.endswith("fisher") or setting.kind == "fisher_mc" or (setting.kind == "ggn" and is_convex(objective.loss))
        )
        super().__init__(int(self._ends[-1]), like, psd=psd, precision=max(rounding, float(torch.finfo(torch.float64).eps)))

    @property
    def parts(self) -> list[ModelOperator]:
        """One operator a batch, scaled so that their mean is this one; they share what graphs are kept."""
        count = len(self._batches)
        return [
            ModelOperator(self._objective, [replace(b, share=b.share * count)], self._setting, self._graphs) for b in self._batches
        ]

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
        flat = shared(x)
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

    def _matvec(self, x: Array) -> Array:
        return self._matmat(x[:, None])[:, 0]

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def _matmat(self, X: Array) -> Array:  # noqa: N803
        self._objective.require_unchanged()
        rows = shared(X).T.contiguous()
        columns = [self.unflatten(row) for row in rows]
        total = torch.zeros(rows.shape, dtype=torch.float64, device=self._objective.device)

        def add_up() -> None:
            for key, piece in self._pieces:
                product = self._product(key, piece)  # once for all columns
                for j, v in enumerate(columns):
                    total[j].add_(self.flatten(product(v)), alpha=piece.share)

        self._objective.run(self._objective.leaves(), add_up)
        return from_tensor(total.T, X)

    def _product(self, key: tuple[int, int], piece: Batch) -> Product:
        """That of a piece of data."""
        if key in self._graphs:
            return self._graphs[key]
        keep = len(self._graphs) < self._setting.kept
        product = product_of(self._objective, piece, replace(self._setting, way="reverse" if keep else self.way))
        if keep:
            self._graphs[key] = product
        return product


@torch.inference_mode(mode=False)
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
    memory: int = MEMORY,
    samples: int = 1,
    seed: int = 0,
    check: bool = True,
) -> ModelOperator:
    """Make the curvature operator of a model on data.

    Parameters
    ----------
    model : nn.Module
        The model, in the mode in which it is (``model.eval()`` for dropout and batch normalisation). It is not changed. The
        operator has copies of the chosen parameters and of the buffers: make another after a step of training.
    loss : callable
        ``loss(model(inputs), targets)`` returns a scalar tensor.
    params : iterable of Tensor, optional
        Parameters of the model, in the order of the vectors; by default all that require gradients. A parameter that is used in
        several places counts once; one that is not used has zeros.
    data : iterable of (inputs, targets)
        Batches, read once, or a single pair of tensors. Several inputs are a tuple. They are moved to where the parameters are for
        every product.
    kind : {"hessian", "ggn", "fisher_mc", "empirical_fisher"}
        The Hessian; the Gauss-Newton matrix; the Fisher matrix with targets drawn from the model, the same for every product; or
        with the targets of the data.
    hvp : {"auto", "reverse", "forward", "differences"}
        Products by reverse over reverse differentiation, whose graphs can be kept; by forward over reverse; or, for the Hessian, by
        differences of gradients. ``"auto"`` takes the first where a graph fits into `memory`, else the first of ``"forward"``,
        ``"reverse"``, ``"differences"`` that the model's operations have.
    reduction : {"mean", "sum"}, optional
        How the loss reduces within a batch; by default what ``loss.reduction`` says, else "mean". Means are weighted by the sizes
        of the batches: for class weights or ignored targets, whose mean is over something else, that is not the mean of all data.
    microbatch : int, optional
        Samples that are differentiated at a time, to save memory.
    memory : int
        Bytes that graphs may take which are kept between products, so that a product costs hardly more than one gradient; 0 keeps
        none.
    samples : int
        Draws of each target for ``"fisher_mc"``.
    seed : int
        Of these draws.
    check : bool
        Compute the loss of every batch, and one gradient twice; refuse what is not finite, and a model that does not repeat itself.

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
    A product with a kept graph costs about as much as a gradient, else two to three times that; several vectors at a time share
    what does not depend on them. For one product with each of many operators, as in a training loop, ``hvp="reverse", memory=0,
    check=False`` leaves out everything else.

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
        way=validate.choice(hvp, "hvp", ("auto", *hessian.WAYS)),
        mean=(reduction_of(loss) if reduction is None else validate.choice(reduction, "reduction", ("mean", "sum"))) == "mean",
        microbatch=None if microbatch is None else validate.integer(microbatch, "microbatch", low=1),
        samples=validate.integer(samples, "samples", low=1),
    )
    if setting.way == "differences" and setting.kind != "hessian":
        msg = f'hvp="differences" is for kind="hessian", not for {setting.kind!r}: leave it out'
        raise ValueError(msg)
    limit = validate.integer(memory, "memory", low=0)
    if not isinstance(model, torch.nn.Module):
        msg = f"model must be a torch.nn.Module, got {type(model).__name__}"
        raise TypeError(msg)
    objective = Objective(model, loss, {name: p.detach().clone() for name, p in named(model, params).items()})
    batches = read(data, mean=setting.mean, seed=validate.integer(seed, "seed"))
    if validate.boolean(check, "check"):
        look(objective, batches, setting)
    return ModelOperator(objective, batches, choose(objective, batches, setting, limit, check=check))


def named(model: torch.nn.Module, params: Any) -> Params:
    """The chosen parameters by their first name."""
    names = {id(p): name for name, p in reversed(list(model.named_parameters(remove_duplicate=False)))}
    chosen = [p for p in model.parameters() if p.requires_grad] if params is None else list(params)
    if not chosen:
        msg = "the model has no trainable parameter: set requires_grad, or give params"
        raise ValueError(msg)
    found: Params = {}
    for k, p in enumerate(chosen):
        if id(p) not in names:
            hint = "take them from model.parameters()" if isinstance(p, Tensor) else "did you mean data=...?"
            msg = f"params[{k}] is no parameter of the model: {hint}"
            raise ValueError(msg)
        if names[id(p)] in found:
            msg = f"params[{k}] is there twice ({names[id(p)]}): give every parameter once"
            raise ValueError(msg)
        if not p.dtype.is_floating_point:
            msg = f"params[{k}] ({names[id(p)]}) has dtype {p.dtype}: only floating point is differentiated"
            raise TypeError(msg)
        found[names[id(p)]] = p
    return found
