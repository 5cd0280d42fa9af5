// The first step of a level of a residual stack, in one read of r:
//
//   signs[i, j] = r[i, j] >= 0, packed          sketch = |r| omega
//   r [m, n], omega [n, c], sketch [m, c], scratch [splits, m, c] f32, c <= 80
//   signs [m, ceil(n / 8)] u8, the first of 8 in the highest bit
//
// The sketch seeds a subspace iteration: its operands are rounded to bf16 (2^-9 relative), its sums
// are in f32. With c = 0 there is none, and omega, sketch and scratch may be null; scratch may be
// null too if splits = 1.
//
// 256 threads, grid.x = splits ceil(m / 64) exactly; splits > 1 wants m <= 2^18. A warp's tile is
// 32 rows (16 for c > 32) by 32 columns. 40 KB of static shared memory.
//
// Bound by memory: 4 + 1/8 bytes per element once; omega comes from L2 for every 64 rows, c / 16
// bytes per element. 2 c flops on the tensor cores. Launches of one module must not overlap: blocks
// that share rows count themselves, and leave the counters at zero.
#include "residual.cuh"

extern "C" __global__ void __launch_bounds__(256, 2) sign_pack(
    const float* r, const float* omega, unsigned char* signs,
    float* sketch, float* scratch, i64 m, i64 n, i64 c) {
  __shared__ float sums[RESIDUAL_SUMS];
  residual_data d = {};
  d.r = const_cast<float*>(r);
  d.omega = omega;
  d.next_signs = signs;
  d.sketch = sketch;
  d.scratch = scratch;
  d.m = m;
  d.n = n;
  d.c = int(c);
  if (residual_fits(d) && c <= 32) {
    residual_block<false, 2, false, 4, true>(d, sums);
  } else if (residual_fits(d)) {
    residual_block<false, 1, false, 10, true>(d, sums);
  } else {
    residual_block<false, 1, false, 10, false>(d, sums);
  }
}
