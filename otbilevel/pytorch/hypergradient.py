"""Hypergradients of losses that are closures, for any training loop and any optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from otbilevel._core import validate
from otbilevel._core.array import Array
from otbilevel.bilevel.hypergradient import HypergradientResult, Implicit, finished
from otbilevel.linalg.operators import SymmetricOperator
from otbilevel.pytorch.objective import LinearMap, derivative, reaches, require_scalar

Closure = Callable[[], Tensor]


class LossOperator(SymmetricOperator):
    """The Hessian of a loss in a list of tensors, through the graph of its gradient, which lives as long as this does.

    Parameters
    ----------
    gradient : sequence of Tensor or None
        With graphs.
    params : list of Tensor
        In what the loss was differentiated.
    parts : list of LossOperator
        Operators of which this is the mean; none for a single loss.
    """

    def __init__(self, gradient: Any, params: list[Tensor], parts: Sequence[LossOperator] = ()) -> None:
        self.parts, self._params = list(parts), params
        self._gradient = LinearMap(gradient, params)
        like = torch.zeros(0, dtype=torch.float64, device=params[0].device)
        super().__init__(sum(p.numel() for p in params), like, precision=max(torch.finfo(p.dtype).eps for p in params))

    def _matvec(self, x: Array) -> Array:
        if self.parts:
            return sum(part.matvec(x) for part in self.parts) / len(self.parts)
        return flatten(self._gradient(unflatten(x, self._params)))


def flatten(parts: Iterable[Tensor]) -> Tensor:
    """Tensors as a flat vector in double precision."""
    return torch.cat([part.detach().reshape(-1).double() for part in parts])


def unflatten(x: Tensor, like: list[Tensor]) -> list[Tensor]:
    """A flat vector as tensors like others."""
    pieces = torch.split(x, [p.numel() for p in like])
    return [piece.reshape(p.shape).to(p.dtype) for piece, p in zip(pieces, like, strict=True)]


@torch.inference_mode(mode=False)
def hypergradient(  # noqa: PLR0913 -- as that of the arrays
    outer_loss: Closure,
    inner_loss: Closure | Sequence[Closure],
    hparams: Iterable[Tensor],
    params: Iterable[Tensor],
    *,
    solver: str = "cg",
    tol: float | None = None,
    max_iter: int | None = None,
    damping: float = 0.0,
    init: Any = None,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
    options: Mapping[str, Any] | None = None,
    rng: Any = 0,
    estimate_error: bool = True,
    set_grad: bool = True,
    raise_on_failure: bool = False,
) -> HypergradientResult:
    """Compute the gradient of the outer loss in the hyper-parameters, at parameters that minimise the inner loss.

    With F and f for the losses, x for the hyper-parameters and y for the parameters, it is grad_x F - (d2f/dx dy) v, where
    (d2f/dy2 + damping I) v = grad_y F.

    Parameters
    ----------
    outer_loss : callable
        ``outer_loss()`` returns a scalar tensor, such as the loss on validation data. It may depend on `hparams`, too.
    inner_loss : callable or sequence of callables
        ``inner_loss()`` returns the scalar tensor that `params` minimise, such as the loss on training data, a function of both.
        Several stand for their mean: ``"lissa"`` draws from them.
    hparams, params : iterable of Tensor
        Leaf tensors that require gradients.
    solver : str
        A method of `otbilevel.curvature.ihvp`: ``"cg"``, ``"minres"``, ``"neumann"``, ``"lissa"``, ``"nystrom"``, ``"mfac"``,
        ``"dense"``, or ``"auto"``, which is MINRES here.
    tol : float
        Relative residual of the linear system; by default 1e-6, or 1e-4 for parameters of single precision.
    max_iter : int, optional
        Iteration limit of the solver; by default its own.
    damping : float
        What is added to the diagonal of the Hessian, >= 0.
    init : HypergradientResult or (m,) Tensor, optional
        Where v starts, such as the result of the last step.
    preconditioner : callable, MFAC or Nystrom, optional
        ``preconditioner(r)`` approximates (H + damping I)^-1 r for flat vectors, symmetric and positive definite; for ``"cg"`` and
        ``"minres"``.
    options : dict, optional
        Settings of the solver, such as ``{"gradients": otbilevel.pytorch.gradients(...)}`` for ``"mfac"``.
    rng : numpy.random.Generator or int
        Draws what is random.
    estimate_error : bool
        Estimate the error that the residual leaves in the hypergradient, by half as many iterations again at most (ten at least).
    set_grad : bool
        Add the hypergradient to the `grad` of the hyper-parameters, as ``backward()`` does. Those of `params` are not touched.
    raise_on_failure : bool
        Raise `ConvergenceError` instead of warning when the linear system is not solved; no `grad` is set then.

    Returns
    -------
    HypergradientResult
        `grad`, a tuple of tensors like `hparams`; `v`, a flat tensor in double precision; and the figures that say how good they
        are.

    Raises
    ------
    TypeError, ValueError
        When an argument is wrong, a loss is no scalar, or does not depend on what it must; the message says which.
    ConvergenceError
        When the linear system is not solved and `raise_on_failure` is set.

    Warns
    -----
    ConvergenceWarning
        When the linear system is not solved to `tol`, the Hessian is not positive definite there, or `error` is more than a tenth,
        and more than 5 tol, of the hypergradient.

    Notes
    -----
    The inner loss is evaluated once, so that whatever it draws is the same for all products; every iteration then costs about one
    backward pass through its gradient. No graph is left behind.

    References
    ----------
    J. Lorraine, P. Vicol, D. Duvenaud, Optimizing millions of hyperparameters by implicit differentiation, AISTATS 2020.

    Examples
    --------
    >>> import torch
    >>> from otbilevel.pytorch import hypergradient
    >>> weight = torch.tensor([1.0], requires_grad=True)                     # of the penalty
    >>> y = torch.tensor([1.0], requires_grad=True)                          # minimises the inner loss
    >>> inner = lambda: 0.5 * ((y - 2.0) ** 2).sum() + 0.5 * (weight * y**2).sum()
    >>> result = hypergradient(lambda: ((y - 1.5) ** 2).sum(), inner, [weight], [y])
    >>> weight.grad                                                          # y = 2 / (1 + weight)
    tensor([0.5000])
    """
    x, y = leaves(hparams, "hparams"), leaves(params, "params")
    add, strict = validate.boolean(set_grad, "set_grad"), validate.boolean(raise_on_failure, "raise_on_failure")
    if {id(p) for p in x} & {id(p) for p in y}:
        msg = "a tensor is among hparams and among params: it belongs to one level"
        raise ValueError(msg)
    grad_x, grad_y = _outer(outer_loss, x, y)
    losses = list(inner_loss) if isinstance(inner_loss, Sequence) else [inner_loss]
    if not losses:
        msg = "inner_loss is empty: give at least one closure"
        raise ValueError(msg)
    inner = [_inner(loss, y) for loss in losses]
    if not any(reaches(gradient, x) for gradient in inner):
        msg = "the gradient of inner_loss in params does not depend on hparams: compute it from them when it is called"
        raise ValueError(msg)
    op = _mean_operator([LossOperator(gradient, y) for gradient in inner], y)
    maps = [LinearMap(gradient, x) for gradient in inner]
    target = (1e-4 if op.precision > 1e-10 else 1e-6) if tol is None else tol

    def cross(v: Tensor) -> Tensor:
        parts = unflatten(v, y)
        return sum(flatten(one(parts)) for one in maps) / len(maps)

    slope = sum(flatten(zeros_for(gradient, y)) for gradient in inner) / len(inner)
    result = Implicit(op, cross, grad_x, grad_y, float(torch.linalg.vector_norm(slope))).solve(
        solver,
        tol=target,
        max_iter=max_iter,
        damping=damping,
        init=init,
        preconditioner=preconditioner,
        options=options,
        rng=rng,
        estimate_error=validate.boolean(estimate_error, "estimate_error"),
    )
    result = replace(result, grad=tuple(unflatten(result.grad, x)))
    finished(result, tol=target, raise_on_failure=strict)
    if add:
        for p, g in zip(x, result.grad, strict=True):
            p.grad = g.clone() if p.grad is None else p.grad.add_(g)
    return result


def _outer(loss: Closure, x: list[Tensor], y: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The gradients of the outer loss, flat."""
    with torch.enable_grad():
        value = _value(loss, "outer_loss")
    found = torch.autograd.grad(value, [*x, *y], allow_unused=True) if value.requires_grad else [None] * (len(x) + len(y))
    if all(g is None for g in found[len(x) :]):
        msg = "outer_loss does not depend on params: outer_loss().backward() is all that it takes, if it is meant like that"
        raise ValueError(msg)
    return flatten(zeros_for(found[: len(x)], x)), flatten(zeros_for(found[len(x) :], y))


def _inner(loss: Closure, y: list[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradient of an inner loss, with its graph."""
    with torch.enable_grad():
        value = _value(loss, "inner_loss")
        try:
            gradient = derivative(value, y)
        except RuntimeError as error:
            if "second time" not in str(error):
                raise
            msg = "inner_loss must return a loss with its graph: it must not call backward() itself"
            raise ValueError(msg) from error
    if all(g is None for g in gradient):
        msg = "inner_loss does not depend on params: it must be computed from them when it is called"
        raise ValueError(msg)
    return gradient


def _mean_operator(operators: list[LossOperator], y: list[Tensor]) -> LossOperator:
    return operators[0] if len(operators) == 1 else LossOperator([None] * len(y), y, operators)


def zeros_for(found: Iterable[Tensor | None], like: list[Tensor]) -> list[Tensor]:
    """Derivatives with zeros where there are none."""
    return [torch.zeros_like(p) if g is None else g for p, g in zip(like, found, strict=True)]


def leaves(tensors: Iterable[Tensor], name: str) -> list[Tensor]:
    """A list of different leaf tensors on one device, or an error that names what is wrong."""
    found = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    if not found:
        msg = f"{name} is empty: give at least one tensor (a generator can be gone through only once)"
        raise ValueError(msg)
    for k, p in enumerate(found):
        if not isinstance(p, Tensor):
            msg = f"{name}[{k}] must be a tensor, got {type(p).__name__}"
            raise TypeError(msg)
        if not (p.is_leaf and p.requires_grad):
            msg = f"{name}[{k}] must be a leaf tensor that requires gradients: set requires_grad, and leave it out of computations"
            raise ValueError(msg)
    if len({id(p) for p in found}) < len(found):
        msg = f"{name} holds a tensor twice: give each once"
        raise ValueError(msg)
    if len({p.device for p in found}) > 1:
        msg = f"{name} are on several devices: move them to one"
        raise ValueError(msg)
    return found


def _value(loss: Any, name: str) -> Tensor:
    if not callable(loss):
        msg = f"{name} must be a function without arguments that returns the loss, got {type(loss).__name__}"
        raise TypeError(msg)
    with sdpa_kernel(SDPBackend.MATH):  # the one implementation of attention that PyTorch can differentiate twice
        value = require_scalar(loss(), name)
    if not bool(torch.isfinite(value)):
        msg = f"{name} is {value.item()}: look at the data and at the parameters"
        raise ValueError(msg)
    return value
