// Rotary position embedding with the transposition that attention needs, alone or after an RMSNorm
// over every head (as in Qwen3):
//
//   for i < w:  y[b, h, t, i]     = x[b, t, h, i] cos[t, i] - x[b, t, h, w + i] sin[t, i]
//               y[b, h, t, w + i] = x[b, t, h, w + i] cos[t, i] + x[b, t, h, i] sin[t, i]
//   i >= 2 w:   y[b, h, t, i]     = x[b, t, h, i]
//
// x [b, t, h, d], cos and sin [t, w], 2 w <= d, y [b, h, t, d], f32. rope_back takes [b, h, t, d]
// to [b, t, h, d] and turns the other way: the gradient. norm_rope rotates
// x / sqrt(mean x² + eps) weight in place of x: one pass over memory for both, as the second look
// at the row finds it in the first-level cache.
//
// Blocks of 256, at most 16 per multiprocessor. rope, rope_back: ceil(b t h (d - w) / 1024) of
// them, the pairs and what is only copied shared out over all threads. norm_rope: ceil(b t h / 8),
// a warp per head. 8 bytes and 3 operations per element (norm_rope: 7): bound by memory. cos and
// sin are read from cache by all heads of a position.
#include "rows.cuh"

// Where the row of one head lies on both sides.
struct head_row {
  i64 position;
  i64 by_position;  // in [b, t, h, d]
  i64 by_head;      // in [b, h, t, d]

  // row counts over [b, t, h], so that neighbours share their angles.
  __device__ head_row(i64 row, i64 t, i64 h, i64 d) {
    const i64 step = row / h, head = row - step * h;
    const i64 batch = step / t;
    position = step - batch * t;
    by_position = row * d;
    by_head = ((batch * h + head) * t + position) * d;
  }
};

// Rotates the pairs (x1, x2) and writes them to y and y + half.
__device__ __forceinline__ void rotate(pack x1, pack x2, pack cos, pack sin, float* y, i64 half,
                                       int w) {
  pack y1 = {}, y2 = {};
#pragma unroll
  for (int c = 0; c < w; c++) {
    y1.v[c] = x1.v[c] * cos.v[c] - x2.v[c] * sin.v[c];
    y2.v[c] = x2.v[c] * cos.v[c] + x1.v[c] * sin.v[c];
  }
  store(y, y1, w);
  store(y + half, y2, w);
}

template <bool BACK>
__device__ __forceinline__ void rope_rows(const float* x, const float* cos, const float* sin,
                                          float* y, i64 b, i64 t, i64 h, i64 d, i64 w) {
  const i64 units = d - w;  // of a row: w pairs, then what is copied
  const bool quads = d % 4 == 0 && w % 4 == 0 && aligned(x, cos, sin, y);
  for_packs(b * t * h * units, quads, [&](i64 unit, int wide) {
    const i64 row = unit / units, i = unit - row * units;
    const head_row at(row, t, h, d);
    const float* from = x + (BACK ? at.by_head : at.by_position);
    float* to = y + (BACK ? at.by_position : at.by_head);
    const pack x2 = load(from + w + i, wide);
    if (i >= w) {
      store(to + w + i, x2, wide);
      return;
    }
    const pack x1 = load(from + i, wide);
    const pack c = load(cos + at.position * w + i, wide);
    pack s = load(sin + at.position * w + i, wide);
    if (BACK) s = map(s, [](float s) { return -s; });
    rotate(x1, x2, c, s, to + i, w, wide);
  });
}

extern "C" __global__ void __launch_bounds__(256)
rope(const float* __restrict__ x, const float* __restrict__ cos, const float* __restrict__ sin,
     float* __restrict__ y, i64 b, i64 t, i64 h, i64 d, i64 w) {
  rope_rows<false>(x, cos, sin, y, b, t, h, d, w);
}

extern "C" __global__ void __launch_bounds__(256)
rope_back(const float* __restrict__ x, const float* __restrict__ cos,
          const float* __restrict__ sin, float* __restrict__ y, i64 b, i64 h, i64 t, i64 d, i64 w) {
  rope_rows<true>(x, cos, sin, y, b, t, h, d, w);
}

extern "C" __global__ void __launch_bounds__(256)
norm_rope(const float* __restrict__ x, const float* __restrict__ weight,
          const float* __restrict__ cos, const float* __restrict__ sin, float* __restrict__ y,
          i64 b, i64 t, i64 h, i64 d, i64 w, double eps) {
  const row_group<32> g = {d % 4 == 0 && w % 4 == 0 && aligned(x, weight, cos, sin, y)};
  const double inverse_d = 1.0 / (double)d;
  for (i64 row = g.first(); row < b * t * h; row += g.step()) {
    const head_row at(row, t, h, d);
    const float* from = x + at.by_position;
    float* to = y + at.by_head;
    float squares = 0.0f;
    g.each(d, [&](i64 i, int wide) {
      const pack v = load(from + i, wide);
#pragma unroll
      for (int c = 0; c < wide; c++) squares += v.v[c] * v.v[c];
    });
    const float r = inverse_root(warp_sum(squares) * inverse_d, eps);
    const auto normed = [&](i64 i, int wide) {
      return zip(load(from + i, wide), load(weight + i, wide), [=](float x, float weight) {
        return x * r * weight;
      });
    };
    g.each(w, [&](i64 i, int wide) {
      const pack c = load(cos + at.position * w + i, wide);
      const pack s = load(sin + at.position * w + i, wide);
      rotate(normed(i, wide), normed(w + i, wide), c, s, to + i, w, wide);
    });
    g.each(d - 2 * w, [&](i64 i, int wide) {
      store(to + 2 * w + i, normed(2 * w + i, wide), wide);
    });
  }
}
