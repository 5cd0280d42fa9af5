// Grouped-query causal attention in f32: what src/ops/causal_attention.rs defines.
//
//   y[b tq + i, h d + :] = sum_j softmax_j(f(scale q[b, h, i] . k[b, g, j])) v[b, g, j]
//   g = h / (heads / kv)    f(s) = s, or cap tanh(s / cap) where cap > 0
//   key j is seen iff j <= p and (window == 0 or p - j < window), p = first + i
//   q [b, heads, tq, d]    k, v [b, kv, tk, d]    y [b tq, heads d]
//
// causal_attention_D is for d <= D. A block owns a tile of queries of one head and goes over the
// tiles of keys that some of them see: scores, softmax so far, weighted sum. Keys, then values,
// pass through one buffer in shared memory. 4 d flops per score, in IEEE f32; 8 d bytes read per
// key and tile of queries, most of them from L2.
//
//   128 threads    grid.x = ceil(tq / Q) heads b    dynamic shared memory, bytes:
//   D     32      64      128     256
//   Q     64      64      64      32      queries of a tile
//   K     64      64      64      32      keys of a tile
//         35840   52224   84992   71168   4 ((Q + K) (D + 4) + Q (K + 4))
#include "common.cuh"
#include "attention.cuh"
#include "attention_tiles.cuh"

template <int D, int R, int C>
__device__ __forceinline__ void causal_attention(
    const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
    float* __restrict__ y, const attention_sizes z) {
  constexpr int QUERIES = GROUPS * R, KEYS = LANES * C, N = D / LANES;
  float* queries = shared_floats();
  float* buffer = queries + QUERIES * (D + 4);  // keys, then values
  float* weights = buffer + KEYS * (D + 4);

  const query_tile tile(z, QUERIES);
  const i64 q0 = tile.first, rows = tile.rows;
  q += tile.query_row * z.d;
  k += tile.key_row * z.d;
  v += tile.key_row * z.d;
  y += tile.output_at;

  const int group = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  float o[R][N] = {}, largest[R], sum[R] = {};  // sum: over this lane's keys
#pragma unroll
  for (int i = 0; i < R; i++) largest[i] = -INFINITY;

  load_tile<D, QUERIES>(queries, q, rows, z.d, z.d);
  const i64 end = z.last_key(q0 + rows);
  for (i64 k0 = z.first_key(q0); k0 < end; k0 += KEYS) {
    float s[R][C];
    __syncthreads();  // the last tile's values have been read
    load_tile<D, KEYS>(buffer, k + k0 * z.d, end - k0, z.d, z.d);
    __syncthreads();
    dot_rows<D>(s, queries, buffer);
    __syncthreads();
    load_tile<D, KEYS>(buffer, v + k0 * z.d, end - k0, z.d, z.d);

    z.bend(s);
    const i64 distance = z.first + q0 - k0;
#pragma unroll
    for (int i = 0; i < R; i++) {
      const int row = group + GROUPS * i;
      float top = -INFINITY;
#pragma unroll
      for (int j = 0; j < C; j++) {
        if (!z.seen(distance + row - lane - LANES * j)) s[i][j] = -INFINITY;
        top = fmaxf(top, s[i][j]);
      }
      top = fmaxf(largest[i], lanes_max(top));
      // A query may not have seen a key yet: any finite maximum then gives zeros.
      const float shift = top == -INFINITY ? 0.f : top;
      const float shrink = expf(largest[i] - shift);
      largest[i] = top;
      sum[i] *= shrink;
#pragma unroll
      for (int n = 0; n < N; n++) o[i][n] *= shrink;
#pragma unroll
      for (int j = 0; j < C; j++) {
        s[i][j] = expf(s[i][j] - shift);
        sum[i] += s[i][j];
      }
    }
    put_weights(weights, s);
    __syncthreads();
    add_weighted<D, R, KEYS>(o, weights, buffer);
  }

#pragma unroll
  for (int i = 0; i < R; i++) sum[i] = 1.f / lanes_sum(sum[i]);
  store_rows<D>(y, o, sum, rows, tile.stride, z.d);
}

#define OPERANDS                                                                   \
  const float *__restrict__ q, const float *__restrict__ k, const float *__restrict__ v, \
      float *__restrict__ y, ATTENTION_SIZES

extern "C" __global__ void __launch_bounds__(128, 2) causal_attention_32(OPERANDS) {
  causal_attention<32, 8, 4>(q, k, v, y, SIZES);
}
extern "C" __global__ void __launch_bounds__(128, 2) causal_attention_64(OPERANDS) {
  causal_attention<64, 8, 4>(q, k, v, y, SIZES);
}
extern "C" __global__ void __launch_bounds__(128, 2) causal_attention_128(OPERANDS) {
  causal_attention<128, 8, 4>(q, k, v, y, SIZES);
}
extern "C" __global__ void __launch_bounds__(128, 2) causal_attention_256(OPERANDS) {
  causal_attention<256, 4, 2>(q, k, v, y, SIZES);
}
