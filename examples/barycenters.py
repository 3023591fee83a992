"""
Barycentres of shapes
=====================

Four shapes in the corners, and between them their barycentres with bilinear weights: entropic ones, which blur, and debiased ones,
which do not, at the same regularisation [1]_ [2]_. The fine lines of the latter are theirs: edges are sharp, and what the kernel
blurs away the objective hardly determines.

Run it by ``python examples/barycenters.py``; ``--help`` lists the options. It needs matplotlib.

.. [1] J.-D. Benamou, G. Carlier, M. Cuturi, L. Nenna, G. Peyre, Iterative Bregman projections for regularized transportation
       problems, SIAM J. Sci. Comput. 37, 2015.
.. [2] H. Janati, M. Cuturi, A. Gramfort, Debiased Sinkhorn barycenters, ICML 2020.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np

from otbilevel.ot import barycenter

mpl.use("Agg")  # a file is all that is wanted: no window, no display needed
import matplotlib.pyplot as plt

COLOURS = np.array([[217, 72, 15], [11, 114, 133], [95, 61, 196], [43, 138, 62]]) / 255


def shapes(side: int) -> np.ndarray:
    """A ring, a cross, two discs and a square, as (4, side, side) images of unit mass."""
    y, x = np.mgrid[0:side, 0:side] / (side - 1) - 0.5
    radius = np.hypot(x, y)
    ring = (radius < 0.38) & (radius > 0.26)
    cross = ((abs(x) < 0.1) | (abs(y) < 0.1)) & (np.maximum(abs(x), abs(y)) < 0.38)
    discs = np.minimum(np.hypot(x - 0.2, y - 0.2), np.hypot(x + 0.2, y + 0.2)) < 0.16
    square = np.maximum(abs(x), abs(y)) < 0.28
    images = np.array([ring, cross, discs, square], dtype=np.float64)
    return images / images.sum(axis=(1, 2), keepdims=True)


def weights_at(row: float, column: float) -> np.ndarray:
    """Bilinear weights of the corners."""
    return np.array([(1 - row) * (1 - column), (1 - row) * column, row * (1 - column), row * column])


def draw(images: np.ndarray, reg: float, steps: int, path: Path) -> None:
    """Solve for every weight, entropic on the left and debiased on the right, and draw."""
    figure, axes = plt.subplots(steps, 2 * steps + 1, figsize=(2 * steps + 1, steps + 0.4), layout="constrained")
    for debias in (False, True):
        start, worst = time.perf_counter(), 0.0
        for i in range(steps):
            for j in range(steps):
                w = weights_at(i / (steps - 1), j / (steps - 1))
                result = barycenter(images, reg=reg, weights=w, debias=debias)
                worst = max(worst, result.marginal_error)
                colour = w @ COLOURS
                # Sharp edges leave a few pixels of debiased barycentres very dark: the scale is not theirs.
                shade = np.minimum(result.barycenter / np.quantile(result.barycenter, 0.97), 1.0)[..., None]
                axes[i, j + (steps + 1) * debias].imshow(1 - shade * (1 - colour))
        kind = "debiased" if debias else "entropic"
        print(f"{steps * steps} {kind} barycentres in {time.perf_counter() - start:.1f} s, largest marginal error {worst:.1e}")
        axes[0, steps // 2 + (steps + 1) * debias].set_title(f"{kind}, reg = {reg:g}", fontsize=11)
    for axis in axes.flat:
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"Picture: {path}")


def main() -> None:
    """Solve, print, draw."""
    parser = argparse.ArgumentParser(description="Barycentres of four shapes.")
    parser.add_argument("--side", type=int, default=48, help="pixels of a side (default: %(default)s)")
    parser.add_argument("--reg", type=float, default=2e-3, help="regularisation; the side has length 1 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="barycentres along a side (default: %(default)s)")
    default = Path(sys.argv[0]).parent / "output" / "barycenters.png"  # the documentation runs this without __file__
    parser.add_argument("--output", type=Path, default=default, help="the picture (default: output/ beside this file)")
    options = parser.parse_args()
    draw(shapes(options.side), options.reg, options.steps, options.output)


if __name__ == "__main__":
    main()
