"""The bridge to PyTorch: transport with gradients, curvature of models, hypergradients. The only folder that imports torch."""

try:
    import torch as _torch  # noqa: F401 -- here, to say what to install
except ImportError as error:  # pragma: no cover -- the tests have it
    _msg = "otbilevel.pytorch needs PyTorch: pip install 'otbilevel[torch]'"
    raise ImportError(_msg) from error

from otbilevel.pytorch.gradients import gradients
from otbilevel.pytorch.hypergradient import hypergradient
from otbilevel.pytorch.loss import SinkhornLoss
from otbilevel.pytorch.lv_hba import LVHBA, LVHBAStep
from otbilevel.pytorch.operators import ModelOperator, from_torch
from otbilevel.pytorch.transport import PointCloud, TransportSolution, solve_ot

__all__ = [
    "LVHBA",
    "LVHBAStep",
    "ModelOperator",
    "PointCloud",
    "SinkhornLoss",
    "TransportSolution",
    "from_torch",
    "gradients",
    "hypergradient",
    "solve_ot",
]
