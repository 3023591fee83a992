"""POT's functions here against POT's own, on the same calls."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose

from otbilevel import ConvergenceWarning
from otbilevel.compat import pot

ot = pytest.importorskip("ot")

TIGHT = {"numItermax": 100_000, "stopThr": 1e-12}
"""For POT's functions, whose error in the plan is a multiple of their threshold."""
NAMES = ("sinkhorn", "sinkhorn_log", "sinkhorn_stabilized", "sinkhorn_epsilon_scaling", "greenkhorn")


def problem(seed=0, n=30, m=25):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m)), rng.random((n, m))


def clouds(seed=0, n=20, m=15):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)), rng.normal(size=(m, 2)) + 0.3


@pytest.mark.parametrize("name", ["sinkhorn", "sinkhorn2", "emd", "emd2", "solve", "solve_sample", "unif"])
def test_the_signatures_are_those_of_pot(name):
    ours, theirs = inspect.signature(getattr(pot, name)), inspect.signature(getattr(ot, name))
    expected = [p for p in theirs.parameters if (name, p) != ("unif", "type_as")]
    assert list(ours.parameters) == expected
    for parameter in expected:
        assert ours.parameters[parameter].default == theirs.parameters[parameter].default, parameter


@pytest.mark.parametrize("reg", [1.0, 0.05])
@pytest.mark.parametrize("shape", [(30, 25), (10, 40), (1, 6), (6, 1), (1, 1)])
def test_sinkhorn_is_that_of_pot(reg, shape):
    a, b, M = problem(1, *shape)
    theirs, their_log = ot.sinkhorn(a, b, M, reg, log=True, **TIGHT)
    ours, log = pot.sinkhorn(a, b, M, reg, log=True)
    assert_allclose(ours, theirs, atol=1e-9)
    # u and v up to the factor that moves from one to the other
    assert_allclose(np.outer(log["u"], log["v"]), np.outer(their_log["u"], their_log["v"]), rtol=1e-6)
    assert_allclose(log["u"][:, None] * np.exp(-M / reg) * log["v"], ours, rtol=1e-12)
    assert_allclose(np.exp(log["log_u"]), log["u"])
    assert log["err"][-1] < 1e-9
    assert log["niter"] == log["n_iter"] == log["result"].nit >= len(log["err"]) - 1
    assert log["warning"] is None
    assert_allclose(pot.sinkhorn2(a, b, M, reg), ot.sinkhorn2(a, b, M, reg, **TIGHT), rtol=1e-9)
    loss, log = pot.sinkhorn2(a, b, M, reg, log=True)
    assert_allclose(loss, np.sum(M * ours), rtol=1e-9)
    assert "u" in log


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_is_this_one(name):
    a, b, M = problem()
    options = {"numItermax": 100_000, "stopThr": 1e-9} if name == "greenkhorn" else {"tau": 1e100} if "stab" in name else {}
    theirs, their_log = ot.sinkhorn(a, b, M, 0.5, method=name, log=True, **options)
    ours, log = pot.sinkhorn(a, b, M, 0.5, method=name.upper(), log=True)
    assert_allclose(ours, theirs, atol=1e-7)
    assert set(their_log) <= set(log)
    assert ("warmstart" in log) == ("warmstart" in their_log)


def test_the_logarithms_of_stabilised_sinkhorn():
    a, b, M = problem()
    reg = 0.05
    _, theirs = ot.sinkhorn(a, b, M, reg, method="sinkhorn_stabilized", log=True, tau=1e100, **TIGHT)
    _, log = pot.sinkhorn(a, b, M, reg, method="sinkhorn_stabilized", log=True)
    for first, second in (("alpha", "beta"), ("logu", "logv")):
        assert_allclose(log[first][:, None] + log[second], theirs[first][:, None] + theirs[second], atol=1e-6)
    assert log["warmstart"] == (log["alpha"], log["beta"])


@pytest.mark.parametrize(("name", "k"), [("sinkhorn", 1), ("sinkhorn", 3), ("sinkhorn_log", 3)])
def test_several_histograms(name, k):
    a, _, M = problem()
    B = np.random.default_rng(5).dirichlet(np.ones(25), k).T
    theirs, their_log = ot.sinkhorn2(a, B, M, 0.1, method=name, log=True, **TIGHT)
    for function in (pot.sinkhorn, pot.sinkhorn2):
        ours, log = function(a, B, M, 0.1, method=name, log=True)
        assert ours.shape == (k,)
        assert_allclose(ours, theirs, rtol=1e-8)
    assert set(their_log) <= set(log)
    for i in range(k):
        assert_allclose(np.outer(log["u"][:, i], log["v"][:, i]), np.outer(their_log["u"][:, i], their_log["v"][:, i]), rtol=1e-6)
    assert len(log["result"]) == k
    assert log["err"][-1] == pytest.approx(max(result.marginal_error for result in log["result"]))
    assert_allclose(pot.sinkhorn2(a, B, M, 0.1), theirs, rtol=1e-8)


@pytest.mark.parametrize("empty", [[], None, np.zeros(0)])
def test_empty_weights_are_uniform(empty):
    _, b, M = problem()
    a = np.full(30, 1 / 30)
    assert_allclose(pot.sinkhorn(empty, b, M, 0.1), pot.sinkhorn(a, b, M, 0.1), rtol=1e-12)
    assert_allclose(pot.emd2(empty, empty, M), ot.emd2([], [], M), rtol=1e-12)
    assert_allclose(pot.solve(M, None, b, reg=0.1).plan, pot.sinkhorn(a, b, M, 0.1), rtol=1e-12)
    with pytest.raises(ValueError, match="mass"):  # uniform ones have mass 1
        pot.sinkhorn(empty, 2 * b, M, 0.1)


def test_zero_weights():
    a, b, M = problem()
    a[3] = b[[0, 7]] = 0
    a, b = a / a.sum(), b / b.sum()
    with np.errstate(divide="ignore"):
        theirs, log = ot.sinkhorn(a, b, M, 0.1, method="sinkhorn_log", log=True, **TIGHT)
    ours, ours_log = pot.sinkhorn(a, b, M, 0.1, log=True)
    assert_allclose(ours, theirs, atol=1e-9)
    assert_allclose(ours_log["u"][3], log["u"][3])
    assert ours_log["log_v"][7] == -np.inf
    again, log = pot.sinkhorn(a, b, M, 0.1, log=True, warmstart=(ours_log["log_u"], ours_log["log_v"]))
    assert log["result"].nsweep == 2
    assert_allclose(again, ours, atol=1e-9)
    result = pot.solve(M, a, b, reg=0.1, reg_type="entropy")
    used = theirs > 0
    assert_allclose(result.value, np.sum(theirs * M) + 0.1 * np.sum(theirs[used] * np.log(theirs[used])), rtol=1e-8)
    assert_allclose(pot.emd(a, b, M), ot.emd(a, b, M), atol=1e-12)


def test_small_reg_that_plain_sinkhorn_cannot_do():
    a, b, M = problem(2, 12, 10)
    reg = 5e-4
    ours, log = pot.sinkhorn(a, b, M, reg, log=True)
    theirs = ot.sinkhorn(a, b, M, reg, method="sinkhorn_log", numItermax=50_000, stopThr=1e-10)
    assert_allclose(ours, theirs, atol=1e-7)
    assert np.isfinite(log["log_u"]).all()
    assert ours.sum(0) == pytest.approx(b, abs=1e-9)
    with pytest.warns(UserWarning, match="numerical errors"), np.errstate(all="ignore"):
        assert np.abs(ot.sinkhorn(a, b, M, reg).sum(0) - b).sum() > 1e-3


def test_scalings_that_overflow_are_infinite():
    M = np.array([[0.0, 2000.0], [2000.0, 0.0]]) + np.array([[0.0], [3000.0]])
    _, log = pot.sinkhorn([0.3, 0.7], [0.4, 0.6], M, 1.0, log=True)
    assert np.isinf(log["u"]).any()
    assert np.isfinite(log["log_u"]).all()


@pytest.mark.parametrize("name", NAMES)
def test_warm_starts(name):
    a, b, M = problem()
    start = pot.sinkhorn(a, b, M, 0.05, method=name, log=True)[1]
    pair = start["warmstart"] if "warmstart" in start else (start["log_u"], start["log_v"])
    assert pot.sinkhorn(a, b, M, 0.05, method=name, log=True, warmstart=pair)[1]["result"].nsweep == 2


def test_warm_starts_of_several_histograms():
    a, _, M = problem()
    B = np.random.default_rng(5).dirichlet(np.ones(25), 2).T
    log = pot.sinkhorn2(a, B, M, 0.05, log=True)[1]
    pairs = log["log_u"], log["log_v"]
    listed = [tuple(part[:, k] for part in pairs) for k in range(2)]
    for start in (pairs, listed):
        again = pot.sinkhorn2(a, B, M, 0.05, log=True, warmstart=start)[1]["result"]
        assert [result.nsweep for result in again] == [2, 2]


@pytest.mark.parametrize("seed", range(4))
def test_emd_is_that_of_pot(seed):
    a, b, M = problem(seed)
    theirs, their_log = ot.emd(a, b, M, log=True)
    ours, log = pot.emd(a, b, M, log=True)
    assert_allclose(ours, theirs, atol=1e-12)
    assert_allclose(log["cost"], their_log["cost"], rtol=1e-12)
    assert_allclose(log["u"], their_log["u"], atol=1e-10)
    assert_allclose(log["v"], their_log["v"], atol=1e-10)
    assert (log["warning"], log["result_code"]) == (their_log["warning"], their_log["result_code"])
    assert set(their_log) <= set(log)
    cost, log = pot.emd2(a, b, M, log=True, return_matrix=True)
    their_cost, their_log = ot.emd2(a, b, M, log=True, return_matrix=True)
    assert_allclose(cost, their_cost, rtol=1e-12)
    assert_allclose(log["G"], their_log["G"], atol=1e-12)
    assert set(their_log) <= set(log)
    assert "G" not in pot.emd2(a, b, M, log=True)[1]


def test_emd2_of_several_histograms():
    a, _, M = problem()
    B = np.random.default_rng(5).dirichlet(np.ones(25), 3).T
    assert_allclose(pot.emd2(a, B, M), ot.emd2(a, B, M), rtol=1e-12)
    pairs = pot.emd2(a, B, M, log=True)
    assert_allclose([cost for cost, _ in pairs], [log["cost"] for _, log in pairs])


def test_emd_of_other_masses():
    a, b, M = problem()
    assert_allclose(pot.emd(3 * a, 3 * b, M), ot.emd(3 * a, 3 * b, M), atol=1e-12)
    assert_allclose(pot.emd(a, 2 * b, M, check_marginals=False), ot.emd(a, 2 * b, M, check_marginals=False), atol=1e-12)
    with pytest.raises(ValueError, match="mass"):
        pot.emd(a, 2 * b, M)


@pytest.mark.parametrize("mass", [1.0, 3.0])
@pytest.mark.parametrize("reg_type", ["KL", "entropy", "kl"])
def test_solve_is_that_of_pot(reg_type, mass):
    a, b, M = problem()
    a, b = mass * a, mass * b
    theirs = ot.solve(M, a, b, reg=0.1, reg_type=reg_type, max_iter=100_000, tol=1e-12)
    ours = pot.solve(M, a, b, reg=0.1, reg_type=reg_type)
    for name in ("plan", "value", "value_linear", "marginal_a", "marginal_b"):
        assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-8, err_msg=name)
    assert_allclose(ours.sparse_plan.toarray(), theirs.sparse_plan.toarray(), atol=1e-8)
    assert type(ours.sparse_plan) is type(theirs.sparse_plan)
    assert_allclose(ours.marginals[1], theirs.marginals[1], atol=1e-8)
    shift = ours.potential_a - theirs.potential_a
    assert_allclose(shift, shift[0], atol=1e-6)
    assert_allclose(ours.potential_b - theirs.potential_b, -shift[0], atol=1e-6)
    assert_allclose(ours.potentials[0], ours.result.f / 0.1 + np.log(a), atol=1e-12)
    assert_allclose(ours.lazy_plan[:], ours.plan, rtol=1e-10)
    assert ours.value_quad is None
    assert ours.status == "Converged"
    assert ours.log["niter"] == ours.result.nit
    assert "value=" in repr(ours)


@pytest.mark.parametrize("reg", [None, 0, 0.0])
def test_solve_without_reg_is_that_of_pot(reg):
    a, b, M = problem()
    theirs, ours = ot.solve(M, a, b, reg=reg), pot.solve(M, a, b, reg=reg)
    for name in ("plan", "value", "value_linear", "potential_a", "potential_b", "marginal_a", "marginal_b"):
        assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-10, err_msg=name)
    assert ours.status == theirs.status == "Converged"
    assert ours.lazy_plan is None
    assert ours.log["result_code"] == 1


def test_solve_starts_from_potentials():
    a, b, M = problem()
    first = pot.solve(M, a, b, reg=0.05)
    assert pot.solve(M, a, b, reg=0.05, potentials_init=first.potentials).result.nsweep == 2


def test_value_types_are_those_of_pot():
    a, b, M = problem()
    for ours, theirs in (
        (pot.sinkhorn2(a, b, M, 1.0), ot.sinkhorn2(a, b, M, 1.0)),
        (pot.solve(M, a, b, reg=1.0).value, ot.solve(M, a, b, reg=1.0).value),
        (pot.solve(M, a, b).value_linear, ot.solve(M, a, b, reg=1.0).value_linear),
    ):
        assert type(ours) is type(theirs) is np.float64


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock", "cosine", "chebyshev", lambda x, y: abs(x - y).max()])
@pytest.mark.parametrize("reg", [None, 0.2])
def test_solve_sample_is_that_of_pot(metric, reg):
    x, y = clouds()
    theirs = ot.solve_sample(x, y, metric=metric, reg=reg, max_iter=1_000_000, tol=1e-12)
    ours = pot.solve_sample(x, y, metric=metric, reg=reg)
    unique = reg or metric in ("sqeuclidean", "cosine")  # under other costs many vertices are optimal
    for name in ("value", "value_linear", *(["plan"] if unique else [])):
        assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-8, err_msg=name)
    assert_allclose(pot.dist(x, y, metric), ot.dist(x, y, metric), atol=1e-12)


def test_a_lazy_plan_is_that_of_pot():
    x, y = clouds()
    theirs = ot.solve_sample(x, y, reg=0.2, lazy=True, max_iter=10_000, tol=1e-12).lazy_plan
    result = pot.solve_sample(x, y, reg=0.2, lazy=True, batch_size=7)
    ours, dense = result.lazy_plan, result.plan
    assert (ours.shape, ours.ndim) == (theirs.shape, theirs.ndim)
    assert_allclose(ours[:], theirs[:], atol=1e-9)
    assert_allclose(ours[2:9, 1:4], theirs[2:9, 1:4], atol=1e-9)
    for key in (3, -1, (2, 5), (slice(None), 4), (slice(None, None, -3), slice(2, 9)), slice(0, 0), np.int64(2)):
        assert_allclose(ours[key], dense[key], rtol=1e-10)
        assert np.shape(ours[key]) == np.shape(dense[key])
    with pytest.raises(IndexError, match="20 is out of range"):
        ours[20]
    with pytest.raises(TypeError, match="integers or slices"):
        ours[[1, 2]]


@pytest.mark.parametrize("reg", [None, 0.5])
def test_debiased_values_are_those_of_pot(reg):
    x, y = clouds()
    theirs = ot.solve_sample(x, y, reg=reg, debias=True, max_iter=10_000, tol=1e-12)
    ours = pot.solve_sample(x, y, reg=reg, debias=True)
    assert_allclose(ours.value, theirs.value, atol=1e-8)
    assert_allclose(ours.value_linear, theirs.value_linear, atol=1e-8)
    assert_allclose(ours.plan, theirs.plan, atol=1e-8)
    assert set(ours.log) == set(theirs.log)
    assert_allclose(ours.log["res_ab"].value, pot.solve_sample(x, y, reg=reg).value)


def test_every_library(backend, dtype):
    a, b, M = problem()
    given = [backend.asarray(x, dtype) for x in (a, b, M)]
    plan, log = pot.sinkhorn(*given, 0.1, log=True)
    atol = 1e-8 if dtype == "float64" else 1e-5
    assert_allclose(backend.to_numpy(plan), pot.sinkhorn(a, b, M, 0.1), atol=atol)
    for name in ("u", "v", "log_u", "alpha"):
        assert backend.owns(log[name])
        assert backend.dtype_name(log[name]) == dtype
    assert_allclose(backend.to_numpy(pot.emd(*given)), pot.emd(a, b, M), atol=atol)
    result = pot.solve(given[2], given[0], given[1], reg=0.1)
    for name in ("plan", "potential_a", "marginal_b"):
        assert backend.dtype_name(getattr(result, name)) == dtype
    assert_allclose(backend.to_numpy(result.lazy_plan[3:5]), backend.to_numpy(result.plan)[3:5], atol=atol)
    assert float(result.value) == pytest.approx(float(pot.solve(M, a, b, reg=0.1).value), abs=1e-5)
    assert pot.sinkhorn2([], [], given[2], 0.1).dtype == given[2].dtype


def test_tensors():
    torch = pytest.importorskip("torch")
    a, b, M = problem()
    T = torch.tensor(M)
    theirs = ot.sinkhorn(torch.tensor(a), torch.tensor(b), T, 0.1, **TIGHT)
    assert_allclose(pot.sinkhorn(a.tolist(), b.tolist(), T, 0.1).numpy(), theirs.numpy(), atol=1e-9)
    loss = pot.sinkhorn2([], [], T, 0.1)
    assert isinstance(loss, torch.Tensor) and loss.shape == ()
    assert pot.sinkhorn2([], torch.stack([torch.tensor(b)] * 2, 1), T, 0.1).shape == (2,)
    tracked = T.clone().requires_grad_()
    with pytest.raises(TypeError, match=r"M is a tensor that requires gradients.*detach"):
        pot.solve(tracked, reg=0.1)
    assert_allclose(pot.solve(tracked, reg=0.1, grad="detach").plan, pot.solve(T, reg=0.1).plan)
    x, y = (torch.tensor(points) for points in clouds())
    assert_allclose(pot.solve_sample(x, y, reg=0.5).plan, ot.solve_sample(x, y, reg=0.5, tol=1e-12).plan, atol=1e-8)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_sparse_plan_of_tensors():
    torch = pytest.importorskip("torch")
    result = pot.solve(torch.tensor(problem()[2]), reg=0.1)
    assert_allclose(result.sparse_plan.to_dense(), result.plan)


def test_lists_and_integers():
    ours = pot.sinkhorn([1, 1], [1, 1], [[0, 1], [1, 0]], 1)
    assert_allclose(ours, ot.sinkhorn([1, 1], [1, 1], [[0, 1], [1, 0]], 1, **TIGHT), atol=1e-9)
    assert pot.emd2([1, 3], [2, 2], [[0, 1], [1, 0]]) == 1.0


def test_arguments_are_not_changed():
    a, b, M = problem()
    copies = a.copy(), b.copy(), M.copy()
    pot.emd(a, 2 * b, M, check_marginals=False)
    pot.sinkhorn(a, b, M, 0.1)
    for given, copy in zip((a, b, M), copies, strict=True):
        assert np.array_equal(given, copy)


def test_a_solver_that_stops_short_warns_where_it_was_called():
    _, _, M = problem()
    calls = (
        lambda: pot.sinkhorn([], [], M, 0.001, numItermax=3),
        lambda: pot.sinkhorn2([], [], M, 0.001, numItermax=3, warn=True),
        lambda: pot.solve(M, reg=0.001, max_iter=3),
        lambda: pot.solve_sample(*clouds(), reg=0.001, max_iter=3),
        lambda: pot.emd([], [], problem(0, 80, 80)[2], numItermax=3),
    )
    for call in calls:
        with pytest.warns(ConvergenceWarning, match="is reached: raise it") as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(ConvergenceWarning, match="numItermax = 3"):
        plan, log = pot.sinkhorn([], [], M, 0.001, numItermax=3, log=True)
    assert "> stopThr" in log["warning"]
    assert log["err"][-1] == pytest.approx(np.abs(plan.sum(0) - 1 / 25).sum() + np.abs(plan.sum(1) - 1 / 30).sum())
    assert pot.sinkhorn2([], [], M, 0.001, numItermax=3) > 0  # as in POT, silent unless warn=True
    with pytest.warns(ConvergenceWarning):
        assert "max_iter = 3" in pot.solve(M, reg=0.001, max_iter=3).status
    with pytest.warns(ConvergenceWarning):
        assert pot.emd([], [], problem(0, 80, 80)[2], numItermax=3, log=True)[1]["result_code"] == 3


def test_stopthr_bounds_what_pot_tests():
    a, b, M = problem()
    for threshold in (1e-3, 1e-6):
        log = pot.sinkhorn(5 * a, 5 * b, M, 0.01, stopThr=threshold, log=True)[1]
        assert log["err"][-1] <= threshold
        plan = pot.sinkhorn(5 * a, 5 * b, M, 0.01, stopThr=threshold)
        assert np.linalg.norm(plan.sum(0) - 5 * b) <= threshold


M = problem()[2]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: pot.sinkhorn([], [], M, 0.1, method="screenkhorn"), ValueError, "method must be one of 'sinkhorn'"),
        (lambda: pot.sinkhorn([], [], M, 0.1, method=3), ValueError, "method must be one of"),
        (lambda: pot.sinkhorn([], [], M, 0.1, reg_m=1), TypeError, "unexpected keyword argument 'reg_m'"),
        (lambda: pot.sinkhorn([], [], M, 0), ValueError, "use ot.emd"),
        (lambda: pot.sinkhorn([], [], M, -1), ValueError, "reg must be"),
        (lambda: pot.sinkhorn([], [], M, 1e-20), ValueError, r"rounding of M.*use ot\.emd"),
        (lambda: pot.sinkhorn([], [], M * np.nan, 1), ValueError, "^M holds"),
        (lambda: pot.sinkhorn([], [], M[0], 1), ValueError, "^M must be two-dimensional"),
        (lambda: pot.sinkhorn([1.0], [], M, 1), ValueError, "a has 1 weights, but M has shape"),
        (lambda: pot.sinkhorn([], [1.0], M, 1), ValueError, "b must have shape"),
        (lambda: pot.sinkhorn([], np.ones((25, 2, 2)), M, 1), ValueError, "b must have shape"),
        (lambda: pot.sinkhorn([], -np.ones(25), M, 1), ValueError, "b must hold finite weights"),
        (lambda: pot.sinkhorn([], [], M, 1, numItermax=0), ValueError, "numItermax must be"),
        (lambda: pot.sinkhorn([], [], M, 1, stopThr=-1), ValueError, "stopThr must be"),
        (lambda: pot.sinkhorn([], [], M, 1, warn=1), TypeError, "warn must be True or False"),
        (lambda: pot.sinkhorn([], [], M, 1, warmstart=3), TypeError, "warmstart must be a pair"),
        (lambda: pot.sinkhorn([], [], M, 1, warmstart=(np.zeros(3), np.zeros(25))), ValueError, r"warmstart\[0\] must have shape"),
        (
            lambda: pot.sinkhorn([], [], M, 1, warmstart=(np.zeros(30), np.full(25, np.nan))),
            ValueError,
            r"warmstart\[1\] must be fin",
        ),
        (lambda: pot.sinkhorn([], np.ones((25, 2)) / 25, M, 1, warmstart=[None]), ValueError, "a pair for each of the 2"),
        (lambda: pot.emd([], np.ones((25, 2)) / 25, M), ValueError, "ot.emd2 takes several"),
        (lambda: pot.emd([], [], M, potentials_init=(0, 0)), NotImplementedError, "potentials_init is not supported"),
        (lambda: pot.emd([], [], M, check_marginals=1), TypeError, "check_marginals must be"),
        (lambda: pot.solve(M, reg=-1), ValueError, "reg must be"),
        (lambda: pot.solve(M, reg=1, reg_type="L2"), NotImplementedError, "reg_type='L2'"),
        (lambda: pot.solve(M, reg=1, reg_type=(abs, abs)), NotImplementedError, "pair of functions"),
        (lambda: pot.solve(M, reg=1, c=M), NotImplementedError, r"M - reg \* log"),
        (lambda: pot.solve(M, reg=1, method="newton"), NotImplementedError, "method='newton'"),
        (lambda: pot.solve(M, reg=1, plan_init=M), NotImplementedError, "plan_init"),
        (lambda: pot.solve(M, reg=1, grad="no"), ValueError, "grad must be one of"),
        (lambda: pot.solve(M, reg=1, tol=-1), ValueError, "tol must be"),
        (lambda: pot.solve(M, potentials_init=(0, 0)), NotImplementedError, "potentials_init"),
        (lambda: pot.solve(M, None, np.ones((25, 2)) / 25), ValueError, "b must be one-dimensional"),
        (lambda: pot.solve(M, reg=1, unbalanced=(1, 2, 3)), ValueError, "unbalanced must be a number or a pair"),
        (lambda: pot.solve(M, reg=1, unbalanced="x"), TypeError, "unbalanced must be"),
        (lambda: pot.solve_sample(M, M, method="sliced"), NotImplementedError, "method='sliced'"),
        (lambda: pot.solve_sample(M, M, debias="split"), NotImplementedError, "debias='split'"),
        (lambda: pot.solve_sample(M, M, scaler=abs), NotImplementedError, "scaler"),
        (lambda: pot.solve_sample(M, M[:, :3]), ValueError, "X_a and X_b must have points of one dimension"),
        (lambda: pot.solve_sample(M[0], M), ValueError, "X_a must be two-dimensional"),
        (lambda: pot.solve_sample(M, M, metric="nope"), ValueError, "metric='nope'"),
        (lambda: pot.solve_sample(M, M, metric=3), TypeError, "metric must be a name"),
        (lambda: pot.solve_sample(M, M, batch_size=0), ValueError, "batch_size"),
        (lambda: pot.solve_sample(M, M, lazy=None), TypeError, "lazy must be"),
        (lambda: pot.unif(0), ValueError, "n must be"),
    ],
)
def test_what_is_wrong_or_not_supported_is_refused_by_name(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("p", [1, 3.5])
def test_minkowski_distances(p):
    ot = pytest.importorskip("ot")
    x, y = M[:, :3], M[:7, 3:6]
    assert_allclose(pot.dist(x, y, "minkowski", p), ot.dist(x, y, "minkowski", p))
    assert_allclose(pot.dist(x, y, "mi", p), pot.dist(x, y, "minkowski", p))
    with pytest.raises(ValueError, match="p must be"):
        pot.dist(x, y, "minkowski", 0)


def test_sparse_costs_are_refused():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"M is sparse.*\+inf"):
        pot.emd([], [], sparse.csr_array(M))


@pytest.mark.parametrize("balanced", [None, float("inf"), [float("inf")], (np.inf, np.inf), np.array([np.inf, np.inf])])
def test_infinite_penalties_are_exact_marginals(balanced):
    assert_allclose(pot.solve(M, reg=0.1, unbalanced=balanced).plan, pot.solve(M, reg=0.1).plan)


def test_the_rest_of_pot_is_said_to_be_elsewhere():
    with pytest.raises(AttributeError, match=r"has no 'gromov'.*import ot"):
        _ = pot.gromov
    for module in (pot.bregman, pot.lp, pot.partial, pot.solvers, pot.unbalanced, pot.utils):
        with pytest.raises(AttributeError, match=r"has no 'gromov'.*import ot"):
            _ = module.gromov
    with pytest.raises(AttributeError, match=r"bregman has no 'emd': otbilevel.compat.pot.emd does that here"):
        _ = pot.bregman.emd
    with pytest.raises(AttributeError, match=r"has no 'barycenter': otbilevel.ot.barycenter does that here"):
        _ = pot.bregman.barycenter


def test_it_works_without_pot():
    code = (
        "import sys; sys.modules['ot'] = None\n"
        "from otbilevel.compat import pot as ot\n"
        "M = [[0.0, 1.0], [1.0, 0.0]]\n"
        "print(round(float(ot.sinkhorn2([], [], M, 1)), 6), float(ot.emd2([], [], M)), float(ot.solve(M).value))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.split()) == (0, ["0.268941", "0.0", "0.0"]), run.stderr
