// A low-rank layer on one token, in one launch: y = u (v x) (+ bias).
//
//   x [n] f32    v [r, n], u [m, r] bf16 or f32    bias [m] f32 or null    z [r] f32, scratch
//   y [m] f32    products and sums in f32; lanes are combined in a fixed order
//
// 256 threads, grid.x = ceil(r / 8) + ceil(m / 16), exactly. The first ceil(r / 8) blocks to start
// are producers: a warp computes one element of z. The others are consumers: a warp has its first
// elements of two rows of u on their way to registers before it waits for z, so u streams in while
// v is being read. Blocks count as first by the ticket they draw when they start: whatever a
// consumer waits for is running already, however few blocks fit on the device at a time.
//
// Bound by memory: (n r + r m) elements read once, 2 flops each. Launches that may overlap (two
// streams) must not share the counters below; on one stream each leaves them at zero for the next.
#include "common.cuh"

constexpr int WARPS = 8;
constexpr int CONSUMER_ROWS = 2;  // of u, per warp

__device__ unsigned low_rank_tickets;   // blocks that have started
__device__ unsigned low_rank_produced;  // producers that are done
__device__ unsigned low_rank_finished;  // blocks that need the other two no longer

// The sum of w[e] x[e] over 16 bytes of w.
__device__ __forceinline__ float dot_16_bytes(uint4 w, const float* x, float sum, float) {
  const float4 a = *reinterpret_cast<const float4*>(x);
  sum = fmaf(__uint_as_float(w.x), a.x, sum);
  sum = fmaf(__uint_as_float(w.y), a.y, sum);
  sum = fmaf(__uint_as_float(w.z), a.z, sum);
  return fmaf(__uint_as_float(w.w), a.w, sum);
}
__device__ __forceinline__ float dot_16_bytes(uint4 w, const float* x, float sum, __nv_bfloat16) {
  const float4 a = reinterpret_cast<const float4*>(x)[0];
  const float4 b = reinterpret_cast<const float4*>(x)[1];
  // A bf16 is the upper half of the f32 of the same value.
  sum = fmaf(__uint_as_float(w.x << 16), a.x, sum);
  sum = fmaf(__uint_as_float(w.x & 0xffff0000u), a.y, sum);
  sum = fmaf(__uint_as_float(w.y << 16), a.z, sum);
  sum = fmaf(__uint_as_float(w.y & 0xffff0000u), a.w, sum);
  sum = fmaf(__uint_as_float(w.z << 16), b.x, sum);
  sum = fmaf(__uint_as_float(w.z & 0xffff0000u), b.y, sum);
  sum = fmaf(__uint_as_float(w.w << 16), b.z, sum);
  return fmaf(__uint_as_float(w.w & 0xffff0000u), b.w, sum);
}

// sum[i] = row i of a times x, for the first `valid` of ROWS rows, 0 for the others; by a warp,
// which has 2 AHEAD loads per lane and row under way. x is read only after `wait`, which every
// thread calls once. fit: rows and x are multiples of 16 bytes from one.
template <int ROWS, int AHEAD, class T, class W>
__device__ __forceinline__ void warp_dots(
    float (&sum)[ROWS], const T* __restrict__ a, i64 valid, i64 width, const float* x, bool fit,
    W wait) {
  constexpr int E = 16 / sizeof(T), STEP = 32 * AHEAD;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < ROWS; i++) sum[i] = 0.f;
  if (fit) {
    const int count = int(width / E);
    uint4 now[ROWS][AHEAD], next[ROWS][AHEAD];
    const auto load = [&](uint4 (&w)[ROWS][AHEAD], int at) {
#pragma unroll
      for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int s = 0; s < AHEAD; s++)
          if (i < valid && at + 32 * s < count)
            w[i][s] = reinterpret_cast<const uint4*>(a + i * width)[at + 32 * s];
    };
    load(now, lane);
    load(next, lane + STEP);
    wait();
    for (int at = lane; at < count; at += STEP) {
#pragma unroll
      for (int s = 0; s < AHEAD; s++)
#pragma unroll
        for (int i = 0; i < ROWS; i++)
          if (i < valid && at + 32 * s < count)
            sum[i] = dot_16_bytes(now[i][s], x + i64(at + 32 * s) * E, sum[i], T());
#pragma unroll
      for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int s = 0; s < AHEAD; s++) now[i][s] = next[i][s];
      load(next, at + 2 * STEP);
    }
  } else {
    wait();
    for (i64 j = lane; j < width; j += 32)
#pragma unroll
      for (int i = 0; i < ROWS; i++)
        if (i < valid) sum[i] = fmaf(wide(a[i * width + j]), x[j], sum[i]);
  }
#pragma unroll
  for (int i = 0; i < ROWS; i++) sum[i] = warp_sum(sum[i]);
}

template <class T>
__device__ __forceinline__ bool rows_fit(const T* a, i64 width, const float* x) {
  const unsigned long long from = reinterpret_cast<unsigned long long>(a);
  return (from | reinterpret_cast<unsigned long long>(x) | width * sizeof(T)) % 16 == 0;
}

template <class T>
__device__ __forceinline__ void low_rank_matvec(
    const float* x, const T* v, const T* u, const float* bias, float* z, float* y, i64 n, i64 r,
    i64 m) {
  __shared__ unsigned ticket;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const unsigned producers = unsigned((r + WARPS - 1) / WARPS);
  if (threadIdx.x == 0) ticket = atomicAdd(&low_rank_tickets, 1u);
  __syncthreads();

  if (ticket < producers) {
    const i64 row = i64(ticket) * WARPS + warp;
    float sum[1];
    warp_dots<1, 4>(sum, v + row * n, r - row, n, x, rows_fit(v, n, x), [] {});
    if (lane == 0 && row < r) z[row] = sum[0];
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(&low_rank_produced, 1u);
  } else {
    const i64 row = (i64(ticket - producers) * WARPS + warp) * CONSUMER_ROWS;
    float sum[CONSUMER_ROWS];
    warp_dots<CONSUMER_ROWS, 2>(sum, u + row * r, m - row, r, z, rows_fit(u, r, z), [&] {
      if (threadIdx.x == 0) {
        while (*static_cast<volatile unsigned*>(&low_rank_produced) < producers) {
        }
        __threadfence();
      }
      __syncthreads();
    });
#pragma unroll
    for (int i = 0; i < CONSUMER_ROWS; i++)
      if (lane == i && row + i < m) y[row + i] = sum[i] + (bias ? bias[row + i] : 0.f);
  }

  if (threadIdx.x == 0 && atomicAdd(&low_rank_finished, 1u) == gridDim.x - 1)
    low_rank_tickets = low_rank_produced = low_rank_finished = 0;
}

extern "C" __global__ void __launch_bounds__(256, 4) low_rank_matvec_bf16(
    const float* __restrict__ x, const __nv_bfloat16* __restrict__ v,
    const __nv_bfloat16* __restrict__ u, const float* __restrict__ bias, float* z,
    float* __restrict__ y, i64 n, i64 r, i64 m) {
  low_rank_matvec(x, v, u, bias, z, y, n, r, m);
}

extern "C" __global__ void __launch_bounds__(256, 4) low_rank_matvec_f32(
    const float* __restrict__ x, const float* __restrict__ v, const float* __restrict__ u,
    const float* __restrict__ bias, float* z, float* __restrict__ y, i64 n, i64 r, i64 m) {
  low_rank_matvec(x, v, u, bias, z, y, n, r, m);
}
