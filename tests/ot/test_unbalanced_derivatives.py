"""Derivatives of unbalanced transport against central differences of the solver, in every argument."""

import numpy as np
import pytest

from otbilevel import PointCloud, solve_ot
from otbilevel.ot import KL, AtMost, TotalVariation, hvp, jvp, linearize, point_plan, vjp

REG = 0.2
PRICES = [
    0.3,
    KL(5.0),
    (None, 0.2),
    (KL(0.1), None),
    TotalVariation(0.6),
    AtMost(0.3),
    (KL(0.4), AtMost(0.2)),
    (TotalVariation(0.5), KL(0.7)),
    (None, AtMost(0.0)),
]

pytestmark = pytest.mark.filterwarnings("ignore::otbilevel.ConvergenceWarning")  # tol is below the rounding floor


class Case:
    """A problem with a function from its data to its result."""

    def __init__(self, price, *, dense=False, zeros=False, n=6, m=5, reg=REG, seed=3):
        self.rng = rng = np.random.default_rng(seed)
        a, b = rng.uniform(0.5, 1.5, n), rng.uniform(0.5, 1.5, m)
        if zeros:
            a[[1, 4]], b[2] = 0.0, 0.0
        self.data = {"a": 1.1 * a / a.sum(), "b": 1.6 * b / b.sum()}
        x, y = rng.random((n, 2)), rng.random((m, 2)) + 0.3
        self.data |= {"C": PointCloud(x, y).to_dense().matrix} if dense else {"x": x, "y": y}
        self.data["reg"] = reg
        self.price, self.dense = price, dense

    def solve(self, **changed):
        data = self.data | changed
        C = data["C"] if self.dense else PointCloud(data["x"], data["y"])
        return solve_ot(data["a"], data["b"], C, reg=float(data["reg"]), unbalanced=self.price, tol=1e-14, max_iter=2000)

    def direction(self, *names):
        """Random changes; weights that are 0 may only grow, which a difference to both sides does not see."""
        found = {name: self.rng.standard_normal(np.shape(self.data[name])) for name in names or self.data}
        return {name: v * (self.data[name] > 0) if name in ("a", "b") else v for name, v in found.items()}

    def difference(self, function, direction, h=1e-4):
        """Of fourth order."""

        def at(t):
            return function(self.solve(**{name: self.data[name] + t * v for name, v in direction.items()}))

        return (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)


def inner(gradient, direction):
    return sum(np.sum(getattr(gradient, name) * v) for name, v in direction.items())


def cotangents(case):
    n, m = len(case.data["a"]), len(case.data["b"])
    shapes = {"f": n, "g": m, "plan": (n, m), "value_linear": (), "barycentric_map": (n, 2), "points": (m, 2)}
    return {name: case.rng.standard_normal(shape) for name, shape in shapes.items()}


def scalar(result, given):
    """What has these derivatives in the outputs."""
    total = np.sum(given["f"] * result.f) + np.sum(given["g"] * result.g) + np.sum(given["plan"] * result.plan)
    images = result.barycentric_map(given["points"])
    return total + given["value_linear"] * result.value_linear + np.sum(given["barycentric_map"] * images)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("price", PRICES, ids=str)
def test_all_products(price, dense, zeros):
    case = Case(price, dense=dense, zeros=zeros)
    result = case.solve()
    given = cotangents(case)
    found = vjp(result, **given)
    for name in case.data:
        direction = case.direction(name)
        expected = case.difference(lambda r: scalar(r, given), direction)
        assert inner(found, direction) == pytest.approx(expected, abs=2e-8 * (1 + abs(expected))), name

    direction, change = case.direction(), case.rng.standard_normal(given["points"].shape)
    tangent = jvp(result, **direction, plan=True, value_linear=True, points=given["points"], points_change=change)
    for name in ("f", "g", "value", "value_linear", "plan"):
        expected = case.difference(lambda r: getattr(r, name), direction)  # noqa: B023
        np.testing.assert_allclose(getattr(tangent, name), expected, atol=2e-8, err_msg=name)
    expected = case.difference(lambda r: r.barycentric_map(given["points"]), direction) + result.barycentric_map(change)
    np.testing.assert_allclose(tangent.barycentric_map, expected, atol=2e-8)

    curved = hvp(result, **direction)
    for name in case.data:
        expected = case.difference(lambda r: getattr(r.gradient(), name), direction)  # noqa: B023
        np.testing.assert_allclose(getattr(curved, name), expected, atol=3e-8, err_msg=name)


@pytest.mark.parametrize("options", [{}, {"memory": 0.0}])
@pytest.mark.parametrize("reg", [0.1, 1e-2, 1e-3])
@pytest.mark.parametrize("price", PRICES, ids=str)
def test_laws(price, reg, options):
    """Reverse is the adjoint of forward, and the Hessian is symmetric, at any reg; one linearisation for many products."""
    case = Case(price, n=60, m=50, reg=reg)
    linear = linearize(case.solve(), **options)
    for _ in range(2):
        first, second = case.direction(), case.direction()
        given = cotangents(case)
        change = case.rng.standard_normal(given["points"].shape)
        tangent = linear.jvp(**first, plan=True, value_linear=True, points=given["points"], points_change=change)
        parts = [np.sum(v * getattr(tangent, name)) for name, v in given.items() if name != "points"]
        gradient = linear.vjp(**given)
        inward = inner(gradient, first) + np.sum(gradient.points * change)
        assert sum(parts) == pytest.approx(inward, abs=1e-8 * sum(map(abs, parts)))
        one, two = inner(linear.hvp(**first), second), inner(linear.hvp(**second), first)
        assert one == pytest.approx(two, rel=1e-7)
    assert linear.residual < 1e-9


@pytest.mark.parametrize("price", [0.3, (TotalVariation(0.5), KL(0.7)), AtMost(0.3)], ids=str)
def test_interpolated_plans(price, monkeypatch):
    case = Case(price, n=300, m=250, reg=0.1)
    result = case.solve()
    given = {"f": case.rng.standard_normal(300), "g": case.rng.standard_normal(250)}
    expected = vjp(result, **given)
    monkeypatch.setattr(point_plan, "FEW_PAIRS", 0)
    monkeypatch.setattr(point_plan, "WORTHWHILE", 10.0)
    linear = linearize(result)
    found = linear.vjp(**given)
    assert type(linear._system._row_plan).__name__ == "InterpolatedPlan" and linear.residual < 1e-11
    np.testing.assert_allclose(found.x, expected.x, atol=1e-9 * np.abs(expected.x).max())


def test_derivatives_at_a_zero_weight_are_those_to_the_right():
    case = Case((0.3, AtMost(0.2)), zeros=True)
    result = case.solve()
    direction = {"a": np.eye(6)[1], "b": np.eye(5)[2]}
    weights = case.rng.standard_normal(6)

    def forward_difference(function, h=1e-5):
        at = [function(case.solve(**{k: case.data[k] + t * h * v for k, v in direction.items()})) for t in range(3)]
        return (4 * at[1] - 3 * at[0] - at[2]) / (2 * h)

    assert inner(vjp(result, f=weights), direction) == pytest.approx(forward_difference(lambda r: weights @ r.f), rel=1e-6)
    np.testing.assert_allclose(jvp(result, **direction).g, forward_difference(lambda r: r.g), rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(hvp(result, **direction).b, forward_difference(lambda r: r.gradient().b), rtol=1e-5, atol=1e-6)


def test_a_high_price_gives_the_derivatives_of_fixed_marginals():
    case = Case(1e6, dense=True)
    case.data["b"] *= case.data["a"].sum() / case.data["b"].sum()
    fixed = solve_ot(case.data["a"], case.data["b"], case.data["C"], reg=REG, tol=1e-13)
    direction = case.rng.standard_normal((6, 5))
    found, expected = (jvp(r, C=direction, plan=True, value_linear=True) for r in (case.solve(), fixed))
    np.testing.assert_allclose(found.plan, expected.plan, atol=1e-6)
    assert found.value_linear == pytest.approx(expected.value_linear, abs=1e-6)


def test_without_a_point_at_its_price_it_is_balanced_transport():
    """Total variation between equal masses: a constant may move from f to g, and weights change with equal masses."""
    case = Case(TotalVariation(50.0))
    case.data["b"] *= case.data["a"].sum() / case.data["b"].sum()
    data = case.data
    fixed = solve_ot(data["a"], data["b"], PointCloud(data["x"], data["y"]), reg=REG, tol=1e-14)
    direction = case.direction()
    found, expected = (jvp(r, **direction, plan=True, value_linear=True) for r in (case.solve(), fixed))
    np.testing.assert_allclose(found.plan, expected.plan, atol=1e-9)
    assert found.value_linear == pytest.approx(expected.value_linear, abs=1e-9)


@pytest.mark.parametrize("price", [0.5, AtMost(0.5)], ids=str)
def test_a_far_point_whose_mass_underflows(price):
    """A source 40 away would hold exp(-1600/0.7) of its weight: its potential and its image still have derivatives."""
    x, y = np.array([[0.2], [0.7], [40.0]]), np.array([[0.0], [1.0], [0.4]])

    def solve(x, y):
        return solve_ot(None, None, PointCloud(x, y), reg=0.2, unbalanced=price, tol=1e-14)

    result = solve(x, y)
    assert result.marginals[0][2] == 0.0
    v, w = np.array([[1.0], [0.5], [-2.0]]), np.array([[0.3], [-1.0], [0.5]])
    tangent = jvp(result, x=v, y=w, points=y)
    up, down = solve(x + 1e-5 * v, y + 1e-5 * w), solve(x - 1e-5 * v, y - 1e-5 * w)
    np.testing.assert_allclose(tangent.g, (up.g - down.g) / 2e-5, atol=1e-6)
    np.testing.assert_allclose(tangent.f, (up.f - down.f) / 2e-5, atol=1e-6)
    expected = (up.barycentric_map(y) - down.barycentric_map(y)) / 2e-5
    np.testing.assert_allclose(tangent.barycentric_map, expected, atol=1e-6)
    given = {"f": v[:, 0], "g": w[:, 0], "barycentric_map": w}
    pulled = vjp(result, **given, points=y)
    outward = v[:, 0] @ tangent.f + w[:, 0] @ tangent.g + np.sum(w * tangent.barycentric_map)
    assert np.sum(pulled.x * v) + np.sum(pulled.y * w) == pytest.approx(outward, rel=1e-9)


def test_forbidden_pairs():
    case = Case(0.3, dense=True)
    case.data["C"][0, 0] = case.data["C"][3, 2] = np.inf
    given = cotangents(case)
    found = vjp(case.solve(), **given)
    assert found.C[0, 0] == 0.0 and found.C[3, 2] == 0.0
    direction = case.direction("a", "b", "C")
    expected = case.difference(lambda r: scalar(r, given), direction)
    assert inner(found, direction) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("price", [0.3, (0.4, AtMost(0.2))], ids=str)
def test_every_library(price, device_backend, dtype):
    case = Case(price, zeros=True)
    arrays = {name: device_backend.asarray(v, dtype) for name, v in case.data.items() if name != "reg"}
    result = solve_ot(arrays["a"], arrays["b"], PointCloud(arrays["x"], arrays["y"]), reg=REG, unbalanced=price, tol=1e-10)
    reference = case.solve()
    close = {"float64": 1e-7, "float32": 1e-4}[dtype]
    given = {name: v for name, v in cotangents(case).items() if name in ("f", "barycentric_map", "points")}
    direction = case.direction("a", "b", "x", "y")
    moved, change = ({k: device_backend.asarray(v, dtype) for k, v in one.items()} for one in (given, direction))
    pairs = [
        (vjp(result, **moved), vjp(reference, **given)),
        (jvp(result, **change, plan=True), jvp(reference, **direction, plan=True)),
        (hvp(result, **change), hvp(reference, **direction)),
    ]
    for found, expected in pairs:
        for name, value in vars(expected).items():
            if value is not None and not isinstance(value, float):
                array = getattr(found, name)
                assert device_backend.owns(array) and device_backend.dtype_name(array) == dtype, name
                host = device_backend.to_numpy(array)
                np.testing.assert_allclose(host, value, atol=close * (1 + np.abs(value).max()), err_msg=name)


def test_one_point():
    """P = (ab)^(rho/(2 rho + reg)...) exp(-C / (2 rho + reg)): its derivative in the cost."""
    rho, reg = 0.7, 0.2
    result = solve_ot([2.0], [3.0], np.array([[0.4]]), reg=reg, unbalanced=rho)
    mass = result.plan.item()
    assert vjp(result, plan=[[1.0]]).C.item() == pytest.approx(-mass / (2 * rho + reg), rel=1e-9)
    assert hvp(result, C=[[1.0]]).C.item() == pytest.approx(-mass / (2 * rho + reg), rel=1e-9)
