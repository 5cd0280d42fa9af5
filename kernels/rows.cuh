#pragma once
// Who works on a row: a warp where rows are short, the whole block where they are long. Row kernels
// are written once, for the group they are handed.
#include "packs.cuh"

constexpr int ROW_THREADS = 256;

template <int THREADS>
struct row_group {
  static_assert(THREADS == 32 || THREADS == ROW_THREADS, "a warp or a block");

  bool quads;  // whether all rows start at multiples of 16 bytes and end so

  // The first row of this group, and the step to its next one.
  __device__ i64 first() const {
    return (i64)blockIdx.x * (ROW_THREADS / THREADS) + threadIdx.x / THREADS;
  }
  __device__ i64 step() const { return (i64)gridDim.x * (ROW_THREADS / THREADS); }

  // Calls body(i, w) for this thread's part of 0..d.
  template <class F>
  __device__ __forceinline__ void each(i64 d, F body) const {
    const i64 lane = threadIdx.x % THREADS;
    if (quads) {
      // A block has two loads of each tensor under way per thread; of warps there are enough.
#pragma unroll(THREADS == 32 ? 1 : 2)
      for (i64 i = 4 * lane; i < d; i += 4 * THREADS) body(i, 4);
    } else {
#pragma unroll(THREADS == 32 ? 1 : 2)
      for (i64 i = lane; i < d; i += THREADS) body(i, 1);
    }
  }

  // The sum of v over the group. Threads sum in f32, few terms each; their sums are added in f64.
  __device__ __forceinline__ double sum(float v) const {
    if constexpr (THREADS == 32) {
      return warp_sum((double)v);
    } else {
      return block_sum((double)v);
    }
  }
};

// Whether a warp takes a row of d elements; eight of them share a block.
__device__ __forceinline__ bool short_row(i64 d) { return d <= 1024; }

// 1 / sqrt(mean + eps), the root in f32: 2e-7 relative, and no division in f64, of which many GPUs
// do a 64th of what they do in f32.
__device__ __forceinline__ float inverse_root(double mean, double eps) {
  return 1.0f / sqrtf((float)(mean + eps));
}

// The same to the last digits of f64, by one step of Newton's iteration, for differences of numbers
// that are nearly equal.
__device__ __forceinline__ double exact_inverse_root(double mean, double eps) {
  const double r = (double)inverse_root(mean, eps);
  return r * (1.5 - 0.5 * (mean + eps) * r * r);
}
