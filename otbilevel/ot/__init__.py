"""Optimal transport: geometry -> problem -> method -> result."""

from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.grid import Grid
from otbilevel.ot.partial_mass import PartialMass
from otbilevel.ot.penalties import KL, AtMost, TotalVariation
from otbilevel.ot.point_cloud import PointCloud
from otbilevel.ot.reg_path import reg_path
from otbilevel.ot.result import OTResult
from otbilevel.ot.solve import solve_ot

__all__ = ["KL", "AtMost", "DenseCost", "Grid", "OTResult", "PartialMass", "PointCloud", "TotalVariation", "reg_path", "solve_ot"]
