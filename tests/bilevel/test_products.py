"""Products with second derivatives of the lower level: the same results by fewer gradients, and what is refused."""

import numpy as np
import pytest
from scipy.optimize import LinearConstraint

from otbilevel import ConvergenceWarning, minimize_bilevel

rng = np.random.default_rng(0)
A, C = rng.standard_normal((12, 8)), rng.standard_normal((6, 8))
b, d = rng.standard_normal(12), rng.standard_normal(6)


def ridge(**settings):
    """Ridge regression with a penalty for each of 8 weights, by their logarithms."""
    given = {
        "upper": lambda x, y: 0.5 * ((C @ y - d) @ (C @ y - d)) + 0.05 * (x @ x),
        "lower": lambda x, y: 0.5 * ((A @ y - b) @ (A @ y - b)) + 0.5 * np.sum(np.exp(x) * y**2),
        "x0": np.zeros(8),
        "y0": np.zeros(8),
        "jac_upper": lambda x, y: (0.1 * x, C.T @ (C @ y - d)),
        "jac_lower": lambda x, y: (np.exp(x) * y**2 / 2, A.T @ (A @ y - b) + np.exp(x) * y),
    }
    return minimize_bilevel(**{**given, **settings})


def yy(x, y, v):
    return A.T @ (A @ v) + np.exp(x) * v


def xy(x, y, v):
    return np.exp(x) * y * v


@pytest.mark.parametrize(
    ("products", "settings"),
    [
        ({"hvp_yy": yy, "hvp_xy": xy}, {"method": "aid-cg"}),
        ({"hvp_yy": yy}, {"method": "aid-cg"}),
        ({"hvp_xy": xy}, {"method": "aid-cg"}),
        ({"hvp_yy": yy}, {"options": {"n_starts": 1}}),
        ({"hvp_yy": yy}, {"options": {"n_starts": 1}, "constraints": LinearConstraint(np.ones((1, 16)), ub=1.0)}),
    ],
)
def test_the_same_by_fewer_gradients(products, settings):
    plain, found = ridge(**settings), ridge(**settings, **products, check=True)
    assert plain.success and found.success
    assert found.fun == pytest.approx(plain.fun, rel=1e-6)
    np.testing.assert_allclose(found.x, plain.x, atol=1e-4)
    if "hvp_yy" in products:  # the other product is needed once for each gradient of the upper level: few of many
        assert found.njev["lower"] < plain.njev["lower"]


def test_saddle_points_without_matrices():
    """min |x - y2|^2/2 + |y1 - 1|^2/2, y minimising |y1|^2/2 - x'y1 + 1'y2 with 1'(x + y1 + y2) = 0: x = -0.3."""
    n = 100
    given = (
        lambda x, y: 0.5 * np.sum((x - y[n:]) ** 2) + 0.5 * np.sum((y[:n] - 1) ** 2),
        lambda x, y: 0.5 * y[:n] @ y[:n] - x @ y[:n] + np.sum(y[n:]),
        np.full(n, 10.0),
        np.full(2 * n, 10.0),
    )
    settings = {
        "jac_upper": lambda x, y: (x - y[n:], np.concatenate([y[:n] - 1, y[n:] - x])),
        "jac_lower": lambda x, y: (-y[:n], np.concatenate([y[:n] - x, np.ones(n)])),
        "constraints": LinearConstraint(np.ones((1, 3 * n)), 0, 0),
    }
    plain = minimize_bilevel(*given, **settings)
    found = minimize_bilevel(*given, **settings, hvp_yy=lambda x, y, v: np.concatenate([v[:n], 0 * v[n:]]))
    assert plain.success and found.success
    np.testing.assert_allclose(found.x, -0.3, rtol=2e-6)
    assert found.njev["lower"] < 0.7 * plain.njev["lower"]
    assert plain.njev["lower"] < 1000


def test_tensors():
    torch = pytest.importorskip("torch")
    t = lambda v: torch.tensor(v, dtype=torch.float64)  # noqa: E731
    M, N, p, q = t(A), t(C), t(b), t(d)
    given = {
        "upper": lambda x, y: 0.5 * ((N @ y - q) @ (N @ y - q)) + 0.05 * (x @ x),
        "lower": lambda x, y: 0.5 * ((M @ y - p) @ (M @ y - p)) + 0.5 * torch.sum(torch.exp(x) * y**2),
        "x0": t(np.zeros(8)),
        "y0": t(np.zeros(8)),
        "jac_upper": None,
        "jac_lower": None,
    }
    products = {"hvp_yy": lambda x, y, v: M.T @ (M @ v) + torch.exp(x) * v, "hvp_xy": lambda x, y, v: torch.exp(x) * y * v}
    found = ridge(**given, **products, method="aid-cg", check=True)
    assert found.success and isinstance(found.x, torch.Tensor)
    np.testing.assert_allclose(found.x.numpy(), ridge(method="aid-cg").x, atol=2e-4)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"hvp_yy": 3.0}, TypeError, r"hvp_yy must be a function of \(x, y, v\), got float"),
        ({"hvp_yy": lambda x, y, v: v[:3], "method": "aid-cg"}, ValueError, r"hvp_yy must have shape \(8,\), got \(3,\)"),
        ({"hvp_xy": lambda x, y, v: np.eye(8), "method": "aid-cg"}, ValueError, r"hvp_xy must have shape \(8,\), got \(8, 8\)"),
        ({"hvp_yy": lambda x, y, v: yy(x, y, v) + v, "check": True}, ValueError, "hvp_yy disagrees .* unit vector . in y"),
        ({"hvp_yy": lambda x, y, v: v[:3], "check": True}, ValueError, "hvp_yy must have shape"),
        (
            {"hvp_yy": yy, "hvp_xy": lambda x, y, v: -v, "method": "aid-cg", "check": True},
            ValueError,
            r"hvp_xy disagrees .* in x\[.\] is -1, and differences give",
        ),
        ({"hvp_yy": yy, "method": "f2sa"}, ValueError, 'method="f2sa" does not use hvp_yy: leave it out'),
        ({"hvp_xy": xy, "method": "f2sa"}, ValueError, 'method="f2sa" does not use hvp_xy'),
        ({"hvp_xy": xy}, ValueError, 'method="lv-hba" does not use hvp_xy'),
        ({"hvp_yy": yy, "options": {"variant": "paper"}}, ValueError, 'with options={"variant": "paper"} does not use hvp_yy'),
    ],
)
def test_what_is_refused(settings, error, words):
    with pytest.raises(error, match=words):
        ridge(**settings)


def test_a_product_that_is_not_finite_ends_the_run():
    with pytest.warns(ConvergenceWarning, match="hvp_yy is not finite"):
        result = ridge(hvp_yy=lambda x, y, v: np.nan * v, method="aid-cg")
    assert not result.success
