"""How a solver ends: printout, warning, error, and the stop that is neither."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import warnings

import numpy as np
import pytest

from otbilevel import ConvergenceError, ConvergenceWarning
from otbilevel._core.result import Result, Status, report


@dataclasses.dataclass(eq=False, repr=False)
class Answer(Result):
    x: object
    residual: float
    success: bool
    status: Status
    message: str
    secret: int = 7
    _summary = ("message", "success", "status", "residual", "x")


def answer(status: Status = Status.SUCCESS, **changes) -> Answer:
    given = {
        "x": np.zeros((2, 3), np.float32),
        "residual": 1.25e-12,
        "success": status is Status.SUCCESS,
        "message": f"ended: {status.name}",
    }
    return Answer(status=status, **(given | changes))


def test_the_printout_shows_the_summary_a_line_each():
    lines = repr(answer(Status.STALLED)).splitlines()
    assert lines == [
        "Answer",
        "   message: ended: STALLED",
        "   success: False",
        "    status: 3 (STALLED)",
        "  residual: 1.25e-12",
        "         x: array of shape (2, 3), float32",
    ]


def test_the_printout_does_not_dump_arrays(device_backend):
    text = repr(answer(x=device_backend.asarray(np.arange(1000.0))))
    assert "array of shape (1000,)" in text
    assert "float64" in text
    assert len(text) < 250


def test_the_printout_shows_scalars_as_they_are():
    assert "x: 5" in repr(answer(x=np.asarray(5)))
    assert "x: None" in repr(answer(x=None))


def test_an_empty_summary_is_the_name():
    assert repr(Result()) == "Result"


def test_status_codes_are_distinct_and_success_is_zero():
    assert Status.SUCCESS == 0
    assert len({int(status) for status in Status}) == len(Status)
    assert [status for status in Status if not status] == [Status.SUCCESS]


@pytest.mark.parametrize("status", [status for status in Status if status not in (Status.SUCCESS, Status.CALLBACK_STOP)])
def test_a_failure_warns_once_and_comes_back(status):
    result = answer(status)
    with pytest.warns(ConvergenceWarning) as record:
        assert report(result, raise_on_failure=False, stacklevel=2) is result
    assert [str(warning.message) for warning in record] == [f"ended: {status.name}"]
    assert record[0].filename == __file__


def test_the_default_stacklevel_points_at_the_caller_of_the_entry():
    def entry():
        return report(answer(Status.STALLED), raise_on_failure=False)

    line = inspect.currentframe().f_lineno + 2
    with pytest.warns(ConvergenceWarning) as record:
        entry()
    assert (record[0].filename, record[0].lineno) == (__file__, line)


@pytest.mark.parametrize("status", [status for status in Status if status not in (Status.SUCCESS, Status.CALLBACK_STOP)])
def test_a_failure_raises_on_request_and_carries_the_result(status):
    result = answer(status)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConvergenceError, match=f"ended: {status.name}") as raised:
            report(result, raise_on_failure=True)
    assert raised.value.result is result
    assert isinstance(raised.value, RuntimeError)


@pytest.mark.parametrize("raise_on_failure", [False, True])
@pytest.mark.parametrize("status", [Status.SUCCESS, Status.CALLBACK_STOP])
def test_success_and_a_wanted_stop_are_silent(status, raise_on_failure):
    result = answer(status)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert report(result, raise_on_failure=raise_on_failure) is result


def test_the_warning_can_be_silenced_as_any_user_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", UserWarning)
        report(answer(Status.STALLED), raise_on_failure=False)
    assert issubclass(ConvergenceWarning, UserWarning)


def test_the_error_survives_a_process_boundary():
    error = ConvergenceError("stalled", {"x": 1})
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.result) == ("stalled", {"x": 1})
