"""How far the compiled kernels are from what the machine can do: nanoseconds per entry against memory and exponentials.

    python benchmarks/roofline.py                       # one thread; the table of docs/roofline.md
    python benchmarks/roofline.py --threads 2 --sizes 2000 5000

Bytes count what a kernel must read and write once (no write-allocate), flops count a fused multiply-add as two. The bound
of a kernel is the longer of two times: its bytes at the bandwidth of a copy of a float64 matrix of the same size, which is
that of the cache or memory where such matrices live, and its exponentials at the rate that they reach in the first-level
cache. Figures of an active set, a random twenty-fifth of the pairs, are per pair kept.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

SIZES = (500, 1000, 2000, 5000)
SECONDS = 0.4
"""Time to spend on each figure; the best repetition counts."""
COPY_BYTES = 16
REG = 0.02
SHARE = 0.04
"""Of the pairs in an active set."""


@dataclass(frozen=True)
class Kernel:
    """What one of its `entries` costs, by default n^2. `exponential` is the dtype of the one that it takes, if any."""

    name: str
    run: Callable[[], object]
    bytes: int
    flops: int
    exponential: type | None = None
    entries: int | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N")
    arguments = parser.parse_args()
    os.environ["OTBILEVEL_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # before the kernels are imported
    exponentials = {dtype: exponential_time(dtype) for dtype in (np.float32, np.float64)}
    for dtype, seconds in exponentials.items():
        print(f"exponential in {np.dtype(dtype).name}, in the first-level cache, one thread: {1e9 * seconds:.2f} ns")
    print(
        "\n| n | kernel | bytes | flops | ns per entry | bound | reached | GB/s | Gflop/s |\n|---|---|---|---|---|---|---|---|---|"
    )
    for n in arguments.sizes:
        for line in measure(n, exponentials, arguments.threads):
            print(line, flush=True)


def measure(n: int, exponentials: dict[type, float], threads: int) -> list[str]:
    """The lines of one size."""
    source = np.random.default_rng(0).random((n, n))
    target = np.empty_like(source)
    copy = best(partial(np.copyto, target, source)) / n**2
    lines = [line(n, "copy of a float64 matrix", COPY_BYTES, 0, copy, copy)]
    for kernel in kernels(n, source):
        exponential = exponentials[kernel.exponential] / threads if kernel.exponential else 0.0
        bound = max(copy * kernel.bytes / COPY_BYTES, exponential)
        lines.append(line(n, kernel.name, kernel.bytes, kernel.flops, best(kernel.run) / (kernel.entries or n**2), bound))
    return lines


def line(n: int, name: str, size: int, flops: int, seconds: float, bound: float) -> str:
    ns = 1e9 * seconds
    return (
        f"| {n} | {name} | {size} | {flops} | {ns:.3f} | {1e9 * bound:.3f} | {100 * bound / seconds:.0f} % "
        f"| {size / ns:.0f} | {flops / ns:.0f} |"
    )


def kernels(n: int, cost: np.ndarray) -> list[Kernel]:
    """Every kernel of a dense cost in float64 and of a plan stored in float32, on `cost` as the solver hands it over.

    Those of the plan also on an active set.
    """
    from otbilevel._core.array import readonly  # noqa: PLC0415 -- only now are the threads settled
    from otbilevel.ot.kernels import cpu  # noqa: PLC0415

    cost = readonly(cost)
    a, x, ones = np.full(n, 1.0 / n), np.linspace(0.0, 0.1, n), np.ones(n)
    plan = cpu.new_plan((n, n), a, single=True)
    sweep = partial(cpu.softmax_rows, cost, x, REG, a, plan=plan, relaxation=1.0)
    f = sweep(f=None, single=False)[0]
    few = np.where(cost < SHARE, 1.0 / n, 0.0).astype(np.float32)
    pattern = cpu.active_set(cost, few, ones, ones, 0.0, np.inf)
    sparse, kept = cpu.sparse_kernels, len(pattern.values)
    active = sparse.softmax_rows(pattern, x, REG, a, None, None, single=True, relaxation=1.0)[1]
    even = np.full((n, n), 1.0 / n, np.float32)  # squared and normalised it is itself again
    return [
        Kernel("`extremes`", partial(cpu.extremes, cost), 8, 3),
        Kernel("`softmax_rows`, single", partial(sweep, f=f, single=True), 12, 25, np.float32),
        Kernel("`softmax_rows`, double", partial(sweep, f=f, single=False), 12, 33, np.float64),
        Kernel("`scaling_pass`", partial(cpu.scaling_pass, plan, a, ones, ones, 1.0, ones, 1.0), 4, 4),
        Kernel("`shift_pass`", partial(cpu.shift_pass, plan, a, x), 4, 4),
        Kernel("`sharpen`", partial(cpu.sharpen, even, a, ones, 2), 8, 8),
        Kernel("`active_set`, too many", partial(cpu.active_set, cost, plan, ones, ones, 0.0, 0.0), 4, 2),
        Kernel("`active_set`, found", partial(cpu.active_set, cost, few, ones, ones, 0.0, np.inf), 8, 4),
        Kernel("`laplacian_product`", partial(cpu.laplacian_product, plan, a, x), 4, 4),
        Kernel("`plan_moments`", partial(cpu.plan_moments, plan, a, ones), 4, 8),
        Kernel("`plan_sums`", partial(cpu.plan_sums, cost, f, x, REG, a), 8, 35, np.float64),
        Kernel("`plan_rows`", partial(cpu.plan_rows, cost, f, x, REG, a, 0, n), 16, 30, np.float64),
        Kernel(
            "active: `softmax_rows`",
            partial(sparse.softmax_rows, pattern, x, REG, a, None, active, single=True, relaxation=1.0),
            16,
            33,
            np.float64,
            kept,
        ),
        Kernel("active: `laplacian_product`", partial(sparse.laplacian_product, active, a, x), 8, 4, entries=kept),
        Kernel("active: `plan_moments`", partial(sparse.plan_moments, active, a, ones), 8, 8, entries=kept),
    ]


def exponential_time(dtype: type) -> float:
    """Seconds for one exponential on data that stay in the first-level cache."""
    from numba import njit  # noqa: PLC0415 -- as above

    from otbilevel.ot.kernels.cpu.exp import SUMS, exp2  # noqa: PLC0415

    @njit(fastmath=SUMS)
    def repeat(times, x, out):
        total = x.dtype.type(0)
        for _ in range(times):
            for j in range(len(x)):
                out[j] = exp2(x[j])
                total += out[j]
        return total

    times, x = 1000, np.linspace(-20.0, 0.0, 1024).astype(dtype)
    return best(partial(repeat, times, x, np.empty_like(x))) / (times * len(x))


def best(run: Callable[[], object]) -> float:
    """Seconds of the fastest call, after one that compiles."""
    run()
    fastest, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


if __name__ == "__main__":
    main()
