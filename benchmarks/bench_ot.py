"""asv benchmarks of optimal transport: speed, memory and accuracy, so that none is bought with another.

The methods come from the registry. Run them with ``asv run --python=same``, once each with ``--quick``.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

import otbilevel
from benchmarks.race.cells import GROUPS, Cell
from otbilevel.ot.methods import METHODS
from otbilevel.ot.problem import make_problem
from otbilevel.ot.row_plan import Work
from otbilevel.ot.stored_plan import StoredPlan
from otbilevel.testing import FAMILIES

ROWS = {row.name: row for row in METHODS}
PROBLEMS = ("assignment", "cloud-2d", "image-w1")
REGS = (1e-1, 1e-3)
SIZE = 1000
SINKHORN_FROM = 1e-2
"""Below this regularisation Sinkhorn's method alone needs thousands of iterations."""
BACKENDS = sorted({backend for row in ROWS.values() for backend in row.backends} - {"array_api_strict"})
"""Array libraries that someone computes with."""

Arguments = tuple[Any, Any, Any]


def skip_what_makes_no_sense(method: str, reg: float) -> None:
    """Raise NotImplementedError, which asv takes as "skip", for combinations that say nothing."""
    if method == "exact" and reg != REGS[0]:
        msg = 'method="exact" knows no regularisation: once is enough'
        raise NotImplementedError(msg)
    if method == "sinkhorn" and reg < SINKHORN_FROM:
        msg = "Sinkhorn's method alone does not get there"
        raise NotImplementedError(msg)


def arrays(family: str, size: int, backend: str = "numpy") -> Arguments:
    """(a, b, C) of a family, as arrays of a library that is installed."""
    problem = FAMILIES[family](size, 0)
    if backend == "numpy":
        return problem.a, problem.b, problem.C
    try:
        library = importlib.import_module(backend)
    except ImportError as error:
        raise NotImplementedError(backend) from error
    return tuple(library.asarray(x) for x in (problem.a, problem.b, problem.C))


def solve(arguments: Arguments, method: str, reg: float) -> otbilevel.OTResult:
    return otbilevel.solve_ot(*arguments, method=method, reg=None if method == "exact" else reg)


class Solve:
    """Every method on problems that differ in what makes them hard."""

    params = (list(ROWS), PROBLEMS, REGS)
    param_names = ("method", "problem", "reg")

    def setup(self, method: str, problem: str, reg: float) -> None:
        skip_what_makes_no_sense(method, reg)
        self.arguments = arrays(problem, SIZE)
        solve(self.arguments, method, reg)  # compiles the kernels, or reads them from the cache

    def time_solve(self, method: str, problem: str, reg: float) -> None:  # noqa: ARG002 -- asv passes all parameters
        solve(self.arguments, method, reg)

    def peakmem_solve(self, method: str, problem: str, reg: float) -> None:  # noqa: ARG002
        solve(self.arguments, method, reg)


class Quality:
    """What the solutions of `Solve` are worth, and what they take. All are solved once, in `setup_cache`."""

    params = Solve.params
    param_names = Solve.param_names

    def setup_cache(self) -> dict[tuple[str, str, float], dict[str, float]]:
        figures = {}
        for method in ROWS:
            for problem in PROBLEMS:
                for reg in REGS:
                    try:
                        skip_what_makes_no_sense(method, reg)
                    except NotImplementedError:
                        continue
                    figures[method, problem, reg] = self.measure(method, problem, reg)
        return figures

    def measure(self, method: str, problem: str, reg: float) -> dict[str, float]:
        a, b, C = arrays(problem, SIZE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", otbilevel.ConvergenceWarning)  # the figures tell
            result = solve((a, b, C), method, reg)
        error = np.abs(result.plan.sum(axis=1) - a).sum() + np.abs(result.plan.sum(axis=0) - b).sum()
        work = {"nsweep": result.nsweep, "nproduct": result.nproduct}
        return {"marginal_error": float(error), "gap": result.gap, "gap_exact": result.gap_exact} | work

    def setup(self, figures: dict[Any, Any], method: str, problem: str, reg: float) -> None:  # noqa: ARG002
        skip_what_makes_no_sense(method, reg)

    def track_marginal_error(self, figures: dict[Any, Any], method: str, problem: str, reg: float) -> float:
        return figures[method, problem, reg]["marginal_error"]

    def track_gap(self, figures: dict[Any, Any], method: str, problem: str, reg: float) -> float:
        return figures[method, problem, reg]["gap"]

    def track_gap_exact(self, figures: dict[Any, Any], method: str, problem: str, reg: float) -> float:
        return figures[method, problem, reg]["gap_exact"]

    def track_nsweep(self, figures: dict[Any, Any], method: str, problem: str, reg: float) -> float:
        return figures[method, problem, reg]["nsweep"]

    def track_nproduct(self, figures: dict[Any, Any], method: str, problem: str, reg: float) -> float:
        return figures[method, problem, reg]["nproduct"]

    track_marginal_error.unit = "L1 error"
    track_gap.unit = track_gap_exact.unit = "cost"
    track_nsweep.unit = "sweeps"
    track_nproduct.unit = "products"


def cells_of_the_race() -> dict[str, Cell]:
    """One size and one seed of every group; by label."""
    cells = (cell for group in GROUPS.values() for size in (SIZE, 784) for cell in group.at(size))
    return {f"{cell.label} reg={cell.reg:.3g}": cell for cell in cells}


CELLS = cells_of_the_race()


class Cells:
    """The cells that `compare_ot.py` has targets for, with the method that is to meet them."""

    params = (list(CELLS),)
    param_names = ("cell",)
    method = "sns"

    def setup(self, label: str) -> None:
        self.cell = CELLS[label]
        self.arguments = arrays(self.cell.family, self.cell.size)
        self.result = self.solve()

    def solve(self) -> otbilevel.OTResult:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", otbilevel.ConvergenceWarning)  # track_marginal_error tells
            return solve(self.arguments, self.method, self.cell.reg)

    def time_solve(self, label: str) -> None:  # noqa: ARG002
        self.solve()

    def track_nsweep(self, label: str) -> float:  # noqa: ARG002
        return self.result.nsweep

    def track_nproduct(self, label: str) -> float:  # noqa: ARG002
        return self.result.nproduct

    def track_nit_newton(self, label: str) -> float:  # noqa: ARG002
        return self.result.nit_newton

    def track_marginal_error(self, label: str) -> float:  # noqa: ARG002
        a, b, _ = self.arguments
        return float(np.abs(self.result.plan.sum(axis=1) - a).sum() + np.abs(self.result.plan.sum(axis=0) - b).sum())

    track_nsweep.unit = "sweeps"
    track_nproduct.unit = "products"
    track_nit_newton.unit = "steps"
    track_marginal_error.unit = "L1 error"


class Backends:
    """Every method on every array library, for one problem of moderate size."""

    params = (BACKENDS, list(ROWS))
    param_names = ("backend", "method")
    problem, size, reg = "cloud-2d", 300, 1e-2

    def setup(self, backend: str, method: str) -> None:
        if backend not in ROWS[method].backends:
            raise NotImplementedError(backend)
        self.arguments = arrays(self.problem, self.size, backend)
        solve(self.arguments, method, self.reg)

    def time_solve(self, backend: str, method: str) -> None:  # noqa: ARG002
        solve(self.arguments, method, self.reg)


class SparseCosts:
    """A cloud in two dimensions with the costs of near neighbours only: the solution, and whether there is one."""

    params = ((2000, 20_000), (1e-3, 1e-4))
    param_names = ("size", "reg")
    neighbours = 30

    def setup(self, size: int, reg: float) -> None:
        rng = np.random.default_rng(0)
        x = rng.random((size, 2))
        y = x[rng.permutation(size)] + 0.5 / size**0.5 * rng.standard_normal((size, 2))
        (there, j), (back, i) = (cKDTree(to).query(at, self.neighbours) for at, to in ((x, y), (y, x)))
        own = np.repeat(np.arange(size), self.neighbours)
        pairs, first = np.unique(np.concatenate([own * size + j.ravel(), i.ravel() * size + own]), return_index=True)
        costs = np.concatenate([there.ravel(), back.ravel()])[first] ** 2
        self.cost = otbilevel.SparseCost(sparse.csr_array((costs, np.divmod(pairs, size)), shape=(size, size)))
        self.result = self.solve(reg)

    def solve(self, reg: float) -> otbilevel.OTResult:
        return otbilevel.solve_ot(None, None, self.cost, reg=reg)

    def time_solve(self, size: int, reg: float) -> None:  # noqa: ARG002
        self.solve(reg)

    def peakmem_solve(self, size: int, reg: float) -> None:  # noqa: ARG002
        self.solve(reg)

    def time_feasibility(self, size: int, reg: float) -> None:  # noqa: ARG002
        make_problem(None, None, self.cost, reg=reg, tol=None)

    def track_marginal_error(self, size: int, reg: float) -> float:  # noqa: ARG002
        return self.result.marginal_error

    def track_gap(self, size: int, reg: float) -> float:  # noqa: ARG002
        return self.result.gap

    track_marginal_error.unit = "L1 error"
    track_gap.unit = "cost"


class Kernels:
    """The two passes that everything is made of, over a stored plan."""

    params = (BACKENDS, ("single", "double"), (500, 2000))
    param_names = ("backend", "precision", "size")
    problem, reg = "cloud-2d", 1e-2

    def setup(self, backend: str, precision: str, size: int) -> None:
        a, b, C = arrays(self.problem, size, backend)
        geometry = otbilevel.DenseCost(C)
        self.single = precision == "single"
        self.a, self.g = a, 0.0 * b
        self.plan = StoredPlan.dense(geometry, a, Work(), single=self.single)
        self.time_sweep()
        self.time_product()

    def time_sweep(self, *_: Any) -> None:
        self.plan.sweep(self.g, self.reg, single=self.single)

    def time_product(self, *_: Any) -> None:
        self.plan.product(self.a, self.g)


class Images:
    """Smooth densities on a grid of pixels, for which no matrix of costs is ever formed."""

    params = ((64, 128), (1e-3, 2e-4))
    param_names = ("side", "reg")

    def setup(self, side: int, reg: float) -> None:
        x, y = np.meshgrid(*2 * [np.linspace(-1, 1, side)], indexing="ij")
        pair = np.exp(-4 * (x + 0.3) ** 2 - 2 * y**2), 0.1 + np.exp(-9 * (x**2 + y**2 - 0.4) ** 2)
        self.a, self.b = (image.ravel() / image.sum() for image in pair)
        self.grid = otbilevel.Grid((side, side))
        self.result = self.time_solve(side, reg)

    def time_solve(self, side: int, reg: float) -> otbilevel.OTResult:  # noqa: ARG002
        return otbilevel.solve_ot(self.a, self.b, self.grid, reg=reg)

    def peakmem_solve(self, side: int, reg: float) -> None:
        self.time_solve(side, reg)

    def track_marginal_error(self, side: int, reg: float) -> float:  # noqa: ARG002
        return self.result.marginal_error

    def track_nproduct(self, side: int, reg: float) -> float:  # noqa: ARG002
        return self.result.nproduct

    track_marginal_error.unit = "L1 error"
    track_nproduct.unit = "products"
