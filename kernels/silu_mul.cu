// The gated activation of a SwiGLU block: y = gate sigmoid(gate) up. With s = sigmoid(gate):
//
//   dgate = dy up s (1 + gate (1 - s))        dup = dy gate s
//
// All n elements, f32; `both` holds dgate, then dup.
// Grid: min(ceil(n / 1024), 16 per multiprocessor) blocks of 256.
// 12 bytes and about 20 operations per element, the gradients 20 and 30: bound by memory.
#include "packs.cuh"

extern "C" __global__ void __launch_bounds__(256)
silu_mul(const float* __restrict__ gate, const float* __restrict__ up, float* __restrict__ y,
         i64 n) {
  zip_elements(gate, up, y, n, [](float gate, float up) {
    return gate / (1.0f + expf(-gate)) * up;
  });
}

extern "C" __global__ void __launch_bounds__(256)
silu_mul_gradient(const float* __restrict__ gate, const float* __restrict__ up,
                  const float* __restrict__ dy, float* __restrict__ both, i64 n) {
  float *dgate = both, *dup = both + n;
  for_packs(n, aligned(gate, up, dy, dgate, dup), [&](i64 i, int w) {
    const pack g = load(gate + i, w), u = load(up + i, w), d = load(dy + i, w);
    pack to_gate = {}, to_up = {};
#pragma unroll
    for (int c = 0; c < w; c++) {
      const float e = expf(-g.v[c]), s = 1.0f / (1.0f + e);
      // 1 - s: the difference loses its digits near s = 1, the product its range near s = 0.
      const float rest = e > 1.0f ? 1.0f - s : e * s;
      const float silu = g.v[c] * s;
      to_gate.v[c] = d.v[c] * u.v[c] * (s + silu * rest);
      to_up.v[c] = d.v[c] * silu;
    }
    store(dgate + i, to_gate, w);
    store(dup + i, to_up, w);
  });
}
