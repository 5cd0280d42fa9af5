// The answers of experts, brought back to their tokens and added up:
//
//   y[t] = Σ_s weights[t, s] x[places[t, s]]        s by ascending place, as `order` lists them
//   dx[p] = weights[source[p]] dy[source[p] / k]    dweights[t, s] = dy[t] · x[places[t, s]]
//
// x, dx [n, d], weights, dweights [t, k], y, dy [t, d], f32; n = t k. places [t k]: the row of x
// for every weight; source [n]: its inverse; order [t k]: for every token its weights (indices into
// places and weights) by ascending place.
//
// Blocks of 256, at most 16 per multiprocessor: ceil(t d / 1024) and ceil(n d / 1024) of them for y
// and dx, ceil(n / 8) for dweights (a warp per weight).
// 4 bytes and 2 operations per element of x and as many bytes per element of y: bound by memory.
#include "rows.cuh"

extern "C" __global__ void __launch_bounds__(256)
mix_rows(const float* __restrict__ x, const float* __restrict__ weights,
         const i64* __restrict__ places, const i64* __restrict__ order, float* __restrict__ y,
         i64 t, i64 k, i64 d) {
  for_packs(t * d, d % 4 == 0 && aligned(x, y), [&](i64 at, int w) {
    const i64 token = at / d, i = at - token * d;
    pack sum = {};
#pragma unroll 4
    for (i64 s = 0; s < k; s++) {
      const i64 index = order[token * k + s];
      const float weight = weights[index];
      // The product is rounded before it is added, as on the CPU.
      sum = zip(sum, load(x + places[index] * d + i, w), [=](float sum, float x) {
        return __fadd_rn(sum, __fmul_rn(weight, x));
      });
    }
    store(y + at, sum, w);
  });
}

// Six blocks per multiprocessor, 40 registers: left alone, ptxas takes 32 on sm_90 and spills.
extern "C" __global__ void __launch_bounds__(256, 6)
mix_rows_gradient_rows(const float* __restrict__ weights, const float* __restrict__ dy,
                       const i64* __restrict__ source, float* __restrict__ dx, i64 n, i64 k,
                       i64 d) {
  for_packs(n * d, d % 4 == 0 && aligned(dy, dx), [&](i64 at, int w) {
    const i64 place = at / d, i = at - place * d;
    const i64 index = source[place];
    const float weight = weights[index];
    const pack s = load(dy + index / k * d + i, w);
    store(dx + at, map(s, [=](float dy) { return weight * dy; }), w);
  });
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
mix_rows_gradient_weights(const float* __restrict__ x, const float* __restrict__ dy,
                          const i64* __restrict__ places, float* __restrict__ dweights, i64 n,
                          i64 k, i64 d) {
  const row_group<32> g = {d % 4 == 0 && aligned(x, dy)};
  for (i64 index = g.first(); index < n; index += g.step()) {
    const float* a = dy + index / k * d;
    const float* b = x + places[index] * d;
    float dot = 0.0f;
    g.each(d, [&](i64 i, int w) {
      const pack p = load(a + i, w), q = load(b + i, w);
#pragma unroll
      for (int c = 0; c < w; c++) dot += p.v[c] * q.v[c];
    });
    const double sum = g.sum(dot);
    if (threadIdx.x % 32 == 0) dweights[index] = (float)sum;
  }
}
