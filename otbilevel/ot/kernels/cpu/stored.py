"""Compiled passes over a stored K: products only, no exponential, one read of the matrix each.

Conventions as in `dense`. Four rows are taken at a time, so that the vectors are read once per four rows.
"""

import numpy as np

from otbilevel.ot.kernels.cpu.compile import inlined, kernel

TINY32, TINY64 = float(np.finfo(np.float32).tiny), float(np.finfo(np.float64).tiny)


@inlined
def dot4(plan, i, v):
    s0 = s1 = s2 = s3 = 0.0
    for j in range(len(v)):
        s0 += plan[i, j] * v[j]
        s1 += plan[i + 1, j] * v[j]
        s2 += plan[i + 2, j] * v[j]
        s3 += plan[i + 3, j] * v[j]
    return s0, s1, s2, s3


@inlined
def add4(plan, i, s0, s1, s2, s3, out):
    """out += the rows i, ..., i + 3, weighted."""
    for j in range(len(out)):
        out[j] += s0 * plan[i, j] + s1 * plan[i + 1, j] + s2 * plan[i + 2, j] + s3 * plan[i + 3, j]


@inlined
def scaled(x, scale, out):
    """out <- scale x, multiplied in the precision of x.

    Subnormal numbers become zeros: with their few digits they would spoil Newton's steps where weights differ by many orders.
    """
    factor, smallest, zero = x.dtype.type(scale), x.dtype.type(TINY32 if out.itemsize == 4 else TINY64), x.dtype.type(0)
    for j in range(len(x)):
        value = x[j] * factor
        out[j] = value if value >= smallest else zero


@inlined
def _add_squares4(plan, i, weights, out):
    w0, w1, w2, w3 = weights[0], weights[1], weights[2], weights[3]
    for j in range(len(out)):
        k0, k1 = np.float64(plan[i, j]), np.float64(plan[i + 1, j])
        k2, k3 = np.float64(plan[i + 2, j]), np.float64(plan[i + 3, j])
        out[j] += w0 * k0 * k0 + w1 * k1 * k1 + w2 * k2 * k2 + w3 * k3 * k3


@inlined
def dot(plan, i, v):
    s = 0.0
    for j in range(len(v)):
        s += plan[i, j] * v[j]
    return s


@inlined
def add(plan, i, s, out):
    for j in range(len(out)):
        out[j] += s * plan[i, j]


@kernel
def relaxed(u, row_sum, relaxation):
    """u^(1 - w) (1 / row_sum)^w."""
    return 1.0 / row_sum if relaxation == 1.0 else u ** (1.0 - relaxation) * row_sum ** (-relaxation)


@inlined
def yielded(f, inv_reg, aprox):
    """exp((aprox(f) - f)/reg): what the mass of a row with soft minimum f is to its weight."""
    share, least, most = aprox
    p = min(max(share * f, least), most)
    return 1.0 if p == f else np.exp((p - f) * inv_reg)


@kernel
def scaling_pass(low, high, sums, plan, a, u, v, relaxation, f, inv_reg, aprox):
    """u <- relaxed(u, K v), sums[0] += K' (r u): both half steps in one read of K. Returns the L1 error of the row sums.

    The row masses r are the weights a where the marginal is fixed; else they follow from the soft minima f_i + reg log u_i.
    """
    row_error, i, columns, rigid = 0.0, low, sums[0], aprox[0] == 1.0 and aprox[1] == -np.inf and aprox[2] == np.inf
    while i < high:
        if i + 4 <= high:
            s0, s1, s2, s3 = dot4(plan, i, v)
            u[i], u[i + 1] = relaxed(u[i], s0, relaxation), relaxed(u[i + 1], s1, relaxation)
            u[i + 2], u[i + 3] = relaxed(u[i + 2], s2, relaxation), relaxed(u[i + 3], s3, relaxation)
            row_error += a[i] * abs(u[i] * s0 - 1.0) + a[i + 1] * abs(u[i + 1] * s1 - 1.0)
            row_error += a[i + 2] * abs(u[i + 2] * s2 - 1.0) + a[i + 3] * abs(u[i + 3] * s3 - 1.0)
            w0, w1, w2, w3 = a[i] * u[i], a[i + 1] * u[i + 1], a[i + 2] * u[i + 2], a[i + 3] * u[i + 3]
            if not rigid:
                w0 *= yielded(f[i] + np.log(u[i]) / inv_reg, inv_reg, aprox)
                w1 *= yielded(f[i + 1] + np.log(u[i + 1]) / inv_reg, inv_reg, aprox)
                w2 *= yielded(f[i + 2] + np.log(u[i + 2]) / inv_reg, inv_reg, aprox)
                w3 *= yielded(f[i + 3] + np.log(u[i + 3]) / inv_reg, inv_reg, aprox)
            add4(plan, i, w0, w1, w2, w3, columns)
            i += 4
        else:
            s = dot(plan, i, v)
            u[i] = relaxed(u[i], s, relaxation)
            row_error += a[i] * abs(u[i] * s - 1.0)
            w = a[i] * u[i] if rigid else a[i] * u[i] * yielded(f[i] + np.log(u[i]) / inv_reg, inv_reg, aprox)
            add(plan, i, w, columns)
            i += 1
    return row_error


@kernel
def shift_pass(low, high, sums, plan, a, growth, change):
    """change = u - 1 where u = 1/(K v) and growth = v - 1, for a K with row sums 1; sums[0] += K' (a change)."""
    i, columns = low, sums[0]
    while i < high:
        if i + 4 <= high:
            s0, s1, s2, s3 = dot4(plan, i, growth)
            change[i], change[i + 1] = -s0 / (1.0 + s0), -s1 / (1.0 + s1)
            change[i + 2], change[i + 3] = -s2 / (1.0 + s2), -s3 / (1.0 + s3)
            add4(plan, i, a[i] * change[i], a[i + 1] * change[i + 1], a[i + 2] * change[i + 2], a[i + 3] * change[i + 3], columns)
            i += 4
        else:
            s = dot(plan, i, growth)
            change[i] = -s / (1.0 + s)
            add(plan, i, a[i] * change[i], columns)
            i += 1
    return 0.0


@kernel
def sharpen(low, high, sums, plan, a, v, squarings, row_sums):
    """K_ij <- K_ij^2 or ^4 times v_j, divided by the row sums r_i of that; sums[0] += K'a. `v` has the dtype of `plan`."""
    columns, weights, x = sums[0], np.empty(4), np.zeros((4, len(v)), plan.dtype)
    for first in range(low, high, 4):
        rows = min(4, high - first)
        weights[:] = 0.0
        for r in range(rows):
            k, out, total = plan[first + r], x[r], plan.dtype.type(0)
            if squarings == 1:
                for j in range(len(v)):
                    out[j] = k[j] * k[j] * v[j]
                    total += out[j]
            else:
                for j in range(len(v)):
                    square = k[j] * k[j]
                    out[j] = square * square * v[j]
                    total += out[j]
            row_sums[first + r] = total
            weights[r] = a[first + r] / total
        add4(x, 0, weights[0], weights[1], weights[2], weights[3], columns)
        for r in range(rows):
            scaled(x[r], 1.0 / row_sums[first + r], plan[first + r])
    return 0.0


@kernel
def laplacian_product(low, high, sums, plan, weights, x):
    """sums[0] += K' diag(weights) K x."""
    i, columns = low, sums[0]
    while i < high:
        if i + 4 <= high:
            s0, s1, s2, s3 = dot4(plan, i, x)
            add4(plan, i, weights[i] * s0, weights[i + 1] * s1, weights[i + 2] * s2, weights[i + 3] * s3, columns)
            i += 4
        else:
            add(plan, i, weights[i] * dot(plan, i, x), columns)
            i += 1
    return 0.0


@kernel
def plan_moments(low, high, sums, plan, weights, v, row_sums):
    """Row sums r = K v, sums[0]_j += w_i K_ij, sums[1]_j += w_i K_ij^2 / r_i."""
    i, shares, columns, squares = low, np.empty(4), sums[0], sums[1]
    while i < high:
        if i + 4 <= high:
            row_sums[i], row_sums[i + 1], row_sums[i + 2], row_sums[i + 3] = dot4(plan, i, v)
            add4(plan, i, weights[i], weights[i + 1], weights[i + 2], weights[i + 3], columns)
            for r in range(4):
                shares[r] = weights[i + r] / row_sums[i + r]
            _add_squares4(plan, i, shares, squares)
            i += 4
        else:
            row_sums[i] = dot(plan, i, v)
            add(plan, i, weights[i], columns)
            for j in range(len(v)):
                squares[j] += weights[i] / row_sums[i] * plan[i, j] * plan[i, j]
            i += 1
    return 0.0
