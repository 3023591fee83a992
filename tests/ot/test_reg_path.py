"""Several values of reg: each result is that of `solve_ot`, for fewer sweeps."""

import numpy as np
import pytest

from otbilevel import ConvergenceError, ConvergenceWarning, DenseCost, PointCloud, solve_ot
from otbilevel._core.result import Status
from otbilevel.ot import reg_path
from otbilevel.ot.methods import METHODS
from otbilevel.testing.ot_laws import check_ot_result
from otbilevel.testing.ot_problems import FAMILIES

ITERATIVE = [row.name for row in METHODS if row.name != "exact"]


def problem(n=23, m=17, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.random((n, 2)), rng.random((m, 2))
    a, b = rng.dirichlet(np.full(n, 2.0)), rng.dirichlet(np.full(m, 2.0))
    a[0] = b[3 % m] = 0.0
    return x, y, a / a.sum(), b / b.sum()


def squared(x, y):
    return ((x[:, None] - y[None, :]) ** 2).sum(-1)


@pytest.mark.parametrize("method", ITERATIVE)
def test_on_every_library(method, device_backend, dtype):
    """Any order, values that occur twice, zero weights, n != m."""
    x, y, a, b = problem()
    arrays = [device_backend.asarray(v, dtype) for v in (a, b, squared(x, y))]
    regs = [0.1, 0.02, 0.5, 0.1, 0.05]
    results = reg_path(*arrays, regs, method=method, max_iter=200_000)
    assert [result.reg for result in results] == regs
    assert results[0] is results[3]
    for result in results:
        assert result.success and device_backend.owns(result.f) and device_backend.dtype_name(result.f) == dtype
        if device_backend.device is None:
            check_ot_result(result, *arrays, tol=1e-9 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("method", ITERATIVE)
def test_results_are_those_of_single_solves(method):
    x, y, a, b = problem()
    for geometry in (PointCloud(x, y), DenseCost(squared(x, y))):
        for result in reg_path(a, b, geometry, np.geomspace(0.2, 5e-3, 5), method=method, max_iter=200_000):
            single = solve_ot(a, b, geometry, reg=result.reg, method=method, max_iter=200_000)
            np.testing.assert_allclose(result.plan, single.plan, atol=2e-9)
            assert result.value == pytest.approx(single.value, abs=1e-9)


@pytest.mark.parametrize("method", ["sns", "auto"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_fewer_sweeps_than_cold(family, method):
    p, regs = FAMILIES[family](250, 0), np.geomspace(1e-1, 1e-3, 8)
    results = reg_path(p.a, p.b, p.C, regs, method=method)
    assert all(result.success for result in results)
    cold = sum(solve_ot(p.a, p.b, p.C, reg=float(reg), method=method).nsweep for reg in regs)
    assert sum(result.nsweep for result in results) <= (0.8 if method == "sns" else 1.0) * cold


@pytest.mark.parametrize("regs", [[1e-4, 0.3], [1e-2, (1 + 1e-12) * 1e-2, 1e-3], np.geomspace(1e-1, 1e-5, 5), [1e-2]])
def test_spacing_of_the_values(regs):
    """Far apart, all but equal, one alone: extrapolation must not magnify errors."""
    p = FAMILIES["cloud-2d"](120, 0)
    results = reg_path(p.a, p.b, p.C, regs, method="sns")
    assert len(results) == len(regs) and all(result.success for result in results)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (7, 1), (40, 9), (9, 40)])
def test_shapes(shape):
    rng = np.random.default_rng(3)
    a, b, C = rng.dirichlet(np.ones(shape[0])), rng.dirichlet(np.ones(shape[1])), rng.random(shape)
    for method in ITERATIVE:
        assert all(result.success for result in reg_path(a, b, C, [0.1, 0.05], method=method))


def test_init_is_for_the_largest():
    x, y, a, b = problem()
    C = squared(x, y)
    first, _ = reg_path(a, b, C, [0.1, 0.05], init=solve_ot(a, b, C, reg=0.1))
    assert first.nsweep == 2


def test_the_plan_of_a_result_survives_the_next_solve():
    """All values share memory while they are solved, and no result depends on it."""
    p = FAMILIES["mixture-1d"](60, 0)
    large, small = reg_path(p.a, p.b, p.C, [0.1, 0.01], method="sns")
    assert large._plan.problem.room is None and large._plan.problem.start is None
    check_ot_result(large, p.a, p.b, p.C, tol=1e-9)
    check_ot_result(small, p.a, p.b, p.C, tol=1e-9)


@pytest.mark.parametrize("method", ITERATIVE)
def test_the_callback_ends_the_whole_path(method):
    x, y, a, b = problem()
    C, seen = squared(x, y), []

    def callback(intermediate_result):
        seen.append(intermediate_result.reg)
        if intermediate_result.reg < 0.1:
            raise StopIteration

    results = reg_path(a, b, C, [0.02, 0.5, 0.05, 0.1], method=method, callback=callback)
    by_reg = {result.reg: result for result in results}
    assert [by_reg[reg].success for reg in (0.5, 0.1, 0.05, 0.02)] == [True, True, False, False]
    assert by_reg[0.05].status is by_reg[0.02].status is Status.CALLBACK_STOP
    assert by_reg[0.02].nit == 0 and by_reg[0.02].method == method
    check_ot_result(by_reg[0.02], a, b, C)
    assert by_reg[0.02].marginal_error < 0.5  # extrapolated, not from nothing
    assert seen.count(min(seen)) == 1


def test_limits_are_for_each_value():
    x, y, a, b = problem()
    C = squared(x, y)
    with pytest.warns(ConvergenceWarning) as warned:
        results = reg_path(a, b, C, [0.5, 1e-2, 1e-3], method="sinkhorn", max_iter=20)
    assert [result.success for result in results] == [True, False, False]
    assert len(warned) == 2 and all(warning.filename == __file__ for warning in warned)
    assert all(result.nit == 20 for result in results[1:])
    with pytest.raises(ConvergenceError) as failed:
        reg_path(a, b, C, [0.5, 1e-2, 1e-3], method="sinkhorn", max_iter=20, raise_on_failure=True)
    assert failed.value.result.reg == 1e-2


def test_progress(capsys):
    x, y, a, b = problem()
    reg_path(a, b, squared(x, y), [0.5, 0.1], progress=True)
    assert "reg_path[auto] reg=0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("regs", "error", "words"),
    [
        pytest.param([], ValueError, ["regs", "empty"], id="empty"),
        pytest.param(0.1, TypeError, ["regs", "float", "solve_ot"], id="number"),
        pytest.param(np.float64(0.1), TypeError, ["regs", "float64"], id="numpy-number"),
        pytest.param(np.array(0.1), TypeError, ["regs", "ndarray"], id="zero-dimensional"),
        pytest.param("0.1", TypeError, ["regs", "str"], id="string"),
        pytest.param(None, TypeError, ["regs", "NoneType"], id="None"),
        pytest.param([0.1, None], TypeError, ["regs[1]", "real number"], id="None-inside"),
        pytest.param([0.1, "0.2"], TypeError, ["regs[1]", "'0.2'"], id="string-inside"),
        pytest.param([0.1, 0.0], ValueError, ["regs[1]", "> 0", "exact"], id="zero"),
        pytest.param([-0.1, 0.1], ValueError, ["regs[0]", "-0.1"], id="negative"),
        pytest.param([0.1, 0.2, np.nan], ValueError, ["regs[2]", "finite"], id="nan"),
        pytest.param([0.1, 1e-30], ValueError, ["regs[1]", "rounding"], id="tiny"),
        pytest.param([[0.1, 0.2]], TypeError, ["regs[0]", "real number"], id="nested"),
    ],
)
def test_bad_values(regs, error, words):
    x, y, a, b = problem()
    with pytest.raises(error) as refused:
        reg_path(a, b, squared(x, y), regs)
    assert str(refused.value).startswith(words[0])
    assert all(word in str(refused.value) for word in words), refused.value


def test_other_bad_arguments():
    x, y, a, b = problem()
    C = squared(x, y)
    for settings, error, word in (
        ({"method": "exact"}, ValueError, 'method="exact"'),
        ({"method": "best"}, ValueError, "sinkhorn"),
        ({"tol": -1.0}, ValueError, "tol"),
        ({"max_iter": 0}, ValueError, "max_iter"),
        ({"callback": 3}, TypeError, "callback"),
        ({"progress": 1}, TypeError, "progress"),
        ({"options": {"speed": 1}}, TypeError, "speed"),
        ({"init": 3}, TypeError, "init"),
        ({"raise_on_failure": "no"}, TypeError, "raise_on_failure"),
    ):
        with pytest.raises(error, match=word):
            reg_path(a, b, C, [0.1], **settings)
    with pytest.raises(ValueError, match="a has 22 weights"):
        reg_path(a[1:], b, C, [0.1])
