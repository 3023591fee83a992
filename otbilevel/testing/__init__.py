"""Problems with known answers, and stand-ins for CUDA, for our tests and benchmarks and for yours."""

from otbilevel.testing.bilevel_problems import BilevelExample, bilevel_examples
from otbilevel.testing.cuda_emulator import EmulatedCUDAError, EmulatedKernel, EmulatedModule, thread_order
from otbilevel.testing.cupy_stand_in import count_waits, install_cupy_stand_in
from otbilevel.testing.lower_gap import independent_lower_gap
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
from otbilevel.testing.random_bilevel import CoupledQP, random_coupled_qp

__all__ = [
    "FAMILIES",
    "BilevelExample",
    "CUDACompileError",
    "CoupledQP",
    "EmulatedCUDAError",
    "EmulatedKernel",
    "EmulatedModule",
    "EntropicValue",
    "KernelFigures",
    "TransportProblem",
    "bilevel_examples",
    "check_ot_result",
    "compile_cuda",
    "count_waits",
    "entropic_gaussian",
    "gaussian_w2",
    "independent_lower_gap",
    "install_cupy_stand_in",
    "random_coupled_qp",
    "thread_order",
    "wasserstein_1d",
]
