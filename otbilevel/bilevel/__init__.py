"""Bilevel optimisation: an upper level whose objective depends on the solution of a lower one."""

from otbilevel.bilevel.constraints import CoupledConstraint
from otbilevel.bilevel.hypergradient import HypergradientResult, hypergradient
from otbilevel.bilevel.result import BilevelResult
from otbilevel.bilevel.solve import minimize_bilevel

__all__ = ["BilevelResult", "CoupledConstraint", "HypergradientResult", "hypergradient", "minimize_bilevel"]
