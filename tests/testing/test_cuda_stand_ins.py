"""The stand-ins for CUDA: that they refuse what a device refuses, and find what it would compute wrongly; see `test_cuda.py`."""

import importlib
import os

import numpy as np
import pytest

from otbilevel.testing import EmulatedCUDAError, EmulatedModule, install_cupy_stand_in, thread_order
from otbilevel.testing.cuda_emulator import kernel_names

SUM = """
extern "C" __global__ void __launch_bounds__(64, 2) row_sums(const REAL *matrix, int m, REAL scale, REAL *sums) {
  __shared__ REAL buffer[64];
  REAL sum = 0;
  for (int j = threadIdx.x; j < m; j += blockDim.x) sum += matrix[blockIdx.x * m + j];
  buffer[threadIdx.x] = sum;
  __syncthreads();
  for (int s = blockDim.x / 2; s > 0; s /= 2) {
    if (threadIdx.x < s) buffer[threadIdx.x] += buffer[threadIdx.x + s];
    __syncthreads();
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = scale * buffer[0];
}
"""
VOTES = """
extern "C" __global__ void votes(const int *x, unsigned *mask, int *shifted) {
  extern __shared__ int all[];
  const int i = threadIdx.x;
  all[blockDim.x - 1 - i] = x[i];
  __syncthreads();
  const unsigned vote = __ballot_sync(0xffffffffu, all[i] > 0);
  const int down = __shfl_down_sync(0xffffffffu, all[i], 1), up = __shfl_up_sync(0xffffffffu, all[i], 2);
  mask[i] = vote;
  shifted[i] = down + 100 * up + 10000 * __popc(vote);
}
"""
DOUBLE = ("-DREAL=double",)


pytestmark = pytest.mark.skipif(os.environ.get("OTBILEVEL_FAKE_CUPY") != "1", reason="for the process that `test_cuda.py` starts")


@pytest.fixture
def data(cupy):
    matrix = np.random.default_rng(0).random((4, 50))
    return matrix, cupy.asarray(matrix), cupy.zeros(4)


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("real", ["double", "float"])
def test_a_kernel_that_is_right(order, real, cupy):
    dtype = np.dtype({"double": "float64", "float": "float32"}[real]).type
    matrix = np.random.default_rng(0).random((4, 50)).astype(dtype)
    sums = cupy.zeros(4, dtype=dtype)
    kernel = cupy.RawKernel(SUM, "row_sums", options=("-std=c++17", f"-DREAL={real}"))
    assert [letters[-1] for letters in kernel.parameters] == [real[0], "i", real[0], real[0]]
    with thread_order(order):
        kernel((4,), (64,), (cupy.asarray(matrix), np.int32(50), dtype(2.0), sums))
    np.testing.assert_allclose(sums.get(), 2 * matrix.sum(1), rtol=1e-14 if real == "double" else 1e-6)


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_votes_shuffles_and_dynamic_shared_memory(order, cupy):
    x = np.random.default_rng(1).integers(-5, 6, 32).astype(np.int32)
    mask, shifted = cupy.zeros(32, dtype=np.uint32), cupy.zeros(32, dtype=np.int32)
    with thread_order(order):
        EmulatedModule(VOTES).get_function("votes")((1,), (32,), (cupy.asarray(x), mask, shifted), shared_mem=128)
    reverse = x[::-1].astype(int)
    vote = sum(1 << i for i in range(32) if reverse[i] > 0)
    np.testing.assert_array_equal(mask.get(), vote)
    down, up = np.append(reverse[1:], reverse[-1]), np.concatenate([reverse[:2], reverse[:-2]])
    np.testing.assert_array_equal(shifted.get(), down + 100 * up + 10000 * bin(vote).count("1"))


@pytest.mark.parametrize(
    ("right", "wrong", "what"),
    [
        ("__syncthreads();\n  for", "if (threadIdx.x < 3) __syncthreads();\n  for", "different barriers"),
        ("REAL sum = 0;", "REAL sum = 0; if (threadIdx.x % 2) return; __syncwarp();", "returned"),
        ("sums[blockIdx.x] =", "sums[blockIdx.x + 1] =", "outside of an array"),
        ("sums[blockIdx.x] =", "sums[(int)blockIdx.x - 1] =", "outside of an array"),
        ("REAL sum = 0;", "REAL sum = undeclared;", "g\\+\\+ refuses"),
    ],
)
def test_what_is_undefined_on_a_device_raises(right, wrong, what, data):
    _, matrix, sums = data
    assert right in SUM
    args = matrix, np.int32(50), np.float64(1.0), sums
    with pytest.raises(EmulatedCUDAError, match=what):
        EmulatedModule(SUM.replace(right, wrong), options=DOUBLE).get_function("row_sums")((4,), (64,), args)
    EmulatedModule(SUM, options=DOUBLE).get_function("row_sums")((4,), (64,), args)  # and it goes on


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("sum;\n  __syncthreads();", "sum;\n"),  # a barrier that is missing
        ("s];\n    __syncthreads();", "s];\n"),  # another one
        ("buffer[threadIdx.x] = sum;", "if (threadIdx.x < 50) buffer[threadIdx.x] = sum;"),  # shared memory that nobody wrote
        ("j < m;", "j <= m;"),  # beyond the end of the matrix
    ],
)
def test_wrong_kernels_show_in_one_order_of_threads(right, wrong, data):
    matrix, on_device, sums = data
    assert right in SUM
    kernel = EmulatedModule(SUM.replace(right, wrong), options=DOUBLE).get_function("row_sums")
    errors = []
    for order in ("ascending", "descending"):
        with thread_order(order):
            kernel((4,), (64,), (on_device, np.int32(50), np.float64(1.0), sums))
        errors.append(np.abs(sums.get() - matrix.sum(1)).max())
    assert not max(errors) < 1e-3


def test_arguments_must_be_of_the_type_of_the_parameter(data, cupy):
    _, matrix, sums = data
    kernel = EmulatedModule(SUM, options=DOUBLE).get_function("row_sums")
    good = matrix, np.int32(50), np.float64(1.0), sums
    for k, bad, what in (
        (0, matrix.astype(np.float32), "float64, got float32"),
        (0, matrix.T, "contiguous: False"),
        (0, np.ones((4, 50)), "got ndarray"),
        (1, 50, "np.int32, got int"),
        (1, np.int64(50), "np.int32, got int64"),
        (2, 1.0, "np.float64, got float"),
        (2, np.float32(1.0), "np.float64, got float32"),
    ):
        with pytest.raises(TypeError, match=what):
            kernel((4,), (64,), [*good[:k], bad, *good[k + 1 :]])
    with pytest.raises(TypeError, match="4 parameters, got 3"):
        kernel((4,), (64,), good[:3])
    with pytest.raises(EmulatedCUDAError, match="1024 threads"):
        kernel((4,), (2048,), good)
    with pytest.raises(EmulatedCUDAError, match="48 KiB"):
        kernel((4,), (64,), good, shared_mem=2**16)
    with pytest.raises(AttributeError, match="row_sums"):
        EmulatedModule(SUM, options=DOUBLE).get_function("row_sum")


def test_names_and_orders():
    assert kernel_names(SUM + VOTES) == ["row_sums", "votes"]
    with pytest.raises(ValueError, match="ascending"), thread_order("random"):
        pass


def test_arrays_refuse_what_device_arrays_refuse(cupy):
    x = cupy.ones((2, 3))
    for forbidden in (
        lambda: np.asarray(x),
        lambda: np.exp(x),
        lambda: np.sum(x),
        lambda: np.add.reduce(x),
        lambda: np.concatenate([x, x]),
        lambda: x + np.ones((2, 3)),
        lambda: np.ones((2, 3)) + x,
        lambda: cupy.exp(np.ones(3)),
        lambda: x.__setitem__(0, np.ones(3)),
        lambda: cupy.repeat(x, cupy.asarray([1, 2])),
        lambda: memoryview(x),
    ):
        with pytest.raises(TypeError):
            forbidden()
    with pytest.raises(AttributeError):
        cupy.vecdot(x, x)
    for allowed in (np.float64(2.0) * x, x * np.float64(2.0), 2 * x, x + x, cupy.asarray(np.full((2, 3), 2.0))):
        assert type(allowed) is cupy.ndarray
        np.testing.assert_array_equal(allowed.get(), 2.0)
    assert type(x.sum()) is cupy.ndarray and x.sum().shape == ()
    assert float(x.sum()) == 6.0


def test_the_stand_in_is_installed_once(cupy):
    assert install_cupy_stand_in() is cupy
    assert importlib.import_module("cupy.cuda").is_available()
