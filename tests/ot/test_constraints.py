"""Linear constraints on the plan: against linear programming, against the KKT conditions in plain NumPy, and what is refused."""

import warnings

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linprog

from otbilevel import ConvergenceError, ConvergenceWarning, PointCloud, Status, solve_ot
from otbilevel.ot import PlanConstraint, martingale, separable
from otbilevel.testing.ot_laws import check_ot_result

METHODS = ("sns", "sinkhorn")


def linear_program(a, b, C, D, lb, ub):
    """The optimal value over plans with lb <= <D_k, P> <= ub, by HiGHS, D a (K, n, m) or sparse (K, n m) array."""
    n, m = C.shape
    rows = D if sparse.issparse(D) else np.asarray(D).reshape(-1, n * m)
    lb, ub = (np.broadcast_to(v, rows.shape[:1]) for v in (lb, ub))
    sums = [sparse.kron(sparse.eye(n), np.ones((1, m))), sparse.kron(np.ones((1, n)), sparse.eye(m))]
    equal, above, below = lb == ub, (lb != ub) & np.isfinite(ub), (lb != ub) & np.isfinite(lb)
    A_ub = sparse.vstack([sparse.csr_array(rows[above]), -sparse.csr_array(rows[below])])
    solution = linprog(
        C.ravel(),
        A_eq=sparse.vstack([*sums, sparse.csr_array(rows[equal])]).tocsr(),
        b_eq=np.concatenate([a, b, lb[equal]]),
        A_ub=A_ub.tocsr() if A_ub.shape[0] else None,
        b_ub=np.concatenate([ub[above], -lb[below]]) if A_ub.shape[0] else None,
        method="highs",
    )
    assert solution.status == 0, solution.message
    return solution.fun


def check_kkt(result, a, b, C, D, lb, ub, tol=1e-9):
    """The KKT conditions of the entropic problem in plain NumPy; D (K, n, m)."""
    f, g, lam, P = (np.asarray(v, dtype=float) for v in (result.f, result.g, result.multipliers, result.plan))
    lb, ub = (np.broadcast_to(np.asarray(v, dtype=float), lam.shape) for v in (lb, ub))
    mass, tilt = a.sum(), np.tensordot(lam, D, axes=1)
    size = np.abs(C[np.isfinite(C)]).max() + np.abs(tilt).max() + np.abs(f).max() + np.abs(g).max()
    rounding = 1e-13 + 20 * 2.2e-16 * size / result.reg
    np.testing.assert_allclose(P, np.outer(a, b) * np.exp((f[:, None] + g + tilt - C) / result.reg), atol=rounding * mass)
    error = (np.abs(P.sum(1) - a).sum() + np.abs(P.sum(0) - b).sum()) / mass
    assert result.success, result.message
    assert error == pytest.approx(result.marginal_error, abs=1e-13)
    assert error <= tol
    values = (D * P).sum((1, 2))
    scales = (a[:, None] * np.abs(D).max(2).T).sum(0)  # of all plans with rows a
    violation = np.maximum(np.maximum(lb - values, values - ub), 0.0)
    np.testing.assert_allclose(result.constraint_violation, violation.max(initial=0.0), atol=1e-13 * (1 + scales.max()))
    assert np.all(violation <= tol * scales + 1e-14)
    active = np.where(lam > 0, lb, np.where(lam < 0, ub, values))
    assert np.all(
        np.abs(values - active) <= tol * scales + 1e-14
    )  # complementarity, and no multiplier of a bound that is not there
    spent = float((P[P > 0] * C[P > 0]).sum())
    value = spent + result.reg * float((P[P > 0] * np.log(P[P > 0] / np.outer(a, b)[P > 0])).sum() - P.sum() + mass**2)
    slack = (1e-12 + 10 * tol) * mass * size
    assert result.value_linear == pytest.approx(spent, abs=1e-12 * mass * size)
    assert result.value == pytest.approx(value, abs=1e-12 * mass * size)
    dual = a @ f + b @ g + float((lam * np.where(lam == 0, 0.0, active)).sum()) - result.reg * (P.sum() - mass**2)
    assert result.dual_value == pytest.approx(dual, abs=slack)
    assert result.value == pytest.approx(result.dual_value, abs=slack)
    assert 0 <= result.gap <= slack


def check_limit(a, b, C, constraints, optimum, regs, method="sns", **settings):
    """<P, C> tends to the optimum of the linear program at a rate of reg log n, from above, within the certificate."""
    results = [solve_ot(a, b, C, reg=reg, constraints=constraints, method=method, **settings) for reg in regs]
    for reg, result in zip(regs, results, strict=True):
        assert result.success, result.message
        above = result.value_linear - optimum
        assert -1e-7 <= above <= reg * np.log(C.size)
        assert above <= result.gap_exact + 1e-7
        assert result.gap_exact <= 4 * reg * np.log(C.size)
    return results


def on_the_line(n=30, m=40, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=n), 1.5 * rng.normal(size=m)
    a, b = rng.dirichlet(np.full(n, 3.0)), rng.dirichlet(np.full(m, 3.0))
    return x, y, a, b, np.abs(x[:, None] - y)


def in_convex_order(n, m, d=1, seed=1):
    """Points and weights for which there is a martingale: each source is spread out over the targets, with its own mean."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)), 2.0 * rng.normal(size=(m, d))
    y[: 2**d] = 6.0 * np.stack(np.meshgrid(*[[-1.0, 1.0]] * d), axis=-1).reshape(-1, d)
    a = rng.dirichlet(np.full(n, 5.0))
    K = np.empty((n, m))
    for i in range(n):
        tilt = np.zeros(d)
        for _ in range(200):  # damped Newton's method for the tilt that gives the mean
            logs = -0.5 * ((y - x[i]) ** 2).sum(1) + (y - x[i]) @ tilt
            K[i] = np.exp(logs - logs.max())
            K[i] /= K[i].sum()
            mean = K[i] @ (y - x[i])
            covariance = ((y - x[i]) * K[i][:, None]).T @ (y - x[i]) - np.outer(mean, mean)
            step = np.linalg.solve(covariance, mean)
            tilt -= step * 0.5 / max(0.5, np.abs(step).max())
    assert np.abs(K @ y - x).max() < 1e-10
    return x, y, a, a @ K


def martingale_rows(x, y):
    """D of the martingale constraints, a sparse (n d, n m) array."""
    (n, d), m = x.shape, y.shape[0]
    rows = sparse.lil_array((n * d, n * m))
    for i in range(n):
        for c in range(d):
            rows[i * d + c, i * m : (i + 1) * m] = y[:, c] - x[i, c]
    return rows.tocsr()


@pytest.mark.parametrize(("n", "m", "d"), [(50, 80, 1), (30, 50, 2)])
def test_a_martingale_against_linear_programming(n, m, d):
    x, y, a, b = in_convex_order(n, m, d)
    C = np.sqrt(((x[:, None] - y) ** 2).sum(-1))
    rows = martingale_rows(x, y)
    optimum = linear_program(a, b, C, rows, 0.0, 0.0)
    results = check_limit(a, b, C, martingale(x, y), optimum, [0.3, 0.03, 0.003])
    for result in results:
        check_kkt(result, a, b, C, rows.toarray().reshape(-1, n, m), 0.0, 0.0)
        np.testing.assert_allclose(result.barycentric_map(y), x, atol=1e-7)
    slow = solve_ot(a, b, C, reg=0.3, constraints=martingale(x, y), method="sinkhorn")
    assert slow.success
    np.testing.assert_allclose(slow.plan, results[0].plan, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_grouped_martingales_against_linear_programming(method):
    x, y, a, b = in_convex_order(60, 50, 2, seed=3)
    groups = (np.arange(60) * 7) % 5 - 2
    C = ((x[:, None] - y) ** 2).sum(-1)
    difference = (y[None] - x[:, None]).transpose(2, 0, 1)
    D = np.concatenate([(groups == label)[:, None] * difference for label in range(-2, 3)])
    optimum = linear_program(a, b, C, D, 0.0, 0.0)
    regs = [1.0, 0.1, 0.01] if method == "sns" else [1.0, 0.2]
    grouped = martingale(x, y, groups=groups)
    assert grouped.size == 10
    for result in check_limit(a, b, C, grouped, optimum, regs, method):
        check_kkt(result, a, b, C, D, 0.0, 0.0)
    tests = (groups[:, None] == np.arange(-2, 3)).astype(float)
    same = solve_ot(a, b, C, reg=0.2, constraints=martingale(x, y, groups=tests), method=method)
    np.testing.assert_allclose(same.plan, solve_ot(a, b, C, reg=0.2, constraints=grouped).plan, atol=1e-8)


def moments(x, y):
    """Several at once: an equality, an inequality that is active, one that is not, one with two bounds; D, lb, ub."""
    D = np.stack([x[:, None] * y, np.abs(x[:, None] - y) ** 3, np.abs(x[:, None] - y), np.add.outer(x, -y) > 0.5]).astype(float)
    return D, np.array([0.6, -np.inf, 0.1, 0.2]), np.array([0.6, 7.0, 10.0, 0.3])


@pytest.mark.parametrize("method", METHODS)
def test_moments_against_linear_programming(method):
    x, y, a, b, C = on_the_line()
    D, lb, ub = moments(x, y)
    optimum = linear_program(a, b, C, D, lb, ub)
    mixed = [separable(x, y, lb[0], ub[0]), PlanConstraint(D[1:3], lb[1:3], ub[1:3]), PlanConstraint(D[3], lb[3], ub[3])]
    for constraints in (PlanConstraint(D, lb, ub), mixed):
        regs = [1.0, 0.1, 0.01, 0.001] if method == "sns" else [1.0, 0.1]
        for result in check_limit(a, b, C, constraints, optimum, regs, method):
            check_kkt(result, a, b, C, D, lb, ub)
            assert result.multipliers[2] == 0


@pytest.mark.parametrize("method", METHODS)
def test_an_inactive_constraint_changes_nothing_and_an_active_one_is_an_equality(method):
    x, y, a, b, C = on_the_line()
    free = solve_ot(a, b, C, reg=0.1, method=method)
    reached = float(x @ free.plan @ y)
    for inactive in (separable(x, y, ub=reached + 0.1), separable(x, y, lb=reached - 0.1, ub=reached + 1.0), separable(x, y)):
        result = solve_ot(a, b, C, reg=0.1, constraints=inactive, method=method)
        assert result.multipliers.tolist() == [0.0]
        np.testing.assert_allclose(result.plan, free.plan, atol=1e-9)
        assert result.value == pytest.approx(free.value, abs=1e-9)
    low, high = reached - 0.2, reached + 0.1
    for active, bound, sign in ((separable(x, y, ub=low), low, -1), (separable(x, y, lb=high), high, 1)):
        result = solve_ot(a, b, C, reg=0.1, constraints=active, method=method)
        assert np.sign(result.multipliers[0]) == sign
        equality = solve_ot(a, b, C, reg=0.1, constraints=separable(x, y, bound, bound), method=method)
        np.testing.assert_allclose(result.plan, equality.plan, atol=1e-8)


def test_a_multiplier_is_the_slope_of_the_value():
    x, y, a, b, C = on_the_line()
    h = 1e-4

    def solve(t):
        return solve_ot(a, b, C, reg=0.1, constraints=[separable(x, y, t, t), PlanConstraint(C, ub=1.2)], tol=1e-12)

    slope = (solve(0.7 + h).value - solve(0.7 - h).value) / (2 * h)
    assert solve(0.7).multipliers[0] == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_ranking_with_shares_of_exposure(method):
    """Items by positions, with the exposure of two groups bounded from below, and a capacity of an item at the top."""
    rng = np.random.default_rng(5)
    n = 30
    relevance, exposure = np.sort(rng.random(n)), 1.0 / np.log2(2 + np.arange(n))
    group, weights = (np.arange(n) < 12), np.full(n, 1.0 / n)
    C = -np.outer(relevance, exposure)
    D = np.stack([np.outer(group, exposure), np.outer(~group, exposure), np.outer(np.arange(n) == n - 1, np.arange(n) < 3)]).astype(
        float
    )
    share = exposure.mean()
    lb, ub = np.array([0.35 * share, 0.3 * share, -np.inf]), np.array([np.inf, np.inf, 0.4 / n])
    constraints = [
        separable(np.stack([group, ~group]).astype(float), np.stack([exposure, exposure]), lb[:2]),
        PlanConstraint(D[2], ub=ub[2]),
    ]
    optimum = linear_program(weights, weights, C, D, lb, ub)
    assert optimum > linear_program(weights, weights, C, D, -np.inf, np.inf) + 1e-3
    regs = [1e-2, 1e-3, 1e-4] if method == "sns" else [3e-2]
    for result in check_limit(weights, weights, C, constraints, optimum, regs, method, max_iter=50_000):
        check_kkt(result, weights, weights, C, D, lb, ub)
        if result.reg < 2e-2:
            assert result.multipliers[0] > 0 > result.multipliers[2]
            assert result.multipliers[1] == 0


def test_exact_is_the_linear_program():
    x, y, a, b, C = on_the_line()
    D, lb, ub = moments(x, y)
    result = solve_ot(2 * a, 2 * b, C, method="exact", constraints=PlanConstraint(D, 2 * lb, 2 * ub))
    assert result.success
    assert result.value == result.value_linear == pytest.approx(2 * linear_program(a, b, C, D, lb, ub), abs=1e-8)
    assert result.dual_value == pytest.approx(result.value, abs=1e-8)
    assert 0 <= result.gap < 1e-8
    assert result.constraint_violation < 1e-9
    assert result.multipliers[0] != 0
    assert np.all(result.f[:, None] + result.g + np.tensordot(result.multipliers, D, axes=1) <= C + 1e-9)
    near = solve_ot(2 * a, 2 * b, C, reg=1e-4, constraints=PlanConstraint(D, 2 * lb, 2 * ub))
    assert near.value_linear == pytest.approx(result.value, abs=1e-3)


def test_exact_martingales_and_mixed_kinds():
    x, y, a, b = in_convex_order(20, 30)
    C = np.abs(x - y[:, 0])
    rows = martingale_rows(x, y)
    D = np.concatenate([rows.toarray().reshape(-1, 20, 30), C[None] ** 2])
    low = float((a * x[:, 0] ** 2).sum())
    bound = float(b @ y[:, 0] ** 2) - low  # E|x - y|^2 of every martingale
    constraints = [martingale(x, y), PlanConstraint(C**2, ub=bound + 1e-3)]
    exact = solve_ot(a, b, C, method="exact", constraints=constraints)
    assert exact.success
    assert exact.value == pytest.approx(linear_program(a, b, C, rows, 0.0, 0.0), abs=1e-8)
    for method in METHODS:
        result = solve_ot(a, b, C, reg=0.1, method=method, constraints=constraints)
        check_kkt(result, a, b, C, D, [0.0] * 20 + [-np.inf], [0.0] * 20 + [bound + 1e-3])


def test_a_martingale_and_a_moment():
    """Both kinds of constraints are eliminated, one after the other: dense, separable and on rows at once."""
    x, y, a, b = in_convex_order(25, 35, seed=2)
    C = np.abs(x - y[:, 0])
    free = solve_ot(a, b, C, reg=0.1, constraints=martingale(x, y))
    third, last = np.abs(x - y[:, 0]) ** 3, (x[:, 0] > 0)[:, None] * (y[:, 0] > 0.5).astype(float)
    bounds = 0.97 * float((third * free.plan).sum()), 0.97 * float((last * free.plan).sum())
    D = np.concatenate([third[None], martingale_rows(x, y).toarray().reshape(-1, 25, 35), last[None]])
    lb, ub = np.array([-np.inf, *[0.0] * 25, -np.inf]), np.array([bounds[0], *[0.0] * 25, bounds[1]])
    cubes = PlanConstraint(third, ub=bounds[0])
    for tail in (PlanConstraint(last, ub=bounds[1]), separable(x[:, 0] > 0, y[:, 0] > 0.5, ub=bounds[1])):
        for method in METHODS:
            result = solve_ot(a, b, C, reg=0.1, constraints=[cubes, martingale(x, y), tail], method=method, max_iter=50_000)
            check_kkt(result, a, b, C, D, lb, ub)
            assert np.all(result.multipliers[[0, -1]] <= 0) and np.any(result.multipliers[[0, -1]] < 0)
    separate = [separable(x[:, 0] > 0, y[:, 0] > 0.5, ub=bounds[1]), martingale(x, y)]
    result = solve_ot(a, b, C, reg=0.1, constraints=separate)
    check_kkt(result, a, b, C, D[[-1, *range(1, 26)]], lb[[-1, *range(1, 26)]], ub[[-1, *range(1, 26)]])


def test_kinds_agree():
    """The same constraints as matrices, factors, sums of factors and groups."""
    x, y, a, b, C = on_the_line(12, 17)
    dense = PlanConstraint((x[:, None] - y) ** 2, 0.9, 3.0)
    u = np.stack([x**2, -2 * x, np.ones_like(x)])[None]
    v = np.stack([np.ones_like(y), y, y**2])[None]
    summed = separable(u, v, 0.9, 3.0)
    expected = solve_ot(a, b, C, reg=0.1, constraints=dense)
    result = solve_ot(a, b, C, reg=0.1, constraints=summed)
    np.testing.assert_allclose(result.plan, expected.plan, atol=1e-9)
    np.testing.assert_allclose(result.multipliers, expected.multipliers, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_redundant_constraints(method):
    x, y, a, b, C = on_the_line()
    once = solve_ot(a, b, C, reg=0.1, constraints=separable(x, y, 0.6, 0.6), method=method)
    same = separable(x, y, 0.6, 0.6)
    rows, columns = separable(x, np.ones(40), a @ x, a @ x), separable(np.ones(30), y, b @ y, b @ y)
    for constraints in (
        [same, same],
        [same, rows],
        [same, columns],
        [rows, columns, same, PlanConstraint(np.zeros((30, 40)), 0, 0)],
    ):
        result = solve_ot(a, b, C, reg=0.1, constraints=constraints, method=method)
        assert result.success, result.message
        assert np.all(np.isfinite(result.multipliers))
        np.testing.assert_allclose(result.plan, once.plan, atol=1e-8)


def test_no_constraints():
    _x, _y, a, b, C = on_the_line()
    plain = solve_ot(a, b, C, reg=0.1)
    for nothing in (
        (),
        [],
        PlanConstraint(np.zeros((0, 30, 40))),
        [PlanConstraint(np.zeros((0, 30, 40)), np.zeros(0), np.zeros(0))],
    ):
        result = solve_ot(a, b, C, reg=0.1, constraints=nothing)
        assert result.multipliers.shape == (0,)
        assert result.constraint_violation == 0
        assert np.array_equal(result.plan, plain.plan)
    assert solve_ot(a, b, C, method="exact").multipliers.shape == (0,)


@pytest.mark.parametrize("method", [*METHODS, "exact"])
def test_zero_weights_and_mass(method):
    """Points of zero weight do not matter, and their potentials follow the same formula; bounds go with the mass."""
    x, y, a, b = in_convex_order(16, 24)
    a[[0, 7]] = 0.0
    a /= a.sum()
    C, mass = np.abs(x - y[:, 0]), 3.0
    moment = x * y[:, 0]
    keep_a, keep_b = a > 0, np.arange(24) != 20
    b[20] = 0.0
    b /= b.sum()
    middle = float(a @ x[:, 0]) * float(b @ y[:, 0])
    settings = {} if method == "exact" else {"reg": 0.1}
    whole = solve_ot(
        mass * a, mass * b, C, constraints=PlanConstraint(moment, ub=mass * (middle + 0.05)), method=method, **settings
    )
    part = solve_ot(
        a[keep_a],
        b[keep_b],
        C[np.ix_(keep_a, keep_b)],
        method=method,
        **settings,
        constraints=PlanConstraint(moment[np.ix_(keep_a, keep_b)], ub=middle + 0.05),
    )
    assert whole.success and part.success
    assert whole.value_linear == pytest.approx(mass * part.value_linear, abs=1e-7)
    np.testing.assert_allclose(whole.multipliers, part.multipliers, atol=1e-6)
    assert not whole.plan[~keep_a].any() and not whole.plan[:, ~keep_b].any()
    if method != "exact":
        np.testing.assert_allclose(whole.plan[np.ix_(keep_a, keep_b)], mass * part.plan, atol=1e-7)
        check_kkt(whole, mass * a, mass * b, C, moment[None], -np.inf, mass * (middle + 0.05))


def test_a_martingale_with_sources_of_zero_weight():
    x, y, a, b = in_convex_order(16, 24, 2)
    padded = np.concatenate([x[:5], [[50.0, 0.0]], x[5:]])
    weights = np.insert(a, 5, 0.0)
    C = ((padded[:, None] - y) ** 2).sum(-1) ** 0.4
    for method in (*METHODS, "exact"):
        settings = {} if method == "exact" else {"reg": 0.2}
        result = solve_ot(weights, b, C, constraints=martingale(padded, y), method=method, **settings)
        assert result.success, result.message
        assert result.multipliers.shape == (34,)
        assert result.multipliers[10:12].tolist() == [0.0, 0.0]
        np.testing.assert_allclose(result.plan @ y, weights[:, None] * padded, atol=1e-8)


@pytest.mark.parametrize("method", [*METHODS, "exact"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (5, 1)])
def test_one_point(method, n, m):
    """One plan only: what it gives is allowed, nothing else is."""
    x, y = np.arange(n) + 1.0, np.arange(m) - 0.5
    value = x.mean() * y.mean()
    settings = {} if method == "exact" else {"reg": 0.1}
    for bounds in ((value, value), (value - 1, value + 1)):
        result = solve_ot(None, None, np.abs(x[:, None] - y), constraints=separable(x, y, *bounds), method=method, **settings)
        assert result.success, result.message
        np.testing.assert_allclose(result.plan, np.full((n, m), 1.0 / (n * m)), atol=1e-9)
    with pytest.warns(ConvergenceWarning, match="infeasible"):
        result = solve_ot(
            None, None, np.abs(x[:, None] - y), constraints=separable(x, y, lb=value + 0.1), method=method, **settings
        )
    assert result.status is Status.INFEASIBLE


def test_forbidden_pairs():
    x, y, a, b, C = on_the_line()
    C = np.where((np.add.outer(np.arange(30), np.arange(40)) % 7) == 0, np.inf, C)
    constraint = separable(x, y, lb=0.8)
    exact = solve_ot(a, b, C, method="exact", constraints=constraint)
    for method in METHODS:
        result = solve_ot(a, b, C, reg=0.05, constraints=constraint, method=method)
        check_kkt(result, a, b, C, (x[:, None] * y)[None], 0.8, np.inf)
        assert not result.plan[np.isinf(C)].any()
        assert exact.value - 1e-7 <= result.value_linear <= exact.value + result.gap_exact + 1e-7


def infeasible_cases():
    x, y, a, b, _C = on_the_line()
    most = -linear_program(a, b, -np.outer(x, y), np.zeros((0, 30, 40)), 0.0, 0.0)
    line = x[:, None], y[:, None]
    yield "too large", separable(x, y, lb=most + 0.01), r"constraints\[0\] cannot be met"
    yield "too small", PlanConstraint(-np.outer(x, y), ub=-most - 0.01), r"constraints\[0\] cannot be met"
    yield "equality", separable(x, y, most + 0.1, most + 0.1), r"constraints\[0\] cannot be met"
    yield "rows", [separable(x, y, ub=most + 1), separable(x, np.ones(40), lb=a @ x + 0.01)], r"constraints\[1\] cannot be met"
    yield "columns", separable(np.ones(30), y, ub=b @ y - 0.01), r"constraints\[0\] cannot be met"
    yield "contradiction", [separable(x, y, ub=0.2), PlanConstraint(np.outer(x, y), lb=0.3)], "met (together|along)"
    yield "means", martingale(*line), r"source \d+\).* cannot be met"
    yield "order", martingale(3 * line[0], 0.5 * line[1] - (0.5 * b @ y - 3 * a @ x)), r"source \d+\).* cannot be met"
    yield "groups", martingale(*line, groups=np.arange(30) // 15), r"group \d\).* cannot be met"


@pytest.mark.parametrize("method", [*METHODS, "exact"])
@pytest.mark.parametrize(("constraint", "message"), [pytest.param(*case[1:], id=case[0]) for case in infeasible_cases()])
def test_infeasible_constraints(method, constraint, message):
    _, _, a, b, C = on_the_line()
    settings = {} if method == "exact" else {"reg": 0.05}
    with pytest.warns(ConvergenceWarning, match=message):
        result = solve_ot(a, b, C, constraints=constraint, method=method, **settings)
    assert result.status is Status.INFEASIBLE
    assert not result.success
    assert np.all(np.isfinite(result.plan)) and np.all(np.isfinite(result.multipliers))
    with pytest.raises(ConvergenceError, match=message):
        solve_ot(a, b, C, constraints=constraint, method=method, raise_on_failure=True, **settings)


def test_the_bound_that_a_message_names_is_true_and_close():
    x, y, a, b, C = on_the_line()
    most = -linear_program(a, b, -np.outer(x, y), np.zeros((0, 30, 40)), 0.0, 0.0)
    with pytest.warns(ConvergenceWarning) as caught:
        solve_ot(2 * a, 2 * b, C, reg=0.05, constraints=separable(x, y, lb=2 * most * 1.01))
    bound = float(str(caught[0].message).split("<D, P> <= ")[1].split(" ")[0])
    assert 2 * most - 1e-5 <= bound < 2 * most * 1.01


@pytest.mark.parametrize("share", [0.99, 0.999, 0.9999])
def test_hardly_feasible(share):
    """Multipliers are large there, and fall to a fraction as reg does."""
    x, y, a, b, C = on_the_line()
    most = -linear_program(a, b, -np.outer(x, y), np.zeros((0, 30, 40)), 0.0, 0.0)
    for reg in (0.1, 0.01):
        result = solve_ot(a, b, C, reg=reg, constraints=separable(x, y, lb=share * most))
        check_kkt(result, a, b, C, (x[:, None] * y)[None], share * most, np.inf)
        again = solve_ot(a, b, C, reg=reg, constraints=separable(x, y, lb=share * most), init=result)
        assert again.success and again.nit <= 3


@pytest.mark.parametrize("seed", range(12))
def test_at_random(seed):
    """Constraints of all kinds of bounds that some plan satisfies, which is drawn first."""
    rng = np.random.default_rng(seed)
    n, m, k = (int(v) for v in rng.integers((2, 2, 1), (30, 30, 6)))
    C = rng.random((n, m)) if seed % 2 else np.abs(rng.normal(size=n)[:, None] - rng.normal(size=m))
    a, b = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
    D = rng.normal(size=(k, n, m)) if seed % 3 else (rng.random((k, n, m)) < 0.3).astype(float)
    values = (D * solve_ot(a, b, rng.random((n, m)), reg=0.05).plan).sum((1, 2))
    kind, slack = rng.integers(0, 4, k), 0.02 * rng.random(k)
    lb = np.where(kind < 2, values, np.where(kind == 3, values - slack, -np.inf))
    ub = np.where((kind == 0) | (kind == 2), values, np.where(kind == 3, values + slack, np.inf))
    optimum = linear_program(a, b, C, D, lb, ub)
    regs = [share * np.ptp(C) for share in (1e-1, 1e-2, 1e-3)]
    for result in check_limit(a, b, C, PlanConstraint(D, lb, ub), optimum, regs):
        check_kkt(result, a, b, C, D, lb, ub)


@pytest.mark.parametrize("method", METHODS)
def test_backends(device_backend, dtype, method):
    x, y, a, b = in_convex_order(12, 18)
    C, reg = np.abs(x - y[:, 0]), 0.2 if method == "sns" else 1.0
    third, groups = C**3, None if method == "sns" else np.arange(12) // 6  # on all rows "sinkhorn" takes hundreds of steps
    truth = solve_ot(a, b, C, reg=reg, constraints=martingale(x, y, groups))
    bound = 0.98 * float((third * truth.plan).sum())
    arrays = [device_backend.asarray(v, dtype) for v in (a, b, C)]
    x_, y_, third_ = (device_backend.asarray(v, dtype) for v in (x, y, third))
    groups_ = None if groups is None else device_backend.asarray(groups)
    constraints = [PlanConstraint(third_, ub=bound), martingale(x_, y_, groups_), separable(x_[:, 0], y_[:, 0], lb=-100.0)]
    settings = {"tol": 1e-4} if dtype == "float32" else {}
    result = solve_ot(*arrays, reg=reg, constraints=constraints, method=method, **settings)
    expected = solve_ot(a, b, C, reg=reg, constraints=[PlanConstraint(third, ub=bound), martingale(x, y, groups)])
    assert result.success, result.message
    assert device_backend.dtype_name(result.multipliers) == dtype
    atol = 1e-3 if dtype == "float32" else 1e-7
    np.testing.assert_allclose(device_backend.to_numpy(result.plan), expected.plan, atol=atol)
    multipliers = device_backend.to_numpy(result.multipliers)
    assert multipliers.shape == (14 if groups is None else 4,)
    np.testing.assert_allclose(multipliers[[0, -1]], [expected.multipliers[0], 0.0], atol=100 * atol)
    if dtype == "float64":
        assert result.value_linear == pytest.approx(expected.value_linear, abs=1e-7)
        assert result.gap < 1e-6


def test_exact_on_other_libraries(backend):
    x, y, a, b, C = on_the_line(10, 12)
    expected = solve_ot(a, b, C, method="exact", constraints=separable(x, y, lb=0.5))
    arrays = [backend.asarray(v) for v in (a, b, C)]
    result = solve_ot(*arrays, method="exact", constraints=separable(backend.asarray(x), backend.asarray(y), lb=0.5))
    assert result.success
    assert result.value == pytest.approx(expected.value, abs=1e-9)
    assert backend.owns(result.multipliers)


def test_lists_and_integer_weights_of_features():
    result = solve_ot([1, 1], [1, 1], [[0, 1], [1, 0]], reg=0.1, constraints=PlanConstraint([[1, 0], [0, 1]], ub=[1.5]))
    assert result.success
    assert np.trace(result.plan) == pytest.approx(1.5)
    grouped = martingale([0, 1, 2], [-1, 1, 3], groups=[0, 0, 1])
    assert (grouped.size, grouped.shape) == (2, (3, 3))


def test_a_point_cloud_is_stored_if_it_fits():
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 2)), rng.random((25, 2))
    cloud, C = PointCloud(x, y), ((x[:, None] - y) ** 2).sum(-1)
    constraint = separable(x[:, 0], y[:, 0], lb=0.28)
    stored = solve_ot(None, None, cloud, reg=0.01, constraints=constraint)
    np.testing.assert_allclose(stored.plan, solve_ot(None, None, C, reg=0.01, constraints=constraint).plan, atol=1e-9)
    for method in METHODS:
        with pytest.raises(ValueError, match="memory = 1e"):
            solve_ot(None, None, cloud, reg=0.01, constraints=constraint, method=method, options={"memory": 1e4})


@pytest.mark.parametrize("method", METHODS)
def test_warm_starts(method):
    x, y, a, b, C = on_the_line()
    D, lb, ub = moments(x, y)
    constraints = PlanConstraint(D, lb, ub)
    cold = solve_ot(a, b, C, reg=0.1, constraints=constraints, method=method)
    warm = solve_ot(a, b, C, reg=0.1, constraints=constraints, method=method, init=cold)
    assert warm.nit < 0.3 * cold.nit
    check_kkt(warm, a, b, C, D, lb, ub)
    for init in ((np.zeros(30), np.zeros(40)), solve_ot(a, b, C, reg=0.1), (1e3 * x, -1e3 * y)):
        check_kkt(solve_ot(a, b, C, reg=0.1, constraints=constraints, init=init), a, b, C, D, lb, ub)
    assert solve_ot(a, b, C, reg=0.1, init=cold).success


@pytest.mark.parametrize("method", METHODS)
def test_callback_and_limits(method):
    x, y, a, b, C = on_the_line()
    constraint, seen = separable(x, y, 0.6, 0.6), []
    result = solve_ot(a, b, C, reg=0.05, constraints=constraint, method=method, callback=seen.append)
    assert len(seen) == len(result.history["marginal_error"]) <= result.nit
    last = seen[-1]
    np.testing.assert_allclose(last.f, result.f, atol=1e-6)
    np.testing.assert_allclose(last.multipliers, result.multipliers, atol=1e-6)
    assert last.constraint_residual <= 1e-9
    with pytest.warns(ConvergenceWarning, match="max_iter = 2"):
        short = solve_ot(a, b, C, reg=0.05, constraints=constraint, method=method, max_iter=2)
    assert short.status is Status.ITERATION_LIMIT
    assert short.reg == 0.05
    with pytest.warns(ConvergenceWarning, match="time limit"):
        solve_ot(a, b, C, reg=0.05, constraints=constraint, method=method, options={"time_limit": 0.0})

    def stop(intermediate_result):
        raise StopIteration

    assert solve_ot(a, b, C, reg=0.05, constraints=constraint, method=method, callback=stop).status is Status.CALLBACK_STOP


def test_the_unconstrained_laws_hold_for_the_effective_costs():
    x, y, a, b, C = on_the_line()
    result = solve_ot(a, b, C, reg=0.1, constraints=separable(x, y, 0.6, 0.6))
    effective = C - result.multipliers[0] * np.outer(x, y)
    check_ot_result(solve_ot(a, b, effective, reg=0.1), a, b, effective, tol=1e-9)
    np.testing.assert_allclose(solve_ot(a, b, effective, reg=0.1).plan, result.plan, atol=1e-8)


def test_shifts_scales_and_permutations():
    x, y, a, b, C = on_the_line()
    D = np.outer(x, y)
    plain = solve_ot(a, b, C, reg=0.1, constraints=PlanConstraint(D, ub=0.5))
    scaled = solve_ot(a, b, 1e3 * C + 7.0, reg=1e2, constraints=PlanConstraint(1e-6 * D, ub=0.5e-6))
    np.testing.assert_allclose(scaled.plan, plain.plan, atol=1e-8)
    np.testing.assert_allclose(scaled.multipliers, 1e9 * plain.multipliers, rtol=1e-5)
    order = np.random.default_rng(0).permutation(30)
    turned = solve_ot(b, a[order], C[order].T, reg=0.1, constraints=PlanConstraint(D[order].T, ub=0.5))
    np.testing.assert_allclose(turned.plan.T, plain.plan[order], atol=1e-8)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PlanConstraint(np.zeros(3)), ValueError, r"D must have shape \(K, n, m\) or \(n, m\), got \(3,\)"),
        (lambda: PlanConstraint(np.full((2, 2), np.nan)), ValueError, r"D must be finite, but D\[0, 0, 0\]|D\[0, 0\] is nan"),
        (lambda: PlanConstraint(np.array([[0.0, np.inf]])), ValueError, "D must be finite"),
        (lambda: PlanConstraint("D"), TypeError, "D must hold real numbers"),
        (lambda: PlanConstraint(np.eye(2), lb=2.0, ub=1.0), ValueError, r"lb must be <= ub, got lb\[0\] = 2"),
        (lambda: PlanConstraint(np.eye(2), lb=np.nan), ValueError, "lb holds NaN"),
        (lambda: PlanConstraint(np.eye(2), ub=[1.0, 2.0]), ValueError, r"ub must be a number or have shape \(1,\), got \(2,\)"),
        (lambda: PlanConstraint(np.eye(2), lb=np.inf), ValueError, "leave no value"),
        (lambda: PlanConstraint(np.eye(2), ub="one"), TypeError, "ub must hold real numbers"),
        (lambda: separable(np.ones((2, 3)), np.ones(3)), ValueError, "u and v must have shapes"),
        (lambda: separable(np.ones((2, 3)), np.ones((3, 3))), ValueError, "u and v must have shapes"),
        (lambda: separable(np.ones(2), [1.0, np.nan]), ValueError, r"v must be finite, but v\[1\] is nan"),
        (lambda: martingale(np.ones((2, 2)), np.ones((2, 3))), ValueError, "points of one dimension"),
        (lambda: martingale(np.ones((2, 2, 2)), np.ones(2)), ValueError, "x must have shape"),
        (lambda: martingale([0.0, np.inf], np.ones(2)), ValueError, "x must be finite"),
        (
            lambda: martingale(np.ones(2), np.ones(2), groups=[0, 1, 2]),
            ValueError,
            r"groups must be integer labels of shape \(2,\)",
        ),
        (lambda: martingale(np.ones(2), np.ones(2), groups=[0.5, 1]), ValueError, "groups must be integer labels"),
    ],
)
def test_bad_constraints(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"constraints": np.eye(2)}, TypeError, "constraints must be a PlanConstraint or a list of them .*, got ndarray"),
        ({"constraints": None}, TypeError, "constraints must be a PlanConstraint .*, got NoneType"),
        ({"constraints": [PlanConstraint(np.eye(2)), 3]}, TypeError, "got a list that holds int"),
        ({"constraints": PlanConstraint(np.ones((3, 2)))}, ValueError, r"constraints\[0\] is on plans of shape \(3, 2\), but C"),
        ({"constraints": PlanConstraint(np.eye(2), lb=1.5)}, ValueError, r"infeasible: constraints\[0\] cannot be met"),
        ({"constraints": PlanConstraint(np.zeros((2, 2)), lb=0.1)}, ValueError, "infeasible: .* cannot be met, as"),
        ({"method": "sns", "options": {"variant": "paper"}}, ValueError, 'variant="paper" takes no constraints'),
        ({"method": "sinkhorn", "options": {"relaxation": 1.5}}, ValueError, "relaxation = 1.5 cannot be had with constraints"),
        ({"method": "exact", "reg": None, "options": {"solver": "network-simplex"}}, ValueError, "takes no constraints"),
    ],
)
def test_bad_calls(settings, error, message):
    settings = {"reg": 0.1, "constraints": PlanConstraint(np.eye(2), ub=0.5), **settings}
    with pytest.raises(error, match=message):
        solve_ot(None, None, 1.0 - np.eye(2), **settings)


def test_other_libraries_are_not_mixed():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"D of constraints\[0\]"):
        solve_ot(None, None, np.eye(2), reg=0.1, constraints=PlanConstraint(torch.eye(2)))
    with pytest.raises(TypeError, match="one library"):
        PlanConstraint(torch.eye(2), lb=np.zeros(1))
    with pytest.raises(TypeError, match="requires gradients"):
        PlanConstraint(torch.eye(2, requires_grad=True))


def test_inputs_are_kept():
    x, y, a, b, C = on_the_line()
    arrays = [np.outer(x, y)[None].copy(), np.array([0.5]), C.copy(), a.copy(), b.copy()]
    before = [v.copy() for v in arrays]
    D, ub, C, a, b = arrays
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve_ot(a, b, C, reg=0.1, constraints=PlanConstraint(D, ub=ub))
    for old, new in zip(before, arrays, strict=True):
        assert np.array_equal(old, new)
    assert repr(PlanConstraint(D, ub=ub)) == "PlanConstraint(1 x (30, 40), dense)"
