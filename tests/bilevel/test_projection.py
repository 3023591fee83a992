"""Projections: against SciPy's SLSQP, and by the inequality that characterises a nearest point."""

import numpy as np
import pytest
from scipy.optimize import minimize

from otbilevel.bilevel import projection as sets
from otbilevel.bilevel.projection import ConvexSet

RNG = np.random.default_rng(0)
N = 6
A, B = RNG.standard_normal((4, N)), RNG.uniform(0.1, 1.0, 4)
LOW = np.arange(1.0, N + 1)
AXES = np.array([[1.0, 3.0, 0.5, 10.0, 2.0, 1.0], [4.0, 0.1, 1.0, 1.0, 5.0, 20.0]])


def ellipsoids(w):
    return np.append((AXES @ w**2 - 1.0) / 5, w.sum() - 0.3)


def ellipsoid_rows(w):
    return np.vstack([0.4 * AXES * w, np.ones(N)])


SETS = {
    "box": (sets.Box(-0.3, 0.5), [{"type": "ineq", "fun": lambda w: np.concatenate([w + 0.3, 0.5 - w])}]),
    "box of vectors": (
        sets.Box(-np.arange(1.0, N + 1), 0.2),
        [{"type": "ineq", "fun": lambda w: np.concatenate([w + np.arange(1.0, N + 1), 0.2 - w])}],
    ),
    "ball": (sets.Ball(0.7, 0.1), [{"type": "ineq", "fun": lambda w: 0.49 - np.sum((w - 0.1) ** 2)}]),
    "half-space": (sets.HalfSpace(A[0], 0.3), [{"type": "ineq", "fun": lambda w: 0.3 - A[0] @ w}]),
    "simplex": (sets.Simplex(2.0), [{"type": "ineq", "fun": lambda w: w}, {"type": "eq", "fun": lambda w: np.sum(w) - 2.0}]),
    "affine": (sets.Affine(A[:3], B[:3]), [{"type": "eq", "fun": lambda w: A[:3] @ w - B[:3]}]),
    "polyhedron": (sets.Polyhedron(A, B), [{"type": "ineq", "fun": lambda w: B - A @ w}]),
    "polyhedron with an equation": (
        sets.Polyhedron(A, B, [True, False, False, False]),
        [{"type": "ineq", "fun": lambda w: B[1:] - A[1:] @ w}, {"type": "eq", "fun": lambda w: A[0] @ w - B[0]}],
    ),
    "product": (
        sets.Product([(2, sets.Ball(0.5)), (4, sets.Simplex())]),
        [
            {"type": "ineq", "fun": lambda w: 0.25 - w[:2] @ w[:2]},
            {"type": "ineq", "fun": lambda w: w[2:]},
            {"type": "eq", "fun": lambda w: np.sum(w[2:]) - 1.0},
        ],
    ),
    "ellipsoids and an equation": (
        ConvexSet(lambda w: (ellipsoids(w), lambda lam: ellipsoid_rows(w).T @ lam), np.array([False, False, True]), -0.5, 0.9),
        [
            {"type": "ineq", "fun": lambda w: -ellipsoids(w)[:2], "jac": lambda w: -ellipsoid_rows(w)[:2]},
            {"type": "ineq", "fun": lambda w: np.concatenate([w + 0.5, 0.9 - w])},
            {"type": "eq", "fun": lambda w: ellipsoids(w)[2:], "jac": lambda w: ellipsoid_rows(w)[2:]},
        ],
    ),
    "margins": (sets.Margins(A[:, :2]), [{"type": "ineq", "fun": lambda w: w[2:] - 1.0 + A[:, :2] @ w[:2]}]),
}


def nearest(w, start, constraints):
    settings = {"method": "SLSQP", "constraints": constraints, "options": {"ftol": 1e-15}}
    return minimize(lambda v: 0.5 * (v - w) @ (v - w), start, jac=lambda v: v - w, **settings).x


@pytest.mark.parametrize("name", SETS)
def test_nearest_points(name):
    project, constraints = SETS[name]
    for _ in range(20):
        w = 2.0 * RNG.standard_normal(N)
        found = project(w)
        reference = nearest(w, found, constraints)
        np.testing.assert_allclose(found, reference, atol=2e-5)
        for c in constraints:
            values = np.atleast_1d(c["fun"](found))
            assert np.abs(values).max() < 1e-9 if c["type"] == "eq" else values.min() > -1e-9
        for _ in range(20):  # (w - Pw)'(v - Pw) <= 0 for all v of the set
            v = project(3.0 * RNG.standard_normal(N))
            assert (w - found) @ (v - found) < 1e-8
        np.testing.assert_allclose(project(found), found, atol=1e-9)


@pytest.mark.parametrize("name", ["box", "box of vectors", "ball", "simplex", "affine", "product"])
def test_closed_forms_on_every_library(backend, name):
    project = SETS[name][0]
    w = 2.0 * RNG.standard_normal(N)
    np.testing.assert_allclose(backend.to_numpy(project(backend.asarray(w))), project(w), atol=1e-12)


def test_a_path_of_projections_on_a_polyhedron():
    """Points that move a little: the active rows of the last one mostly are the right ones, and never decide the answer."""
    rows, right = RNG.standard_normal((60, 20)), RNG.uniform(0.5, 1.0, 60)
    project, fresh = sets.Polyhedron(rows, right), None
    w = 3.0 * RNG.standard_normal(20)
    for _ in range(50):
        w = w + 0.05 * RNG.standard_normal(20)
        fresh = sets.Polyhedron(rows, right)
        np.testing.assert_allclose(project(w), fresh(w), atol=1e-9)


def test_many_margins():
    rows = RNG.standard_normal((500, 9)) * np.sign(RNG.standard_normal(500))[:, None]
    w = RNG.standard_normal(509)
    found = sets.Margins(rows)(w)
    v, xi = found[:9], found[9:]
    lam = xi - w[9:]  # multipliers of the margins
    assert lam.min() >= 0 and np.abs(lam * (xi - 1.0 + rows @ v)).max() < 1e-9
    np.testing.assert_allclose(v - w[:9], rows.T @ lam, atol=1e-9)


@pytest.mark.parametrize("box", [np.inf, 0.3])
def test_a_large_convex_set_on_every_library(backend, box):
    """Ellipsoids with axes of very different length: the conditions that make a point the nearest one."""
    n, rng = 400, np.random.default_rng(1)
    axes = np.exp(rng.uniform(0.0, np.log(1000.0), (2, n)))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    matrix, w = backend.asarray(axes), 3.0 * rng.standard_normal(n)

    def linearise(v):
        return matrix @ (v * v) / 2 - 0.1, lambda lam: (lam @ matrix) * v

    project = ConvexSet(linearise, low=-box, high=box)
    found = backend.to_numpy(project(backend.asarray(w)))
    values = axes @ found**2 / 2 - 0.1
    inside = np.abs(found) < box
    lam, *_ = np.linalg.lstsq((axes * found)[:, inside].T, (w - found)[inside])
    assert values.max() < 1e-9 and np.abs(found).max() <= box and inside.any()
    assert lam.min() >= 0 and np.abs(lam * values).max() < 1e-9 * lam.max()
    normal = w - found - lam @ (axes * found)
    assert np.abs(normal[inside]).max() < 1e-7 and np.min((normal * found)[~inside], initial=0.0) > -1e-7


def test_what_is_refused():
    with pytest.raises(ValueError, match="contradict each other"):
        sets.Affine([[1.0, 0.0], [2.0, 0.0]], [1.0, 3.0])
    with pytest.raises(ValueError, match="the polyhedron is empty"):
        sets.Polyhedron([[1.0], [-1.0]], [0.0, -1.0])(np.array([3.0]))
    with pytest.raises(ValueError, match="must have as many rows"):
        sets.Polyhedron(np.ones((2, 3)), [1.0])
    with pytest.raises(ValueError, match="no point of the set was found, rows are violated by 1: it is empty"):
        ConvexSet(lambda w: (np.array([w @ w + 1.0]), lambda lam: 2 * lam[0] * w))(np.ones(3))
    with pytest.raises(ValueError, match="tol"):
        ConvexSet(lambda w: (w, lambda lam: lam), tol=0.0)
    with pytest.raises(ValueError, match="radius"):
        sets.Ball(0.0)
    with pytest.raises(ValueError, match="the vector has 3"):
        sets.Product([(2, sets.Box(0.0))])(np.ones(3))
