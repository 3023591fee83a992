"""The arguments that the entry functions of optimal transport share, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from otbilevel._core import validate
from otbilevel._core.monitor import Callback, Monitor
from otbilevel._core.registry import Method
from otbilevel.ot import partial_mass
from otbilevel.ot.geometry import Geometry
from otbilevel.ot.methods import METHODS
from otbilevel.ot.partial_mass import PartialMass
from otbilevel.ot.penalties import Fixed, Penalty, make_penalties
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.result import OTResult

RELATIVE_REG = 1e-3
"""Default regularisation relative to the range of the cost."""
SMALLEST_REG = 1e-290
"""Its reciprocal must not overflow."""


@dataclass(frozen=True)
class Call:
    """The arguments of a call that do not belong to the problem, checked."""

    row: Method
    settings: Any
    max_iter: int
    callback: Callback | None
    progress: bool
    raise_on_failure: bool

    @classmethod
    def of(
        cls, method: str, *, max_iter: Any, callback: Any, progress: Any, options: Mapping[str, Any] | None, raise_on_failure: Any
    ) -> Call:
        """Check them."""
        row = METHODS[method]
        settings = row.make_options(options)
        limit = row.max_iter if max_iter is None else validate.integer(max_iter, "max_iter", low=1)
        if callback is not None and not callable(callback):
            msg = f"callback must be callable, got {type(callback).__name__}"
            raise TypeError(msg)
        flags = [validate.boolean(flag, name) for flag, name in ((progress, "progress"), (raise_on_failure, "raise_on_failure"))]
        return cls(row, settings, limit, callback, *flags)

    def solve(self, problem: OTProblem, label: str) -> OTResult:
        """Run the method on a problem; `label` is for the progress bar."""
        monitor = Monitor(
            max_iter=self.max_iter,
            time_limit=getattr(self.settings, "time_limit", None),
            callback=self.callback,
            progress=self.progress,
            description=label,
        )
        try:
            result: OTResult = self.row.solve(problem, self.settings, monitor)
        finally:
            monitor.close()
        return result


def tolerance(tol: Any) -> float | None:
    """`tol`, checked."""
    return None if tol is None else validate.real(tol, "tol", low=0.0)


def price(unbalanced: Any, call: Call) -> tuple[Penalty, Penalty]:
    """The penalties that `unbalanced` asks for, which the method must know."""
    penalties = partial_mass.penalties(0.0) if isinstance(unbalanced, PartialMass) else make_penalties(unbalanced)
    if penalties != (Fixed(), Fixed()) and call.settings.balanced_only:
        msg = f"unbalanced is not for {call.settings.balanced_only}: choose another method, or leave it out"
        raise ValueError(msg)
    return penalties


def regularisation(reg: float | None, method: str, geometry: Geometry, name: str = "reg", *, exact: bool = True) -> float:
    """`reg` or its default, checked against the cost; `exact` tells that ``method="exact"`` is there for those who want none."""
    if method == "exact":
        if reg is not None:
            msg = 'method="exact" is unregularised: leave reg out, or choose another method'
            raise ValueError(msg)
        return 0.0
    low, high = geometry.bounds
    if not math.isfinite(high - low) and high >= low:
        msg = f"the finite costs of C range from {low:g} to {high:g}, which overflows: rescale C (and reg with it)"
        raise ValueError(msg)
    largest = max(abs(low), abs(high)) if high >= low else 0.0  # 0: every pair is forbidden, which is refused later
    if reg is None:
        strength = RELATIVE_REG * ((high - low if high > low else largest) or 1.0)
        name = "the default reg"
    else:
        strength = _positive(reg, name) if exact else validate.real(reg, name, low=0.0, strict=True)
    if strength < max(np.finfo(np.float64).eps * largest, SMALLEST_REG):
        msg = f"{name} = {strength:g} is lost in the rounding of C, whose largest cost is {largest:g}: raise reg, or rescale C" + (
            ', or use method="exact"' if exact else ""
        )
        raise ValueError(msg)
    return strength


def _positive(reg: Any, name: str) -> float:
    try:
        return validate.real(reg, name, low=0.0, strict=True)
    except ValueError as error:
        msg = f'{error}; for unregularised transport use method="exact"'
        raise ValueError(msg) from None
