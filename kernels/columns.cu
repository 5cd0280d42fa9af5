// Sums over the rows of x, added to what was summed before:
//
//   master[j] += Σ_t f(x[t, j])        f(v) = v, or v² (column_squares)
//
// x [t, n] f32, master [n] f64. Everything is added in f64, and every column belongs to one block,
// which adds it up in one order: the same bits on every run.
//
// Block (columns, groups), at most 1024 threads: thread (c, g) sums rows g, g + groups, .. of one
// column, then the groups are folded in halves through 8 KiB of shared memory. Grid:
// ceil(n / columns) blocks. Blocks of (16, 64) read whole 64-byte pieces and fill a large GPU from
// n = 2048 on; (8, 128) suits fewer columns.
// 4 bytes, one conversion and one addition in f64 per element: bound by memory where f64 runs at a
// half of f32 (sm_80, sm_90), by f64 where at a 64th (sm_89).
#include "common.cuh"

template <class F>
__device__ __forceinline__ void fold_columns(const float* x, double* master, i64 t, i64 n, F f) {
  __shared__ double part[1024];
  const int column = threadIdx.x, group = threadIdx.y;
  double* mine = part + group * blockDim.x + column;
  const i64 j = (i64)blockIdx.x * blockDim.x + column;
  const i64 step = blockDim.y;
  double sum = 0.0;
  if (j < n) {
    // Eight loads are under way before the first sum has to wait for one.
#pragma unroll 8
    for (i64 row = group; row < t; row += step) sum += f((double)x[row * n + j]);
  }
  *mine = sum;
  for (int groups = blockDim.y; groups > 1;) {
    const int half = (groups + 1) / 2;
    __syncthreads();
    if (group + half < groups) *mine += mine[half * blockDim.x];
    groups = half;
  }
  if (group == 0 && j < n) master[j] += *mine;
}

extern "C" __global__ void __launch_bounds__(1024)
column_sum(const float* __restrict__ x, double* __restrict__ master, i64 t, i64 n) {
  fold_columns(x, master, t, n, [](double v) { return v; });
}

extern "C" __global__ void __launch_bounds__(1024)
column_squares(const float* __restrict__ x, double* __restrict__ master, i64 t, i64 n) {
  fold_columns(x, master, t, n, [](double v) { return v * v; });
}
