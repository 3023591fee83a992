"""LV-HBA step by step: against the array method, exact resume, what a user gets wrong."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint
from torch import nn

from otbilevel import ConvergenceWarning, CoupledConstraint, minimize_bilevel
from otbilevel.pytorch import LVHBA
from otbilevel.pytorch.levels import Levels


def toy(n=5, dtype=torch.float64, **settings):
    """The first toy problem of the paper: x = -0.3, y = (0.7, -0.4), multiplier -1."""
    x, y = torch.full((n,), 10.0, dtype=dtype, requires_grad=True), torch.full((2 * n,), 10.0, dtype=dtype, requires_grad=True)
    upper = lambda: 0.5 * (x - y[n:]).square().sum() + 0.5 * (y[:n] - 1).square().sum()  # noqa: E731
    lower = lambda: 0.5 * y[:n].square().sum() - x @ y[:n] + y[n:].sum()  # noqa: E731
    plane = CoupledConstraint(lambda: (x.sum() + y.sum())[None], kind="eq")
    return LVHBA(upper, lower, [x], [y], constraints=plane, **settings), x, y


def onto_plane(x, y):
    mean = (x.sum() + y.sum()) / (len(x) + len(y))
    x.sub_(mean)
    y.sub_(mean)


def test_it_takes_the_steps_of_the_array_method():
    n, settings = 5, {"alpha": 0.1, "beta": 0.1, "eta": 0.1, "gamma1": 0.5, "gamma2": 0.6, "c0": 10.0, "p": 0.3}
    optimizer, x, y = toy(n, tol=1e-12, **settings)
    figures = [optimizer.step() for _ in range(200)]
    with pytest.warns(ConvergenceWarning):
        result = minimize_bilevel(
            lambda x, y: 0.5 * np.sum((x - y[n:]) ** 2) + 0.5 * np.sum((y[:n] - 1) ** 2),
            lambda x, y: 0.5 * y[:n] @ y[:n] - x @ y[:n] + y[n:].sum(),
            np.full(n, 10.0),
            np.full(2 * n, 10.0),
            jac_upper=lambda x, y: (x - y[n:], np.concatenate([y[:n] - 1, y[n:] - x])),
            jac_lower=lambda x, y: (-y[:n], np.concatenate([y[:n] - x, np.ones(n)])),
            constraints=LinearConstraint(np.ones((1, 3 * n)), 0, 0),
            max_iter=200,
            options={"variant": "paper", **settings},
        )
    np.testing.assert_allclose(x.detach().numpy(), result.x, atol=1e-6)
    np.testing.assert_allclose(y.detach().numpy(), result.y, atol=1e-6)
    np.testing.assert_allclose(optimizer.multipliers[0].numpy(), result.multipliers[0], atol=1e-6)
    assert figures[-1].nit == 200 and figures[-1].violation < 1e-10
    assert figures[-1].penalty == pytest.approx(10.0 * 200**0.3)


def test_it_finds_the_optimum_of_the_toy():
    optimizer, x, y = toy(c0=10.0, projection=lambda: onto_plane(x, y))
    for _ in range(3000):
        last = optimizer.step()
    assert float((x.detach() + 0.3).abs().max()) < 0.02 and float((y.detach()[:5] - 0.7).abs().max()) < 0.02
    assert float(optimizer.multipliers[0] + 1.0) == pytest.approx(0.0, abs=0.02)
    assert 0 <= last.gap < 1e-3 and last.violation < 1e-10 and not last.at_bound


def network(dtype=torch.float32):
    """A network whose layers live in balls with radii that are hyper-parameters; dropout, and batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1)).to(dtype)
    radii = torch.full((2,), 2.0, dtype=dtype, requires_grad=True)
    data = torch.randn(64, 4, dtype=dtype)
    target = torch.sin(data.sum(1, keepdim=True))

    def loss(chosen):
        return (model(data[chosen]) - target[chosen]).square().mean()

    def balls():
        return torch.stack([model[0].weight.square().sum(), model[3].weight.square().sum()]) - radii

    make = lambda: LVHBA(  # noqa: E731
        lambda batch: loss(batch[1]),
        lambda batch: loss(batch[0]),
        [radii],
        model.parameters(),
        constraints=CoupledConstraint(balls),
        bounds_x=(0.1, 10.0),
    )
    batches = [(torch.randperm(32)[:8], 32 + torch.randperm(32)[:8]) for _ in range(30)]
    return make, model, radii, balls, batches


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_resumed_run_equals_the_whole_one(dtype):
    make, model, radii, balls, batches = network(dtype)
    optimizer = make()
    for batch in batches[:10]:
        optimizer.step(batch)
    saved = copy.deepcopy((model.state_dict(), radii.detach(), optimizer.state_dict(), torch.get_rng_state()))
    for batch in batches[10:]:
        optimizer.step(batch)
    whole = [t.detach().clone() for t in (*model.parameters(), radii)]
    model.load_state_dict(saved[0])
    radii.data.copy_(saved[1])
    torch.set_rng_state(saved[3])
    resumed = make()
    resumed.load_state_dict(saved[2])
    for batch in batches[10:]:
        last = resumed.step(batch)
    for one, other in zip(whole, (*model.parameters(), radii), strict=True):
        assert torch.equal(one, other)
    assert float(balls().detach().max()) <= 2e-4 and float(radii.detach().min()) >= 0.1 and float(radii.detach().max()) <= 10.0
    assert last.violation == max(0.0, float(balls().detach().max()))
    assert radii.grad is None and all(p.grad is None for p in model.parameters())


def test_it_learns():
    make, model, _, _, batches = network()
    model.eval()
    optimizer = make()
    figures = [optimizer.step(batch) for _ in range(10) for batch in batches]
    upper = [one.upper for one in figures]
    assert np.mean(upper[-30:]) < 0.6 * np.mean(upper[:30])


def test_all_evaluations_of_a_step_draw_the_same_and_steps_do_not():
    x, y, drawn = torch.zeros(1, requires_grad=True), torch.ones(1, requires_grad=True), []

    def loss():
        drawn.append(float(torch.rand(())))
        return (y - x).square().sum()

    optimizer = LVHBA(loss, loss, [x], [y])
    optimizer.step()
    drawn.clear()
    torch.manual_seed(0)
    optimizer.step()
    assert len(drawn) == 4 and len(set(drawn)) == 1
    optimizer.step()
    assert len(set(drawn)) == 2


def test_a_projection_of_the_user_and_bounds():
    optimizer, x, y = toy(bounds_y=(-1.0, 12.0))
    optimizer.step()
    assert float(y.detach().min()) >= -1.0
    optimizer, x, y = toy(projection=lambda: onto_plane(x, y))
    other, x2, _ = toy()
    for _ in range(20):
        optimizer.step()
        other.step()
    torch.testing.assert_close(x, x2, atol=1e-6, rtol=0)


def test_the_bound_of_multipliers():
    optimizer, *_ = toy(r=1e-3)
    assert any(optimizer.step().at_bound for _ in range(20))
    optimizer, *_ = toy()
    optimizer.step()
    optimizer.steps = type(optimizer.steps)(**{**vars(optimizer.steps), "r": 1e-3})
    bounds = [optimizer.step() for _ in range(50)]
    assert bounds[-1].r > 0.01 and not any(one.at_bound for one in bounds)


def test_many_rows_share_a_factor():
    """Consensus of copies: 100 equations."""
    x, y = torch.zeros(50, requires_grad=True), torch.zeros(3, 50, requires_grad=True)
    targets = torch.arange(3.0)[:, None]
    same = CoupledConstraint(lambda: (y[:2] - y[2]).reshape(-1), kind="eq")
    upper, lower = lambda: (y[0] - 3).square().sum() + x.square().sum(), lambda: (y - targets - x).square().sum()
    assert LVHBA(upper, lower, [x], [y], constraints=same).step().violation < 1e-4
    mean = lambda: y.copy_(y.mean(0).expand(3, 50))  # noqa: E731
    optimizer = LVHBA(upper, lower, [x], [y], constraints=same, p=0.49, projection=mean)
    for _ in range(3000):
        last = optimizer.step()
    assert last.violation < 1e-4
    assert optimizer.multipliers[0].shape == (100,)
    # y = 1 + x, so F = (x - 2)^2 + x^2
    assert float((x.detach() - 1).abs().max()) < 0.15 and float((y.detach() - 2).abs().max()) < 0.15


def test_what_is_not_finite_changes_nothing():
    x, y = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = LVHBA(lambda s: (s * (y - x)).square().sum(), lambda s: (y - 2 * x).square().sum() * s, [x], [y])
    optimizer.step(1.0)
    before, state = (x.detach().clone(), y.detach().clone()), optimizer.state_dict()
    with pytest.raises(FloatingPointError, match="lower is nan, or its gradient is not finite"):
        optimizer.step(math.nan)
    assert torch.equal(before[0], x) and torch.equal(before[1], y)
    after = optimizer.state_dict()
    assert all(torch.equal(state[name], after[name]) for name in ("z", "theta", "lam", "scale")) and after["k"] == 1
    optimizer = LVHBA(lambda: (y - x).square().sum(), lambda: (y - 2 * x).square().sum(), [x], [y], alpha=1e25)
    optimizer.step()
    with pytest.raises(FloatingPointError, match="smaller steps"):
        optimizer.step()
    assert bool(torch.isfinite(x).all())


def test_what_is_refused():
    x, y = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    loss = lambda: (y - x).square().sum()  # noqa: E731
    for error, words, arguments, settings in (
        (ValueError, "belongs to one level", (loss, loss, [x], [x]), {}),
        (ValueError, "hparams is empty", (loss, loss, [], [y]), {}),
        (ValueError, "one dtype", (loss, loss, [x], [torch.zeros(1, dtype=torch.float64, requires_grad=True)]), {}),
        (TypeError, "lower must be callable", (loss, 1.0, [x], [y]), {}),
        (TypeError, "projection must be callable", (loss, loss, [x], [y]), {"projection": 1}),
        (TypeError, r"constraints\[0\] must be a CoupledConstraint", (loss, loss, [x], [y]), {"constraints": [loss]}),
        (ValueError, "has jac or vjp", (loss, loss, [x], [y]), {"constraints": CoupledConstraint(loss, jac=loss)}),
        (ValueError, "alpha", (loss, loss, [x], [y]), {"alpha": -1.0}),
        (ValueError, "p must be", (loss, loss, [x], [y]), {"p": 0.5}),
        (ValueError, "bounds_y must be", (loss, loss, [x], [y]), {"bounds_y": (1.0, 0.0)}),
        (ValueError, "tol", (loss, loss, [x], [y]), {"tol": 0.0}),
    ):
        with pytest.raises(error, match=words):
            LVHBA(*arguments, **settings)
    for words, upper, lower, constraints in (
        ("upper must return a scalar tensor", lambda: y - x, loss, ()),
        ("lower does not depend on params", loss, lambda: x.sum(), ()),
        (r"fun of constraints\[0\] must return a vector", loss, loss, CoupledConstraint(lambda: y.sum())),
        ("no point of the set was found", loss, loss, CoupledConstraint(lambda: (y.square().sum() + 1)[None])),
    ):
        with pytest.raises(ValueError, match=words):
            LVHBA(upper, lower, [x], [y], constraints=constraints).step()
    optimizer = LVHBA(loss, loss, [x], [y])
    assert optimizer.state_dict() == {} and optimizer.multipliers == []
    optimizer.load_state_dict({})
    optimizer.step()
    with pytest.raises(ValueError, match="state must have the entries"):
        optimizer.load_state_dict({"z": torch.zeros(0)})
    other, *_ = toy(2)
    other.step()
    with pytest.raises(ValueError, match=r"state\['z'\] must have shape \(0,\), got \(1,\)"):
        optimizer.load_state_dict(other.state_dict())


def plain(state):
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in state.items()}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("good", [0, 2])
def test_a_step_that_fails_leaves_no_trace(good, late, monkeypatch):
    """Before it or after it the projection has found multipliers, and the functions their scales."""

    def fault(levels, w):
        raise ArithmeticError

    runs = []
    for fails in (False, True):
        torch.manual_seed(0)
        x, y = torch.zeros(3, requires_grad=True), torch.ones(3, requires_grad=True)
        ball = CoupledConstraint(lambda y=y, x=x: (y.square().sum() - 1 + x.sum())[None])
        lower = lambda size, y=y, x=x: size * (y - 2 - x - 0.1 * torch.randn(3)).square().sum()  # noqa: E731
        optimizer = LVHBA(lambda size, y=y, x=x: size * (x - 1 - y).square().sum(), lower, [x], [y], constraints=ball)
        for _ in range(good):
            optimizer.step(1.0)
        if fails:
            before, drawn = ([*x.tolist(), *y.tolist()], plain(optimizer.state_dict()), optimizer.steps), torch.get_rng_state()
            with monkeypatch.context() as patch:
                patch.setattr(Levels, "violation", fault)
                with pytest.raises(ArithmeticError):
                    optimizer.step(100.0 if late else math.nan)
            assert before == ([*x.tolist(), *y.tolist()], plain(optimizer.state_dict()), optimizer.steps)
            assert torch.equal(drawn, torch.get_rng_state())
        figures = [optimizer.step(1.0) for _ in range(3)]
        runs.append((x.tolist(), y.tolist(), figures, plain(optimizer.state_dict())))
    assert runs[0] == runs[1]


def test_a_state_is_checked_before_it_is_taken():
    optimizer, *_ = toy(2)
    optimizer.step()
    good, steps = optimizer.state_dict(), optimizer.steps
    for name, value, words in (
        ("z", torch.zeros(2), r"\['z'\] must have shape \(1,\), got \(2,\)"),
        ("lam", torch.zeros(1, 1), r"\['lam'\] must have shape"),
        ("theta", good["theta"] * math.nan, r"\['theta'\] is not finite"),
        ("dual", torch.zeros(3), r"\['dual'\] must have shape"),
        ("dual", [0.0], r"\['dual'\] must be a tensor, got list"),
        ("scale", -good["scale"], r"\['scale'\] must be positive"),
        ("k", -1, r"\['k'\] must be >= 0"),
        ("k", 1.5, r"\['k'\] must be an integer"),
        ("factors", [1.0], r"\['factors'\] must have the entries"),
        ("factors", [1.0, math.nan], r"\['factors'\]\[1\] must be finite"),
        ("steps", {"alpha": 1.0}, r"\['steps'\] must have the entries"),
        ("steps", {**good["steps"], "eta": 0.0}, r"\['steps'\]\['eta'\] must be finite and > 0"),
        ("steps", None, r"\['steps'\] must have the entries"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            optimizer.load_state_dict({**good, "k": 7, "factors": [2.0, 3.0], name: value})
        assert plain(optimizer.state_dict()) == plain(good) and optimizer.steps == steps
    with pytest.raises(TypeError, match="state must be a mapping"):
        optimizer.load_state_dict([1])
    optimizer.load_state_dict({**good, "k": 7})
    assert optimizer.step().nit == 8


def test_constraints_keep_their_number_of_rows():
    for count in (1, 0):
        x, y, rows = torch.zeros(1, requires_grad=True), torch.ones(2, requires_grad=True), [count]
        given = [CoupledConstraint(lambda y=y: y - 5), CoupledConstraint(lambda y=y, rows=rows: y[: rows[0]] - 5)][count == 0 :]
        optimizer = LVHBA(lambda: (x - y).square().sum(), lambda: (y - x - 2).square().sum(), [x], [y], constraints=given)  # noqa: B023
        optimizer.step()
        rows[0] = 2
        with pytest.raises(ValueError, match=rf"constraints\[{len(given) - 1}\] returned 2 rows, and {count} before"):
            optimizer.step()


def test_a_constraint_without_rows_is_none():
    results = []
    for rows in (None, 0, [0, 2]):
        x, y = torch.zeros(1, requires_grad=True), torch.ones(2, requires_grad=True)
        given = () if rows is None else [CoupledConstraint(lambda y=y, n=n: y[:n] - 50) for n in np.atleast_1d(rows)]
        optimizer = LVHBA(
            lambda x=x, y=y: (x - y).square().sum(), lambda x=x, y=y: (y - x - 2).square().sum(), [x], [y],
            constraints=given, alpha=0.01, beta=0.01, eta=0.01,
        )  # fmt: skip
        assert [optimizer.step().violation for _ in range(3)] == [0.0] * 3
        assert [len(one) for one in optimizer.multipliers] == ([] if rows is None else list(np.atleast_1d(rows)))
        results.append([*x.tolist(), *y.tolist()])
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_measured_around_the_start(dtype):
    """The slope of a ball nearly vanishes at its centre, that of a constant row is rounding, and a root ends near by."""
    x, y = torch.ones(1, dtype=dtype, requires_grad=True), torch.full((3,), 1e-6, dtype=dtype, requires_grad=True)
    tiny = 1e-3 * torch.finfo(dtype).eps
    rows = lambda: torch.stack([y.square().sum() - 1, tiny * y[0] - 1, -(y[1] + 0.05).sqrt()])  # noqa: E731
    upper, lower = lambda: (x - 1).square().sum(), lambda: (y - 2 * x).square().sum()
    optimizer = LVHBA(upper, lower, [x], [y], constraints=CoupledConstraint(rows))
    optimizer.step()
    scale = optimizer.state_dict()["scale"].tolist()
    assert 1 < scale[0] < 50 and scale[1] == 1.0 and 0.1 < scale[2] < 2
    assert max(optimizer.step().violation for _ in range(20)) < 1e-4


def test_what_has_no_graph_or_is_not_finite_is_named():
    x, y, on = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True), [1.0]
    loss = lambda: (y - x).square().sum()  # noqa: E731
    graph = "without a graph.*: compute it when it is called"

    def spoil():
        y.mul_(math.nan)

    first = CoupledConstraint(lambda: x - 9)
    cut, wrong = CoupledConstraint(lambda: y.data - 9), CoupledConstraint(lambda: y * math.nan)
    for error, words, upper, lower, settings in (
        (ValueError, f"upper returned a tensor {graph}", lambda: loss().detach(), loss, {}),
        (ValueError, f"upper returned a tensor {graph}", lambda: torch.ones(2, requires_grad=True).sum(), loss, {}),
        (ValueError, f"lower returned a tensor {graph}", loss, lambda: loss().detach(), {}),
        (ValueError, rf"constraints\[1\] returned a tensor {graph}", loss, loss, {"constraints": [first, cut]}),
        (FloatingPointError, r"constraints\[1\] is not finite", loss, loss, {"constraints": [first, wrong]}),
        (FloatingPointError, r"projection\(\) left numbers", loss, loss, {"projection": spoil}),
    ):
        with pytest.raises(error, match=words):
            LVHBA(upper, lower, [x], [y], **settings).step()
        assert x.tolist() == [0, 0] and y.tolist() == [1, 1]
    for last in (math.nan, -math.inf):  # later, while multipliers are 0
        on[0] = 1.0
        optimizer = LVHBA(loss, lambda: (y - 2 * x).square().sum(), [x], [y], constraints=CoupledConstraint(lambda: y * on[0] - 9))
        optimizer.step()
        on[0] = last
        with pytest.raises(FloatingPointError, match=r"constraints\[0\] is not finite"):
            optimizer.step()
        x.data.zero_()
        y.data.fill_(1.0)
