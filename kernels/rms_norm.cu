// Root-mean-square normalisation of rows. With r = 1 / sqrt(mean_j x[j]² + eps):
//
//   y[i] = x[i] r weight[i]
//   dx[i] = r (weight[i] dy[i] - x[i] r² mean_j(weight[j] dy[j] x[j]))
//
// x, y, dy, dx [rows, d], weight [d], f32.
// Blocks of 256 threads, at most 16 per multiprocessor: a warp per row up to d = 1024
// (ceil(rows / 8) blocks), a block per longer row. More blocks than that find no row.
// Per element 8 bytes (gradient: 12) and 4 (9) operations: bound by memory. Rows are read twice,
// the second time from cache.
#include "rows.cuh"

template <int THREADS>
__device__ __forceinline__ void rms_normalise(row_group<THREADS> g, const float* x,
                                              const float* weight, float* y, i64 rows, i64 d,
                                              double eps) {
  const double inverse_d = 1.0 / (double)d;
  for (i64 row = g.first(); row < rows; row += g.step()) {
    const float* from = x + row * d;
    float* to = y + row * d;
    float squares = 0.0f;
    g.each(d, [&](i64 i, int w) {
      const pack v = load(from + i, w);
#pragma unroll
      for (int c = 0; c < w; c++) squares += v.v[c] * v.v[c];
    });
    const float r = inverse_root(g.sum(squares) * inverse_d, eps);
    g.each(d, [&](i64 i, int w) {
      const pack z = zip(load(from + i, w), load(weight + i, w), [=](float x, float weight) {
        return x * r * weight;
      });
      store(to + i, z, w);
    });
  }
}

template <int THREADS>
__device__ __forceinline__ void rms_gradient(row_group<THREADS> g, const float* x,
                                             const float* weight, const float* dy, float* dx,
                                             i64 rows, i64 d, double eps) {
  const double inverse_d = 1.0 / (double)d;
  for (i64 row = g.first(); row < rows; row += g.step()) {
    const i64 at = row * d;
    float squares = 0.0f, dot = 0.0f;
    g.each(d, [&](i64 i, int w) {
      const pack v = load(x + at + i, w), k = load(weight + i, w), s = load(dy + at + i, w);
#pragma unroll
      for (int c = 0; c < w; c++) {
        squares += v.v[c] * v.v[c];
        dot += k.v[c] * s.v[c] * v.v[c];
      }
    });
    const double inverse = exact_inverse_root(g.sum(squares) * inverse_d, eps);
    const double along = inverse * inverse * (g.sum(dot) * inverse_d);
    g.each(d, [&](i64 i, int w) {
      const pack v = load(x + at + i, w), k = load(weight + i, w), s = load(dy + at + i, w);
      pack to = {};
#pragma unroll
      for (int c = 0; c < w; c++)
        // In f64: of a short row nearly all cancels.
        to.v[c] = (float)(inverse * ((double)(k.v[c] * s.v[c]) - v.v[c] * along));
      store(dx + at + i, to, w);
    });
  }
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
rms_norm(const float* __restrict__ x, const float* __restrict__ weight, float* __restrict__ y,
         i64 rows, i64 d, double eps) {
  const bool quads = d % 4 == 0 && aligned(x, weight, y);
  if (short_row(d)) {
    rms_normalise(row_group<32>{quads}, x, weight, y, rows, d, eps);
  } else {
    rms_normalise(row_group<ROW_THREADS>{quads}, x, weight, y, rows, d, eps);
  }
}

// Five blocks per multiprocessor, 48 registers: left alone, ptxas takes 40 on sm_80 and spills.
extern "C" __global__ void __launch_bounds__(ROW_THREADS, 5)
rms_norm_gradient(const float* __restrict__ x, const float* __restrict__ weight,
                  const float* __restrict__ dy, float* __restrict__ dx, i64 rows, i64 d,
                  double eps) {
  const bool quads = d % 4 == 0 && aligned(x, weight, dy, dx);
  if (short_row(d)) {
    rms_gradient(row_group<32>{quads}, x, weight, dy, dx, rows, d, eps);
  } else {
    rms_gradient(row_group<ROW_THREADS>{quads}, x, weight, dy, dx, rows, d, eps);
  }
}
