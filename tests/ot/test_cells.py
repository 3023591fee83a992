"""Trees over point clouds, their cuts, and interpolation between points and nodes."""

import numpy as np
import pytest

from otbilevel.ot.cells import LARGEST_CELL, LEAF, STEPS, TILE, PointTree, nodes_needed


def cloud(n, d, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d))


@pytest.mark.parametrize("accuracy", [1e-2, 1e-6, 1e-11])
def test_nodes_needed_keeps_its_promise(accuracy):
    """For every interval length: the interpolant of exp(-(x - t)^2), for many t, is within the accuracy, and not far too good."""
    z = np.linspace(-1, 1, 401)
    for step in (1, 7, 16, int(LARGEST_CELL * STEPS)):
        count, half = int(nodes_needed(accuracy)[step]), step / STEPS
        nodes = np.cos((2 * np.arange(count) + 1) * np.pi / (2 * count))
        fit = np.polynomial.chebyshev.chebfit(nodes, np.exp(-((half * nodes[:, None] - np.linspace(-5, 5, 101)) ** 2)), count - 1)
        truth = np.exp(-((half * z[:, None] - np.linspace(-5, 5, 101)) ** 2))
        error = np.abs(np.polynomial.chebyshev.chebval(z, fit).T - truth).max()
        assert error <= accuracy
        assert error >= 1e-6 * accuracy or count <= 4


@pytest.mark.parametrize(("n", "d"), [(1, 2), (5, 1), (1000, 2), (3000, 3)])
def test_a_tree_sorts_its_points_into_nested_boxes(n, d):
    points = cloud(n, d)
    given = points.copy()
    tree = PointTree(points)
    np.testing.assert_array_equal(points, given)
    np.testing.assert_array_equal(tree.points, points[tree.order])
    np.testing.assert_array_equal(np.sort(tree.order), np.arange(n))
    for k in range(len(tree.left)):
        inside = tree.points[tree.start[k] : tree.end[k]]
        np.testing.assert_array_equal(tree.low[k], inside.min(axis=0))
        np.testing.assert_array_equal(tree.high[k], inside.max(axis=0))
        part = tree.left[k]
        if part < 0:
            assert len(inside) <= LEAF
        else:
            assert (tree.start[k], tree.end[k]) == (tree.start[part], tree.end[part + 1])
            assert tree.end[part] == tree.start[part + 1]


def test_equal_points_are_not_split():
    tree = PointTree(np.ones((500, 2)))
    assert len(tree.left) == 1
    assert tree.cut(0.1, 1e-8).size == 1


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("reg", [10.0, 0.5, 1e-3])
def test_cells_partition_the_points(d, reg):
    tree = PointTree(cloud(2000, d))
    cells = tree.cut(reg, 1e-6)
    assert cells.starts[0] == 0
    assert cells.starts[-1] == 2000
    assert np.all(np.diff(cells.starts) > 0)
    assert cells.size <= 2000
    sizes = np.diff(cells.starts)
    own = cells.degrees[:, 0] == 0
    np.testing.assert_array_equal(np.diff(cells.nodes), np.where(own, sizes, cells.degrees.prod(axis=1)))
    assert np.all(sizes[own] <= TILE)
    half = (cells.high - cells.low)[~own] / (2 * np.sqrt(reg))
    assert np.all(half <= LARGEST_CELL)


def test_fewer_nodes_for_larger_reg_and_lower_accuracy():
    tree = PointTree(cloud(20_000, 2))
    sizes = [tree.cut(reg, 1e-9).size for reg in (10.0, 1.0, 0.1, 0.01)]
    assert sizes == sorted(sizes)
    assert sizes[0] < 500
    assert tree.cut(0.1, 1e-3).size < tree.cut(0.1, 1e-9).size


@pytest.mark.parametrize("d", [1, 2, 3])
def test_transfers_are_adjoint_and_reproduce_polynomials(d):
    tree = PointTree(cloud(3000, d))
    cells = tree.cut(20.0, 1e-6)
    assert (cells.degrees > 0).any()
    rng = np.random.default_rng(1)
    charges, field = rng.standard_normal(3000), rng.standard_normal(cells.size)
    np.testing.assert_allclose(charges @ cells.to_points(field), cells.to_nodes(charges) @ field, rtol=1e-10)

    def cubic(z):
        return 1.0 + z.sum(axis=1) + z[:, 0] ** 3

    np.testing.assert_allclose(cells.to_points(cubic(cells.places)), cubic(tree.points), rtol=1e-9, atol=1e-9)


def test_linear_models_reproduce_linear_potentials():
    tree = PointTree(cloud(3000, 2))
    cells = tree.cut(1.0, 1e-6)

    def plane(z):
        return 2.0 + z @ np.array([3.0, -1.0])

    at_points, at_nodes = cells.linear_models(plane(tree.points))
    np.testing.assert_allclose(at_points, plane(tree.points), atol=1e-10)
    np.testing.assert_allclose(at_nodes, plane(cells.places), atol=1e-10)


def test_linear_models_are_the_potential_itself_where_points_are_the_nodes():
    tree = PointTree(cloud(300, 2))
    cells = tree.cut(1e-6, 1e-6)
    potential = np.random.default_rng(0).standard_normal(300)
    for values in cells.linear_models(potential):
        np.testing.assert_array_equal(values, potential)


def test_points_on_a_line_have_one_node_across_it():
    points = np.stack([np.linspace(0, 1, 1000), np.full(1000, 7.0)], axis=1)
    cells = PointTree(points).cut(1.0, 1e-9)
    assert np.all(cells.degrees[:, 1] == 1)
    at_points, _ = cells.linear_models(cells.points[:, 0])
    np.testing.assert_allclose(at_points, cells.points[:, 0], atol=1e-12)
