"""Optimal transport: geometry -> problem -> method -> result."""

from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.divergence import sinkhorn_divergence
from otbilevel.ot.divergence_result import DivergenceResult
from otbilevel.ot.gradients import OTGradient
from otbilevel.ot.implicit import hvp, jvp, linearize, vjp
from otbilevel.ot.linearization import Linearization, OTTangent
from otbilevel.ot.point_cloud import PointCloud
from otbilevel.ot.reg_path import reg_path
from otbilevel.ot.result import OTResult
from otbilevel.ot.solve import solve_ot

__all__ = [
    "DenseCost",
    "DivergenceResult",
    "Linearization",
    "OTGradient",
    "OTResult",
    "OTTangent",
    "PointCloud",
    "hvp",
    "jvp",
    "linearize",
    "reg_path",
    "sinkhorn_divergence",
    "solve_ot",
    "vjp",
]
