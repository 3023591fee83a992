"""Pictures of transport: a plan, a map, and how a solver converged. Needs matplotlib, which is imported when a picture is drawn."""

from otbilevel.plotting.convergence import plot_convergence
from otbilevel.plotting.maps import plot_map
from otbilevel.plotting.plan import plot_plan

__all__ = ["plot_convergence", "plot_map", "plot_plan"]
