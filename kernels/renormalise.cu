// Shares of the chosen experts, made to add up to one:
//
//   y[t, i] = x[t, i] / Σ_j x[t, j]
//   dx[t, i] = (dy[t, i] - Σ_j dy[t, j] y[t, j]) / Σ_j x[t, j]
//
// x, y, dy, dx [rows, k] f32, k of about 8. One thread per row, which sums from the first column
// on, as the CPU does. Grid: min(ceil(rows / 256), 16 per multiprocessor) blocks of 256.
// 8 k bytes (gradient: 16 k) and 2 k (4 k) operations per row: a few numbers per token, bound by
// memory. The second loop finds the row in the first-level cache.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256)
renormalise(const float* __restrict__ x, float* __restrict__ y, i64 rows, i64 k) {
  for (i64 row = first_element(); row < rows; row += element_step()) {
    const float* from = x + row * k;
    float* to = y + row * k;
    float total = 0.0f;
    for (i64 i = 0; i < k; i++) total += from[i];
    for (i64 i = 0; i < k; i++) to[i] = from[i] / total;
  }
}

extern "C" __global__ void __launch_bounds__(256)
renormalise_gradient(const float* __restrict__ x, const float* __restrict__ y,
                     const float* __restrict__ dy, float* __restrict__ dx, i64 rows, i64 k) {
  for (i64 row = first_element(); row < rows; row += element_step()) {
    const i64 at = row * k;
    float total = 0.0f, mean = 0.0f;
    for (i64 i = at; i < at + k; i++) {
      total += x[i];
      mean += dy[i] * y[i];
    }
    for (i64 i = at; i < at + k; i++) dx[i] = (dy[i] - mean) / total;
  }
}
