"""asv benchmarks of curvature: products of models, and how many of them what stands on them takes."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from otbilevel.curvature import eigsh, ihvp, spectral_density
from otbilevel.pytorch import from_torch, hypergradient


class Products:
    """Products of a small convolutional network, with graphs kept and without."""

    params = (("hessian", "ggn", "empirical_fisher"), (2**30, 0))
    param_names = ("kind", "memory")

    def setup(self, kind, memory):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 49, 10))
        self.data = [(torch.randn(64, 1, 14, 14), torch.randint(0, 10, (64,)))]
        self.op = from_torch(self.model, nn.CrossEntropyLoss(), data=self.data, kind=kind, memory=memory)
        self.v = torch.randn(self.op.shape[0])
        self.op @ self.v

    def time_product(self, *_):
        self.op @ self.v

    def time_making(self, kind, memory):
        from_torch(self.model, nn.CrossEntropyLoss(), data=self.data, kind=kind, memory=memory)

    def peakmem_product(self, *_):
        self.op @ self.v

    def track_error(self, kind, *_):
        """Of a product, relative, against double precision."""
        data = [(x.double(), y) for x, y in self.data]
        exact = from_torch(self.model.double(), nn.CrossEntropyLoss(), data=data, kind=kind, memory=0) @ self.v.double()
        return float(torch.linalg.vector_norm((self.op @ self.v) - exact) / torch.linalg.vector_norm(exact))


class Spectrum:
    """A diagonal matrix with the spectrum of a network: a bulk next to zero and ten outliers."""

    def setup(self):
        rng = np.random.default_rng(0)
        self.values = np.concatenate([np.linspace(1.0, 20.0, 10), 0.05 * rng.standard_normal(9_990)])
        self.H = np.diag(self.values[:1000])
        self.b = rng.standard_normal(1000)

    def time_density(self):
        spectral_density(self.H, n_probes=4, steps=40, rng=0)

    def time_eigsh(self):
        eigsh(self.H, 10)

    def track_products_of_eigsh(self):
        return eigsh(self.H, 10).nmatvec

    def track_products_of_minres(self):
        return ihvp(self.H, self.b, damping=1.0).nit


class Hypergradient:
    """Of the weights of 500 samples, through a linear model."""

    def setup(self):
        torch.manual_seed(0)
        self.model, x, y = nn.Linear(50, 10), torch.randn(500, 50), torch.randint(0, 10, (500,))
        self.weights = torch.zeros(500, requires_grad=True)
        each = nn.CrossEntropyLoss(reduction="none")
        self.inner = lambda: (torch.sigmoid(self.weights) * each(self.model(x), y)).mean() + 0.1 * torch.sum(self.model.weight**2)
        self.outer = lambda: each(self.model(x[:50]), y[:50]).mean()

    def time_hypergradient(self):
        hypergradient(self.outer, self.inner, [self.weights], self.model.parameters(), damping=0.1, tol=1e-4)
