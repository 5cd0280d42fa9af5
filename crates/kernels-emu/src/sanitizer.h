// Tells AddressSanitizer, where it is loaded, which stack the OS thread runs on.
#pragma once
#include <cstddef>

extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void**, const void*, size_t);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
__attribute__((weak)) void __asan_unpoison_memory_region(void const volatile*, size_t);
}

namespace emu {
struct StackBounds {
  const void* bottom = nullptr;
  size_t size = 0;
};

// Before a switch: to which stack. `kept` holds what the sanitizer keeps of the present one; null
// if that one ends.
inline void leave_stack(void** kept, const StackBounds& to) {
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(kept, to.bottom, to.size);
}
// After a switch, with what leave_stack kept of the stack that is now the present one. Says in
// `from` which stack was left.
inline void enter_stack(void* kept, StackBounds* from = nullptr) {
  if (!__sanitizer_finish_switch_fiber) return;
  StackBounds ignored;
  if (!from) from = &ignored;
  __sanitizer_finish_switch_fiber(kept, &from->bottom, &from->size);
}
// Forgets what the frames on the stack of a thread that never ends have marked.
inline void forget_frames(const void* bottom, size_t size) {
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(bottom, size);
}
}  // namespace emu
