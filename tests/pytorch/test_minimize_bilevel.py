"""`minimize_bilevel` with functions of tensors: derivatives of constraints, single precision, runs that change the library."""

import numpy as np
import pytest
import torch

from otbilevel import CoupledConstraint, minimize_bilevel
from otbilevel.bilevel.constraints import Rows
from otbilevel.bilevel.problem import Library, wrapped

DTYPES = [torch.float32, torch.float64]


def upper(x, y):
    return ((x - 0.5) ** 2).sum() + ((y - 2) ** 2).sum()


def lower(x, y):
    return ((y - x - 1) ** 2).sum()


def ball(x, y):
    """|y|^2 <= 1 + x_0."""
    return (y**2).sum()[None] - 1 - x[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_constraints_are_differentiated_and_not_by_differences(dtype):
    library, w = Library(torch.zeros(2, dtype=dtype)), np.array([0.3, 0.1, 0.7, -5.0])
    constraints = [
        CoupledConstraint(fun)
        for fun in (ball, lambda x, y: x[:0], lambda x, y: torch.exp(x) * y - 3, lambda x, y: (x.sum() + y[0].square()) / 7)
    ]
    rows = Rows([wrapped(c, library, "c") for c in constraints], w[:2], w[2:], "constraints")
    known = [
        [-1, 0, 1.4, -10],
        [np.exp(0.3) * 0.7, 0, np.exp(0.3), 0],
        [0, -5 * np.exp(0.1), 0, np.exp(0.1)],
        [1 / 7, 1 / 7, 0.2, 0],
    ]
    tol = 20 * torch.finfo(dtype).eps
    np.testing.assert_allclose(rows.jacobian(w), known, rtol=tol, atol=tol)
    np.testing.assert_allclose(rows.vjp(w, np.arange(4.0)), np.arange(4.0) @ known, rtol=tol, atol=tol)
    np.testing.assert_allclose(rows.lengths(w), np.linalg.norm(known, axis=1), rtol=tol)


@pytest.mark.parametrize("fun", [lambda x, y: y.detach() - 1, lambda x, y: [y[0].item()], lambda x, y: np.ones(1)])
def test_constraints_that_cannot_be_differentiated_are_named(fun):
    start = torch.zeros(2), torch.zeros(2)
    good = CoupledConstraint(ball)
    with pytest.raises(ValueError, match=r"fun of constraints\[1\] returned .*: compute a tensor from x and y"):
        minimize_bilevel(upper, lower, *start, constraints=[good, CoupledConstraint(fun)], options={"n_starts": 1})


def test_single_precision():
    """y = x + 1 as long as the sum of all is at most 2: the nearest point of that plane, later."""
    plane = CoupledConstraint(lambda x, y: (0.1 * (x.sum() + y.sum() - 2))[None])
    settings = {"constraints": plane, "tol": 1e-3, "options": {"n_starts": 1}}
    one, other = (minimize_bilevel(upper, lower, torch.zeros(2, dtype=t), torch.zeros(2, dtype=t), **settings) for t in DTYPES)
    assert one.success and other.success and one.x.dtype is one.multipliers[0].dtype is torch.float32
    torch.testing.assert_close(one.x.double(), other.x, atol=2e-3, rtol=0)
    torch.testing.assert_close(one.multipliers[0].double(), other.multipliers[0], atol=0.05, rtol=0)


@pytest.mark.filterwarnings("ignore::otbilevel.ConvergenceWarning")
@pytest.mark.parametrize("options", [{"n_starts": 1}, {"variant": "paper"}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_run_goes_on_in_another_library(options, dtype):
    """Arrays are of the library and dtype of x0 and y0, whatever a run comes from."""
    settings = {"constraints": CoupledConstraint(lambda x, y: y - 3.5), "max_iter": 5, "options": options, "tol": 1e-2}
    kinds = set()

    def noted(x, y):
        kinds.update((type(v), str(v.dtype)) for v in (x, y))
        return upper(x, y)

    tensors, arrays = (torch.zeros(2, dtype=dtype), torch.zeros(2, dtype=dtype)), (np.zeros(2), np.zeros(2))
    in_torch, in_numpy = {(torch.Tensor, str(dtype))}, {(np.ndarray, "float64")}
    first = minimize_bilevel(noted, lower, *tensors, **settings)
    assert kinds == in_torch
    states = [first, {name: torch.as_tensor(value) if np.ndim(value) else value for name, value in first.state.items()}]
    for state in states:
        kinds.clear()
        second = minimize_bilevel(noted, lower, *arrays, init=state, **settings)
        assert kinds == in_numpy and type(second.x) is type(second.multipliers[0]) is np.ndarray
        kinds.clear()
        third = minimize_bilevel(noted, lower, *tensors, init=second, **settings)
        assert kinds == in_torch and third.x.dtype is third.y.dtype is third.multipliers[0].dtype is dtype
    if "variant" in options:
        assert [one.state["k"] for one in (first, second, third)] == [5, 10, 15]


def test_what_init_must_be():
    result = minimize_bilevel(upper, lower, np.zeros(2), np.zeros(2), options={"n_starts": 1})
    with pytest.raises(ValueError, match=r"init must hold a vector y of length 3, as y0 has, got shape \(2,\)"):
        minimize_bilevel(upper, lower, np.zeros(2), np.zeros(3), init=result)
    with pytest.raises(ValueError, match="init must hold a vector x of length 2"):
        minimize_bilevel(upper, lower, np.zeros(2), np.zeros(2), init={"y": np.zeros(2)})
    with pytest.raises(TypeError, match="init must be a BilevelResult or its state, got int"):
        minimize_bilevel(upper, lower, np.zeros(2), np.zeros(2), init=3)
