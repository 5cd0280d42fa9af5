// Next-token loss and its gradient, the vocabulary in tiles: what src/ops/cross_entropy.rs defines.
//
//   loss[i]       = log sum_j e^l[i, j] - l[i, targets[i]]
//   dlogits[i, j] = e^(l[i, j] - max[i]) / sum[i] - [j == targets[i]]
//
// A tile holds columns first .. first + w of the vocabulary: logits [n, w] f32. Between tiles a row
// is its state, [3, n] f64: max, sum of e^(l - max), and the target's logit. Before the first tile
// max is -inf and the rest 0. A logit that is not finite makes the sum, and so the loss, NaN.
//
// 256 threads, a block per row, no dynamic shared memory. Bound by memory: 4 n w bytes read
// (gradient: and as many written), about 15 operations per logit.
#include "common.cuh"

constexpr int ROW_THREADS = 256;

// The running maximum of some logits and the sum of e^(l - max): in f32 over four logits at a time,
// in f64 across.
struct soft_sum {
  float max = -INFINITY;
  double sum = 0.0;

  __device__ __forceinline__ void raise(float to) {
    if (to > max) {
      sum *= double(expf(max - to));
      max = to;
    }
  }
  // e^(v - max). NaN and +inf make it NaN by themselves; -inf, whose term would be 0, through 0 v.
  __device__ __forceinline__ float term(float v) const { return fmaf(v, 0.f, expf(v - max)); }

  __device__ __forceinline__ void add(float v) {
    raise(v);
    sum += double(term(v));
  }
  __device__ __forceinline__ void add(float4 v) {
    raise(fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)));
    sum += double((term(v.x) + term(v.y)) + (term(v.z) + term(v.w)));
  }
};

// A row in three parts: elements before the first multiple of 16 bytes, whole float4, the rest. A
// thread has BATCH float4 on their way at a time.
constexpr int BATCH = 4;
struct row_parts {
  i64 head, quads, width;
  __device__ __forceinline__ row_parts(const float* row, i64 w) : width(w) {
    head = min(i64((16 - reinterpret_cast<unsigned long long>(row) % 16) % 16 / 4), w);
    quads = (w - head) / 4;
  }
};

extern "C" __global__ void __launch_bounds__(ROW_THREADS) cross_entropy_tile(
    const float* __restrict__ logits, const unsigned* __restrict__ targets,
    double* __restrict__ state, i64 n, i64 w, i64 first) {
  double *max = state, *sum = state + n, *hit = state + 2 * n;
  for (i64 i = blockIdx.x; i < n; i += gridDim.x) {
    const float* row = logits + i * w;
    const row_parts parts(row, w);
    const float4* quads = reinterpret_cast<const float4*>(row + parts.head);
    soft_sum mine;
    if (threadIdx.x < parts.head) mine.add(row[threadIdx.x]);
    i64 c = threadIdx.x;
    for (; c + (BATCH - 1) * ROW_THREADS < parts.quads; c += BATCH * ROW_THREADS) {
      float4 v[BATCH];
#pragma unroll
      for (int l = 0; l < BATCH; l++) v[l] = quads[c + ROW_THREADS * l];
#pragma unroll
      for (int l = 0; l < BATCH; l++) mine.add(v[l]);
    }
    for (; c < parts.quads; c += ROW_THREADS) mine.add(quads[c]);
    const i64 rest = parts.head + 4 * parts.quads + threadIdx.x;
    if (rest < w) mine.add(row[rest]);

    const float largest = block_max(mine.max);
    // Threads that saw nothing have a sum of 0 and a maximum of -inf; so may have the whole row,
    // and the difference is then NaN, as it should be.
    const double total = block_sum(mine.sum * double(expf(mine.max - largest)));
    if (threadIdx.x == 0) {
      const float before = float(max[i]), to = fmaxf(before, largest);
      // Nothing was seen before the first tile: 0, even where this one is not finite.
      const double seen = before > -INFINITY ? sum[i] * double(expf(before - to)) : 0.0;
      sum[i] = seen + total * double(expf(largest - to));
      max[i] = to;
      const i64 target = i64(targets[i]) - first;
      if (target >= 0 && target < w) hit[i] = row[target];
    }
  }
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS) cross_entropy_tile_gradient(
    const float* __restrict__ logits, const unsigned* __restrict__ targets,
    const double* __restrict__ state, float* __restrict__ dlogits, i64 n, i64 w, i64 first) {
  for (i64 i = blockIdx.x; i < n; i += gridDim.x) {
    const float* row = logits + i * w;
    float* to = dlogits + i * w;
    const float largest = float(state[i]), scale = float(1.0 / state[n + i]);
    const i64 target = i64(targets[i]) - first;
    const auto gradient = [&](float v, i64 j) {
      return scale * expf(v - largest) - (j == target ? 1.f : 0.f);
    };

    // Rows that are aligned differently share no whole float4.
    row_parts parts(row, w);
    if (row_parts(to, w).head != parts.head) {
      for (i64 j = threadIdx.x; j < w; j += ROW_THREADS) to[j] = gradient(row[j], j);
      continue;
    }
    const float4* quads = reinterpret_cast<const float4*>(row + parts.head);
    float4* to_quads = reinterpret_cast<float4*>(to + parts.head);
    if (threadIdx.x < parts.head) to[threadIdx.x] = gradient(row[threadIdx.x], threadIdx.x);
    const auto put = [&](i64 c, float4 v) {
      const i64 j = parts.head + 4 * c;
      to_quads[c] = make_float4(gradient(v.x, j), gradient(v.y, j + 1), gradient(v.z, j + 2),
                                gradient(v.w, j + 3));
    };
    i64 c = threadIdx.x;
    for (; c + (BATCH - 1) * ROW_THREADS < parts.quads; c += BATCH * ROW_THREADS) {
      float4 v[BATCH];
#pragma unroll
      for (int l = 0; l < BATCH; l++) v[l] = quads[c + ROW_THREADS * l];
#pragma unroll
      for (int l = 0; l < BATCH; l++) put(c + ROW_THREADS * l, v[l]);
    }
    for (; c < parts.quads; c += ROW_THREADS) put(c, quads[c]);
    const i64 rest = parts.head + 4 * parts.quads + threadIdx.x;
    if (rest < w) to[rest] = gradient(row[rest], rest);
  }
}
