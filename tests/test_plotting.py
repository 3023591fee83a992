"""Pictures: what the artists hold, that nothing global changes, and what is refused."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from otbilevel import ConvergenceWarning, PointCloud, solve_ot
from otbilevel.compat import pot
from otbilevel.plotting import plot_convergence, plot_map, plot_plan

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def agg():
    """No window; figures are closed, and no setting may have changed."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    yield pyplot
    assert dict(matplotlib.rcParams) == before
    pyplot.close("all")


def transport(n=30, m=20, d=2, reg=0.05, **kwargs):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 3.0
    return x, y, solve_ot(rng.dirichlet(np.ones(n)), None, PointCloud(x, y), reg=reg, **kwargs)


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_lines_join_the_heaviest_pairs():
    x, y, result = transport()
    ax = plot_plan(result, x, y, share=0.8)
    lines, sources, targets = ax.collections
    segments = np.array(lines.get_segments())
    order = np.argsort(-result.plan, axis=None)
    count = int(np.searchsorted(np.cumsum(np.ravel(result.plan)[order]), 0.8)) + 1
    i, j = np.unravel_index(order[:count], result.plan.shape)
    assert_allclose(segments[::-1], np.stack([x[i], y[j]], axis=1))
    assert_allclose(sources.get_offsets(), x)
    assert_allclose(targets.get_offsets(), y)
    assert np.all(np.diff(lines.get_alpha()) >= 0)  # the heaviest are the darkest, and on top
    heavier = np.argsort(result.plan.sum(axis=1))
    assert np.all(np.diff(sources.get_sizes()[heavier]) >= 0)
    assert labels(ax)[0] == f"plan: {count} pairs, {100 * np.ravel(result.plan)[order[:count]].sum():.3g} % of the mass"
    assert labels(ax)[1:] == ["sources", "targets"]
    assert ax.get_aspect() == 1


def test_too_many_lines_are_a_sample_by_mass():
    x, y, result = transport(400, 300, reg=1.0)
    ax = plot_plan(result, x, y, max_lines=1000)
    segments = np.array(ax.collections[0].get_segments())
    assert 900 < len(segments) <= 1000
    assert labels(ax)[0] == f"plan: a sample of {len(segments)} pairs"
    # Means under the sample are those under the plan.
    assert_allclose(segments[:, 0].mean(axis=0), result.plan.sum(axis=1) @ x, atol=0.05)
    assert_allclose(segments[:, 1].mean(axis=0), y.mean(axis=0), atol=0.05)


def test_every_kind_of_plan_gives_the_same_lines(backend):
    x, y, result = transport()
    given = backend.asarray(x), backend.asarray(y)
    solved = solve_ot(backend.asarray(result.marginals[0]), None, PointCloud(*given), reg=0.05)
    adapted = pot.solve_sample(*given, a=backend.asarray(result.marginals[0]), reg=0.05)
    expected = plot_plan(result.plan, x, y).collections[0].get_segments()
    for plan in (solved, backend.asarray(result.plan), adapted, result.sparse_plan):
        assert_allclose(plot_plan(plan, *given).collections[0].get_segments(), expected)


def test_the_matrix_and_its_marginals():
    _, _, result = transport()
    ax = plot_plan(result)
    assert_allclose(ax.collections[0].get_array(), result.plan, atol=1e-12)
    top, side, bar = ax.child_axes
    assert_allclose(top.patches[0].get_data().values, result.marginals[1], atol=1e-9)
    assert_allclose(side.patches[0].get_data().values, result.marginals[0], atol=1e-9)
    assert bar.get_ylabel() == "mass"
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # row 0 at the top
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("target j", "source i")
    assert_allclose(ax.get_xlim(), (-0.5, 19.5))


def test_a_large_matrix_is_summed_into_cells():
    plan = np.random.default_rng(0).random((1003, 30))
    ax = plot_plan(plan)
    cells = np.asarray(ax.collections[0].get_array())
    assert cells.shape == (200, 30)
    rows = ax.collections[0].get_coordinates()[:, 0, 1]
    assert_allclose((cells * np.diff(rows)[:, None]).sum(axis=0), plan.sum(axis=0))
    assert_allclose(cells[0] * (rows[1] - rows[0]), plan[: round(rows[1] + 0.5)].sum(axis=0))


def test_points_on_a_line_are_a_joint_distribution():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=40), rng.normal(size=(30, 1))
    result = solve_ot(None, None, PointCloud(x[:, None], y), reg=0.1)
    ax = plot_plan(result, x, y)
    mesh = ax.collections[0]
    corners = mesh.get_coordinates()
    areas = np.outer(np.diff(corners[:, 0, 1]), np.diff(corners[0, :, 0]))
    order = np.ix_(np.argsort(x), np.argsort(y[:, 0]))
    assert_allclose(np.asarray(mesh.get_array()) * areas, result.plan[order].T, atol=1e-12)
    assert np.all((corners[0, :-1, 0] <= np.sort(x)) & (np.sort(x) <= corners[0, 1:, 0]))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("source", "target")
    many = plot_plan(np.ones((500, 2)) / 1000, rng.normal(size=500), [0.0, 1.0])
    assert np.asarray(many.collections[0].get_array()).shape == (2, 100)
    grid = plot_plan(np.full((500, 1), 1 / 500), np.arange(500.0), [0.0])
    assert_allclose(grid.collections[0].get_array(), 1 / 500)
    one = plot_plan([[1.0]], [3.0], [4.0])
    assert np.asarray(one.collections[0].get_array()).shape == (1, 1)


def test_a_few_heavy_cells_do_not_fade_the_others():
    plan = np.ones((50, 50))
    plan[0, 0] = 1000
    ax = plot_plan(plan)
    assert ax.collections[0].get_clim() == (0, 4)
    assert plot_plan(np.ones((5, 5))).collections[0].get_clim() == (0, 1)


def test_arrows_of_the_map():
    x, y, result = transport()
    ax = plot_map(result, x, y)
    quiver = ax.collections[2]
    assert_allclose(quiver.XY, x)
    assert_allclose(quiver.XY + np.stack([quiver.U, quiver.V], axis=1), result.barycentric_map(y))
    assert (quiver.scale, quiver.angles, quiver.scale_units) == (1, "xy", "xy")
    assert labels(ax) == ["targets", "sources", "map"]
    few = plot_map(result, x, y, max_arrows=12)
    assert_allclose(few.collections[2].XY, x[::3])
    assert_allclose(few.collections[1].get_offsets(), x)
    assert labels(few)[2] == "map of 10 out of 30"


def test_points_of_a_map_are_as_large_as_what_is_carried():
    """With a price on the marginals far points send nothing, and are drawn as nothing."""
    x, y = np.array([[0.0, 0.0], [9.0, 0.0]]), np.array([[0.1, 0.0], [0.0, 0.1]])
    ax = plot_map(solve_ot(None, None, PointCloud(x, y), reg=0.1, unbalanced=0.5), x, y)
    near, far = ax.collections[1].get_sizes()
    assert far < 1e-6 * near
    assert_allclose(ax.collections[2].XY, x[:1])
    assert labels(ax)[2] == "map of 1 out of 2"


def test_the_map_of_points_on_a_line_is_a_graph():
    x, y, result = transport(d=1)
    ax = plot_map(result, x, y[:, 0])
    order = np.argsort(x[:, 0])
    assert_allclose(ax.lines[0].get_xdata(), x[order, 0])
    assert_allclose(ax.lines[0].get_ydata(), result.barycentric_map(y)[order, 0])


def test_a_curve_of_convergence():
    result = transport(reg=0.002)[2]
    for against in ("iterations", "seconds"):
        ax = plot_convergence(result, against=against)
        rough, fine, levels, end = ax.lines[:4]
        history = result.history
        places = history["seconds"] if against == "seconds" else 1 + np.arange(result.nit)
        last = np.flatnonzero(history["reg"] > result.reg)[-1] + 1
        assert_allclose(rough.get_ydata(), history["marginal_error"][: last + 1])
        assert_allclose(fine.get_ydata(), history["marginal_error"][last:])
        assert_allclose(fine.get_xdata(), places[last:])
        assert fine.get_linewidth() > rough.get_linewidth()
        assert len(levels.get_xdata()) == len(set(history["reg"]))
        assert (end.get_xdata()[0], end.get_ydata()[0]) == (places[-1], result.marginal_error)
        assert_allclose(ax.lines[4].get_ydata(), result._tol)
        (panel,) = ax.child_axes
        assert_allclose(panel.lines[0].get_ydata(), history["reg"])
        assert panel.get_ylabel() == "reg"
        assert ax.get_yscale() == "log"
        assert ax.get_xlabel() == {"iterations": "iteration", "seconds": "time in seconds"}[against]


def test_several_curves_have_labels():
    _, _, first = transport(reg=0.1)
    _, _, second = transport(reg=0.1, method="sinkhorn")
    assert labels(plot_convergence([first, second])) == ["sns, reg = 0.1", "sinkhorn, reg = 0.1"]
    assert labels(plot_convergence([first, first])) == ["1: sns, reg = 0.1", "2: sns, reg = 0.1"]
    assert labels(plot_convergence({"ours": first, "theirs": second})) == ["ours", "theirs"]
    many = plot_convergence([first] * 9)
    styles = {(line.get_color(), str(line.get_linestyle())) for line in many.lines if not line.get_label().startswith("_")}
    assert len(styles) == 9
    alone = plot_convergence(second)
    assert not alone.child_axes  # one level of reg
    adapted = pot.solve_sample(*transport()[:2], reg=0.1)
    assert len(plot_convergence(adapted).lines) == 5


def test_a_run_that_stopped_short_is_drawn():
    with pytest.warns(ConvergenceWarning):
        result = transport(reg=0.001, max_iter=3)[2]
    ax = plot_convergence(result)
    assert ax.lines[3].get_ydata()[0] == result.marginal_error


def test_axes_are_used_and_kept(agg):
    x, y, result = transport()
    figure, axes = agg.subplots(1, 4)
    drawn = plot_plan(result, ax=axes[0]), plot_plan(result, x, y, ax=axes[1]), plot_map(result, x, y, ax=axes[2])
    assert [*drawn, plot_convergence(result, ax=axes[3])] == list(axes)
    assert agg.get_fignums() == [figure.number]
    figure.canvas.draw()
    assert all(len(ax.figure.axes) for ax in axes)


X, Y, RESULT = transport()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: plot_plan(RESULT, X), ValueError, "x and y belong together, but y is missing"),
        (lambda: plot_plan(RESULT, Y, X), ValueError, "x must hold 30 points"),
        (lambda: plot_plan(RESULT, X, Y[:, :1]), ValueError, "points of one dimension"),
        (lambda: plot_plan(RESULT, np.ones((30, 3)), Y), ValueError, "x has points of 3 dimensions"),
        (lambda: plot_plan(RESULT, X * np.nan, Y), ValueError, "x must hold finite"),
        (lambda: plot_plan(RESULT, X, Y, share=0), ValueError, "share must be"),
        (lambda: plot_plan(RESULT, X, Y, share=2), ValueError, "share must be"),
        (lambda: plot_plan(RESULT, X, Y, max_lines=0), ValueError, "max_lines must be"),
        (lambda: plot_plan(RESULT, ax=3), TypeError, "ax must be a matplotlib Axes, got int"),
        (lambda: plot_plan(np.ones(3)), ValueError, "plan must be an"),
        (lambda: plot_plan(np.zeros((3, 3))), ValueError, "plan must hold finite numbers >= 0"),
        (lambda: plot_plan(-np.eye(3)), ValueError, "plan must hold finite numbers >= 0"),
        (lambda: plot_plan("plan"), TypeError, "plan must hold real numbers"),
        (lambda: plot_map(RESULT.plan, X, Y), TypeError, "result must be an OTResult, got ndarray"),
        (lambda: plot_map(RESULT, X, X), ValueError, "y must have shape"),
        (lambda: plot_map(RESULT, X, Y[:, 0]), ValueError, "points of one dimension"),
        (lambda: plot_map(RESULT, X, Y, max_arrows=0), ValueError, "max_arrows"),
        (lambda: plot_convergence([]), ValueError, "results is empty"),
        (lambda: plot_convergence(3), TypeError, "results must be an OTResult, got int"),
        (lambda: plot_convergence({"a": 3}), TypeError, r"results\['a'\] must be an OTResult"),
        (lambda: plot_convergence([RESULT, 3]), TypeError, r"results\[1\] must be"),
        (lambda: plot_convergence(RESULT, against="time"), ValueError, "against must be one of"),
        (lambda: plot_convergence(solve_ot(None, None, [[1.0]], method="exact")), ValueError, "has no history"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(call, error, words):
    with pytest.raises(error, match=words):
        call()
