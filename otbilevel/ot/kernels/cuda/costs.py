"""What the kernels over costs take, and in which shape they run."""

from __future__ import annotations

import math
from typing import Any

from otbilevel.ot.kernels.cuda.device import c_type, multiprocessors

LOG2E = 1.0 / math.log(2.0)
TILE = (32, 64)
"""Rows and columns that a block of sweeps.cu has before it."""
BLOCKS_PER_PROCESSOR = 8
"""Blocks of a pass for each multiprocessor: enough to keep it busy while some wait for memory."""
MOST_STRIPS = 65535
"""Limit of CUDA for the second dimension of a grid."""

Grid = tuple[int, int]


def cost_arguments(cost: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments (x, y, d, n, m) and macros of a kernel that takes costs."""
    if isinstance(cost, tuple):
        x, yt, kind = cost
        macros = {"SOURCE": 1 + kind, "X": c_type(x), "Y": c_type(yt)}
        return (x, yt, x.shape[1], x.shape[0], yt.shape[1]), macros
    return (cost, cost, 0, *cost.shape), {"SOURCE": 0, "X": c_type(cost), "Y": c_type(cost)}


def grids(n: int, m: int) -> tuple[Grid, Grid]:
    """Grids (tiles of rows, splits of the columns) and (tiles of columns, strips of rows)."""
    rows, columns = -(-n // TILE[0]), -(-m // TILE[1])
    return _grid(rows, columns), _grid(columns, rows)


def _grid(tiles: int, others: int) -> Grid:
    """All `tiles`, and parts of the others as many as keep the device busy: each is another row of partial sums."""
    return tiles, max(1, min(BLOCKS_PER_PROCESSOR * multiprocessors() // tiles, others, MOST_STRIPS))


def warps(lines: int) -> tuple[tuple[int], tuple[int, int]]:
    """Grid and block for a warp a line."""
    return (-(-lines // 8),), (32, 8)
