"""Many small problems: each is solved from its first sweep to its last in compiled code, by one thread, within the cache.

The algorithm is that of `sns` in small: a path in reg with scaling passes on a stored K, whose entries are squared from level to
level, then Newton's method on the semi-dual by conjugate gradients. All is in double precision, so that trial steps and passes are
scalings of K as accurate as a sweep. A weight that is 0 takes part as such: g, which has log b in it, is -inf there, and its row or
column holds nothing.
"""

import numpy as np

from otbilevel._core.result import Status
from otbilevel.ot.call import SMALLEST_REG
from otbilevel.ot.kernels.aprox import RIGID
from otbilevel.ot.kernels.cpu.compile import kernel
from otbilevel.ot.kernels.cpu.dense import extremes, plan_sums, softmax_rows
from otbilevel.ot.kernels.cpu.exp import LOG2E, exp2
from otbilevel.ot.kernels.cpu.stored import laplacian_product, plan_moments, scaling_pass, sharpen

LEAST_SUM = 1e-300
LARGEST_SCALING = 1e120
"""Of v, and of 1/v: beyond it K is swept again."""
LEVEL_ERROR, HARD_ERROR, CAREFUL_ERROR = 0.05, 5e-3, 1e-7
"""Errors at which a level is left, and Newton's method on a hard level ends, at first and on a careful path."""
LEVEL_PASSES, LAST_PASSES = 14.0, 40.0
CAREFUL = 1.4
"""Factor by which reg falls on a careful path, after a run that stalled."""
ENOUGH = 0.7
"""Share of the tolerance that iterations aim at."""
MAX_STEPS, MAX_CG, STALL_WINDOW = 60, 400, 12
SMOOTHING_PASSES = 3
CLIP = 6.0
NEAR = 0.1
"""Relative error of a column sum up to which steps are over-relaxed."""
FARTHEST = 100.0
"""By how much potentials may move, in units of reg, where K is scaled along."""
EPS = 2.0**-52
NOISE = 64 * EPS

CONVERGED, STALLED = int(Status.SUCCESS), int(Status.STALLED)
LIMIT, NOT_FINITE = int(Status.ITERATION_LIMIT), int(Status.NOT_FINITE)


@kernel
def misfit(b, c):
    """sum |b - c|."""
    total = 0.0
    for j in range(len(b)):
        total += abs(b[j] - c[j])
    return total


@kernel
def sweep(cost, g, reg, a, b, f, k, u, v, c):
    """Compute f(g), K and its column sums c; f serves as shift unless it is NaN. Returns the error."""
    sums, warm = np.zeros((1, len(g))), not np.isnan(f[0])  # a literal would be compiled apart
    softmax_rows(0, len(a), sums, cost, g, 1.0 / reg, a, f, warm, 1.0, np.empty(0), True, k, RIGID)
    u[:], v[:], c[:] = 1.0, 1.0, sums[0]
    return misfit(b, c)


@kernel
def scaled(a, b, k, u, v, c):
    """Take u = 1/(K v) and the column sums c of diag(u) K diag(v). Returns the error."""
    sums = np.zeros((1, len(v)))
    scaling_pass(0, len(a), sums, k, a, u, v, 1.0, a, 1.0, RIGID)
    for j in range(len(v)):
        c[j] = v[j] * sums[0, j]
    return misfit(b, c)


@kernel
def fold(reg, f, g, k, u, v):
    """Put the scalings into K, f and g."""
    for i in range(len(u)):
        f[i] += reg * np.log(u[i])
        s = u[i]
        for j in range(len(v)):
            k[i, j] *= s * v[j]
    for j in range(len(v)):
        if v[j] != 1.0:
            g[j] += reg * np.log(v[j])
    u[:], v[:] = 1.0, 1.0


@kernel
def admits(v):
    """Whether scalings are far from over- and underflow."""
    low, high = v[0], v[0]
    for j in range(len(v)):
        low, high = min(low, v[j]), max(high, v[j])
    return high < LARGEST_SCALING and low > 1.0 / LARGEST_SCALING


@kernel
def half_step(b, v, c, omega):
    """v <- v (b / c)^omega, where b / c is close to 1; else with omega = 1."""
    for j in range(len(v)):
        if b[j] > 0.0:
            ratio = b[j] / max(c[j], LEAST_SUM)
            d = ratio - 1.0
            if abs(d) < NEAR:  # three terms of the power series: it need not be accurate, as d tends to 0
                ratio = 1.0 + omega * d * (1.0 + 0.5 * (omega - 1.0) * d * (1.0 + (omega - 2.0) / 3.0 * d))
            v[j] *= ratio


@kernel
def passes(a, b, k, u, v, c, error, target, most, at_least, left):
    """Sinkhorn's iterations on K until `target`, or as long as the contraction promises it within `most`; v ends half a step on.

    There are no more than `left`. Once the contraction is known, steps are over-relaxed: the error then has factors between
    1 - omega and 1 - omega (1 - rate), which is best where these are opposite.

    Returns the last error, the one before, and the number of passes.
    """
    before, done, omega, known = np.inf, 0, 1.0, np.empty(len(v))
    while True:
        known[:] = v
        half_step(b, v, c, omega)
        if not admits(v):
            break
        if (done > 0 and error <= target) or done >= left:
            break
        if done >= at_least:
            rate = error / before
            if rate >= 1.0 or done + np.log(target / error) / np.log(rate) > most:
                break
            if omega == 1.0:
                omega = 2.0 / (2.0 - rate)
        before, error, done = error, scaled(a, b, k, u, v, c), done + 1
    if not admits(v):
        v[:] = known  # stay where the sums are known
    return error, before, done


@kernel
def newton_direction(a, b, k, c, forcing, x, r, p, degree, inverse):
    """x <- L^-1 (b - c), up to a residual of `forcing` in L1 relative to the right-hand side, by conjugate gradients."""
    n, m = k.shape
    ones, row_sums, moments = np.ones(m), np.empty(n), np.zeros((2, m))
    plan_moments(0, n, moments, k, a, ones, row_sums)
    weights = a / row_sums
    total = lack = 0.0
    for j in range(m):
        degree[j] = moments[0, j]
        diagonal = max(degree[j] - moments[1, j], 1e-9 * degree[j])
        inverse[j] = 1.0 / diagonal if diagonal > LEAST_SUM else 0.0
        lack += b[j] - c[j]
        total += degree[j]
    size = rz = 0.0
    for j in range(m):
        r[j] = b[j] - c[j] - degree[j] * (lack / total)
        x[j], p[j] = 0.0, inverse[j] * r[j]
        size += abs(r[j])
        rz += r[j] * p[j]
    target = forcing * size
    for _ in range(MAX_CG):
        if size <= target or rz <= 0.0:
            break
        sums = np.zeros((1, m))
        laplacian_product(0, n, sums, k, weights, p)
        curvature = bulk = 0.0
        for j in range(m):
            sums[0, j] = degree[j] * p[j] - sums[0, j]
            curvature += p[j] * sums[0, j]
            bulk += p[j] * degree[j] * p[j]
        if not curvature > NOISE * bulk:
            break
        alpha, following, size = rz / curvature, 0.0, 0.0
        for j in range(m):
            x[j] += alpha * p[j]
            r[j] -= alpha * sums[0, j]
            size += abs(r[j])
            following += inverse[j] * r[j] * r[j]
        for j in range(m):
            p[j] = inverse[j] * r[j] + following / rz * p[j]
        rz = following


@kernel
def newton(cost, reg, a, b, f, g, k, u, v, c, error, tol, most):
    """Newton's method from where K is. Returns the error and the number of steps."""
    m = len(b)
    x, r, p, degree, inverse = np.empty(m), np.empty(m), np.empty(m), np.empty(m), np.empty(m)
    history, radius = np.empty(most + 1), CLIP
    history[0] = error
    for step in range(most):
        if error <= tol or not np.isfinite(error) or (step >= STALL_WINDOW and error > 0.5 * history[step - STALL_WINDOW]):
            return error, step
        fold(reg, f, g, k, u, v)
        newton_direction(a, b, k, c, max(min(0.1, error), 0.3 * tol / error), x, r, p, degree, inverse)
        middle = longest = slope = 0.0
        for j in range(m):
            middle += b[j] * x[j]
        for j in range(m):
            x[j] = x[j] - middle if b[j] > 0.0 else 0.0
            longest = max(longest, abs(x[j]))
        for j in range(m):
            x[j] = min(max(x[j], -radius), radius)
            slope += (b[j] - c[j]) * x[j]
        length, low, slope_low, high, slope_high, moved, trial_error = 1.0, 0.0, slope, 0.0, 0.0, False, error
        for _ in range(6 if slope > 0.0 else 0):
            for j in range(m):
                v[j] = np.exp(length * x[j])
            trial_error = scaled(a, b, k, u, v, c)
            trial = 0.0
            for j in range(m):
                trial += (b[j] - c[j]) * x[j]
            if abs(trial) <= 0.5 * slope or (trial > 0.0 and length >= 1.0) or trial_error < 0.5 * error:
                moved = True
                break
            if trial > 0.0:
                low, slope_low = length, trial
            else:
                high, slope_high = length, trial
            length = low + (high - low) * min(max(slope_low / (slope_low - slope_high), 0.1), 0.9)
        clipped = longest > radius
        radius = 2.0 * radius if clipped and moved and length >= 1.0 else CLIP
        if not moved:
            v[:] = 1.0
            trial_error = scaled(a, b, k, u, v, c)
        error = trial_error
        if clipped or not moved or length < 1.0:
            error, _, _ = passes(a, b, k, u, v, c, error, 0.0, 1e9, 3, SMOOTHING_PASSES)
            if not admits(v) or not moved:
                fold(reg, f, g, k, u, v)
                error = sweep(cost, g, reg, a, b, f, k, u, v, c)
        history[step + 1] = error
    return error, most


@kernel
def follow_path(cost, reg, top, tol, careful, a, b, f, g, k, u, v, c, max_iter):
    """Lower reg from `top` to its target. Returns the error there and the numbers of iterations and of Newton steps."""
    m, level, known, nit, steps, above = len(b), top, False, 0, 0, 0.0
    at_above, at_level, row_sums = np.empty(m), np.empty(m), np.empty(len(a))
    f[:] = cost[:, 0]  # the range of the costs is some 8 level: that serves as shift
    error = sweep(cost, g, level, a, b, f, k, u, v, c)
    while True:
        last = level <= reg
        target, most = (ENOUGH * tol, LAST_PASSES) if last else (LEVEL_ERROR, LEVEL_PASSES)
        error, before, done = passes(a, b, k, u, v, c, error, target, most, 3, max_iter - nit)
        nit += done
        if last:
            return error, nit, steps
        if nit >= max_iter:  # what there is, with the rows of the target
            fold(level, f, g, k, u, v)
            return sweep(cost, g, reg, a, b, f, k, u, v, c), nit, steps
        hard = error > min(LEVEL_ERROR, 0.5 * before)
        wanted, limit = (CAREFUL_ERROR, MAX_STEPS) if careful else (HARD_ERROR, 2)
        if careful or (hard and error > wanted):
            error = scaled(a, b, k, u, v, c)  # half a step on: take stock there
            error, more = newton(cost, level, a, b, f, g, k, u, v, c, error, wanted, min(limit, max_iter - nit))
            steps, nit = steps + more, nit + more
        fold(level, f, g, k, u, v)
        lower = max(level / (CAREFUL if careful else 2.0 if hard else 4.0), reg)
        slope, far = (lower - level) / (level - above) if known else 0.0, 0.0
        at_level[:] = g
        for j in range(m):
            if b[j] > 0.0:
                g[j] += slope * (g[j] - at_above[j]) if known else 0.0
                far = max(far, abs(g[j] - at_level[j]) / lower)
        factor = level / lower
        if far < FARTHEST and factor in (2.0, 4.0):
            for j in range(m):
                v[j] = np.exp((g[j] - at_level[j]) / lower) if b[j] > 0.0 else 1.0
            error = sharpened(factor, lower, a, b, f, k, u, v, c, row_sums)
        else:
            error = sweep(cost, g, lower, a, b, f, k, u, v, c)
        at_above[:], above, level, known = at_level, level, lower, True


@kernel
def sharpened(factor, reg, a, b, f, k, u, v, c, row_sums):
    """Lower reg by powers of the entries of K, whose columns are then scaled by v. Returns the error."""
    sums = np.zeros((1, len(b)))
    sharpen(0, len(a), sums, k, a, v, 1 if factor == 2.0 else 2, row_sums)
    for i in range(len(a)):
        f[i] -= reg * np.log(row_sums[i])
    u[:], v[:], c[:] = 1.0, 1.0, sums[0]
    return misfit(b, c)


@kernel
def certify(cost, reg, a, b, f, g, figures):
    """figures <- marginal error, <P, C>, <f, P 1> + <g - reg log b, P' 1>, sum P - 1, by `plan_sums`. Returns the first."""
    n, m = cost.shape
    columns, rows = np.zeros((1, m)), np.empty(n)
    linear = plan_sums(0, n, columns, cost, f, g, 1.0 / reg, a, rows)
    error = potential = total = 0.0
    for i in range(n):
        error += abs(rows[i] - a[i])
        potential += f[i] * rows[i]
        total += rows[i]
    for j in range(m):
        error += abs(columns[0, j] - b[j])
        potential += (g[j] - reg * np.log(b[j])) * columns[0, j] if b[j] > 0.0 else 0.0
    figures[0], figures[1], figures[2], figures[3] = error, linear, potential, total - 1.0
    return error


@kernel
def solve_one(cost, a, b, reg, top, tol, max_iter, warm, f, g, k, u, v, c, figures):
    """Solve a problem; f and g as `RowPlan` has them. Returns the status and the numbers of iterations and Newton steps."""
    nit = steps = 0
    for attempt in range(0 if warm else 1, 3):  # from the start, by a path, by a careful path
        if attempt == 0:
            f[:] = np.nan
            error = sweep(cost, g, reg, a, b, f, k, u, v, c)
            error, more = newton(cost, reg, a, b, f, g, k, u, v, c, error, ENOUGH * tol, min(MAX_STEPS, max_iter - nit))
            nit, steps = more, more
        else:
            for j in range(len(b)):
                g[j] = 0.0 if b[j] > 0.0 else -np.inf
            error, done, more = follow_path(cost, reg, top, tol, attempt == 2, a, b, f, g, k, u, v, c, max_iter - nit)
            nit, steps = nit + done, steps + more
        for again in range(3):
            fold(reg, f, g, k, u, v)
            if error <= ENOUGH * tol or again == 2 or nit >= max_iter:
                error = certify(cost, reg, a, b, f, g, figures)
                if error <= tol:
                    return CONVERGED, nit, steps
                if not np.isfinite(error):
                    return NOT_FINITE, nit, steps
                if nit >= max_iter:
                    return LIMIT, nit, steps
            error = sweep(cost, g, reg, a, b, f, k, u, v, c)
            error, more = newton(cost, reg, a, b, f, g, k, u, v, c, error, ENOUGH * tol, min(MAX_STEPS, max_iter - nit))
            nit, steps = nit + more, steps + more
    return STALLED, nit, steps


@kernel
def path_top(low, high, reg):
    """Where a path in reg begins: reg times a power of two near an eighth of the range of the costs."""
    top = (high - low) / 8.0
    return reg * 2.0 ** np.round(np.log2(top / reg)) if top > 2.0 * reg else reg


@kernel
def solve_problems(low, high, costs, a, b, regs, unread, lows, highs, stop, tol, max_iter, warm, f, g, counts, figures):
    """Solve and certify the problems [low, high).

    `costs` holds one matrix for each problem, or one for all. counts <- status, iterations, Newton steps; figures: see `certify`.
    `lows` and `highs` hold the extremes of the costs; where these are `unread` they are found here, while the cache has the costs.
    A problem whose costs are not all finite, or in whose rounding reg is lost, then sets `stop`, and all that is left stays undone.
    """
    n, m = costs.shape[1], costs.shape[2]
    k, u, v, c, sums = np.empty((n, m)), np.ones(n), np.ones(m), np.empty(m), np.empty((1, 0))
    for q in range(low, high):
        cost = costs[q if len(costs) > 1 else 0]
        if unread:
            total = extremes(0, n, sums, cost, lows[q : q + 1], highs[q : q + 1])
            lost = regs[q] < max(EPS * max(abs(lows[q]), abs(highs[q])), SMALLEST_REG)
            if lost or not np.isfinite(total) or not np.isfinite(highs[q] - lows[q]):
                stop[0] = True
            if stop[0]:
                return
        top = path_top(lows[q], highs[q], regs[q])
        counts[q, 0], counts[q, 1], counts[q, 2] = solve_one(
            cost, a[q], b[q], regs[q], top, tol, max_iter, warm, f[q], g[q], k, u, v, c, figures[q]
        )


@kernel
def bounds(low, high, costs, lows, highs, forbids):
    """The smallest entry of the matrices [low, high), NaN if one is; the largest finite one; and whether one is +inf."""
    n, m = costs.shape[1], costs.shape[2]
    sums = np.empty((1, 0))
    for q in range(low, high):
        cost = costs[q]
        if np.isfinite(extremes(0, n, sums, cost, lows[q : q + 1], highs[q : q + 1])):
            continue
        lows[q], highs[q] = np.inf, -np.inf
        for i in range(n):
            for j in range(m):
                if np.isnan(cost[i, j]):
                    lows[q] = np.nan
                elif cost[i, j] == np.inf:
                    forbids[q] = True
                else:
                    lows[q] = lows[q] if np.isnan(lows[q]) else min(lows[q], cost[i, j])
                    highs[q] = max(highs[q], cost[i, j])


@kernel
def plans(low, high, costs, f, g, regs, a, out):
    """out <- a_i exp((f_i + g_j - C_ij)/reg) of the problems [low, high)."""
    n, m = costs.shape[1], costs.shape[2]
    for q in range(low, high):
        cost, rate = costs[q if len(costs) > 1 else 0], LOG2E / regs[q]
        for i in range(n):
            row, target, weight, potential = cost[i], out[q, i], a[q, i], f[q, i]
            for j in range(m):
                target[j] = weight * exp2((potential + g[q, j] - row[j]) * rate)
