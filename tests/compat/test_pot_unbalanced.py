"""POT's functions for marginals at a price, here against POT's own, on the same calls."""

import inspect
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose

from otbilevel import ConvergenceWarning
from otbilevel.compat import pot

ot = pytest.importorskip("ot")

TIGHT = {"numItermax": 200_000, "stopThr": 1e-14}
ACCURATE = {"stopThr": 1e-10}
INF = float("inf")
PAIRS = [0.5, (2.0, 0.3), (INF, 0.7), (0.2, INF), [3.0]]
METHODS = ("sinkhorn", "sinkhorn_stabilized", "sinkhorn_translation_invariant", "sinkhorn_reg_scaling")


def problem(seed=0, n=20, m=16):
    rng = np.random.default_rng(seed)
    return rng.random(n) * 3 / n, rng.random(m) * 2 / m, rng.random((n, m))


def quietly(function, *args, **kwargs):
    """POT's own, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def reference(kind, shape):
    return {"c": np.random.default_rng(9).random(shape)} if kind == "c" else {"reg_type": kind}


def divergence(p, q, *, mass=0.0):
    """sum p log(p/q) - mass (sum p - sum q)."""
    return np.sum(p * np.log(p / q)) - mass * (p.sum() - q.sum())


@pytest.mark.parametrize("name", ["sinkhorn_unbalanced", "sinkhorn_unbalanced2", "entropic_partial_wasserstein"])
def test_the_signatures_are_those_of_pot(name):
    part = "partial" if "partial" in name else "unbalanced"
    ours, theirs = (inspect.signature(getattr(getattr(module, part), name)) for module in (pot, ot))
    assert [(p.name, p.default, p.kind) for p in ours.parameters.values()] == [
        (p.name, p.default, p.kind) for p in theirs.parameters.values()
    ]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["kl", "entropy", "c"])
@pytest.mark.parametrize("reg", [0.05, 1.0])
@pytest.mark.parametrize("reg_m", PAIRS)
def test_plans_costs_and_logs_are_those_of_pot(reg_m, reg, kind, seed):
    a, b, M = problem(seed)
    options = reference(kind, M.shape)
    theirs, their_log = quietly(ot.sinkhorn_unbalanced, a, b, M, reg, reg_m, log=True, **options, **TIGHT)
    ours, log = pot.sinkhorn_unbalanced(a, b, M, reg, reg_m, log=True, **options, **ACCURATE)
    assert_allclose(ours, theirs, atol=1e-9)
    assert set(their_log) <= set(log)
    for name in ("logu", "logv", "cost", "total_cost"):
        assert_allclose(log[name], their_log[name], rtol=1e-7, atol=1e-7, err_msg=name)
    measure = {"kl": np.outer(a, b), "entropy": 1.0, "c": options.get("c")}[kind]
    assert_allclose(log["u"][:, None] * (measure * np.exp(-M / reg)) * log["v"], ours, rtol=1e-10)
    assert log["err"][-1] <= 1e-10
    assert log["niter"] == log["result"].nit
    for kind_of_cost in ("linear", "total"):
        expected = quietly(ot.sinkhorn_unbalanced2, a, b, M, reg, reg_m, returnCost=kind_of_cost, **options, **TIGHT)
        cost = pot.sinkhorn_unbalanced2(a, b, M, reg, reg_m, returnCost=kind_of_cost, **options, **ACCURATE)
        assert type(cost) is type(expected) is np.float64
        assert_allclose(cost, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (6, 1), (3, 30)])
@pytest.mark.parametrize("kind", ["kl", "entropy", "c"])
def test_shapes(shape, kind):
    a, b, M = problem(3, *shape)
    options = reference(kind, shape)
    theirs = quietly(ot.sinkhorn_unbalanced, a, b, M, 0.2, (1.0, 0.4), **options, **TIGHT)
    assert_allclose(pot.sinkhorn_unbalanced(a, b, M, 0.2, (1.0, 0.4), **options, **ACCURATE), theirs, atol=1e-9)


def test_the_default_accuracy_is_that_of_pot():
    a, b, M = problem()
    theirs = ot.sinkhorn_unbalanced(a, b, M, 0.1, 1.0, **TIGHT)
    ours, log = pot.sinkhorn_unbalanced(a, b, M, 0.1, 1.0, log=True)
    assert np.abs(ours - theirs).sum() < 1e-5
    assert log["err"][-1] <= 1e-6


@pytest.mark.parametrize("name", METHODS)
def test_every_algorithm_is_this_one(name):
    a, b, M = problem()
    options = {"tau": 1e100} if name == "sinkhorn_stabilized" else {}
    theirs, their_log = quietly(ot.sinkhorn_unbalanced, a, b, M, 0.3, 1.0, method=name, log=True, **options, **TIGHT)
    ours, log = pot.sinkhorn_unbalanced(a, b, M, 0.3, 1.0, method=name.upper(), log=True, **options, **ACCURATE)
    assert_allclose(ours, theirs, atol=1e-7)
    assert set(their_log) <= set(log)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("reg_m", [0.5, (2.0, 0.3), (INF, 0.7)])
def test_several_histograms(reg_m, k):
    a, _, M = problem()
    B = np.random.default_rng(5).random((16, k))
    theirs, their_log = quietly(ot.sinkhorn_unbalanced2, a, B, M, 0.1, reg_m, log=True, **TIGHT)
    for function in (pot.sinkhorn_unbalanced, pot.sinkhorn_unbalanced2):
        ours, log = function(a, B, M, 0.1, reg_m, reg_type="entropy", log=True, **ACCURATE)
        assert ours.shape == (k,)
        assert_allclose(ours, theirs, rtol=1e-8)
        with pytest.warns(UserWarning, match="reg_type is 'entropy', as in POT") as caught:
            assert_allclose(function(a, B, M, 0.1, reg_m, **ACCURATE), theirs, rtol=1e-8)
        assert [warning.filename for warning in caught] == [__file__]
    assert set(their_log) <= set(log)
    for name in ("logu", "logv"):
        assert_allclose(log[name], their_log[name], atol=1e-7)
    assert len(log["result"]) == k
    again = pot.sinkhorn_unbalanced2(a, B, M, 0.1, reg_m, reg_type="entropy", warmstart=(log["logu"], log["logv"]), log=True)[1]
    assert max(result.nit for result in again["result"]) <= 1


@pytest.mark.parametrize("kind", ["kl", "entropy", "c"])
def test_warm_starts(kind):
    a, b, M = problem()
    options = reference(kind, M.shape)
    log = pot.sinkhorn_unbalanced(a, b, M, 0.05, (1.0, 0.3), log=True, **options, **ACCURATE)[1]
    again = pot.sinkhorn_unbalanced(a, b, M, 0.05, (1.0, 0.3), log=True, warmstart=(log["logu"], log["logv"]), **options)[1]
    assert again["niter"] <= 1 < log["niter"]


@pytest.mark.parametrize("kind", ["kl", "entropy", "c"])
def test_zero_weights(kind):
    a, b, M = problem()
    a[3] = b[[0, 7]] = 0
    rows, columns = a > 0, b > 0
    options = reference(kind, M.shape)
    part = {name: value[np.ix_(rows, columns)] if name == "c" else value for name, value in options.items()}
    plan, log = pot.sinkhorn_unbalanced(a, b, M, 0.1, (1.0, 0.3), log=True, **options, **ACCURATE)
    theirs, their_log = quietly(
        ot.sinkhorn_unbalanced, a[rows], b[columns], M[np.ix_(rows, columns)], 0.1, (1.0, 0.3), log=True, **part, **TIGHT
    )
    assert_allclose(plan[np.ix_(rows, columns)], theirs, atol=1e-9)
    assert plan.sum() == pytest.approx(theirs.sum())
    assert_allclose(log["cost"], their_log["cost"], rtol=1e-7)
    start = log["logu"], log["logv"]
    again = pot.sinkhorn_unbalanced(a, b, M, 0.1, (1.0, 0.3), warmstart=start, log=True, **options)[1]
    assert again["niter"] <= 1


def test_a_measure_that_forbids_pairs():
    a, b, M = problem()
    c = reference("c", M.shape)["c"]
    c[c < 0.2] = 0
    theirs = quietly(ot.sinkhorn_unbalanced, a, b, M, 0.1, (INF, 0.3), c=c, **TIGHT)
    ours, log = pot.sinkhorn_unbalanced(a, b, M, 0.1, (INF, 0.3), c=c, log=True, **ACCURATE)
    assert_allclose(ours, theirs, atol=1e-9)
    assert (ours[c == 0] == 0).all()
    used = ours > 0
    expected = np.sum(ours * M) + 0.1 * divergence(ours[used], c[used])
    expected += 0.3 * divergence(ours.sum(0), b)
    assert log["total_cost"] == pytest.approx(expected, rel=1e-9)
    forbidden = np.where(c == 0, np.inf, M)
    _, log = pot.sinkhorn_unbalanced(a, b, forbidden, 0.1, 1.0, log=True, reg_type="entropy")
    assert np.isfinite(log["cost"])


def test_the_total_without_terms_of_mass_is_zero_where_no_side_is_fixed():
    a, b, M = problem()
    total, log = pot.sinkhorn_unbalanced2(a, b, M, 0.1, (1.0, 0.3), returnCost="total", log=True, **ACCURATE)
    assert abs(total) < 1e-8
    theirs = ot.sinkhorn_unbalanced2(a, b, M, 0.1, (1.0, 0.3), returnCost="total", **TIGHT)
    assert abs(theirs) < 1e-8
    P = pot.sinkhorn_unbalanced(a, b, M, 0.1, (1.0, 0.3), **ACCURATE)
    value = np.sum(P * M) + 0.1 * divergence(P, np.outer(a, b), mass=1.0)
    value += divergence(P.sum(1), a, mass=1.0) + 0.3 * divergence(P.sum(0), b, mass=1.0)
    assert log["result"].value == pytest.approx(value, rel=1e-8)


def test_infinite_prices_are_exact_marginals():
    a, b, M = problem()
    b *= a.sum() / b.sum()
    for reg_m in (INF, (INF, INF), np.array([INF])):
        assert_allclose(pot.sinkhorn_unbalanced(a, b, M, 0.1, reg_m, **ACCURATE), pot.sinkhorn(a, b, M, 0.1), atol=1e-9)
    with pytest.raises(ValueError, match="mass"):
        pot.sinkhorn_unbalanced(a, 2 * b, M, 0.1, INF)


def test_small_reg_that_plain_sinkhorn_cannot_do():
    a, b, M = problem()
    reg, price = 3e-4, 0.1
    ours, log = pot.sinkhorn_unbalanced(a, b, M, reg, price, log=True, **ACCURATE)
    assert log["result"].success
    # the optimality condition of the divergences: the marginals are w exp(-p / price), p = reg log u
    assert_allclose(ours.sum(1), a * np.exp(-reg * log["logu"] / price), rtol=1e-6)
    assert_allclose(ours.sum(0), b * np.exp(-reg * log["logv"] / price), rtol=1e-6)


def scaling(a, b, M, reg, prices, measure):
    """The scaling algorithm of Chizat et al. for total variation, against any measure, in plain NumPy."""
    log_kernel, f, g, before = np.log(measure) - M / reg, np.zeros_like(a), np.zeros_like(b), np.inf
    while np.max(np.abs(f - before)) > 1e-13:
        before = f
        soft = np.logaddexp.reduce(log_kernel + g / reg, axis=1)
        f = np.clip(reg * (np.log(a) - soft), -prices[0], prices[0])
        soft = np.logaddexp.reduce(log_kernel + f[:, None] / reg, axis=0)
        g = np.clip(reg * (np.log(b) - soft), -prices[1], prices[1])
    return np.exp(log_kernel + (f[:, None] + g) / reg)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["KL", "entropy", "c"])
@pytest.mark.parametrize("penalty", ["KL", "tv"])
def test_solve_is_that_of_pot(penalty, kind, seed):
    a, b, M = problem(seed, 7, 5)
    reg, prices = 0.1, (0.5, 0.3)
    options = reference(kind, M.shape)
    ours = pot.solve(M, a, b, reg=reg, unbalanced=prices, unbalanced_type=penalty, **options)
    theirs = quietly(ot.solve, M, a, b, reg=reg, unbalanced=prices, unbalanced_type=penalty, max_iter=2000, tol=1e-15, **options)
    measure = {"KL": np.outer(a, b), "entropy": np.ones_like(M), "c": options.get("c")}[kind]
    if penalty == "KL":
        atol = 2e-6 if theirs.potentials is None else 1e-8  # L-BFGS-B
        assert_allclose(ours.plan, theirs.plan, atol=atol)
        assert_allclose(ours.value, theirs.value, atol=1e-8)
        assert_allclose(ours.value_linear, theirs.value_linear, atol=atol)
        assert_allclose(ours.marginal_a, theirs.plan.sum(1), atol=atol)
        if theirs.potentials is not None:
            assert_allclose(ours.potential_a, theirs.potential_a, atol=1e-6)
            assert_allclose(ours.potential_b, theirs.potential_b, atol=1e-6)
    else:  # where POT's L-BFGS-B stops at a kink
        assert_allclose(ours.plan, scaling(a, b, M, reg, prices, measure), atol=1e-8)
        assert ours.value <= theirs.value + 1e-9
        named = "entropy" if kind == "entropy" else "kl"
        objective = ot.unbalanced._lbfgs._get_loss_unbalanced(a, b, measure, M, reg, *prices, named, "tv")
        assert_allclose(ours.value, objective(ours.plan.ravel())[0], atol=1e-9)
        assert_allclose(ours.value_linear, np.sum(ours.plan * M), rtol=1e-9)
    u, v = ours.potentials
    assert_allclose(np.exp(u[:, None] + v - M / reg) * measure, ours.plan, rtol=1e-9)
    assert_allclose(ours.lazy_plan[:], ours.plan, rtol=1e-9)
    assert_allclose(ours.sparse_plan.toarray(), ours.plan, atol=1e-6)
    assert_allclose(ours.marginals[1], ours.plan.sum(0), rtol=1e-9)
    assert ours.status == "Converged"
    assert isinstance(ours, pot.OTResult) and "value=" in repr(ours)
    again = pot.solve(M, a, b, reg=reg, unbalanced=prices, unbalanced_type=penalty, potentials_init=ours.potentials, **options)
    assert again.result.nit <= 1


@pytest.mark.parametrize(("penalty", "prices"), [("KL", (INF, 0.4)), ("TV", (0.4, INF))])
@pytest.mark.parametrize("kind", ["KL", "entropy", "c"])
def test_solve_with_one_fixed_side(penalty, prices, kind):
    a, b, M = problem(0, 7, 5)
    reg, options = 0.2, reference(kind, M.shape)
    result = pot.solve(M, a, b, reg=reg, unbalanced=prices, unbalanced_type=penalty, **options)
    P, fixed = result.plan, prices.index(INF)
    r, s = P.sum(1), P.sum(0)
    assert_allclose((r, s)[fixed], (a, b)[fixed], atol=1e-8)
    relaxed, w = ((s, b), (r, a))[fixed]
    measure = {"KL": np.outer(a, b), "entropy": np.ones_like(M), "c": options.get("c")}[kind]
    masses = not (penalty == "KL" and kind != "entropy")
    value = np.sum(P * M) + reg * divergence(P, measure, mass=float(masses))
    value -= reg * measure.sum() if kind == "entropy" else 0
    value += 0.4 * (np.abs(relaxed - w).sum() if penalty == "TV" else divergence(relaxed, w, mass=float(masses)))
    assert result.value == pytest.approx(value, abs=1e-8)
    if penalty == "TV":
        assert_allclose(P, scaling(a, b, M, reg, prices, measure), atol=1e-8)


@pytest.mark.parametrize("metric", ["sqeuclidean", "chebyshev"])
@pytest.mark.parametrize(("penalty", "kind"), [("KL", "KL"), ("KL", "entropy"), ("KL", "c"), ("TV", "KL"), ("TV", "entropy")])
def test_solve_sample_is_solve(penalty, kind, metric):
    a, b, _ = problem()
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, 2)), rng.normal(size=(16, 2)) + 0.3
    options = {"reg": 0.5, "unbalanced": (1.0, 2.0), "unbalanced_type": penalty, **reference(kind, (20, 16))}
    ours = pot.solve_sample(x, y, a, b, metric=metric, lazy=True, **options)
    expected = pot.solve(ot.dist(x, y, metric), a, b, **options)
    for name in ("plan", "value", "value_linear", "potential_a", "marginal_b"):
        assert_allclose(getattr(ours, name), getattr(expected, name), atol=1e-7, err_msg=name)
    assert_allclose(ours.lazy_plan[2:5], expected.plan[2:5], atol=1e-7)


def test_other_measures_need_no_cost_matrix():
    a, b, _ = problem()
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, 2)), rng.normal(size=(16, 2))
    result = pot.solve_sample(x, y, a, b, reg=0.5, reg_type="entropy", unbalanced=1.0)
    assert type(result.result._plan.problem.geometry).__name__ == "PointCloud"


def test_debiased_values_are_those_of_pot():
    a, b, _ = problem()
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(20, 2)), rng.normal(size=(16, 2))
    theirs = ot.solve_sample(x, y, a, b, reg=0.5, unbalanced=1.0, debias=True, max_iter=100_000, tol=1e-14)
    ours = pot.solve_sample(x, y, a, b, reg=0.5, unbalanced=1.0, debias=True)
    for name in ("value", "value_linear", "plan", "potential_a"):
        assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-7, err_msg=name)
    assert ours.log["res_ab"].value != ours.value


@pytest.mark.parametrize("share", [None, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("reg", [0.05, 1.0])
@pytest.mark.parametrize("swapped", [False, True])
def test_partial_transport_is_that_of_pot(share, reg, swapped):
    a, b, M = problem()
    a, b, M = (b, a, M.T) if swapped else (a, b, M)
    mass = None if share is None else share * min(a.sum(), b.sum())
    options = {"numItermax": 1000, "stopThr": 1e-14, "method": "sinkhorn_log"}
    theirs, their_log = ot.partial.entropic_partial_wasserstein(a, b, M, reg, mass, log=True, **options)
    ours, log = pot.partial.entropic_partial_wasserstein(a, b, M, reg, mass, log=True)
    assert_allclose(ours, theirs, atol=1e-8)
    assert set(their_log) <= set(log)
    assert_allclose(log["partial_w_dist"], their_log["partial_w_dist"], atol=1e-8)
    assert log["err"][-1] < 1e-8
    assert ours.sum() == pytest.approx(min(a.sum(), b.sum()) * (share or 1.0), abs=1e-8)


def test_partial_transport_of_equal_masses_and_zero_weights():
    a, b, M = problem()
    b *= a.sum() / b.sum()
    assert_allclose(pot.partial.entropic_partial_wasserstein(a, b, M, 0.1), pot.sinkhorn(a, b, M, 0.1), atol=1e-8)
    a[4] = b[1] = 0
    plan = pot.partial.entropic_partial_wasserstein(a, b, M, 0.1, 0.5)
    part = pot.partial.entropic_partial_wasserstein(np.delete(a, 4), np.delete(b, 1), np.delete(np.delete(M, 4, 0), 1, 1), 0.1, 0.5)
    assert_allclose(np.delete(np.delete(plan, 4, 0), 1, 1), part, atol=1e-8)
    assert plan[4].sum() == plan[:, 1].sum() == 0
    assert_allclose(pot.partial.entropic_partial_wasserstein([], None, M, 0.1, 0.5).sum(), 0.5, atol=1e-8)


def test_every_library(backend, dtype):
    a, b, M = problem()
    c = reference("c", M.shape)["c"]
    A, B, C, R = (backend.asarray(x, dtype) for x in (a, b, M, c))
    atol = 1e-7 if dtype == "float64" else 1e-5
    for options, expected in (({}, {}), ({"reg_type": "entropy"}, {"reg_type": "entropy"}), ({"c": R}, {"c": c})):
        plan, log = pot.sinkhorn_unbalanced(A, B, C, 0.1, (1.0, 0.3), log=True, **options)
        theirs, their_log = pot.sinkhorn_unbalanced(a, b, M, 0.1, (1.0, 0.3), log=True, **expected)
        assert_allclose(backend.to_numpy(plan), theirs, atol=atol)
        for array in (plan, log["logu"], log["v"]):
            assert backend.owns(array)
            assert backend.dtype_name(array) == dtype
        for name in ("cost", "total_cost"):
            assert float(log[name]) == pytest.approx(float(their_log[name]), abs=1e-5)
            assert log[name].dtype == C.dtype
    result = pot.solve(C, A, B, reg=0.1, unbalanced=0.4, unbalanced_type="TV", reg_type="entropy")
    expected = pot.solve(M, a, b, reg=0.1, unbalanced=0.4, unbalanced_type="TV", reg_type="entropy")
    assert_allclose(backend.to_numpy(result.plan), expected.plan, atol=10 * atol)
    assert float(result.value) == pytest.approx(float(expected.value), abs=1e-5)
    assert backend.dtype_name(result.potential_a) == dtype
    plan = pot.partial.entropic_partial_wasserstein(A, B, C, 0.1, 0.5)
    assert backend.dtype_name(plan) == dtype
    assert_allclose(backend.to_numpy(plan), pot.partial.entropic_partial_wasserstein(a, b, M, 0.1, 0.5), atol=10 * atol)


def test_tensors():
    torch = pytest.importorskip("torch")
    a, b, M, price = (torch.tensor(x) for x in (*problem(), np.array([1.0, 0.3])))
    theirs = ot.sinkhorn_unbalanced(a, b, M, 0.1, price, **TIGHT)
    assert_allclose(pot.sinkhorn_unbalanced(a.tolist(), b.tolist(), M, 0.1, price, **ACCURATE).numpy(), theirs.numpy(), atol=1e-9)
    loss = pot.sinkhorn_unbalanced2(a, b, M, 0.1, price, returnCost="total")
    assert isinstance(loss, torch.Tensor) and loss.shape == ()
    assert pot.sinkhorn_unbalanced2(a, torch.stack([b, b], 1), M, 0.1, 1, reg_type="entropy").shape == (2,)
    tracked = torch.ones_like(M).requires_grad_()
    with pytest.raises(TypeError, match=r"c is a tensor that requires gradients"):
        pot.solve(M, a, b, reg=0.1, unbalanced=1.0, c=tracked)
    assert pot.solve(M, a, b, reg=0.1, unbalanced=1.0, c=tracked, grad="detach").status == "Converged"


def test_arguments_are_not_changed():
    given = (*problem(), reference("c", (20, 16))["c"])
    copies = [x.copy() for x in given]
    a, b, M, c = given
    pot.sinkhorn_unbalanced(a, b, M, 0.1, 1.0, c=c)
    pot.sinkhorn_unbalanced(a, b, M, 0.1, 1.0, reg_type="entropy")
    pot.partial.entropic_partial_wasserstein(a, b, M, 0.1, 0.3)
    for x, copy in zip(given, copies, strict=True):
        assert np.array_equal(x, copy)


def test_a_solver_that_stops_short_warns_where_it_was_called():
    a, b, M = problem()
    x = np.random.default_rng(1).normal(size=(20, 2))
    calls = (
        lambda: pot.sinkhorn_unbalanced(a, b, M, 0.001, 1.0, numItermax=3),
        lambda: pot.sinkhorn_unbalanced2(a, b, M, 0.001, 1.0, numItermax=3),
        lambda: pot.solve(M, a, b, reg=0.001, unbalanced=1.0, max_iter=3),
        lambda: pot.solve_sample(x, x[:16], a, b, reg=0.001, unbalanced=1.0, max_iter=3),
        lambda: pot.partial.entropic_partial_wasserstein(a, b, M, 0.001, 0.5, numItermax=3),
    )
    for call in calls:
        with pytest.warns(ConvergenceWarning, match="is reached: raise it") as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(ConvergenceWarning, match="numItermax = 3"):
        _, log = pot.sinkhorn_unbalanced(a, b, M, 0.001, 1.0, numItermax=3, log=True)
    assert "> stopThr" in log["warning"]
    assert log["err"][-1] > 1e-6


A, B, M = problem()
SEVERAL = np.stack([B, B], axis=1)
C = np.ones_like(M)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0.1, 0), ValueError, "reg_m must be"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0.1, (1, -2)), ValueError, "reg_m must be"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0.1, np.nan), ValueError, "reg_m must be"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0.1, -INF), ValueError, "reg_m must be"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0.1, None), TypeError, "reg_m must be a real number"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0.1, (1, 2, 3)), ValueError, "reg_m must be a number or a pair"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0, 1), ValueError, "reg must be"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 1e-20, 1), ValueError, "rounding of M"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0.1, 1, method="newton"), ValueError, "method must be one of"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0.1, 1, reg_type="l2"), ValueError, "reg_type must be one of"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0.1, 1, epsilon0=1), TypeError, "unexpected keyword argument 'epsilon0'"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0.1, 1, stopThr=-1), ValueError, "stopThr must be"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0.1, 1, numItermax=0), ValueError, "numItermax must be"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0.1, 1, verbose=2), TypeError, "verbose must be"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0.1, 1, log=2), TypeError, "log must be"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0.1, 1, warmstart=3), TypeError, "warmstart must be a pair"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0.1, 1, c=C[:3]), ValueError, "c must have the shape of M"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0.1, 1, c=-C), ValueError, "c must hold finite weights"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0.1, 1, c=0 * C), ValueError, "M or c forbids every pair of row 0"),
        (lambda: pot.sinkhorn_unbalanced(A, B, M, 0.1, 1, c=C, reg_type="entropy"), ValueError, "c is overwritten"),
        (lambda: pot.sinkhorn_unbalanced(-A, B, M, 0.1, 1, reg_type="entropy"), ValueError, r"a\[0\] is negative"),
        (lambda: pot.sinkhorn_unbalanced(A, B * np.nan, M, 0.1, 1, reg_type="entropy"), ValueError, r"b\[0\] is NaN"),
        (lambda: pot.sinkhorn_unbalanced(A[1:], B, M, 0.1, 1, c=C), ValueError, "a has 19 weights, but M or c has shape"),
        (lambda: pot.sinkhorn_unbalanced(A, B[1:], M, 0.1, 1, c=C), ValueError, "b must have shape"),
        (lambda: pot.sinkhorn_unbalanced(A, SEVERAL, M, 0.1, 1, c=C), ValueError, "c is for one histogram"),
        (lambda: pot.sinkhorn_unbalanced2(A, B, M, 0.1, 1, returnCost="all"), ValueError, "returnCost must be one of"),
        (
            lambda: pot.sinkhorn_unbalanced2(A, SEVERAL, M, 0.1, 1, reg_type="entropy", returnCost="total"),
            ValueError,
            "returnCost='total' is for one histogram",
        ),
        (lambda: pot.solve(M, A, B, unbalanced=1.0), NotImplementedError, "unbalanced=1.0 without reg.*small reg"),
        (lambda: pot.solve(M, A, B, reg=0, unbalanced=(1, 2)), NotImplementedError, "without reg"),
        (lambda: pot.solve(M, A, B, reg=1, unbalanced=1, unbalanced_type="L2"), NotImplementedError, "unbalanced_type='L2'"),
        (lambda: pot.solve(M, A, B, reg=1, unbalanced=1, unbalanced_type=None), NotImplementedError, "unbalanced_type=None"),
        (lambda: pot.solve(M, A, B, reg=1, unbalanced=0), ValueError, "unbalanced must be"),
        (lambda: pot.solve(M, A, B, reg=1, unbalanced=1, c=C, reg_type="entropy"), ValueError, "c is overwritten"),
        (lambda: pot.solve(M, A, B, reg=1, unbalanced=1, reg_type="L2"), NotImplementedError, "reg_type='L2'"),
        (lambda: pot.solve(M, A, SEVERAL, reg=1, unbalanced=1), ValueError, "b must be one-dimensional"),
        (lambda: pot.solve(M, A, B, reg=1, unbalanced=1, potentials_init=(A, A)), ValueError, r"potentials_init\[1\] must have"),
        (
            lambda: pot.solve(M, A * (A[0] < A), B, reg=1, unbalanced=1, unbalanced_type="TV", reg_type="entropy"),
            ValueError,
            "a has weights that are 0",
        ),
        (lambda: pot.solve_sample(M, M, reg=1, unbalanced=1, c=np.ones((20, 20)), debias=True), ValueError, "c is not for debias"),
        (lambda: pot.partial.entropic_partial_wasserstein(A, B, M, 0.1, 9.0), ValueError, r"m must be at most the smaller"),
        (lambda: pot.partial.entropic_partial_wasserstein(A, B, M, 0.1, 0), ValueError, "m must be"),
        (lambda: pot.partial.entropic_partial_wasserstein(A, B, M, 0), ValueError, "reg must be"),
        (lambda: pot.partial.entropic_partial_wasserstein(A, SEVERAL, M, 0.1), ValueError, "b must be one-dimensional"),
        (lambda: pot.partial.entropic_partial_wasserstein(A, B, M, 0.1, method="x"), ValueError, "method must be one of"),
        (lambda: pot.partial.entropic_partial_wasserstein(A, B, M, 0.1, stopThr=-1), ValueError, "stopThr must be"),
        (lambda: pot.partial.entropic_partial_wasserstein(-A, B, M, 0.1, 0.1), ValueError, r"a\[0\] is negative"),
    ],
)
def test_what_is_wrong_or_not_supported_is_refused_by_name(call, error, words):
    with pytest.raises(error, match=words):
        call()
