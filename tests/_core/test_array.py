"""The seam to the array libraries: what is accepted, what it becomes, and what is refused with which words."""

from __future__ import annotations

import sys

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import sparse

from otbilevel._core import array

REALS = ["float16", "float32", "float64", "longdouble", "int8", "int64", "uint8", "uint32", "bool", ">f4", ">f8", ">i4", ">f2"]


def kept_dtype(dtype: np.dtype) -> str:
    """What NumPy data become: their own floating dtype when it is single or double precision, else the nearest of the two."""
    if dtype.kind in "iub":
        return "float64"
    return "float64" if dtype.itemsize >= 8 else "float32"


@pytest.mark.parametrize("name", ["float64", "float32"])
def test_arrays_of_single_and_double_precision_pass_as_they_are(device_backend, name):
    x = device_backend.asarray([[1.5, -2.0], [0.0, 3.0]], dtype=name)
    assert array.as_array(x, "x") is x


@pytest.mark.parametrize("name", ["int32", "int64", "bool", "uint8"])
def test_integers_become_the_default_float(device_backend, name):
    x = device_backend.asarray([0, 1, 1], dtype=name)
    converted = array.as_array(x, "x")
    default = "float32" if device_backend.library == "torch" else "float64"
    assert device_backend.dtype_name(converted) == default
    assert device_backend.to_numpy(converted).tolist() == [0.0, 1.0, 1.0]
    assert device_backend.dtype_name(x) == name


@hypothesis.given(
    data=st.data(), name=st.sampled_from(REALS), shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
)
def test_real_numbers_keep_their_value_and_precision(data, name, shape):
    dtype = np.dtype(name)
    native = dtype.newbyteorder("=")
    numbers = hnp.from_dtype(np.dtype("float64") if dtype.kind == "f" and dtype.itemsize > 8 else native)
    x = data.draw(hnp.arrays(native if dtype.itemsize <= 8 else np.dtype("float64"), shape, elements=numbers)).astype(dtype)
    before = x.tobytes()
    converted = array.as_array(x, "x")
    assert type(converted) is np.ndarray
    assert converted.dtype == np.dtype(kept_dtype(dtype))
    np.testing.assert_array_equal(converted, x.astype(np.float64))
    assert x.tobytes() == before


def test_torch_half_precisions_become_single(make_backend):
    torch = make_backend("torch").xp
    for name in ("float16", "bfloat16"):
        converted = array.as_array(torch.tensor([0.5, 2.0], dtype=getattr(torch, name)), "x")
        assert converted.dtype == torch.float32
        assert converted.tolist() == [0.5, 2.0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([1, 2, 3], [1.0, 2.0, 3.0]),
        ((0.5, True), [0.5, 1.0]),
        ([[1, 2], [3, 4.5]], [[1.0, 2.0], [3.0, 4.5]]),
        (range(3), [0.0, 1.0, 2.0]),
        (2.5, 2.5),
        (np.float32(2.5), 2.5),
        ([np.array([1, 2]), np.array([3, 4])], [[1.0, 2.0], [3.0, 4.0]]),
        ([], []),
        (memoryview(b"\x01\x02"), [1.0, 2.0]),
    ],
)
def test_lists_become_numpy(given, expected):
    converted = array.as_array(given, "x")
    assert type(converted) is np.ndarray
    assert converted.dtype == (np.float32 if isinstance(given, np.float32) else np.float64)
    assert converted.tolist() == expected


def test_subclasses_of_ndarray_become_plain():
    with pytest.warns(PendingDeprecationWarning):
        given = np.matrix([[1.0, 2.0]])
    assert type(array.as_array(given, "x")) is np.ndarray


@pytest.mark.parametrize(
    ("given", "found"),
    [
        pytest.param("abc", "<U3", id="string"),
        pytest.param(["0.1", "0.9"], "<U3", id="strings"),
        pytest.param(b"abc", "|S3", id="bytes"),
        pytest.param(None, "object", id="None"),
        pytest.param([1.0, None], "object", id="None-inside"),
        pytest.param({"a": 1}, "object", id="dict"),
        pytest.param({1.0, 2.0}, "object", id="set"),
        pytest.param((x for x in (1.0, 2.0)), "object", id="generator"),
        pytest.param(np.array([1, 2], dtype=object), "object", id="object-array"),
        pytest.param([1j, 2.0], "complex128", id="complex"),
        pytest.param(np.ones(2, np.complex64), "complex64", id="complex64"),
        pytest.param(np.array(["2020-01-01"], "M8[D]"), "datetime64", id="dates"),
        pytest.param(np.zeros(2, [("x", "f8")]), "[('x', '<f8')]", id="records"),
        pytest.param([[1.0, 2.0], [3.0]], "inhomogeneous", id="ragged"),
        pytest.param(np.ma.masked_array([1.0, 2.0], [True, False]), "masked array", id="masked"),
        pytest.param(sparse.csr_array(np.eye(2)), "sparse", id="sparse-array"),
        pytest.param(sparse.coo_matrix(np.eye(2)), "sparse", id="sparse-matrix"),
    ],
)
def test_what_is_no_array_of_real_numbers_is_refused(given, found):
    with pytest.raises(TypeError) as refused:
        array.as_array(given, "weights")
    assert "weights" in str(refused.value)
    assert found in str(refused.value)


def test_complex_arrays_of_every_library_are_refused(device_backend):
    with pytest.raises(TypeError, match=r"^cost must hold real numbers, got dtype .*complex128"):
        array.as_array(device_backend.asarray([1j, 2.0], dtype="complex128"), "cost")


def test_tensors_that_require_gradients_are_refused(make_backend):
    torch = make_backend("torch").xp
    x = torch.ones(3, requires_grad=True)
    for recorded in (x, 2 * x, [x[0], x[1]], torch.nn.Parameter(torch.ones(2))):
        with pytest.raises(TypeError, match=r"^theta .*grad"):
            array.as_array(recorded, "theta")
    with pytest.raises(TypeError, match=r"pass theta\.detach\(\), or take what otbilevel\.pytorch has"):
        array.as_array(x, "theta")
    assert array.as_array(x.detach(), "theta").tolist() == [1.0] * 3
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    assert array.as_array(frozen, "theta") is frozen


def test_sparse_tensors_are_refused(make_backend):
    torch = make_backend("torch").xp
    with pytest.raises(TypeError, match=r"^cost .*sparse"):
        array.as_array(torch.eye(3).to_sparse(), "cost")


def test_one_library_has_one_namespace(device_backend):
    x, y = device_backend.asarray([1.0]), device_backend.asarray([[2.0]], dtype="float32")
    xp = array.common_namespace({"x": x, "y": y})
    assert device_backend.owns(xp.zeros_like(x))
    assert array.library_name(x) == device_backend.library
    assert array.is_numpy_namespace(xp) == (device_backend.library == "numpy")
    default = "float32" if device_backend.library == "torch" else "float64"
    assert xp.ones(2, dtype=array.default_float(xp)).dtype == device_backend.asarray([1.0], dtype=default).dtype


@pytest.mark.parametrize(
    ("one", "other"), [("numpy", "torch"), ("torch", "array_api_strict"), ("array_api_strict-device1", "numpy")]
)
def test_mixed_libraries_are_refused_by_name(make_backend, one, other):
    one, other = make_backend(one), make_backend(other)
    with pytest.raises(TypeError) as refused:
        array.common_namespace({"first": one.asarray([1.0]), "second": other.asarray([1.0])})
    message = str(refused.value)
    assert f"first: {one.library}" in message
    assert f"second: {other.library}" in message
    assert "convert" in message


def test_mixed_devices_are_refused_by_name(make_backend):
    host, other = make_backend("array_api_strict"), make_backend("array_api_strict-device1")
    with pytest.raises(TypeError, match=r"first: .*CPU_DEVICE.*second: .*device1.*move"):
        array.common_namespace({"first": host.asarray([1.0]), "second": other.asarray([1.0])})


def test_to_numpy_gives_the_numbers_of_host_arrays(backend, dtype):
    x = backend.asarray([[1.5, -2.0], [0.25, 3.0]], dtype=dtype)
    converted = array.to_numpy(x)
    assert type(converted) is np.ndarray
    assert converted.dtype == dtype
    assert converted.tolist() == [[1.5, -2.0], [0.25, 3.0]]
    assert (converted is x) == (backend.library == "numpy")


def test_to_numpy_refuses_to_transfer(make_backend):
    with pytest.raises(TypeError, match=r"host memory.*device1"):
        array.to_numpy(make_backend("array_api_strict-device1").asarray([1.0]))


@pytest.mark.parametrize("order", ["C", "F"])
def test_readonly_views_share_memory_where_they_can(order):
    x = np.arange(12.0).reshape(3, 4, order=order)
    view = array.readonly(x)
    np.testing.assert_array_equal(view, x)
    assert view.flags.c_contiguous
    assert np.shares_memory(view, x) == (order == "C")
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 7.0
    x[0, 0] = 7.0  # the caller's array is as writeable as it was


def test_readonly_takes_what_is_read_only():
    x = np.arange(3.0)
    x.flags.writeable = False
    assert np.shares_memory(array.readonly(x), x)


def test_nothing_here_loads_torch_by_itself():
    """Recognising a tensor must not import its library."""
    before = "torch" in sys.modules
    array.as_array([1.0], "x")
    assert ("torch" in sys.modules) == before


def test_clamping_is_clipping(device_backend):
    values = np.array([-2.0, -0.5, 0.0, 3.0, np.inf, -np.inf, np.nan])
    for low, high in ((-1.0, 1.0), (-np.inf, 2.0), (0.0, np.inf), (-np.inf, np.inf)):
        given = device_backend.asarray(values)
        np.testing.assert_array_equal(device_backend.to_numpy(array.clamp(given, low, high)), np.clip(values, low, high))
        np.testing.assert_array_equal(device_backend.to_numpy(given), values)


def test_what_is_in_host_memory(make_backend):
    for name, expected in (("numpy", True), ("torch", True), ("array_api_strict", True), ("array_api_strict-device1", False)):
        assert array.in_host_memory(make_backend(name).asarray(np.ones(3))) is expected
