"""The estimator: scikit-learn's own checks, the formula of its map, and its life in pipelines."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.spatial.distance import cdist
from scipy.special import softmax
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from otbilevel import ConvergenceWarning, PointCloud, solve_ot
from otbilevel.compat.sklearn import EntropicTransport


def clouds(seed=0, n=40, m=30, d=2):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(m, d)) @ np.diag(np.linspace(1, 2, d)) + 3.0


@parametrize_with_checks([EntropicTransport("normal"), EntropicTransport("uniform", norm="max", metric="cityblock")])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cityblock", "cosine"])
def test_the_map_is_the_formula(metric):
    X, Y = clouds()
    transport = EntropicTransport(reg=0.1, norm=None, metric=metric).fit(X, Y)
    reference = solve_ot(None, None, PointCloud(X, Y, cost=metric), reg=0.1)
    assert_allclose(transport.target_potential_, reference.g, atol=1e-9)
    new = np.random.default_rng(1).normal(size=(17, 2))
    weights = softmax((reference.g - cdist(new, Y, metric)) / 0.1, axis=1)
    assert_allclose(transport.transform(new), weights @ Y, atol=1e-7)
    weights = softmax((reference.f - cdist(Y, X, metric)) / 0.1, axis=1)
    assert_allclose(transport.inverse_transform(Y), weights @ X, atol=1e-7)


@pytest.mark.parametrize("norm", [None, "max"])
def test_the_map_is_that_of_pot(norm):
    da = pytest.importorskip("ot.da")
    X, Y = clouds()
    reg = 0.5 if norm is None else 0.02
    theirs = da.SinkhornTransport(reg_e=reg, norm=norm, max_iter=100_000, tol=1e-12).fit(Xs=X, Xt=Y)
    ours = EntropicTransport(Y, reg=reg, norm=norm).fit(X)
    new = np.random.default_rng(1).normal(size=(17, 2))
    assert_allclose(ours.transform(X), theirs.transform(Xs=X), atol=1e-7)
    assert_allclose(ours.transform(new), theirs.transform(Xs=new), atol=1e-7)
    assert_allclose(ours.inverse_transform(new + 3.0), theirs.inverse_transform(Xt=new + 3.0), atol=1e-7)


def test_on_the_sample_it_is_the_barycentric_projection():
    X, Y = clouds()
    transport = EntropicTransport().fit(X, Y)
    plan = transport.result_.plan
    assert_allclose(transport.transform(X), plan @ Y * len(X), atol=1e-7)
    assert_allclose(transport.transform(X), transport.result_.barycentric_map(Y), atol=1e-7)
    assert_allclose(transport.inverse_transform(Y), plan.T @ X * len(Y), atol=1e-7)
    assert_allclose(EntropicTransport().fit_transform(X, Y), transport.transform(X), rtol=1e-12)


def test_a_shift_is_found_and_inverted():
    X, _ = clouds(n=200)
    shift = np.array([10.0, -4.0])
    transport = EntropicTransport(X + shift, reg=1e-4).fit(X)
    inner = X[np.linalg.norm(X, axis=1) < 1]
    assert_allclose(transport.transform(inner), inner + shift, atol=0.05)
    assert_allclose(transport.inverse_transform(transport.transform(inner)), inner, atol=0.1)


def test_far_away_points_go_to_the_hull_of_the_targets():
    X, Y = clouds()
    images = EntropicTransport().fit(X, Y).transform([[1e6, 0.0], [0.0, -1e6]])
    assert_allclose(images[0], Y[np.argmax(Y[:, 0])], atol=1e-6)
    assert_allclose(images[1], Y[np.argmin(Y[:, 1])], atol=1e-6)


def test_units_of_reg():
    X, Y = clouds()
    for metric in ("sqeuclidean", "euclidean"):
        costs = cdist(X, Y, metric)
        for norm, unit in (("mean", costs.mean()), ("max", costs.max()), (None, 1.0)):
            assert EntropicTransport(reg=0.2, norm=norm, metric=metric).fit(X, Y).reg_ == pytest.approx(0.2 * unit, rel=1e-12)
    assert EntropicTransport(reg=0.2).fit(X[:1], X[:1]).reg_ == 0.2  # all costs are 0


def test_targets_by_name_are_spread_like_their_distribution():
    X, _ = clouds(n=500, d=3)
    uniform = EntropicTransport("uniform", reg=0.01).fit(X)
    assert uniform.target_.shape == X.shape
    assert_allclose(np.sort(uniform.target_, axis=0), np.linspace(0, 1, 500)[:, None] * np.ones(3), atol=0.02)
    images = uniform.transform(X)
    assert images.min() >= 0 and images.max() <= 1
    assert_allclose(images.mean(axis=0), 0.5, atol=0.01)
    normal = EntropicTransport("normal").fit(X)
    assert_allclose(normal.target_.std(axis=0), 1, atol=0.05)
    assert np.array_equal(normal.target_, clone(normal).fit(X).target_)


def test_labels_pass_through_a_pipeline():
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    centres = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 6.0]])
    X = centres[labels] + 0.3 * rng.normal(size=(120, 2))
    target = X[rng.permutation(120)] @ np.array([[0.8, 0.6], [-0.6, 0.8]]) + 5.0
    true = KNeighborsClassifier().fit(X, labels).predict((target - 5.0) @ np.array([[0.8, -0.6], [0.6, 0.8]]))
    pipeline = make_pipeline(EntropicTransport(target), KNeighborsClassifier())
    search = GridSearchCV(pipeline, {"entropictransport__reg": [0.01, 0.1], "entropictransport__norm": ["mean", "max"]}, cv=3)
    search.fit(X, labels)
    assert search.best_score_ > 0.95
    # The classifier has learnt on the side of the targets.
    assert np.mean(search.best_estimator_[-1].predict(target) == true) > 0.95
    scaled = make_pipeline(StandardScaler(), EntropicTransport("normal")).fit(X, labels)
    assert scaled.transform(X).shape == X.shape


def test_it_clones_pickles_and_prints():
    X, Y = clouds()
    transport = EntropicTransport(Y, reg=0.3).fit(X)
    copy = clone(transport)
    assert not hasattr(copy, "result_")
    assert np.array_equal(copy.target, Y)
    loaded = pickle.loads(pickle.dumps(transport))
    assert np.array_equal(loaded.transform(X), transport.transform(X))
    assert loaded.result_.value == transport.result_.value
    assert repr(transport).startswith("EntropicTransport(")
    assert transport.set_params(reg=0.5).get_params()["reg"] == 0.5


def test_frames_keep_their_names():
    pandas = pytest.importorskip("pandas")
    X, Y = clouds()
    frame = pandas.DataFrame(X, columns=["east", "north"])
    transport = EntropicTransport(Y).set_output(transform="pandas").fit(frame)
    assert list(transport.transform(frame).columns) == list(transport.get_feature_names_out()) == ["east", "north"]


def test_single_precision_stays():
    X, Y = clouds()
    transport = EntropicTransport().fit(X.astype(np.float32), Y)
    images = transport.transform(X.astype(np.float32))
    assert images.dtype == transport.target_.dtype == np.float32
    assert_allclose(images, EntropicTransport().fit(X, Y).transform(X), atol=1e-3)


def test_no_array_of_all_pairs(monkeypatch):
    def refuse(self, *args):
        pytest.fail("all pairs were formed")

    monkeypatch.setattr(PointCloud, "to_dense", refuse)
    monkeypatch.setattr(PointCloud, "rows", refuse)
    X, Y = clouds()
    EntropicTransport().fit(X, Y).transform(X)


def test_one_point_a_side():
    transport = EntropicTransport().fit([[0.0, 0.0]], [[1.0, 2.0]])
    assert_allclose(transport.transform([[5.0, 5.0]]), [[1.0, 2.0]])
    assert_allclose(transport.inverse_transform([[5.0, 5.0]]), [[0.0, 0.0]])


def test_a_solver_that_stops_short_warns():
    X, Y = clouds()
    with pytest.warns(ConvergenceWarning, match="max_iter = 2"):
        transport = EntropicTransport(reg=1e-3, max_iter=2).fit(X, Y)
    assert not transport.result_.success


@pytest.mark.parametrize(
    ("parameters", "y", "error", "words"),
    [
        ({}, None, ValueError, r"y must hold the targets, \(m, 2\), got None"),
        ({}, np.zeros(40), ValueError, "got shape"),
        ({}, np.zeros((5, 3)), ValueError, "y must have the 2 features of X"),
        ({"target": np.zeros(5)}, None, ValueError, "target must hold the targets"),
        ({"target": "cauchy"}, None, ValueError, "target must be one of 'normal', 'uniform'"),
        ({"target": np.full((3, 2), np.nan)}, None, ValueError, "target"),
        ({"target": "normal", "reg": 0}, None, ValueError, "reg must be"),
        ({"target": "normal", "reg": "small"}, None, TypeError, "reg must be"),
        ({"target": "normal", "norm": "median"}, None, ValueError, "norm must be one of"),
        ({"target": "normal", "metric": "chebyshev"}, None, ValueError, "cost must be one of"),
        ({"target": "normal", "method": "exact"}, None, ValueError, "has no map for new points"),
        ({"target": "normal", "method": "newton"}, None, ValueError, "method"),
        ({"target": "normal", "tol": -1}, None, ValueError, "tol must be"),
    ],
)
def test_bad_input_is_refused_by_name(parameters, y, error, words):
    with pytest.raises(error, match=words):
        EntropicTransport(**parameters).fit(clouds()[0], y)


def test_images_of_points_with_other_features_are_refused():
    transport = EntropicTransport().fit(*clouds())
    for method in (transport.transform, transport.inverse_transform):
        with pytest.raises(ValueError, match="X has 3 features, but EntropicTransport is expecting 2"):
            method(np.zeros((4, 3)))


def test_without_scikit_learn_the_extra_is_named():
    code = "import sys; sys.modules['sklearn'] = None\nimport otbilevel.compat\nimport otbilevel.compat.sklearn"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "otbilevel[sklearn]"' in run.stderr.splitlines()[-1]
