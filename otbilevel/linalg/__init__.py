"""Matrix-free linear algebra on any array library, one algorithm a file."""

from otbilevel.linalg.cg import cg
from otbilevel.linalg.conversion import as_operator, from_hvp
from otbilevel.linalg.hutchinson import hutchinson_diagonal, hutchinson_trace
from otbilevel.linalg.hutchpp import hutchpp
from otbilevel.linalg.ihvp import ihvp
from otbilevel.linalg.lanczos import Tridiagonal, lanczos
from otbilevel.linalg.minres import minres
from otbilevel.linalg.neumann import lissa, neumann
from otbilevel.linalg.nystrom import Nystrom, nystrom
from otbilevel.linalg.operators import LinearOperator, SymmetricOperator
from otbilevel.linalg.result import Estimate, LinearResult
from otbilevel.linalg.schur import SchurComplement
from otbilevel.linalg.woodbury import MFAC
from otbilevel.linalg.xtrace import xdiag, xtrace

__all__ = [
    "MFAC",
    "Estimate",
    "LinearOperator",
    "LinearResult",
    "Nystrom",
    "SchurComplement",
    "SymmetricOperator",
    "Tridiagonal",
    "as_operator",
    "cg",
    "from_hvp",
    "hutchinson_diagonal",
    "hutchinson_trace",
    "hutchpp",
    "ihvp",
    "lanczos",
    "lissa",
    "minres",
    "neumann",
    "nystrom",
    "xdiag",
    "xtrace",
]
