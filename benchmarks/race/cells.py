"""What is raced on: cells, and the named groups that the project's targets are about."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

PAPER_REG = 1.0 / 1200.0
"""The regularisation of the experiments in arXiv:2401.12253."""


@dataclass(frozen=True, order=True)
class Cell:
    """A problem and a regularisation.

    Attributes
    ----------
    family : str
        A key of `otbilevel.testing.FAMILIES`.
    size, seed : int
        Its arguments.
    reg : float
        The regularisation; the range of the cost is 1.
    """

    family: str
    size: int
    seed: int
    reg: float

    @property
    def label(self) -> str:
        """What a table says."""
        return f"{self.family} n={self.size} seed={self.seed}"

    def harder_than(self, other: Cell) -> bool:
        """Whether someone who ran out of time on `other` would do so here.

        Larger problems of one family and smaller regularisations only take longer, but for random assignment, where
        Sinkhorn's method needs fewer iterations as n grows.
        """
        if self.family != other.family or (self.size, self.reg) == (other.size, other.reg):
            return False
        sizes = self.size == other.size if self.family == "assignment" else self.size >= other.size
        return sizes and self.reg <= other.reg


@dataclass(frozen=True)
class Group:
    """Cells with a common target.

    Attributes
    ----------
    name, target : str
        What it is called, and what is aimed at in it.
    cells : tuple of Cell
        Its cells, easy ones first.
    only_exact : bool
        Whether exact solvers are the only opponents.
    """

    name: str
    target: str
    cells: tuple[Cell, ...]
    only_exact: bool = False

    def quick(self) -> Group:
        """The smallest cells only, of one seed."""
        return replace(self, cells=self.at(min(cell.size for cell in self.cells)))

    def at(self, size: int) -> tuple[Cell, ...]:
        """The cells of a size, of the first seed."""
        return tuple(cell for cell in self.cells if (cell.size, cell.seed) == (size, self.cells[0].seed))


def grid(families: Iterable[str], sizes: Iterable[int], regs: Iterable[float], seeds: Iterable[int] = (0,)) -> tuple[Cell, ...]:
    """All combinations; within a family from few points and much regularisation to the opposite."""
    ordered = itertools.product(families, sorted(sizes), sorted(regs, reverse=True), seeds)
    return tuple(Cell(family, size, seed, reg) for family, size, reg, seed in ordered)


CLOUDS = ("cloud-2d", "cloud-3d", "cloud-10d")

GROUPS = {
    group.name: group
    for group in (
        Group(
            "assignment",
            "reg 1/1200: at least 12 times faster than the best peer for n = 500 and 1000, 4 times for n = 3000",
            grid(("assignment",), (500, 1000), (PAPER_REG,), range(10)) + grid(("assignment",), (3000,), (PAPER_REG,), range(3)),
        ),
        Group(
            "images",
            "28 x 28 pixels, reg 1/1200: at least 20 times faster than the best peer for squared Euclidean costs, 12 times for L1",
            grid(("image-w2", "image-w1"), (784,), (PAPER_REG,), range(3)),
        ),
        Group(
            "mixtures",
            "reg 1e-3: at least 12 times faster than the best peer",
            grid(("mixture-1d", "mixture-2d"), (1000,), (1e-3,), range(3)),
        ),
        Group(
            "clouds",
            "at least 20 times faster than the best peer in the geometric mean, 8 times everywhere; every cell converges",
            grid(CLOUDS, (500, 1000, 2000), (1e-3, 2e-4, 1e-4)),
        ),
        Group(
            "easy",
            "never slower than POT's sinkhorn (10 % allowed below 10 ms), at least twice as fast in the geometric mean",
            grid(("assignment", "cloud-2d", "cloud-10d", "image-w2", "mixture-2d"), (500, 1000, 2000, 5000), (1e-1, 1e-2)),
        ),
        Group(
            "exact",
            "reg 1e-3, against exact transport (ot.emd): at least 4 times faster for n = 1000 and 2000, 2.5 times for 5000; "
            "all threads: 1.6 times less wall time from n = 2000 on",
            grid(CLOUDS, (1000, 2000, 5000), (1e-3,), (1,)),  # no cell of another group, else runs of the groups would mix
            only_exact=True,
        ),
        Group(
            "extreme",
            "converges, or ends with an honest status",
            grid(("assignment", "cloud-2d"), (500, 1000, 2000), (1e-5, 1e-6)),
        ),
    )
}
"""The groups by name, in the order in which they run and are reported."""
