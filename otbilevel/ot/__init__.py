"""Optimal transport: geometry -> problem -> method -> result."""

from otbilevel.ot.batch import solve_ot_batch
from otbilevel.ot.batch_result import OTBatchResult
from otbilevel.ot.constraints import PlanConstraint, martingale, separable
from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.grid import Grid
from otbilevel.ot.partial_mass import PartialMass
from otbilevel.ot.penalties import KL, AtMost, TotalVariation
from otbilevel.ot.point_cloud import PointCloud
from otbilevel.ot.reg_path import reg_path
from otbilevel.ot.result import OTResult
from otbilevel.ot.solve import solve_ot

__all__ = [
    "KL",
    "AtMost",
    "DenseCost",
    "Grid",
    "OTBatchResult",
    "OTResult",
    "PartialMass",
    "PlanConstraint",
    "PointCloud",
    "TotalVariation",
    "martingale",
    "reg_path",
    "separable",
    "solve_ot",
    "solve_ot_batch",
]
