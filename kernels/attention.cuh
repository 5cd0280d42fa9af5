#pragma once
// What the kernels of causal attention share: sizes, masks, and which block does what.
#include "common.cuh"

// What every kernel of attention ends its parameters with, and the sizes made of it.
#define ATTENTION_SIZES \
  i64 b, i64 heads, i64 kv, i64 tq, i64 tk, i64 d, i64 first, i64 window, float scale, float cap
#define SIZES {b, heads, kv, tq, tk, d, first, window, scale, cap}

struct attention_sizes {
  i64 b, heads, kv, tq, tk, d;
  i64 first;         // position of the first query; keys are at 0 .. tk
  i64 window;        // keys a query sees, itself included; 0: all up to itself
  float scale, cap;  // f(s) = s, or cap tanh(s / cap) where cap is not 0

  // Makes scores f(scale x) of products x = q . k.
  template <int R, int C>
  __device__ __forceinline__ void bend(float (&x)[R][C]) const {
    const float before = cap > 0.f ? scale / cap : scale;
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
      for (int j = 0; j < C; j++) x[i][j] *= before;
    if (cap > 0.f) {
#pragma unroll
      for (int i = 0; i < R; i++)
#pragma unroll
        for (int j = 0; j < C; j++) x[i][j] = cap * tanhf(x[i][j]);
    }
  }
  // Makes gradients of the products of gradients of the scores s.
  template <int R, int C>
  __device__ __forceinline__ void unbend(float (&ds)[R][C], const float (&s)[R][C]) const {
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
      for (int j = 0; j < C; j++) ds[i][j] *= scale;
    if (cap > 0.f) {
      const float inverse = 1.f / cap;
#pragma unroll
      for (int i = 0; i < R; i++)
#pragma unroll
        for (int j = 0; j < C; j++) {
          const float t = s[i][j] * inverse;
          ds[i][j] *= (1.f - t) * (1.f + t);
        }
    }
  }
  // Whether a query sees a key that is `distance` positions before it.
  __device__ __forceinline__ bool seen(i64 distance) const {
    return distance >= 0 && (window == 0 || distance < window);
  }
  // The keys that some of the queries q0 .. q1 see: from the first to before the last.
  __device__ __forceinline__ i64 first_key(i64 q0) const {
    return window == 0 ? 0 : max(first + q0 - window + 1, i64(0));
  }
  __device__ __forceinline__ i64 last_key(i64 q1) const { return min(first + q1, tk); }
};

// The tile of queries that a block owns, of grid.x = ceil(tq / queries) heads b.
struct query_tile {
  i64 first, rows;        // of the queries of its head
  i64 query_row;          // of q, rows of d: its first
  i64 key_row;            // of k and v, rows of d: the first of the head of keys it looks at
  i64 output_at, stride;  // in y: its first element, and from row to row

  __device__ __forceinline__ query_tile(const attention_sizes& z, int queries) {
    // The last queries see the most keys: they start first.
    const i64 tiles = (z.tq + queries - 1) / queries, all_heads = z.heads * z.b;
    const i64 text_head = blockIdx.x % all_heads, text = text_head / z.heads;
    const i64 head = text_head % z.heads;
    first = (tiles - 1 - blockIdx.x / all_heads) * queries;
    rows = min(z.tq - first, i64(queries));
    query_row = text_head * z.tq + first;
    key_row = (text * z.kv + head / (z.heads / z.kv)) * z.tk;
    stride = z.heads * z.d;
    output_at = (text * z.tq + first) * stride + head * z.d;
  }
};

__device__ __forceinline__ float* shared_floats() {
  extern __shared__ __align__(16) unsigned char smem[];
  return reinterpret_cast<float*>(smem);
}
