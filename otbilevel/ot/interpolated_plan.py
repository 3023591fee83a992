"""The plan between clouds of many points, in the memory and time of the few nodes that stand for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from otbilevel._core.array import Array
from otbilevel.ot.cells import Cells
from otbilevel.ot.huge import is_huge
from otbilevel.ot.interpolated_kernel import InterpolatedKernel
from otbilevel.ot.marginals import Marginals
from otbilevel.ot.point_cloud import PointCloud
from otbilevel.ot.point_plan import fine_accuracy
from otbilevel.ot.row_plan import Laplacian, RowPlan, Work

COARSE = 1e-4
"""Accuracy of the interpolation where single precision is asked for, and in the Laplacian."""
FAR_COARSE, FAR = 6.0, 3.0
"""How far (in units of reg) f may be from the potential that scaled the kernel before that is done again: a row that is scaled by
exp(-t) has an error exp(t) times as large."""
SMALLEST = 1e-30
"""What a row sum that interpolation left without a significant digit is taken for: the next kernel is scaled by it."""
MAX_RESCALINGS = 60
"""How often a kernel is scaled anew in one sweep. A potential moves by up to 69 reg in each."""


class InterpolatedPlan(RowPlan):
    """K between two clouds with squared Euclidean cost, interpolated on a cut of each that suits the present reg.

    A large reg needs few nodes, whatever n and m are: so the early levels of a path in reg cost next to nothing, and no coarse
    problem has to be made up for them. Newton's method takes the gradient from a fine cut and the Laplacian from a coarse one,
    which only costs a few digits of the step.

    Parameters
    ----------
    geometry : PointCloud
        NumPy points with squared Euclidean cost.
    a : (n,) array
        Weights.
    work : Work
        Where passes are counted: a sweep for each kernel between nodes, a product for each pair of products with it.
    marginals : Marginals, optional
        None: fixed.
    tol : float
        Tolerance of the marginals.
    memory : float
        Bytes for the stored kernels between nodes.
    """

    reach = 12.0  # beyond exp(12) the interpolation error of a scaled row would show

    def __init__(
        self, geometry: PointCloud, a: Array, work: Work, marginals: Marginals | None = None, *, tol: float, memory: float
    ) -> None:
        super().__init__(geometry.kernels, geometry.kernel_cost, a, work, marginals)
        self._x_tree, self._y_tree = geometry.trees
        self._is_huge = is_huge(geometry)
        self._a = self._x_tree.sort(a)
        self._range = geometry.bounds[1] - geometry.bounds[0]
        fine = fine_accuracy(tol)
        self._accuracy = {True: max(COARSE, fine), False: fine}
        self._memory = memory
        self._cuts: dict[tuple[float, bool], tuple[Cells, Cells]] = {}

    def restart(self, f: Array | None = None) -> None:
        self._drop_kernels()
        self._f: Array | None = None if f is None else self._x_tree.sort(f)
        self._u: Array | None = None  # row scalings since the last sweep; those of the columns are _v

    def _drop_kernels(self) -> None:
        """Make room for others."""
        self._kernel: InterpolatedKernel | None = None
        self._hessian: InterpolatedKernel | None = None

    def sweep(self, g: Array, reg: float, *, single: bool = False, relaxation: float = 1.0) -> None:
        self._drop_kernels()
        previous = self._f if self._u is None else self._f + self.reg * np.log(self._u)
        self.g, self.reg, self.single, self._base_g = g, reg, single, g
        sorted_g = self._y_tree.sort(g)
        start = self._cold_start(sorted_g, reg) if previous is None else previous
        self._f, self._kernel = self._normalised(start, sorted_g, reg, single=single)
        self._u = np.ones_like(self._a)
        if relaxation != 1.0 and previous is not None:
            self._u = np.exp((1.0 - relaxation) * (previous - self._f) / reg)
        self._move(self._kernel, np.ones_like(g), np.ones_like(self._a))

    def scaling_pass(self, log_v: Array, relaxation: float = 1.0) -> None:
        assert self._kernel is not None  # `sweep` comes first
        assert self._u is not None
        self.work.products += 1
        v = np.exp(self._y_tree.sort(log_v))
        row_sums = self._kernel.times(v)
        self._u = self._u ** (1.0 - relaxation) * row_sums ** (-relaxation)
        self.g = self._base_g + self.reg * log_v
        self._move(self._kernel, v, row_sums)

    def _move(self, kernel: InterpolatedKernel, v: Array, row_sums: Array) -> None:
        """Take stock where the kernel of the last sweep is scaled by u and v; `row_sums` are those of K v."""
        assert self._u is not None
        self._v = v
        self.row_error = float((self._a * np.abs(self._u * row_sums - 1.0)).sum())
        self.column_sums = self._y_tree.restore(v * kernel.transposed_times(self._sorted_masses() * self._u))

    def _sorted_masses(self) -> Array:
        return self._a if self.marginals is None else self._x_tree.sort(self.row_masses())

    def row_potentials(self) -> Array:
        assert self._f is not None
        assert self._u is not None
        return self._x_tree.restore(self._f + self.reg * np.log(self._u))

    def laplacian(self) -> Laplacian:
        """L where the plan is, from the coarse cut.

        The diagonal is taken for the degrees: what it lacks, sum_i P_ij^2 / a_i, is little where points are many.
        """
        kernel, u, v = self._kernel, self._u, self._v
        assert kernel is not None
        assert u is not None
        if not self.single:
            f = self._f + self.reg * np.log(u)
            _, kernel = self._normalised(f, self._y_tree.sort(self.g), self.reg, single=True)
            u, v = np.ones_like(u), np.ones_like(v)
        self._hessian, self._hessian_v = kernel, v
        masses = self._sorted_masses()
        degree = self._y_tree.restore(v * kernel.transposed_times(masses * u))
        return Laplacian.of(self, self._x_tree.restore(masses * u * u), degree, np.zeros_like(degree))

    def active_set(self, theta: float, most: float) -> Any:
        """None between so many points that not even one look at every pair is affordable."""
        return None if self._is_huge else super().active_set(theta, most)

    def product(self, weights: Array, x: Array) -> Array:
        assert self._hessian is not None
        self.work.products += 1
        image = self._x_tree.sort(weights) * self._hessian.times(self._hessian_v * self._y_tree.sort(x))
        return self._y_tree.restore(self._hessian_v * self._hessian.transposed_times(image))

    def _normalised(self, f: Array, g: Array, reg: float, *, single: bool) -> tuple[Array, InterpolatedKernel]:
        """f(g), from a start that need not be close, and the kernel with row sums 1."""
        far = FAR_COARSE if single else FAR
        for _ in range(MAX_RESCALINGS):
            f, kernel, change = self._rescaled(f, g, reg, single=single)
            if change <= far:
                return f, kernel
            del kernel  # make room for the next one
        f, kernel, _ = self._rescaled(f, g, reg, single=single)
        return f, kernel

    def _rescaled(self, f: Array, g: Array, reg: float, *, single: bool) -> tuple[Array, InterpolatedKernel, float]:
        """f(g) and the kernel with row sums 1, as well as one that is scaled by the given f tells, and how far off that f was."""
        self.work.sweeps += 1
        # Fine kernels take part in few products, coarse ones in many: those must have room beside them.
        held = 0 if self._kernel is None else self._kernel.between.stored_bytes
        memory = self._memory - held if single else self._memory / 2
        kernel = InterpolatedKernel(*self._cut(reg, single=single), f, g, reg, single=single, memory=memory)
        sums = np.maximum(kernel.unscaled_times(np.ones_like(g)), SMALLEST)
        change = np.log(kernel.u * sums)
        kernel.u = 1.0 / sums
        return f - reg * change, kernel, float(np.abs(change).max())

    def _cold_start(self, g: Array, reg: float) -> Array:
        """f(g) by a path in reg, from one so large that no entry of K underflows."""
        f, level = np.zeros_like(self._a), max(self._range / 8, reg)
        while level > reg:
            f, _ = self._normalised(f, g, level, single=True)
            level = max(level / 4, reg)
        return f

    def _cut(self, reg: float, *, single: bool) -> tuple[Cells, Cells]:
        if (reg, single) not in self._cuts:
            self._cuts = {key: cells for key, cells in self._cuts.items() if key[0] == reg}
            accuracy = self._accuracy[single]
            self._cuts[reg, single] = self._x_tree.cut(reg, accuracy), self._y_tree.cut(reg, accuracy)
        return self._cuts[reg, single]
