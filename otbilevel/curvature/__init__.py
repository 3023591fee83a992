"""What the spectrum of a symmetric operator tells, and products with its inverse."""

from otbilevel.curvature.density import SpectralDensity, spectral_density
from otbilevel.curvature.eigsh import Eigenpairs, eigsh
from otbilevel.curvature.estimates import diagonal, trace
from otbilevel.linalg import MFAC, Estimate, LinearResult, SymmetricOperator, from_hvp, ihvp

__all__ = [
    "MFAC",
    "Eigenpairs",
    "Estimate",
    "LinearResult",
    "SpectralDensity",
    "SymmetricOperator",
    "diagonal",
    "eigsh",
    "from_hvp",
    "ihvp",
    "spectral_density",
    "trace",
]
