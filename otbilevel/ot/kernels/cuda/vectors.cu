// Work on vectors, and conjugate gradients that stay on the device.
#include "common.cuh"

#define LARGEST_BLOCK 1024

// out_j = sum_s parts_sj, by blocks of 32 x 8 threads: a warp takes every 8th part, its lanes 32 columns.
__device__ inline double sum_of_parts(const double *__restrict__ parts, int count, int length, int j) {
  __shared__ double of_warp[8][WARP];
  double total = 0.0;
  if (j < length)
    for (int s = threadIdx.y; s < count; s += 8) total += parts[(long long)s * length + j];
  of_warp[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y == 0)
    for (int warp = 1; warp < 8; ++warp) total += of_warp[warp][threadIdx.x];
  return total;
}

extern "C" __global__ void __launch_bounds__(256)
sum_parts(const double *__restrict__ parts, int count, int length, double *out) {
  const int j = blockIdx.x * WARP + threadIdx.x;
  const double total = sum_of_parts(parts, count, length, j);
  if (threadIdx.y == 0 && j < length) out[j] = total;
}

// What follows is for a single block.
#define FOR_ENTRIES(j, length) for (int j = threadIdx.x; j < length; j += blockDim.x)

// The smallest and the largest number, NaN if one is; every thread gets them.
__device__ inline void block_extremes(const double *x, int length, double &low, double &high) {
  double poison[1] = {0.0};
  low = infinity(), high = -infinity();
  FOR_ENTRIES(j, length) {
    low = fmin(low, x[j]);
    high = fmax(high, x[j]);
    if (x[j] != x[j]) poison[0] = x[j];
  }
  low = -block_max(-low);
  high = block_max(high);
  block_sums(poison);
  low += poison[0], high += poison[0];
}

extern "C" __global__ void __launch_bounds__(LARGEST_BLOCK) vector_extremes(const double *__restrict__ x, int length, double *out) {
  double low, high;
  block_extremes(x, length, low, high);
  if (threadIdx.x == 0) out[0] = low, out[1] = high;
}

// out = sum |x - y|.
extern "C" __global__ void __launch_bounds__(LARGEST_BLOCK)
vector_distance(const double *__restrict__ x, const double *__restrict__ y, int length, double *out) {
  double sum[1] = {0.0};
  FOR_ENTRIES(j, length) sum[0] += fabs(x[j] - y[j]);
  block_sums(sum);
  if (threadIdx.x == 0) out[0] = sum[0];
}

// d = x - centre; out = max |d| and sum b |d|, NaN if a number is.
extern "C" __global__ void __launch_bounds__(LARGEST_BLOCK)
vector_centred(const double *__restrict__ x, const double *__restrict__ centre, const double *__restrict__ b, int length, double *d,
               double *out) {
  double largest = 0.0, sum[1] = {0.0};
  FOR_ENTRIES(j, length) {
    d[j] = x[j] - *centre;
    largest = fmax(largest, fabs(d[j]));
    sum[0] += b[j] * fabs(d[j]);
  }
  largest = block_max(largest);
  block_sums(sum);
  if (threadIdx.x == 0) out[0] = sum[0] == sum[0] ? largest : sum[0], out[1] = sum[0];
}

// Sinkhorn's iterations on a stored K, a queue of them: once DONE is set, the kernels of the queue return at once, so that all
// stays as the last iteration left it. The state is read by the host at the end of the queue only.
#define DONE 0
#define STEPS 1
#define ROW_ERROR 2  // the share of the rows in the last error
#define ERRORS 3     // one for each iteration
#define RUNNING 0.0
#define FINISHED 1.0
#define OUT_OF_REACH 2.0  // what underflowed in K could matter to the next iteration, or its scaling overflow

struct Reach {
  double spread, largest;
};

// v = exp(log_v) for the next iteration, if log_v may go that far.
__device__ inline void next_scaling(const double *log_v, int length, Reach reach, double *v, double *state) {
  double low, high;
  block_extremes(log_v, length, low, high);
  if (high - low <= reach.spread && fmax(high, -low) <= reach.largest) {  // not so for NaN
    FOR_ENTRIES(j, length) v[j] = exp(log_v[j]);
  } else if (threadIdx.x == 0) {
    state[DONE] = OUT_OF_REACH;
  }
}

extern "C" __global__ void __launch_bounds__(LARGEST_BLOCK)
scaling_start(const double *__restrict__ log_v, int length, double spread, double largest, double *v, double *state) {
  if (threadIdx.x == 0) state[DONE] = RUNNING, state[STEPS] = 0.0, state[ROW_ERROR] = 0.0;
  next_scaling(log_v, length, {spread, largest}, v, state);
}

// The column sums of diag(a u) K diag(v) from the partial sums of K'(a u).
extern "C" __global__ void __launch_bounds__(256)
scaling_sums(const double *__restrict__ parts, int count, int length, const double *__restrict__ v,
             const double *__restrict__ state, double *sums) {
  if (state[DONE] != RUNNING) return;
  const int j = blockIdx.x * WARP + threadIdx.x;
  const double total = sum_of_parts(parts, count, length, j);
  if (threadIdx.y == 0 && j < length) sums[j] = v[j] * total;
}

// The error where the iteration at log_v has led, `at` = log_v, and the next log_v: the half step of the columns.
extern "C" __global__ void __launch_bounds__(LARGEST_BLOCK)
scaling_step(const double *__restrict__ sums, const double *__restrict__ b, const double *__restrict__ log_b,
             const double *__restrict__ row_errors, int n, int m, double relaxation, double tol, double least_sum,
             double longest_step, double spread, double largest, double *log_v, double *at, double *v, double *state) {
  if (state[DONE] != RUNNING) return;
  double errors[2] = {};
  FOR_ENTRIES(j, m) {
    errors[0] += fabs(sums[j] - b[j]);
    at[j] = log_v[j];
    log_v[j] += relaxation * fmin(log_b[j] - log(fmax(sums[j], least_sum)), longest_step);
  }
  if (relaxation != 1.0) FOR_ENTRIES(i, n) errors[1] += row_errors[i];
  block_sums(errors);  // after it all have read the state
  next_scaling(log_v, m, {spread, largest}, v, state);
  if (threadIdx.x == 0) {
    const double steps = state[STEPS], error = errors[0] + errors[1];
    state[ERRORS + (int)steps] = error;
    state[ROW_ERROR] = errors[1];
    state[STEPS] = steps + 1.0;
    if (!(error > tol)) state[DONE] = FINISHED;
  }
}

// Conjugate gradients for L x = b, L = diag(degree) - diag(columns) K' diag(weights) K diag(columns), preconditioned by a diagonal.
// The state, which begins like that of the queue above, is read by the host now and then only; once DONE is set, kernels return at
// once.
#define PRODUCT 2  // r'z
#define TARGET 3   // L1 norm of the residual to reach
#define UNIT 4     // power of two that b was divided by: squares must not over- or underflow
#define DROWNED 2.0  // no curvature beyond rounding

// Curvature relative to that of the operator's size that rounding explains, see `linalg.cg`.
#define NOISE (64.0 * 2.220446049250313e-16)

extern "C" __global__ void __launch_bounds__(LARGEST_BLOCK)
cg_start(const double *__restrict__ b, const double *__restrict__ inverse_diagonal, const double *__restrict__ columns, int length,
         double tol, double *x, double *r, double *p, double *scaled, double *state) {
  double largest = 0.0, sums[2] = {};
  FOR_ENTRIES(j, length) largest = fmax(largest, fabs(b[j]));
  largest = block_max(largest);
  const double unit = largest > 0.0 && largest < infinity() ? exp2((double)ilogb(largest)) : 1.0;
  FOR_ENTRIES(j, length) {
    const double rj = b[j] / unit, zj = inverse_diagonal[j] * rj;
    x[j] = 0.0, r[j] = rj, p[j] = zj, scaled[j] = columns[j] * zj;
    sums[0] += rj * zj;
    sums[1] += fabs(rj);
  }
  block_sums(sums);
  if (threadIdx.x == 0) {
    state[DONE] = sums[1] > tol * sums[1] ? RUNNING : FINISHED;  // so also for zeros and NaN
    state[STEPS] = 0.0;
    state[PRODUCT] = sums[0];
    state[TARGET] = tol * sums[1];
    state[UNIT] = unit;
  }
}

// q = L p from the partial sums of K' diag(weights) K scaled.
extern "C" __global__ void __launch_bounds__(256)
cg_apply(const double *__restrict__ parts, int count, int length, const double *__restrict__ degree,
         const double *__restrict__ columns, const double *__restrict__ p, const double *__restrict__ state, double *q) {
  if (state[DONE] != RUNNING) return;
  const int j = blockIdx.x * WARP + threadIdx.x;
  const double total = sum_of_parts(parts, count, length, j);
  if (threadIdx.y == 0 && j < length) q[j] = degree[j] * p[j] - columns[j] * total;
}

extern "C" __global__ void __launch_bounds__(LARGEST_BLOCK)
cg_step(const double *__restrict__ q, const double *__restrict__ degree, const double *__restrict__ inverse_diagonal,
        const double *__restrict__ columns, int length, double *x, double *r, double *p, double *scaled, double *state) {
  if (state[DONE] != RUNNING) return;
  double curvature[2] = {}, sums[2] = {};
  FOR_ENTRIES(j, length) {
    curvature[0] += p[j] * q[j];
    curvature[1] += degree[j] * p[j] * p[j];
  }
  block_sums(curvature);
  if (!(NOISE * curvature[1] < curvature[0] && curvature[0] < infinity())) {
    if (threadIdx.x == 0) state[DONE] = DROWNED;
    return;
  }
  const double product = state[PRODUCT], alpha = product / curvature[0];
  FOR_ENTRIES(j, length) {
    x[j] += alpha * p[j];
    r[j] -= alpha * q[j];
    sums[0] += r[j] * inverse_diagonal[j] * r[j];
    sums[1] += fabs(r[j]);
  }
  block_sums(sums);  // after it all have read the state
  const double beta = sums[0] / product;
  FOR_ENTRIES(j, length) {
    p[j] = inverse_diagonal[j] * r[j] + beta * p[j];
    scaled[j] = columns[j] * p[j];
  }
  if (threadIdx.x == 0) {
    const double steps = state[STEPS] + 1.0;
    state[PRODUCT] = sums[0];
    state[STEPS] = steps;
    if (!(sums[1] > state[TARGET])) state[DONE] = FINISHED;
  }
}
