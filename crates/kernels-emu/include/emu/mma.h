// The tensor-core operation mma.sync.m16n8k16 on bf16 with f32 sums, for kernels/mma.cuh.
#pragma once

namespace emu {
// d += a·b. Lane 4g+t holds rows g and g+8 of a, column g of b, and columns 2t and 2t+1 of d.
inline void mma_bf16_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  float A[16][16], B[16][8];
  auto element = [](uint64_t word, int i) {
    return bit_cast<float>(uint32_t(word >> 16 * i) << 16);
  };
  auto pair = [](unsigned low, unsigned high) { return uint64_t(high) << 32 | low; };
  const uint64_t words[3] = {pair(a[0], a[1]), pair(a[2], a[3]), pair(b[0], b[1])};
  for (int part = 0; part < 3; part++) {
    const uint64_t* slots = exchange(~0u, words[part]);
    for (int lane = 0; lane < 32; lane++) {
      for (int i = 0; i < 4; i++) {
        const int g = lane / 4, k = lane % 4 * 2 + i % 2, half = i / 2;
        if (part < 2) A[g + 8 * half][k + 8 * part] = element(slots[lane], i);
        else B[k + 8 * half][g] = element(slots[lane], i);
      }
    }
  }
  const int g = lane() / 4, column = lane() % 4 * 2;
  for (int i = 0; i < 4; i++)
    for (int k = 0; k < 16; k++) d[i] += A[g + 8 * (i / 2)][k] * B[k][column + i % 2];
}
}  // namespace emu
