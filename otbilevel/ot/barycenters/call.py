"""The arguments that both entry functions share, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from otbilevel._core import validate
from otbilevel._core.monitor import Monitor
from otbilevel._core.registry import Method


@dataclass(frozen=True)
class BarycenterOptions:
    """Settings of `barycenter` and `free_support_barycenter`.

    Attributes
    ----------
    time_limit : float, optional
        Seconds of wall time.
    """

    time_limit: float | None = None

    def __post_init__(self) -> None:
        if self.time_limit is not None:
            validate.real(self.time_limit, "time_limit", low=0.0)


def make_monitor(
    entry: str, default: int, max_iter: Any, callback: Any, progress: Any, options: Mapping[str, Any] | None
) -> Monitor:
    """A monitor with the limits that the user sets."""
    row = Method(entry, "", make_monitor, BarycenterOptions, (), "", default)
    settings = row.make_options(options)
    limit = default if max_iter is None else validate.integer(max_iter, "max_iter", low=1)
    if callback is not None and not callable(callback):
        msg = f"callback must be callable, got {type(callback).__name__}"
        raise TypeError(msg)
    shown = validate.boolean(progress, "progress")
    return Monitor(max_iter=limit, time_limit=settings.time_limit, callback=callback, progress=shown, description=entry)
