"""Optimal transport: geometry -> problem -> method -> result."""

from otbilevel.ot.barycenters.free_support import FreeSupportResult, free_support_barycenter
from otbilevel.ot.barycenters.result import BarycenterResult
from otbilevel.ot.barycenters.solve import barycenter
from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.point_cloud import PointCloud
from otbilevel.ot.reg_path import reg_path
from otbilevel.ot.result import OTResult
from otbilevel.ot.solve import solve_ot

__all__ = [
    "BarycenterResult",
    "DenseCost",
    "FreeSupportResult",
    "OTResult",
    "PointCloud",
    "barycenter",
    "free_support_barycenter",
    "reg_path",
    "solve_ot",
]
