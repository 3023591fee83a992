"""Projections onto convex sets."""

from otbilevel.bilevel.projection.closed_forms import Affine, Ball, Box, HalfSpace, Product, Simplex
from otbilevel.bilevel.projection.convex_set import ConvexSet
from otbilevel.bilevel.projection.margins import Margins
from otbilevel.bilevel.projection.polyhedron import Polyhedron

__all__ = ["Affine", "Ball", "Box", "ConvexSet", "HalfSpace", "Margins", "Polyhedron", "Product", "Simplex"]
