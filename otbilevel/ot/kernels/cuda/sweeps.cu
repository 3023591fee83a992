// Sweeps over the cost, a tile of 32 x 64 pairs at a time: one exponential per pair.
//
// Row kernels run on a grid (tiles of rows, splits of the columns), column kernels on (tiles of columns, strips of rows). Each
// block writes partial sums, (splits, n) or (strips, m), which `sum_parts` of vectors.cu adds up. `rate` is log2(e) / reg.
// Macros: SOURCE, X, Y as in costs.cuh; EXP, the precision of the exponentials; PLAN, the type of a stored K.
#include "common.cuh"
#include "costs.cuh"

#define VECTORS 4

#define FOR_TILES(tile, extent, step) for (int tile = blockIdx.y * step; tile < extent; tile += gridDim.y * step)

// The largest exponent of every row so far, give or take `margin`, and sum_j exp((g_j - C_ij - top_i) / reg), in one read of C: the
// sum is scaled down whenever a larger exponent turns up. The margin makes that rare.
extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
row_softmin(COST_PARAMETERS, const double *__restrict__ g, double rate, double margin, double *tops, double *sums) {
  const int first = blockIdx.x * ROWS;
  double cost[PER_ROW][PER_COLUMN], top[PER_ROW], sum[PER_ROW];
#pragma unroll
  for (int r = 0; r < PER_ROW; ++r) top[r] = -infinity(), sum[r] = 0.0;
  FOR_TILES(left, m, COLUMNS) {
    tile_of_costs(COST, first, left, cost);
#pragma unroll
    for (int q = 0; q < PER_COLUMN; ++q) {
      const int j = column_of(left, q);
      const double gj = j < m ? g[j] : 0.0;
#pragma unroll
      for (int r = 0; r < PER_ROW; ++r) {
        const double value = gj - cost[r][q];
        if (value > top[r] + margin) {
          sum[r] *= exp2((top[r] - value) * rate);
          top[r] = value;
        }
        if (value != -infinity()) sum[r] += (double)power_of_two((EXP)exponent(gj, cost[r][q], top[r], rate));
      }
    }
  }
#pragma unroll
  for (int r = 0; r < PER_ROW; ++r) {
    const double largest = warp_max(top[r]);
    const double total = warp_sum(top[r] == largest ? sum[r] : sum[r] * exp2((top[r] - largest) * rate));
    const int i = row_of(first, r);
    if (threadIdx.x == 0 && i < n) {
      tops[(long long)blockIdx.y * n + i] = largest;
      sums[(long long)blockIdx.y * n + i] = total;
    }
  }
}

// f_i, the row's mass and its L1 error, and how to write a row of K: exp((g_j - C_ij - shift_i) / reg) scale_i. A thread a row.
extern "C" __global__ void finish_softmin(const double *__restrict__ tops, const double *__restrict__ sums, int splits, int n,
                                          const double *__restrict__ a, double reg, double rate, int warm, double relaxation,
                                          double share, double low, double high, double *f, double *shift, double *scale,
                                          double *weights, double *errors) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  double top = -infinity(), sum = 0.0;
  for (int s = 0; s < splits; ++s) top = fmax(top, tops[(long long)s * n + i]);
  for (int s = 0; s < splits; ++s) {
    const double own = tops[(long long)s * n + i], part = sums[(long long)s * n + i];
    sum += own == top ? part : part * exp2((own - top) * rate);
  }
  double softmin = -top - reg * log(sum), drift = 1.0;
  if (warm && relaxation != 1.0) {
    const double fresh = softmin;
    softmin = (1.0 - relaxation) * f[i] + relaxation * fresh;
    drift = exp((softmin - fresh) / reg);
  }
  const Mass mass = {share, low, high, 1.0 / reg};
  const double own = mass(a[i], softmin, softmin, a[i]);
  f[i] = softmin;
  shift[i] = top;
  scale[i] = drift / sum;
  weights[i] = own * scale[i];
  errors[i] = own * fabs(drift - 1.0);
}

// sum_j K_ij v_kj for up to four vectors v_k, with K_ij = exp((g_j - C_ij - shift_i) / reg); `parts` is (splits, width, n).
extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
row_products(COST_PARAMETERS, const double *__restrict__ shift, const double *__restrict__ g, double rate,
             const double *__restrict__ v, int width, double *parts) {
  const int first = blockIdx.x * ROWS;
  double cost[PER_ROW][PER_COLUMN], sum[VECTORS][PER_ROW] = {}, shifts[PER_ROW];
#pragma unroll
  for (int r = 0; r < PER_ROW; ++r) shifts[r] = row_of(first, r) < n ? shift[row_of(first, r)] : 0.0;
  FOR_TILES(left, m, COLUMNS) {
    tile_of_costs(COST, first, left, cost);
#pragma unroll
    for (int q = 0; q < PER_COLUMN; ++q) {
      const int j = column_of(left, q);
      if (j >= m) continue;
      double vj[VECTORS];
#pragma unroll
      for (int k = 0; k < VECTORS; ++k) vj[k] = k < width ? v[(long long)k * m + j] : 0.0;
#pragma unroll
      for (int r = 0; r < PER_ROW; ++r) {
        const double entry = (double)power_of_two((EXP)exponent(g[j], cost[r][q], shifts[r], rate));
#pragma unroll
        for (int k = 0; k < VECTORS; ++k)
          if (k < width) sum[k][r] += entry * vj[k];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < VECTORS; ++k)
    if (k < width) write_rows(sum[k], first, n, parts + ((long long)blockIdx.y * width + k) * n);
}

// sum_i w_ki K_ij for up to four vectors w_k; `parts` is (strips, width, m). With `store`, K_ij scale_i goes into `plan`.
extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
column_products(COST_PARAMETERS, const double *__restrict__ shift, const double *__restrict__ g, double rate,
                const double *__restrict__ w, int width, double *parts, const double *__restrict__ scale, int store, PLAN *plan) {
  const int left = blockIdx.x * COLUMNS;
  double cost[PER_ROW][PER_COLUMN], sum[VECTORS][PER_COLUMN] = {}, gs[PER_COLUMN];
#pragma unroll
  for (int q = 0; q < PER_COLUMN; ++q) gs[q] = column_of(left, q) < m ? g[column_of(left, q)] : 0.0;
  FOR_TILES(first, n, ROWS) {
    tile_of_costs(COST, first, left, cost);
#pragma unroll
    for (int r = 0; r < PER_ROW; ++r) {
      const int i = row_of(first, r);
      if (i >= n) continue;
      double wi[VECTORS];
#pragma unroll
      for (int k = 0; k < VECTORS; ++k) wi[k] = k < width ? w[(long long)k * n + i] : 0.0;
#pragma unroll
      for (int q = 0; q < PER_COLUMN; ++q) {
        const EXP entry = power_of_two((EXP)exponent(gs[q], cost[r][q], shift[i], rate));
        const int j = column_of(left, q);
        if (store && j < m) plan[(long long)i * m + j] = flushed((PLAN)(entry * (EXP)scale[i]));
#pragma unroll
        for (int k = 0; k < VECTORS; ++k)
          if (k < width) sum[k][q] += wi[k] * (double)entry;
      }
    }
  }
#pragma unroll
  for (int k = 0; k < VECTORS; ++k)
    if (k < width) write_columns(sum[k], left, m, parts + ((long long)blockIdx.y * width + k) * m);
}

// sum_i w_i K_ij and sum_i share_i K_ij^2; `parts` is (strips, 2, m).
extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
column_moments(COST_PARAMETERS, const double *__restrict__ shift, const double *__restrict__ g, double rate,
               const double *__restrict__ w, const double *__restrict__ shares, double *parts) {
  const int left = blockIdx.x * COLUMNS;
  double cost[PER_ROW][PER_COLUMN], sum[PER_COLUMN] = {}, squares[PER_COLUMN] = {}, gs[PER_COLUMN];
#pragma unroll
  for (int q = 0; q < PER_COLUMN; ++q) gs[q] = column_of(left, q) < m ? g[column_of(left, q)] : 0.0;
  FOR_TILES(first, n, ROWS) {
    tile_of_costs(COST, first, left, cost);
#pragma unroll
    for (int r = 0; r < PER_ROW; ++r) {
      const int i = row_of(first, r);
      if (i >= n) continue;
      const double wi = w[i], share = shares[i], shifted = shift[i];
#pragma unroll
      for (int q = 0; q < PER_COLUMN; ++q) {
        const double entry = (double)power_of_two((EXP)exponent(gs[q], cost[r][q], shifted, rate));
        sum[q] += wi * entry;
        squares[q] += share * entry * entry;
      }
    }
  }
  write_columns(sum, left, m, parts + (long long)blockIdx.y * 2 * m);
  write_columns(squares, left, m, parts + ((long long)blockIdx.y * 2 + 1) * m);
}

// sum_j P_ij and sum_j P_ij C_ij, where P_ij = a_i exp((f_i + g_j - C_ij) / reg); `parts` is (splits, 2, n).
extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
row_sums(COST_PARAMETERS, const double *__restrict__ shift, const double *__restrict__ g, double rate,
         const double *__restrict__ a, double *parts) {
  const int first = blockIdx.x * ROWS;
  double cost[PER_ROW][PER_COLUMN], sum[PER_ROW] = {}, spent[PER_ROW] = {};
  FOR_TILES(left, m, COLUMNS) {
    tile_of_costs(COST, first, left, cost);
#pragma unroll
    for (int r = 0; r < PER_ROW; ++r) {
      const int i = row_of(first, r);
      if (i >= n) continue;
#pragma unroll
      for (int q = 0; q < PER_COLUMN; ++q) {
        const int j = column_of(left, q);
        if (j >= m) continue;
        const double p = a[i] * exp2(exponent(g[j], cost[r][q], shift[i], rate));
        sum[r] += p;
        if (p > 0.0) spent[r] += p * cost[r][q];  // not 0 * inf at a forbidden pair
      }
    }
  }
  write_rows(sum, first, n, parts + (long long)blockIdx.y * 2 * n);
  write_rows(spent, first, n, parts + ((long long)blockIdx.y * 2 + 1) * n);
}

// block_ij = P_ij for the rows from `low` on; the grid is (tiles of columns, tiles of rows).
extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
plan_rows(COST_PARAMETERS, const double *__restrict__ shift, const double *__restrict__ g, double rate,
          const double *__restrict__ a, int low, int high, double *block) {
  const int left = blockIdx.x * COLUMNS;
  double cost[PER_ROW][PER_COLUMN];
  for (int first = low + blockIdx.y * ROWS; first < high; first += gridDim.y * ROWS) {
    tile_of_costs(COST, first, left, cost);
#pragma unroll
    for (int r = 0; r < PER_ROW; ++r)
#pragma unroll
      for (int q = 0; q < PER_COLUMN; ++q) {
        const int i = row_of(first, r), j = column_of(left, q);
        if (i < high && j < m) block[(long long)(i - low) * m + j] = a[i] * exp2(exponent(g[j], cost[r][q], shift[i], rate));
      }
  }
}

// Smallest, largest, and largest finite cost of every row, a warp a row: infinite where there is none, NaN where a cost is.
extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
row_bounds(COST_PARAMETERS, double *lows, double *highs, double *finites) {
  const int i = blockIdx.x * WARPS + threadIdx.y;
  if (i >= n) return;
  double low = infinity(), high = -infinity(), finite = -infinity(), poison = 0.0;
  for (int j = threadIdx.x; j < m; j += WARP) {
    const double c = single_cost(COST, i, j);
    if (c != c) poison = c;
    low = fmin(low, c);
    high = fmax(high, c);
    if (c < infinity()) finite = fmax(finite, c);
  }
  low = -warp_max(-low), high = warp_max(high), finite = warp_max(finite), poison = warp_sum(poison);
  if (threadIdx.x == 0) lows[i] = low + poison, highs[i] = high + poison, finites[i] = finite + poison;
}
