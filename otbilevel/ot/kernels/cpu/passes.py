"""Many scaling passes in one call, for a plan so small that the interpreter would take longer than a pass.

Marginals are fixed, or have a price of Kullback-Leibler type: `strengths` are those of rows and
columns, infinite for a fixed marginal, and the target of the columns then depends on where the plan is, see `marginals`.
"""

import numpy as np

from otbilevel.ot.kernels.cpu.compile import inlined, kernel
from otbilevel.ot.kernels.cpu.stored import scaling_pass

SLOW = 0.8
"""Reduction of the error short of which averaged iterations end: it is 1/2 in theory, and 1 at the rounding floor."""


@inlined
def share(strength, reg):
    """Of a soft minimum, the potential that is best."""
    return strength / (strength + reg) if strength < np.inf else 1.0


@kernel
def misfit(reg, b, log_weights, strength, g, log_v, sums, target):
    """Compute the target of the columns at g + reg log v. Returns its L1 distance from the sums."""
    total, of_price = 0.0, 1.0 / strength
    for j in range(len(b)):
        target[j] = b[j]
        if strength < np.inf:
            target[j] *= np.exp((reg * (log_weights[j] - log_v[j]) - g[j]) * of_price)
        total += abs(target[j] - sums[j])
    return total


@kernel
def half_step(reg, log_b, log_weights, strengths, g, log_v, sums, target, least, longest, relaxation):
    """Move log v by log(b / sums), or by what suits the price of the columns best after the best shift of all of g.

    That is `Marginals.half_step`.
    """
    gain, kept = 0.0, share(strengths[1], reg)
    fixed = strengths[0] == np.inf and strengths[1] == np.inf
    if not fixed:
        of_rows, of_columns = 1.0 / (strengths[0] + reg), 1.0 / strengths[1]
        held = wanted = 0.0
        for j in range(len(sums)):
            held, wanted = held + sums[j], wanted + target[j]
        if 0.0 < held < np.inf and 0.0 < wanted < np.inf:
            shift = (np.log(wanted) - np.log(held)) / (of_rows + of_columns)
            gain = shift / reg - shift * of_rows
    for j in range(len(sums)):
        step = min(log_b[j] - np.log(max(sums[j], least)), longest)
        if not fixed:
            place = g[j] / reg - log_weights[j] + log_v[j]
            step = kept * (place + gain + step) - place
        log_v[j] += relaxation * step


@inlined
def within(log_v, reach):
    """Whether a scaling may go that far from the last sweep."""
    low = high = log_v[0]
    for j in range(len(log_v)):
        low, high = min(low, log_v[j]), max(high, log_v[j])
        if np.isnan(log_v[j]):
            return False
    return high - low <= reach[0] and max(high, -low) <= reach[1]


@kernel
def scaling_passes(
    plan, a, b, log_b, log_weights, strengths, f, g, reg, u, at, log_v, sums, relaxation, tol, limits, reach, errors
):
    """Passes and half steps, the first of them to log v, until the error is at most `tol`, `errors` is full, or the reach ends.

    Then u, log v = at and sums are where the last one led, and log_v is where the next one would go; `errors` holds the error after
    each. Returns how many there were, and the share of the rows in the last error.
    """
    m, row_error, target, v, columns = len(b), 0.0, np.empty(len(b)), np.empty(len(b)), np.empty((1, len(b)))
    aprox = share(strengths[0], reg), -np.inf, np.inf
    for done in range(len(errors)):
        if not within(log_v, reach):
            return done, row_error
        for j in range(m):
            at[j], v[j] = log_v[j], np.exp(log_v[j])
        columns[:] = 0.0
        row_error = scaling_pass(0, len(a), columns, plan, a, u, v, relaxation, f, 1.0 / reg, aprox)
        for j in range(m):
            sums[j] = v[j] * columns[0, j]
        errors[done] = misfit(reg, b, log_weights, strengths[1], g, at, sums, target) + row_error
        half_step(reg, log_b, log_weights, strengths, g, log_v, sums, target, limits[0], limits[1], relaxation)
        if not errors[done] > tol:
            return done + 1, row_error
    return len(errors), row_error


@kernel
def averaged_passes(plan, a, strength, soft, potential, reg, tol, errors, step):
    """Averaged iterations f <- f + (aprox(S(f)) - f) / (1 + s) for a = b and a symmetric cost, see `symmetric`.

    K is that of the potential f, whose soft minima are `soft`. Ends when the L1 error of both marginals is at most `tol`, or falls
    by less than it should, or `errors` is full; then `potential` is where the last error was measured, and `step` the step from
    there. Returns the number of iterations.
    """
    n, base, kept, v = len(a), potential.copy(), share(strength, reg), np.ones(len(a))
    for done in range(len(errors)):
        error = 0.0
        for i in range(n):
            total = 0.0
            for j in range(n):
                total += plan[i, j] * v[j]
            here = soft[i] - reg * np.log(total)
            prescribed = np.exp(-potential[i] / strength) if strength < np.inf else 1.0
            error += 2.0 * a[i] * abs(np.exp((potential[i] - here) / reg) - prescribed)
            step[i] = (kept * here - potential[i]) / (1.0 + kept)
        errors[done] = error
        if error <= tol or not error < np.inf or (done > 2 and error > SLOW * errors[done - 1]):
            return done + 1
        if done + 1 < len(errors):
            for i in range(n):
                potential[i] += step[i]
                v[i] = np.exp((potential[i] - base[i]) / reg)
    return len(errors)
