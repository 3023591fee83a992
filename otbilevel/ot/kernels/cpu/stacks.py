"""Compiled work on stacks of vectors, see `kernels.stacks`. For 8 x 200 numbers NumPy takes several times as long to start."""

import numpy as np

from otbilevel.ot.kernels import stacks
from otbilevel.ot.kernels.cpu.compile import inlined, kernel
from otbilevel.ot.kernels.cpu.dense import maximum
from otbilevel.ot.kernels.cpu.exp import LOG2E, exp2
from otbilevel.ot.kernels.cpu.stored import add, add4, dot, dot4
from otbilevel.ot.kernels.cpu.threads import over_rows
from otbilevel.ot.kernels.stacks import LEAST_DEGREE

LARGEST_EXPONENT = 1009.0
"""Of 2, up to which `exp2` is what it says."""
FEW = 7
"""Vectors up to which one read of K by rows is faster than two products by BLAS, which rearranges K first."""


def scaling_pass(plan: np.ndarray, a: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if len(v) > FEW:
        return stacks.scaling_pass(plan, a, v)
    products, u = np.empty(a.shape), np.empty(a.shape)
    sums, _ = over_rows(_scaling_pass, len(plan), _work(plan, v), v.shape, plan, a, v, products, u)
    return products, u, sums


def mean_product(plan: np.ndarray, products: np.ndarray, u: np.ndarray, x: np.ndarray) -> np.ndarray:
    if len(x) > FEW:
        return stacks.mean_product(plan, products, u, x)
    return over_rows(_mean_product, len(plan), _work(plan, x), x.shape, plan, products, u, x)[0]


def _work(plan: np.ndarray, vectors: np.ndarray) -> int:
    """In terms of exponentials: two products make a fifth of one."""
    return plan.size * len(vectors) // 5


@kernel
def _scaling_pass(low, high, sums, plan, a, v, products, u):
    """products = K v_k, u_k = a_k / (K v_k), sums_k += K' u_k."""
    i = low
    while i < high:
        for k in range(len(v)):
            if i + 4 <= high:
                products[k, i], products[k, i + 1], products[k, i + 2], products[k, i + 3] = dot4(plan, i, v[k])
                for r in range(i, i + 4):
                    u[k, r] = a[k, r] / products[k, r]
                add4(plan, i, u[k, i], u[k, i + 1], u[k, i + 2], u[k, i + 3], sums[k])
            else:
                for r in range(i, high):
                    products[k, r] = dot(plan, r, v[k])
                    u[k, r] = a[k, r] / products[k, r]
                    add(plan, r, u[k, r], sums[k])
        i += 4
    return 0.0


@kernel
def _mean_product(low, high, sums, plan, products, u, x):
    """sums_k += K' diag(u_k) diag(1 / products_k) K x_k."""
    i = low
    while i < high:
        for k in range(len(x)):
            if i + 4 <= high:
                s0, s1, s2, s3 = dot4(plan, i, x[k])
                w0, w1 = s0 / products[k, i] * u[k, i], s1 / products[k, i + 1] * u[k, i + 1]
                w2, w3 = s2 / products[k, i + 2] * u[k, i + 2], s3 / products[k, i + 3] * u[k, i + 3]
                add4(plan, i, w0, w1, w2, w3, sums[k])
            else:
                for r in range(i, high):
                    add(plan, r, dot(plan, r, x[k]) / products[k, r] * u[k, r], sums[k])
        i += 4
    return 0.0


@inlined
def exponentials(logs, lowest, out):
    """out <- exp(max(logs - top, lowest)). Returns their maximum, the top."""
    out[:] = logs
    top = maximum(out)  # one that overlooks a NaN, which its own exponential keeps
    for j in range(len(logs)):
        out[j] = exp2(max(logs[j] - top, lowest) * LOG2E)  # in this order of arguments `max` keeps NaN
    return top


@kernel
def scaled(logs, lowest):
    """The maximum of each vector, and exp(logs - maximum), at least exp(lowest)."""
    top, v = np.empty(len(logs)), np.empty(logs.shape)
    for k in range(len(logs)):
        top[k] = exponentials(logs[k], lowest, v[k])
    return top, v


@kernel
def columns(sums, top, v):
    """log sums - top, and v sums."""
    log_sums, column_sums = np.empty(sums.shape), np.empty(sums.shape)
    for k in range(len(sums)):
        for j in range(sums.shape[1]):
            log_sums[k, j] = np.log(sums[k, j]) - top[k]
            column_sums[k, j] = v[k, j] * sums[k, j]
    return log_sums, column_sums


@kernel
def inner(w, x, y):
    """sum_k w_k <x_k, y_k>."""
    total = 0.0
    for k in range(len(x)):
        part = 0.0
        for j in range(x.shape[1]):
            part += x[k, j] * y[k, j]
        total += w[k] * part
    return total


@kernel
def distances(column_sums, b):
    """||c_k - b||_1."""
    out = np.zeros(len(column_sums))
    for k in range(len(column_sums)):
        for j in range(len(b)):
            out[k] += abs(column_sums[k, j] - b[j])
    return out


@kernel
def disagreement(column_sums, b):
    """max_k ||c_k - b||_1; NaN when one is."""
    error = 0.0
    for total in distances(column_sums, b):
        error = total if total > error or total != total else error  # noqa: PLR0124
    return error


@kernel
def geometric_mean(w, log_sums, column_sums):
    """sum_k w_k log_sums_k minus its maximum, its exponential scaled to sum 1, and how far the columns are from that."""
    log_b, b = np.zeros(log_sums.shape[1]), np.empty(log_sums.shape[1])
    for k in range(len(w)):
        for j in range(len(b)):
            log_b[j] += w[k] * log_sums[k, j]
    top = exponentials(log_b, -np.inf, b)
    total = b.sum()
    for j in range(len(b)):
        log_b[j] -= top
        b[j] /= total
    return log_b, b, disagreement(column_sums, b)


@kernel
def debiased_step(point, w, log_sums, column_sums, self_log_sums):
    """b, its distance from the columns of the plans, the step of the fixed-point iteration, and the metric to measure it in."""
    count, n = log_sums.shape
    h, b, step, metric = point[count], np.empty(n), np.empty(point.shape), np.empty(point.shape)
    log_b = h.copy()
    for k in range(count):
        for j in range(n):
            log_b[j] += w[k] * log_sums[k, j]
    shift = exponentials(log_b, -np.inf, b) + np.log(b.sum())  # the plans do not see the mass of b
    b /= b.sum()
    difference = 0.0
    for j in range(n):
        log_b[j] -= shift
        exponent = (h[j] + self_log_sums[j]) * LOG2E
        diagonal = exp2(exponent) if not exponent > LARGEST_EXPONENT else np.inf  # exp2 would stay finite
        difference += abs(diagonal - b[j])
        step[count, j] = 0.5 * (log_b[j] - h[j] - self_log_sums[j])
        metric[count, j] = np.sqrt(diagonal)
    for k in range(count):
        for j in range(n):
            step[k, j] = log_b[j] - log_sums[k, j] - point[k, j]
            metric[k, j] = np.sqrt(w[k] * column_sums[k, j])
    error = disagreement(column_sums, b)
    return b, (difference if difference > error or difference != difference else error), step, metric  # noqa: PLR0124 -- keeps NaN


@kernel
def inverse(degree):
    """1 / degree, and 1 where that is next to nothing."""
    out = np.empty(degree.shape)
    for k in range(len(degree)):
        for j in range(degree.shape[1]):
            out[k, j] = 1.0 / degree[k, j] if degree[k, j] > LEAST_DEGREE else 1.0
    return out


@kernel
def balance(inverse_diagonal, column_sums, b, w):
    """The inverse diagonals times min(c_k / b, 1), and the shares of the inputs in w_k times that."""
    out, shares, totals = np.empty(column_sums.shape), np.empty(column_sums.shape), np.zeros(len(b))
    for k in range(len(w)):
        for j in range(len(b)):
            more = max(column_sums[k, j], b[j])
            out[k, j] = inverse_diagonal[k, j] * (column_sums[k, j] / more if more > 0 else 1.0)
            shares[k, j] = w[k] * out[k, j]
            totals[j] += shares[k, j]
    for k in range(len(w)):
        for j in range(len(b)):
            shares[k, j] /= totals[j]
    return out, shares


@kernel
def precondition(r, inverse_diagonal, shares, w):
    """z_k = (r_k - sum_l shares_l r_l) inverse_diagonal_k, so that sum_k w_k z_k = 0, and the inner product of r and z."""
    z, mean, square = np.empty(r.shape), np.zeros(r.shape[1]), 0.0
    for k in range(len(r)):
        for j in range(len(mean)):
            mean[j] += shares[k, j] * r[k, j]
    for k in range(len(r)):
        part = 0.0
        for j in range(len(mean)):
            z[k, j] = inverse_diagonal[k, j] * (r[k, j] - mean[j])
            part += r[k, j] * z[k, j]
        square += w[k] * part
    return z, square


@kernel
def cg_step(x, r, p, q, rz, inverse_diagonal, shares, w):
    """A step of preconditioned conjugate gradients along p, with q = L p: x, r, p, rz there, and the curvature <p, q>."""
    curvature = inner(w, p, q)
    alpha = rz / curvature if curvature > 0 else 0.0
    x, r = x + alpha * p, r - alpha * q
    z, square = precondition(r, inverse_diagonal, shares, w)
    return x, r, z + (square / rz) * p, square, curvature
