#pragma once
// Four f32 at a time, where rows may begin or end anywhere.

// Whether every row of x begins at a multiple of 16 bytes; rows are `width` elements apart.
__device__ __forceinline__ bool quads_fit(const void* x, long long width) {
  return width % 4 == 0 && reinterpret_cast<unsigned long long>(x) % 16 == 0;
}

// The first `valid` of the four elements at p, zero for the others; any number may be asked for.
// With FIT, for rows that quads fit, it is all of them or none. Callers decide that once, outside
// of their loops, so that loads follow one another without a branch between.
template <bool FIT>
__device__ __forceinline__ float4 load_quad(const float* p, int valid) {
  float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
  if constexpr (FIT) {
    if (valid > 0) v = *reinterpret_cast<const float4*>(p);
  } else {
    if (valid > 0) v.x = p[0];
    if (valid > 1) v.y = p[1];
    if (valid > 2) v.z = p[2];
    if (valid > 3) v.w = p[3];
  }
  return v;
}
