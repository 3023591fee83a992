// Choosing the pairs that carry the mass: a warp a row, its pairs in the order of the columns.
//
// Counting and writing compare the same bits, as costs are computed without contraction. Macros: SOURCE, X, Y as in costs.cuh;
// PLAN.
#include "common.cuh"
#include "costs.cuh"

#define ROW_OF_WARP (blockIdx.x * WARPS + threadIdx.y)

template <class Keeps>
__device__ inline void count(int m, int i, long long *counts, Keeps keeps) {
  double kept = 0.0;
  for (int j = threadIdx.x; j < m; j += WARP) kept += keeps(j) ? 1.0 : 0.0;
  kept = warp_sum(kept);
  if (threadIdx.x == 0) counts[i] = (long long)kept;
}

template <class Keeps>
__device__ inline void fill(COST_PARAMETERS, int i, const long long *indptr, int *indices, int *rows, double *values, Keeps keeps) {
  long long place = indptr[i];
  for (int first = 0; first < m; first += WARP) {
    const int j = first + threadIdx.x;
    const bool kept = j < m && keeps(j);
    const unsigned mask = __ballot_sync(EVERYONE, kept);
    if (kept) {
      const long long k = place + __popc(mask & ((1u << threadIdx.x) - 1u));
      indices[k] = j;
      rows[k] = i;
      values[k] = single_cost(COST, i, j);
    }
    place += __popc(mask);
  }
}

// counts_i = how many pairs of row i have f_i + g_j - C_ij > threshold.
extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
lazy_count(COST_PARAMETERS, const double *__restrict__ f, const double *__restrict__ g, double threshold, long long *counts) {
  const int i = ROW_OF_WARP;
  if (i >= n) return;
  const double bar = threshold - f[i];
  count(m, i, counts, [&](int j) { return g[j] - single_cost(COST, i, j) > bar; });
}

extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
lazy_fill(COST_PARAMETERS, const double *__restrict__ f, const double *__restrict__ g, double threshold,
          const long long *__restrict__ indptr, int *indices, int *rows, double *values) {
  const int i = ROW_OF_WARP;
  if (i >= n) return;
  const double bar = threshold - f[i];
  fill(COST, i, indptr, indices, rows, values, [&](int j) { return g[j] - single_cost(COST, i, j) > bar; });
}

// counts_i = how many pairs of row i have K_ij v_j > bars_i.
extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
stored_count(const PLAN *__restrict__ plan, int n, int m, const double *__restrict__ v, const double *__restrict__ bars,
             long long *counts) {
  const int i = ROW_OF_WARP;
  if (i >= n) return;
  count(m, i, counts, [&](int j) { return (double)plan[(long long)i * m + j] * v[j] > bars[i]; });
}

extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
stored_fill(COST_PARAMETERS, const PLAN *__restrict__ plan, const double *__restrict__ v, const double *__restrict__ bars,
            const long long *__restrict__ indptr, int *indices, int *rows, double *values) {
  const int i = ROW_OF_WARP;
  if (i >= n) return;
  fill(COST, i, indptr, indices, rows, values, [&](int j) { return (double)plan[(long long)i * m + j] * v[j] > bars[i]; });
}
