"""The sweeps over the cost, named by their mathematics, with the same signatures for every array library.

With K_ij = exp((f_i + g_j - C_ij)/reg) and the plan P = diag(a) K (where the marginal of the rows is not fixed, row masses r take
the place of a, see `aprox`), the kernels are

==========================  =====================================================================================================
`extremes`                  the smallest and the largest entry of a cost matrix, NaN if one is
`cost_bounds`               the smallest and the largest finite cost
`softmax_rows`              f = -reg log sum_j exp((g_j - C_ij)/reg), so that the rows of K sum to 1; K' r; optionally K itself
`scaling_pass`              one Sinkhorn iteration in scaling form on a stored K: u = 1/(K v), K'(r u)
`scaling_passes`            several of them, until the error is small or log v too large (on a device, or for a small plan)
`averaged_passes`           averaged iterations on f for a measure with itself (only compiled, for small plans)
`shift_pass`                the same near v = 1, in terms of v - 1 and u - 1: then a K in single precision costs nothing in accuracy
`sharpen`                   a stored K at a smaller reg: its entries squared once or twice, times v, the rows normalised again
`laplacian_product`         K' diag(w) K x on a stored K
`plan_moments`              r = K v, K' w and sum_i w_i K_ij^2 / r_i of a stored K
`lazy_product, _moments`    the same two with K computed on the way, v = 1 and w = a
`plan_sums`                 both marginals and the cost of the plan, in full precision
`plan_rows`                 some rows of the plan
`plan_product`              the plan times vectors
`solve_laplacian`           conjugate gradients on L in one compiled loop (only where there is one)
`active_set`                the pairs with u_i K_ij v_j > cutoff of a stored K (only where there are sparse kernels)
`lazy_active_set`           the pairs with f_i + g_j - C_ij > threshold
==========================  =====================================================================================================

and on vectors, in `vector_kernels`,

==========================  =====================================================================================================
`extremes`                  the smallest and the largest number, NaN if one is
`distance`                  sum |x - y|
`log_ratio`                 log(b / max(sums, smallest)), at most `most`
`balanced`                  x - y minus the multiple of the weights that makes the sum 0
`centred`                   d = x minus its (upper) median, max |d| and sum b |d|
`inverse_diagonal`          1 / max(degree - squares, floor degree), and 1 where that is next to nothing
==========================  =====================================================================================================

and on stacks of k vectors, for barycentres, in `stack_kernels`,

==========================  =====================================================================================================
`scaling_pass`              K v_k, u_k = a_k / (K v_k), K' u_k on one stored K
`mean_product`              K' diag(u_k) diag(1 / (K v_k)) K x_k
`scaled`                    the maximum of each vector, and exp(logs - maximum), at least exp(lowest)
`columns`                   log sums - top, v sums
`inner`                     sum_k w_k <x_k, y_k>
`distances`, `disagreement` ||c_k - b||_1, and the largest of these
`geometric_mean`            log of prod_k (sums_k)^w_k, which has the maximum 0, and b, the same with unit mass; `disagreement`
`debiased_step`             the fixed-point iteration of debiased barycentres, see `barycenters.anderson`
`inverse`                   1 / degree, and 1 where that is next to nothing
`balance`                   inverse diagonals times min(c_k / b, 1), and the inputs' shares in w_k times that
`precondition`              z_k = (r_k - sum_l shares_l r_l) times the inverse diagonal, and the inner product of r and z
`cg_step`                   a step of conjugate gradients under the constraint sum_k w_k x_k = 0
==========================  =====================================================================================================

On the stored pairs of a sparse cost there are kernels of the same names in `generic_pairs`, the truth, and `cpu.sparse_cost`; and
`transport_flow`, a maximum flow from rows to columns, which tells whether forbidden pairs leave a plan.

Between many points the plan is interpolated, by kernels of its own: see `otbilevel.ot.cells`.

`generic` is the truth, in the array API; `cpu` is compiled for NumPy, `cuda` for CuPy. Setting ``OTBILEVEL_KERNELS=generic`` in
the environment forces the first.
"""

from __future__ import annotations

import os
from types import ModuleType

import numpy as np

from otbilevel._core.array import is_cupy_namespace, is_numpy_namespace
from otbilevel.ot.kernels import generic, generic_pairs


def select(xp: ModuleType) -> ModuleType:
    """The kernels for arrays of namespace `xp`."""
    if os.environ.get("OTBILEVEL_KERNELS", "") == "generic":
        return generic
    if is_numpy_namespace(xp):
        from otbilevel.ot.kernels import cpu  # noqa: PLC0415 -- brings in numba, which takes a while

        return cpu
    if is_cupy_namespace(xp):
        from otbilevel.ot.kernels import cuda  # noqa: PLC0415 -- for those who have a GPU

        return cuda
    return generic


def select_sparse() -> ModuleType:
    """The kernels for the stored pairs of a sparse cost, whose arrays are NumPy's."""
    if select(np) is generic:
        return generic_pairs
    from otbilevel.ot.kernels.cpu import sparse_cost  # noqa: PLC0415 -- brings in numba, which takes a while

    return sparse_cost
