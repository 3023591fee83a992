"""Scaling passes one after the other, for a plan so small that the interpreter would take longer than a pass.

They are those of `sinkhorn.scale`. Marginals are fixed, or have a price of Kullback-Leibler type: `strengths` are those of rows and
columns, infinite for a fixed marginal, and the target of the columns then depends on where the plan is, see `marginals`.
"""

import numpy as np

from otbilevel.ot.kernels.cpu.compile import inlined, kernel
from otbilevel.ot.kernels.cpu.stored import scaling_pass

FEWEST = 3
"""Passes before the contraction is trusted."""


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
def half_step(reg, log_b, log_weights, strengths, g, log_v, sums, target, least, longest):
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
        log_v[j] += step


@kernel
def scaling_passes(
    plan, a, b, log_weights, strengths, f, g, reg, u, here, log_v, sums, error, target, expected, reach, limits, errors
):
    """Passes from where the plan is (u, log v = here, with these column sums and this error), until one of these holds.

    The error is at most `target`; `errors`, which gets that after each pass, is full; at the measured contraction the target takes
    more passes than `expected`; the next one would leave the reach. Then u, here and sums are where the plan is, and log_v is half
    a step further. Returns the number of passes.
    """
    m, done, before, prescribed, v, log_b = len(b), 0, error, np.empty(len(b)), np.empty(len(b)), np.log(b)
    least, longest, largest = limits
    aprox = share(strengths[0], reg), -np.inf, np.inf
    log_v[:] = here
    misfit(reg, b, log_weights, strengths[1], g, log_v, sums, prescribed)
    while True:
        half_step(reg, log_b, log_weights, strengths, g, log_v, sums, prescribed, least, longest)
        if done > 0 and (error <= target or done >= len(errors)):
            return done
        if done >= FEWEST:
            rate = error / before
            if not rate < 1.0 or done + np.log(target / error) / np.log(rate) > expected:
                return done
        low = high = log_v[0]
        for j in range(m):
            low, high = min(low, log_v[j]), max(high, log_v[j])
        if not (high - low <= reach and max(high, -low) <= largest):
            return done
        for j in range(m):
            here[j], v[j] = log_v[j], np.exp(log_v[j])
        columns = np.zeros((1, m))
        scaling_pass(0, len(a), columns, plan, a, u, v, 1.0, f, 1.0 / reg, aprox)
        for j in range(m):
            sums[j] = v[j] * columns[0, j]
        before, error = error, misfit(reg, b, log_weights, strengths[1], g, log_v, sums, prescribed)
        errors[done] = error
        done += 1


@kernel
def averaged_passes(plan, a, strength, soft, potential, reg, target, errors, step):
    """Averaged iterations f <- f + (aprox(S(f)) - f) / (1 + s) for a = b and a symmetric cost, see `symmetric`.

    K is that of the potential f, whose soft minima are `soft`. Ends when the L1 error of both marginals is at most `target`, or
    `errors` is full; then `potential` is where the last error was measured, and `step` the step from there. Returns the number of
    iterations.
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
        if error <= target or not error < np.inf:
            return done + 1
        if done + 1 < len(errors):
            for i in range(n):
                potential[i] += step[i]
                v[i] = np.exp((potential[i] - base[i]) / reg)
    return len(errors)
