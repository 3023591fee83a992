"""Warm starts: a good one saves sweeps, a bad one still converges, and wrong ones are refused."""

import gc
import pickle
import weakref

import numpy as np
import pytest

from otbilevel import ConvergenceWarning, PointCloud, solve_ot
from otbilevel._core.result import Status
from otbilevel.ot.methods import METHODS
from otbilevel.testing.ot_laws import check_ot_result
from otbilevel.testing.ot_problems import FAMILIES

pytestmark = pytest.mark.usefixtures("small_or_large")

WARM = [row.name for row in METHODS if row.name != "exact"]


def problem(n=30, m=21, seed=0, *, zeros=True):
    """Costs in the plane; with zeros, some points carry no weight."""
    rng = np.random.default_rng(seed)
    x, y = rng.random((n, 2)), rng.random((m, 2))
    a, b = rng.dirichlet(np.full(n, 2.0)), rng.dirichlet(np.full(m, 2.0))
    if zeros:
        a[[1, n // 2]] = 0.0
        b[-2] = 0.0
    return a / a.sum(), b / b.sum(), ((x[:, None] - y[None, :]) ** 2).sum(-1)


def solve(a, b, C, **settings):
    settings.setdefault("max_iter", 200_000)
    return solve_ot(a, b, C, **settings)


@pytest.mark.parametrize("method", WARM)
@pytest.mark.parametrize("as_pair", [False, True])
def test_a_solution_is_confirmed_at_once(method, as_pair, device_backend, dtype):
    """One sweep, and the one that certifies it; float32 potentials of a pair are rounded, a result's are not."""
    arrays = [device_backend.asarray(v, dtype) for v in problem()]
    cold = solve(*arrays, reg=0.02, method=method)
    warm = solve(*arrays, reg=0.02, method=method, init=(cold.f, cold.g) if as_pair else cold)
    assert cold.success and warm.success
    assert device_backend.owns(warm.f) and device_backend.dtype_name(warm.f) == dtype
    assert warm.nsweep == 2
    if device_backend.device is None:
        check_ot_result(warm, *arrays, tol=1e-9 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("method", WARM)
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (7, 1), (40, 9), (9, 40)])
def test_shapes(method, shape):
    a, b, C = problem(*shape, zeros=False)
    cold = solve(a, b, C, reg=0.01, method=method)
    warm = solve(a, b, C, reg=0.01, method=method, init=cold)
    assert warm.success and warm.nsweep == 2
    turned = solve(b, a, C.T, reg=0.01, method=method, init=(cold.g, cold.f))
    assert turned.success and turned.nsweep <= cold.nsweep + 1
    np.testing.assert_allclose(turned.plan.T, cold.plan, atol=2e-9)


@pytest.mark.parametrize("method", WARM)
def test_point_clouds(method, backend):
    rng = np.random.default_rng(1)
    cloud = PointCloud(backend.asarray(rng.random((40, 2))), backend.asarray(rng.random((30, 2))))
    cold = solve(None, None, cloud, reg=5e-3, method=method)
    warm = solve(None, None, cloud, reg=5e-3, method=method, init=cold)
    assert warm.success and warm.nsweep == 2
    dense = solve(None, None, cloud.to_dense(), reg=5e-3, method=method, init=cold)
    assert dense.success and dense.nsweep == 2


@pytest.mark.parametrize("method", WARM)
def test_constants_and_mass_do_not_matter(method):
    a, b, C = problem()
    cold = solve(a, b, C, reg=0.02, method=method)
    shifted = solve(a, b, C, reg=0.02, method=method, init=(cold.f + 1e3, cold.g - 1e3))
    heavy = solve(70 * a, 70 * b, C, reg=0.02, method=method, init=cold)
    assert shifted.success and shifted.nsweep <= 3
    assert heavy.success and heavy.nsweep == 2


@pytest.mark.parametrize("method", WARM)
def test_points_that_gain_or_lose_weight(method):
    """A result holds potentials at points of zero weight, too: they are where such a point starts when it gains some."""
    a, b, C = problem()
    light = np.where(a > 0, a, 1e-4)
    light /= light.sum()
    one, two = (solve(w, b, C, reg=0.02, method=method) for w in (a, light))
    there, back = solve(light, b, C, reg=0.02, method=method, init=one), solve(a, b, C, reg=0.02, method=method, init=two)
    check_ot_result(there, light, b, C, tol=1e-9)
    check_ot_result(back, a, b, C, tol=1e-9)
    assert there.history["marginal_error"][0] < 0.02


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("reg", [1e-2, 1e-3])
def test_near_starts_save_sweeps(family, reg):
    """Costs that changed by 1 %, and a result for twice the reg."""
    p = FAMILIES[family](300, 0)
    other = p.C * (1.0 + 0.01 * np.random.default_rng(0).standard_normal(p.C.shape))
    cold = solve_ot(p.a, p.b, p.C, reg=reg, method="sns")
    moved = solve_ot(p.a, p.b, other, reg=reg, method="sns", init=cold)
    lower = solve_ot(p.a, p.b, p.C, reg=reg, method="sns", init=solve_ot(p.a, p.b, p.C, reg=2 * reg, method="sns"))
    # Where many costs tie a near start may prove far after some steps, which then come on top.
    limit = cold.nsweep + 12 if family == "image-w1" else cold.nsweep
    for warm in (moved, lower):
        assert warm.success and warm.nsweep <= limit


@pytest.mark.parametrize("method", ["sns", "auto"])
@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("size", [0.0, 1e-2, 1.0, 1e300])
def test_bad_starts_converge_at_the_price_of_a_few_sweeps(family, size, method):
    p = FAMILIES[family](200, 0)
    rng = np.random.default_rng(2)
    init = size * rng.standard_normal(len(p.a)), size * rng.standard_normal(len(p.b))
    cold, warm = (solve_ot(p.a, p.b, p.C, reg=1e-3, method=method, init=start) for start in (None, init))
    assert warm.success
    np.testing.assert_allclose(warm.plan, cold.plan, atol=2e-9)
    assert warm.nsweep <= cold.nsweep + 12


@pytest.mark.parametrize("size", [1.0, 1e300])
def test_sinkhorn_goes_on_from_a_bad_start(size):
    a, b, C = problem()
    init = np.zeros(len(a)), size * np.random.default_rng(3).standard_normal(len(b))
    check_ot_result(solve(a, b, C, reg=0.02, method="sinkhorn", init=init), a, b, C, tol=1e-9)


def test_forbidden_pairs():
    a, b, C = problem()
    C[::3, ::4] = np.inf
    cold = solve_ot(a, b, C, reg=0.01, method="sns")
    warm = solve_ot(a, b, C, reg=0.01, method="sns", init=cold)
    assert warm.success and warm.nsweep == 2
    bad = solve_ot(a, b, C, reg=0.01, method="sns", init=(cold.f, np.random.default_rng(0).standard_normal(len(b))))
    check_ot_result(bad, a, b, C, tol=1e-9)


def test_a_start_whose_errors_look_small_but_which_is_far():
    """Perturbed uniform weights at small reg: mass must move between parts that hardly touch."""
    p, rng = FAMILIES["cloud-10d"](300, 0), np.random.default_rng(1)
    a, b = (w * (1 + 0.01 * rng.standard_normal(len(w))) for w in (p.a, p.b))
    a, b = a / a.sum(), b / b.sum()
    first = solve_ot(p.a, p.b, p.C, reg=3e-4, method="sns")
    cold, warm = (solve_ot(a, b, p.C, reg=3e-4, method="sns", init=init) for init in (None, first))
    assert warm.success and warm.nsweep <= cold.nsweep + 12


def test_other_sources_of_potentials():
    a, b, C = problem()
    exact = solve_ot(a, b, C, method="exact")
    check_ot_result(solve_ot(a, b, C, reg=1e-3, method="sns", init=exact), a, b, C, tol=1e-9)
    stored = pickle.loads(pickle.dumps(solve_ot(a, b, C, reg=0.02)))
    assert solve_ot(a, b, C, reg=0.02, init=stored).nsweep == 2
    lists = stored.f.tolist(), [float(g) for g in stored.g]
    assert solve_ot(a, b, C, reg=0.02, init=lists).nsweep == 2


def test_the_paper_variant_warms_up_from_it():
    p = FAMILIES["assignment"](60, 0)
    options = {"variant": "paper"}
    cold = solve_ot(None, None, p.C, reg=1 / 200, method="sns", options=options)
    warm = solve_ot(None, None, p.C, reg=1 / 200, method="sns", options=options, init=cold)
    assert warm.success and warm.nit == 1 and warm.nit_newton == 0


@pytest.mark.parametrize("method", WARM)
def test_inputs_stay_as_they_are_and_results_keep_no_starts(method):
    a, b, C = problem()
    first = solve(a, b, C, reg=0.02, method=method)
    f, g = first.f.copy(), first.g.copy()
    second = solve(a, b, C, reg=0.01, method=method, init=first)
    np.testing.assert_array_equal(first.f, f)
    np.testing.assert_array_equal(first.g, g)
    watched = weakref.ref(first)
    del first
    gc.collect()
    assert watched() is None and second.success


@pytest.mark.parametrize("method", WARM)
@pytest.mark.parametrize("stop_at", [1, 2, 4, 8])
def test_stopping_a_warm_run_anywhere(method, stop_at):
    """Even before the target is reached, the result is an honest iterate at the target."""
    p = FAMILIES["cloud-2d"](100, 3)
    for init in (solve_ot(p.a, p.b, p.C, reg=0.1), (p.a, np.random.default_rng(0).standard_normal(100))):
        with pytest.warns(ConvergenceWarning):
            result = solve_ot(p.a, p.b, p.C, reg=1e-3, method=method, init=init, max_iter=stop_at)
        assert result.status is Status.ITERATION_LIMIT and result.nit == stop_at and result.reg == 1e-3
        error = np.abs(result.plan.sum(1) - p.a).sum() + np.abs(result.plan.sum(0) - p.b).sum()
        assert result.marginal_error == pytest.approx(error, abs=1e-12)


A, B, COST = problem(4, 5, zeros=False)
F, G = np.zeros(4), np.zeros(5)


@pytest.mark.parametrize("method", WARM)
@pytest.mark.parametrize(
    ("init", "error", "words"),
    [
        pytest.param((G, F), ValueError, ["init[0]", "(4,)", "(5,)", "(4, 5)"], id="exchanged"),
        pytest.param((F, G[:-1]), ValueError, ["init[1]", "(5,)", "(4,)"], id="short"),
        pytest.param((F[:, None], G), ValueError, ["init[0]", "(4, 1)"], id="matrix"),
        pytest.param((F, np.where(G == 0, np.nan, G)), ValueError, ["init[1]", "finite", "init[1][0]", "nan"], id="nan"),
        pytest.param(([0.0, np.inf, 0.0, 0.0], G), ValueError, ["init[0]", "init[0][1]", "inf"], id="inf"),
        pytest.param(F, TypeError, ["init", "OTResult", "ndarray"], id="array"),
        pytest.param((F,), TypeError, ["init", "tuple of length 1"], id="one"),
        pytest.param([F, G, G], TypeError, ["init", "list of length 3"], id="three"),
        pytest.param("cold", TypeError, ["init", "str"], id="string"),
        pytest.param({"f": F, "g": G}, TypeError, ["init", "dict"], id="dict"),
        pytest.param((F + 0j, G), TypeError, ["init[0]", "complex128"], id="complex"),
        pytest.param((F, None), TypeError, ["init[1]", "real"], id="None"),
    ],
)
def test_bad_starts_are_refused(init, error, words, method):
    with pytest.raises(error) as refused:
        solve_ot(A, B, COST, reg=0.1, method=method, init=init)
    assert str(refused.value).startswith(words[0])
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_result_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"init\.f must have shape \(4,\), got \(5,\).*C has shape \(4, 5\)"):
        solve_ot(A, B, COST, reg=0.1, init=solve_ot(B, A, COST.T, reg=0.1))


def test_exact_refuses_a_start():
    with pytest.raises(ValueError, match='method="exact" has no use for init: leave it out'):
        solve_ot(A, B, COST, method="exact", init=(F, G))


def test_libraries_are_not_mixed(make_backend):
    torch = make_backend("torch")
    ours, theirs = solve_ot(A, B, COST, reg=0.1), solve_ot(*(torch.asarray(v) for v in (A, B, COST)), reg=0.1)
    for init in (theirs, (theirs.f, theirs.g), (F, theirs.g)):
        with pytest.raises(TypeError, match=r"one library, got init.*torch"):
            solve_ot(A, B, COST, reg=0.1, init=init)
    with pytest.raises(TypeError, match=r"one library, got init\.f: numpy"):
        solve_ot(*(torch.asarray(v) for v in (A, B, COST)), reg=0.1, init=ours)
    f = theirs.f.clone().requires_grad_()
    with pytest.raises(TypeError, match=r"init\[0\] is a tensor that requires gradients"):
        solve_ot(*(torch.asarray(v) for v in (A, B, COST)), reg=0.1, init=(f, theirs.g))


def test_devices_are_not_mixed(make_backend):
    near, far = make_backend("array_api_strict"), make_backend("array_api_strict-device1")
    result = solve_ot(*(far.asarray(v) for v in (A, B, COST)), reg=0.1)
    with pytest.raises(TypeError, match=r"one device, got init\.f"):
        solve_ot(*(near.asarray(v) for v in (A, B, COST)), reg=0.1, init=result)


@pytest.mark.parametrize("change", [1e-4, 1e-6, 1e-8])
def test_a_small_change_takes_no_passes_in_single_precision(change):
    """Between so many points the plan is stored in single precision, which is not where a good start has to be improved."""
    rng = np.random.default_rng(0)
    C = rng.random((300, 300))
    cold = solve_ot(None, None, C, reg=1e-3)
    warm = solve_ot(None, None, C + change * 1e-3 * rng.standard_normal(C.shape), reg=1e-3, init=cold)
    assert warm.success and warm.nsweep <= 3 and warm.nit <= (25 if change > 1e-5 else 4)
