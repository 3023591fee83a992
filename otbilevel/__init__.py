"""Second-order numerical methods behind a `scipy.optimize`-like interface, without ever forming a Hessian."""

from otbilevel._core.result import ConvergenceError, ConvergenceWarning, Status
from otbilevel.ot import DenseCost, OTResult, PointCloud, SparseCost, solve_ot

__version__ = "0.1.0"
__all__ = ["ConvergenceError", "ConvergenceWarning", "DenseCost", "OTResult", "PointCloud", "SparseCost", "Status", "solve_ot"]
