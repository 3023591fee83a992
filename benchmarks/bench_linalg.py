"""asv benchmarks of linear algebra: what conjugate gradients cost beside the products, and how many products they take."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from otbilevel.linalg import LinearResult, cg


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
