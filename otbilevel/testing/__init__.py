"""Problems with known answers, and stand-ins for CUDA, for our tests and benchmarks and for yours."""

from otbilevel.testing.cuda_emulator import EmulatedCUDAError, EmulatedKernel, EmulatedModule, thread_order
from otbilevel.testing.cupy_stand_in import count_waits, install_cupy_stand_in
from otbilevel.testing.nvrtc import CUDACompileError, KernelFigures, compile_cuda
from otbilevel.testing.ot_laws import check_ot_result
from otbilevel.testing.ot_problems import (
    FAMILIES,
    EntropicValue,
    TransportProblem,
    entropic_gaussian,
    gaussian_w2,
    wasserstein_1d,
)

__all__ = [
    "FAMILIES",
    "CUDACompileError",
    "EmulatedCUDAError",
    "EmulatedKernel",
    "EmulatedModule",
    "EntropicValue",
    "KernelFigures",
    "TransportProblem",
    "check_ot_result",
    "compile_cuda",
    "count_waits",
    "entropic_gaussian",
    "gaussian_w2",
    "install_cupy_stand_in",
    "thread_order",
    "wasserstein_1d",
]
