"""Bilevel optimisation: an upper level whose objective depends on the solution of a lower one."""

from otbilevel.bilevel.hypergradient import HypergradientResult, hypergradient

__all__ = ["HypergradientResult", "hypergradient"]
