"""Derivatives against central differences of the solver, in every argument."""

import warnings

import numpy as np
import pytest

from otbilevel import ConvergenceWarning, PointCloud, solve_ot
from otbilevel.ot import KL, AtMost, PartialMass, PlanConstraint, TotalVariation, hvp, jvp, linearize, vjp

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


def test_derivatives_at_a_zero_weight_are_those_to_the_right():
    case = Case("sqeuclidean", zeros=True)
    result = case.solve()
    direction = {"a": np.zeros(6), "b": np.zeros(5)}
    direction["a"][[0, 1]], direction["b"][[2, 3]] = (-1.0, 1.0), (1.0, -1.0)
    weights = case.rng.standard_normal(6)
    found = vjp(result, f=weights)

    def forward_difference(function, h=1e-5):
        at = [function(case.solve(**{k: case.data[k] + t * h * v for k, v in direction.items()})) for t in range(3)]
        return (4 * at[1] - 3 * at[0] - at[2]) / (2 * h)

    assert inner(result.gradient(), direction) == pytest.approx(forward_difference(lambda r: r.value), rel=1e-6)
    assert inner(found, direction) == pytest.approx(forward_difference(lambda r: np.sum(weights * r.f)), rel=1e-6)
    np.testing.assert_allclose(jvp(result, **direction).f, forward_difference(lambda r: r.f), rtol=1e-5)
    np.testing.assert_allclose(hvp(result, **direction).x, forward_difference(lambda r: r.gradient().x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"memory": 0.0}])
@pytest.mark.parametrize("cost", ["dense", "sqeuclidean", "euclidean"])
def test_reverse_is_the_adjoint_of_forward(cost, options):
    """Also where nothing is stored, and where the plan is interpolated; one linearisation for many products."""
    case = Case(cost, n=60, m=50, d=2, reg=0.05)
    linear = linearize(case.solve(), **options)
    for _ in range(2):
        direction = case.direction(*case.names)
        _, given = cotangents(case, "f", "g", "plan", "value_linear", "barycentric_map")
        change = case.rng.standard_normal(given["points"].shape)
        tangent = linear.jvp(**direction, plan=True, value_linear=True, points=given["points"], points_change=change)
        outward = sum(np.sum(given[name] * getattr(tangent, name)) for name in OUTPUTS)
        gradient = linear.vjp(**given)
        inward = inner(gradient, direction) + np.sum(gradient.points * change)
        assert outward == pytest.approx(inward, rel=1e-9)
    assert linear.residual < 1e-11


@pytest.mark.parametrize("cost", ["dense", *COSTS])
def test_the_hessian_is_symmetric_and_forgets_the_last_direction(cost):
    case = Case(cost)
    linear = linearize(case.solve())
    first, second = (case.direction(*case.names) for _ in range(2))
    for direction in (first, second):
        excess = direction["a"].sum() - direction["b"].sum()
        direction["b"] += excess * case.data["b"] / case.data["b"].sum()
    one = inner(linear.hvp(**first), second)
    assert one == pytest.approx(inner(linear.hvp(**second), first), rel=1e-9)
    parts = sum(inner(linear.hvp(**{name: v}), second) for name, v in first.items() if name not in ("a", "b"))
    parts += inner(linear.hvp(a=first["a"], b=first["b"]), second)
    assert one == pytest.approx(parts, rel=1e-9)


def dense_vjp_in_cost(result, f, g):
    """P (mu + nu) with the whole system in dense algebra."""
    P = result.plan
    a, b = P.sum(1), P.sum(0)
    shift = (f.sum() - g.sum()) / (2 * a.sum())
    system = np.block([[np.diag(a), P], [P.T, np.diag(b)]])
    solution = np.linalg.lstsq(system, np.concatenate([f - shift * a, g + shift * b]), rcond=1e-14)[0]
    return P * (solution[: len(a), None] + solution[None, len(a) :])


@pytest.mark.parametrize("reg", [1.0, 1e-2, 1e-3])
@pytest.mark.parametrize("dim", [2, 10])
def test_small_regularisation(dim, reg):
    rng = np.random.default_rng(0)
    x, y = rng.random((120, dim)), rng.random((100, dim)) + 0.1
    result = solve_ot(None, None, PointCloud(x, y).to_dense(), reg=reg, tol=1e-12)
    f, g = rng.standard_normal(120), rng.standard_normal(100)
    expected = dense_vjp_in_cost(result, f, g)
    linear = linearize(result)
    np.testing.assert_allclose(linear.vjp(f=f, g=g, wrt="C").C, expected, atol=1e-8 * np.abs(expected).max())
    assert linear.residual < 1e-10


def test_a_graph_that_falls_apart_is_reported():
    C = np.array([[0.0, 1.0], [1.0, 0.0]])
    result = solve_ot(None, None, C, reg=0.01)
    with pytest.warns(ConvergenceWarning, match="falls apart"):
        vjp(result, f=np.array([1.0, 0.0]))


def test_forbidden_pairs():
    case = Case("dense")
    case.data["C"][0, 0] = case.data["C"][3, 2] = np.inf
    direction = case.direction("a", "b", "C")
    _, given = cotangents(case, "f", "plan", "value_linear")
    found = vjp(case.solve(), **given)
    assert found.C[0, 0] == 0.0 and found.C[3, 2] == 0.0
    expected = case.difference(
        lambda r: np.sum(given["f"] * r.f) + np.sum(given["plan"] * r.plan) + given["value_linear"] * r.value_linear, direction
    )
    assert inner(found, direction) == pytest.approx(expected, rel=1e-8)
    assert jvp(case.solve(), **direction, value_linear=True).value_linear == pytest.approx(
        case.difference(lambda r: r.value_linear, direction), rel=1e-8
    )


@pytest.mark.parametrize("cost", ["dense", "sqeuclidean", "cosine"])
def test_every_library(cost, device_backend, dtype):
    case = Case(cost, zeros=True)
    arrays = {name: device_backend.asarray(v, dtype) for name, v in case.data.items() if name != "reg"}
    points = arrays["C"] if cost == "dense" else PointCloud(arrays["x"], arrays["y"], cost=cost)
    result = solve_ot(arrays["a"], arrays["b"], points, reg=REG, tol=1e-10)
    reference = case.solve()
    close = {"float64": 1e-7, "float32": 1e-4}[dtype]
    _, given = cotangents(case, "f", "barycentric_map")
    moved = {name: device_backend.asarray(v, dtype) for name, v in given.items()}
    direction = case.direction(*(name for name in case.names if name != "reg"))
    change = {name: device_backend.asarray(v, dtype) for name, v in direction.items()}
    pairs = [
        (result.gradient(), reference.gradient()),
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


def test_after_an_exact_solution():
    """A subgradient: the value lies above its tangent in the cost, and it is the derivative where the optimum is unique."""
    rng = np.random.default_rng(0)
    x, y = rng.random((6, 2)), rng.random((6, 2))
    result = solve_ot(None, None, PointCloud(x, y), method="exact")
    gradient = result.gradient()
    assert gradient.reg is None
    v, h = rng.standard_normal((6, 2)), 1e-6
    values = [solve_ot(None, None, PointCloud(x + t * h * v, y), method="exact").value for t in (-1, 1)]
    assert np.sum(gradient.x * v) == pytest.approx((values[1] - values[0]) / (2 * h), rel=1e-6)
    np.testing.assert_allclose(result.gradient("C").C, result.plan)
    with pytest.raises(ValueError, match="has no derivative: solve with reg > 0"):
        linearize(result)
    with pytest.raises(ValueError, match='after method="exact"'):
        result.gradient("reg")


def test_kinks_have_a_derivative_of_zero():
    x = np.array([[0.0, 0.0], [1.0, 2.0]])
    for cost in ("euclidean", "cityblock"):
        gradient = solve_ot(None, None, PointCloud(x, cost=cost), reg=1e-3).gradient("x")
        np.testing.assert_allclose(gradient.x, 0.0, atol=1e-12)


def test_one_point():
    result = solve_ot([2.0], [2.0], np.array([[3.0]]), reg=0.5)
    assert result.gradient().C.item() == pytest.approx(2.0)
    assert vjp(result, f=[1.0]).C.item() == pytest.approx(0.5)


def test_a_shift_of_all_targets_moves_nothing_but_the_potentials():
    case = Case("sqeuclidean")
    tangent = jvp(case.solve(), x=np.ones((6, 3)), y=np.ones((5, 3)), plan=True, value_linear=True)
    for value in (tangent.f, tangent.g, tangent.plan, tangent.value, tangent.value_linear):
        np.testing.assert_allclose(value, 0.0, atol=1e-12)


RESULT = solve_ot(None, None, PointCloud([[0.0], [1.0]], [[0.0], [1.0], [2.0]]), reg=1.0)
DENSE = solve_ot(None, None, [[0.0, 1.0], [1.0, 0.0]], reg=1.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: RESULT.gradient("z"), ValueError, "wrt must hold names among a, b, x, y, reg for a PointCloud; got 'z'"),
        (lambda: DENSE.gradient(["a", "x"]), ValueError, "wrt must hold names among a, b, C, reg for a DenseCost; got 'x'"),
        (lambda: linearize(np.ones(3)), TypeError, "result must be an OTResult"),
        (lambda: linearize(RESULT, memory=-1), ValueError, "memory"),
        (lambda: vjp(RESULT, f=np.ones(3)), ValueError, r"f must have shape \(2,\), got \(3,\)"),
        (lambda: vjp(RESULT, plan=np.ones((3, 2))), ValueError, r"plan must have shape \(2, 3\)"),
        (lambda: vjp(RESULT), ValueError, "nothing to pull back"),
        (lambda: jvp(RESULT), ValueError, "the direction is missing: say how a, b, x, y or reg change"),
        (lambda: hvp(DENSE), ValueError, "the direction is missing: say how a, b, C or reg change"),
        (lambda: vjp(RESULT, value_linear="1"), TypeError, "value_linear must be a real number"),
        (lambda: vjp(RESULT, barycentric_map=np.ones(2)), ValueError, "points is missing"),
        (lambda: vjp(RESULT, points=np.ones(3)), ValueError, "barycentric_map is missing"),
        (lambda: vjp(RESULT, points=np.ones(2), barycentric_map=np.ones(2)), ValueError, r"points must have shape \(3,\)"),
        (lambda: jvp(RESULT, C=np.ones((2, 3))), ValueError, "C is no part of a problem with a PointCloud"),
        (lambda: jvp(DENSE, x=np.ones((2, 1))), ValueError, "x is no part of a problem with a DenseCost"),
        (lambda: jvp(RESULT, reg=np.nan), ValueError, "reg must be finite"),
        (lambda: jvp(RESULT, reg=1.0, plan=1), TypeError, "plan must be True or False"),
        (lambda: hvp(RESULT, y=np.ones((2, 1))), ValueError, r"y must have shape \(3, 1\)"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_direction_may_be_zero():
    assert jvp(RESULT, reg=0.0).value == 0.0
    assert hvp(RESULT, reg=0.0).reg == 0.0


def test_gradients_print_their_fields():
    assert repr(RESULT.gradient(["a", "reg"])).startswith("OTGradient(a: (2,), reg: 0.")
    assert repr(jvp(RESULT, reg=1.0)).startswith("OTTangent(f: (2,), g: (3,), value: ")
    assert repr(linearize(RESULT)).startswith("Linearization(PointCloud(2 x 3, 1-d points, sqeuclidean, float64), reg=")


def test_what_has_no_derivatives_yet_says_so():
    C = np.random.default_rng(0).random((5, 4))
    constrained = solve_ot(None, None, C, reg=0.1, constraints=PlanConstraint(C, -np.inf, 0.45))
    partial = solve_ot(None, None, C, reg=0.1, unbalanced=PartialMass(0.6))
    for derive, word in (
        (lambda: linearize(constrained), "constraints"),
        (lambda: linearize(partial), "PartialMass"),
    ):
        with pytest.raises(ValueError, match=word):
            derive()


@pytest.mark.parametrize("mass", [1.0, 1.7])
@pytest.mark.parametrize("cloud", [False, True])
def test_gradient_under_constraints(cloud, mass):
    rng = np.random.default_rng(0)
    a, b = (mass * w / w.sum() for w in (rng.uniform(0.5, 1.5, 6), rng.uniform(0.5, 1.5, 5)))
    x, y, D, E = rng.random((6, 2)), rng.random((5, 2)), rng.random((6, 5)), rng.random((6, 5))
    C = ((x[:, None] - y) ** 2).sum(-1)
    free, cost = solve_ot(a, b, C, reg=0.1).plan, PointCloud(x, y) if cloud else C
    bounds = 0.95 * np.sum(D * free), 1.02 * np.sum(E * free)

    def solve(a=a, b=b, C=cost, reg=0.1, bounds=bounds):
        constraints = [PlanConstraint(D, -np.inf, bounds[0]), PlanConstraint(E, bounds[1], bounds[1])]
        return solve_ot(a, b, C, reg=reg, constraints=constraints, tol=1e-12)

    result = solve()
    gradient, da, db, dC = result.gradient(), rng.standard_normal(6), rng.standard_normal(5), rng.standard_normal((6, 5))
    db, h = db + (da.sum() - db.sum()) / 5, 1e-5
    changes = {
        "weights": (lambda t: solve(a + t * da, b + t * db), gradient.a @ da + gradient.b @ db),
        "costs": (lambda t: solve(C=C + t * dC), np.sum(gradient.C * dC)),
        "reg": (lambda t: solve(reg=0.1 + t), gradient.reg),
        "bounds": (lambda t: solve(bounds=(bounds[0] + t, bounds[1] - 2 * t)), result.multipliers @ [1.0, -2.0]),
    }
    for name, (change, expected) in changes.items():
        found = (change(h).value - change(-h).value) / (2 * h)
        assert found == pytest.approx(expected, abs=1e-6), name
    with pytest.raises(ValueError, match="a, b, C, reg for a DenseCost under constraints, which are held fixed; got 'x'"):
        result.gradient("x")


@pytest.mark.parametrize("prices", [0.3, (None, 0.2), TotalVariation(0.05), (KL(0.1), AtMost(0.05)), PartialMass(0.6)], ids=str)
@pytest.mark.parametrize("zero", [False, True])
def test_gradient_of_unbalanced_transport(prices, zero):
    rng = np.random.default_rng(0)
    x, y, a, b = rng.random((7, 2)), rng.random((6, 2)) + 0.3, rng.random(7) / 3, rng.random(6) / 2
    if zero:
        a[2] = b[1] = 0.0
    data = {"a": a, "b": b, "x": x, "y": y, "reg": np.array(0.05)}

    def value(**changed):
        d = data | changed
        settings = {"reg": float(d["reg"]), "unbalanced": prices, "tol": 1e-13}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return solve_ot(d["a"], d["b"], PointCloud(d["x"], d["y"]), **settings)

    gradient = value().gradient()
    for name, at in data.items():
        for index in np.ndindex(at.shape):
            if zero and name in "ab" and at[index] == 0.0:
                h = 1e-5
                step = np.zeros_like(at)
                step[index] = h
                up, high = value(**{name: at + step}).value, value(**{name: at + 2 * step}).value
                difference, atol = (4 * up - high - 3 * value().value) / (2 * h), 1e-4
            else:
                h = 1e-4 * max(abs(float(at[index])), 0.1)
                step = np.zeros_like(at)
                step[index] = h
                up, down = value(**{name: at + step}).value, value(**{name: at - step}).value
                difference, atol = (up - down) / (2 * h), 2e-6
            got = getattr(gradient, name)
            assert (got if name == "reg" else got[index]) == pytest.approx(difference, abs=atol), (name, index)
