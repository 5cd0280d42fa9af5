// Barriers, shuffles, votes and reductions over a warp.
#pragma once

inline void __syncthreads() { emu::barrier(emu::NONE, 0); }
inline int __syncthreads_count(int p) { return emu::barrier(emu::COUNT, p); }
inline int __syncthreads_and(int p) { return emu::barrier(emu::AND, p); }
inline int __syncthreads_or(int p) { return emu::barrier(emu::OR, p); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emu::exchange(mask, 0); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

namespace emu {
// Lanes whose source is outside their segment of the warp keep their own value.
template <class T>
T shuffle(unsigned mask, T v, int source, bool inside) {
  const uint64_t* slots = exchange(mask, pack(v));
  if (!inside) return v;
  if (!(mask >> source & 1)) fail("shuffle reads a lane outside its mask");
  return unpack<T>(slots[source]);
}
inline int lane() { return here.thread->lane; }
inline int segment(int width) { return lane() & ~(width - 1); }
}  // namespace emu

template <class T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
  return emu::shuffle(mask, v, emu::segment(width) + (source & (width - 1)), true);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) {
  const int s = emu::lane() ^ bits;
  return emu::shuffle(mask, v, s & 31, s < emu::segment(width) + width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
  const int s = emu::lane() + (int)by;
  return emu::shuffle(mask, v, s & 31, s < emu::segment(width) + width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
  const int s = emu::lane() - (int)by;
  return emu::shuffle(mask, v, s & 31, s >= emu::segment(width));
}

inline unsigned __activemask() { return 0xffffffffu; }
inline unsigned __ballot_sync(unsigned mask, int p) {
  const uint64_t* slots = emu::exchange(mask, p != 0);
  unsigned r = 0;
  for (int i = 0; i < 32; i++)
    if (mask >> i & 1) r |= unsigned(slots[i]) << i;
  return r;
}
inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, p) == mask; }

namespace emu {
template <class T, class F>
T reduce(unsigned mask, T v, F f) {
  const uint64_t* slots = exchange(mask, pack(v));
  int i = __builtin_ctz(mask);
  T r = unpack<T>(slots[i]);
  for (i++; i < 32; i++)
    if (mask >> i & 1) r = f(r, unpack<T>(slots[i]));
  return r;
}
}  // namespace emu
template <class T>
T __reduce_add_sync(unsigned mask, T v) {
  return emu::reduce(mask, v, [](T a, T b) { return T(a + b); });
}
template <class T>
T __reduce_max_sync(unsigned mask, T v) {
  return emu::reduce(mask, v, [](T a, T b) { return a > b ? a : b; });
}
template <class T>
T __reduce_min_sync(unsigned mask, T v) {
  return emu::reduce(mask, v, [](T a, T b) { return a < b ? a : b; });
}
