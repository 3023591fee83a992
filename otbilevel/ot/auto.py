"""The method for those who do not want to choose: today `sns`, which is ahead of Sinkhorn's method even where that is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from otbilevel._core import validate
from otbilevel._core.monitor import Monitor
from otbilevel.ot import sns
from otbilevel.ot.point_plan import MEMORY, check_memory
from otbilevel.ot.problem import OTProblem
from otbilevel.ot.result import OTResult


@dataclass(frozen=True)
class AutoOptions:
    """Settings of ``method="auto"``.

    Attributes
    ----------
    time_limit : float, optional
        Seconds of wall time.
    memory : float
        Bytes that the plan of a `PointCloud` may take, by default 2^30. A plan that does not fit is computed anew in every pass.
        The plan beside a cost matrix does not count.
    """

    time_limit: float | None = None
    memory: float = MEMORY
    balanced_only: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.time_limit is not None:
            validate.real(self.time_limit, "time_limit", low=0.0)
        check_memory(self.memory)


def solve(problem: OTProblem, options: AutoOptions, monitor: Monitor) -> OTResult:
    """Solve by `sns` with its usual settings."""
    return sns.solve(problem, sns.SNSOptions(time_limit=options.time_limit, memory=options.memory), monitor)
