"""Second-order numerical methods behind a `scipy.optimize`-like interface, without ever forming a Hessian."""

from otbilevel._core.result import ConvergenceError, ConvergenceWarning, Status
from otbilevel.ot import DenseCost, Grid, OTBatchResult, OTResult, PointCloud, solve_ot, solve_ot_batch

__version__ = "0.1.0"
__all__ = [
    "ConvergenceError",
    "ConvergenceWarning",
    "DenseCost",
    "Grid",
    "OTBatchResult",
    "OTResult",
    "PointCloud",
    "Status",
    "solve_ot",
    "solve_ot_batch",
]
