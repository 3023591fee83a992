// Where costs come from: SOURCE says whether x is the matrix (n, m) of type X, or the points (n, d), with y the other points
// transposed, (d, m) of type Y. Costs are double in any case.

#define DENSE 0
#define SQEUCLIDEAN 1
#define EUCLIDEAN 2
#define CITYBLOCK 3
#define COSINE 4

// A block of 32 x 8 threads has a tile of ROWS x COLUMNS pairs before it, a thread of it every 8th row and every 32nd column.
#define WARPS 8
#define PER_ROW 4
#define PER_COLUMN 2
#define ROWS (WARPS * PER_ROW)
#define COLUMNS (WARP * PER_COLUMN)
#define CHUNK 8

#define COST_PARAMETERS const X *__restrict__ x, const Y *__restrict__ y, int d, int n, int m
#define COST x, y, d, n, m

__device__ inline int row_of(int first, int r) { return first + threadIdx.y + WARPS * r; }
__device__ inline int column_of(int first, int q) { return first + threadIdx.x + WARP * q; }

// One more coordinate. Explicitly fused, so that every kernel computes the same bits.
__device__ inline double with_coordinate(double total, double x, double y) {
#if SOURCE == COSINE
  return fma(-x, y, total);
#elif SOURCE == CITYBLOCK
  return __dadd_rn(total, fabs(__dadd_rn(x, -y)));
#else
  const double difference = __dadd_rn(x, -y);
  return fma(difference, difference, total);
#endif
}

__device__ inline double from_coordinates(double total) {
#if SOURCE == EUCLIDEAN
  return sqrt(total);
#else
  return total;
#endif
}

// The costs of the tile that begins at (top, left); infinite outside the matrix. All threads of the block must call it.
__device__ inline void tile_of_costs(COST_PARAMETERS, int top, int left, double (&cost)[PER_ROW][PER_COLUMN]) {
#if SOURCE == DENSE
#pragma unroll
  for (int r = 0; r < PER_ROW; ++r)
#pragma unroll
    for (int q = 0; q < PER_COLUMN; ++q) {
      const int i = row_of(top, r), j = column_of(left, q);
      cost[r][q] = i < n && j < m ? (double)x[(long long)i * m + j] : infinity();
    }
#else
  __shared__ double xs[CHUNK][ROWS + 1], ys[CHUNK][COLUMNS];
  const int thread = threadIdx.y * WARP + threadIdx.x;
#pragma unroll
  for (int r = 0; r < PER_ROW; ++r)
#pragma unroll
    for (int q = 0; q < PER_COLUMN; ++q) cost[r][q] = SOURCE == COSINE ? 1.0 : 0.0;
  for (int first = 0; first < d; first += CHUNK) {
    __syncthreads();  // the last chunk has been used
    for (int k = thread; k < CHUNK * ROWS; k += WARP * WARPS) {
      const int i = top + k / CHUNK, coordinate = first + k % CHUNK;
      xs[k % CHUNK][k / CHUNK] = i < n && coordinate < d ? (double)x[(long long)i * d + coordinate] : 0.0;
    }
    for (int k = thread; k < CHUNK * COLUMNS; k += WARP * WARPS) {
      const int j = left + k % COLUMNS, coordinate = first + k / COLUMNS;
      ys[k / COLUMNS][k % COLUMNS] = j < m && coordinate < d ? (double)y[(long long)coordinate * m + j] : 0.0;
    }
    __syncthreads();
    const int last = d - first < CHUNK ? d - first : CHUNK;
    for (int k = 0; k < last; ++k) {
      double xk[PER_ROW], yk[PER_COLUMN];
#pragma unroll
      for (int r = 0; r < PER_ROW; ++r) xk[r] = xs[k][threadIdx.y + WARPS * r];
#pragma unroll
      for (int q = 0; q < PER_COLUMN; ++q) yk[q] = ys[k][threadIdx.x + WARP * q];
#pragma unroll
      for (int r = 0; r < PER_ROW; ++r)
#pragma unroll
        for (int q = 0; q < PER_COLUMN; ++q) cost[r][q] = with_coordinate(cost[r][q], xk[r], yk[q]);
    }
  }
#pragma unroll
  for (int r = 0; r < PER_ROW; ++r)
#pragma unroll
    for (int q = 0; q < PER_COLUMN; ++q) {
      const bool inside = row_of(top, r) < n && column_of(left, q) < m;
      cost[r][q] = inside ? from_coordinates(cost[r][q]) : infinity();
    }
#endif
}

// One cost, for kernels that go along rows; y is read along its rows, too.
__device__ inline double single_cost(COST_PARAMETERS, int i, int j) {
#if SOURCE == DENSE
  return (double)x[(long long)i * m + j];
#else
  double total = SOURCE == COSINE ? 1.0 : 0.0;
  for (int k = 0; k < d; ++k) total = with_coordinate(total, (double)x[(long long)i * d + k], (double)y[(long long)k * m + j]);
  return from_coordinates(total);
#endif
}

// Adds up what the 8 warps of a block have for the same columns and writes it: `out` is this strip's row of partial sums.
__device__ inline void write_columns(double (&sums)[PER_COLUMN], int left, int m, double *out) {
  __shared__ double of_warp[WARPS][COLUMNS];
  __syncthreads();  // an earlier call's sums have been read
#pragma unroll
  for (int q = 0; q < PER_COLUMN; ++q) of_warp[threadIdx.y][threadIdx.x + WARP * q] = sums[q];
  __syncthreads();
  const int thread = threadIdx.y * WARP + threadIdx.x;
  if (thread < COLUMNS && left + thread < m) {
    double total = 0.0;
    for (int warp = 0; warp < WARPS; ++warp) total += of_warp[warp][thread];
    out[left + thread] = total;
  }
}

// Adds up what the 32 lanes of a warp have for the same rows and writes it: `out` is this split's row of partial sums.
__device__ inline void write_rows(double (&sums)[PER_ROW], int top, int n, double *out) {
#pragma unroll
  for (int r = 0; r < PER_ROW; ++r) {
    const double total = warp_sum(sums[r]);
    if (threadIdx.x == 0 && row_of(top, r) < n) out[row_of(top, r)] = total;
  }
}
