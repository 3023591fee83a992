"""Second-order numerical methods behind a `scipy.optimize`-like interface, without ever forming a Hessian."""

import importlib
from types import ModuleType

from otbilevel._core.result import ConvergenceError, ConvergenceWarning, Status
from otbilevel.ot import DenseCost, OTResult, PointCloud, solve_ot

__version__ = "0.1.0"
__all__ = ["ConvergenceError", "ConvergenceWarning", "DenseCost", "OTResult", "PointCloud", "Status", "solve_ot"]


def __getattr__(name: str) -> ModuleType:
    """Load the bridge to PyTorch when it is first asked for."""
    if name == "pytorch":
        return importlib.import_module("otbilevel.pytorch")
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
