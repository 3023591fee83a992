"""Transport between tensors: every output against finite differences of itself."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import otbilevel
from otbilevel import ConvergenceWarning, ot
from otbilevel.ot import PlanConstraint, martingale, separable
from otbilevel.pytorch import PointCloud, solve_ot

gradcheck, gradgradcheck = torch.autograd.gradcheck, torch.autograd.gradgradcheck
COSTS = ("dense", *otbilevel.PointCloud.COSTS)
TIGHT = {"tol": 1e-13, "raise_on_failure": True}
CHECK = {"eps": 1e-6, "atol": 1e-6, "rtol": 1e-6}


def data(cost, n=4, m=3, d=2, mass=3.0, *, zeros=False, seed=0):
    """Weights of mass 3, so that a change by 1e-6 of one of them is a relative change that is rescaled."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.5, 1.5, n), rng.uniform(0.5, 1.5, m)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    points = ((x[:, None] - y[None]) ** 2).sum(-1) if cost == "dense" else (x, y)
    points = (points,) if cost == "dense" else points
    arrays = (a * mass / a.sum(), b * mass / b.sum(), *points)
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in arrays]


def solved(cost, a, b, *points, reg=0.5, **settings):
    C = points[0] if cost == "dense" else PointCloud(*points, cost=cost)
    return solve_ot(a, b, C, reg=reg, **TIGHT, **settings)


@pytest.mark.parametrize("cost", COSTS)
def test_the_value(cost):
    reg = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    inputs = [*data(cost), reg]

    def value(*v):
        return solved(cost, *v[:-1], reg=v[-1]).value

    assert gradcheck(value, inputs, **CHECK)
    assert gradgradcheck(value, inputs, **CHECK)


@pytest.mark.parametrize("output", ["value_linear", "f", "g", "potentials", "plan"])
@pytest.mark.parametrize("cost", COSTS)
def test_other_outputs(cost, output):
    reg = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda *v: getattr(solved(cost, *v[:-1], reg=v[-1]), output), [*data(cost), reg], **CHECK)


@pytest.mark.parametrize("cost", ["dense", "sqeuclidean"])
def test_the_barycentric_map(cost):
    a, b, *points = data(cost)
    y = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda y, *v: solved(cost, *v).barycentric_map(y), [y, a, b, *points], **CHECK)
    flat = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda y, *v: solved(cost, *v).barycentric_map(y), [flat, a, b, *points], **CHECK)


@pytest.mark.parametrize("side", [0, 1])
def test_uniform_weights_take_the_mass_of_the_other_side(side):
    *weights, x, y = data("sqeuclidean")

    def value(w, x, y):
        pair = (w, None) if side == 0 else (None, w)
        return solved("sqeuclidean", *pair, x, y).value

    assert gradcheck(value, [weights[side], x, y], **CHECK)
    assert gradgradcheck(value, [weights[side], x, y], **CHECK)


def test_one_cloud_on_both_sides():
    _, _, x, _ = data("sqeuclidean")
    C = torch.rand(4, 4, dtype=torch.float64)
    assert gradcheck(lambda x: solve_ot(None, None, PointCloud(x), reg=0.5, **TIGHT).value, [x], **CHECK)
    assert gradcheck(lambda x: solve_ot(None, None, C + x @ x.T, reg=0.5, **TIGHT).plan, [x], **CHECK)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_dtype_in_is_dtype_out(dtype):
    x = torch.rand(6, 2, dtype=dtype, requires_grad=True)
    y = torch.rand(5, 2, dtype=dtype)
    solution = solve_ot(None, None, PointCloud(x, y), reg=0.1)
    outputs = [solution.value, solution.value_linear, solution.f, solution.g, solution.plan, solution.barycentric_map(y)]
    assert {v.dtype for v in outputs} == {dtype}
    sum(v.sum() for v in outputs).backward()
    assert x.grad.dtype == dtype and bool(torch.isfinite(x.grad).all())


def test_float32_is_worked_on_in_double_precision():
    x, y = torch.rand(30, 2), torch.rand(20, 2)
    single, double = (x.clone().requires_grad_(), x.double().requires_grad_())
    for v in (single, double):
        solve_ot(None, None, PointCloud(v, y.to(v.dtype)), reg=1e-2, tol=1e-9).value.backward()
    torch.testing.assert_close(single.grad, double.grad.float(), rtol=1e-6, atol=1e-8)


def test_nothing_is_copied(monkeypatch):
    seen = {}

    def spy(a, b, C, **settings):
        seen["result"] = otbilevel.ot.solve_ot(a, b, C, **settings)
        seen["arrays"] = (a, b, C.x, C.y)
        return seen["result"]

    from otbilevel.pytorch import transport

    a, b, x, y = data("sqeuclidean")
    a, b = a.detach(), b.detach()
    fake = type("ot", (), {"solve_ot": staticmethod(spy), "PointCloud": otbilevel.PointCloud})
    monkeypatch.setattr(transport, "ot", fake)
    solution = solve_ot(a, b, PointCloud(x, y), reg=0.5)
    for tensor, array in zip((a, b, x, y), seen["arrays"], strict=True):
        assert isinstance(array, np.ndarray) and array.ctypes.data == tensor.data_ptr()
    assert solution.plan.data_ptr() == seen["result"].plan.ctypes.data


def test_a_dense_cost_is_not_copied():
    C = torch.rand(5, 4, dtype=torch.float64, requires_grad=True)
    solution = solve_ot(None, None, C, reg=0.1)
    assert solution.result._plan.problem.whole.matrix.ctypes.data == C.data_ptr()


def test_a_change_in_place_is_noticed():
    x = torch.rand(5, 2, dtype=torch.float64, requires_grad=True)
    solution = solve_ot(None, None, PointCloud(x, torch.rand(4, 2, dtype=torch.float64)), reg=0.1)
    value = solution.value
    with torch.no_grad():
        x += 1.0
    with pytest.raises(RuntimeError, match="x was changed in place"):
        _ = solution.plan
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_third_derivatives_are_refused():
    x = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    y = torch.rand(3, 2, dtype=torch.float64)
    (first,) = torch.autograd.grad(solve_ot(None, None, PointCloud(x, y), reg=0.1).value, x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()


def test_without_gradients_nothing_is_recorded():
    x, y = torch.rand(5, 2), torch.rand(4, 2)
    solution = solve_ot(None, None, PointCloud(x, y), reg=0.1)
    assert not solution.value.requires_grad and not solution.plan.requires_grad
    with torch.no_grad():
        assert not solve_ot(None, None, PointCloud(x.requires_grad_(), y), reg=0.1).f.requires_grad


def test_the_warning_passes_through():
    with pytest.warns(ConvergenceWarning, match="max_iter = 1"):
        solution = solve_ot(None, None, torch.rand(50, 50), reg=1e-4, max_iter=1)
    assert not solution.result.success
    with pytest.raises(otbilevel.ConvergenceError):
        solve_ot(None, None, torch.rand(50, 50), reg=1e-4, max_iter=1, raise_on_failure=True)


def test_a_start_saves_steps():
    x, y = torch.rand(80, 2, dtype=torch.float64), torch.rand(70, 2, dtype=torch.float64)
    cold = solve_ot(None, None, PointCloud(x, y), reg=1e-3)
    warm = solve_ot(None, None, PointCloud(x + 1e-5, y), reg=1e-3, init=cold)
    assert warm.result.success and warm.result.nit < cold.result.nit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None, np.zeros((2, 2))), "C must be a Tensor"),
        ((np.ones(2), None, torch.zeros(2, 2)), "a must be a Tensor"),
        ((None, None, PointCloud(np.zeros((2, 2)))), "points of a PointCloud must be tensors"),
    ],
)
def test_other_arrays_are_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        solve_ot(*arguments, reg=0.1)


def test_unequal_masses_are_refused():
    a = torch.tensor([1.0, 1.0], requires_grad=True)
    with pytest.raises(ValueError, match="equal mass"):
        solve_ot(a, torch.ones(3), torch.rand(2, 3), reg=0.1)


def test_the_bridge_is_found_at_the_top():
    assert otbilevel.pytorch.solve_ot is solve_ot
    with pytest.raises(AttributeError, match="has no attribute 'tensorflow'"):
        _ = otbilevel.tensorflow


@pytest.mark.parametrize("kind", ["dense", "separable", "martingale"])
def test_constraints_that_hold_tensors(kind):
    rng = np.random.default_rng(0)
    C, x, y = rng.random((6, 5)), np.linspace(-0.5, 0.5, 6), np.linspace(-2.0, 2.0, 5)

    def constraint(wrap):
        if kind == "dense":
            return PlanConstraint(wrap(C), ub=0.45)
        return separable(wrap(x), wrap(y), 0.05, 0.05) if kind == "separable" else martingale(wrap(x), wrap(y))

    cost = torch.tensor(C, requires_grad=True)
    solution = solve_ot(None, None, cost, reg=0.1, constraints=[constraint(torch.tensor)])
    expected = ot.solve_ot(None, None, C, reg=0.1, constraints=[constraint(np.asarray)])
    assert solution.value.item() == pytest.approx(expected.value, abs=1e-9)
    solution.value.backward()
    np.testing.assert_allclose(cost.grad.numpy(), expected.plan, atol=1e-9)
