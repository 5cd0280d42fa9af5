#pragma once
// Four neighbouring f32 at once: kernels bound by memory move 16 bytes per load where alignment
// allows it. A loop body is written once, for the number w of elements it is handed: 4, or 1 for
// tensors that start or have rows at odd places, and for what is left over at the end. Bodies are
// inlined with w a constant, so nothing is computed for elements that are not there.
#include "common.cuh"

struct pack {
  float v[4];  // the first w are in use
};

__device__ __forceinline__ pack load(const float* p, int w) {
  if (w == 1) return {{*p, 0.0f, 0.0f, 0.0f}};
  const float4 v = *reinterpret_cast<const float4*>(p);
  return {{v.x, v.y, v.z, v.w}};
}

// In PTX, because nvcc takes a float4 apart into four stores wherever it unrolls a loop. That
// memory changes is not declared, so that loads may move past: no kernel reads again what it stored
// here.
__device__ __forceinline__ void store(float* p, pack y, int w) {
  if (w == 1) {
    *p = y.v[0];
    return;
  }
#ifdef CUDA_EMU
  *reinterpret_cast<float4*>(p) = make_float4(y.v[0], y.v[1], y.v[2], y.v[3]);
#else
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)),
               "f"(y.v[0]), "f"(y.v[1]), "f"(y.v[2]), "f"(y.v[3]));
#endif
}

template <class F>
__device__ __forceinline__ pack map(pack a, F f) {
  return {{f(a.v[0]), f(a.v[1]), f(a.v[2]), f(a.v[3])}};
}

template <class F>
__device__ __forceinline__ pack zip(pack a, pack b, F f) {
  return {{f(a.v[0], b.v[0]), f(a.v[1], b.v[1]), f(a.v[2], b.v[2]), f(a.v[3], b.v[3])}};
}

// Whether every pointer is at a multiple of 16 bytes.
template <class... T>
__device__ __forceinline__ bool aligned(const T*... p) {
  return (... && (reinterpret_cast<unsigned long long>(p) % 16 == 0));
}

// Calls body(i, w) for all of 0..n, w elements from i on at a time, over the whole grid.
template <class F>
__device__ __forceinline__ void for_packs(i64 n, bool quads, F body) {
  const i64 whole = quads ? n / 4 : 0;
  // Not unrolled: with 32 registers all 2048 threads of a multiprocessor are there, and one load
  // each is as much as memory can have under way.
#pragma unroll 1
  for (i64 q = first_element(); q < whole; q += element_step()) body(4 * q, 4);
#pragma unroll 1
  for (i64 i = 4 * whole + first_element(); i < n; i += element_step()) body(i, 1);
}

// y[i] = f(x[i])
template <class F>
__device__ __forceinline__ void map_elements(const float* x, float* y, i64 n, F f) {
  for_packs(n, aligned(x, y), [&](i64 i, int w) { store(y + i, map(load(x + i, w), f), w); });
}

// y[i] = f(a[i], b[i])
template <class F>
__device__ __forceinline__ void zip_elements(const float* a, const float* b, float* y, i64 n, F f) {
  for_packs(n, aligned(a, b, y), [&](i64 i, int w) {
    store(y + i, zip(load(a + i, w), load(b + i, w), f), w);
  });
}
