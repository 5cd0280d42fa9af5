// What a level of a residual stack leaves over, and the first step of the next level, in one read
// and one write of r:
//
//   r -= s o (u v)       then of the new r: next_signs and sketch = |r| omega, as sign_pack
//   r [m, n], omega [n, c], sketch [m, c], scratch [splits, m, c] f32, c <= 80
//   u [m, k], v [k, n] f16, k <= 64    signs, next_signs [m, ceil(n / 8)] u8, packed
//
// u v is summed in f32; products of f16 are exact in it. next_signs may be null, and omega, sketch
// and scratch with c = 0; scratch too if splits = 1.
//
// take_level takes any k and c: a warp's tile is 16 rows by 32 columns. take_level_16 wants k <= 16 and
// c <= 32, and loads v and omega for 32 rows at a time.
//
// 256 threads, grid.x = splits ceil(m / 64) exactly; splits > 1 wants m <= 2^18. 40 KB of static
// shared memory.
//
// Bound by memory: 8 + 1/4 bytes per element; v and omega come from L2 for every 64 rows, k / 32 +
// c / 16 bytes per element. 2 (k + c) flops on the tensor cores, about 8 others. Launches of one
// module must not overlap: blocks that share rows count themselves, and leave the counters at zero.
#include "residual.cuh"

extern "C" __global__ void __launch_bounds__(256, 2) take_level(
    float* r, const unsigned char* signs, const __half* u, const __half* v, const float* omega,
    unsigned char* next_signs, float* sketch, float* scratch, i64 m, i64 n, i64 k, i64 c) {
  __shared__ float sums[RESIDUAL_SUMS];
  const residual_data d = {r,      signs,   u, v, omega,  next_signs,
                           sketch, scratch, m, n, int(k), int(c)};
  if (residual_fits(d)) {
    residual_block<true, 1, false, 10, true>(d, sums);
  } else {
    residual_block<true, 1, false, 10, false>(d, sums);
  }
}

extern "C" __global__ void __launch_bounds__(256, 2) take_level_16(
    float* r, const unsigned char* signs, const __half* u, const __half* v, const float* omega,
    unsigned char* next_signs, float* sketch, float* scratch, i64 m, i64 n, i64 k, i64 c) {
  __shared__ float sums[RESIDUAL_SUMS];
  const residual_data d = {r,      signs,   u, v, omega,  next_signs,
                           sketch, scratch, m, n, int(k), int(c)};
  if (residual_fits(d)) {
    residual_block<true, 2, true, 4, true>(d, sums);
  } else {
    residual_block<true, 1, false, 10, false>(d, sums);
  }
}
