// __half: IEEE binary16, rounded to nearest even.
#pragma once
#include "cuda_emu.h"

#include "emu/narrow.h"

namespace emu {
inline uint16_t half_bits(float value) {
  uint32_t a = bit_cast<uint32_t>(value);
  const uint16_t sign = uint16_t(a >> 16 & 0x8000);
  a &= 0x7fffffff;
  if (a > 0x7f800000) return 0x7fff;
  if (a >= 0x477ff000) return sign | 0x7c00;  // 65520 and above round to infinity
  if (a < 0x38800000)                         // below 2^-14: multiples of 2^-24
    return sign | uint16_t(nearbyintf(bit_cast<float>(a) * 16777216.0f));
  a += 0xfff + (a >> 13 & 1);
  return sign | uint16_t((a - 0x38000000) >> 13);
}
inline float half_value(uint16_t bits) {
  const uint32_t exponent = bits >> 10 & 31, mantissa = bits & 0x3ff;
  float f = float(mantissa) / 16777216.0f;
  if (exponent == 31) f = bit_cast<float>(0x7f800000 | mantissa << 13);
  else if (exponent) f = bit_cast<float>((exponent + 112) << 23 | mantissa << 13);
  return bits & 0x8000 ? -f : f;
}
}  // namespace emu

struct __half_raw { unsigned short x; };
struct __half {
  uint16_t bits;
  __half() = default;
  __half(__half_raw raw) : bits(raw.x) {}
  template <class N, class = std::enable_if_t<std::is_arithmetic_v<N>>>
  __half(N value) : bits(emu::half_bits(float(value))) {}
  operator float() const { return emu::half_value(bits); }
};
using half = __half;
EMU_NARROW(__half, __half2float, __float2half)

struct alignas(4) __half2 { __half x, y; };
using half2 = __half2;
EMU_NARROW2(__half2)

inline float __low2float(__half2 v) { return v.x; }
inline float __high2float(__half2 v) { return v.y; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __half2 __floats2half2_rn(float a, float b) { return {a, b}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }
inline __half __ushort_as_half(unsigned short v) { return __half(__half_raw{v}); }
inline unsigned short __half_as_ushort(__half v) { return v.bits; }
