"""Sparse costs together with all else: prices of marginals, constraints, gradients. The truth is the dense cost that forbids the
same pairs, and what makes no sense is refused by name."""

import importlib
import math

import numpy as np
import pytest
from scipy import sparse

from otbilevel import solve_ot
from otbilevel.ot import (
    KL,
    AtMost,
    PartialMass,
    TotalVariation,
)

INF = math.inf
ENTROPIC = ["sinkhorn", "sns", "auto"]
FIGURES = ("value", "value_linear", "dual_value")
PRICES = [
    pytest.param(0.3, id="kl"),
    pytest.param((KL(0.02), KL(5.0)), id="kl-uneven"),
    pytest.param((None, KL(0.3)), id="rows-fixed"),
    pytest.param((0.3, INF), id="columns-fixed"),
    pytest.param(TotalVariation(0.3), id="tv"),
    pytest.param((TotalVariation(0.2), KL(0.1)), id="tv-kl"),
    pytest.param((AtMost(0.3), AtMost(0.0)), id="at-most"),
    pytest.param((None, AtMost(0.05)), id="rows-fixed-at-most"),
    pytest.param((AtMost(0.05), None), id="columns-fixed-at-most"),
    pytest.param((TotalVariation(0.2), None), id="tv-fixed"),
    pytest.param(PartialMass(0.5), id="partial"),
]


def stored(C):
    """The finite entries, zeros included."""
    i, j = np.nonzero(np.isfinite(C))
    return sparse.csr_array((C[i, j], (i, j)), shape=C.shape)


def problem(n=17, m=13, seed=0, ratio=1.0, density=0.5):
    """Uneven weights that leave a plan, some of them zero, b of `ratio` times the mass of a; the dense cost, and the stored one."""
    rng = np.random.default_rng(seed)
    C = np.where(rng.random((n, m)) < density, rng.random((n, m)), INF)
    C[np.arange(max(n, m)) % n, np.arange(max(n, m)) % m] = rng.random(max(n, m))
    mass = np.where(np.isfinite(C), rng.random((n, m)) ** 2, 0.0)
    mass[2], mass[:, 4] = 0.0, 0.0
    mass /= mass.sum()
    return mass.sum(axis=1), ratio * mass.sum(axis=0), C, stored(C)


@pytest.fixture(params=[False, True], ids=["in-order", "reordered"])
def order(request, monkeypatch):
    """Points as they come, and in another order, as they are where vectors are long."""
    if request.param:
        monkeypatch.setattr(importlib.import_module("otbilevel.ot.sparse_cost"), "LONG", 1)


def agree(got, want, tol):
    assert got.success
    assert want.success
    np.testing.assert_allclose(got.plan, want.plan, atol=tol)
    for name in FIGURES:
        assert getattr(got, name) == pytest.approx(getattr(want, name), abs=10 * tol), name


# Prices


@pytest.mark.parametrize("prices", PRICES)
@pytest.mark.parametrize("method", ENTROPIC)
@pytest.mark.parametrize("reg", [0.5, 0.02])
def test_prices(method, prices, reg, order):
    a, b, C, pairs = problem(ratio=0.8 if prices == (AtMost(0.05), None) else 1.3)
    settings = {"reg": reg, "unbalanced": prices, "method": method, "max_iter": 200_000}
    got, want = (solve_ot(a, b, cost, **settings) for cost in (pairs, C))
    agree(got, want, 1e-8)
    if not isinstance(prices, PartialMass) and prices != (AtMost(0.3), AtMost(0.0)):  # a constant may move between f and g
        np.testing.assert_allclose(got.f, want.f, atol=1e-6)
        np.testing.assert_allclose(got.g, want.g, atol=1e-6)
    assert 0 <= got.gap <= 1e-7
    assert got.gap_exact == pytest.approx(want.gap_exact, abs=1e-7)
