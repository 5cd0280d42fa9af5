// Values bent into (-cap, cap):
//
//   y = cap tanh(x / cap)        dx = dy (1 - (y / cap)²)
//
// All n elements, f32; cap is positive. Grid: min(ceil(n / 1024), 16 per multiprocessor) blocks of
// 256. 8 bytes (gradient: 12) and about 30 operations per element: bound by memory.
#include "packs.cuh"

extern "C" __global__ void __launch_bounds__(256)
soft_cap(const float* __restrict__ x, float* __restrict__ y, i64 n, float cap) {
  map_elements(x, y, n, [=](float x) { return cap * tanhf(x / cap); });
}

extern "C" __global__ void __launch_bounds__(256)
soft_cap_gradient(const float* __restrict__ y, const float* __restrict__ dy,
                  float* __restrict__ dx, i64 n, float cap) {
  zip_elements(y, dy, dx, n, [=](float y, float dy) {
    const float share = y / cap;
    // (1 - s) (1 + s) keeps the digits that 1 - s² loses near the cap.
    return dy * ((1.0f - share) * (1.0f + share));
  });
}
