// What __half and __nv_bfloat16 have in common: every operation is done in f32 and rounded, which
// is what the hardware's own instructions give (one rounding; fused multiply-adds go through f64).
#pragma once

#define EMU_NARROW(T, TO_FLOAT, FROM_FLOAT)                                                   \
  inline T operator+(T a, T b) { return T(float(a) + float(b)); }                             \
  inline T operator-(T a, T b) { return T(float(a) - float(b)); }                             \
  inline T operator*(T a, T b) { return T(float(a) * float(b)); }                             \
  inline T operator/(T a, T b) { return T(float(a) / float(b)); }                             \
  inline T operator-(T a) { return T(-float(a)); }                                            \
  inline T& operator+=(T& a, T b) { return a = a + b; }                                       \
  inline T& operator-=(T& a, T b) { return a = a - b; }                                       \
  inline T& operator*=(T& a, T b) { return a = a * b; }                                       \
  inline T& operator/=(T& a, T b) { return a = a / b; }                                       \
  inline bool operator==(T a, T b) { return float(a) == float(b); }                           \
  inline bool operator!=(T a, T b) { return float(a) != float(b); }                           \
  inline bool operator<(T a, T b) { return float(a) < float(b); }                             \
  inline bool operator<=(T a, T b) { return float(a) <= float(b); }                           \
  inline bool operator>(T a, T b) { return float(a) > float(b); }                             \
  inline bool operator>=(T a, T b) { return float(a) >= float(b); }                           \
  inline T __hadd(T a, T b) { return a + b; }                                                 \
  inline T __hsub(T a, T b) { return a - b; }                                                 \
  inline T __hmul(T a, T b) { return a * b; }                                                 \
  inline T __hdiv(T a, T b) { return a / b; }                                                 \
  inline T __hfma(T a, T b, T c) { return T(float(double(a) * double(b) + double(c))); }      \
  inline T __hneg(T a) { return -a; }                                                         \
  inline T __habs(T a) { return T(fabsf(a)); }                                                \
  inline bool __hisnan(T a) { return std::isnan(float(a)); }                                  \
  inline bool __heq(T a, T b) { return a == b; }                                              \
  inline bool __hlt(T a, T b) { return a < b; }                                               \
  inline bool __hgt(T a, T b) { return a > b; }                                               \
  inline T __hmax(T a, T b) { return T(fmaxf(a, b)); }                                        \
  inline T __hmin(T a, T b) { return T(fminf(a, b)); }                                        \
  inline T __hmax_nan(T a, T b) { return __hisnan(a) ? a : __hisnan(b) ? b : __hmax(a, b); }  \
  inline T __hmin_nan(T a, T b) { return __hisnan(a) ? a : __hisnan(b) ? b : __hmin(a, b); }  \
  inline T hexp(T a) { return T(expf(a)); }                                                   \
  inline T hlog(T a) { return T(logf(a)); }                                                   \
  inline T hsin(T a) { return T(sinf(a)); }                                                   \
  inline T hcos(T a) { return T(cosf(a)); }                                                   \
  inline T hsqrt(T a) { return T(sqrtf(a)); }                                                 \
  inline T hrsqrt(T a) { return T(1.0f / sqrtf(a)); }                                         \
  inline T hrcp(T a) { return T(1.0f / float(a)); }                                           \
  inline T htanh(T a) { return T(tanhf(a)); }                                                 \
  inline T hceil(T a) { return T(ceilf(a)); }                                                 \
  inline T hfloor(T a) { return T(floorf(a)); }                                               \
  inline float TO_FLOAT(T a) { return a; }                                                    \
  inline T FROM_FLOAT(float a) { return T(a); }                                               \
  inline T FROM_FLOAT##_rn(float a) { return T(a); }

// The same on pairs.
#define EMU_NARROW2(T2)                                                        \
  inline T2 __hadd2(T2 a, T2 b) { return {a.x + b.x, a.y + b.y}; }             \
  inline T2 __hsub2(T2 a, T2 b) { return {a.x - b.x, a.y - b.y}; }             \
  inline T2 __hmul2(T2 a, T2 b) { return {a.x * b.x, a.y * b.y}; }             \
  inline T2 __h2div(T2 a, T2 b) { return {a.x / b.x, a.y / b.y}; }             \
  inline T2 __hmax2(T2 a, T2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; } \
  inline T2 __hmin2(T2 a, T2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; } \
  inline T2 __hfma2(T2 a, T2 b, T2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
