#pragma once
// What the kernels share: 64-bit positions, and reductions over a warp and over a block whose order
// does not depend on timing, so that the same input gives the same bits.
#include <cuda_bf16.h>

#ifndef INFINITY  // NVRTC comes without math.h
#define INFINITY __int_as_float(0x7f800000)
#endif

// Counts and offsets of elements: more than 2^31 of them are nothing special.
typedef long long i64;

constexpr unsigned ALL_LANES = 0xffffffffu;

// The first element of this thread in a loop over all elements, and the step of that loop.
__device__ __forceinline__ i64 first_element() {
  return (i64)blockIdx.x * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ i64 element_step() { return (i64)gridDim.x * blockDim.x; }

template <class T>
__device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(ALL_LANES, v, o);
  return v;
}

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, o));
  return v;
}

// The sum of v over the block, in every thread. Blocks are whole warps, 1024 threads at most.
template <class T>
__device__ __forceinline__ T block_sum(T v) {
  __shared__ T part[32];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  v = warp_sum(v);
  __syncthreads();  // the last call's parts have been read
  if (lane == 0) part[warp] = v;
  __syncthreads();
  return warp_sum(lane < warps ? part[lane] : T(0));
}

// The largest v over the block, in every thread. NaN is passed over, as fmaxf does.
__device__ __forceinline__ float block_max(float v) {
  __shared__ float part[32];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  v = warp_max(v);
  __syncthreads();
  if (lane == 0) part[warp] = v;
  __syncthreads();
  return warp_max(lane < warps ? part[lane] : -INFINITY);
}

__device__ __forceinline__ float wide(float v) { return v; }
__device__ __forceinline__ float wide(__nv_bfloat16 v) { return __bfloat162float(v); }
