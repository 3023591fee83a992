"""Derivatives against central differences of the solver, in every argument."""

import numpy as np
import pytest

from otbilevel import PointCloud, solve_ot
from otbilevel.ot import hvp, jvp, vjp

REG = 0.3
COSTS = PointCloud.COSTS


class Case:
    """A problem with a function from its data to its result; weights are first scaled to their mean mass."""

    def __init__(self, cost, *, n=6, m=5, d=3, mass=1.7, method="auto", zeros=False, reg=REG):
        rng = np.random.default_rng(3)
        a, b = rng.uniform(0.5, 1.5, n), rng.uniform(0.5, 1.5, m)
        if zeros:
            a[[1, 4]], b[2] = 0.0, 0.0
        self.data = {"a": a * mass / a.sum(), "b": b * mass / b.sum()}
        x, y = rng.standard_normal((n, d)), rng.standard_normal((m, d))
        self.data |= {"C": PointCloud(x, y).to_dense().matrix} if cost == "dense" else {"x": x, "y": y}
        self.data["reg"] = reg
        self.cost, self.method = cost, method
        self.rng = rng

    def solve(self, **changed):
        data = self.data | changed
        a, b = data["a"], data["b"]
        mass = (a.sum() + b.sum()) / 2
        a, b = a * mass / a.sum(), b * mass / b.sum()
        C = data["C"] if self.cost == "dense" else PointCloud(data["x"], data["y"], cost=self.cost)
        return solve_ot(a, b, C, reg=float(data["reg"]), method=self.method, tol=2e-15, max_iter=2000)

    def direction(self, *names):
        """Random changes; weights that are 0 may only grow, which a difference to both sides does not see."""
        found = {}
        for name in names:
            value = self.data[name]
            found[name] = self.rng.standard_normal(np.shape(value))
            if name in ("a", "b"):
                found[name] = found[name] * (value > 0)
        return found

    def difference(self, function, direction, h=1e-4):
        """Of fourth order."""

        def at(t):
            return function(self.solve(**{name: self.data[name] + t * v for name, v in direction.items()}))

        return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)

    @property
    def names(self):
        return tuple(self.data)


pytestmark = pytest.mark.filterwarnings("ignore::otbilevel.ConvergenceWarning")  # tol is below the rounding floor


def inner(gradient, direction):
    return sum(np.sum(getattr(gradient, name) * v) for name, v in direction.items())


@pytest.mark.parametrize("method", ["sns", "sinkhorn"])
@pytest.mark.parametrize("cost", ["dense", *COSTS])
def test_the_gradient_of_the_value(cost, method):
    case = Case(cost, method=method)
    gradient = case.solve().gradient()
    for name in case.names:
        direction = case.direction(name)
        expected = case.difference(lambda r: r.value, direction)
        assert inner(gradient, direction) == pytest.approx(expected, abs=1e-9), name


OUTPUTS = {
    "f": lambda r, w: np.sum(w["f"] * r.f),
    "g": lambda r, w: np.sum(w["g"] * r.g),
    "plan": lambda r, w: np.sum(w["plan"] * r.plan),
    "value_linear": lambda r, w: w["value_linear"] * r.value_linear,
    "barycentric_map": lambda r, w: np.sum(w["barycentric_map"] * r.barycentric_map(w["points"])),
}


def cotangents(case, *names):
    n, m = len(case.data["a"]), len(case.data["b"])
    shapes = {"f": n, "g": m, "plan": (n, m), "value_linear": (), "barycentric_map": (n, 2), "points": (m, 2)}
    weights = {name: case.rng.standard_normal(shapes[name]) for name in ("points", *names)}
    return weights, {name: weights[name] for name in (*names, *(("points",) if "barycentric_map" in names else ()))}


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("cost", ["dense", *COSTS])
def test_vector_jacobian_products(cost, output, zeros):
    case = Case(cost, zeros=zeros)
    weights, given = cotangents(case, output)
    found = vjp(case.solve(), **given)
    for name in case.names:
        direction = case.direction(name)
        expected = case.difference(lambda r: OUTPUTS[output](r, weights), direction)
        assert inner(found, direction) == pytest.approx(expected, abs=3e-9), name


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("cost", ["dense", *COSTS])
def test_jacobian_vector_products(cost, zeros):
    case = Case(cost, zeros=zeros)
    direction = case.direction(*case.names)
    points, change = case.rng.standard_normal((2, len(case.data["b"]), 2))
    found = jvp(case.solve(), **direction, plan=True, value_linear=True, points=points, points_change=change)
    for name in ("f", "g", "value", "value_linear", "plan"):
        expected = case.difference(lambda r: getattr(r, name), direction)  # noqa: B023
        np.testing.assert_allclose(getattr(found, name), expected, atol=3e-9, err_msg=name)
    expected = case.difference(lambda r: r.barycentric_map(points), direction) + case.solve().barycentric_map(change)
    np.testing.assert_allclose(found.barycentric_map, expected, atol=3e-9)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("cost", ["dense", *COSTS])
def test_hessian_vector_products(cost, zeros):
    case = Case(cost, zeros=zeros)
    direction = case.direction(*case.names)
    total = direction["a"].sum() - direction["b"].sum()  # in a balanced direction the gradient is that of the solver
    direction["a"] -= case.data["a"] * total / case.data["a"].sum()
    found = hvp(case.solve(), **direction)
    for name in case.names:
        expected = case.difference(lambda r: getattr(r.gradient(), name), direction)  # noqa: B023
        np.testing.assert_allclose(getattr(found, name), expected, atol=3e-9, err_msg=name)
