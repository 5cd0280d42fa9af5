// Atomic functions. They are real ones, since blocks may run on several OS threads.
#pragma once

namespace emu {
template <size_t BYTES> struct word;
template <> struct word<2> { using type = uint16_t; };
template <> struct word<4> { using type = uint32_t; };
template <> struct word<8> { using type = uint64_t; };

template <class T, class F>
T update(T* at, F next) {
  using W = typename word<sizeof(T)>::type;
  W* p = reinterpret_cast<W*>(at);
  W old = __atomic_load_n(p, __ATOMIC_RELAXED), wanted;
  do {
    wanted = bit_cast<W>(T(next(bit_cast<T>(old))));
  } while (!__atomic_compare_exchange_n(p, &old, wanted, false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_RELAXED));
  return bit_cast<T>(old);
}
// The second argument converts to the type of the first.
template <class T> struct same { using type = T; };
template <class T> using arg = typename same<T>::type;
}  // namespace emu

#define EMU_ATOMIC(NAME, NEXT)                                     \
  template <class T>                                               \
  T NAME(T* at, emu::arg<T> v) {                                   \
    return emu::update(at, [=](T old) { return T(NEXT); });        \
  }
EMU_ATOMIC(atomicAdd, old + v)
EMU_ATOMIC(atomicSub, old - v)
EMU_ATOMIC(atomicMax, old > v ? old : v)
EMU_ATOMIC(atomicMin, old < v ? old : v)
EMU_ATOMIC(atomicExch, v)
EMU_ATOMIC(atomicOr, old | v)
EMU_ATOMIC(atomicAnd, old & v)
EMU_ATOMIC(atomicXor, old ^ v)
EMU_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
EMU_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef EMU_ATOMIC

template <class T>
T atomicCAS(T* at, emu::arg<T> compare, emu::arg<T> v) {
  return emu::update(at, [=](T old) { return old == compare ? v : old; });
}
