// What all kernels share: reductions, exponentials, and what becomes of a row once its sum is known.
//
// Vectors (potentials, weights, sums) are double; stored costs, points and plans have the types that macros name. Every sum has a
// fixed order and there are no atomics: the same data on the same device give the same bits.

#define WARP 32
#define EVERYONE 0xffffffffu

__device__ inline double infinity() { return __longlong_as_double(0x7ff0000000000000LL); }

__device__ inline float power_of_two(float x) { return exp2f(x); }
__device__ inline double power_of_two(double x) { return exp2(x); }

// Zero instead of a subnormal number: with their few digits these would spoil Newton's steps where weights differ by many orders.
__device__ inline float flushed(float x) { return x < 1.17549435e-38f ? 0.0f : x; }
__device__ inline double flushed(double x) { return x < 2.2250738585072014e-308 ? 0.0 : x; }

// (g - c - shift) rate, never contracted with what follows: rows and columns must see the same K to the last bit, as only then
// does its Laplacian map constants to zero.
__device__ inline double exponent(double g, double c, double shift, double rate) {
  return __dmul_rn(__dadd_rn(__dadd_rn(g, -c), -shift), rate);
}

__device__ inline double warp_sum(double x) {
  for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(EVERYONE, x, offset);
  return x;
}

// NaN loses: it reaches the result through the sums.
__device__ inline double warp_max(double x) {
  for (int offset = WARP / 2; offset > 0; offset /= 2) x = fmax(x, __shfl_xor_sync(EVERYONE, x, offset));
  return x;
}

// COUNT sums over the whole block, whose size is a multiple of the warp; every thread gets them.
template <int COUNT>
__device__ inline void block_sums(double (&x)[COUNT]) {
  __shared__ double of_warp[COUNT][WARP];
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
#pragma unroll
  for (int k = 0; k < COUNT; ++k) x[k] = warp_sum(x[k]);
  if (warps == 1) return;
  __syncthreads();  // the last call's sums have been read
  if (lane == 0)
    for (int k = 0; k < COUNT; ++k) of_warp[k][warp] = x[k];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < COUNT; ++k) x[k] = warp_sum(lane < warps ? of_warp[k][lane] : 0.0);
}

__device__ inline double block_max(double x) {
  __shared__ double of_warp[WARP];
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
  x = warp_max(x);
  if (warps == 1) return x;
  __syncthreads();
  if (lane == 0) of_warp[warp] = x;
  __syncthreads();
  return warp_max(lane < warps ? of_warp[lane] : -infinity());
}

// How a row's mass depends on its softmin S: a exp((clip(share S, low, high) - S) / reg); (1, -inf, inf) is the balanced a.
struct Mass {
  double share, low, high, inv_reg;

  __device__ bool balanced() const { return share == 1.0 && low == -infinity() && high == infinity(); }

  // a exp((clip(share S, low, high) - base) / reg), where base = S gives the mass; `without` is the answer when balanced.
  __device__ double operator()(double a, double softmin, double base, double without) const {
    return balanced() ? without : a * exp((fmin(fmax(share * softmin, low), high) - base) * inv_reg);
  }
};

// u^(1 - w) (1 / sum)^w, without the registers that pow takes.
__device__ inline double relaxed(double u, double sum, double relaxation) {
  return relaxation == 1.0 ? 1.0 / sum : exp((1.0 - relaxation) * log(u) - relaxation * log(sum));
}
