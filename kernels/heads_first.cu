// Rows of concatenated heads to heads of rows:
//
//   y[b, h, t, i] = x[b, t, h, i]
//
// x [b, t, h, d], y [b, h, t, d], f32. With t and h exchanged it is its own inverse.
// Grid: min(ceil(b t h d / 1024), 16 per multiprocessor) blocks of 256, over the elements of y.
// 8 bytes per element and two divisions of integers per 16 bytes: bound by memory. Both sides move
// whole heads, d elements in one piece, so nothing is staged in shared memory.
#include "packs.cuh"

extern "C" __global__ void __launch_bounds__(256)
heads_first(const float* __restrict__ x, float* __restrict__ y, i64 b, i64 t, i64 h, i64 d) {
  for_packs(b * t * h * d, d % 4 == 0 && aligned(x, y), [&](i64 at, int w) {
    const i64 row = at / d, i = at - row * d;  // row of [b, h, t]
    const i64 heads = row / t, position = row - heads * t;
    const i64 batch = heads / h, head = heads - batch * h;
    store(y + at, load(x + ((batch * t + position) * h + head) * d + i, w), w);
  });
}
