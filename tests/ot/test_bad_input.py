"""What `solve_ot` and the geometries refuse, with which words; what they accept; and how a solve that falls short ends."""

from __future__ import annotations

import itertools
import math
import re
import warnings
from types import SimpleNamespace

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import sparse

from otbilevel import ConvergenceError, ConvergenceWarning, DenseCost, PointCloud, solve_ot
from otbilevel._core import monitor
from otbilevel._core.result import Status
from otbilevel.ot import AtMost
from otbilevel.ot.methods import METHODS
from otbilevel.ot.problem import make_problem

INF, NAN = math.inf, math.nan
N, M = 4, 5
A = np.array([0.1, 0.2, 0.3, 0.4])
B = np.array([0.3, 0.1, 0.2, 0.15, 0.25])
C = np.random.default_rng(0).random((N, M))
NAMES = [row.name for row in METHODS]
ITERATIVE = [name for name in NAMES if name != "exact"]


def arguments(**changes):
    """A good problem with some arguments exchanged."""
    return {"a": A, "b": B, "C": C} | changes


def solve(**changes):
    given = arguments(**changes)
    return solve_ot(given.pop("a"), given.pop("b"), given.pop("C"), **given)


def replaced(values, index, value):
    copy = np.array(values)
    copy[index] = value
    return copy


def refuses(call, error, *words):
    """Check that `call` raises this very error, that its message begins by naming the argument, and holds all the words."""
    with pytest.raises(error) as refused:
        call()
    message = str(refused.value)
    assert refused.type is error, refused.type
    for word in words:
        assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)" if word.isalnum() else re.escape(word), message), (word, message)
    return message


def quiet(call):
    """Run with every warning an error, but for the one about convergence."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        return call()


def outcome(call, error):
    """The result of a quiet call and no message, or no result and the message of its refusal."""
    try:
        return quiet(call), ""
    except error as refusal:
        return None, str(refusal)


# Weights


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        pytest.param(lambda w: replaced(w, 2, -0.25), ValueError, ["[2]", "negative", "-0.25"], id="negative"),
        pytest.param(lambda w: replaced(w, 1, NAN), ValueError, ["[1]", "NaN"], id="nan"),
        pytest.param(lambda w: replaced(w, 3, INF), ValueError, ["[3]", "infinite"], id="inf"),
        pytest.param(lambda w: replaced(w, 3, -INF), ValueError, ["[3]", "-inf"], id="minus-inf"),
        pytest.param(lambda w: w / w.max() * 1e308, ValueError, ["mass", "inf"], id="infinite-mass"),
        pytest.param(np.zeros_like, ValueError, ["mass", "0.0"], id="no-mass"),
        pytest.param(lambda w: w[:, None], ValueError, ["one-dimensional", "1)"], id="column"),
        pytest.param(lambda w: np.outer(w, w), ValueError, ["one-dimensional"], id="matrix"),
        pytest.param(lambda _: 1.0, ValueError, ["one-dimensional", "()"], id="scalar"),
        pytest.param(lambda w: w[:-1], ValueError, ["(4, 5)"], id="too-short"),
        pytest.param(lambda w: np.append(w, 0.0), ValueError, ["(4, 5)"], id="too-long"),
        pytest.param(lambda _: [], ValueError, ["0", "(4, 5)"], id="empty"),
        pytest.param(lambda w: w + 0j, TypeError, ["real", "complex128"], id="complex"),
        pytest.param(lambda w: w.astype(object), TypeError, ["real", "object"], id="objects"),
        pytest.param(lambda w: [str(x) for x in w], TypeError, ["real", "<U"], id="strings"),
        pytest.param(lambda _: "uniform", TypeError, ["real", "<U7"], id="string"),
        pytest.param(lambda _: [[0.1], [0.2, 0.7]], TypeError, ["inhomogeneous"], id="ragged"),
        pytest.param(lambda w: np.ma.masked_array(w, w < 0.2), TypeError, ["masked", "weight 0"], id="masked"),
        pytest.param(lambda w: sparse.csr_array(w[None, :]), TypeError, ["sparse", "toarray"], id="sparse"),
    ],
)
@pytest.mark.parametrize("method", NAMES)
def test_bad_weights(name, change, error, words, method):
    weights = {"a": A, "b": B}[name]
    message = refuses(lambda: solve(**{name: change(weights)}, method=method), error, name, *words)
    assert message.startswith(f"{name} ")


@pytest.mark.parametrize(
    "change",
    [lambda w: replaced(w, 2, -0.25), lambda w: replaced(w, 2, NAN), lambda w: replaced(w, 2, INF)],
    ids=["neg", "nan", "inf"],
)
def test_bad_weights_of_every_library(device_backend, dtype, change):
    a, b, cost = (device_backend.asarray(x, dtype=dtype) for x in (change(A), B, C))
    refuses(lambda: solve_ot(a, b, cost), ValueError, "a[2]")


finite_weights = st.floats(1e-3, 1e3)
bad_weights = st.one_of(st.sampled_from([NAN, INF, -INF, -5e-324]), st.floats(-1e300, -1e-300))


@hypothesis.given(data=st.data(), n=st.integers(1, 12), m=st.integers(1, 12), name=st.sampled_from("ab"))
def test_one_bad_weight_is_found_wherever_it_is(data, n, m, name):
    sizes = {"a": n, "b": m}
    weights = {key: data.draw(hnp.arrays(float, size, elements=finite_weights)) for key, size in sizes.items()}
    weights["b"] *= weights["a"].sum() / weights["b"].sum()
    index = data.draw(st.integers(0, sizes[name] - 1))
    value = data.draw(bad_weights)
    weights[name][index] = value
    refuses(lambda: solve_ot(weights["a"], weights["b"], np.zeros((n, m))), ValueError, f"{name}[{index}]", repr(value))


@hypothesis.given(data=st.data(), size=st.integers(2, 12))
def test_of_several_bad_weights_the_first_of_its_kind_is_named(data, size):
    bad = data.draw(st.lists(st.integers(0, size - 1), min_size=2, unique=True))
    weights = np.ones(size)
    weights[bad] = NAN
    refuses(lambda: solve_ot(weights, None, np.zeros((size, 3))), ValueError, f"a[{min(bad)}]")


@hypothesis.given(
    weights=hnp.arrays(float, st.integers(1, 10), elements=st.floats(0, 1e6)),
    factor=st.one_of(st.floats(1e-6, 0.999), st.floats(1.001, 1e6)),
)
def test_unequal_mass_names_both_sums(weights, factor):
    hypothesis.assume(weights.sum() > 1e-3)
    other = np.array([weights.sum() * factor])
    message = refuses(
        lambda: solve_ot(weights, other, np.zeros((len(weights), 1))), ValueError, "equal mass", "sum(a)", "sum(b)", "rescale"
    )
    first, second = (float(x) for x in re.search(r"sum\(a\) = (\S+) and sum\(b\) = (\S+):", message).groups())
    assert first == pytest.approx(weights.sum(), rel=1e-12)
    assert second == pytest.approx(other[0], rel=1e-12)


@pytest.mark.parametrize(
    ("dtype", "difference", "accepted"),
    [
        ("float64", 1e-7, True),
        ("float64", 9e-7, True),
        ("float64", 2e-6, False),
        ("float64", 1e-5, False),
        ("float32", 5e-5, True),
        ("float32", 2e-4, False),
        ("float32", 1e-3, False),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_small_differences_of_mass_are_rescaled(backend, dtype, difference, accepted, sign):
    a, b, cost = (backend.asarray(x, dtype=dtype) for x in (3.0 * A, 3.0 * B * (1 + sign * difference), C))
    if not accepted:
        refuses(lambda: solve_ot(a, b, cost, reg=0.1), ValueError, "equal mass", "sum(a)", "sum(b)")
        return
    result = solve_ot(a, b, cost, reg=0.1)
    assert result.success
    plan = backend.to_numpy(result.plan)
    assert plan.sum() == pytest.approx(3.0, rel=2 * difference)
    np.testing.assert_allclose(plan.sum(axis=0), 3.0 * B, rtol=1e-5 if dtype == "float64" else 1e-3)


# Costs


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        pytest.param(replaced(C, (1, 2), NAN), ValueError, ["1 ", "NaN", "(1, 2)"], id="nan"),
        pytest.param(replaced(C, (slice(1, 3), 3), NAN), ValueError, ["2 ", "NaN", "(1, 3)"], id="nans"),
        pytest.param(replaced(C, (3, 0), -INF), ValueError, ["-inf", "(3, 0)", "+inf"], id="minus-inf"),
        pytest.param(replaced(replaced(C, (0, 0), INF), (2, 2), NAN), ValueError, ["NaN", "(2, 2)"], id="nan-beside-inf"),
        pytest.param(C[0], ValueError, ["two-dimensional", "(5,)"], id="vector"),
        pytest.param(C[None], ValueError, ["two-dimensional", "(1, 4, 5)"], id="three-dimensional"),
        pytest.param(1.0, ValueError, ["two-dimensional", "()"], id="scalar"),
        pytest.param(np.zeros((0, 5)), ValueError, ["empty", "(0, 5)"], id="no-rows"),
        pytest.param(np.zeros((4, 0)), ValueError, ["empty", "(4, 0)"], id="no-columns"),
        pytest.param([[]], ValueError, ["empty", "(1, 0)"], id="empty-list"),
        pytest.param([], ValueError, ["C", "(0,)"], id="empty-flat-list"),
        pytest.param(C + 0j, TypeError, ["real", "complex128"], id="complex"),
        pytest.param(C.astype(object), TypeError, ["real", "object"], id="objects"),
        pytest.param(None, TypeError, ["real", "object"], id="None"),
        pytest.param([["0.1", "0.2"]], TypeError, ["real", "<U3"], id="strings"),
        pytest.param("sqeuclidean", TypeError, ["real", "<U11"], id="string"),
        pytest.param([[1.0, 2.0], [3.0]], TypeError, ["inhomogeneous"], id="ragged"),
        pytest.param(np.ma.masked_array(C, C < 0.1), TypeError, ["masked", "+inf"], id="masked"),
    ],
)
def test_bad_costs(value, error, words):
    for call in (lambda: solve(C=value), lambda: DenseCost(value)):
        assert refuses(call, error, *words).startswith("C ")


@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.coo_matrix])
def test_a_sparse_cost_is_no_dense_one(kind):
    refuses(lambda: DenseCost(kind(C)), TypeError, "C ", "sparse", "SparseCost", "solve_ot")


@pytest.mark.parametrize("bad", [NAN, -INF])
def test_bad_costs_of_every_library(device_backend, dtype, bad):
    values = replaced(replaced(C, (1, 2), bad), (2, 0), bad)
    refuses(lambda: DenseCost(device_backend.asarray(values, dtype=dtype)), ValueError, "C holds 2 entries", "(1, 2)")


@hypothesis.given(
    shape=hnp.array_shapes(min_dims=2, max_dims=2, max_side=8),
    bad=st.sampled_from([NAN, -INF]),
    data=st.data(),
    forbidden=st.booleans(),
)
def test_bad_costs_are_counted_and_the_first_is_named(shape, bad, data, forbidden):
    matrix = data.draw(hnp.arrays(float, shape, elements=st.floats(-1e300, 1e300)))
    if forbidden:
        matrix[data.draw(st.integers(0, shape[0] - 1)), data.draw(st.integers(0, shape[1] - 1))] = INF
    where = sorted(data.draw(st.sets(st.integers(0, matrix.size - 1), min_size=1)))
    matrix.flat[where] = bad
    first = divmod(where[0], shape[1])
    refuses(lambda: DenseCost(matrix), ValueError, f"C holds {len(where)} entr", "NaN" if math.isnan(bad) else "-inf", str(first))


def test_one_bad_entry_is_an_entry():
    for call in (lambda: DenseCost(replaced(C, (1, 2), NAN)), lambda: PointCloud(replaced(C, (1, 2), NAN))):
        assert "1 entries" not in refuses(call, ValueError, "(1, 2)")


@pytest.mark.parametrize(("a", "b"), [(A[:3], B), (A, B[:3]), (B, A)])
def test_shapes_that_do_not_match(a, b):
    refuses(lambda: solve(a=a, b=b), ValueError, "(4, 5)")
    refuses(lambda: solve(a=a, b=b, C=PointCloud(C, np.zeros((5, 5)))), ValueError, "(4, 5)")


# Point clouds

X, Y = np.random.default_rng(1).random((N, 3)), np.random.default_rng(2).random((M, 3))


@pytest.mark.parametrize("name", ["x", "y"])
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        pytest.param(lambda x: replaced(x, (2, 1), NAN), ValueError, ["1 ", "not finite", "(2, 1)"], id="nan"),
        pytest.param(lambda x: replaced(x, ([1, 3], 0), -INF), ValueError, ["2 ", "not finite", "(1, 0)"], id="inf"),
        pytest.param(lambda x: x[:, 0], ValueError, ["two-dimensional"], id="flat"),
        pytest.param(lambda x: x[:0], ValueError, ["empty", "(0, 3)"], id="no-points"),
        pytest.param(lambda x: x[:, :0], ValueError, ["empty", "0)"], id="no-coordinates"),
        pytest.param(lambda x: x + 0j, TypeError, ["real", "complex128"], id="complex"),
        pytest.param(lambda x: x.astype(str), TypeError, ["real", "<U"], id="strings"),
        pytest.param(lambda x: x.astype(object), TypeError, ["real", "object"], id="objects"),
        pytest.param(lambda x: [*x.tolist()[:-1], [1.0]], TypeError, ["inhomogeneous"], id="ragged"),
        pytest.param(lambda x: np.ma.masked_array(x, x < 0.1), TypeError, ["masked"], id="masked"),
        pytest.param(sparse.csr_array, TypeError, ["sparse"], id="sparse"),
    ],
)
def test_bad_points(name, change, error, words):
    clouds = {"x": X, "y": Y}
    clouds[name] = change(clouds[name])
    assert refuses(lambda: PointCloud(clouds["x"], clouds["y"]), error, *words).startswith(f"{name} ")


def test_points_of_different_dimensions():
    refuses(lambda: PointCloud(X, Y[:, :2]), ValueError, "x", "y", "(4, 3)", "(5, 2)")


@pytest.mark.parametrize("cost", ["sqeuclid", "", None, 2, ["sqeuclidean"]])
def test_an_unknown_cost_lists_the_known_ones(cost):
    refuses(lambda: PointCloud(X, Y, cost=cost), ValueError, "cost", repr(cost), *PointCloud.COSTS)


@pytest.mark.parametrize("name", ["x", "y"])
def test_a_zero_vector_has_no_cosine(device_backend, name):
    clouds = {"x": X, "y": Y}
    clouds[name] = replaced(clouds[name], 3, 0.0)
    native = {key: device_backend.asarray(value) for key, value in clouds.items()}
    message = refuses(lambda: PointCloud(**native, cost="cosine"), ValueError, "zero vector", "row 3", "cosine")
    assert message.startswith(f"{name} ")
    PointCloud(**native)


@hypothesis.given(
    data=st.data(),
    shape=hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    bad=st.sampled_from([NAN, INF, -INF]),
    name=st.sampled_from("xy"),
)
def test_bad_coordinates_are_counted_and_the_first_is_named(data, shape, bad, name):
    cloud = data.draw(hnp.arrays(float, shape, elements=st.floats(-1e3, 1e3)))
    where = sorted(data.draw(st.sets(st.integers(0, cloud.size - 1), min_size=1)))
    cloud.flat[where] = bad
    clouds = {"x": np.zeros((2, shape[1])), "y": np.zeros((2, shape[1])), name: cloud}
    refuses(lambda: PointCloud(**clouds), ValueError, f"{name} holds {len(where)} ", "not finite", str(divmod(where[0], shape[1])))


# Libraries and devices


@pytest.mark.parametrize("names", list(itertools.permutations(["numpy", "torch", "array_api_strict"], 2)))
@pytest.mark.parametrize("odd", ["a", "b", "C"])
def test_mixed_libraries(make_backend, names, odd):
    usual, other = map(make_backend, names)
    native = {name: (other if name == odd else usual).asarray(value) for name, value in arguments().items()}
    for method in ("auto", "exact"):
        refuses(
            lambda method=method: solve(**native, method=method),
            TypeError,
            *(f"{name}: {(other if name == odd else usual).library}" for name in "abC"),
        )


@pytest.mark.parametrize("names", [("numpy", "torch"), ("torch", "array_api_strict"), ("array_api_strict", "numpy")])
def test_point_clouds_of_mixed_libraries(make_backend, names):
    one, other = map(make_backend, names)
    refuses(lambda: PointCloud(one.asarray(X), other.asarray(Y)), TypeError, f"x: {one.library}", f"y: {other.library}")
    cloud = PointCloud(one.asarray(X), one.asarray(Y))
    refuses(
        lambda: solve_ot(other.asarray(A), None, cloud), TypeError, f"a: {other.library}", f"x: {one.library}", f"y: {one.library}"
    )


@pytest.mark.parametrize("odd", ["a", "b", "C"])
def test_mixed_devices(make_backend, odd):
    usual, other = make_backend("array_api_strict"), make_backend("array_api_strict-device1")
    native = {name: (other if name == odd else usual).asarray(value) for name, value in arguments().items()}
    message = refuses(lambda: solve(**native), TypeError, "device", "CPU_DEVICE", "device1", "move")
    assert re.search(rf"{odd}: [^,]*device1", message)


def test_point_clouds_on_mixed_devices(make_backend):
    usual, other = make_backend("array_api_strict"), make_backend("array_api_strict-device1")
    refuses(lambda: PointCloud(usual.asarray(X), other.asarray(Y)), TypeError, "x: ", "y: ", "CPU_DEVICE", "device1")


@pytest.mark.parametrize("method", ["exact"])
def test_what_needs_host_memory_says_so_on_a_device(make_backend, method):
    device = make_backend("array_api_strict-device1")
    refuses(
        lambda: solve(**{name: device.asarray(x) for name, x in arguments().items()}, method=method),
        TypeError,
        "host memory",
        "device1",
    )


def test_forbidden_pairs_on_a_device(make_backend):
    """Whether they leave a plan takes a flow in host memory: there a failed run is told from its potentials."""
    device = make_backend("array_api_strict-device1")

    def native(places):
        return {name: device.asarray(x) for name, x in arguments(C=replaced(C, places, INF)).items()}

    assert solve(**native((0, 0)), reg=0.1).success
    refuses(lambda: solve(**native(2), reg=0.1), ValueError, "row 2", "a[2]")
    columns = r"infeasible: .* 3 columns with 0\.6 of the mass may only be reached from 2 rows with 0\.3 of it"
    rows = r"infeasible: .* 2 rows with 0\.7 of the mass may only reach 2 columns with 0\.4 of it"
    given = native((slice(2, 4), slice(2, 5)))
    for unbalanced, proof in ((None, columns), ((AtMost(0.0), None), columns), ((None, AtMost(0.0)), rows)):
        with pytest.warns(ConvergenceWarning, match=proof):
            result = solve(**given, reg=0.1, unbalanced=unbalanced, max_iter=500)
        assert result.status is Status.INFEASIBLE


@pytest.mark.parametrize("name", ["a", "b", "C"])
def test_tensors_that_require_gradients(make_backend, name):
    torch = make_backend("torch")
    native = {key: torch.asarray(value) for key, value in arguments().items()}
    native[name].requires_grad_(True)
    refuses(lambda: solve(**native), TypeError, name, "requires gradients", f"{name}.detach()", "otbilevel.pytorch")
    native[name] = native[name].detach()
    assert solve(**native, reg=0.1).success


def test_points_that_require_gradients(make_backend):
    torch = make_backend("torch")
    refuses(lambda: PointCloud(torch.asarray(X).requires_grad_(True)), TypeError, "x", "x.detach()")
    refuses(lambda: PointCloud(torch.asarray(X), torch.asarray(Y).requires_grad_(True)), TypeError, "y", "y.detach()")


def test_a_regularisation_that_requires_gradients(make_backend):
    torch = make_backend("torch")
    native = {key: torch.asarray(value) for key, value in arguments().items()}
    refuses(lambda: solve(**native, reg=torch.asarray(0.1).requires_grad_(True)), TypeError, "reg")


@pytest.mark.parametrize("layout", ["to_sparse_coo", "to_sparse_csr"])
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_sparse_tensors(make_backend, layout):
    torch = make_backend("torch")
    refuses(lambda: solve_ot(None, None, getattr(torch.asarray(C), layout)()), TypeError, "C", "sparse")


# Scalars and names


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        pytest.param(0.0, ValueError, ["> 0", "0.0", "exact"], id="zero"),
        pytest.param(-1.0, ValueError, ["> 0", "-1.0", "exact"], id="negative"),
        pytest.param(NAN, ValueError, ["finite", "nan"], id="nan"),
        pytest.param(INF, ValueError, ["finite", "inf"], id="inf"),
        pytest.param("0.1", TypeError, ["real number", "'0.1'"], id="string"),
        pytest.param(True, TypeError, ["real number", "True"], id="bool"),
        pytest.param(np.True_, TypeError, ["real number", "bool"], id="numpy-bool"),
        pytest.param(0.1j, TypeError, ["real number", "complex"], id="complex"),
        pytest.param([0.1], TypeError, ["real number", "list"], id="list"),
        pytest.param(np.array([0.1]), TypeError, ["real number", "ndarray"], id="array"),
        pytest.param(10**400, ValueError, ["finite"], id="huge-integer"),
    ],
)
@pytest.mark.parametrize("method", ITERATIVE)
def test_bad_regularisation(value, error, words, method):
    assert refuses(lambda: solve(reg=value, method=method), error, *words).startswith("reg ")


def test_the_exact_method_takes_no_regularisation():
    refuses(lambda: solve(reg=0.1, method="exact"), ValueError, "reg", "exact", "unregularised")
    refuses(lambda: solve(reg=0.0, method="exact"), ValueError, "reg", "exact")
    assert solve(method="exact").reg == 0.0


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (-1e-9, ValueError, [">= 0", "-1e-09"]),
        (NAN, ValueError, ["finite", "nan"]),
        (INF, ValueError, ["finite", "inf"]),
        ("1e-6", TypeError, ["real number", "'1e-6'"]),
        (False, TypeError, ["real number", "False"]),
        ([1e-6], TypeError, ["real number", "list"]),
    ],
)
@pytest.mark.parametrize("method", NAMES)
def test_bad_tolerance(value, error, words, method):
    assert refuses(lambda: solve(tol=value, method=method), error, *words).startswith("tol ")


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (0, ValueError, [">= 1", "0"]),
        (-5, ValueError, [">= 1", "-5"]),
        (10.0, TypeError, ["integer", "float"]),
        ("10", TypeError, ["integer", "'10'"]),
        (True, TypeError, ["integer", "True"]),
        (NAN, TypeError, ["integer", "float"]),
        ([10], TypeError, ["integer", "list"]),
    ],
)
@pytest.mark.parametrize("method", NAMES)
def test_bad_iteration_limit(value, error, words, method):
    assert refuses(lambda: solve(max_iter=value, method=method), error, *words).startswith("max_iter ")


@pytest.mark.parametrize("value", ["Sinkhorn", "newton", "", None, 3, ["sns"]])
def test_an_unknown_method_lists_the_known_ones(value):
    refuses(lambda: solve(method=value), ValueError, "method", repr(value), "solve_ot", *map(repr, NAMES))


@pytest.mark.parametrize("value", [3, "print", [print], True])
def test_a_callback_that_cannot_be_called(value):
    refuses(lambda: solve(callback=value), TypeError, "callback", "callable", type(value).__name__)


@pytest.mark.parametrize("name", ["progress", "raise_on_failure"])
@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_flags_that_are_no_bools(name, value):
    """Found before the work, not after it."""
    seen = []
    refuses(lambda: solve(**{name: value}, callback=seen.append), TypeError, name, "True or False", type(value).__name__)
    assert not seen


@pytest.mark.parametrize("name", ["regularization", "epsilon", "numItermax", "atol"])
def test_an_unknown_argument(name):
    with pytest.raises(TypeError, match=name):
        solve(**{name: 1.0})


def test_settings_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        solve_ot(A, B, C, 0.1)


@pytest.mark.parametrize("value", [[("relaxation", 1.5)], "relaxation", 1.5, ("relaxation",)])
def test_options_that_are_no_dict(value):
    refuses(lambda: solve(method="sinkhorn", options=value), TypeError, "options", "dict", type(value).__name__)


@pytest.mark.parametrize(
    ("method", "key", "nearest"),
    [
        ("sinkhorn", "relaxatoin", "relaxation"),
        ("sinkhorn", "omega_relaxation", "relaxation"),
        ("sns", "varient", "variant"),
        ("sns", "density", "active_density"),
        ("sns", "n_sinkhorns", "n_sinkhorn"),
        ("auto", "timelimit", "time_limit"),
        ("exact", "solvers", "solver"),
    ],
)
def test_an_unknown_option_names_the_nearest(method, key, nearest):
    message = refuses(
        lambda: solve(method=method, options={key: 1.0}), TypeError, "option", repr(key), repr(method), "Valid options"
    )
    assert f"did you mean {nearest!r}?" in message


def test_an_option_of_another_method_is_unknown():
    refuses(lambda: solve(method="sns", options={"relaxation": 1.5}), TypeError, "'relaxation'", "'sns'", "variant", "time_limit")
    refuses(lambda: solve(method="exact", options={"time_limit": 1.0}), TypeError, "'time_limit'", "'exact'", "solver")


BAD_OPTIONS = [
    ("sinkhorn", "relaxation", [0.0, -1.0, 2.0, 2.5, NAN, INF], ValueError),
    ("sinkhorn", "relaxation", ["1.5", True, None], TypeError),
    ("sns", "variant", ["robost", None, 1], ValueError),
    ("sns", "active_density", [-0.1, 1.5, NAN], ValueError),
    ("sns", "active_density", ["0.1", False, None], TypeError),
    ("sns", "hessian_density", [0.0, -0.1, 1.5, NAN], ValueError),
    ("sns", "hessian_density", ["0.1", True], TypeError),
    ("sns", "n_sinkhorn", [0, -3], ValueError),
    ("sns", "n_sinkhorn", [1.5, "20", True], TypeError),
    ("exact", "solver", ["simplex", None, 0], ValueError),
    *((method, "time_limit", [-1.0, NAN], ValueError) for method in ITERATIVE),
    *((method, "time_limit", ["1 s", True], TypeError) for method in ITERATIVE),
]


@pytest.mark.parametrize(
    ("method", "key", "value", "error"),
    [(method, key, value, error) for method, key, values, error in BAD_OPTIONS for value in values],
)
def test_bad_values_of_options(method, key, value, error):
    message = refuses(lambda: solve(method=method, options={key: value}), error, key)
    assert message.startswith(f"{key} ")
    shown = repr(value) if isinstance(value, (str, bool, float)) else str(value)
    assert shown in message or type(value).__name__ in message


def test_relaxation_takes_every_exponent_that_its_docstring_promises():
    assert solve(method="sinkhorn", options={"relaxation": 1e-3}, reg=10.0, tol=0.5).success
    assert solve(method="sinkhorn", options={"relaxation": math.nextafter(2.0, 0.0)}, reg=10.0, tol=0.5).success


# Numbers at the end of the range: refused, or reported; never an error of arithmetic, and never a success that is none


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        pytest.param(lambda: {"reg": 5e-324}, ["reg"], id="subnormal-reg"),
        pytest.param(lambda: {"reg": 1e-310}, ["reg"], id="subnormal-reg-2"),
        pytest.param(lambda: {"reg": 1e-300}, ["reg"], id="tiny-reg"),
        pytest.param(lambda: {"reg": 1e300}, ["reg"], id="huge-reg"),
        pytest.param(lambda: {"C": np.where(C > 0.5, 1e308, -1e308)}, ["C", "reg"], id="range-overflows"),
        pytest.param(lambda: {"C": np.where(C > 0.5, 1e308, -1e308), "reg": 1e306}, ["C", "reg"], id="range-overflows-with-reg"),
        pytest.param(lambda: {"C": np.where(C > 0.5, 5e-324, 0.0)}, ["C", "reg"], id="range-underflows"),
        pytest.param(lambda: {"C": np.full((N, M), 1e308)}, ["C", "reg"], id="constant-huge"),
        pytest.param(lambda: {"C": np.full((N, M), 0.0)}, ["C", "reg"], id="constant-zero"),
        pytest.param(
            lambda: {"C": PointCloud([[0.0], [1e200], [1.0], [2.0]], np.arange(5.0)[:, None])},
            ["C", "x", "cost"],
            id="square-overflows",
        ),
        pytest.param(
            lambda: {"C": PointCloud([[0.0], [1e200], [1.0], [2.0]], np.arange(5.0)[:, None], cost="euclidean")},
            ["C", "x", "cost"],
            id="norm-overflows",
        ),
        pytest.param(lambda: {"C": PointCloud(1e200 * X, Y, cost="cosine"), "reg": 0.1}, ["x"], id="long-vectors-have-a-cosine"),
        pytest.param(lambda: {"C": PointCloud(1e-200 * X, Y, cost="cosine"), "reg": 0.1}, ["x"], id="short-vectors-have-a-cosine"),
        pytest.param(lambda: {"a": A * 1e-310, "b": B * 1e-310, "reg": 0.1}, ["a"], id="subnormal-mass"),
        pytest.param(lambda: {"a": A * 1e308, "b": B * 1e308, "reg": 0.1}, ["a"], id="huge-mass"),
        pytest.param(lambda: {"tol": 5e-324}, ["tol"], id="tiny-tol"),
    ],
)
@pytest.mark.parametrize("method", ITERATIVE)
def test_the_end_of_the_range(changes, names, method):
    result, refusal = outcome(lambda: solve(**changes(), method=method, max_iter=300), ValueError)
    if result is None:
        assert any(re.search(rf"(?<!\w){name}(?!\w)", refusal) for name in names), refusal
        return
    assert np.all(np.isfinite(result.f))
    assert np.all(np.isfinite(result.g))
    if result.success:
        a, b = (np.asarray(arguments(**changes())[name]) for name in "ab")
        assert np.abs(result.plan.sum(axis=1) - a).sum() <= 1e-6 * a.sum()
        assert np.abs(result.plan.sum(axis=0) - b).sum() <= 1e-6 * b.sum()


# Forbidden pairs


def test_a_forbidden_row_is_named():
    refuses(lambda: solve(C=replaced(C, 2, INF)), ValueError, "C", "row 2", "a[2]", "infeasible")


def test_a_forbidden_column_is_named():
    refuses(lambda: solve(C=replaced(C, (slice(None), 3), INF)), ValueError, "C", "column 3", "b[3]", "infeasible")


def test_everything_forbidden():
    refuses(lambda: solve(C=np.full((N, M), INF)), ValueError, "C", "row 0", "a[0]")


@pytest.mark.parametrize("method", NAMES)
def test_the_named_row_is_the_users_when_zero_weights_were_dropped(method):
    a = np.array([0.0, 0.5, 0.0, 0.5])
    refuses(lambda: solve(a=a, C=replaced(C, 3, INF), method=method), ValueError, "row 3", "a[3]")
    b = np.array([0.0, 0.5, 0.0, 0.0, 0.5])
    refuses(lambda: solve(b=b, C=replaced(C, (slice(None), 4), INF), method=method), ValueError, "column 4", "b[4]")


def test_a_row_whose_allowed_columns_have_no_weight_is_named():
    b = np.array([0.5, 0.5, 0.0, 0.0, 0.0])
    refuses(lambda: solve(b=b, C=replaced(C, (1, slice(0, 2)), INF)), ValueError, "row 1", "a[1]")


def test_forbidden_pairs_of_zero_weight_do_not_matter():
    a = np.array([0.0, 0.3, 0.3, 0.4])
    result = solve(a=a, C=replaced(C, 0, INF), reg=0.1)
    assert result.success
    assert np.all(result.plan[0] == 0.0)
    assert np.all(np.isfinite(result.f))


@pytest.mark.parametrize("method", NAMES)
def test_a_violation_of_halls_condition(method):
    """Rows 2 and 3 weigh 0.7, the two columns that they may use only 0.4; yet every row and column has allowed pairs."""
    refuses(
        lambda: solve(C=replaced(C, (slice(2, 4), slice(2, 5)), INF), method=method),
        ValueError,
        "forbidden",
        "C",
        "infeasible",
        "0.7 ",
    )


@pytest.mark.parametrize("backend_name", ["torch", "array_api_strict", "numpy-readonly"])
def test_infeasible_pairs_of_every_library(make_backend, backend_name):
    backend = make_backend(backend_name)
    native = {name: backend.asarray(x) for name, x in arguments(C=replaced(C, (slice(2, 4), slice(2, 5)), INF)).items()}
    refuses(lambda: solve(**native), ValueError, "infeasible", "0.7 ")
    native["C"] = backend.asarray(replaced(C, 2, INF))
    refuses(lambda: solve(**native), ValueError, "row 2", "a[2]")


@st.composite
def patterns(draw):
    """Integer weights of equal sum, and which pairs are allowed."""
    n, m = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    total = draw(st.integers(max(n, m), 40))

    def composition(parts):
        cuts = sorted(draw(st.lists(st.integers(0, total), min_size=parts - 1, max_size=parts - 1)))
        return np.diff([0, *cuts, total])

    return composition(n), composition(m), draw(hnp.arrays(bool, (n, m)))


def hall(a, b, allowed):
    """Hall's condition over all sets of rows: no set may weigh more than the columns that it can reach."""
    n = len(a)
    for rows in itertools.product([False, True], repeat=n):
        chosen = np.array(rows)
        if a[chosen].sum() > b[allowed[chosen].any(axis=0)].sum():
            return False
    return True


@hypothesis.settings(max_examples=200)
@hypothesis.given(pattern=patterns())
@hypothesis.example(pattern=(np.array([1, 4]), np.array([1, 4]), np.array([[True, True], [True, False]])))  # one long path
def test_exactly_the_infeasible_patterns_are_refused(pattern):
    a, b, allowed = pattern
    geometry = DenseCost(np.where(allowed, 1.0, INF))
    if hall(a, b, allowed):
        make_problem(a, b, geometry, reg=1.0, tol=None)
    else:
        refuses(lambda: make_problem(a, b, geometry, reg=1.0, tol=None), ValueError, "C", "infeasible")


@hypothesis.given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 30), m=st.integers(2, 30))
def test_the_pairs_of_any_plan_are_feasible(seed, n, m):
    """Real weights, where the rounding of the flow could matter."""
    rng = np.random.default_rng(seed)
    plan = np.zeros((n, m))
    order = [(i % n, j % m) for i, j in zip(rng.permutation(max(n, m)), rng.permutation(max(n, m)), strict=True)]
    for i, j in order:
        plan[i, j] += 10 ** rng.uniform(-8, 0)
    make_problem(plan.sum(axis=1), plan.sum(axis=0), DenseCost(np.where(plan > 0, 0.0, INF)), reg=1.0, tol=None)


# The result's methods


@pytest.fixture(scope="module")
def result():
    return solve(reg=0.1)


@pytest.mark.parametrize(
    ("v", "axis", "words"),
    [
        (np.ones(N), 1, ["(5,)", "(5, k)", "(4,)"]),
        (np.ones(M), 0, ["(4,)", "(4, k)", "(5,)"]),
        (np.ones((M, 2, 2)), 1, ["(5,)", "(5, 2, 2)"]),
        (np.ones((2, M)), 1, ["(5,)", "(2, 5)"]),
        (1.0, 1, ["(5,)", "()"]),
        ([], 1, ["(5,)", "(0,)"]),
    ],
)
def test_apply_to_vectors_of_a_wrong_shape(result, v, axis, words):
    assert refuses(lambda: result.apply(v, axis=axis), ValueError, *words).startswith("v ")


@pytest.mark.parametrize("axis", [2, -1, "rows", None])
def test_apply_along_a_wrong_axis(result, axis):
    refuses(lambda: result.apply(np.ones(M), axis=axis), ValueError, "axis", "0 or 1", repr(axis))


@pytest.mark.parametrize("v", [np.ones(M) * 1j, ["a"] * M, None, sparse.csr_array(np.eye(M)), np.ma.masked_array(np.ones(M))])
def test_apply_to_what_is_no_vector(result, v):
    assert refuses(lambda: result.apply(v), TypeError).startswith("v ")


@pytest.mark.parametrize("y", [np.ones(N), np.ones((N, 3)), np.ones((M, 1, 1))])
def test_barycentric_map_of_points_of_a_wrong_shape(result, y):
    assert refuses(lambda: result.barycentric_map(y), ValueError, "(5,)", str(y.shape)).startswith("y ")


def test_vectors_of_another_library_or_device(result, make_backend):
    torch, device = make_backend("torch"), make_backend("array_api_strict-device1")
    refuses(lambda: result.apply(torch.asarray(np.ones(M))), TypeError, "v: torch", "plan: numpy")
    refuses(lambda: result.barycentric_map(torch.asarray(np.ones(M))), TypeError, "y: torch", "plan: numpy")
    strict = make_backend("array_api_strict")
    other = solve(**{name: strict.asarray(x) for name, x in arguments().items()}, reg=0.1)
    refuses(lambda: other.apply(device.asarray(np.ones(M))), TypeError, "v: ", "device1", "CPU_DEVICE")
    refuses(lambda: result.apply(torch.asarray(np.ones(M)).requires_grad_(True)), TypeError, "v.detach()")


# What is accepted


@pytest.mark.parametrize("method", NAMES)
def test_inputs_are_never_mutated(backend, dtype, method):
    given = {name: backend.asarray(x, dtype=dtype) for name, x in arguments(a=[0.0, 0.3, 0.3, 0.4]).items()}
    copies = {name: backend.to_numpy(x) for name, x in given.items()}
    result = quiet(lambda: solve(**given, method=method))
    touched = [
        result.f,
        result.plan,
        result.sparse_plan,
        result.gap,
        result.gap_exact,
        result.marginals,
        result.value,
        repr(result),
    ]
    v = backend.asarray(np.arange(5.0), dtype=dtype)
    touched += [result.apply(v), result.barycentric_map(v)]
    for name, x in given.items():
        np.testing.assert_array_equal(backend.to_numpy(x), copies[name])
        assert backend.dtype_name(x) == dtype
    np.testing.assert_array_equal(backend.to_numpy(v), np.arange(5.0))


@pytest.mark.parametrize("cost", PointCloud.COSTS)
def test_points_are_never_mutated(backend, dtype, cost):
    x, y = backend.asarray(X, dtype=dtype), backend.asarray(Y, dtype=dtype)
    result = solve_ot(None, None, PointCloud(x, y, cost=cost), reg=0.1)
    assert result.success
    assert backend.to_numpy(result.plan).shape == (N, M)
    np.testing.assert_array_equal(backend.to_numpy(x), X.astype(dtype))
    np.testing.assert_array_equal(backend.to_numpy(y), Y.astype(dtype))


def test_what_a_result_gives_out_is_not_the_users_memory():
    """Writing to f, g or the plan must not reach the arrays that went in."""
    given = {name: np.array(x) for name, x in arguments().items()}
    for method in NAMES:
        result = quiet(lambda method=method: solve(**given, method=method))
        for array in (result.f, result.g, result.plan, *result.marginals):
            assert not any(np.shares_memory(array, x) for x in given.values())


def test_lists_are_accepted():
    expected = solve(reg=0.1)
    for convert in (lambda x: x.tolist(), lambda x: tuple(map(tuple, x.tolist())) if x.ndim == 2 else tuple(x)):
        result = solve(**{name: convert(x) for name, x in arguments().items()}, reg=0.1)
        np.testing.assert_array_equal(result.plan, expected.plan)
        np.testing.assert_array_equal(result.f, expected.f)
    cloud = solve_ot(None, None, PointCloud(X.tolist(), Y.tolist()), reg=0.1)
    np.testing.assert_array_equal(cloud.plan, solve_ot(None, None, PointCloud(X, Y), reg=0.1).plan)


def test_any_layout_in_memory_is_accepted():
    expected = solve(reg=0.1).plan
    for layout in (np.asfortranarray(C), np.repeat(C, 2, axis=1)[:, ::2], C[::-1].copy()[::-1]):
        given = layout.copy(order="K")
        np.testing.assert_allclose(solve(C=layout, reg=0.1).plan, expected, rtol=1e-9)
        np.testing.assert_array_equal(layout, given)


@pytest.mark.parametrize("kind", ["int64", "int32", "uint8", "bool"])
def test_integers_and_booleans_are_accepted(backend, kind):
    a, b, cost = np.array([1, 0, 1, 1]), np.array([1, 1, 0, 1, 0]), np.random.default_rng(3).integers(0, 2, (N, M))
    native = [backend.asarray(x, dtype=kind) for x in (a, b, cost)]
    result = solve_ot(*native, reg=0.5)
    default = "float32" if backend.library == "torch" else "float64"
    assert result.success
    assert backend.dtype_name(result.f) == backend.dtype_name(result.plan) == default
    expected = solve_ot(a.astype(float), b.astype(float), cost.astype(float), reg=0.5)
    np.testing.assert_allclose(backend.to_numpy(result.plan), expected.plan, atol=1e-8 if default == "float64" else 1e-4)


@pytest.mark.parametrize(
    ("given", "returned", "precision"),
    [("float16", "float32", 2e-3), ("longdouble", "float64", 1e-9), (">f8", "float64", 1e-12), (">f4", "float32", 1e-5)],
)
def test_other_floating_dtypes_are_accepted(given, returned, precision):
    a, b, cost = (np.asarray(x).astype(given) for x in (np.full(N, 0.25), np.array([0.25, 0.25, 0.125, 0.125, 0.25]), C))
    result = solve_ot(a, b, cost, reg=0.1)
    assert result.success
    assert result.f.dtype == result.plan.dtype == np.dtype(returned)
    expected = solve_ot(a.astype(float), b.astype(float), C, reg=0.1)
    np.testing.assert_allclose(result.plan, expected.plan, rtol=0, atol=precision)
    assert DenseCost(cost).bounds == pytest.approx((C.min(), C.max()), rel=precision)


def test_big_endian_numbers_keep_their_precision():
    """As FITS and other files of sensors store them."""
    np.testing.assert_array_equal(solve(C=C.astype(">f8"), a=A.astype(">f8"), reg=0.1).plan, solve(reg=0.1).plan)


def test_half_precision_tensors_are_accepted(make_backend):
    torch = make_backend("torch")
    cost = torch.asarray(C, dtype="float16")
    result = solve_ot(None, None, cost, reg=0.1)
    assert result.success
    assert torch.dtype_name(result.plan) == "float32"


@pytest.mark.parametrize("method", NAMES)
def test_no_weights_are_uniform_weights(backend, method):
    cost = backend.asarray(C)
    uniform = {"a": np.full(N, 1 / N), "b": np.full(M, 1 / M)}
    reg = {} if method == "exact" else {"reg": 0.1}
    expected = solve_ot(backend.asarray(uniform["a"]), backend.asarray(uniform["b"]), cost, method=method, **reg)
    for a, b in ((None, None), (None, uniform["b"]), (uniform["a"], None)):
        native = [None if w is None else backend.asarray(w) for w in (a, b)]
        result = solve_ot(*native, cost, method=method, **reg)
        assert result.success
        np.testing.assert_allclose(backend.to_numpy(result.plan), backend.to_numpy(expected.plan), atol=1e-9)


def test_missing_weights_take_the_mass_of_the_others():
    for given in ({"a": 6.0 * A, "b": None}, {"a": None, "b": 6.0 * B}):
        result = solve(**given, reg=0.1)
        assert result.plan.sum() == pytest.approx(6.0)
        assert result.success


@pytest.mark.parametrize("wrap", [np.float32, np.asarray, np.float64])
def test_scalars_of_numpy_are_accepted(wrap):
    result = solve(reg=wrap(0.125), tol=wrap(2.0**-20), max_iter=np.int64(500))
    assert (result.success, result.reg) == (True, 0.125)


def test_scalars_of_every_library_are_accepted(backend):
    assert solve(reg=backend.asarray(0.125)).reg == 0.125


# Falling short


def failure(**changes):
    """Solve, and check that exactly one warning comes, of the right kind, with the message, and that it points here."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = solve(**changes)
    assert [warning.category for warning in caught] == [ConvergenceWarning]
    assert str(caught[0].message) == result.message
    assert caught[0].filename == __file__
    assert not result.success
    assert result.status is not Status.SUCCESS
    return result


def check_iterate(result, a=A, b=B, rel=1e-6):
    """The returned iterate is finite, and its error is that of the plan that it hands out."""
    plan = np.asarray(result.plan)
    assert np.all(np.isfinite(np.asarray(result.f)))
    assert np.all(np.isfinite(np.asarray(result.g)))
    assert np.all(np.isfinite(plan))
    assert np.all(plan >= 0)
    error = (np.abs(plan.sum(axis=1) - a).sum() + np.abs(plan.sum(axis=0) - b).sum()) / a.sum()
    assert result.marginal_error == pytest.approx(error, rel=rel, abs=1e-15)


HARD = {"reg": 2e-3}


@pytest.mark.parametrize("tol", [1e-19, 5e-324, 0.0])
@pytest.mark.parametrize("method", ITERATIVE)
def test_a_tolerance_below_rounding_stalls(method, tol):
    result = failure(tol=tol, method=method, reg=0.05)
    assert result.status is Status.STALLED
    assert "raise tol" in result.message
    assert f"{tol:.2g}" in result.message
    assert result.marginal_error < 1e-12
    check_iterate(result, rel=1.0)


@pytest.mark.parametrize("tol", [1e-19, 0.0])
def test_the_published_variant_stalls(tol):
    result = failure(tol=tol, method="sns", options={"variant": "paper"}, reg=0.05, max_iter=200)
    assert result.status is Status.STALLED
    check_iterate(result, rel=1.0)


@pytest.mark.parametrize("tol", [1e-19, 0.0])
@pytest.mark.parametrize("name", ["torch", "array_api_strict"])
def test_stalling_on_other_libraries(make_backend, name, tol):
    backend = make_backend(name)
    result = failure(**{key: backend.asarray(x) for key, x in arguments().items()}, tol=tol, reg=0.05)
    assert result.status is Status.STALLED
    assert result.marginal_error < 1e-12


@pytest.mark.parametrize("max_iter", [1, 2, 5, 9])
@pytest.mark.parametrize("method", ITERATIVE)
def test_the_iteration_limit(method, max_iter):
    result = failure(max_iter=max_iter, method=method, **HARD)
    assert (result.status, result.nit) == (Status.ITERATION_LIMIT, max_iter)
    assert f"max_iter = {max_iter}" in result.message
    assert all(len(values) == max_iter for values in result.history.values())
    check_iterate(result)


@pytest.mark.parametrize("max_iter", [1, 5])
@pytest.mark.parametrize("variant", ["robust", "paper"])
def test_the_iteration_limit_of_point_clouds_and_variants(variant, max_iter):
    result = failure(C=PointCloud(X, Y), max_iter=max_iter, method="sns", options={"variant": variant}, reg=1e-3)
    assert (result.status, result.nit) == (Status.ITERATION_LIMIT, max_iter)
    check_iterate(result)


def test_advice_does_not_name_the_method_in_use():
    for method in ("sns", "auto"):
        assert 'method="sns"' not in failure(max_iter=3, method=method, **HARD).message


@pytest.mark.parametrize("solver", ["network-simplex", "highs"])
def test_the_iteration_limit_of_linear_programming(solver):
    rng = np.random.default_rng(5)
    n = 60
    a = b = np.full(n, 1 / n)
    result = failure(a=a, b=b, C=rng.random((n, n)), method="exact", max_iter=1, options={"solver": solver})
    assert result.status is Status.ITERATION_LIMIT
    assert "max_iter" in result.message
    assert "numItermax" not in result.message
    check_iterate(result, a, b)


class Ticking:
    """A clock that gains a second whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 1.0
        return self.now


@pytest.mark.parametrize("limit", [0.0, 5.0, 20.0])
@pytest.mark.parametrize("method", ITERATIVE)
def test_the_time_limit(monkeypatch, method, limit):
    monkeypatch.setattr(monitor, "time", Ticking())
    result = failure(method=method, options={"time_limit": limit}, **HARD)
    assert result.status is Status.TIME_LIMIT
    assert f"time limit of {limit:g} s" in result.message
    assert 1 <= result.nit <= limit + 1
    assert result.history["seconds"][-1] <= limit + 5
    check_iterate(result)


def test_the_time_limit_of_the_published_variant(monkeypatch):
    monkeypatch.setattr(monitor, "time", Ticking())
    result = failure(method="sns", options={"variant": "paper", "time_limit": 5.0}, **HARD)
    assert result.status is Status.TIME_LIMIT
    check_iterate(result)


@pytest.mark.parametrize("raise_on_failure", [False, True])
@pytest.mark.parametrize("stop", [1, 4])
@pytest.mark.parametrize("method", ITERATIVE)
def test_a_stop_by_the_callback_is_silent(method, stop, raise_on_failure):
    seen = []

    def callback(intermediate_result):
        seen.append(intermediate_result)
        if len(seen) == stop:
            raise StopIteration

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = solve(method=method, callback=callback, raise_on_failure=raise_on_failure, **HARD)
    assert (result.success, result.status, result.nit) == (False, Status.CALLBACK_STOP, stop)
    assert "callback" in result.message
    assert [report.nit for report in seen] == list(range(1, stop + 1))
    assert isinstance(seen[-1], SimpleNamespace)
    assert seen[-1].f.shape == (N,)
    assert seen[-1].g.shape == (M,)
    assert [report.marginal_error for report in seen] == result.history["marginal_error"].tolist()
    assert [report.reg for report in seen] == result.history["reg"].tolist()
    check_iterate(result)


@pytest.mark.parametrize("method", ITERATIVE)
def test_errors_of_the_callback_are_the_users(method, capsys):
    def callback(intermediate_result):
        msg = f"mine, at {intermediate_result.nit}"
        raise ZeroDivisionError(msg)

    with pytest.raises(ZeroDivisionError, match="mine, at 1"):
        solve(method=method, callback=callback, progress=True, **HARD)
    assert capsys.readouterr().err.endswith("\n"), "the bar is closed"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"max_iter": 2}, Status.ITERATION_LIMIT),
        ({"options": {"time_limit": 0.0}}, Status.TIME_LIMIT),
        ({"tol": 1e-19, "method": "sns"}, Status.STALLED),
    ],
)
def test_raise_on_failure_raises_with_the_result(changes, status):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConvergenceError) as raised:
            solve(**HARD | changes, raise_on_failure=True)
    assert raised.value.result.status is status
    assert str(raised.value) == raised.value.result.message
    check_iterate(raised.value.result, rel=1.0 if status is Status.STALLED else 1e-6)


@pytest.mark.parametrize("method", NAMES)
def test_raise_on_failure_does_not_disturb_success(method):
    reg = {} if method == "exact" else {"reg": 0.1}
    result = solve(method=method, raise_on_failure=True, **reg)
    assert (result.success, result.status) == (True, Status.SUCCESS)
    check_iterate(result, rel=0.5)


@pytest.mark.parametrize("relaxation", [1.0, 1.5, 1.9, 1.99])
@pytest.mark.parametrize("max_iter", [3, 10, 40])
def test_sinkhorn_returns_its_best_iterate(relaxation, max_iter):
    """Over-relaxation from a far start may lead away; what comes back is no worse than what was seen, nor than the start."""
    result = failure(method="sinkhorn", options={"relaxation": relaxation}, max_iter=max_iter, reg=5e-3)
    assert result.marginal_error <= 1.01 * min(result.history["marginal_error"])
    check_iterate(result)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("variant", ["robust", "paper"])
def test_sns_returns_its_best_iterate(seed, variant):
    """Of those at the regularisation that was asked for."""
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        cost, settings = rng.random((12, 10)), {"options": {"variant": variant}, "max_iter": 150}
        result = solve_ot(rng.random(12), None, cost, reg=2e-3, method="sns", tol=1e-17, **settings)
    assert not result.success
    final = result.history["marginal_error"][np.isclose(result.history["reg"], 2e-3)]
    rounding = 10 * np.finfo(float).eps * (1 + 1 / 2e-3)
    assert result.marginal_error <= 3 * min(final) + rounding


def test_progress_goes_to_stderr_only_when_asked(capsys):
    solve(progress=True, **HARD)
    out, err = capsys.readouterr()
    assert (out, "solve_ot[auto]" in err, "marginal_error" in err) == ("", True, True)
    solve(**HARD)
    assert capsys.readouterr() == ("", "")


def test_success_is_silent():
    for method in NAMES:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert solve(method=method, **({} if method == "exact" else {"reg": 0.1})).success
