"""POT's functions on the solvers of this library: ``from otbilevel.compat import pot as ot`` in place of ``import ot``.

Signatures, meanings and what comes back are those of POT 0.9.7. What POT has and this module has not is an `AttributeError` that
says so. POT itself is not needed.
"""

from otbilevel.compat.pot import bregman, lp, partial, solvers, unbalanced, utils
from otbilevel.compat.pot._call import refuse_others
from otbilevel.compat.pot.bregman import sinkhorn, sinkhorn2
from otbilevel.compat.pot.lp import emd, emd2
from otbilevel.compat.pot.result import LazyPlan, OTResult
from otbilevel.compat.pot.solvers import solve, solve_sample
from otbilevel.compat.pot.unbalanced import sinkhorn_unbalanced, sinkhorn_unbalanced2
from otbilevel.compat.pot.utils import dist, unif

__all__ = [
    "LazyPlan",
    "OTResult",
    "bregman",
    "dist",
    "emd",
    "emd2",
    "lp",
    "partial",
    "sinkhorn",
    "sinkhorn2",
    "sinkhorn_unbalanced",
    "sinkhorn_unbalanced2",
    "solve",
    "solve_sample",
    "solvers",
    "unbalanced",
    "unif",
    "utils",
]


__getattr__ = refuse_others(__name__)
