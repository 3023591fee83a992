"""The loss: derivatives against finite differences, values and gradients against geomloss's definition and geomloss."""

import gc
import tracemalloc

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from otbilevel import ConvergenceWarning, PointCloud, solve_ot
from otbilevel.pytorch import SinkhornLoss

gradcheck, gradgradcheck = torch.autograd.gradcheck, torch.autograd.gradgradcheck
CHECK = {"eps": 1e-6, "atol": 1e-6, "rtol": 1e-6}


def data(n=4, m=3, d=2, mass=3.0, seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.5, 1.5, n), rng.uniform(0.5, 1.5, m)
    arrays = (a * mass / a.sum(), rng.standard_normal((n, d)), b * mass / b.sum(), rng.standard_normal((m, d)))
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in arrays]


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("p", [1, 2])
def test_derivatives(p, debias):
    loss = SinkhornLoss(p, 0.7, debias=debias, tol=1e-12)
    assert gradcheck(loss, data(), **CHECK)
    assert gradgradcheck(loss, data(), **CHECK)


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("p", [1, 2])
def test_derivatives_of_potentials(p, debias):
    loss = SinkhornLoss(p, 0.7, debias=debias, potentials=True, tol=1e-12)
    assert gradcheck(loss, data(), **CHECK)


def test_derivatives_for_uniform_weights():
    loss = SinkhornLoss(blur=0.5, tol=1e-12)
    _, x, _, y = data()
    assert gradcheck(loss, [x, y], **CHECK)
    assert gradgradcheck(loss, [x, y], **CHECK)


def test_a_zero_weight():
    a, x, b, y = data()
    a = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert gradcheck(lambda x, y: SinkhornLoss(blur=0.5, tol=1e-12)(a, x, b.detach(), y), [x, y], **CHECK)
    assert gradgradcheck(lambda x, y: SinkhornLoss(blur=0.5, tol=1e-12)(a, x, b.detach(), y), [x, y], **CHECK)


def definition(p, blur, a, x, b, y, *, debias=True):
    """By log-domain iterations to convergence in plain NumPy."""

    def potentials(a, x, b, y):
        z = x[:, None] - y[None]
        C = (z**2).sum(-1) / 2 if p == 2 else np.sqrt((z**2).sum(-1))
        f, g, eps = np.zeros(len(a)), np.zeros(len(b)), blur**p
        for _ in range(4000):
            f = -eps * np.log(np.exp((g - C) / eps) @ b)
            g = -eps * np.log(a @ np.exp((f[:, None] - C) / eps))
        return f, g

    f, g = potentials(a, x, b, y)
    if not debias:
        return a @ f + b @ g
    return a @ (f - sum(potentials(a, x, a, x)) / 2) + b @ (g - sum(potentials(b, y, b, y)) / 2)


@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("p", [1, 2])
def test_values_are_those_of_the_definition(p, debias):
    inputs = data(7, 5, mass=1.0)
    arrays = [v.detach().numpy() for v in inputs]
    value = SinkhornLoss(p, 0.5, debias=debias)(*inputs).item()
    assert value == pytest.approx(definition(p, 0.5, *arrays, debias=debias), abs=1e-11)


@pytest.mark.parametrize(
    ("p", "blur", "debias", "values", "gradients"),
    [
        (2, 1.0, True, 1e-6, 1e-4),
        (2, 1.0, False, 1e-6, 1e-4),
        (2, 0.3, True, 1e-5, 1e-3),  # their error falls with 1 - scaling, and their last step is at the target
        (1, 1.0, False, 1e-6, 1e-4),
        (1, 1.0, True, 1e-4, 1e-4),  # their distance of a point to itself is 1e-4
    ],
)
def test_values_and_gradients_are_those_of_geomloss(p, blur, debias, values, gradients):
    geomloss = pytest.importorskip("geomloss")
    a, x, b, y = data(40, 30, mass=1.0)
    theirs = geomloss.SamplesLoss("sinkhorn", p=p, blur=blur, debias=debias, scaling=0.998, backend="tensorized")
    expected, found = theirs(a, x, b, y), SinkhornLoss(p, blur, debias=debias)(a, x, b, y)
    torch.testing.assert_close(found, expected, rtol=0, atol=values)
    for u, v in zip(torch.autograd.grad(found, [x, y]), torch.autograd.grad(expected, [x, y]), strict=True):
        torch.testing.assert_close(u, v, rtol=0, atol=gradients)


def test_batches_are_loops():
    x = torch.rand(3, 6, 2, dtype=torch.float64, requires_grad=True)
    y = torch.rand(3, 5, 2, dtype=torch.float64)
    a, b = torch.rand(3, 6, dtype=torch.float64), torch.rand(3, 5, dtype=torch.float64)
    a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
    loss = SinkhornLoss(blur=0.3)
    assert torch.equal(loss(x, y), torch.stack([loss(x[k], y[k]) for k in range(3)]))
    values = loss(a, x, b, y)
    assert values.shape == (3,)
    torch.testing.assert_close(values, torch.stack([loss(a[k], x[k], b[k], y[k]) for k in range(3)]))
    values.sum().backward()
    assert x.grad.shape == x.shape
    f, g = SinkhornLoss(blur=0.3, potentials=True)(a, x, b, y)
    assert (f.shape, g.shape) == (a.shape, b.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_in_is_dtype_out(dtype):
    x = torch.rand(8, 3, dtype=dtype, requires_grad=True)
    value = SinkhornLoss()(x, torch.rand(6, 3, dtype=dtype))
    value.backward()
    assert value.dtype == x.grad.dtype == dtype


def test_a_measure_is_at_distance_0_of_itself():
    x = torch.rand(30, 2, dtype=torch.float64, requires_grad=True)
    value = SinkhornLoss(blur=0.1)(x, x.detach().clone())
    value.backward()
    assert abs(value.item()) < 1e-12 and x.grad.abs().max() < 1e-9


def test_potentials_are_the_gradient_in_the_weights():
    inputs = data(mass=1.0)
    f, g = SinkhornLoss(blur=0.5, potentials=True)(*inputs)
    gradients = torch.autograd.grad(SinkhornLoss(blur=0.5)(*inputs), [inputs[0], inputs[2]])
    for potential, gradient in zip((f, g), gradients, strict=True):
        difference = potential - gradient
        torch.testing.assert_close(difference, difference[0].expand_as(difference), rtol=0, atol=1e-9)


def test_a_warm_start_gives_the_same():
    x, y = torch.rand(60, 2, dtype=torch.float64), torch.rand(50, 2, dtype=torch.float64)
    warm, cold = SinkhornLoss(blur=0.05, warm_start=True), SinkhornLoss(blur=0.05)
    for step in range(3):
        torch.testing.assert_close(warm(x + 1e-3 * step, y), cold(x + 1e-3 * step, y), rtol=0, atol=1e-10)
    assert warm.state[0].result_ab.nsweep < cold(x, y).numel() + 10
    assert len(warm.state) == 1 and not cold.state
    warm(x[:-1], y)  # another shape starts afresh
    warm.reset()
    assert not warm.state


def count_tensors():
    return sum(issubclass(type(v), torch.Tensor) for v in gc.get_objects())


def test_memory_stays_flat_over_training():
    """A hundred steps: no tensor and no array is left over from any, also without the collector of cycles."""
    torch.manual_seed(0)
    y = torch.rand(300, 2)
    x = torch.nn.Parameter(torch.rand(200, 2))
    loss, optimiser = SinkhornLoss(blur=0.1, warm_start=True), torch.optim.Adam([x], lr=0.05)

    def steps(count):
        for _ in range(count):
            optimiser.zero_grad()
            value = loss(x, y)
            value.backward()
            optimiser.step()
        return value.item()

    first = steps(5)
    gc.collect()
    gc.disable()
    tensors = count_tensors()
    tracemalloc.start()
    try:
        steps(5)
        before = tracemalloc.get_traced_memory()[0]
        last = steps(100)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        gc.enable()
    assert last < 0.2 * first
    assert count_tensors() <= tensors
    assert after - before < 100 * 200 * 8  # less than a vector for each step


def test_the_graph_does_not_grow_with_the_iterations():
    x, y = torch.rand(40, 2, dtype=torch.float64, requires_grad=True), torch.rand(30, 2, dtype=torch.float64)

    def depth(node):
        return 1 + max((depth(parent) for parent, _ in node.next_functions if parent is not None), default=0)

    assert depth(SinkhornLoss(blur=0.05)(x, y).grad_fn) == depth(SinkhornLoss(blur=1.0)(x, y).grad_fn) <= 4


def test_the_warning_passes_through():
    x, y = torch.rand(50, 2), torch.rand(40, 2)
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        SinkhornLoss(blur=0.001, max_iter=1)(x, y)


def test_it_is_half_of_the_transport_for_the_full_square():
    x, y = np.random.default_rng(0).random((2, 9, 2))
    value = SinkhornLoss(blur=0.2, debias=False)(torch.tensor(x), torch.tensor(y)).item()
    assert value == pytest.approx(solve_ot(None, None, PointCloud(x, y), reg=0.08).value / 2, abs=1e-10)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SinkhornLoss(p=3), ValueError, "p must be 1 or 2"),
        (lambda: SinkhornLoss(blur=0.0), ValueError, "blur must be"),
        (lambda: SinkhornLoss(debias=1), TypeError, "debias must be True or False"),
        (lambda: SinkhornLoss()(torch.rand(3, 2)), TypeError, r"loss\(x, y\)"),
        (lambda: SinkhornLoss()(np.ones((3, 2)), torch.rand(3, 2)), TypeError, "takes tensors"),
        (lambda: SinkhornLoss()(torch.rand(3), torch.rand(3)), ValueError, "x and y must have shapes"),
        (lambda: SinkhornLoss()(torch.rand(2, 3, 1), torch.rand(3, 3, 1)), ValueError, "x and y must have shapes"),
        (lambda: SinkhornLoss()(torch.rand(4), torch.rand(3, 1), torch.rand(3), torch.rand(3, 1)), ValueError, "a must have shape"),
        (lambda: SinkhornLoss(method="exact")(torch.rand(3, 1), torch.rand(3, 1)), ValueError, "exact"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_it_prints_its_arguments():
    assert repr(SinkhornLoss(blur=0.1)) == "SinkhornLoss(p=2, blur=0.1, debias=True, potentials=False, warm_start=False)"
