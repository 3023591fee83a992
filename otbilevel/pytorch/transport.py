"""Optimal transport between tensors, with gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from otbilevel import ot
from otbilevel.ot import OTResult, PlanConstraint
from otbilevel.ot.functionals import Functionals
from otbilevel.pytorch.arrays import to_array
from otbilevel.pytorch.functions import Outputs, Solved, Value, apply

RESCALED = {torch.float64: 1e-6}
"""Relative difference of masses up to which weights are rescaled, as in `otbilevel.solve_ot`; 1e-4 in lower precision."""


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Two clouds of tensors that may require gradients; `otbilevel.PointCloud` tells of the costs.

    Parameters
    ----------
    x : (n, d) Tensor
        Source points.
    y : (m, d) Tensor, optional
        Target points, by default those of `x`.
    cost : {"sqeuclidean", "euclidean", "cityblock", "cosine"}
        The cost.

    Examples
    --------
    >>> import torch
    >>> from otbilevel.pytorch import PointCloud, solve_ot
    >>> x = torch.tensor([[0.0], [1.0]], requires_grad=True)
    >>> solve_ot(None, None, PointCloud(x, x.detach() + 2.0), reg=0.1).value.backward()
    >>> x.grad
    tensor([[-2.0000],
            [-2.0000]])
    """

    x: Tensor
    y: Tensor | None = None
    cost: str = "sqeuclidean"


class TransportSolution:
    """What `otbilevel.pytorch.solve_ot` returns: its tensors are differentiable, and computed on first access.

    Parameters
    ----------
    result : OTResult
        What was solved.
    names, inputs : tuple
        The names of the data, as `OTGradient` has them, and the tensors, None for what is no tensor.

    Attributes
    ----------
    result : OTResult
        The result with its figures: `success`, `message`, `marginal_error` and so on.
    value, value_linear : () Tensor
        <P, C> + reg KL(P | a b^T), which can be differentiated twice, and <P, C>, once.
    f, g : (n,), (m,) Tensor
        Potentials, with <a, f> = <b, g> where no marginal has a price.
    plan : (n, m) Tensor
        The plan.
    """

    def __init__(self, result: OTResult, names: tuple[str, ...], inputs: tuple[Tensor | None, ...]) -> None:
        self.result = result
        self._solved = Solved(result)
        self._names, self._inputs = names, inputs
        self._versions = [None if v is None else v._version for v in inputs]

    def __repr__(self) -> str:
        return f"TransportSolution, with result =\n{self.result!r}"

    @cached_property
    def value(self) -> Tensor:
        """The optimal value, shape (), with the penalties of unbalanced transport."""
        self._check()
        value: Tensor = apply(Value, self._solved, self.result.value, self._names, *self._inputs)
        return value

    @cached_property
    def value_linear(self) -> Tensor:
        """The transport cost <P, C>, shape ()."""
        return self._outputs(("value_linear",), self.result.value_linear)[0]

    @cached_property
    def potentials(self) -> tuple[Tensor, Tensor]:
        """``(f, g)``."""
        f, g = self._outputs(("f", "g"), *self.result.potentials)
        return f, g

    @property
    def f(self) -> Tensor:
        """Row potentials, shape (n,)."""
        return self.potentials[0]

    @property
    def g(self) -> Tensor:
        """Column potentials, shape (m,)."""
        return self.potentials[1]

    @cached_property
    def plan(self) -> Tensor:
        """The plan as an (n, m) tensor."""
        return self._outputs(("plan",), self.result.plan)[0]

    def barycentric_map(self, y: Tensor) -> Tensor:
        """Map every source to the mean of the targets that its mass goes to, sum_j P_ij y_j / sum_j P_ij.

        Parameters
        ----------
        y : (m,) or (m, k) Tensor
            Target points, which may require gradients.

        Returns
        -------
        (n,) or (n, k) Tensor
            The images.
        """
        self._check()
        points = to_array(y)
        images = self.result.barycentric_map(points)
        pullback = partial(self._solved.pull_map, points)
        mapped: Tensor = apply(Outputs, pullback, (images,), (*self._names, "points"), *self._inputs, y)[0]
        return mapped

    def _outputs(self, outputs: tuple[str, ...], *values: Any) -> tuple[Tensor, ...]:
        self._check()
        pullback = partial(self._solved.pull, outputs)
        found: tuple[Tensor, ...] = apply(Outputs, pullback, values, self._names, *self._inputs)
        return found

    def _check(self) -> None:
        """What is computed on first access must still be that of the problem which was solved."""
        for name, v, version in zip(self._names, self._inputs, self._versions, strict=True):
            if v is not None and v._version != version:
                msg = f"{name} was changed in place after the problem was solved: solve anew, or read outputs before the change"
                raise RuntimeError(msg)


def solve_ot(
    a: Tensor | None,
    b: Tensor | None,
    C: Tensor | PointCloud,  # noqa: N803 -- the field's name for the cost
    *,
    reg: float | Tensor | None = None,
    unbalanced: Any = None,
    init: TransportSolution | OTResult | tuple[Any, Any] | None = None,
    **settings: Any,
) -> TransportSolution:
    """Solve an optimal transport problem between tensors; everything that comes out can be differentiated.

    Parameters
    ----------
    a, b : (n,), (m,) Tensor or None
        Weights, as in `otbilevel.solve_ot`. Where they require gradients and their masses differ by rounding, both are scaled to
        the mean mass, and the derivatives are those of that.
    C : (n, m) Tensor or PointCloud
        Costs, or a `PointCloud` of this module.
    reg : float or () Tensor, optional
        Regularisation, which can be differentiated in, too.
    unbalanced : float, penalty or pair, optional
        What it costs to miss the weights, as in `otbilevel.solve_ot`. Masses may then differ, and nothing is scaled.
    init : TransportSolution, OTResult or tuple, optional
        Where to start, as in `otbilevel.solve_ot`.
    **settings
        `method`, `tol`, `max_iter`, `callback`, `progress`, `options` and `raise_on_failure`, as in `otbilevel.solve_ot`.

    Returns
    -------
    TransportSolution
        Value, transport cost, potentials, plan and barycentric map as tensors.

    Raises
    ------
    ValueError, TypeError, ConvergenceError
        As `otbilevel.solve_ot` does.
    RuntimeError
        When an output is read, or differentiated, after an input was changed in place.

    Warns
    -----
    ConvergenceWarning
        As `otbilevel.solve_ot` does.

    Notes
    -----
    Tensors on the CPU are read where they are, by the kernels that are compiled for NumPy; those on other devices by PyTorch's own
    functions, which is tested on no GPU. All work has double precision, and what comes out has the dtype of what went in.
    The value is differentiated by the envelope theorem, without a solve; its second derivative, and the first ones of the other
    outputs, take one linear solve each (see `otbilevel.ot.linearize`). Nothing of the iterations is recorded.
    Derivatives are those at the solution: use a smaller `tol` where more digits of them matter.

    Examples
    --------
    >>> import torch
    >>> from otbilevel.pytorch import solve_ot
    >>> C = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    >>> solution = solve_ot(None, None, C, reg=0.5)
    >>> solution.value.backward()
    >>> torch.equal(C.grad, solution.plan)
    True
    """
    names, costs, geometry = _cost(C)
    for name, v in (("a", a), ("b", b), *zip(names, costs, strict=True)):
        if v is not None and not isinstance(v, Tensor):
            msg = f"{name} must be a Tensor, got {type(v).__name__}: for other arrays use otbilevel.solve_ot"
            raise TypeError(msg)
    a, b = (balanced if _is_fixed(unbalanced) else completed)(a, b, geometry.shape)
    strength = float(reg.detach()) if isinstance(reg, Tensor) else reg
    start = init.result if isinstance(init, TransportSolution) else init
    weights = [None if v is None else to_array(v) for v in (a, b)]
    if "constraints" in settings:
        settings["constraints"] = _converted(settings["constraints"])
    result = ot.solve_ot(weights[0], weights[1], geometry, reg=strength, unbalanced=unbalanced, init=start, **settings)
    return TransportSolution(result, ("a", "b", *names, "reg"), (a, b, *costs, reg if isinstance(reg, Tensor) else None))


def _converted(given: Any) -> Any:
    """Constraints, and what they hold, in the form that the solver takes."""
    if isinstance(given, (tuple, list)):
        return tuple(_converted(one) for one in given)
    if isinstance(given, PlanConstraint):
        return PlanConstraint(_converted(given.functionals), _converted(given.lb), _converted(given.ub))
    if isinstance(given, Functionals) and is_dataclass(given):
        return replace(given, **{one.name: _converted(getattr(given, one.name)) for one in fields(given)})
    return to_array(given) if isinstance(given, Tensor) else given


def _cost(C: Any) -> tuple[tuple[str, ...], tuple[Any, ...], Any]:  # noqa: N803
    """The names of what the cost is made of, the tensors, and what the solver takes."""
    if isinstance(C, Tensor):
        return ("C",), (C,), to_array(C)
    if not isinstance(C, PointCloud):
        msg = f"C must be a Tensor or an otbilevel.pytorch.PointCloud, got {type(C).__name__}: for others use otbilevel.solve_ot"
        raise TypeError(msg)
    if not isinstance(C.x, Tensor) or not (C.y is None or isinstance(C.y, Tensor)):
        msg = "the points of a PointCloud must be tensors here: for other arrays use otbilevel.PointCloud and otbilevel.solve_ot"
        raise TypeError(msg)
    x = C.x
    y = x if C.y is None else C.y
    return ("x", "y"), (x, y), ot.PointCloud(to_array(x), to_array(y), cost=C.cost)


def _is_fixed(unbalanced: Any) -> bool:
    """Whether both marginals have to be met."""
    sides = unbalanced if isinstance(unbalanced, (tuple, list)) else (unbalanced,)
    return all(side is None or side == math.inf for side in sides)


def completed(a: Tensor | None, b: Tensor | None, shape: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
    """Weights where one side has none: uniform, of the other side's mass, and a function of it."""
    if a is None and b is not None and b.requires_grad:
        a = (b.sum() / shape[0]).expand(shape[0])
    elif b is None and a is not None and a.requires_grad:
        b = (a.sum() / shape[1]).expand(shape[1])
    return a, b


def balanced(a: Tensor | None, b: Tensor | None, shape: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
    """Weights of one mass, as functions of those given: then derivatives in them are what finite differences say.

    Masses that differ by more than rounding are left to the solver, which refuses them.
    """
    if not any(v is not None and v.requires_grad for v in (a, b)):
        return a, b
    a, b = completed(a, b, shape)
    assert a is not None
    assert b is not None
    of_a, of_b = a.sum(), b.sum()
    mean = 0.5 * (of_a + of_b)
    close = RESCALED.get(torch.promote_types(a.dtype, b.dtype), 1e-4)
    difference, mass = abs(float((of_a - of_b).detach())), float(mean.detach())
    if not (mass > 0 and difference <= close * mass):
        return a, b
    return a * (mean / of_a), b * (mean / of_b)
