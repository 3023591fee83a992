"""Unregularised transport under linear constraints: the linear program with more rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import sparse

from otbilevel._core.array import device, to_numpy
from otbilevel._core.monitor import Monitor
from otbilevel._core.result import Status
from otbilevel.ot.constraint_system import ConstraintSystem
from otbilevel.ot.functionals import blocks
from otbilevel.ot.linear_program import Program, Vertex, solve_program

VIOLATED = 1e-9
"""Violation, relative to the scale of a constraint, that counts."""


def constrained_vertex(system: ConstraintSystem, program: Program, monitor: Monitor) -> Vertex:
    """Solve a program of transport alone under constraints, by HiGHS.

    Needs host memory, and K n m numbers where constraints are on the whole plan.

    Where there is no solution the vertex is one that violates the constraints as little as possible, and its message names them.
    """
    scales = to_numpy(system.scales)
    rows = sparse.csr_array(_rows(system, program.i, program.j).multiply(1.0 / scales[:, None]))
    bounds = {name: to_numpy(getattr(system, bound)) / scales for name, bound in (("lower", "lb"), ("upper", "ub"))}
    program = replace(program, rows=rows, **bounds)
    vertex = solve_program(program, monitor)
    if vertex.status is Status.INFEASIBLE:
        return _nearest(system, program, monitor)
    return vertex._replace(multipliers=vertex.multipliers / scales)


def _rows(system: ConstraintSystem, i: np.ndarray, j: np.ndarray) -> sparse.csr_array:
    """D_k at the pairs (i, j), a row for each k."""
    values, constraints, pairs, before = [], [], [], 0
    for part in system.few:
        for low, high in blocks(part):
            inside = np.flatnonzero((i >= low) & (i < high))
            block = to_numpy(part.block(low, high))[:, i[inside] - low, j[inside]]
            k, position = np.nonzero(block)
            values.append(block[k, position])
            constraints.append(before + k)
            pairs.append(inside[position])
        before += part.size
    if system.rows is not None:
        x, y = to_numpy(system.rows.x), to_numpy(system.rows.y)
        d = x.shape[1]
        for c in range(d):
            values.append(y[j, c] - x[i, c])
            constraints.append(before + i * d + c)
            pairs.append(np.arange(len(i)))
    index = np.concatenate(constraints), np.concatenate(pairs)
    return sparse.csr_array((np.concatenate(values), index), shape=(system.lb.shape[0], len(i)))


def _nearest(system: ConstraintSystem, program: Program, monitor: Monitor) -> Vertex:
    """The plan that violates the constraints least, in the sum relative to their scales, and words that say which."""
    k, n_pairs = program.rows.shape
    slack = sparse.eye_array(k)
    elastic = replace(
        program,
        costs=np.concatenate([np.zeros(n_pairs), np.ones(2 * k)]),
        rows=sparse.csr_array(sparse.hstack([program.rows, slack, -slack])),
    )
    vertex = solve_program(elastic, monitor)
    if vertex.status is not Status.SUCCESS:
        return vertex
    entries = vertex.coupling.toarray()[program.i, program.j]
    xp, where = system.xp, device(system.lb)
    values = xp.asarray(program.rows @ entries, dtype=xp.float64, device=where) * system.scales
    excess = to_numpy(system.public(system.violation(values) / system.scales))
    worst = [int(index) for index in np.argsort(-excess) if excess[index] > VIOLATED]
    names = ", ".join(system.name(index) for index in worst[:3]) + (f" and {len(worst) - 3} more" if len(worst) > 3 else "")
    reached = (
        f"; the nearest that can be reached is {float(system.public(values)[worst[0]]) * system.mass:.6g}"
        if len(worst) == 1
        else ""
    )
    message = f"infeasible: {names} cannot be met along with the marginals and the other constraints{reached}"
    return vertex._replace(
        f=np.zeros_like(vertex.f), g=np.zeros_like(vertex.g), multipliers=np.zeros(k), status=Status.INFEASIBLE, message=message
    )
