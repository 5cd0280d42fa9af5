#pragma once
// v, as a value the compiler knows nothing about: what is computed from it is computed here, not
// ahead of the loop it stands in, where it would hold registers all along.
template <class T>
__device__ __forceinline__ T opaque(T v) {
#ifndef CUDA_EMU
  asm volatile("" : "+l"(v));
#endif
  return v;
}
