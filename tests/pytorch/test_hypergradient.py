"""Hypergradients of closures: against derivatives through the closed form of the solution, inside training loops."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn

from otbilevel import ConvergenceError, ConvergenceWarning
from otbilevel.pytorch import gradients, hypergradient

SOLVERS = {
    "cg": {},
    "minres": {},
    "auto": {},
    "neumann": {"max_iter": 20_000},
    "lissa": {"max_iter": 4000, "options": {"repeats": 1}},
    "nystrom": {"options": {"rank": 6}},
    "dense": {},
}


class Ridge:
    """Two tensors of parameters, a penalty for each weight, and a shift of the targets: two tensors of hyper-parameters."""

    def __init__(self, dtype=torch.float64, seed=0):
        torch.manual_seed(seed)
        self.A, self.b, self.C, self.d = (torch.randn(*s, dtype=dtype) for s in ((30, 8), (30,), (20, 8), (20,)))
        self.penalty = torch.rand(8, dtype=dtype).requires_grad_()
        self.shift = torch.randn(30, dtype=dtype).requires_grad_()
        y = self.minimum().detach()
        self.head, self.tail = y[:4].reshape(2, 2).clone().requires_grad_(), y[4:].clone().requires_grad_()

    @property
    def hparams(self):
        return [self.penalty, self.shift]

    @property
    def params(self):
        return [self.head, self.tail]

    def minimum(self):
        return torch.linalg.solve(self.A.T @ self.A + torch.diag(torch.exp(self.penalty)), self.A.T @ (self.b + self.shift))

    def outer_of(self, y):
        return 0.5 * torch.sum((self.C @ y - self.d) ** 2) + torch.sum(self.penalty**2) / 20

    def outer(self):
        return self.outer_of(torch.cat([self.head.reshape(-1), self.tail]))

    def inner(self):
        y = torch.cat([self.head.reshape(-1), self.tail])
        return 0.5 * torch.sum((self.A @ y - self.b - self.shift) ** 2) + 0.5 * torch.sum(torch.exp(self.penalty) * y**2)

    def exact(self):
        """Through the closed form of the minimum."""
        return torch.autograd.grad(self.outer_of(self.minimum()), self.hparams)


@pytest.mark.parametrize("solver", SOLVERS)
def test_ridge_in_closed_form(solver):
    problem = Ridge()
    found = hypergradient(problem.outer, problem.inner, *lists(problem), solver=solver, tol=1e-10, **SOLVERS[solver])
    assert found.success and found.residual <= 1e-10 and found.error < 1e-7 and found.lower_gradient < 1e-10
    for p, g, expected in zip(problem.hparams, found.grad, problem.exact(), strict=True):
        assert g.shape == p.shape and g.dtype == p.dtype and not g.requires_grad
        np.testing.assert_allclose(g.numpy(), expected.numpy(), rtol=1e-7, atol=1e-9)
        assert torch.equal(p.grad, g)
    assert all(p.grad is None for p in problem.params)


def lists(problem):
    return problem.hparams, problem.params


def test_single_precision():
    problem = Ridge(torch.float32)
    found = hypergradient(problem.outer, problem.inner, *lists(problem), tol=1e-4)
    assert found.success and found.v.dtype == torch.float64
    for g, expected in zip(found.grad, problem.exact(), strict=True):
        assert g.dtype == torch.float32
        np.testing.assert_allclose(g.numpy(), expected.numpy(), rtol=2e-3, atol=2e-4)


def test_grad_is_added_to():
    problem = Ridge()
    problem.penalty.grad = torch.ones(8, dtype=torch.float64)
    found = hypergradient(problem.outer, problem.inner, *lists(problem))
    np.testing.assert_allclose(problem.penalty.grad.numpy(), 1.0 + found.grad[0].numpy(), rtol=1e-14)
    before = [p.grad.clone() for p in problem.hparams]
    hypergradient(problem.outer, problem.inner, *lists(problem), set_grad=False)
    assert all(torch.equal(p.grad, b) for p, b in zip(problem.hparams, before, strict=True))


def test_several_inner_losses_stand_for_their_mean():
    problem = Ridge()
    parts = [lambda k=k: sum_of_part(problem, k) for k in range(3)]
    found = hypergradient(problem.outer, parts, *lists(problem), tol=1e-10)
    for g, expected in zip(found.grad, problem.exact(), strict=True):
        np.testing.assert_allclose(g.numpy(), expected.numpy(), rtol=1e-7, atol=1e-9)
    with pytest.warns(ConvergenceWarning):  # the noise of the parts
        loose = hypergradient(
            problem.outer, parts, *lists(problem), solver="lissa", max_iter=300, options={"repeats": 30}, tol=1e-8
        )
    distance = torch.linalg.vector_norm(loose.v - found.v) / torch.linalg.vector_norm(found.v)
    assert 1e-4 < distance < 0.3 and loose.error > 1e-6


def sum_of_part(problem, k):
    y = torch.cat([problem.head.reshape(-1), problem.tail])
    rest = (problem.A @ y - problem.b - problem.shift)[10 * k : 10 * k + 10]
    return 1.5 * torch.sum(rest**2) + 0.5 * torch.sum(torch.exp(problem.penalty) * y**2)


def test_mfac_from_gradients_of_samples():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 1, bias=False).double(), torch.randn(40, 3).double(), torch.randn(40, 1).double()
    weights = torch.zeros(40, dtype=torch.float64, requires_grad=True)
    loss = lambda: torch.mean(torch.exp(weights)[:, None] * (model(x) - y) ** 2) + 0.05 * torch.sum(model.weight**2)  # noqa: E731
    outer = lambda: torch.mean((model(x[:10]) - 1.0) ** 2)  # noqa: E731
    G = gradients(model, nn.MSELoss(), data=[(x, y)])
    with pytest.warns(ConvergenceWarning, match="relative residual"):
        rough = hypergradient(outer, loss, [weights], model.parameters(), solver="mfac", options={"gradients": G}, damping=0.1)
    exact = hypergradient(outer, loss, [weights], model.parameters(), damping=0.1, tol=1e-10)
    error = float(torch.linalg.vector_norm(rough.grad[0] - exact.grad[0]))
    assert 0.5 * error < rough.error < 2 * error


def test_in_a_training_loop_with_warm_starts():
    """Penalties by Adam, weights by the closed form: the validation loss falls, and warm starts save iterations."""
    problem = Ridge()
    steps = {}
    for warm in (False, True):
        with torch.no_grad():
            problem.penalty.fill_(2.0)
            problem.shift.zero_()
        optimiser, last, spent, losses = torch.optim.Adam([problem.penalty], lr=0.05), None, 0, []
        for _ in range(40):
            with torch.no_grad():
                y = problem.minimum()
                problem.head.copy_(y[:4].reshape(2, 2))
                problem.tail.copy_(y[4:])
            optimiser.zero_grad()
            last = hypergradient(problem.outer, problem.inner, [problem.penalty], problem.params, init=last if warm else None)
            spent += last.nit
            losses.append(problem.outer().item())
            optimiser.step()
        assert losses[-1] < losses[0] - 1e-3
        steps[warm] = spent
    assert steps[True] < steps[False]


def test_starts_of_any_library_and_inference_mode():
    problem = Ridge()
    first = hypergradient(problem.outer, problem.inner, *lists(problem), set_grad=False)
    again = hypergradient(problem.outer, problem.inner, *lists(problem), set_grad=False, init=first.v.numpy())
    assert again.nit == 0
    with torch.inference_mode():
        inside = hypergradient(problem.outer, problem.inner, *lists(problem), set_grad=False)
    assert torch.equal(inside.grad[0], first.grad[0])


def test_attention_in_both_losses():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    x, logits = torch.randn(6, 3, 8).double(), torch.zeros(6, dtype=torch.float64, requires_grad=True)

    def inner():
        penalty = sum(p.pow(2).sum() for p in model.parameters())
        return torch.mean(torch.sigmoid(logits) * model(x).pow(4).mean((1, 2))) + penalty

    outer = lambda: model(x[:2]).pow(3).mean()  # noqa: E731
    found = hypergradient(outer, inner, [logits], model.parameters(), damping=10.0)
    assert found.success and logits.grad.abs().max() > 0


def test_dropout_in_the_inner_loss_is_drawn_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Dropout(0.5), nn.Linear(20, 1)).double()
    x, y, weight = torch.randn(30, 4).double(), torch.randn(30, 1).double(), torch.ones(1, dtype=torch.float64, requires_grad=True)
    inner = lambda: nn.functional.mse_loss(model(x), y) + weight * sum(torch.sum(p**2) for p in model.parameters())  # noqa: E731
    found = hypergradient(
        lambda: torch.mean(model(x)), lambda: inner().sum(), [weight], model.parameters(), solver="minres", tol=1e-8
    )
    assert found.success


def test_no_memory_is_left_behind():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 2))
    x, y, logits = torch.randn(64, 300), torch.randint(0, 2, (64,)), torch.zeros(64, requires_grad=True)
    each = nn.CrossEntropyLoss(reduction="none")
    inner = lambda: torch.mean(torch.sigmoid(logits) * each(model(x), y)) + sum(torch.sum(p**2) for p in model.parameters())  # noqa: E731
    outer = lambda: torch.mean(each(model(x), y))  # noqa: E731

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    def run(times):
        for _ in range(times):
            hypergradient(outer, inner, [logits], model.parameters(), max_iter=5, tol=1.0)

    run(10)
    before = resident()
    run(100)
    size = 8 * sum(p.numel() for p in model.parameters())
    assert resident() - before < 10 * size  # a vector a call would be 100


def test_negative_curvature_and_failures():
    y, x = torch.ones(2, dtype=torch.float64, requires_grad=True), torch.ones(1, dtype=torch.float64, requires_grad=True)
    saddle = lambda: torch.sum(x * torch.tensor([1.0, -1.0]) * y**2)  # noqa: E731
    outer = lambda: torch.sum(torch.tensor([1.0, 2.0]) * y)  # noqa: E731
    with pytest.warns(ConvergenceWarning, match="negative curvature: y is not a strict minimiser"):
        found = hypergradient(outer, saddle, [x], [y], set_grad=False)
    assert found.negative_curvature and not found.success
    with pytest.raises(ConvergenceError):
        hypergradient(outer, saddle, [x], [y], raise_on_failure=True)
    assert x.grad is None


ONE = torch.ones(1, requires_grad=True)
TWO = torch.ones(2, requires_grad=True)


def backwards():
    loss = torch.sum(ONE * TWO**2)
    loss.backward()
    ONE.grad = TWO.grad = None
    return loss


INNER = lambda: torch.sum(ONE * TWO**2)  # noqa: E731
OUTER = lambda: torch.sum(TWO)  # noqa: E731


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((3.0, INNER, [ONE], [TWO]), TypeError, "outer_loss must be a function without arguments"),
        ((OUTER, lambda: TWO, [ONE], [TWO]), ValueError, r"inner_loss must return a scalar tensor, got shape \(2,\)"),
        ((lambda: 1.0, INNER, [ONE], [TWO]), ValueError, "outer_loss must return a scalar tensor, got float"),
        ((lambda: torch.sum(TWO) / 0.0, INNER, [ONE], [TWO]), ValueError, "outer_loss is inf"),
        ((lambda: torch.sum(ONE), INNER, [ONE], [TWO]), ValueError, "outer_loss does not depend on params"),
        ((OUTER, lambda: torch.sum(ONE), [ONE], [TWO]), ValueError, "inner_loss does not depend on params"),
        ((OUTER, lambda: torch.sum(ONE) + torch.sum(TWO**2), [ONE], [TWO]), ValueError, "in params does not depend on hparams"),
        ((OUTER, lambda: backwards(), [ONE], [TWO]), ValueError, r"must not call backward\(\) itself"),
        ((OUTER, [], [ONE], [TWO]), ValueError, "inner_loss is empty"),
        ((OUTER, INNER, [ONE, ONE], [TWO]), ValueError, "hparams holds a tensor twice"),
        ((OUTER, INNER, [ONE, TWO], [TWO]), ValueError, "it belongs to one level"),
        ((OUTER, INNER, [], [TWO]), ValueError, "hparams is empty"),
        ((OUTER, INNER, [2 * ONE], [TWO]), ValueError, r"hparams\[0\] must be a leaf tensor"),
        ((OUTER, INNER, [ONE], [TWO.detach()]), ValueError, r"params\[0\] must be a leaf tensor"),
        ((OUTER, INNER, [1.0], [TWO]), TypeError, r"hparams\[0\] must be a tensor, got float"),
    ],
)
def test_what_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        hypergradient(*arguments)
