"""How long the CUDA kernels must take on a GPU that is not here: what they read, write and compute, and how many fit on it.

    python benchmarks/cuda_roofline.py

Nothing is measured. Registers, shared memory and the instructions of an exponential are the compiler's (NVRTC, for sm_90); bytes
and operations are counted by hand in the .cu files; peak rates are those of an H100 SXM. A real kernel reaches a part of that.
"""

from __future__ import annotations

import dataclasses
import functools
import re

from otbilevel.ot.kernels.cuda import device
from otbilevel.testing import KernelFigures, compile_cuda
from otbilevel.testing.nvrtc import intermediate_code, nvrtc_version

ARCHITECTURE = 90
MULTIPROCESSORS, CLOCK = 132, 1.755e9  # boost under load; the peak of 33.5 Tflop/s belongs to 1.98 GHz
BANDWIDTH = 3.35e12
"""Bytes a second of HBM3."""
DOUBLES = 64 * MULTIPROCESSORS * CLOCK
"""Double-precision instructions a second, a fused multiply-add being one."""
SPECIALS = 16 * MULTIPROCESSORS * CLOCK
"""Single-precision exponentials, and conversions between the precisions, a second."""
MEMORY = 75e9
"""Bytes that are left for the cost and the plan."""
REGISTERS, SHARED, THREADS, BLOCKS, WARPS = 65536, 228 * 1024, 2048, 32, 64
"""Limits of a multiprocessor."""


@dataclasses.dataclass(frozen=True)
class Pass:
    """A pass over n x n entries.

    Attributes
    ----------
    stored, read : float
        Bytes that an entry takes in memory, and that are read and written for it.
    doubles, specials, exponentials : float
        Instructions in double precision, exponentials and conversions in single precision, and exponentials in double precision.
    kernels : tuple
        File, kernel and threads of a block of what runs.
    """

    name: str
    stored: float
    read: float
    doubles: float
    specials: float
    exponentials: float
    kernels: tuple[tuple[str, str, int], ...]
    macros: tuple[tuple[str, object], ...] = ()


STRIP = (("THREADS", 512), ("ITEMS", 20), ("X", "double"))
DENSE = (("SOURCE", 0), ("X", "double"), ("Y", "double"))
POINTS = (("SOURCE", 1), ("X", "double"), ("Y", "double"))
SINGLE, DOUBLE, MIXED = (
    (("EXP", exp), ("PLAN", plan)) for exp, plan in (("float", "float"), ("double", "double"), ("double", "float"))
)
D = 3
"""Dimension of the points: an addition and a multiply-add a coordinate."""
TILES = (("sweeps", "row_softmin", 256), ("sweeps", "column_products", 256))
PASSES = (
    Pass("softmax_rows, dense, single, m <= 10240", 12, 12, 7, 4, 0, (("strips", "softmax_strip", 512),), STRIP + SINGLE),
    Pass("softmax_rows, dense, double, m <= 10240", 16, 16, 7, 0, 1, (("strips", "softmax_strip", 512),), STRIP + DOUBLE),
    Pass("softmax_rows, dense, single, longer rows", 12, 20, 13, 7, 0, TILES, DENSE + SINGLE),
    Pass("softmax_rows, dense, double, longer rows", 16, 24, 13, 0, 2, TILES, DENSE + DOUBLE),
    Pass("softmax_rows, 3-D points, nothing stored, single", 0, 0, 12 + 4 * D, 6, 0, TILES, POINTS + SINGLE),
    Pass("softmax_rows, 3-D points, nothing stored, double", 0, 0, 12 + 4 * D, 0, 2, TILES, POINTS + DOUBLE),
    Pass("scaling_pass, float32 plan, m <= 10240", 4, 4, 2, 1, 0, (("strips", "scaling_strip", 512),), STRIP + SINGLE),
    Pass("laplacian_product, float32 plan, m <= 10240", 4, 4, 2, 1, 0, (("strips", "laplacian_strip", 512),), STRIP + SINGLE),
    Pass("shift_pass, float32 plan, m <= 10240", 4, 4, 2, 1, 0, (("strips", "shift_strip", 512),), STRIP + SINGLE),
    Pass("scaling_pass, float64 plan, m <= 10240", 8, 8, 2, 0, 0, (("strips", "scaling_strip", 512),), STRIP + DOUBLE),
    Pass(
        "products, float32 plan, longer rows",
        4,
        8,
        2,
        2,
        0,
        (("products", "stored_rows", 256), ("products", "stored_columns", 256)),
        (("PLAN", "float"),),
    ),
    Pass("sharpen, float32 plan, m <= 10240", 4, 8, 2, 1, 0, (("strips", "sharpen_strip", 512),), STRIP + SINGLE),
    Pass(
        "plan_moments, float32 plan, m <= 10240",
        4,
        8,
        4,
        2,
        0,
        (("strips", "moments_strip", 512), ("products", "stored_squares", 256)),
        STRIP + SINGLE,
    ),
    Pass(
        "lazy_product, 3-D points",
        0,
        0,
        8 + 4 * D,
        6,
        0,
        (("sweeps", "row_products", 256), ("sweeps", "column_products", 256)),
        POINTS + SINGLE,
    ),
    Pass(
        "plan_sums, dense",
        8,
        16,
        11,
        0,
        2,
        (("sweeps", "row_sums", 256), ("sweeps", "column_products", 256)),
        DENSE + DOUBLE,
    ),
    Pass(
        "plan_sums, 3-D points",
        0,
        0,
        11 + 4 * D,
        0,
        2,
        (("sweeps", "row_sums", 256), ("sweeps", "column_products", 256)),
        POINTS + DOUBLE,
    ),
    Pass("plan_rows, dense", 16, 16, 4, 0, 1, (("sweeps", "plan_rows", 256),), DENSE + DOUBLE),
)


@functools.cache
def exponential() -> int:
    """Double-precision instructions of ``exp2(double)`` in the compiler's intermediate code."""
    code = 'extern "C" __global__ void f(double *x) { *x = exp2(*x); }'
    return len(re.findall(r"^\s*(?:fma|mul|add|sub|cvt)\S*\.f64", intermediate_code(code, ARCHITECTURE), re.MULTILINE))


@functools.cache
def figures(file: str, macros: tuple[tuple[str, object], ...]) -> dict[str, KernelFigures]:
    """The compiler's report for sm_90."""
    return compile_cuda(device.source(file), ARCHITECTURE, [f"-D{key}={value}" for key, value in macros])


def occupancy(found: KernelFigures, threads: int) -> float:
    """Share of a multiprocessor's 64 warps that can be resident."""
    warps = threads // 32
    by_registers = REGISTERS // (-(-found.registers * 32 // 256) * 256 * warps)
    by_memory = SHARED // (found.shared + 1024)
    return min(by_registers, by_memory, THREADS // threads, BLOCKS) * warps / WARPS


def bound(one: Pass) -> tuple[float, str]:
    """Seconds an entry, and what they go to."""
    times = {
        "memory": one.read / BANDWIDTH,
        "float64": (one.doubles + one.exponentials * exponential()) / DOUBLES,
        "special": one.specials / SPECIALS,
    }
    limit = max(times, key=lambda name: times[name])
    return times[limit], limit


def main() -> None:
    """Print the table."""
    print(f"sm_{ARCHITECTURE}, NVRTC {nvrtc_version()}, {exponential()} float64 instructions for an exponential\n")
    print("| pass | bytes | float64 | special | bound by | n = 10^4 | n = 10^5 | registers | shared | occupancy |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for one in PASSES:
        seconds, limit = bound(one)
        cells = [one.name, f"{one.read:g}", f"{one.doubles + one.exponentials * exponential():g}", f"{one.specials:g}", limit]
        for n in (1e4, 1e5):
            fits = one.stored * n * n <= MEMORY and not ("<=" in one.name and n > 10240)
            cells.append(f"{1e3 * seconds * n * n:.3g} ms" if fits else "-")
        found = [(figures(file, one.macros)[kernel], threads) for file, kernel, threads in one.kernels]
        cells.append(", ".join(str(figure.registers) for figure, _ in found))
        cells.append(", ".join(str(figure.shared) for figure, _ in found))
        cells.append(", ".join(f"{100 * occupancy(figure, threads):.0f} %" for figure, threads in found))
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
