"""Matrix-free linear algebra on any array library, one algorithm a file."""

from otbilevel.linalg.cg import CGResult, cg
from otbilevel.linalg.operators import LinearOperator

__all__ = ["CGResult", "LinearOperator", "cg"]
