"""Optimal transport: geometry -> problem -> method -> result."""

from otbilevel.ot.constraints import PlanConstraint, martingale, separable
from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.point_cloud import PointCloud
from otbilevel.ot.reg_path import reg_path
from otbilevel.ot.result import OTResult
from otbilevel.ot.solve import solve_ot

__all__ = ["DenseCost", "OTResult", "PlanConstraint", "PointCloud", "martingale", "reg_path", "separable", "solve_ot"]
