// Rows of the weight that a residual stack stands for:
//
//   w[i, j] = inverse_scale[j] sum_l s_l[f, j] (u_l v_l)[f, j],  f = first_row + i
//   signs [L, m, ceil(n / 8)] u8, packed    u [L, m, k], v [L, k, n] f16, k <= 64
//   inverse_scale [n] f32, null for ones    w [rows, n] f32 or bf16
//
// Sums in f32, in which products of f16 are exact, levels in order; bf16 is rounded once.
//
// 256 threads; a warp takes 32 rows by 32 columns at a time, a block 128 by 64. Any grid gives the
// same bits; grid.x = ceil(rows / 128) ceil(n / 64), at most 2^31 - 1, is one tile a block. No
// shared memory.
//
// Per element 4 or 2 bytes written, L / 8 of signs read, and L k / 16 of u and v each, from L1 and
// L2; 2 k L flops on the tensor cores and about 3 L others. Bound by memory for L <= 4 in f32, else
// by these others.
#include "stack.cuh"

constexpr int TILE_ROWS = 128;
constexpr int TILE_COLUMNS = 64;

__device__ __forceinline__ void store_four(float* to, const float (&x)[4]) {
  *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
}
__device__ __forceinline__ void store_four(__nv_bfloat16* to, const float (&x)[4]) {
  *reinterpret_cast<uint2*>(to) = make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]));
}
__device__ __forceinline__ void store_one(float* to, float x) { *to = x; }
__device__ __forceinline__ void store_one(__nv_bfloat16* to, float x) {
  *to = __float2bfloat16(x);
}

// The 16 MT rows from `row` on of the rows wanted, by 16 P columns from `at` on.
template <int MT, int P, bool FIT, class T>
__device__ __forceinline__ void rebuild_tile(
    const unsigned char* signs, const __half* u, const __half* v, const float* inverse_scale, T* w,
    i64 levels, i64 m, i64 n, i64 k, i64 first_row, i64 rows, i64 row, i64 at) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const i64 bytes = (n + 7) / 8, there = min(bytes - at / 8, i64(2 * P));
  const i64 first = first_row + row + g, end = first_row + rows;
  const int valid = int(min(end - first, i64(16 * MT)));
  float sum[P][MT][2][4] = {};
#pragma unroll 1
  for (i64 level = 0; level < levels; level++) {
    unsigned word[MT][2];
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int below = 16 * i + 8 * h;
        word[i][h] = 0;
        if (below < valid)
          word[i][h] =
              load_signs<FIT>(signs + (level * m + first + below) * bytes + at / 8, there);
      }
    left_factor<MT> left(u + level * m * k, first, end, k);
#pragma unroll
    for (int p = 0; p < P; p++) {
      float product[MT][2][4];
      stack_product<MT, false, FIT>(
          product, left, v + level * k * n + at + 16 * p, n - at - 16 * p, n);
#pragma unroll
      for (int i = 0; i < MT; i++)
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
          for (int e = 0; e < 4; e++)
            sum[p][i][h][e] += signed_by(
                word[i][h] << (4 * t + 16 * p) << e, product[i][e / 2][2 * h + e % 2]);
    }
  }
#pragma unroll
  for (int p = 0; p < P; p++) {
    const i64 column = at + 16 * p + 4 * t;
    float scale[4];
#pragma unroll
    for (int e = 0; e < 4; e++)
      scale[e] = inverse_scale && (FIT || column + e < n) ? inverse_scale[column + e] : 1.f;
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int below = 16 * i + 8 * h;
        T* to = w + (row + g + below) * n + column;
#pragma unroll
        for (int e = 0; e < 4; e++) sum[p][i][h][e] *= scale[e];
        if constexpr (FIT) {
          if (below < valid) store_four(to, sum[p][i][h]);
        } else {
#pragma unroll
          for (int e = 0; e < 4; e++)
            if (below < valid && column + e < n) store_one(to + e, sum[p][i][h][e]);
        }
      }
  }
}

template <class T>
__device__ __forceinline__ void stack_rebuild(
    const unsigned char* signs, const __half* u, const __half* v, const float* inverse_scale, T* w,
    i64 levels, i64 m, i64 n, i64 k, i64 first_row, i64 rows) {
  const bool fit = n % 32 == 0 && starts_at(signs, 4) && starts_at(v, 8) &&
                   starts_at(w, 4 * sizeof(T));
  const int warp = threadIdx.x / 32;
  const i64 across = (n + TILE_COLUMNS - 1) / TILE_COLUMNS;
  const i64 tiles = across * ((rows + TILE_ROWS - 1) / TILE_ROWS);
#pragma unroll 1
  for (i64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const i64 row = tile / across * TILE_ROWS + warp / 2 * 32;
    const i64 column = tile % across * TILE_COLUMNS + warp % 2 * 32;
    if (row >= rows || column >= n) continue;
    if (fit) {
      rebuild_tile<2, 2, true>(
          signs, u, v, inverse_scale, w, levels, m, n, k, first_row, rows, row, column);
    } else {
#pragma unroll 1
      for (int part = 0; part < 4; part++)
        rebuild_tile<1, 1, false>(
            signs, u, v, inverse_scale, w, levels, m, n, k, first_row, rows, row + part / 2 * 16,
            column + part % 2 * 16);
    }
  }
}

extern "C" __global__ void __launch_bounds__(256, 2) stack_rebuild_f32(
    const unsigned char* __restrict__ signs, const __half* __restrict__ u,
    const __half* __restrict__ v, const float* __restrict__ inverse_scale, float* __restrict__ w,
    i64 levels, i64 m, i64 n, i64 k, i64 first_row, i64 rows) {
  stack_rebuild(signs, u, v, inverse_scale, w, levels, m, n, k, first_row, rows);
}

extern "C" __global__ void __launch_bounds__(256, 2) stack_rebuild_bf16(
    const unsigned char* __restrict__ signs, const __half* __restrict__ u,
    const __half* __restrict__ v, const float* __restrict__ inverse_scale,
    __nv_bfloat16* __restrict__ w, i64 levels, i64 m, i64 n, i64 k, i64 first_row, i64 rows) {
  stack_rebuild(signs, u, v, inverse_scale, w, levels, m, n, k, first_row, rows);
}
