// __nv_fp8_e4m3: 4 bits of exponent, 3 of mantissa, no infinity; too large a value becomes 448.
#pragma once
#include "cuda_fp16.h"

using __nv_fp8_storage_t = unsigned char;
enum __nv_fp8_interpretation_t { __NV_E4M3 };

namespace emu {
inline unsigned char e4m3_bits(float value) {
  const unsigned char sign = std::signbit(value) ? 0x80 : 0;
  const float a = fabsf(value);
  if (std::isnan(a)) return 0x7f;
  if (a >= 448.0f) return sign | 0x7e;
  if (a < 0.015625f) return sign | (unsigned char)nearbyintf(a * 512.0f);  // multiples of 2^-9
  uint32_t u = bit_cast<uint32_t>(a);
  u += 0x7ffff + (u >> 20 & 1);
  return sign | (unsigned char)((u - (120u << 23)) >> 20);
}
inline float e4m3_value(unsigned char bits) {
  const uint32_t exponent = bits >> 3 & 15, mantissa = bits & 7;
  float f = float(mantissa) / 512.0f;
  if ((bits & 0x7f) == 0x7f) f = NAN;
  else if (exponent) f = bit_cast<float>((exponent + 120) << 23 | mantissa << 20);
  return bits & 0x80 ? -f : f;
}
}  // namespace emu

struct __nv_fp8_e4m3 {
  __nv_fp8_storage_t __x;
  __nv_fp8_e4m3() = default;
  template <class N, class = std::enable_if_t<std::is_convertible_v<N, float>>>
  explicit __nv_fp8_e4m3(N value) : __x(emu::e4m3_bits(float(value))) {}
  explicit operator float() const { return emu::e4m3_value(__x); }
};

inline __half_raw __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t x, __nv_fp8_interpretation_t) {
  return {emu::half_bits(emu::e4m3_value(x))};
}
