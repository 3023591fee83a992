// Passes over a stored K whose rows are too long for strips.cu: rows first, then columns. Grids and partial sums are those of
// sweeps.cu. Macro: PLAN, the type of K.
#include "common.cuh"

#define WARPS 8
#define PER_ROW 4
#define PER_COLUMN 2
#define ROWS (WARPS * PER_ROW)
#define COLUMNS (WARP * PER_COLUMN)

// K^1, K^2 or K^4, in the precision of K.
__device__ inline PLAN powered(PLAN entry, int squarings) {
  if (squarings >= 1) entry *= entry;
  return squarings == 2 ? entry * entry : entry;
}

// sum_j K_ij^p v_j with p = 2^squarings, rounded like the entries if p > 1. Nothing when `done` says that a solve is over.
extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
stored_rows(const PLAN *__restrict__ plan, int n, int m, const double *__restrict__ v, int squarings,
            const double *__restrict__ done, double *parts) {
  if (*done != 0.0) return;
  const int first = blockIdx.x * ROWS + threadIdx.y;
  double sums[PER_ROW] = {};
  for (int j = blockIdx.y * WARP + threadIdx.x; j < m; j += gridDim.y * WARP) {
    const double factor = v[j];
#pragma unroll
    for (int r = 0; r < PER_ROW; ++r) {
      const int i = first + WARPS * r;
      if (i >= n) continue;
      const PLAN entry = powered(plan[(long long)i * m + j], squarings);
      sums[r] += squarings == 0 ? (double)entry * factor : (double)(entry * (PLAN)factor);
    }
  }
#pragma unroll
  for (int r = 0; r < PER_ROW; ++r) {
    const double total = warp_sum(sums[r]);
    const int i = first + WARPS * r;
    if (threadIdx.x == 0 && i < n) parts[(long long)blockIdx.y * n + i] = total;
  }
}

// sum_i w_i K_ij, or with `square` sum_i w_i K_ij^2. With v, K_ij is first replaced by K_ij^p v_j scale_i.
template <class Entry>
__device__ inline void stored_sums(int n, int m, const double *__restrict__ w, double *parts, Entry entry) {
  __shared__ double of_warp[WARPS][COLUMNS];
  const int left = blockIdx.x * COLUMNS + threadIdx.x;
  double sums[PER_COLUMN] = {};
  for (int first = blockIdx.y * ROWS + threadIdx.y; first < n; first += gridDim.y * ROWS)
#pragma unroll
    for (int r = 0; r < PER_ROW; ++r) {
      const int i = first + WARPS * r;
      if (i >= n) continue;
      const double weight = w[i];
#pragma unroll
      for (int q = 0; q < PER_COLUMN; ++q)
        if (left + WARP * q < m) sums[q] += weight * entry(i, left + WARP * q);
    }
#pragma unroll
  for (int q = 0; q < PER_COLUMN; ++q) of_warp[threadIdx.y][threadIdx.x + WARP * q] = sums[q];
  __syncthreads();
  const int thread = threadIdx.y * WARP + threadIdx.x, j = blockIdx.x * COLUMNS + thread;
  if (thread < COLUMNS && j < m) {
    double total = 0.0;
    for (int warp = 0; warp < WARPS; ++warp) total += of_warp[warp][thread];
    parts[(long long)blockIdx.y * m + j] = total;
  }
}

extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
stored_columns(const PLAN *__restrict__ plan, int n, int m, const double *__restrict__ w, const double *__restrict__ done,
               double *parts) {
  if (*done != 0.0) return;
  stored_sums(n, m, w, parts, [&](int i, int j) { return (double)plan[(long long)i * m + j]; });
}

extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
stored_squares(const PLAN *__restrict__ plan, int n, int m, const double *__restrict__ w, double *parts) {
  stored_sums(n, m, w, parts, [&](int i, int j) {
    const double entry = (double)plan[(long long)i * m + j];
    return entry * entry;
  });
}

// K_ij <- K_ij^p v_j scale_i; the sums are over what was stored, but for its rounding.
extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
stored_sharpen(PLAN *plan, int n, int m, const double *__restrict__ w, const double *__restrict__ v,
               const double *__restrict__ scale, int squarings, double *parts) {
  stored_sums(n, m, w, parts, [&](int i, int j) {
    PLAN *place = plan + (long long)i * m + j;
    const PLAN entry = powered(*place, squarings) * (PLAN)v[j];
    *place = flushed(entry * (PLAN)scale[i]);
    return (double)entry * scale[i];
  });
}

// u = relaxed(u, sums) and the row weights that go with it, as `scaling_strip` of strips.cu has it. A thread a row.
extern "C" __global__ void finish_scaling(const double *__restrict__ sums, const double *__restrict__ a,
                                          const double *__restrict__ f, int n, double reg, double relaxation, double share,
                                          double low, double high, const double *__restrict__ done, double *u, double *weights,
                                          double *errors) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n || *done != 0.0) return;
  const Mass mass = {share, low, high, 1.0 / reg};
  const double scaling = relaxed(u[i], sums[i], relaxation);
  u[i] = scaling;
  weights[i] = mass(a[i], f[i] + reg * log(scaling), f[i], a[i] * scaling);
  errors[i] = fabs(weights[i] * (sums[i] - 1.0 / scaling));
}
