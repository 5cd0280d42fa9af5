// The dot products of the rows of two matrices:
//
//   y[t] = Σ_j a[t, j] b[t, j]
//
// a, b [rows, n], y [rows], f32. Blocks of 256 threads, at most 16 per multiprocessor: a warp per
// row up to n = 1024 (ceil(rows / 8) blocks), a block per longer row. Threads add in f32, their sums
// are added in f64, and the sum is rounded.
// 8 bytes and 2 operations per element: bound by memory.
#include "rows.cuh"

template <int THREADS>
__device__ __forceinline__ void dot_rows(row_group<THREADS> g, const float* a, const float* b,
                                         float* y, i64 rows, i64 n) {
  for (i64 row = g.first(); row < rows; row += g.step()) {
    const i64 at = row * n;
    float dot = 0.0f;
    g.each(n, [&](i64 i, int w) {
      const pack u = load(a + at + i, w), v = load(b + at + i, w);
#pragma unroll
      for (int c = 0; c < w; c++) dot += u.v[c] * v.v[c];
    });
    const float total = (float)g.sum(dot);
    if (threadIdx.x % THREADS == 0) y[row] = total;
  }
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
row_dots(const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ y, i64 rows,
         i64 n) {
  const bool quads = n % 4 == 0 && aligned(a, b);
  if (short_row(n)) {
    dot_rows(row_group<32>{quads}, a, b, y, rows, n);
  } else {
    dot_rows(row_group<ROW_THREADS>{quads}, a, b, y, rows, n);
  }
}
