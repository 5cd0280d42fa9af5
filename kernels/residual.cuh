#pragma once
// What a block of sign_pack and of take_level does: 64 rows of r, of whose columns it takes every
// splits-th 32 COLUMN_GROUPS. Warps side by side hold the same columns of different rows, so that
// v and omega reach L1 once for the block.
//
// Sums of the sketch: along a warp's columns in the tensor cores, over the warps of a row in shared
// memory, over the blocks of a row by the last of them to finish; each in one order.
#include "opaque.cuh"
#include "stack.cuh"

constexpr int RESIDUAL_ROWS = 64;       // of a block of 8 warps
constexpr int RESIDUAL_TICKETS = 4096;  // row blocks that may be split
constexpr int RESIDUAL_SUMS = 10240;    // f32 in shared memory, the kernel's

static __device__ unsigned residual_finished[RESIDUAL_TICKETS];  // blocks, of each row block

struct residual_data {
  float* r;                    // [m, n], written only if it is updated
  const unsigned char* signs;  // the rest of the update: [m, ceil(n / 8)]
  const __half *u, *v;         // [m, k], [k, n]
  const float* omega;          // [n, c]
  unsigned char* next_signs;   // of the new r; may be null
  float *sketch, *scratch;     // [m, c], [splits, m, c]
  i64 m, n;
  int k, c;
};

// Four columns from p on of which `left` are there; all of them with FIT.
template <bool FIT>
__device__ __forceinline__ void load_columns(float (&x)[4], const float* p, i64 left) {
  if constexpr (FIT) {
    const float4 q = *reinterpret_cast<const float4*>(p);
    x[0] = q.x, x[1] = q.y, x[2] = q.z, x[3] = q.w;
  } else {
#pragma unroll
    for (int e = 0; e < 4; e++) x[e] = e < left ? p[e] : 0.f;
  }
}

template <bool FIT>
__device__ __forceinline__ void store_columns(float* p, const float (&x)[4], i64 left) {
  if constexpr (FIT) {
    *reinterpret_cast<float4*>(p) = make_float4(x[0], x[1], x[2], x[3]);
  } else {
#pragma unroll
    for (int e = 0; e < 4; e++)
      if (e < left) p[e] = x[e];
  }
}

// sum[i][j] += |x| omega over 16 columns of x and 8 CT of omega, whose first row is the first of
// those columns; `left` of them are there.
template <int MT, int CT, bool FIT>
__device__ __forceinline__ void add_sketch(
    float (&sum)[MT][CT][4], const float (&x)[MT][2][4], const float* omega, i64 left, int c) {
  const int g = threadIdx.x % 32 / 4, row = threadIdx.x % 4 * 4;
  unsigned a[MT][4];
#pragma unroll
  for (int i = 0; i < MT; i++)
#pragma unroll
    for (int w = 0; w < 4; w++)
      a[i][w] = pack_bf16(x[i][w % 2][w / 2 * 2], x[i][w % 2][w / 2 * 2 + 1]) & 0x7fff7fffu;
#pragma unroll
  for (int j = 0; j < CT; j++) {
    if (j % 2 == 0 && 8 * j >= c) break;  // the loads of two are under way at once
    float b[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const bool there = 8 * j + g < c && (FIT || row + e < left);
      b[e] = there ? omega[(row + e) * c + 8 * j + g] : 0.f;
    }
    const unsigned both[2] = {pack_bf16(b[0], b[1]), pack_bf16(b[2], b[3])};
#pragma unroll
    for (int i = 0; i < MT; i++) mma_bf16_16x8x16(sum[i][j], a[i], both);
  }
}

// The sketch of a block's rows from its warps' sums [groups, rows, width], once those are in place.
template <int GROUPS>
__device__ __forceinline__ void finish_sketch(
    const residual_data& d, const float* sums, int width, unsigned tile, unsigned split,
    unsigned splits) {
  __shared__ bool is_last;
  const i64 from = i64(tile) * RESIDUAL_ROWS;
  const int count = int(min(d.m - from, i64(RESIDUAL_ROWS))) * d.c;
  float* sketch = d.sketch + from * d.c;
  float* scratch = d.scratch + from * d.c;
  float* to = splits == 1 ? sketch : scratch + split * d.m * d.c;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    float total = 0.f;
#pragma unroll
    for (int group = 0; group < GROUPS; group++)
      total += sums[(group * RESIDUAL_ROWS + i / d.c) * width + i % d.c];
    to[i] = total;
  }
  if (splits == 1) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(&residual_finished[tile], 1u) == splits - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    float total = 0.f;
    for (unsigned s = 0; s < splits; s++) total += scratch[s * d.m * d.c + i];
    sketch[i] = total;
  }
  if (threadIdx.x == 0) residual_finished[tile] = 0;
}

// A warp takes 16 MT rows; KEPT: k <= 16. c <= 8 CT, which may be 0.
template <bool UPDATE, int MT, bool KEPT, int CT, bool FIT>
__device__ __forceinline__ void residual_block(const residual_data& d, float* sums) {
  constexpr int ROW_GROUPS = RESIDUAL_ROWS / (16 * MT), COLUMN_GROUPS = 8 / ROW_GROUPS;
  // Where columns are loaded one by one, 16 at a time are what registers hold.
  constexpr int P = FIT ? 2 : 1, COLUMNS = 16 * P;
  static_assert(COLUMN_GROUPS * RESIDUAL_ROWS * 8 * CT <= RESIDUAL_SUMS, "shared memory");
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int row_group = warp % ROW_GROUPS, column_group = warp / ROW_GROUPS;
  const unsigned tiles = unsigned((d.m + RESIDUAL_ROWS - 1) / RESIDUAL_ROWS);
  const unsigned tile = blockIdx.x % tiles, split = blockIdx.x / tiles, splits = gridDim.x / tiles;
  const i64 first = i64(tile) * RESIDUAL_ROWS + row_group * 16 * MT + g;
  const int rows = int(min(d.m - first, i64(RESIDUAL_ROWS)));  // left from this lane's first on

  left_factor<MT> u(d.u, first, d.m, d.k);
  if constexpr (UPDATE && KEPT) u.load(0);

  float sum[MT][CT ? CT : 1][4] = {};
  const i64 step = i64(splits) * COLUMN_GROUPS * COLUMNS;
#pragma unroll 1
  for (i64 at = (i64(split) * COLUMN_GROUPS + column_group) * COLUMNS; at < d.n; at += step) {
    // Offsets of rows are made where they are used: kept, they would take too many registers.
    const i64 n = opaque(d.n), left = n - at;
    const i64 bytes = (n + 7) / 8, there = min(bytes - at / 8, i64(2 * P));  // of signs
    float* r = d.r + first * n + at + 4 * t;
    float x[P][MT][2][4];
    unsigned signs[MT][2], minus[MT][2];
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int row = 16 * i + 8 * h;
        const bool inside = row < rows;
#pragma unroll
        for (int p = 0; p < P; p++) {
          const float* from = r + row * n + 16 * p;
          if constexpr (FIT) {
#pragma unroll
            for (int e = 0; e < 4; e++) x[p][i][h][e] = 0.f;
            if (inside) load_columns<true>(x[p][i][h], from, 4);
          } else {
            load_columns<false>(x[p][i][h], from, inside ? left - 4 * t : 0);
          }
        }
        signs[i][h] = minus[i][h] = 0;
        if (UPDATE && inside)
          signs[i][h] = load_signs<FIT>(d.signs + (first + row) * bytes + at / 8, there);
      }

#pragma unroll
    for (int p = 0; p < P; p++) {
      if constexpr (UPDATE) {
        float product[MT][2][4];
        stack_product<MT, KEPT, FIT>(product, u, d.v + at + 16 * p, left, n);
#pragma unroll
        for (int i = 0; i < MT; i++)
#pragma unroll
          for (int h = 0; h < 2; h++) {
            const int row = 16 * i + 8 * h;
            const unsigned own = signs[i][h] << (4 * t + 16 * p);
#pragma unroll
            for (int e = 0; e < 4; e++)
              x[p][i][h][e] -= signed_by(own << e, product[i][e / 2][2 * h + e % 2]);
            if (row < rows) store_columns<FIT>(r + row * n + 16 * p, x[p][i][h], left - 4 * t);
          }
      }
#pragma unroll
      for (int i = 0; i < MT; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          unsigned four = 0;
#pragma unroll
          for (int e = 0; e < 4; e++)  // -0 + 0 = 0, which counts as plus
            four = four << 1 | __float_as_uint(x[p][i][h][e] + 0.f) >> 31;
          minus[i][h] |= four << (28 - 16 * p - 4 * t);
        }
      if constexpr (CT > 0) {
        const i64 c = opaque(i64(d.c));
        add_sketch<MT, CT, FIT>(sum, x[p], d.omega + (at + 16 * p) * c, left, int(c));
      }
    }

    if (d.next_signs) {
      const unsigned inside = left >= 32 ? ~0u : ~(~0u >> left);
#pragma unroll
      for (int i = 0; i < MT; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          unsigned word = minus[i][h];
          word |= __shfl_xor_sync(ALL_LANES, word, 1);
          word |= __shfl_xor_sync(ALL_LANES, word, 2);
          const int row = 16 * i + 8 * h;
          if (t == (2 * i + h) % 4 && row < rows)
            store_signs<FIT>(
                d.next_signs + (first + row) * bytes + at / 8, there, ~word & inside);
        }
    }
  }
  if (CT == 0 || d.c == 0) return;

  constexpr int WIDTH = 8 * CT;
#pragma unroll
  for (int i = 0; i < MT; i++)
#pragma unroll
    for (int j = 0; j < CT; j++)
#pragma unroll
      for (int w = 0; w < 4; w++) {
        const int row = row_group * 16 * MT + 16 * i + w / 2 * 8 + g;
        sums[(column_group * RESIDUAL_ROWS + row) * WIDTH + 8 * j + 2 * t + w % 2] = sum[i][j][w];
      }
  __syncthreads();
  finish_sketch<COLUMN_GROUPS>(d, sums, 8 * CT, tile, split, splits);
}

// Whether whole tiles are there, at addresses that suit their widest loads.
__device__ __forceinline__ bool residual_fits(const residual_data& d) {
  return d.n % 32 == 0 && starts_at(d.r, 16) && starts_at(d.signs, 4) &&
         starts_at(d.next_signs, 4) && starts_at(d.v, 8);
}
