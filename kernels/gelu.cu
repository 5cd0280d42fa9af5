// The Gaussian error linear unit (arXiv 1606.08415), in two forms:
//
//   erf:   gelu(x) = x Φ(x)                   gelu'(x) = Φ(x) + x φ(x)
//   tanh:  gelu(x) = x s, s = 1 / (1 + e^-2u), u = √(2/π) (x + 0.044715 x³)
//          gelu'(x) = s + x s (1 - s) 2u'
//
// gelu_FORM: y = gelu(x). gelu_FORM_mul: y = gelu(x) other, the gated MLP and its gradient for the
// other operand. gelu_FORM_slope_mul: y = gelu'(x) other, the gradient for x.
// All n elements, f32. Grid: min(ceil(n / 1024), 16 per multiprocessor) blocks of 256.
// 8 bytes (12 with two operands) and 30 to 50 operations per element: bound by memory where the GPU
// does 50 operations in the time of 8 bytes, as an H200 does.
#include "packs.cuh"

// Φ(x), the normal distribution, as src/ops/gelu.rs computes it: of one piece, so that the threads
// of a warp do not part. To 3e-7 relative, far below -3 to 4e-6: there a²/2 has its digits before
// the point.
//
// Φ(-a) = t e^(P(t) - a²/2) with t = 1 / (1 + 0.55 a/√2).
__device__ __forceinline__ float normal(float x) {
  const float a = fabsf(x);
  const float t = 1.0f / fmaf(a, 0.38890873f, 1.0f);
  float p = 0.17104296f;
  p = fmaf(p, t, -0.91706073f);
  p = fmaf(p, t, 1.9282532f);
  p = fmaf(p, t, -1.8562052f);
  p = fmaf(p, t, 0.66473204f);
  p = fmaf(p, t, -0.20734875f);
  p = fmaf(p, t, 0.39067608f);
  p = fmaf(p, t, 0.99594784f);
  p = fmaf(p, t, -1.8631846f);
  const float tail = t * expf(fmaf(-0.5f * a, a, p));
  return x < 0.0f ? tail : 1.0f - tail;
}

// The derivative of x Φ(x).
__device__ __forceinline__ float normal_slope(float x) {
  constexpr float DENSITY = 0.3989423f;  // 1 / √(2π)
  return fmaf(x, DENSITY * expf(-0.5f * x * x), normal(x));
}

// √(2/π) and the coefficient of the cube, twice each: 2u = x (A + B x²).
constexpr float A = 1.5957692f;
constexpr float B = 0.071354814f;

// s of the form with the hyperbolic tangent.
__device__ __forceinline__ float logistic(float x) {
  return 1.0f / (1.0f + expf(-x * fmaf(x * x, B, A)));
}

// The derivative of x s. s (1 - s) is even and e / (1 + e)² with e at most 1: 1 - s itself has no
// digits left where s is nearly 1.
__device__ __forceinline__ float logistic_slope(float x) {
  const float x2 = x * x;
  const float e = expf(-fabsf(x * fmaf(x2, B, A)));
  const float inverse = 1.0f / (1.0f + e);
  const float s = x < 0.0f ? e * inverse : inverse;
  // For large |x| the slope of u overflows where this has long been 0.
  const float rest = e * inverse * inverse;
  return rest > 0.0f ? fmaf(x * rest, fmaf(x2, 3.0f * B, A), s) : s;
}

extern "C" __global__ void __launch_bounds__(256)
gelu_erf(const float* __restrict__ x, float* __restrict__ y, i64 n) {
  map_elements(x, y, n, [](float x) { return x * normal(x); });
}

extern "C" __global__ void __launch_bounds__(256)
gelu_tanh(const float* __restrict__ x, float* __restrict__ y, i64 n) {
  map_elements(x, y, n, [](float x) { return x * logistic(x); });
}

extern "C" __global__ void __launch_bounds__(256)
gelu_erf_mul(const float* __restrict__ x, const float* __restrict__ other, float* __restrict__ y,
             i64 n) {
  zip_elements(x, other, y, n, [](float x, float o) { return x * normal(x) * o; });
}

extern "C" __global__ void __launch_bounds__(256)
gelu_tanh_mul(const float* __restrict__ x, const float* __restrict__ other, float* __restrict__ y,
              i64 n) {
  zip_elements(x, other, y, n, [](float x, float o) { return x * logistic(x) * o; });
}

extern "C" __global__ void __launch_bounds__(256)
gelu_erf_slope_mul(const float* __restrict__ x, const float* __restrict__ other,
                   float* __restrict__ y, i64 n) {
  zip_elements(x, other, y, n, [](float x, float o) { return normal_slope(x) * o; });
}

extern "C" __global__ void __launch_bounds__(256)
gelu_tanh_slope_mul(const float* __restrict__ x, const float* __restrict__ other,
                    float* __restrict__ y, i64 n) {
  zip_elements(x, other, y, n, [](float x, float o) { return logistic_slope(x) * o; });
}
