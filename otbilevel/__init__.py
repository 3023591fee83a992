"""Second-order numerical methods behind a `scipy.optimize`-like interface, without ever forming a Hessian."""

import importlib
from types import ModuleType

from otbilevel._core.result import ConvergenceError, ConvergenceWarning, Status
from otbilevel.bilevel import BilevelResult, CoupledConstraint, HypergradientResult, hypergradient, minimize_bilevel
from otbilevel.ot import DenseCost, Grid, OTBatchResult, OTResult, PointCloud, SparseCost, solve_ot, solve_ot_batch

__version__ = "0.1.0"
__all__ = [
    "BilevelResult",
    "ConvergenceError",
    "ConvergenceWarning",
    "CoupledConstraint",
    "DenseCost",
    "Grid",
    "HypergradientResult",
    "OTBatchResult",
    "OTResult",
    "PointCloud",
    "SparseCost",
    "Status",
    "hypergradient",
    "minimize_bilevel",
    "solve_ot",
    "solve_ot_batch",
]


def __getattr__(name: str) -> ModuleType:
    """Load the bridge to PyTorch when it is first asked for."""
    if name == "pytorch":
        return importlib.import_module("otbilevel.pytorch")
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
