"""Unbalanced transport in PyTorch: derivatives against finite differences, values against geomloss."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from otbilevel import ot
from otbilevel.ot import KL, AtMost, TotalVariation
from otbilevel.pytorch import PointCloud, SinkhornLoss, solve_ot

gradcheck, gradgradcheck = torch.autograd.gradcheck, torch.autograd.gradgradcheck
CHECK = {"eps": 1e-6, "atol": 1e-6, "rtol": 1e-6}


def data(n=4, m=3, d=2, seed=0, masses=(1.3, 0.9)):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.5, 1.5, n), rng.uniform(0.5, 1.5, m)
    arrays = (masses[0] * a / a.sum(), rng.standard_normal((n, d)), masses[1] * b / b.sum(), rng.standard_normal((m, d)))
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in arrays]


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("p", [1, 2])
def test_derivatives_of_the_loss(p, debias):
    loss = SinkhornLoss(p, 0.7, reach=0.9, debias=debias, tol=1e-12)
    assert gradcheck(loss, data(), **CHECK)
    assert gradgradcheck(loss, data(), **CHECK)


@pytest.mark.parametrize("debias", [True, False])
def test_derivatives_of_potentials(debias):
    assert gradcheck(SinkhornLoss(2, 0.7, reach=0.9, debias=debias, potentials=True, tol=1e-12), data(), **CHECK)


def test_derivatives_for_uniform_weights_of_the_other_side():
    """Their mass is that of the weights that are given."""
    _, x, b, y = data()
    cost = PointCloud(x.detach(), y.detach())
    for unbalanced in (0.5, None):
        assert gradcheck(lambda b: solve_ot(None, b, cost, reg=0.3, unbalanced=unbalanced, tol=1e-12).value, [b], **CHECK)  # noqa: B023
    assert gradcheck(lambda b: solve_ot(b, None, torch.ones(3, 5), reg=0.3, unbalanced=0.5, tol=1e-12).value, [b], **CHECK)


@pytest.mark.parametrize(("p", "blur"), [(2, 1.0), (2, 0.5), (1, 1.0)])
@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("reach", [0.5, 2.0])
def test_values_are_those_of_geomloss(p, blur, debias, reach):
    """Gradients are not: with `reach`, theirs are a few per cent off finite differences of their own values."""
    geomloss = pytest.importorskip("geomloss")
    inputs = a, _, b, _ = [v.detach() for v in data(20, 15)]
    theirs = geomloss.SamplesLoss("sinkhorn", p=p, blur=blur, reach=reach, debias=debias, scaling=0.9998, backend="tensorized")
    expected, found = theirs(*inputs), SinkhornLoss(p, blur, reach=reach, debias=debias)(*inputs)
    if not debias:
        expected = expected - blur**p * (0.5 * (a.sum() + b.sum()) - a.sum() * b.sum())
    self_distance = p == 1 and debias  # theirs of a point to itself is 1e-4
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if self_distance else 1e-5)


@pytest.mark.parametrize("price", [0.5, (None, KL(0.3)), TotalVariation(0.2), AtMost(0.3)], ids=str)
def test_derivatives_of_a_solution(price):
    a, x, b, y = data()
    reg = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def solve(a, b, x, y, reg):
        return solve_ot(a, b, PointCloud(x, y), reg=reg, unbalanced=price, tol=1e-12)

    assert gradcheck(lambda *v: solve(*v).value, [a, b, x, y, reg], **CHECK)
    assert gradgradcheck(lambda *v: solve(*v).value, [a, b, x, y, reg], **CHECK)

    def others(a, b, x, y, reg):
        solution = solve(a, b, x, y, reg)
        return solution.f, solution.g, solution.plan, solution.value_linear, solution.barycentric_map(y)

    assert gradcheck(others, [a, b, x, y, reg], **CHECK)


def test_weights_are_not_scaled():
    """Masses that differ by rounding only: for fixed marginals they would be."""
    a, x, b, y = data(masses=(1.0, 1.0 + 1e-9))
    solution = solve_ot(a, b, PointCloud(x, y), reg=0.3, unbalanced=0.5)
    expected = ot.solve_ot(*(v.detach().numpy() for v in (a, b)), ot.PointCloud(x.detach().numpy(), y.detach().numpy()), reg=0.3,
                           unbalanced=0.5)  # fmt: skip
    (gradient,) = torch.autograd.grad(solution.value, a)
    np.testing.assert_allclose(gradient.numpy(), expected.gradient("a").a, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_dtypes_and_warm_starts(dtype):
    x = torch.rand(2, 8, 3, dtype=dtype, requires_grad=True)
    y = torch.rand(2, 6, 3, dtype=dtype)
    a, b = torch.rand(2, 8, dtype=dtype), torch.rand(2, 6, dtype=dtype)
    loss = SinkhornLoss(blur=0.2, reach=0.5, warm_start=True)
    first, again = loss(a, x, b, y), loss(a, x, b, y)
    torch.testing.assert_close(first, again, rtol=1e-4, atol=1e-5)
    first.sum().backward()
    assert first.dtype == x.grad.dtype == dtype
    assert loss(x, y).shape == (2,)


def test_a_measure_is_at_distance_0_of_itself():
    x = torch.rand(30, 2, dtype=torch.float64, requires_grad=True)
    value = SinkhornLoss(blur=0.1, reach=0.3)(x, x.detach().clone())
    value.backward()
    assert abs(value.item()) < 1e-11 and x.grad.abs().max() < 1e-9


def test_reach_is_checked_and_printed():
    for reach, error in ((0.0, ValueError), (-1.0, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="reach"):
            SinkhornLoss(reach=reach)
    assert "reach=0.5, debias" in repr(SinkhornLoss(reach=0.5))
