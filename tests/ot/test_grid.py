"""Grids: the same results as the dense matrix of the same costs, in no n x m array."""

import pickle
import tracemalloc

import numpy as np
import pytest

from otbilevel import ConvergenceWarning, DenseCost, Grid, PointCloud, Status, solve_ot
from otbilevel.ot import reg_path
from otbilevel.ot.kernels.separable import SeparableKernel
from otbilevel.ot.plan import EntropicPlan
from otbilevel.ot.problem import make_problem
from otbilevel.testing.ot_laws import check_ot_result

SHAPES = [((13,), (9,)), ((6, 5), (4, 7)), ((3, 4, 2), (2, 3, 5)), ((2, 1, 3, 2), (1, 2, 2, 2))]


def weights(n, m, seed=0, *, zeros=True):
    """Uneven weights, a third of them zero."""
    rng = np.random.default_rng(seed)
    a, b = rng.random(n) ** 2 + 1e-3, rng.random(m) ** 2 + 1e-3
    if zeros:
        a[rng.permutation(n)[: n // 3]] = 0.0
        b[rng.permutation(m)[: m // 3]] = 0.0
    return a / a.sum(), b / b.sum()


def coordinates(x, y, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.random(k) for k in x], [rng.random(k) for k in y]


def points(axes):
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)


@pytest.mark.parametrize(("x", "y"), SHAPES)
@pytest.mark.parametrize("cost", ["sqeuclidean", "cityblock"])
def test_costs_are_those_of_the_points(x, y, cost):
    own, other = coordinates(x, y)
    grid = Grid(own, other, cost=cost)
    cloud = PointCloud(points(own), points(other), cost=cost)
    np.testing.assert_allclose(grid.rows(0, grid.shape[0]), cloud.rows(0, cloud.shape[0]), atol=1e-15)
    np.testing.assert_allclose(grid.rows(1, 2), cloud.rows(1, 2), atol=1e-15)
    np.testing.assert_allclose(grid.bounds, cloud.bounds, atol=1e-15)
    np.testing.assert_array_equal(grid.x, cloud.x)
    np.testing.assert_array_equal(grid.y, cloud.y)
    part = grid.restrict(np.array([1, 0]), np.array([1]))
    np.testing.assert_array_equal(part.x, cloud.x[[1, 0]])
    np.testing.assert_array_equal(part.y, cloud.y[[1]])
    assert repr(grid).startswith(f"Grid({grid.shape[0]} x {grid.shape[1]}, axes ") and "parts" in repr(part)
    np.testing.assert_allclose(grid.transpose().to_dense().matrix, grid.to_dense().matrix.T, atol=0)


def test_a_shape_stands_for_square_pixels():
    """Centres of pixels, longest side 1: the coordinates that its docstring promises."""
    own, other = ((np.arange(3) + 0.5) / 4, (np.arange(4) + 0.5) / 4), ((np.arange(5) + 0.5) / 5, (np.arange(2) + 0.5) / 5)
    np.testing.assert_allclose(Grid((3, 4), (5, 2)).rows(0, 12), Grid(own, other).rows(0, 12), atol=0)
    np.testing.assert_allclose(Grid((3, 4)).rows(0, 12), Grid(own, own).rows(0, 12), atol=0)


def test_matrices_have_no_coordinates():
    with pytest.raises(ValueError, match="knows no coordinates"):
        _ = Grid((2, 2), cost=[np.eye(2), np.eye(2)]).x


@pytest.mark.parametrize(("x", "y"), SHAPES)
def test_restriction_is_the_part_of_the_matrix(x, y):
    """Once and again, as for points of zero weight, in any order."""
    rng = np.random.default_rng(3)
    grid = Grid(*coordinates(x, y))
    matrix = grid.to_dense().matrix
    n, m = grid.shape
    i, j = rng.permutation(n)[: n // 2 + 1], rng.permutation(m)[: m // 2 + 1]
    part = grid.restrict(i, j)
    np.testing.assert_array_equal(part.rows(0, len(i)), matrix[np.ix_(i, j)])
    k = rng.permutation(len(i))[: len(i) // 2 + 1]
    np.testing.assert_array_equal(part.restrict(k, None).rows(0, len(k)), matrix[np.ix_(i[k], j)])
    np.testing.assert_array_equal(part.transpose().to_dense().matrix, matrix[np.ix_(i, j)].T)
    values = rng.random(len(i))
    spread = part.spread_sources(values, -1.0)
    np.testing.assert_array_equal(part.gather_sources(spread), values)
    assert (spread == -1.0).sum() == n - len(i)
    low, high = part.bounds
    assert low <= part.rows(0, len(i)).min() and part.rows(0, len(i)).max() <= high


@pytest.mark.parametrize(("x", "y"), SHAPES)
@pytest.mark.parametrize("method", ["sns", "sinkhorn"])
@pytest.mark.parametrize("cost", ["sqeuclidean", "cityblock", "matrices"])
def test_equals_its_dense_cost(x, y, method, cost):
    """n != m, zero weights, a mass that is not 1."""
    rng = np.random.default_rng(2)
    grid = Grid(x, y, cost=cost) if cost != "matrices" else Grid(x, y, cost=[rng.random(nm) for nm in zip(x, y, strict=True)])
    a, b = (3.0 * v for v in weights(*grid.shape))
    reg = 1e-2 if method == "sns" else 1e-1
    dense = grid.to_dense()
    result, other = (solve_ot(a, b, C, reg=reg, method=method, tol=1e-11, max_iter=100_000) for C in (grid, dense))
    check_ot_result(result, a, b, dense.matrix, tol=1e-11)
    np.testing.assert_allclose(result.plan, other.plan, atol=1e-10)
    for name in ("value", "value_linear", "dual_value", "gap_exact"):
        np.testing.assert_allclose(getattr(result, name), getattr(other, name), atol=1e-9)
    np.testing.assert_allclose(result.barycentric_map(np.arange(len(b))), other.barycentric_map(np.arange(len(b))), atol=1e-7)


@pytest.mark.parametrize("reg", [1e-3, 2e-4, 3e-5])
def test_small_regularisation_on_an_image(reg):
    """From one block an axis to blocks that are too narrow, with lines that hold no weight at all."""
    x, y = np.meshgrid(*2 * [np.linspace(-1, 1, 16)], indexing="ij")
    a = np.exp(-4 * ((x + 0.3) ** 2 + (y - 0.2) ** 2)) * (np.abs(x) < 0.8)
    b = np.exp(-9 * (x**2 + (y + 0.4) ** 2)) + 0.1 * (y > 0.5)
    a, b = (a / a.sum()).ravel(), (b / b.sum()).ravel()
    grid = Grid((16, 16))
    dense = grid.to_dense()
    result, other = (solve_ot(a, b, C, reg=reg) for C in (grid, dense))
    if reg > 1e-4:  # below, rounding of the exponents C/reg is more than the laws allow
        check_ot_result(result, a, b, dense.matrix, tol=1e-9)
    plan = result.plan
    error = np.abs(plan.sum(1) - a).sum() + np.abs(plan.sum(0) - b).sum()
    assert result.success and abs(error - result.marginal_error) < 1e-11
    for name in ("value", "value_linear", "dual_value", "gap_exact"):
        np.testing.assert_allclose(getattr(result, name), getattr(other, name), atol=1e-9)


def test_exact_is_the_linear_program_of_its_dense_cost():
    grid = Grid((4, 3), (3, 5))
    a, b = weights(*grid.shape)
    result, other = (solve_ot(a, b, C, method="exact") for C in (grid, grid.to_dense()))
    assert result.success
    np.testing.assert_allclose(result.value, other.value, rtol=1e-12)
    low = solve_ot(a, b, grid, reg=1e-4)
    assert -1e-9 <= low.value_linear - result.value <= low.gap_exact + 1e-9


def test_the_paper_runs_on_grids_too():
    grid = Grid((4, 3), (3, 5))
    a, b = weights(*grid.shape)
    settings = {"method": "sns", "reg": 0.05, "options": {"variant": "paper"}}
    result, other = (solve_ot(a, b, C, **settings) for C in (grid, grid.to_dense()))
    assert result.success and other.success
    np.testing.assert_allclose(result.value, other.value, atol=1e-9)


@pytest.mark.parametrize("method", ["sns", "sinkhorn"])
@pytest.mark.parametrize("given", ["shape", "coordinates", "matrices"])
def test_result_on_every_library(method, given, device_backend, dtype):
    """In the library, on the device and in the dtype of the weights, which a grid that was given by its shape joins."""
    x, y = (4, 5), (3, 6)
    asarray = device_backend.asarray
    own, other = ([asarray((np.arange(k) + 0.5) / max(side), dtype) for k in side] for side in (x, y))
    plain = Grid(x, y)
    grid = {
        "shape": lambda: Grid(x, y),
        "coordinates": lambda: Grid(own, other),
        "matrices": lambda: Grid(x, cost=[asarray(axis.matrix, dtype) for axis in plain.axes]),
    }[given]()
    a, b = weights(*grid.shape)
    result = solve_ot(asarray(a, dtype), asarray(b, dtype), grid, reg=0.02, method=method)
    assert result.success
    for values in (result.f, result.g, result.plan, result.apply(result.g), *result.marginals):
        assert device_backend.owns(values)
        assert device_backend.dtype_name(values) == dtype
    if device_backend.device is None:
        matrix = asarray(plain.to_dense().matrix, dtype)
        check_ot_result(result, asarray(a, dtype), asarray(b, dtype), matrix, tol=1e-9 if dtype == "float64" else 1e-5)
    else:
        assert 0 <= result.gap < 1e-4 and result.gap_exact > 0
        np.testing.assert_allclose(device_backend.to_numpy(result.plan).sum(1), a, atol=1e-5)


def test_uniform_weights_and_a_shape_are_numpy():
    result = solve_ot(None, None, Grid((3, 2)), reg=0.1)
    assert result.success and type(result.f) is np.ndarray and result.f.dtype == np.float64


def test_one_point_a_side():
    result = solve_ot([2.0], [2.0], Grid((1, 1), (1,) * 2), reg=1.0)
    assert result.success
    np.testing.assert_allclose(result.plan, [[2.0]])


@pytest.mark.parametrize("reg", [0.3, 1e-2, 1e-3])
@pytest.mark.parametrize("converged", [True, False])
def test_gap_bounds_the_true_one(reg, converged):
    """`gap` is at least that of the same rounded plan over the dense matrix, and of its size; `gap_exact` is the same."""
    grid = Grid((5, 4), (4, 6))
    a, b = weights(*grid.shape)
    rng = np.random.default_rng(4)
    if converged:
        plan = solve_ot(a, b, grid, reg=reg)._plan
    else:
        part = make_problem(a, b, grid, reg=reg, tol=1e-9)
        n, m = part.geometry.shape
        g = 0.1 * rng.standard_normal(m)
        f = -reg * SeparableKernel(part.geometry, g, reg).log_sums + reg * rng.standard_normal(n)
        plan = EntropicPlan.certify(part, f, g)
    dense = EntropicPlan.certify(make_problem(a, b, grid.to_dense(), reg=reg, tol=1e-9), plan.f, plan.g)
    for name in ("row_sums", "column_sums", "linear"):
        np.testing.assert_allclose(getattr(plan, name), getattr(dense, name), rtol=1e-11)
    slack = 1e-15 if converged else 1e-12 * dense.gap()
    assert dense.gap() - slack <= plan.gap() <= 1.05 * dense.gap() + plan.marginal_error
    np.testing.assert_allclose(plan.gap_exact(), dense.gap_exact(), rtol=1e-10, atol=1e-14)
    q = plan.rounding.rows(0, plan.problem.a.shape[0], plan.rows(0, plan.problem.a.shape[0]))
    np.testing.assert_allclose(q.sum(1), plan.problem.a, atol=1e-14)
    np.testing.assert_allclose(q.sum(0), plan.problem.b, atol=1e-14)


def test_gap_of_exact_marginals_is_zero():
    """A plan whose rounding changes nothing."""
    grid = Grid((2, 2))
    problem = make_problem(None, None, grid, reg=1.0, tol=1e-9)
    f = -np.log(np.exp(-grid.to_dense().matrix).sum(1))
    assert EntropicPlan.certify(problem, f, np.zeros(4)).gap() < 1e-15


def test_warm_start_and_path():
    grid = Grid((7, 5), (6, 6))
    a, b = weights(*grid.shape)
    results = reg_path(a, b, grid, [1e-1, 1e-2, 1e-3])
    assert all(result.success for result in results)
    assert solve_ot(a, b, grid, reg=1e-3, init=results[-1]).nsweep <= 2
    dense = solve_ot(a, b, grid.to_dense(), reg=1e-3)
    np.testing.assert_allclose(results[-1].value, dense.value, atol=1e-10)
    assert solve_ot(a, b, grid.to_dense(), reg=1e-3, init=results[-1]).nsweep <= 2


def test_relaxation_and_limits():
    """Rows are not exact while over-relaxed; whoever stops early gets a certified iterate all the same."""
    grid = Grid((6, 6))
    a, b = weights(*grid.shape)
    slow = solve_ot(a, b, grid, reg=0.05, method="sinkhorn")
    quick = solve_ot(a, b, grid, reg=0.05, method="sinkhorn", options={"relaxation": 1.3})
    assert quick.success and quick.nit < slow.nit
    np.testing.assert_allclose(quick.value, slow.value, atol=1e-9)
    for method in ("sns", "sinkhorn"):
        with pytest.warns(ConvergenceWarning):
            result = solve_ot(a, b, grid, reg=1e-4, method=method, max_iter=2)
        assert result.status is Status.ITERATION_LIMIT
        check_ot_result(result, a, b, grid.to_dense().matrix)


def test_pickled_results_work():
    grid = Grid((3, 4))
    result = solve_ot(*weights(12, 12), grid, reg=0.1)
    value, copied = result.value, pickle.loads(pickle.dumps(result))
    assert copied.value == value and copied.gap == result.gap


def test_inputs_are_not_changed():
    own, other = coordinates((5, 4), (3, 6))
    given = [axis.copy() for axis in (*own, *other)]
    a, b = weights(20, 18)
    kept = a.copy(), b.copy()
    solve_ot(a, b, Grid(own, other), reg=0.1)
    for before, after in zip((*given, *kept), (*own, *other, a, b), strict=True):
        np.testing.assert_array_equal(before, after)


def test_no_array_of_all_pairs():
    """96 x 96 pixels have 85 million pairs, 680 megabytes: everything that does not ask for the plan stays far below."""
    x, y = np.meshgrid(*2 * [np.linspace(-1, 1, 96)], indexing="ij")
    a, b = np.exp(-3 * (x - 0.2) ** 2 - y**2) * (y < 0.7), np.exp(-2 * x**2 - 2 * (y + x) ** 2)
    a, b = (a / a.sum()).ravel(), (b / b.sum()).ravel()
    tracemalloc.start()
    try:
        result = solve_ot(a, b, Grid((96, 96)), reg=1e-3, tol=1e-6)
        figures = result.f, result.g, result.value, result.dual_value, result.gap, result.gap_exact
        figures += result.apply(b), result.barycentric_map(np.stack([x.ravel(), y.ravel()], axis=1))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.success and all(np.isfinite(figure).all() for figure in figures)
    assert peak < 100 * 2**20


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        pytest.param(lambda: Grid(5), TypeError, ["x", "int", "shape"], id="number"),
        pytest.param(lambda: Grid(np.zeros((5, 2))), TypeError, ["x", "ndarray", "PointCloud"], id="points"),
        pytest.param(lambda: Grid("ab"), TypeError, ["x", "str"], id="string"),
        pytest.param(lambda: Grid(()), ValueError, ["x has no axes"], id="no-axes"),
        pytest.param(lambda: Grid((3, 0)), ValueError, ["x", "(3, 0)"], id="empty-axis"),
        pytest.param(lambda: Grid((3, -1)), ValueError, ["x", "(3, -1)"], id="negative-length"),
        pytest.param(lambda: Grid((3.0, 4.0)), ValueError, ["x[0]", "tuple of integers"], id="float-shape"),
        pytest.param(lambda: Grid([np.zeros((2, 2))]), ValueError, ["x[0]", "(2, 2)"], id="matrix-axis"),
        pytest.param(lambda: Grid([[]]), ValueError, ["x[0]", "(0,)"], id="empty-coordinates"),
        pytest.param(lambda: Grid([[0.0, np.nan]]), ValueError, ["x[0]", "nan"], id="nan"),
        pytest.param(lambda: Grid([[0.0, 1e150]]), ValueError, ["x[0]", "1e+150"], id="huge"),
        pytest.param(lambda: Grid([["a"]]), TypeError, ["x[0]"], id="text"),
        pytest.param(lambda: Grid((3, 4), (3,)), ValueError, ["2 and 1"], id="axes-differ"),
        pytest.param(lambda: Grid((3,), cost="euclidean"), ValueError, ["cost", "'sqeuclidean'", "'euclidean'"], id="cost"),
        pytest.param(lambda: Grid((3,), cost=np.zeros((1, 3, 3))), TypeError, ["cost", "ndarray"], id="stacked-costs"),
        pytest.param(lambda: Grid((3, 3), cost=[np.zeros((3, 3))]), ValueError, ["1 for 2 axes"], id="few-costs"),
        pytest.param(lambda: Grid((3,), cost=[np.zeros((4, 3))]), ValueError, ["cost[0]", "(3, 3)", "(4, 3)"], id="cost-shape"),
        pytest.param(lambda: Grid((3,), (3,), cost=[np.zeros((3, 4))]), ValueError, ["cost[0]", "(3, 4)"], id="cost-shape-y"),
        pytest.param(lambda: Grid((2,), cost=[np.array([[0, np.inf]] * 2)]), ValueError, ["cost[0]", "DenseCost"], id="forbidden"),
        pytest.param(lambda: Grid((2,), cost=[np.zeros(2)]), ValueError, ["cost[0]", "two-dimensional"], id="flat-cost"),
    ],
)
def test_bad_grids(arguments, error, words):
    with pytest.raises(error) as caught:
        arguments()
    assert all(word in str(caught.value) for word in words), caught.value


def test_images_have_to_be_flat():
    image = np.full((3, 4), 1 / 12)
    with pytest.raises(ValueError, match=r"a must be one-dimensional, got shape \(3, 4\): ravel it"):
        solve_ot(image, image, Grid(image.shape))
    with pytest.raises(ValueError, match="a has 12 weights"):
        solve_ot(image.ravel(), image.ravel(), Grid((5, 5)))


def test_libraries_do_not_mix(make_backend):
    torch = make_backend("torch")
    axis = torch.asarray(np.arange(3.0))
    with pytest.raises(TypeError, match="one library"):
        Grid([axis], [np.arange(3.0)])
    with pytest.raises(TypeError, match="one library"):
        solve_ot(np.full(3, 1 / 3), None, Grid([axis]), reg=1.0)
    with pytest.raises(TypeError, match="one library"):
        solve_ot(np.full(3, 1 / 3), torch.asarray(np.full(3, 1 / 3)), Grid((3,)), reg=1.0)
    assert solve_ot(torch.asarray(np.full(3, 1 / 3)), None, Grid((3,), [axis]), reg=1.0).success


def test_dense_costs_stay_as_they_are():
    """The grid knows that it is finite, and a dense cost does not join the weights."""
    dense = DenseCost(np.ones((2, 2)))
    assert dense.beside({}) is dense
    assert not Grid((2, 2)).has_forbidden_pairs
