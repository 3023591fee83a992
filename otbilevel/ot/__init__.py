"""Optimal transport: geometry -> problem -> method -> result."""

from otbilevel.ot.geometry import DenseCost, PointCloud
from otbilevel.ot.result import OTResult
from otbilevel.ot.solve import solve_ot

__all__ = ["DenseCost", "OTResult", "PointCloud", "solve_ot"]
