"""
Pictures of a transport
=======================

How to look at a plan, at the map that it defines, and at the way a solver went: the three functions of `otbilevel.plotting`, on
clouds of points and on histograms. All take an ``ax`` and return it, so that they fit into any figure of matplotlib.

Run it by ``python examples/plot_transport.py``. It needs matplotlib, and shows its figures where matplotlib has a window to show
them in.
"""

import matplotlib.pyplot as plt
import numpy as np

from otbilevel import PointCloud, solve_ot
from otbilevel.plotting import plot_convergence, plot_map, plot_plan

# %%
# Points in the plane
# -------------------
# One cloud goes to three. A line is a pair, the darker the more mass it carries; the heaviest pairs are drawn, up to 90 % of the
# mass. An arrow leads from a source to the mean of the targets that share its mass.

rng = np.random.default_rng(0)
x = rng.normal(size=(90, 2))
centres = np.array([[4.0, 2.5], [5.0, -0.5], [3.0, -3.5]])
y = centres[np.arange(60) % 3] + 0.35 * rng.normal(size=(60, 2))
result = solve_ot(None, None, PointCloud(x, y), reg=0.05)

fig, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
plot_plan(result, x, y, ax=axes[0])
plot_map(result, x, y, ax=axes[1])

# %%
# Histograms on a line
# --------------------
# In one dimension the plan is the joint distribution of sources and targets, with its marginals beside it. It gathers around the
# graph of a map as the regularisation falls.

u, v = np.linspace(0, 1, 120), np.linspace(0, 1, 100)
a = np.exp(-((u - 0.3) ** 2) / 0.01) + 0.5 * np.exp(-((u - 0.7) ** 2) / 0.005)
b = np.exp(-((v - 0.5) ** 2) / 0.02)
a, b = a / a.sum(), b / b.sum()
line = PointCloud(u[:, None], v[:, None])

fig, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
for ax, reg in zip(axes, (3e-2, 1e-3), strict=True):
    plot_plan(solve_ot(a, b, line, reg=reg), u, v, ax=ax)
    ax.annotate(f"reg = {reg:g}", (0.04, 0.93), xycoords="axes fraction")

# %%
# How the solver went
# -------------------
# ``method="sns"`` comes to a small regularisation by larger ones: there its curve is thin, and the panel above shows the levels.
# The large dot is the certified error.

C = rng.random((400, 300))
runs = {f"reg = {reg:g}": solve_ot(None, None, C, reg=reg) for reg in (1e-1, 1e-2, 1e-3)}

fig, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
plot_convergence(runs, ax=axes[0])
plot_convergence(runs["reg = 0.001"], ax=axes[1])

plt.show()
