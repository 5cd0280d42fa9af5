// Layer normalisation of rows. With r = 1 / sqrt(variance + eps), z = (x - mean) r, h = dy weight:
//
//   y[i] = z[i] weight[i] + bias[i]
//   dx[i] = r (h[i] - mean_j h[j] - z[i] mean_j h[j] z[j])
//
// x, y, dy, dx [rows, d], weight and bias [d], f32. The variance is summed around the mean, so that
// a large mean costs no digits.
// Blocks of 256 threads, at most 16 per multiprocessor: a warp per row up to d = 1024
// (ceil(rows / 8) blocks), a block per longer row. More blocks than that find no row.
// Per element 8 bytes (gradient: 12) and 8 (20) operations: bound by memory. Rows are read three
// times (x in the gradient four), all but the first from cache.
#include "rows.cuh"

struct row_moments {
  float mean;
  float r;  // 1 / standard deviation
};

template <int THREADS>
__device__ __forceinline__ row_moments moments(row_group<THREADS> g, const float* x, i64 d,
                                               double inverse_d, double eps) {
  float sum = 0.0f;
  g.each(d, [&](i64 i, int w) {
    const pack v = load(x + i, w);
#pragma unroll
    for (int c = 0; c < w; c++) sum += v.v[c];
  });
  const float mean = (float)(g.sum(sum) * inverse_d);
  float squares = 0.0f;
  g.each(d, [&](i64 i, int w) {
    const pack v = load(x + i, w);
#pragma unroll
    for (int c = 0; c < w; c++) squares += (v.v[c] - mean) * (v.v[c] - mean);
  });
  return {mean, inverse_root(g.sum(squares) * inverse_d, eps)};
}

template <int THREADS>
__device__ __forceinline__ void layer_normalise(row_group<THREADS> g, const float* x,
                                                const float* weight, const float* bias, float* y,
                                                i64 rows, i64 d, double eps) {
  const double inverse_d = 1.0 / (double)d;
  for (i64 row = g.first(); row < rows; row += g.step()) {
    const i64 at = row * d;
    const row_moments m = moments(g, x + at, d, inverse_d, eps);
    g.each(d, [&](i64 i, int w) {
      const pack v = load(x + at + i, w), k = load(weight + i, w), b = load(bias + i, w);
      pack to = {};
#pragma unroll
      for (int c = 0; c < w; c++) to.v[c] = (v.v[c] - m.mean) * m.r * k.v[c] + b.v[c];
      store(y + at + i, to, w);
    });
  }
}

template <int THREADS>
__device__ __forceinline__ void layer_gradient(row_group<THREADS> g, const float* x,
                                               const float* weight, const float* dy, float* dx,
                                               i64 rows, i64 d, double eps) {
  const double inverse_d = 1.0 / (double)d;
  for (i64 row = g.first(); row < rows; row += g.step()) {
    const i64 at = row * d;
    const row_moments m = moments(g, x + at, d, inverse_d, eps);
    float sum = 0.0f, dot = 0.0f;
    g.each(d, [&](i64 i, int w) {
      const pack v = load(x + at + i, w), k = load(weight + i, w), s = load(dy + at + i, w);
#pragma unroll
      for (int c = 0; c < w; c++) {
        const float h = s.v[c] * k.v[c];
        sum += h;
        dot += h * ((v.v[c] - m.mean) * m.r);
      }
    });
    const float along_one = (float)(g.sum(sum) * inverse_d);
    const float along_x = (float)(g.sum(dot) * inverse_d);
    g.each(d, [&](i64 i, int w) {
      const pack v = load(x + at + i, w), k = load(weight + i, w), s = load(dy + at + i, w);
      pack to = {};
#pragma unroll
      for (int c = 0; c < w; c++) {
        const float z = (v.v[c] - m.mean) * m.r;
        to.v[c] = m.r * (s.v[c] * k.v[c] - along_one - z * along_x);
      }
      store(dx + at + i, to, w);
    });
  }
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
layer_norm(const float* __restrict__ x, const float* __restrict__ weight,
           const float* __restrict__ bias, float* __restrict__ y, i64 rows, i64 d, double eps) {
  const bool quads = d % 4 == 0 && aligned(x, weight, bias, y);
  if (short_row(d)) {
    layer_normalise(row_group<32>{quads}, x, weight, bias, y, rows, d, eps);
  } else {
    layer_normalise(row_group<ROW_THREADS>{quads}, x, weight, bias, y, rows, d, eps);
  }
}

// Four blocks per multiprocessor, 64 registers: left alone, ptxas takes 48 on sm_89 and spills.
extern "C" __global__ void __launch_bounds__(ROW_THREADS, 4)
layer_norm_gradient(const float* __restrict__ x, const float* __restrict__ weight,
                    const float* __restrict__ dy, float* __restrict__ dx, i64 rows, i64 d,
                    double eps) {
  const bool quads = d % 4 == 0 && aligned(x, weight, dy, dx);
  if (short_row(d)) {
    layer_gradient(row_group<32>{quads}, x, weight, dy, dx, rows, d, eps);
  } else {
    layer_gradient(row_group<ROW_THREADS>{quads}, x, weight, dy, dx, rows, d, eps);
  }
}
