// Switching between fibers: saves the callee-saved registers on the current stack and goes on with
// another stack. 15 instructions on x86-64; elsewhere ucontext, which also saves the signal mask.
#pragma once
#include <cstddef>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emu {
// What a CUDA thread may use of local memory and calls; below each stack lies a guard page.
constexpr size_t STACK = 128 * 1024;

#if defined(__x86_64__)
struct Context {
  void* stack_pointer;
};
extern "C" void emu_switch(void** from, void* to);
inline void switch_to(Context& from, Context& to) {
  emu_switch(&from.stack_pointer, to.stack_pointer);
}
// `top` is 16-byte aligned; the first switch to the context calls entry, which never returns.
inline void prepare(Context& context, char* top, void (*entry)()) {
  void** sp = reinterpret_cast<void**>(top);
  *--sp = nullptr;  // where entry's return address would be: keeps its frame aligned
  *--sp = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; i++) *--sp = nullptr;
  context.stack_pointer = sp;
}
#else
struct Context {
  ucontext_t user;
};
inline void switch_to(Context& from, Context& to) { swapcontext(&from.user, &to.user); }
inline void prepare(Context& context, char* top, void (*entry)()) {
  getcontext(&context.user);
  context.user.uc_stack.ss_sp = top - STACK / 2;  // tops are offset by less than the other half
  context.user.uc_stack.ss_size = STACK / 2;
  context.user.uc_link = nullptr;
  makecontext(&context.user, entry, 0);
}
#endif
}  // namespace emu
