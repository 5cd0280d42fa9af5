// Grouped-query causal attention on the tensor cores, for models whose weights are bf16: equation,
// masks and parameters are those of causal_attention.cu.
//
// Operands and result are f32 in memory. q, k, v and the weights of the softmax are rounded to
// bf16 and multiplied by mma.sync with sums in f32; scores and softmax are f32. Weights are summed
// as rounded, so that those of a query add up to 1.
//
// A block owns 128 queries of one head, each of its 8 warps 16 of them. While one tile of keys is
// multiplied the values that belong to it are on their way to registers, and then the next keys: a
// block needs no other on its multiprocessor to hide that latency. 4 d flops per score; 8 d bytes
// read per key and 128 queries, most of them from L2, which is what bounds it.
//
//   256 threads    grid.x = ceil(tq / 128) heads b    dynamic shared memory, bytes:
//   D     32      64      128     256
//   K     64      64      64      16      keys of a tile
//         10240   18432   34816   84480   4 K (D + 8), for D = 256 and 512 (D / 2 + 4)
#include "common.cuh"
#include "attention.cuh"
#include "mma.cuh"
#include "quad.cuh"

constexpr int BF16_THREADS = 256;
constexpr int QUERIES = 128;
constexpr float LOG2_E = 1.44269504f;

// Over the four lanes that share a row of scores.
__device__ __forceinline__ float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, 1));
  return fmaxf(v, __shfl_xor_sync(ALL_LANES, v, 2));
}
__device__ __forceinline__ float quad_sum(float v) {
  v += __shfl_xor_sync(ALL_LANES, v, 1);
  return v + __shfl_xor_sync(ALL_LANES, v, 2);
}

// A tile of KEYS vectors on its way from memory to shared memory. Where quads fit, this thread's
// share waits in registers; elsewhere it is read when it is put down.
template <int D, int KEYS>
struct tile_in_flight {
  static constexpr int QUADS = D / 4, COUNT = KEYS * QUADS / BF16_THREADS;
  float4 v[COUNT];

  // This thread's l-th quad, of keys: of one vector after the other.
  template <bool FIT>
  static __device__ __forceinline__ float4 key(const float* x, i64 valid, i64 d, int l) {
    const int e = threadIdx.x + BF16_THREADS * l, row = e / QUADS, column = e % QUADS * 4;
    return load_quad<FIT>(x + row * d + column, row < valid ? int(d) - column : 0);
  }
  // keys[row][pair of components], rows D / 2 + 4 words apart.
  static __device__ __forceinline__ void put_key(unsigned* keys, int l, float4 a) {
    const int e = threadIdx.x + BF16_THREADS * l, row = e / QUADS, column = e % QUADS * 4;
    *reinterpret_cast<uint2*>(keys + row * (D / 2 + 4) + column / 2) =
        make_uint2(pack_bf16(a.x, a.y), pack_bf16(a.z, a.w));
  }
  // Of values, which are summed over: l and l + 1, l even, are the same quad of two neighbours.
  template <bool FIT>
  static __device__ __forceinline__ float4 value(const float* x, i64 valid, i64 d, int l) {
    const int e = threadIdx.x + BF16_THREADS * (l / 2), column = e % QUADS * 4;
    const int row = e / QUADS * 2 + l % 2;
    return load_quad<FIT>(x + row * d + column, row < valid ? int(d) - column : 0);
  }
  // values[pair of rows][component], D + 8 words apart.
  static __device__ __forceinline__ void put_value(unsigned* values, int l, float4 a, float4 b) {
    const int e = threadIdx.x + BF16_THREADS * (l / 2);
    *reinterpret_cast<uint4*>(values + e / QUADS * (D + 8) + e % QUADS * 4) = make_uint4(
        pack_bf16(a.x, b.x), pack_bf16(a.y, b.y), pack_bf16(a.z, b.z), pack_bf16(a.w, b.w));
  }

  __device__ __forceinline__ void fetch_keys(const float* x, i64 valid, i64 d) {
#pragma unroll
    for (int l = 0; l < COUNT; l++) v[l] = key<true>(x, valid, d, l);
  }
  __device__ __forceinline__ void fetch_values(const float* x, i64 valid, i64 d) {
#pragma unroll
    for (int l = 0; l < COUNT; l++) v[l] = value<true>(x, valid, d, l);
  }
  __device__ __forceinline__ void put_keys(
      unsigned* keys, bool fetched, const float* x, i64 valid, i64 d) const {
    if (fetched) {
#pragma unroll
      for (int l = 0; l < COUNT; l++) put_key(keys, l, v[l]);
    } else {
#pragma unroll 1
      for (int l = 0; l < COUNT; l++) put_key(keys, l, key<false>(x, valid, d, l));
    }
  }
  __device__ __forceinline__ void put_values(
      unsigned* values, bool fetched, const float* x, i64 valid, i64 d) const {
    if (fetched) {
#pragma unroll
      for (int l = 0; l < COUNT; l += 2) put_value(values, l, v[l], v[l + 1]);
    } else {
#pragma unroll 1
      for (int l = 0; l < COUNT; l += 2)
        put_value(values, l, value<false>(x, valid, d, l), value<false>(x, valid, d, l + 1));
    }
  }
};

template <int D, int KEYS>
__device__ __forceinline__ void attention_bf16(
    const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
    float* __restrict__ y, const attention_sizes z) {
  // Where registers do not hold the queries shared memory does.
  constexpr bool SHARED_QUERIES = D > 128;
  constexpr int STEPS = D / 16, KEY_TILES = KEYS / 8;
  unsigned* keys = reinterpret_cast<unsigned*>(shared_floats());
  unsigned* values = keys + KEYS * (D / 2 + 4);
  unsigned* queries = values + KEYS / 2 * (D + 8);

  const query_tile tile(z, QUERIES);
  const i64 q0 = tile.first, rows = tile.rows;
  const int d = int(z.d), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = 16 * warp + lane / 4, t = lane % 4;  // this lane's rows are row and row + 8
  q += tile.query_row * d;
  k += tile.key_row * d;
  v += tile.key_row * d;
  y += tile.output_at;
  const bool keys_fit = quads_fit(k, d), values_fit = quads_fit(v, d);

  const auto query = [&](int r, int c) {
    const float low = r < rows && c < d ? q[r * d + c] : 0.f;
    return pack_bf16(low, r < rows && c + 1 < d ? q[r * d + c + 1] : 0.f);
  };
  unsigned kept[SHARED_QUERIES ? 1 : STEPS][4];
  if constexpr (SHARED_QUERIES) {
    // A warp reads its own rows only, and the barriers below come before that.
    for (int e = lane; e < 16 * (D / 2); e += 32) {
      const int r = 16 * warp + e / (D / 2), c = e % (D / 2);
      queries[r * (D / 2 + 4) + c] = query(r, 2 * c);
    }
  } else {
#pragma unroll
    for (int s = 0; s < STEPS; s++)
#pragma unroll
      for (int x = 0; x < 4; x++) kept[s][x] = query(row + x % 2 * 8, 16 * s + x / 2 * 8 + 2 * t);
  }

  float o[D / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  tile_in_flight<D, KEYS> flight;
  const i64 start = z.first_key(q0), end = z.last_key(q0 + rows);
  if (keys_fit) flight.fetch_keys(k + start * d, end - start, d);
  for (i64 k0 = start; k0 < end; k0 += KEYS) {
    // The last tile's keys were read before its second barrier, its values before this one's first.
    flight.put_keys(keys, keys_fit, k + k0 * d, end - k0, d);
    __syncthreads();
    if (values_fit) flight.fetch_values(v + k0 * d, end - k0, d);

    // How far before this warp's first query the tile's first key is; what they see, as one.
    const i64 distance = z.first + q0 + 16 * warp - k0;
    const bool none = distance + 15 < 0 || (z.window > 0 && distance - (KEYS - 1) >= z.window);
    const bool all = z.seen(distance - (KEYS - 1)) && z.seen(distance + 15);
    unsigned p[KEY_TILES][2];
    if (!none) {
      float s[KEY_TILES][4] = {};
#pragma unroll(SHARED_QUERIES ? 2 : STEPS)
      for (int step = 0; step < STEPS; step++) {
        unsigned a[4];
#pragma unroll
        for (int x = 0; x < 4; x++) {
          if constexpr (SHARED_QUERIES) {
            a[x] = queries[(row + x % 2 * 8) * (D / 2 + 4) + 8 * step + x / 2 * 4 + t];
          } else {
            a[x] = kept[step][x];
          }
        }
#pragma unroll
        for (int n = 0; n < KEY_TILES; n++) {
          const unsigned* from = keys + (8 * n + lane / 4) * (D / 2 + 4) + 8 * step + t;
          const unsigned b[2] = {from[0], from[4]};
          mma_bf16_16x8x16(s[n], a, b);
        }
      }
      z.bend(s);
      if (!all) {
#pragma unroll
        for (int n = 0; n < KEY_TILES; n++)
#pragma unroll
          for (int x = 0; x < 4; x++) {
            const int beside = 8 * n + 2 * t + x % 2 - lane / 4 - x / 2 * 8;
            if (!z.seen(distance - beside)) s[n][x] = -INFINITY;
          }
      }
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float top = -INFINITY;
#pragma unroll
        for (int n = 0; n < KEY_TILES; n++) top = fmaxf(top, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
        top = fmaxf(largest[h], quad_max(top));
        // A query may not have seen a key yet: any finite maximum then gives zeros.
        const float shift = top == -INFINITY ? 0.f : top * LOG2_E;
        const float shrink = exp2f(fmaf(largest[h], LOG2_E, -shift));
        largest[h] = top;
        sum[h] *= shrink;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
          o[n][2 * h] *= shrink;
          o[n][2 * h + 1] *= shrink;
        }
#pragma unroll
        for (int n = 0; n < KEY_TILES; n++) {
          p[n][h] = pack_bf16(exp2f(fmaf(s[n][2 * h], LOG2_E, -shift)),
                              exp2f(fmaf(s[n][2 * h + 1], LOG2_E, -shift)));
          sum[h] += low_bf16(p[n][h]) + high_bf16(p[n][h]);
        }
      }
    }

    flight.put_values(values, values_fit, v + k0 * d, end - k0, d);
    __syncthreads();
    if (keys_fit && k0 + KEYS < end)
      flight.fetch_keys(k + (k0 + KEYS) * d, end - k0 - KEYS, d);
    if (!none) {
#pragma unroll
      for (int step = 0; step < KEYS / 16; step++) {
        const unsigned a[4] = {p[2 * step][0], p[2 * step][1], p[2 * step + 1][0],
                               p[2 * step + 1][1]};
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
          const unsigned* from = values + (8 * step + t) * (D + 8) + 8 * n + lane / 4;
          const unsigned b[2] = {from[0], from[4 * (D + 8)]};
          mma_bf16_16x8x16(o[n], a, b);
        }
      }
    }
  }

#pragma unroll
  for (int h = 0; h < 2; h++) {
    const float inverse = 1.f / quad_sum(sum[h]);
    const int r = row + 8 * h;
    if (r < rows) {
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
        const int c = 8 * n + 2 * t;
        if (c < d) y[r * tile.stride + c] = o[n][2 * h] * inverse;
        if (c + 1 < d) y[r * tile.stride + c + 1] = o[n][2 * h + 1] * inverse;
      }
    }
  }
}

#define OPERANDS                                                                         \
  const float *__restrict__ q, const float *__restrict__ k, const float *__restrict__ v, \
      float *__restrict__ y, ATTENTION_SIZES

extern "C" __global__ void __launch_bounds__(256, 1) causal_attention_bf16_32(OPERANDS) {
  attention_bf16<32, 64>(q, k, v, y, SIZES);
}
extern "C" __global__ void __launch_bounds__(256, 1) causal_attention_bf16_64(OPERANDS) {
  attention_bf16<64, 64>(q, k, v, y, SIZES);
}
extern "C" __global__ void __launch_bounds__(256, 1) causal_attention_bf16_128(OPERANDS) {
  attention_bf16<128, 64>(q, k, v, y, SIZES);
}
extern "C" __global__ void __launch_bounds__(256, 1) causal_attention_bf16_256(OPERANDS) {
  attention_bf16<256, 16>(q, k, v, y, SIZES);
}
