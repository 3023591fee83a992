"""asv benchmarks of linear algebra: conjugate gradients beside their products, and M-FAC beside the two products that it needs."""

from __future__ import annotations

import importlib
import time
from typing import Any

import numpy as np

from otbilevel.linalg import MFAC, LinearResult, cg


class Laplacian1D:
    """The matrix tridiag(-1, 2, -1) + shift I, whose condition number is about 4 / shift."""

    shift = 1e-3

    def __init__(self, size: int) -> None:
        self.shape = (size, size)

    def matvec(self, x: Any) -> Any:
        y = (2.0 + self.shift) * x
        y[1:] -= x[:-1]
        y[:-1] -= x[1:]
        return y


class ConjugateGradients:
    """`cg` on an operator whose products are cheap."""

    params = (("numpy", "torch"), (100, 10_000))
    param_names = ("backend", "size")

    def setup(self, backend: str, size: int) -> None:
        try:
            library = importlib.import_module(backend)
        except ImportError as error:
            raise NotImplementedError(backend) from error
        self.operator = Laplacian1D(size)
        self.b = library.asarray(np.random.default_rng(0).standard_normal(size))
        self.solve()

    def solve(self) -> LinearResult:
        return cg(self.operator, self.b, tol=1e-8)

    def time_cg(self, *_: Any) -> None:
        self.solve()

    def track_products(self, *_: Any) -> float:
        return self.solve().nit

    def track_residual(self, *_: Any) -> float:
        x = self.solve().x
        residual = self.b - self.operator.matvec(x)
        return float((residual @ residual) ** 0.5 / (self.b @ self.b) ** 0.5)

    track_products.unit = "products"
    track_residual.unit = "relative"


class EmpiricalFisher:
    """`MFAC`: products with the inverse, and new gradients, beside the two matrix-vector products that one cannot do without."""

    params = ((10_000, 1_000_000), (64, 256))
    param_names = ("d", "window")

    def setup(self, d: int, window: int) -> None:
        rng = np.random.default_rng(0)
        self.G = rng.standard_normal((window, d), dtype=np.float32)
        self.x = rng.standard_normal(d, dtype=np.float32)
        self.c = rng.standard_normal(window, dtype=np.float32)
        self.F = MFAC.from_gradients(self.G, 1e-3)
        self.F.solve(self.x)

    def time_solve(self, *_: Any) -> None:
        self.F.solve(self.x)

    def time_the_two_products(self, *_: Any) -> None:
        self.G @ self.x
        self.G.T @ self.c

    def time_add(self, *_: Any) -> None:
        self.F.add(self.x)

    def track_ratio(self, *_: Any) -> float:
        """Time of `solve` over that of the two products, turn by turn."""
        ratios = []
        for _ in range(7):
            times = []
            for function in (self.time_solve, self.time_the_two_products):
                start = time.perf_counter()
                function()
                times.append(time.perf_counter() - start)
            ratios.append(times[0] / times[1])
        return float(np.median(ratios))
