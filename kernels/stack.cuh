#pragma once
// What the kernels of residual stacks, W = sum_l S_l o (u_l v_l), share: a warp's tile of 16 MT
// rows by 32 columns, its signs, and its part of u v on the tensor cores.
//
// Lane 4 g + t of a warp holds rows g and g + 8 of each 16, and columns 16 p + 4 t + e for p < 2,
// e < 4: whole quads, so that f32 moves 16 bytes at a time. That is how mma leaves 16x8 products
// and wants 16x16 operands if the columns are numbered to suit: column e of p is column 2 t + e % 2
// of product e / 2 of p.
//
// Signs are packed row by row, 8 to a byte, the first in the highest bit, 1 for plus; rows are
// padded with zeros to ceil(n / 8) bytes.
#include <cuda_fp16.h>

#include "common.cuh"
#include "mma.cuh"

// d += a b like mma_bf16_16x8x16, with a and b in f16.
__device__ __forceinline__ void mma_f16_16x8x16(
    float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef CUDA_EMU
  const auto value = [](uint64_t words, int i) {
    return emu::half_value(uint16_t(words >> 16 * i));
  };
  const auto pair = [](unsigned low, unsigned high) { return uint64_t(high) << 32 | low; };
  const uint64_t words[3] = {pair(a[0], a[2]), pair(a[1], a[3]), pair(b[0], b[1])};
  uint64_t all[3][32];
  for (int i = 0; i < 3; i++) memcpy(all[i], emu::exchange(~0u, words[i]), sizeof all[i]);
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 4; i++)
    for (int k = 0; k < 16; k++) {
      const int from = k % 8 / 2, half = k / 8 * 2 + k % 2;
      d[i] += value(all[i / 2][4 * g + from], half) *
              value(all[2][4 * (2 * t + i % 2) + from], half);
    }
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Whether p is at a multiple of so many bytes; null is.
__device__ __forceinline__ bool starts_at(const void* p, unsigned bytes) {
  return reinterpret_cast<unsigned long long>(p) % bytes == 0;
}

// Halves p[0] and p[1] in one word, the first lowest; zero for those from `valid` on. `whole`: p is
// at a multiple of 4 bytes, and both or none are valid.
__device__ __forceinline__ unsigned load_halves(const __half* p, i64 valid, bool whole) {
  const unsigned short* bits = reinterpret_cast<const unsigned short*>(p);
  if (whole) return valid > 0 ? *reinterpret_cast<const unsigned*>(p) : 0;
  return (valid > 0 ? bits[0] : 0u) | (valid > 1 ? unsigned(bits[1]) << 16 : 0u);
}

// The 32 signs of a row from a byte on, the first in the highest bit; zeros beyond the row's `left`
// bytes. FIT: four bytes are there, at a multiple of 4.
template <bool FIT>
__device__ __forceinline__ unsigned load_signs(const unsigned char* from, i64 left) {
  if constexpr (FIT) return __byte_perm(*reinterpret_cast<const unsigned*>(from), 0, 0x0123);
  unsigned word = 0;
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (i < left) word |= unsigned(from[i]) << (24 - 8 * i);
  return word;
}

template <bool FIT>
__device__ __forceinline__ void store_signs(unsigned char* to, i64 left, unsigned word) {
  if constexpr (FIT) {
    *reinterpret_cast<unsigned*>(to) = __byte_perm(word, 0, 0x0123);
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < left) to[i] = (unsigned char)(word >> (24 - 8 * i));
  }
}

// p times the sign that is bit 31 of `word`.
__device__ __forceinline__ float signed_by(unsigned word, float p) {
  return __uint_as_float(__float_as_uint(p) ^ (~word & 0x80000000u));
}

// 16 MT rows of u [m, k]: rows g, g + 8, g + 16, ... from `at` on, of which `rows` are left.
template <int MT>
struct left_factor {
  const __half* at;
  int rows, k;
  bool whole;           // as in load_halves
  unsigned a[MT][4];    // 16 of their columns, as mma's left operand

  __device__ __forceinline__ left_factor(const __half* u, i64 first, i64 m, i64 width)
      : at(u + first * width), rows(int(min(m - first, i64(16 * MT)))), k(int(width)),
        whole(width % 2 == 0 && starts_at(u, 4)) {}

  __device__ __forceinline__ void load(int column) {
    const int own = column + threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int w = 0; w < 4; w++) {
        const int row = 16 * i + w % 2 * 8, from = own + w / 2 * 8;
        a[i][w] = load_halves(at + row * k + from, row < rows ? k - from : 0, whole);
      }
  }
};

// d[i] = the lane's part of u v over the 16 columns from v on, `left` of which are there: two
// products, q of the columns with e / 2 = q. FIT: all are, and v is at a multiple of 8 bytes in
// every row. KEPT: k <= 16, and u is loaded.
template <int MT, bool KEPT, bool FIT>
__device__ __forceinline__ void stack_product(
    float (&d)[MT][2][4], left_factor<MT>& u, const __half* v, i64 left, i64 n) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  // Column g of product q is one of the halves 2 q and 2 q + 1 of the four from g / 2 * 4 on.
  const unsigned pick = g % 2 ? 0x7632 : 0x5410;
  const int column = g / 2 * 4;
#pragma unroll
  for (int i = 0; i < MT; i++)
#pragma unroll
    for (int q = 0; q < 2; q++)
#pragma unroll
      for (int w = 0; w < 4; w++) d[i][q][w] = 0.f;
#pragma unroll 1
  for (int k = 0; k < u.k; k += 16) {
    if constexpr (!KEPT) u.load(k);
    uint2 four[4];
#pragma unroll
    for (int w = 0; w < 4; w++) {
      const int row = k + 2 * t + w % 2 + w / 2 * 8;
      const __half* from = v + i64(row) * n + column;
      four[w] = make_uint2(0, 0);
      if constexpr (FIT) {
        if (row < u.k) four[w] = *reinterpret_cast<const uint2*>(from);
      } else if (row < u.k) {
        four[w].x = load_halves(from, left - column, false);
        four[w].y = load_halves(from + 2, left - column - 2, false);
      }
    }
    const unsigned b[2][2] = {
        {__byte_perm(four[0].x, four[1].x, pick), __byte_perm(four[2].x, four[3].x, pick)},
        {__byte_perm(four[0].y, four[1].y, pick), __byte_perm(four[2].y, four[3].y, pick)}};
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int q = 0; q < 2; q++) mma_f16_16x8x16(d[i][q], u.a[i], b[q]);
  }
}
