"""Optimal transport: geometry -> problem -> method -> result."""

from otbilevel.ot.barycenters.free_support import free_support_barycenter
from otbilevel.ot.barycenters.result import BarycenterResult, FreeSupportResult
from otbilevel.ot.barycenters.solve import barycenter
from otbilevel.ot.batch import solve_ot_batch
from otbilevel.ot.batch_result import OTBatchResult
from otbilevel.ot.constraints import PlanConstraint, martingale, separable
from otbilevel.ot.dense_cost import DenseCost
from otbilevel.ot.divergence import sinkhorn_divergence
from otbilevel.ot.divergence_result import DivergenceResult
from otbilevel.ot.gradients import OTGradient
from otbilevel.ot.grid import Grid
from otbilevel.ot.implicit import hvp, jvp, linearize, vjp
from otbilevel.ot.linearization import Linearization, OTTangent
from otbilevel.ot.partial_mass import PartialMass
from otbilevel.ot.penalties import KL, AtMost, TotalVariation
from otbilevel.ot.point_cloud import PointCloud
from otbilevel.ot.reg_path import reg_path
from otbilevel.ot.result import OTResult
from otbilevel.ot.solve import solve_ot
from otbilevel.ot.sparse_cost import SparseCost

__all__ = [
    "KL",
    "AtMost",
    "BarycenterResult",
    "DenseCost",
    "DivergenceResult",
    "FreeSupportResult",
    "Grid",
    "Linearization",
    "OTBatchResult",
    "OTGradient",
    "OTResult",
    "OTTangent",
    "PartialMass",
    "PlanConstraint",
    "PointCloud",
    "SparseCost",
    "TotalVariation",
    "barycenter",
    "free_support_barycenter",
    "hvp",
    "jvp",
    "linearize",
    "martingale",
    "reg_path",
    "separable",
    "sinkhorn_divergence",
    "solve_ot",
    "solve_ot_batch",
    "vjp",
]
