// What surrounds the product of a linear:
//
//   add_bias:  y[r, j] += bias[j]        y [rows, m], bias [m], f32, in place
//   to_bf16:   y[i] = x[i] rounded to nearest, ties to even; NaN stays NaN
//
// Grid: min(ceil(elements / 1024), 16 per multiprocessor) blocks of 256.
// 8 and 6 bytes per element, one operation (and a division of integers per 16 bytes): bound by
// memory.
#include "packs.cuh"

extern "C" __global__ void __launch_bounds__(256)
add_bias(float* __restrict__ y, const float* __restrict__ bias, i64 rows, i64 m) {
  for_packs(rows * m, m % 4 == 0 && aligned(y, bias), [&](i64 at, int w) {
    const pack sum = zip(load(y + at, w), load(bias + at % m, w), [](float y, float bias) {
      return y + bias;
    });
    store(y + at, sum, w);
  });
}

struct alignas(8) bf16_quad {
  __nv_bfloat162 low, high;
};

extern "C" __global__ void __launch_bounds__(256)
to_bf16(const float* __restrict__ x, __nv_bfloat16* __restrict__ y, i64 n) {
  const i64 quads = aligned(x, y) ? n / 4 : 0;
  for (i64 q = first_element(); q < quads; q += element_step()) {
    const pack p = load(x + 4 * q, 4);
    reinterpret_cast<bf16_quad*>(y)[q] = {__floats2bfloat162_rn(p.v[0], p.v[1]),
                                          __floats2bfloat162_rn(p.v[2], p.v[3])};
  }
  for (i64 i = 4 * quads + first_element(); i < n; i += element_step())
    y[i] = __float2bfloat16_rn(x[i]);
}
