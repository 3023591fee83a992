// Passes that read every entry once, for rows that fit into the registers of a block.
//
// A block goes through its strip of rows, every gridDim.x-th: it holds a row's entries in registers, adds them up to the row sum
// s_i, turns that into the weight w_i of the row, and adds w_i times the entries to its column sums, in registers, too. These
// end up in `parts`, (strips, m). A thread has every THREADS-th column, ITEMS of them: both are macros, so that the places of
// these in memory are constants in the instructions and take no registers. Other macros: PLAN, the type of a stored K; X, that
// of a stored cost; EXP, the precision of the exponentials.
#include "common.cuh"

// Rows at a time: two where registers allow, so that v is read and the block waits once for both.
#define TOGETHER (ITEMS > 8 ? 1 : 2)


// Pointers and lengths below begin at the thread's first column.
#define WITHIN(q, length) ((q) * THREADS < (length))

__device__ inline void write_strip(const double (&columns)[ITEMS], int m, double *parts) {
  double *out = parts + (long long)blockIdx.x * m + threadIdx.x;
  const int length = m - (int)threadIdx.x;
#pragma unroll
  for (int q = 0; q < ITEMS; ++q)
    if (WITHIN(q, length)) out[q * THREADS] = columns[q];
}

// w_i = weigh(i, sum_j K_ij v_j); parts = sum_i w_i K_ij. Only thread 0 of a block may write what `weigh` has to write.
template <class Weigh>
__device__ inline void strip(const PLAN *__restrict__ plan, const double *__restrict__ v, int n, int m, double *parts,
                             Weigh weigh) {
  double columns[ITEMS] = {};
  const int length = m - (int)threadIdx.x;
  for (int first = blockIdx.x * TOGETHER; first < n; first += gridDim.x * TOGETHER) {
    const PLAN *row = plan + (long long)first * m + threadIdx.x;
    PLAN entries[TOGETHER][ITEMS];
    double sums[TOGETHER] = {};
#pragma unroll
    for (int r = 0; r < TOGETHER; ++r)
#pragma unroll
      for (int q = 0; q < ITEMS; ++q) entries[r][q] = WITHIN(q, length) && first + r < n ? row[r * m + q * THREADS] : (PLAN)0;
#pragma unroll
    for (int q = 0; q < ITEMS; ++q) {
      const double factor = WITHIN(q, length) ? v[threadIdx.x + q * THREADS] : 0.0;
#pragma unroll
      for (int r = 0; r < TOGETHER; ++r) sums[r] += (double)entries[r][q] * factor;
    }
    block_sums(sums);
#pragma unroll
    for (int r = 0; r < TOGETHER; ++r) {
      if (first + r >= n) break;
      const double weight = weigh(first + r, sums[r]);
#pragma unroll
      for (int q = 0; q < ITEMS; ++q) columns[q] += weight * (double)entries[r][q];
    }
  }
  write_strip(columns, m, parts);
}

// u = relaxed(u, K v), K'w: both half steps of Sinkhorn's iteration. w_i = a_i exp((clip(share S_i) - f_i) / reg), S_i = f_i +
// reg log u_i. Nothing when `done` says that a queue of passes is over.
extern "C" __global__ void __launch_bounds__(THREADS)
scaling_strip(const PLAN *__restrict__ plan, const double *__restrict__ v, int n, int m, const double *__restrict__ a,
              const double *__restrict__ f, double reg, double relaxation, double share, double low, double high,
              const double *__restrict__ done, double *u, double *errors, double *parts) {
  if (*done != 0.0) return;
  const Mass mass = {share, low, high, 1.0 / reg};
  strip(plan, v, n, m, parts, [&](int i, double sum) {
    const double scaling = relaxed(u[i], sum, relaxation);
    const double weight = mass(a[i], f[i] + reg * log(scaling), f[i], a[i] * scaling);
    __syncthreads();  // all have read u
    if (threadIdx.x == 0) {
      u[i] = scaling;
      errors[i] = fabs(weight * (sum - 1.0 / scaling));
    }
    return weight;
  });
}

// change = u - 1 where u = 1 / (K v), growth = v - 1 and the rows of K sum to 1; K'(a change).
extern "C" __global__ void __launch_bounds__(THREADS)
shift_strip(const PLAN *__restrict__ plan, const double *__restrict__ growth, int n, int m, const double *__restrict__ a,
            double *change, double *parts) {
  strip(plan, growth, n, m, parts, [&](int i, double sum) {
    const double moved = -sum / (1.0 + sum);
    if (threadIdx.x == 0) change[i] = moved;
    return a[i] * moved;
  });
}

// K' diag(weights) K x; nothing when `done` says that the solve is over.
extern "C" __global__ void __launch_bounds__(THREADS)
laplacian_strip(const PLAN *__restrict__ plan, const double *__restrict__ x, int n, int m, const double *__restrict__ weights,
                const double *__restrict__ done, double *parts) {
  if (*done != 0.0) return;
  strip(plan, x, n, m, parts, [&](int i, double sum) { return weights[i] * sum; });
}

// row_sums = K v and K'w.
extern "C" __global__ void __launch_bounds__(THREADS)
moments_strip(const PLAN *__restrict__ plan, const double *__restrict__ v, int n, int m, const double *__restrict__ weights,
              double *row_sums, double *parts) {
  strip(plan, v, n, m, parts, [&](int i, double sum) {
    if (threadIdx.x == 0) row_sums[i] = sum;
    return weights[i];
  });
}

// K_ij <- K_ij^2 or ^4 times v_j, divided by the row sums of that; K'a. In the precision of K.
extern "C" __global__ void __launch_bounds__(THREADS)
sharpen_strip(PLAN *plan, const double *__restrict__ v, int n, int m, const double *__restrict__ a, int squarings, double *row_sums,
              double *parts) {
  double columns[ITEMS] = {};
  const int length = m - (int)threadIdx.x;
  for (int i = blockIdx.x; i < n; i += gridDim.x) {
    PLAN *row = plan + (long long)i * m + threadIdx.x, entries[ITEMS];
    double sum[1] = {0.0};
#pragma unroll
    for (int q = 0; q < ITEMS; ++q) entries[q] = WITHIN(q, length) ? row[q * THREADS] : (PLAN)0;
#pragma unroll
    for (int q = 0; q < ITEMS; ++q) {
      entries[q] *= entries[q];
      if (squarings == 2) entries[q] *= entries[q];
      if (WITHIN(q, length)) entries[q] *= (PLAN)v[threadIdx.x + q * THREADS];
      sum[0] += (double)entries[q];
    }
    block_sums(sum);
    if (threadIdx.x == 0) row_sums[i] = sum[0];
    const double inverse = 1.0 / sum[0], weight = a[i] * inverse;
    const PLAN scale = (PLAN)inverse;
#pragma unroll
    for (int q = 0; q < ITEMS; ++q) {
      columns[q] += weight * (double)entries[q];
      if (WITHIN(q, length)) row[q * THREADS] = flushed(entries[q] * scale);
    }
  }
  write_strip(columns, m, parts);
}

// f_i = -reg log sum_j exp((g_j - C_ij) / reg), the rows of K (with `store`), and K'r; as `finish_softmin` of sweeps.cu has it.
extern "C" __global__ void __launch_bounds__(THREADS)
softmax_strip(const X *__restrict__ matrix, const double *__restrict__ g, int n, int m, double reg, double rate,
              const double *__restrict__ a, int warm, double relaxation, double share, double low, double high, double *f,
              double *errors, int store, PLAN *plan, double *parts) {
  const Mass mass = {share, low, high, 1.0 / reg};
  double columns[ITEMS] = {};
  const int length = m - (int)threadIdx.x;
  for (int i = blockIdx.x; i < n; i += gridDim.x) {
    const X *row = matrix + (long long)i * m + threadIdx.x;
    double values[ITEMS], sum[1] = {0.0}, top = -infinity();
#pragma unroll
    for (int q = 0; q < ITEMS; ++q) {
      values[q] = WITHIN(q, length) ? g[threadIdx.x + q * THREADS] - (double)row[q * THREADS] : -infinity();
      top = fmax(top, values[q]);
    }
    top = block_max(top);
#pragma unroll
    for (int q = 0; q < ITEMS; ++q) {  // in place, as another array of registers would spill
      values[q] = (double)power_of_two((EXP)((values[q] - top) * rate));
      sum[0] += values[q];
    }
    block_sums(sum);
    double softmin = -top - reg * log(sum[0]), drift = 1.0;
    if (warm && relaxation != 1.0) {
      const double fresh = softmin;
      softmin = (1.0 - relaxation) * f[i] + relaxation * fresh;
      drift = exp((softmin - fresh) / reg);
    }
    const double scale = drift / sum[0], own = mass(a[i], softmin, softmin, a[i]), weight = own * scale;
    __syncthreads();  // all have read f
    if (threadIdx.x == 0) {
      f[i] = softmin;
      errors[i] = own * fabs(drift - 1.0);
    }
    PLAN *out = plan + (long long)i * m + threadIdx.x;
#pragma unroll
    for (int q = 0; q < ITEMS; ++q) {
      columns[q] += weight * values[q];
      if (store && WITHIN(q, length)) out[q * THREADS] = flushed((PLAN)(values[q] * scale));
    }
  }
  write_strip(columns, m, parts);
}
