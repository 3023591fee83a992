"""Optimal transport: geometry -> problem -> method -> result."""

from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.point_cloud import PointCloud
from otbilevel.ot.reg_path import reg_path
from otbilevel.ot.result import OTResult
from otbilevel.ot.solve import solve_ot
from otbilevel.ot.sparse_cost import SparseCost

__all__ = ["DenseCost", "OTResult", "PointCloud", "SparseCost", "reg_path", "solve_ot"]
