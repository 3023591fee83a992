"""Barycentres on a fixed support, against closed forms, POT, plain NumPy in the log domain, and laws."""

import warnings

import numpy as np
import pytest
from scipy.special import logsumexp

from otbilevel import ConvergenceError, ConvergenceWarning, Grid, PointCloud, Status, solve_ot
from otbilevel.ot import BarycenterResult, barycenter

X = np.linspace(0, 1, 60)
C = (X[:, None] - X[None, :]) ** 2


def gaussians(x, *moments):
    A = np.array([np.exp(-0.5 * ((x - mean) / width) ** 2) for mean, width in moments])
    return A / A.sum(axis=1, keepdims=True)


A = gaussians(X, (0.2, 0.06), (0.5, 0.1), (0.8, 0.05))


def shapes(h, w):
    y, x = np.mgrid[0:h, 0:w] / np.array([h - 1, w - 1])[:, None, None]
    images = np.array([np.hypot(x - 0.5, y - 0.5) < 0.35, (abs(x - 0.4) < 0.3) & (abs(y - 0.6) < 0.2)], dtype=float)
    return images / images.sum(axis=(1, 2), keepdims=True)


def bregman(inputs, costs, reg, w, iterations):
    """Iterative Bregman projections in the log domain: Benamou et al. (2015), equation (4.8) and (4.9)."""
    g = [np.zeros(costs[0].shape[1]) for _ in inputs]
    for _ in range(iterations):
        sums = []
        for a, cost, potential in zip(inputs, costs, g, strict=True):
            with np.errstate(divide="ignore"):
                f = np.log(a) - logsumexp(potential[None, :] - cost / reg, axis=1)
            sums.append(logsumexp(f[:, None] - cost / reg, axis=0))
        log_b = sum(weight * s for weight, s in zip(w, sums, strict=True))
        g = [log_b - s for s in sums]
    return np.exp(log_b)


@pytest.mark.parametrize("reg", [0.1, 0.01, 2e-3, 1e-3, 1e-4])
def test_the_plans_share_their_columns(reg):
    """Marginals from the dense plans; the largest reg use one kernel, the smallest a plan for each input."""
    result = barycenter(A, C, reg=reg)
    assert result.success and result.marginal_error < 1e-9
    for k, a in enumerate(A):
        plan = result.plan(k)
        assert np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - result.barycenter).sum() < 1.1e-9
        f, g = result.potentials[k]
        np.testing.assert_allclose(plan, a[:, None] * result.barycenter * np.exp((f[:, None] + g - C) / reg), atol=1e-12)
    assert result.barycenter.sum() == pytest.approx(1.0)
    assert result.gap < 1e-8 and abs(result.value - result.dual_value) < 1e-8


@pytest.mark.parametrize("reg", [0.1, 0.01, 2e-3])
@pytest.mark.parametrize("weights", [None, [0.2, 0.5, 0.3]])
def test_agrees_with_pot(reg, weights):
    ot = pytest.importorskip("ot")
    w = None if weights is None else np.array(weights)
    method = "sinkhorn" if w is None else "sinkhorn_log"  # up to 0.9.7 "sinkhorn" is wrong with other weights (PythonOT/POT#870)
    expected = ot.bregman.barycenter(A.T, C, reg, weights=w, method=method, stopThr=1e-12, numItermax=20_000)
    np.testing.assert_allclose(barycenter(A, C, reg=reg, weights=weights).barycenter, expected, atol=1e-9)


def test_converges_where_pot_overflows():
    ot = pytest.importorskip("ot")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        assert not np.all(np.isfinite(ot.bregman.barycenter(A.T, C, 1e-4, numItermax=2000)))
    assert barycenter(A, C, reg=1e-4).success


def test_the_objective_has_a_uniform_reference():
    """sum w OT(a, b) + reg KL(b | u) grows in every direction from b, and is what the plans cost with sum P log P."""
    reg = 0.02
    result = barycenter(A, C, reg=reg, tol=1e-12)

    def objective(b):
        transports = sum(solve_ot(a, b, C, reg=reg, tol=1e-12).value for a in A) / 3
        return transports + reg * np.sum(b * np.log(b * len(b)))

    b = result.barycenter
    assert result.value == pytest.approx(objective(b), abs=1e-9)
    rng = np.random.default_rng(0)
    for _ in range(3):
        d = b * rng.standard_normal(len(b))
        d -= b * d.sum()
        up, down = objective(b + 1e-2 * d), objective(b - 1e-2 * d)
        assert min(up, down) > result.value
        assert abs(up - down) < 1e-2 * (up + down - 2 * result.value)
    plans = [result.plan(k) for k in range(3)]
    entropies = sum(np.sum(P * np.log(P / a[:, None])) for P, a in zip(plans, A, strict=True)) / 3
    linear = sum(np.sum(P * C) for P in plans) / 3
    assert result.value == pytest.approx(linear + reg * (entropies + np.log(len(b))), abs=1e-9)


@pytest.mark.parametrize("reg", [0.01, 0.002])
def test_gaussians_blur_by_half_of_reg(reg):
    """Between Gaussians of one variance s^2 the barycentre has variance s^2 + reg / 2, as K is a Gaussian of variance reg / 2."""
    x = np.linspace(-2, 3, 1001)
    inputs = gaussians(x, (0.2, 0.1), (0.8, 0.1))
    b = barycenter(inputs, (x[:, None] - x[None, :]) ** 2, reg=reg, weights=[0.25, 0.75]).barycenter
    mean = b @ x
    assert mean == pytest.approx(0.25 * 0.2 + 0.75 * 0.8, abs=1e-9)
    assert b @ (x - mean) ** 2 == pytest.approx(0.1**2 + reg / 2, rel=1e-6)


@pytest.mark.parametrize("reg", [0.02, 0.005, 5e-4])
def test_debiased_gaussians_do_not_blur(reg):
    """Janati et al. (2020), Theorem 3: with one variance, it is that of the barycentre."""
    x = np.linspace(0, 1, 150)
    inputs = gaussians(x, (0.35, 0.05), (0.65, 0.05))
    result = barycenter(inputs, (x[:, None] - x[None, :]) ** 2, reg=reg, debias=True, tol=1e-7)
    assert result.success
    np.testing.assert_allclose(result.barycenter, gaussians(x, (0.5, 0.05))[0], atol=1e-6)
    assert result.gap >= 0
    assert np.isnan(result.dual_value)


@pytest.mark.parametrize("reg", [0.01, 1e-3])
def test_debiased_barycentre_of_one_input_is_that(reg):
    a = gaussians(X, (0.4, 0.1))
    result = barycenter(a, C, reg=reg, debias=True, tol=1e-8)
    assert np.abs(result.barycenter - a[0]).sum() < 1e-4
    assert result.value == pytest.approx(0.5 * solve_ot(a[0], a[0], C, reg=reg).value, abs=1e-7)


def test_debiased_agrees_with_pot():
    ot = pytest.importorskip("ot")
    expected = ot.bregman.barycenter_debiased(A.T, C, 0.005, stopThr=1e-12, numItermax=20_000, warn=False)
    result = barycenter(A, C, reg=0.005, debias=True, tol=1e-6)
    assert np.abs(result.barycenter - expected).sum() < 5e-3  # hardly determined by the objective

    def objective(b):
        return (
            sum(solve_ot(a, b, C, reg=0.005, tol=1e-11).value for a in A) / 3 - 0.5 * solve_ot(b, b, C, reg=0.005, tol=1e-11).value
        )

    assert objective(result.barycenter) == pytest.approx(objective(expected / expected.sum()), abs=1e-8)
    assert objective(result.barycenter) == pytest.approx(result.value, abs=1e-6)


@pytest.mark.parametrize("shape", [(12, 12), (9, 14)])
@pytest.mark.parametrize("reg", [0.05, 0.01, 1e-3])
def test_images_are_histograms_on_their_pixels(shape, reg):
    images = shapes(*shape)
    centres = [(np.arange(side) + 0.5) / max(shape) for side in shape]
    points = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).reshape(-1, 2)
    result = barycenter(images, reg=reg)
    flat = barycenter(images.reshape(2, -1), PointCloud(points), reg=reg)
    assert result.success and result.barycenter.shape == shape
    np.testing.assert_allclose(result.barycenter.ravel(), flat.barycenter, atol=1e-9)
    assert result.value == pytest.approx(flat.value, abs=1e-8)


@pytest.mark.parametrize("debias", [False, True])
def test_images_agree_with_pot(debias):
    ot = pytest.importorskip("ot")
    images, reg, grid = shapes(16, 16), 0.01, Grid([np.linspace(0, 1, 16)] * 2)
    if not debias:
        expected = ot.bregman.convolutional_barycenter2d(images, reg, stopThr=1e-11, stabThr=1e-300)
        np.testing.assert_allclose(barycenter(images, grid, reg=reg).barycenter, expected, atol=1e-8)
        return
    expected = ot.bregman.convolutional_barycenter2d_debiased(images, reg, stopThr=1e-8, stabThr=1e-300, warn=False)
    result = barycenter(images, grid, reg=reg, debias=True)
    assert result.success
    assert np.abs(result.barycenter - expected).sum() < 0.05


def test_single_images_and_lines():
    """One pixel, one row: an axis has length 1."""
    assert barycenter(np.ones((2, 1, 1)), reg=0.1).barycenter.shape == (1, 1)
    rows, grid = A[:, None, :], Grid([np.zeros(1), np.linspace(0, 1, A.shape[1])])
    np.testing.assert_allclose(barycenter(rows, grid, reg=1e-3).barycenter[0], barycenter(A, C, reg=1e-3).barycenter, atol=1e-9)


@pytest.mark.parametrize("reg", [0.05, 1e-3])
def test_volumes(reg):
    """With zeros, and a cost that is not a distance."""
    rng = np.random.default_rng(0)
    volumes = rng.random((2, 4, 5, 3)) * (rng.random((2, 4, 5, 3)) > 0.3)
    volumes /= volumes.sum(axis=(1, 2, 3), keepdims=True)
    cost = [0.2 * abs(np.subtract.outer(np.arange(side), np.arange(side))) ** 1.5 - 0.1 for side in (4, 5, 3)]
    agree(volumes, Grid((4, 5, 3), cost=cost), reg)


@pytest.mark.parametrize("reg", [0.05, 2e-3])
def test_debiased_volumes(reg):
    x, y, z = np.indices((9, 8, 5)) / 8
    volumes = np.stack([np.exp(-((x - c) ** 2 + (y - 0.5) ** 2 + (z - 0.25) ** 2) / 0.04) for c in (0.3, 0.6)])
    agree(volumes / volumes.sum(axis=(1, 2, 3), keepdims=True), Grid((9, 8, 5)), reg, debias=True)


def agree(volumes, grid, reg, **arguments):
    """With a barycentre by the matrix."""
    result = barycenter(volumes, grid, reg=reg, **arguments)
    flat = barycenter(volumes.reshape(2, -1), grid.to_dense(), reg=reg, **arguments)
    assert result.success and flat.success and result.barycenter.shape == volumes.shape[1:]
    assert result.value == pytest.approx(flat.value, abs=1e-9)
    np.testing.assert_allclose(result.barycenter.ravel(), flat.barycenter, atol=1e-9)


def test_grids_of_their_own():
    """Images of two sizes, and a barycentre of a third."""
    first, second = shapes(8, 8)[0], shapes(12, 6)[1]
    grids = [Grid(first.shape, (10, 10)), Grid(second.shape, (10, 10))]
    result = barycenter([first, second], grids, reg=0.01)
    expected = barycenter([first.ravel(), second.ravel()], [grid.to_dense() for grid in grids], reg=0.01)
    assert result.success and result.barycenter.shape == (10, 10)
    np.testing.assert_allclose(result.barycenter.ravel(), expected.barycenter, atol=1e-9)


def test_different_supports():
    rng = np.random.default_rng(1)
    y = rng.random(25)
    clouds = [rng.random(m) for m in (10, 17, 30)]
    inputs = [rng.dirichlet(np.ones(len(x))) for x in clouds]
    costs = [(x[:, None] - y[None, :]) ** 2 for x in clouds]
    result = barycenter(inputs, costs, reg=0.02, weights=[1, 2, 3])
    assert result.success
    np.testing.assert_allclose(result.barycenter, bregman(inputs, costs, 0.02, [1 / 6, 2 / 6, 3 / 6], 3000), atol=1e-8)
    assert [result.plan(k).shape for k in range(3)] == [(10, 25), (17, 25), (30, 25)]
    same = barycenter(inputs, [PointCloud(x[:, None], y[:, None]) for x in clouds], reg=0.02, weights=[1, 2, 3])
    np.testing.assert_allclose(same.barycenter, result.barycenter, atol=1e-9)


@pytest.mark.parametrize("reg", [0.02, 5e-4])
def test_zero_entries(reg):
    holes = A.copy()
    holes[0, 20:] = 0
    holes[1, ::2] = 0
    holes /= holes.sum(axis=1, keepdims=True)
    result = barycenter(holes, C, reg=reg)
    assert result.success
    if reg > 1e-3:
        np.testing.assert_allclose(result.barycenter, bregman(holes, [C] * 3, reg, [1 / 3] * 3, 2000), atol=1e-8)
    for k in range(3):
        plan = result.plan(k)
        assert np.all(plan[holes[k] == 0] == 0)
        assert np.abs(plan.sum(0) - result.barycenter).sum() < 1e-9
        assert all(np.all(np.isfinite(v)) for v in result.potentials[k])


def test_one_input():
    """Its plan is the soft minimum of each row: P = diag(a) softmax(-C / reg)."""
    for reg in (0.05, 1e-3):
        P = A[0][:, None] * np.exp(-C / reg) / np.exp(-C / reg).sum(1, keepdims=True)
        np.testing.assert_allclose(barycenter(A[:1], C, reg=reg).barycenter, P.sum(0), atol=1e-10)


def test_one_point():
    result = barycenter(np.ones((3, 1)), np.zeros((1, 1)), reg=0.1)
    assert result.success and result.barycenter[0] == pytest.approx(1.0) and result.value == pytest.approx(0.0, abs=1e-12)


def test_laws():
    """Permutations of inputs and points, shifts of the cost, scales of mass, cost and reg."""
    base = barycenter(A, C, reg=0.01, weights=[0.5, 0.2, 0.3])
    order, points = [2, 0, 1], np.random.default_rng(0).permutation(60)
    other = barycenter(A[order][:, points], C[np.ix_(points, points)], reg=0.01, weights=[0.3, 0.5, 0.2])
    np.testing.assert_allclose(other.barycenter, base.barycenter[points], atol=1e-9)
    np.testing.assert_allclose(other.values, base.values[order], atol=1e-8)
    np.testing.assert_allclose(barycenter(A, C + 7.0, reg=0.01, weights=[5, 2, 3]).barycenter, base.barycenter, atol=1e-9)
    np.testing.assert_allclose(barycenter(A, 9 * C, reg=0.09, weights=[5, 2, 3]).barycenter, base.barycenter, atol=1e-9)
    heavy = barycenter(4 * A, C, reg=0.01, weights=[5, 2, 3])
    np.testing.assert_allclose(heavy.barycenter, 4 * base.barycenter, atol=1e-8)
    assert heavy.plan(1).sum() == pytest.approx(4.0)
    assert heavy.gap < 1e-7
    mirrored = barycenter(A[:, ::-1], C, reg=0.01, weights=[5, 2, 3])
    np.testing.assert_allclose(mirrored.barycenter, base.barycenter[::-1], atol=1e-9)


def test_weights_of_zero_take_no_part():
    result = barycenter(A, C, reg=0.01, weights=[0.5, 0.0, 0.5])
    np.testing.assert_allclose(result.barycenter, barycenter(A[[0, 2]], C, reg=0.01).barycenter, atol=1e-9)
    assert np.isnan(result.marginal_errors[1]) and result.success
    assert result.values[1] == pytest.approx(solve_ot(A[1], result.barycenter, C, reg=0.01).value, abs=1e-8)
    assert result.transport(-2).success


def test_backends(backend, dtype):
    arrays = backend.asarray(A, dtype), backend.asarray(C, dtype)
    for reg in (0.01, 1e-3):
        result = barycenter(*arrays, reg=reg)
        assert result.success and backend.dtype_name(result.barycenter) == dtype
        expected = barycenter(A, C, reg=reg).barycenter
        np.testing.assert_allclose(backend.to_numpy(result.barycenter), expected, atol=1e-9 if dtype == "float64" else 1e-4)
        assert backend.to_numpy(result.plan(0)).shape == (60, 60)
        assert np.isfinite(result.value)


def test_images_and_debias_on_backends(backend):
    images = shapes(8, 10)
    for reg in (0.02, 2e-3):
        expected = barycenter(images, reg=reg).barycenter
        np.testing.assert_allclose(backend.to_numpy(barycenter(backend.asarray(images), reg=reg).barycenter), expected, atol=1e-9)
    sharp = barycenter(backend.asarray(A), backend.asarray(C), reg=0.01, debias=True)
    assert sharp.success and backend.owns(sharp.barycenter)
    assert sharp.gap >= 0


def test_inputs_are_not_changed():
    a, cost = A.copy(), C.copy()
    barycenter(a, cost, reg=1e-3)
    np.testing.assert_array_equal(a, A)
    np.testing.assert_array_equal(cost, C)


def test_warm_start():
    cold = barycenter(A, C, reg=2e-4)
    warm = barycenter(A, C, reg=2e-4, init=cold)
    assert warm.success and warm.nit == 1
    np.testing.assert_allclose(warm.barycenter, cold.barycenter, atol=1e-12)
    sharp = barycenter(A, C, reg=0.01, debias=True)
    assert barycenter(A, C, reg=0.01, debias=True, init=sharp).nit < sharp.nit


def test_callback_and_limits():
    seen = []
    result = barycenter(A, C, reg=1e-3, callback=seen.append)
    assert len(seen) == result.nit == len(result.history["marginal_error"])
    assert seen[-1].barycenter.shape == (60,) and seen[-1].reg == 1e-3

    def stop(state):
        if state.nit == 3:
            raise StopIteration

    for debias in (False, True):
        stopped = barycenter(A, C, reg=1e-4, debias=debias, callback=stop)
        assert stopped.status is Status.CALLBACK_STOP and stopped.nit == 3 and np.all(np.isfinite(stopped.barycenter))
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        assert barycenter(A, C, reg=1e-3, max_iter=4).status is Status.ITERATION_LIMIT
    with pytest.warns(ConvergenceWarning, match="time limit"):
        barycenter(A, C, reg=1e-3, options={"time_limit": 0.0})
    with pytest.raises(ConvergenceError) as caught:
        barycenter(A, C, reg=1e-3, max_iter=2, raise_on_failure=True)
    assert isinstance(caught.value.result, BarycenterResult)
    with pytest.warns(ConvergenceWarning, match="double precision"):
        assert barycenter(A, C, reg=0.01, tol=0.0).status is Status.STALLED


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        ((A, C[:50]), {}, ValueError, "60 weights"),
        ((A, [C, C]), {}, ValueError, "2 costs for 3 inputs"),
        ((A, [C, C, C[:, :9]]), {}, ValueError, "one column"),
        ((A,), {}, ValueError, "C is needed"),
        ((A[0], C), {}, ValueError, r"shape \(k, n\)"),
        (([], C), {}, ValueError, "no input"),
        ((-A, C), {}, ValueError, r"A\[0\].*finite weights"),
        ((0 * A, C), {}, ValueError, "positive, finite total mass"),
        ((A * np.array([[1], [2], [1]]), C), {}, ValueError, "equal mass"),
        ((A, np.where(C > 0.9, np.inf, C)), {}, ValueError, "forbids"),
        ((A, C), {"weights": [1, 2]}, ValueError, "3 inputs"),
        ((A, C), {"weights": [1, -2, 3]}, ValueError, "weights must be"),
        ((A, C), {"reg": -1.0}, ValueError, "reg"),
        ((A, C), {"tol": -1.0}, ValueError, "tol"),
        ((A, C), {"max_iter": 0}, ValueError, "max_iter"),
        ((A, C), {"callback": 3}, TypeError, "callable"),
        ((A, C), {"init": 3}, TypeError, "BarycenterResult"),
        ((A, C), {"options": {"time": 3}}, TypeError, "time_limit"),
        ((A, C), {"debias": "yes"}, TypeError, "debias"),
        ((A, [C, C.copy(), C]), {"debias": True}, ValueError, "support that all inputs share"),
        ((A, C + 0.1 * np.triu(np.ones((60, 60)))), {"debias": True}, ValueError, "symmetric"),
        ((A.astype(str), C), {}, TypeError, "real numbers"),
    ],
)
def test_bad_input(arguments, settings, error, message):
    with pytest.raises(error, match=message):
        barycenter(*arguments, **{"reg": 0.1, **settings})


def test_libraries_do_not_mix(make_backend):
    with pytest.raises(TypeError, match="one library"):
        barycenter(A, make_backend("torch").asarray(C), reg=0.1)


def test_start_of_another_problem_is_refused():
    with pytest.raises(ValueError, match="init must belong"):
        barycenter(A, C, reg=0.1, init=barycenter(A[:2], C, reg=0.1))
    with pytest.raises(IndexError, match="3 inputs"):
        barycenter(A, C, reg=0.1).transport(3)
