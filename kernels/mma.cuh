#pragma once
// Products on the tensor cores.
#include <cuda_bf16.h>

// d += a b: a is 16x16 and b 16x8 of bf16, d 16x8 of f32. Of every 32-bit word of a and b the lower
// half comes first along the dimension that is summed over. Lane 4 g + t holds
//   a[0], a[1]: rows g, g + 8, columns 2 t, 2 t + 1    a[2], a[3]: the same rows, columns 8 on
//   b[0]: rows 2 t, 2 t + 1, column g                  b[1]: rows 8 on
//   d[0], d[1]: row g, columns 2 t, 2 t + 1            d[2], d[3]: row g + 8
__device__ __forceinline__ void mma_bf16_16x8x16(
    float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef CUDA_EMU
  emu::mma_bf16_16x8x16(d, a, b);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Two f32 as bf16 in one word, rounded to the nearest, ties to even.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  unsigned word;
  memcpy(&word, &both, sizeof word);
  return word;
}
__device__ __forceinline__ float low_bf16(unsigned word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float high_bf16(unsigned word) {
  return __uint_as_float(word & 0xffff0000u);
}
