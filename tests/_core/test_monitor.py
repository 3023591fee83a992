"""The monitor: counts, history, limits, callback and bar, by a clock that the test turns."""

from __future__ import annotations

import math
from types import SimpleNamespace

import hypothesis
import pytest
from hypothesis import strategies as st

from otbilevel._core import monitor
from otbilevel._core.monitor import Monitor
from otbilevel._core.result import Status


class Clock:
    """Stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(monitor, "time", clock)
    return clock


def test_a_run_without_limits_goes_on():
    watch = Monitor(max_iter=10**9)
    assert all(watch.record(error=1.0 / k) for k in range(1, 200))
    assert (watch.nit, watch.status, watch.stopped) == (199, None, False)
    watch.close()


@hypothesis.given(limit=st.integers(1, 30), errors=st.lists(st.floats(0, 1e300), min_size=30, max_size=30))
def test_the_iteration_limit_comes_after_that_many_records(limit, errors):
    watch = Monitor(max_iter=limit)
    answers = []
    for error in errors:
        answers.append(watch.record(error=error, reg=2 * error))
        if watch.stopped:
            break
    assert answers == [True] * (limit - 1) + [False]
    assert watch.status is Status.ITERATION_LIMIT
    assert watch.nit == limit
    assert watch.history["error"] == errors[:limit]
    assert watch.history["reg"] == [2 * error for error in errors[:limit]]
    assert len(watch.history["seconds"]) == limit


def test_history_holds_the_time_since_the_start(clock):
    watch = Monitor(max_iter=10)
    for seconds in (0.5, 1.0, 0.25):
        clock.now += seconds
        watch.record(error=1.0)
    assert watch.history["seconds"] == [0.5, 1.5, 1.75]
    assert watch.seconds == 1.75


def test_the_time_limit_counts_from_the_creation(clock):
    watch = Monitor(max_iter=10, time_limit=2.0)
    clock.now += 2.0
    assert watch.record(error=1.0), "the limit is reached but not passed"
    assert not watch.overdue()
    clock.now += 1e-3
    assert watch.overdue()
    assert not watch.stopped, "an inner loop asks; only a record stops"
    assert not watch.record(error=1.0)
    assert watch.status is Status.TIME_LIMIT
    assert watch.nit == 2


def test_no_time_limit_is_never_overdue(clock):
    watch = Monitor(max_iter=10)
    clock.now += 1e30
    assert not watch.overdue()
    assert watch.record(error=1.0)


def test_the_iteration_limit_is_named_before_the_time_limit(clock):
    watch = Monitor(max_iter=1, time_limit=1.0)
    clock.now += 5.0
    watch.record(error=1.0)
    assert watch.status is Status.ITERATION_LIMIT


@pytest.mark.parametrize("figures", [{"error": math.nan, "reg": 1.0}, {"error": 1.0, "reg": math.nan}])
def test_nan_stops(figures):
    watch = Monitor(max_iter=1)
    assert not watch.record(**figures)
    assert watch.status is Status.NOT_FINITE
    assert watch.nit == 1
    assert any(math.isnan(values[0]) for values in watch.history.values())


def test_infinity_and_integers_are_figures_like_others():
    watch = Monitor(max_iter=3)
    assert watch.record(error=math.inf, cg=3)
    assert watch.history["cg"] == [3]


def test_the_callback_gets_the_figures_and_the_iterate():
    seen, made = [], []

    def iterate():
        made.append(1)
        return {"f": "potentials"}

    watch = Monitor(max_iter=5, callback=seen.append)
    watch.record(iterate, error=0.5)
    watch.record(error=0.25)
    assert seen == [SimpleNamespace(nit=1, error=0.5, f="potentials"), SimpleNamespace(nit=2, error=0.25)]
    assert made == [1]


def test_the_iterate_is_not_made_without_a_callback():
    def iterate():
        pytest.fail("nobody asked")

    assert Monitor(max_iter=5).record(iterate, error=0.5)


def test_stop_iteration_stops():
    def callback(intermediate_result):
        if intermediate_result.nit == 3:
            raise StopIteration

    watch = Monitor(max_iter=10, callback=callback)
    assert [watch.record(error=1.0) for _ in range(3)] == [True, True, False]
    assert watch.status is Status.CALLBACK_STOP
    assert watch.nit == 3


def test_a_value_that_the_callback_returns_does_not_stop():
    assert Monitor(max_iter=10, callback=lambda intermediate_result: intermediate_result.nit > 0).record(error=1.0)


def test_other_errors_of_the_callback_are_the_users():
    def callback(intermediate_result):
        msg = f"at {intermediate_result.nit}"
        raise KeyError(msg)

    with pytest.raises(KeyError, match="at 1"):
        Monitor(max_iter=10, callback=callback).record(error=1.0)


def test_the_bar_is_drawn_on_stderr_when_asked(capsys):
    watch = Monitor(max_iter=10, progress=True, description="solve_ot[sns]")
    for _ in range(7):
        watch.record(error=0.125)
    watch.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "solve_ot[sns]" in err
    assert "7it" in err
    assert "error=1.25e-01" in err


def test_nothing_is_drawn_otherwise(capsys):
    watch = Monitor(max_iter=10, description="solve_ot[sns]")
    for _ in range(7):
        watch.record(error=0.125)
    watch.close()
    assert capsys.readouterr() == ("", "")


def test_closing_twice_is_fine(capsys):
    watch = Monitor(max_iter=1, progress=True)
    watch.close()
    written = capsys.readouterr().err
    watch.close()
    assert capsys.readouterr().err == ""
    assert "0it" in written
