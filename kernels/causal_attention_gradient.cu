// Gradients of causal attention in f32: what src/ops/causal_attention/gradient.rs defines.
//
//   p  = softmax(f(scale q k^T))      dp = dy v^T         delta = sum_j p dp
//   ds = scale f' p (dp - delta)      dq = ds k           dk = sum over heads of ds^T q
//                                                         dv = sum over heads of p^T dy
//   q, dq [b, heads, tq, d]    k, v, dk, dv [b, kv, tk, d]    dy [b tq, heads d]
//   stats [b, heads, tq, 3]: the largest score, 1 / sum_j e^(score - largest), delta
//
// Neither kernel adds to memory: every element of dq, dk, dv and stats has one owner, which writes
// it once, so results do not depend on timing. Masks are as in causal_attention.cu; d <= D.
//
// causal_attention_dq_D. A block owns a tile of queries of one head and goes twice over the keys
// they see: for the stats, then for dq. 10 d flops per score, the first pass' 4 d included.
//   128 threads    grid.x = ceil(tq / Q) heads b    dynamic shared memory, bytes:
//   D     32      64      128     256
//   Q     64      64      64      32      queries of a tile
//   K     64      64      32      16      keys of a tile
//         45056   69632   93696   85760   4 ((2 Q + K) (D + 4) + Q (K + 4))
//
// causal_attention_dkv_D, after it on the same stream. A block owns a tile of keys of one head of
// keys and goes over the heads of queries that share it and the queries that see it. 8 d flops per
// score.
//   128 threads    grid.x = ceil(tk / K) kv b       dynamic shared memory, bytes:
//   D     32      64      128     256
//   K     64      64      32      16      keys of a tile
//   Q     32      32      32      16      queries of a tile
//         36864   61440   72192   67840   4 (2 (K + Q) (D + 4) + K (Q + 4))
#include "common.cuh"
#include "attention.cuh"
#include "attention_tiles.cuh"

template <int D, int R, int C>
__device__ __forceinline__ void query_gradients(
    const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
    const float* __restrict__ dy, float* __restrict__ dq, float* __restrict__ stats,
    const attention_sizes z) {
  constexpr int QUERIES = GROUPS * R, KEYS = LANES * C, N = D / LANES;
  float* queries = shared_floats();
  float* gradients = queries + QUERIES * (D + 4);  // dy of the queries
  float* buffer = gradients + QUERIES * (D + 4);   // values, then keys
  float* weights = buffer + KEYS * (D + 4);

  const query_tile tile(z, QUERIES);
  const i64 q0 = tile.first, rows = tile.rows;
  k += tile.key_row * z.d;
  v += tile.key_row * z.d;
  dy += tile.output_at;
  load_tile<D, QUERIES>(queries, q + tile.query_row * z.d, rows, z.d, z.d);
  load_tile<D, QUERIES>(gradients, dy, rows, tile.stride, z.d);

  const int group = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const i64 start = z.first_key(q0), end = z.last_key(q0 + rows);
  // Scores, -inf where a key is not seen, and dp of a tile of keys; `buffer` then holds the keys.
  const auto scores = [&](i64 k0, float (&s)[R][C], float (&dp)[R][C]) {
    __syncthreads();  // the last keys have been read
    load_tile<D, KEYS>(buffer, v + k0 * z.d, end - k0, z.d, z.d);
    __syncthreads();
    dot_rows<D>(dp, gradients, buffer);
    __syncthreads();
    load_tile<D, KEYS>(buffer, k + k0 * z.d, end - k0, z.d, z.d);
    __syncthreads();
    dot_rows<D>(s, queries, buffer);
    z.bend(s);
    const i64 distance = z.first + q0 - k0;
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
      for (int j = 0; j < C; j++)
        if (!z.seen(distance + group + GROUPS * i - lane - LANES * j)) s[i][j] = -INFINITY;
  };

  float largest[R], sum[R] = {}, delta[R] = {};  // the sums: over this lane's keys
#pragma unroll
  for (int i = 0; i < R; i++) largest[i] = -INFINITY;
  for (i64 k0 = start; k0 < end; k0 += KEYS) {
    float s[R][C], dp[R][C];
    scores(k0, s, dp);
#pragma unroll
    for (int i = 0; i < R; i++) {
      float top = -INFINITY;
#pragma unroll
      for (int j = 0; j < C; j++) top = fmaxf(top, s[i][j]);
      top = fmaxf(largest[i], lanes_max(top));
      // A query may not have seen a key yet: any finite maximum then gives zeros.
      const float shift = top == -INFINITY ? 0.f : top;
      const float shrink = expf(largest[i] - shift);
      largest[i] = top;
      sum[i] *= shrink;
      delta[i] *= shrink;
#pragma unroll
      for (int j = 0; j < C; j++) {
        const float p = expf(s[i][j] - shift);
        sum[i] += p;
        delta[i] = fmaf(p, dp[i][j], delta[i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < R; i++) {
    const int row = group + GROUPS * i;
    sum[i] = 1.f / lanes_sum(sum[i]);
    delta[i] = lanes_sum(delta[i]) * sum[i];
    if (lane == 0 && row < rows) {
      float* of = stats + (tile.query_row + row) * 3;
      of[0] = largest[i], of[1] = sum[i], of[2] = delta[i];
    }
  }

  float o[R][N] = {}, one[R];
#pragma unroll
  for (int i = 0; i < R; i++) one[i] = 1.f;
  for (i64 k0 = start; k0 < end; k0 += KEYS) {
    float s[R][C], dp[R][C];
    scores(k0, s, dp);
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
      for (int j = 0; j < C; j++)
        dp[i][j] = expf(s[i][j] - largest[i]) * sum[i] * (dp[i][j] - delta[i]);
    z.unbend(dp, s);
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
      for (int j = 0; j < C; j++)
        if (s[i][j] == -INFINITY) dp[i][j] = 0.f;
    put_weights(weights, dp);
    add_weighted<D, R, KEYS>(o, weights, buffer);
  }
  store_rows<D>(dq + tile.query_row * z.d, o, one, rows, z.d, z.d);
}

// Rows of a tile are keys here, its columns queries.
template <int D, int R, int C>
__device__ __forceinline__ void key_gradients(
    const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
    const float* __restrict__ dy, const float* __restrict__ stats, float* __restrict__ dk,
    float* __restrict__ dv, const attention_sizes z) {
  constexpr int KEYS = GROUPS * R, QUERIES = LANES * C, N = D / LANES;
  float* keys = shared_floats();
  float* values = keys + KEYS * (D + 4);
  float* queries = values + KEYS * (D + 4);
  float* gradients = queries + QUERIES * (D + 4);  // dy of the queries
  float* weights = gradients + QUERIES * (D + 4);

  // The first keys are seen by the most queries: they start first.
  const i64 k0 = blockIdx.x / (z.kv * z.b) * KEYS, rows = min(z.tk - k0, i64(KEYS));
  const i64 shared_head = blockIdx.x % (z.kv * z.b), text = shared_head / z.kv;
  const i64 sharing = z.heads / z.kv, first_row = shared_head * z.tk + k0;
  load_tile<D, KEYS>(keys, k + first_row * z.d, rows, z.d, z.d);
  load_tile<D, KEYS>(values, v + first_row * z.d, rows, z.d, z.d);

  // The queries that see some of these keys.
  const i64 start = max(k0 - z.first, i64(0));
  const i64 end = z.window == 0 ? z.tq : min(z.tq, k0 + rows - 1 - z.first + z.window);
  const int group = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  float ok[R][N] = {}, ov[R][N] = {}, one[R];
#pragma unroll
  for (int i = 0; i < R; i++) one[i] = 1.f;
  for (i64 h = 0; h < sharing; h++) {
    const i64 head = shared_head % z.kv * sharing + h, text_head = text * z.heads + head;
    for (i64 q0 = start; q0 < end; q0 += QUERIES) {
      float s[R][C], dp[R][C];
      __syncthreads();  // the last queries have been read
      load_tile<D, QUERIES>(queries, q + (text_head * z.tq + q0) * z.d, end - q0, z.d, z.d);
      load_tile<D, QUERIES>(gradients, dy + ((text * z.tq + q0) * z.heads + head) * z.d, end - q0,
                   z.heads * z.d, z.d);
      __syncthreads();
      dot_rows<D>(s, keys, queries);
      dot_rows<D>(dp, values, gradients);
      z.bend(s);
      float p[R][C];
      const i64 distance = z.first + q0 - k0;
#pragma unroll
      for (int j = 0; j < C; j++) {
        const int column = lane + LANES * j;
        float largest = 0.f, inverse = 0.f, delta = 0.f;
        if (q0 + column < end) {
          const float* of = stats + (text_head * z.tq + q0 + column) * 3;
          largest = of[0], inverse = of[1], delta = of[2];
        }
#pragma unroll
        for (int i = 0; i < R; i++) {
          const bool seen = q0 + column < end && z.seen(distance + column - group - GROUPS * i);
          p[i][j] = seen ? expf(s[i][j] - largest) * inverse : 0.f;
          dp[i][j] = seen ? p[i][j] * (dp[i][j] - delta) : 0.f;
        }
      }
      z.unbend(dp, s);
      put_weights(weights, p);
      add_weighted<D, R, QUERIES>(ov, weights, gradients);
      put_weights(weights, dp);
      add_weighted<D, R, QUERIES>(ok, weights, queries);
    }
  }
  store_rows<D>(dk + first_row * z.d, ok, one, rows, z.d, z.d);
  store_rows<D>(dv + first_row * z.d, ov, one, rows, z.d, z.d);
}

#define QUERY_OPERANDS                                                                       \
  const float *__restrict__ q, const float *__restrict__ k, const float *__restrict__ v,     \
      const float *__restrict__ dy, float *__restrict__ dq, float *__restrict__ stats,       \
      ATTENTION_SIZES
#define KEY_OPERANDS                                                                         \
  const float *__restrict__ q, const float *__restrict__ k, const float *__restrict__ v,     \
      const float *__restrict__ dy, const float *__restrict__ stats, float *__restrict__ dk, \
      float *__restrict__ dv, ATTENTION_SIZES

extern "C" __global__ void __launch_bounds__(128, 2) causal_attention_dq_32(QUERY_OPERANDS) {
  query_gradients<32, 8, 4>(q, k, v, dy, dq, stats, SIZES);
}
extern "C" __global__ void __launch_bounds__(128, 2) causal_attention_dq_64(QUERY_OPERANDS) {
  query_gradients<64, 8, 4>(q, k, v, dy, dq, stats, SIZES);
}
extern "C" __global__ void __launch_bounds__(128, 2) causal_attention_dq_128(QUERY_OPERANDS) {
  query_gradients<128, 8, 2>(q, k, v, dy, dq, stats, SIZES);
}
extern "C" __global__ void __launch_bounds__(128, 2) causal_attention_dq_256(QUERY_OPERANDS) {
  query_gradients<256, 4, 1>(q, k, v, dy, dq, stats, SIZES);
}
extern "C" __global__ void __launch_bounds__(128, 2) causal_attention_dkv_32(KEY_OPERANDS) {
  key_gradients<32, 8, 2>(q, k, v, dy, stats, dk, dv, SIZES);
}
extern "C" __global__ void __launch_bounds__(128, 2) causal_attention_dkv_64(KEY_OPERANDS) {
  key_gradients<64, 8, 2>(q, k, v, dy, stats, dk, dv, SIZES);
}
extern "C" __global__ void __launch_bounds__(128, 2) causal_attention_dkv_128(KEY_OPERANDS) {
  key_gradients<128, 4, 2>(q, k, v, dy, stats, dk, dv, SIZES);
}
extern "C" __global__ void __launch_bounds__(128, 2) causal_attention_dkv_256(KEY_OPERANDS) {
  key_gradients<256, 2, 1>(q, k, v, dy, stats, dk, dv, SIZES);
}
