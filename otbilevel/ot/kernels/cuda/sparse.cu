// Passes over an active set: rows in CSR order, a warp a row; columns by way of `order`, which lists the same entries column by
// column.
//
// K is float: memory traffic dominates. `done` says that a solve is over.
#include "common.cuh"

#define WARPS 8
#define LINE_OF_WARP (blockIdx.x * WARPS + threadIdx.y)

// f_i = -reg log sum_k exp((g_k - C_ik) / reg), the entries of K, and for `csc_softmax` the largest exponent and r_i / sum of
// the row.
extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
csr_softmax(const long long *__restrict__ indptr, const int *__restrict__ indices, const double *__restrict__ costs, int n,
            const double *__restrict__ g, double reg, double rate, const double *__restrict__ a, double share, double low,
            double high, double *f, double *tops, double *weights, float *plan) {
  const int i = LINE_OF_WARP;
  if (i >= n) return;
  const long long first = indptr[i] + threadIdx.x, end = indptr[i + 1];
  double top = -infinity(), sum = 0.0;
  for (long long k = first; k < end; k += WARP) top = fmax(top, g[indices[k]] - costs[k]);
  top = warp_max(top);
  for (long long k = first; k < end; k += WARP) sum += exp2(exponent(g[indices[k]], costs[k], top, rate));
  sum = warp_sum(sum);
  for (long long k = first; k < end; k += WARP) plan[k] = (float)(exp2(exponent(g[indices[k]], costs[k], top, rate)) / sum);
  if (threadIdx.x == 0) {
    const double softmin = -top - reg * log(sum);
    const Mass row = {share, low, high, 1.0 / reg};
    f[i] = softmin;
    tops[i] = top;
    weights[i] = row(a[i], softmin, softmin, a[i]) / sum;
  }
}

// K'r with the entries in double precision, which Newton's method needs of its gradient: exponentials again, in the other order.
extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
csc_softmax(const long long *__restrict__ indptr, const int *__restrict__ rows, const long long *__restrict__ order,
            const double *__restrict__ costs, int m, const double *__restrict__ g, double rate, const double *__restrict__ tops,
            const double *__restrict__ weights, double *out) {
  const int j = LINE_OF_WARP;
  if (j >= m) return;
  double sum = 0.0;
  for (long long k = indptr[j] + threadIdx.x; k < indptr[j + 1]; k += WARP) {
    const long long entry = order[k];
    sum += weights[rows[entry]] * exp2(exponent(g[j], costs[entry], tops[rows[entry]], rate));
  }
  sum = warp_sum(sum);
  if (threadIdx.x == 0) out[j] = sum;
}

// out_i = weights_i sum_k K_ik x_k.
extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
csr_product(const long long *__restrict__ indptr, const int *__restrict__ indices, const float *__restrict__ plan, int n,
            const double *__restrict__ x, const double *__restrict__ weights, const double *__restrict__ done, double *out) {
  const int i = LINE_OF_WARP;
  if (i >= n || *done != 0.0) return;
  double sum = 0.0;
  for (long long k = indptr[i] + threadIdx.x; k < indptr[i + 1]; k += WARP) sum += (double)plan[k] * x[indices[k]];
  sum = warp_sum(sum);
  if (threadIdx.x == 0) out[i] = weights[i] * sum;
}

// out_j = sum_k w_i K_ij^p over the entries (i, j) = k of column j, p = 1 or 2.
extern "C" __global__ void __launch_bounds__(WARP * WARPS, 2)
csc_product(const long long *__restrict__ indptr, const int *__restrict__ rows, const long long *__restrict__ order,
            const float *__restrict__ plan, int m, const double *__restrict__ w, int square, const double *__restrict__ done,
            double *out) {
  const int j = LINE_OF_WARP;
  if (j >= m || *done != 0.0) return;
  double sum = 0.0;
  for (long long k = indptr[j] + threadIdx.x; k < indptr[j + 1]; k += WARP) {
    const double entry = (double)plan[order[k]];
    sum += w[rows[order[k]]] * (square ? entry * entry : entry);
  }
  sum = warp_sum(sum);
  if (threadIdx.x == 0) out[j] = sum;
}
