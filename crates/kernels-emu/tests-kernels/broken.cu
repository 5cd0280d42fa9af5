// Each kernel here is wrong on purpose: the emulator must say so (tests/faults.rs).
#include "cuda_emu.h"

// A thread reads what another stores, with nothing between.
extern "C" __global__ void missing_barrier(float* out) {
  __shared__ float s[64];
  s[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = s[63 - threadIdx.x];
}

// Half of a warp waits for the block, half for the warp.
extern "C" __global__ void divergent_barrier(float* out) {
  if (threadIdx.x < 16) __syncthreads();
  else __syncwarp();
  out[threadIdx.x] = 1.f;
}

// The mask names lanes that never come.
extern "C" __global__ void half_warp_full_mask(float* out) {
  float v = threadIdx.x;
  if (threadIdx.x < 16) v += __shfl_xor_sync(0xffffffffu, v, 1);
  out[threadIdx.x] = v;
}

// The mask leaves out lanes that call.
extern "C" __global__ void bad_mask(float* out) {
  out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.f, 0);
}

// Lanes of one warp disagree about who takes part.
extern "C" __global__ void mixed_masks(float* out) {
  const unsigned mask = threadIdx.x < 16 ? 0xffffffffu : 0xffff8000u;
  out[threadIdx.x] = __shfl_sync(mask, 1.f, 16);
}

// One element too many for the dynamic shared memory of a launch with blockDim.x floats.
extern "C" __global__ void smem_overrun(float* out) {
  extern __shared__ __align__(16) unsigned char smem[];
  reinterpret_cast<float*>(smem)[blockDim.x] = 1.f;
  out[threadIdx.x] = 0.f;
}

// Reads shared memory that nothing has been stored to.
extern "C" __global__ void unset_shared(float* out) {
  extern __shared__ __align__(16) unsigned char smem[];
  out[threadIdx.x] = reinterpret_cast<float*>(smem)[threadIdx.x];
}

// Reads x[n] of n elements: AddressSanitizer sees it.
extern "C" __global__ void read_past_end(const float* x, float* out, int n) {
  out[threadIdx.x] = x[n];
}
