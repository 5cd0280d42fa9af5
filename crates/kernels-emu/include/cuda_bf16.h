// __nv_bfloat16: the upper half of an f32, rounded to nearest even.
#pragma once
#include "cuda_emu.h"

#include "emu/narrow.h"

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  template <class N, class = std::enable_if_t<std::is_arithmetic_v<N>>>
  __nv_bfloat16(N value) {
    const uint32_t u = emu::bit_cast<uint32_t>(float(value));
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = nan ? 0x7fff : uint16_t((u + 0x7fffu + (u >> 16 & 1)) >> 16);
  }
  operator float() const { return emu::bit_cast<float>(uint32_t(bits) << 16); }
};
using nv_bfloat16 = __nv_bfloat16;
EMU_NARROW(__nv_bfloat16, __bfloat162float, __float2bfloat16)

struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
using nv_bfloat162 = __nv_bfloat162;
EMU_NARROW2(__nv_bfloat162)

inline float __low2float(__nv_bfloat162 v) { return v.x; }
inline float __high2float(__nv_bfloat162 v) { return v.y; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {a, b}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return {a, b}; }
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return {a, b}; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short v) {
  return emu::bit_cast<__nv_bfloat16>(v);
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 v) { return v.bits; }
