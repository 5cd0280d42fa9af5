// The running thread, its place in the grid, and how a kernel is called.
#pragma once

namespace emu {
struct Thread {
  uint3 tid;
  unsigned lane, warp;
};

// What the built-in variables read. One object, so that kernels look up thread-local storage once.
struct Here {
  Thread* thread = nullptr;
  uint3 block = {0, 0, 0};
  dim3 block_dim, grid_dim;
};
extern thread_local Here here;

// Ends the launch, which then reports the reason, the block and the thread.
[[noreturn]] void fail(const char* what);

enum Vote { NONE, COUNT, AND, OR };
// __syncthreads, and its forms that vote.
int barrier(Vote vote, int predicate);
// Every lane in the mask deposits 8 bytes and waits; returns the warp's 32 slots.
const uint64_t* exchange(unsigned mask, uint64_t value);

// The grid of a launch. Only blocks first..last (by linear index) run.
struct Shape {
  unsigned grid[3], block[3];
  size_t shared;
  uint64_t first, last;
};
enum Status { OK, WRONG_ARGUMENTS, BAD_SHAPE, FAILED };
// The reason of a failure is in emu_last_error().
Status launch(const Shape&, void (*body)(void*), void* context);

// An entry of the table of kernels (emu_table, written by build.rs; ends with a null name).
struct Entry {
  const char* name;
  Status (*run)(const Shape&, void** args);
  unsigned arguments, max_threads;
};

template <class... A>
struct Call {
  void (*kernel)(A...);
  void** args;
  template <size_t... I>
  void run(std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(args[I])...);
  }
  static void body(void* self) {
    static_cast<Call*>(self)->run(std::index_sequence_for<A...>{});
  }
};

template <class... A>
constexpr unsigned arity(void (*)(A...)) {
  return sizeof...(A);
}

// As with cuLaunchKernel, args[i] points at the i-th parameter.
template <class... A>
Status launch_kernel(void (*kernel)(A...), const Shape& shape, void** args) {
  Call<A...> call{kernel, args};
  return launch(shape, Call<A...>::body, &call);
}
template <auto KERNEL>
constexpr Entry entry(const char* name, unsigned max_threads) {
  auto run = [](const Shape& shape, void** args) { return launch_kernel(KERNEL, shape, args); };
  return {name, run, arity(KERNEL), max_threads};
}

// The first argument of __launch_bounds__, which a launch must not exceed.
constexpr unsigned max_threads(unsigned threads = 1024, unsigned = 0, unsigned = 0) {
  return threads;
}

template <class To, class From>
To bit_cast(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To r;
  std::memcpy(&r, &v, sizeof r);
  return r;
}
template <class T>
uint64_t pack(T v) {
  static_assert(sizeof(T) <= 8, "shuffle of more than 8 bytes");
  uint64_t u = 0;
  std::memcpy(&u, &v, sizeof v);
  return u;
}
template <class T>
T unpack(uint64_t u) {
  T v;
  std::memcpy(&v, &u, sizeof v);
  return v;
}
}  // namespace emu

#define EMU_EXPORT extern "C" __attribute__((visibility("default")))
EMU_EXPORT const emu::Entry* emu_table();
EMU_EXPORT const char* emu_last_error();  // of this OS thread's last launch

#define threadIdx (emu::here.thread->tid)
#define blockIdx (emu::here.block)
#define blockDim (emu::here.block_dim)
#define gridDim (emu::here.grid_dim)
constexpr int warpSize = 32;
