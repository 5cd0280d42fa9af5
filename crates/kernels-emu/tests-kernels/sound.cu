// Kernels that show that the emulator does what the hardware does (tests/collectives.rs).
#include <cuda_bf16.h>
#include <cuda_emu.h>

#include "mma.cuh"

// The sum over a block by both kinds of shared memory, a barrier and shuffles.
extern "C" __global__ void __launch_bounds__(256) sound_block_sum(const float* x, float* y, int n) {
  extern __shared__ __align__(16) unsigned char smem[];
  float* part = reinterpret_cast<float*>(smem);
  __shared__ float total;
  float v = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) v += x[(long long)blockIdx.x * n + i];
  for (int o = 16; o > 0; o >>= 1) v += __shfl_down_sync(0xffffffffu, v, o);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x == 0) {
    total = 0;
    for (int w = 0; w < (int)blockDim.x / 32; w++) total += part[w];
  }
  __syncthreads();
  if (threadIdx.x == 1) y[blockIdx.x] = total;
}

// One warp; a row of 32 results for each collective. The first half of the warp has done a shuffle
// of its own before, so that the halves are not in step.
extern "C" __global__ void sound_warp(int* out) {
  const int lane = threadIdx.x;
  const unsigned all = 0xffffffffu, mine = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  int once = 100 + lane;
  if (lane < 16) once = __shfl_xor_sync(0x0000ffffu, once, 1);
  out[0 * 32 + lane] = once;
  out[1 * 32 + lane] = __shfl_sync(all, lane * lane, 5);
  out[2 * 32 + lane] = __shfl_up_sync(all, lane, 3);
  out[3 * 32 + lane] = __shfl_down_sync(all, lane, 3, 8);
  out[4 * 32 + lane] = __ballot_sync(all, lane % 3 == 0);
  out[5 * 32 + lane] = __reduce_add_sync(mine, lane);
  out[6 * 32 + lane] = __all_sync(mine, lane < 16) * 2 + __any_sync(all, lane == 31);
  out[7 * 32 + lane] = __syncthreads_count(lane < 20);
}

// c [16, n] = a [16, k] · b [n, k]^T on the tensor cores; a block of one warp for each 8 columns.
extern "C" __global__ void sound_mma(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c,
                                     int n, int k) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4 * 2, column = blockIdx.x * 8;
  float d[4] = {};
  auto pair = [](const __nv_bfloat16* p) { return *reinterpret_cast<const unsigned*>(p); };
  for (int l = 0; l < k; l += 16) {
    const unsigned left[4] = {pair(a + g * k + l + t), pair(a + (g + 8) * k + l + t),
                              pair(a + g * k + l + t + 8), pair(a + (g + 8) * k + l + t + 8)};
    const unsigned right[2] = {pair(b + (column + g) * k + l + t),
                               pair(b + (column + g) * k + l + t + 8)};
    mma_bf16_16x8x16(d, left, right);
  }
  c[g * n + column + t] = d[0];
  c[g * n + column + t + 1] = d[1];
  c[(g + 8) * n + column + t] = d[2];
  c[(g + 8) * n + column + t + 1] = d[3];
}

// How many elements are equal to each of 64 values.
extern "C" __global__ void sound_histogram(const int* x, unsigned* count, int n) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
    atomicAdd(&count[x[i]], 1u);
}

// Which blocks of a grid ran.
extern "C" __global__ void sound_blocks(long long* out, long long first) {
  const long long block =
      blockIdx.x + (long long)gridDim.x * (blockIdx.y + (long long)gridDim.y * blockIdx.z);
  out[block - first] = block;
}
