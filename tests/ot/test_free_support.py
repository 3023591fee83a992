"""Barycentres whose points move, against closed forms, POT and finite differences."""

import tracemalloc

import numpy as np
import pytest

from otbilevel import ConvergenceError, ConvergenceWarning, PointCloud, Status, solve_ot
from otbilevel.ot import FreeSupportResult, barycenter, free_support_barycenter

RNG = np.random.default_rng(0)
CLOUDS = [RNG.standard_normal((m, 2)) * s + c for m, s, c in ((20, 1.0, 0.0), (15, 0.5, 2.0), (25, 1.5, -1.0))]
MASSES = [RNG.dirichlet(np.ones(len(x))) for x in CLOUDS]
START = RNG.standard_normal((12, 2))


def test_translates_meet_in_the_middle():
    """A cloud and its translates: the barycentre is the cloud at the mean shift, reached from a shifted start in one step."""
    x = np.random.default_rng(1).standard_normal((30, 3))
    shifts = np.array([[0.0, 1.0, 2.0], [3.0, 0.0, -1.0], [1.0, 1.0, 1.0]])
    result = free_support_barycenter([x + s for s in shifts], init=x + 5.0, weights=[1, 2, 1])
    mean = np.array([0.25, 0.5, 0.25]) @ shifts
    np.testing.assert_allclose(result.points, x + mean, atol=1e-12)
    assert result.success and result.nit <= 3 and result.displacement < 1e-12
    assert result.value == pytest.approx(np.array([0.25, 0.5, 0.25]) @ ((shifts - mean) ** 2).sum(1))


def test_one_point_goes_to_the_mean():
    for reg in (None, 0.3):
        result = free_support_barycenter(CLOUDS, MASSES, init=START[:1], reg=reg)
        np.testing.assert_allclose(result.points[0], sum(a @ x for a, x in zip(MASSES, CLOUDS, strict=True)) / 3, atol=1e-6)


def test_on_the_line_quantiles_are_averaged():
    rng = np.random.default_rng(2)
    lines = [rng.standard_normal((20, 1)) for _ in range(4)]
    result = free_support_barycenter(lines, init=rng.standard_normal((20, 1)))
    np.testing.assert_allclose(np.sort(result.points[:, 0]), np.mean([np.sort(x[:, 0]) for x in lines], axis=0), atol=1e-12)


def test_exact_agrees_with_pot():
    ot = pytest.importorskip("ot")
    expected = ot.lp.free_support_barycenter(CLOUDS, MASSES, START, numItermax=500, stopThr=1e-24)
    result = free_support_barycenter(CLOUDS, MASSES, init=START)
    np.testing.assert_allclose(result.points, expected, atol=1e-10)
    values = [ot.emd2(np.full(12, 1 / 12), a, ot.dist(expected, x)) for a, x in zip(MASSES, CLOUDS, strict=True)]
    np.testing.assert_allclose(result.values, values, atol=1e-9)
    assert result.value == pytest.approx(np.mean(values))


@pytest.mark.parametrize("reg", [5.0, 1.0])
def test_entropic_agrees_with_pot(reg):
    ot = pytest.importorskip("ot")
    expected = ot.bregman.free_support_sinkhorn_barycenter(
        CLOUDS, MASSES, START, reg, numItermax=2000, stopThr=1e-20, numInnerItermax=5000, warn=False
    )
    result = free_support_barycenter(CLOUDS, MASSES, init=START, reg=reg, tol=1e-8, max_iter=3000)
    assert result.success and result.marginal_error < 1e-9
    np.testing.assert_allclose(result.points, expected, atol=1e-6)


def test_the_objective_falls():
    for settings in ({}, {"reg": 0.2}, {"reg": 0.5, "update_masses": True}):
        values = free_support_barycenter(CLOUDS, MASSES, init=START, tol=1e-4, max_iter=3000, **settings).history["value"]
        assert np.all(np.diff(values) < 1e-6)


@pytest.mark.parametrize("debias", [False, True])
def test_the_gradient_vanishes(debias):
    """By finite differences of values that `solve_ot` computes at shifted points."""
    reg, start, b = 2.0, START[:4], np.full(4, 1 / 4)
    result = free_support_barycenter(CLOUDS, MASSES, init=start, reg=reg, debias=debias, tol=1e-6, max_iter=2000)
    assert result.success

    def objective(y):
        value = np.mean([solve_ot(b, a, PointCloud(y, x), reg=reg, tol=1e-12).value for a, x in zip(MASSES, CLOUDS, strict=True)])
        return value - 0.5 * solve_ot(b, b, PointCloud(y), reg=reg, tol=1e-12).value if debias else value

    assert result.value == pytest.approx(objective(result.points), abs=1e-8)
    d = np.random.default_rng(3).standard_normal(start.shape)
    slope = (objective(result.points + 1e-4 * d) - objective(result.points - 1e-4 * d)) / 2e-4
    assert abs(slope) < 1e-5
    assert abs(objective(start + 1e-4 * d) - objective(start - 1e-4 * d)) / 2e-4 > 1e-2


def test_debiased_points_do_not_shrink():
    """One input, as many points: the Sinkhorn divergence is zero at the cloud itself; its entropic barycentre shrinks."""
    x = np.random.default_rng(4).standard_normal((15, 2))
    sharp = free_support_barycenter([x], init=x, reg=1.0, debias=True)
    np.testing.assert_allclose(sharp.points, x, atol=1e-7)
    assert free_support_barycenter([x], init=x, reg=1.0).points.std() < 0.9 * x.std()


@pytest.mark.parametrize("debias", [False, True])
def test_where_the_origin_is_does_not_matter(debias):
    """As far away as coordinates in metres are, squares of which would leave ten digits less."""
    limits = {"reg": 1.0, "debias": debias, "tol": 1e-5, "max_iter": 2000}
    here = free_support_barycenter(CLOUDS, MASSES, init=START[:5], **limits)
    far = free_support_barycenter([x + 1e7 for x in CLOUDS], MASSES, init=START[:5] + 1e7, **limits)
    assert here.success and far.success
    np.testing.assert_allclose(far.points - 1e7, here.points, atol=1e-5)
    assert far.value == pytest.approx(here.value, rel=1e-6)


def test_points_that_prove_not_to_stand_still_go_on():
    """The last step is taken again, by transports to full accuracy; where that moves points too far, the search goes on."""
    seen = free_support_barycenter(CLOUDS, MASSES, init=START, reg=1.0, tol=1e-4, max_iter=2000).history["displacement"]
    again = 0
    for displacement in seen:
        tol = float(displacement) * (1 + 1e-9)
        result = free_support_barycenter(CLOUDS, MASSES, init=START, reg=1.0, tol=tol, max_iter=2000)
        assert result.success and result.displacement <= tol
        again += result.nit > 1 + int(np.argmax(seen <= tol))
    assert again


def test_clouds_of_uneven_size_are_not_filled_up():
    rng = np.random.default_rng(0)
    clouds = [rng.random((3000, 2)), *(rng.random((4, 2)) for _ in range(20))]
    tracemalloc.start()
    free_support_barycenter(clouds, n_points=3, reg=1.0, rng=0, tol=1e-2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 21 * 3 * 3000 * 8


def test_masses_are_those_of_the_fixed_support():
    result = free_support_barycenter(CLOUDS, MASSES, init=START, reg=1.0, update_masses=True, tol=1e-6, max_iter=3000)
    assert result.success
    fixed = barycenter(MASSES, [PointCloud(x, result.points) for x in CLOUDS], reg=1.0)
    np.testing.assert_allclose(result.masses, fixed.barycenter, atol=1e-6)
    assert result.value == pytest.approx(fixed.value, abs=1e-6)
    assert [t.plan.shape for t in result.transports] == [(len(x), 12) for x in CLOUDS]


def test_masses_weights_and_mass():
    b = np.arange(1.0, 13.0)
    result = free_support_barycenter(CLOUDS, [3 * a for a in MASSES], init=START, masses=b, weights=[0, 1, 1])
    np.testing.assert_allclose(result.masses, 3 * b / b.sum())
    alone = free_support_barycenter(CLOUDS[1:], MASSES[1:], init=START, masses=b)
    np.testing.assert_allclose(result.points, alone.points, atol=1e-12)
    assert result.value == pytest.approx(3 * alone.value)
    assert len(result.transports) == 3
    holes = np.where(b > 4, b, 0.0)
    sparse = free_support_barycenter(CLOUDS, MASSES, init=START, masses=holes)
    np.testing.assert_allclose(sparse.points[4:], free_support_barycenter(CLOUDS, MASSES, init=START[4:], masses=b[4:]).points)


def test_a_drawn_start():
    first, second = (free_support_barycenter(CLOUDS, n_points=5, rng=7) for _ in range(2))
    np.testing.assert_array_equal(first.points, second.points)
    assert first.points.shape == (5, 2) and first.success


def test_a_single_place():
    place = np.array([[1.0, 2.0]])
    result = free_support_barycenter([place, place], init=place)
    np.testing.assert_array_equal(result.points, place)
    assert result.value == 0.0


@pytest.mark.parametrize("settings", [{}, {"reg": 1.0}, {"reg": 1.0, "debias": True}, {"reg": 1.0, "update_masses": True}])
def test_backends(backend, dtype, settings):
    arrays = [backend.asarray(x, dtype) for x in CLOUDS], [backend.asarray(a, dtype) for a in MASSES]
    limits = {"tol": 1e-6 if dtype == "float64" else 1e-3, "max_iter": 1000}
    result = free_support_barycenter(*arrays, init=backend.asarray(START[:5], dtype), **limits, **settings)
    assert result.success and backend.dtype_name(result.points) == backend.dtype_name(result.masses) == dtype
    expected = free_support_barycenter(CLOUDS, MASSES, init=START[:5], **limits, **settings)
    np.testing.assert_allclose(backend.to_numpy(result.points), expected.points, atol=1e-6 if dtype == "float64" else 2e-2)


def test_without_pot(monkeypatch):
    with_pot = free_support_barycenter(CLOUDS, MASSES, init=START)
    monkeypatch.setattr("otbilevel.ot.exact._import_pot", lambda: None)
    without = free_support_barycenter(CLOUDS, MASSES, init=START)
    assert without.value == pytest.approx(with_pot.value, rel=0.05)  # another vertex may lead elsewhere
    assert without.success and without.displacement <= 1e-6


def test_callback_and_limits():
    seen = []
    result = free_support_barycenter(CLOUDS, MASSES, init=START, reg=1.0, tol=1e-3, callback=seen.append)
    assert len(seen) == result.nit == len(result.history["displacement"])
    assert seen[0].points.shape == START.shape

    def stop(state):
        raise StopIteration

    assert free_support_barycenter(CLOUDS, MASSES, init=START, callback=stop).status is Status.CALLBACK_STOP
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        short = free_support_barycenter(CLOUDS, MASSES, init=START, max_iter=1)
    assert short.status is Status.ITERATION_LIMIT and len(short.transports) == 3
    with pytest.warns(ConvergenceWarning, match="time limit"):
        free_support_barycenter(CLOUDS, MASSES, init=START, options={"time_limit": 0.0})
    with pytest.raises(ConvergenceError) as caught:
        free_support_barycenter(CLOUDS, MASSES, init=START, max_iter=1, raise_on_failure=True)
    assert isinstance(caught.value.result, FreeSupportResult)


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "message"),
    [
        ((CLOUDS[0],), {}, TypeError, "list of"),
        (([],), {}, TypeError, "list of"),
        (([CLOUDS[0], np.ones((3, 3))],), {}, ValueError, "one dimension"),
        (([np.ones(3)],), {}, ValueError, "two-dimensional"),
        (([np.full((3, 2), np.nan)],), {}, ValueError, r"X\[0\].*finite"),
        ((CLOUDS, MASSES[:2]), {}, ValueError, "2 inputs"),
        ((CLOUDS, MASSES[::-1]), {}, ValueError, r"a\[0\] must hold"),
        ((CLOUDS, [MASSES[0], 2 * MASSES[1], None]), {}, ValueError, "equal mass"),
        ((CLOUDS,), {"init": None}, ValueError, "n_points is needed"),
        ((CLOUDS,), {"init": np.ones((3, 5))}, ValueError, "init must have shape"),
        ((CLOUDS,), {"init": np.full((3, 2), np.inf)}, ValueError, "init.*finite"),
        ((CLOUDS,), {"n_points": 3}, ValueError, "init must have shape"),
        ((CLOUDS,), {"masses": np.ones(3)}, ValueError, "masses must hold"),
        ((CLOUDS,), {"reg": 0.0}, ValueError, "reg"),
        ((CLOUDS,), {"debias": True}, ValueError, "debias=True needs"),
        ((CLOUDS,), {"update_masses": True}, ValueError, "update_masses=True needs"),
        ((CLOUDS,), {"reg": 1.0, "update_masses": True, "debias": True}, ValueError, "leave out"),
        ((CLOUDS,), {"weights": [1, 2]}, ValueError, "3 inputs"),
        ((CLOUDS,), {"max_iter": 0}, ValueError, "max_iter"),
        ((CLOUDS,), {"callback": 1}, TypeError, "callable"),
        ((CLOUDS,), {"options": {"limit": 1}}, TypeError, "time_limit"),
        ((CLOUDS,), {"debias": 1}, TypeError, "debias"),
    ],
)
def test_bad_input(arguments, settings, error, message):
    with pytest.raises(error, match=message):
        free_support_barycenter(*arguments, **{"init": START, **settings})
