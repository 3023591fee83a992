"""Line kernels against plain NumPy, and those in blocks against plain ones, at every size of the exponents."""

import numpy as np
import pytest

from otbilevel import Grid
from otbilevel.ot.grid_plan import GridPlan
from otbilevel.ot.kernels import generic, separable
from otbilevel.ot.kernels.lines import AxisCost, BlockedLines, PlainLines, line_kernel, smallest_over_lines
from otbilevel.ot.row_plan import Work

REGS = [10.0, 1e-1, 1e-2, 1e-3, 2e-4]
SIZES = [(40, 33, 7), (33, 40, 7), (64, 64, 7), (1, 5, 7), (50, 1, 2), (200, 150, 41)]
"""Of an axis, n and m, and its lines; the products of the last are made in two groups of 21 lines, one of them filled up."""


def axis_cost(n, m, power=2.0):
    return AxisCost(np.abs((np.arange(n)[:, None] + 0.5) / n - (np.arange(m)[None, :] + 0.5) / m) ** power)


def exponents(lines, m, reg, seed=0):
    """Those of a rough potential, with gaps and a line that is empty."""
    rng = np.random.default_rng(seed)
    u = rng.standard_normal((lines, m)) + np.cumsum(rng.standard_normal((lines, m)), axis=1) * 0.05 / reg
    u[rng.random((lines, m)) < 0.2] = -np.inf
    u[:, 0] = 0.0
    if lines > 1:
        u[1] = -np.inf
    return u


def entries(axis, u, reg):
    """T (L, n, m) and log sums (n, L) by NumPy."""
    x = u[:, None, :] - axis.matrix / reg
    top = np.maximum(x.max(axis=2, keepdims=True), -1e300)
    k = np.exp(x - top)
    total = k.sum(axis=2, keepdims=True)
    with np.errstate(divide="ignore"):
        log_sums = (top + np.log(total))[:, :, 0].T
    return k / np.where(total > 0, total, 1.0), log_sums


@pytest.mark.parametrize("reg", REGS)
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("plain", [True, False])
def test_line_kernels(shape, reg, power, plain):
    n, m, lines = shape
    axis, u = axis_cost(n, m, power), exponents(lines, m, reg)
    if plain:
        kernel = PlainLines(axis, u, reg)
    else:
        kernel = line_kernel(axis, u, reg)
        assert isinstance(kernel, BlockedLines) or reg < 1e-3
    t, log_sums = entries(axis, u, reg)
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((lines, m)), rng.standard_normal((n, lines))
    size = 1e-14 * (1.0 + np.abs(log_sums[np.isfinite(log_sums)]).max())
    np.testing.assert_allclose(kernel.log_sums, log_sums, rtol=1e-12, atol=size)
    np.testing.assert_allclose(kernel.times(x), np.einsum("lij,lj->il", t, x), atol=10 * size)
    np.testing.assert_allclose(kernel.transposed_times(y), np.einsum("lij,il->lj", t, y), atol=100 * size)
    if isinstance(kernel, PlainLines):
        product, cost = kernel.times_with_cost(x, x**2)
        np.testing.assert_allclose(product, kernel.times(x), atol=size)
        np.testing.assert_allclose(
            cost, np.einsum("lij,ij,lj->il", t, axis.matrix, x) + np.einsum("lij,lj->il", t, x**2), atol=100 * size
        )
    assert not kernel.times(x)[:, 1].any() and not kernel.transposed_times(y)[1].any()  # the line that is empty


def test_rows_sum_to_one_in_the_presence_of_enormous_exponents():
    """Factors that would overflow a thousand times over, as all of a line's points may be far from the row."""
    axis = axis_cost(48, 48)
    u = np.zeros((2, 48))
    u[0, :-1] = -np.inf
    u[1] = np.linspace(0, 4e4, 48)
    for reg in (1e-3, 1e-4, 3e-5):
        kernel = line_kernel(axis, u, reg)
        np.testing.assert_allclose(kernel.times(np.ones((2, 48))), 1.0, rtol=1e-11)
        np.testing.assert_allclose(kernel.log_sums[:, 0], -axis.matrix[:, -1] / reg, rtol=1e-13, atol=1e-12)


def test_blocks_grow_in_number_and_give_up():
    axis = axis_cost(64, 64)
    counts = [axis.blocks(reg).kernel.shape[0] for reg in (1.0, 1e-2, 1e-3, 1e-4)]
    assert counts[0] == 1 and counts == sorted(counts) and counts[-1] > 2
    rough = AxisCost(np.random.default_rng(0).random((64, 64)))
    assert rough.blocks(1e-4) is None and rough.blocks(1.0) is not None
    assert axis.blocks(1e-3) is axis.blocks(1e-3)


def test_smallest_over_lines():
    axis, u = axis_cost(9, 12), exponents(5, 12, 1e-1)
    expected = (axis.matrix[None] - u[:, None, :]).min(axis=2).T
    np.testing.assert_array_equal(smallest_over_lines(axis, u), expected)


@pytest.fixture(params=[((6, 5), (4, 7)), ((3, 4, 2), (2, 3, 5)), ((9,), (8,))])
def part(request):
    """A grid without some of its points, and a potential."""
    rng = np.random.default_rng(5)
    grid = Grid(*request.param)
    n, m = grid.shape
    part = grid.restrict(np.sort(rng.permutation(n)[: n - 3]), np.sort(rng.permutation(m)[: m - 2]))
    return part, 0.2 * rng.standard_normal(m - 2), rng.dirichlet(np.ones(n - 3))


@pytest.mark.parametrize("reg", [0.5, 1e-2, 1e-3])
def test_kernels_are_those_of_the_rows(part, reg):
    """The library's kernels, separable against generic ones over the rows of the cost."""
    grid, g, a = part
    rng = np.random.default_rng(6)
    f, *_ = generic.softmax_rows(grid, g, reg, a, None, None, single=False, relaxation=1.0)
    kernel = separable.SeparableKernel(grid, g, reg)
    np.testing.assert_allclose(-reg * kernel.log_sums, f, rtol=1e-12, atol=1e-14)
    f = f + 0.3 * reg * rng.standard_normal(len(f))
    for got, want in zip(separable.plan_sums(grid, f, g, reg, a), generic.plan_sums(grid, f, g, reg, a), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-15)
    for axis, size in enumerate(grid.shape):
        vectors = rng.standard_normal((size, 3))
        got, want = (k.plan_product(grid, f, g, reg, a, vectors, axis) for k in (separable, generic))
        np.testing.assert_allclose(got, want, atol=1e-12)
        assert separable.plan_product(grid, f, g, reg, a, vectors[:, :0], axis).shape == (grid.shape[1 - axis], 0)
    matrix = grid.rows(0, grid.shape[0])
    np.testing.assert_allclose(separable.c_transform(grid, g), (matrix - g).min(axis=1), atol=1e-14)
    np.testing.assert_allclose(separable.product_cost(grid, a, g**2), a @ matrix @ g**2, rtol=1e-12)
    assert separable.product_cost(grid, 0.0 * a, g**2) == 0.0


@pytest.mark.parametrize("relaxation", [1.0, 1.4])
def test_plan_is_that_of_the_rows(part, relaxation):
    """Sums, row error and Laplacian of the plan, against dense NumPy."""
    grid, g, a = part
    reg, rng = 1e-2, np.random.default_rng(7)
    plan = GridPlan(grid, a, Work())
    plan.sweep(g, reg)
    g = g + reg * rng.standard_normal(len(g))
    before = plan.row_potentials()
    plan.sweep(g, reg, relaxation=relaxation)
    f, _, sums, row_error = generic.softmax_rows(grid, g, reg, a, before, None, single=False, relaxation=relaxation)
    np.testing.assert_allclose(plan.row_potentials(), f, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(plan.column_sums, sums, rtol=1e-10)
    np.testing.assert_allclose(plan.row_error, row_error, rtol=1e-10, atol=1e-14)
    if relaxation == 1.0:
        k = np.exp((f[:, None] + g - grid.rows(0, grid.shape[0])) / reg)
        laplacian = plan.laplacian()
        exact = np.diag(a @ k) - k.T @ (a[:, None] * k)
        got = np.stack([laplacian.matvec(column) for column in np.eye(len(g))])
        np.testing.assert_allclose(got, exact, atol=1e-14)
        np.testing.assert_allclose(1 / laplacian.inverse_diagonal, np.diag(exact), rtol=1e-6, atol=1e-8)
        assert np.abs(laplacian.matvec(np.ones(len(g)))).max() < 1e-15


def test_work_is_counted():
    work = Work()
    plan = GridPlan(Grid((3, 3)), np.full(9, 1 / 9), work)
    plan.sweep(np.zeros(9), 0.1)
    plan.scaling_pass(np.full(9, 0.5))
    assert (work.sweeps, work.products) == (2, 0)
    plan.product(plan.laplacian().weights, np.ones(9))
    assert (work.sweeps, work.products) == (3, 2)
