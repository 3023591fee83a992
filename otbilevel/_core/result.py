"""How a solver ended: status codes, the warning and the error, and what all results share."""

from __future__ import annotations

import warnings
from enum import IntEnum
from typing import Any, TypeVar


class Status(IntEnum):
    """Why a solver stopped. `SUCCESS` is the only one that means that the tolerance is met."""

    SUCCESS = 0
    ITERATION_LIMIT = 1
    TIME_LIMIT = 2
    STALLED = 3
    NOT_FINITE = 4
    NUMERICAL_FAILURE = 5
    INFEASIBLE = 6
    CALLBACK_STOP = 99


class ConvergenceWarning(UserWarning):
    """A solver stopped before it reached the tolerance; the result's `message` says what to try."""


class ConvergenceError(RuntimeError):
    """Raised instead of `ConvergenceWarning` with ``raise_on_failure=True``.

    Attributes
    ----------
    result
        The result that would have been returned.
    """

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.result)


class Result:
    """What all results share: `success`, `status` and `message`, and a printout of the fields in `_summary`.

    A subclass is a dataclass that lists in `_summary` the names that its printout shows.
    """

    success: bool
    status: Status
    message: str
    _summary: tuple[str, ...] = ()

    def __repr__(self) -> str:
        width = max(map(len, self._summary), default=0)
        rows = (f"{name:>{width + 2}}: {_short(getattr(self, name))}" for name in self._summary)
        return "\n".join([f"{type(self).__name__}", *rows])


R = TypeVar("R", bound=Result)


def _short(value: Any) -> str:
    if isinstance(value, Status):
        return f"{int(value)} ({value.name})"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, (tuple, list)) and value and all(hasattr(part, "shape") for part in value):
        return f"arrays of shapes {', '.join(str(tuple(part.shape)) for part in value)}"
    shape = getattr(value, "shape", None)
    return f"array of shape {tuple(shape)}, {value.dtype}" if shape else str(value)


def report(result: R, *, raise_on_failure: bool, stacklevel: int = 3) -> R:
    """Return `result`, after one warning (or an error) if it is a failure. A stop that the callback asked for is neither."""
    if result.success or result.status is Status.CALLBACK_STOP:
        return result
    if raise_on_failure:
        raise ConvergenceError(result.message, result)
    warnings.warn(result.message, ConvergenceWarning, stacklevel=stacklevel)
    return result
