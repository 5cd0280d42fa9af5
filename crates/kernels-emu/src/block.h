// The threads of one block, run as fibers on one OS thread.
#pragma once
#include <string>
#include <vector>

#include "context.h"
#include "cuda_emu.h"
#include "sanitizer.h"

namespace emu {
constexpr size_t SHARED_MAX = 227 * 1024;  // what a Hopper block can have

enum class State { NEW, READY, AT_BARRIER, AT_WARP, DONE };

class Block;

struct Fiber : Thread {
  Block* block;
  State state;
  unsigned stack;
  Context context;
  // The warp collective it takes part in: its mask and value; then the set of slots it reads.
  unsigned mask;
  uint64_t value;
  int reads;
};

struct Warp {
  unsigned arrived, alive;
  // What the lanes of a collective deposited. Some may enter the next one while others have yet to
  // read the last, so every lane can hold a set of its own, besides the one being filled.
  static constexpr int SETS = 33;
  unsigned char readers[SETS];
  uint64_t slots[SETS][32];
};

class Block {
 public:
  ~Block();
  // Runs the block at here.block; false on a fault, whose description is then in `error`.
  bool run(size_t threads, size_t shared, const std::vector<unsigned>& order);

  void (*body)(void*) = nullptr;
  void* context = nullptr;
  std::string error;

  // What a fiber calls.
  void live();
  int barrier(Fiber&, Vote, int predicate);
  const uint64_t* exchange(Fiber&, unsigned mask, uint64_t value);
  [[noreturn]] void fail(Fiber&, const char* what);

 private:
  void start(size_t threads, size_t shared, const std::vector<unsigned>& order);
  void reserve(size_t count);
  Fiber* next();
  void resume(Context& from, Fiber&);
  void yield(Fiber&, State);
  void end(Fiber&);
  Fiber* take_over(Fiber&);
  void leave(Context& from, void** kept);
  void release_barrier();
  bool all_wait(const Warp&, unsigned first_thread, unsigned mask) const;
  void complete(Warp&, unsigned first_thread, unsigned mask);
  void record(const char* what);
  void report_deadlock();

  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  // The order of a round, and whose turn is next.
  const unsigned* order_ = nullptr;
  size_t turn_ = 0;
  Context scheduler_;
  StackBounds scheduler_stack_;
  unsigned waiting_ = 0, alive_ = 0, votes_ = 0;
  int outcome_ = 0;
  Vote vote_ = NONE;
  // Stacks that no thread is on are free.
  char* stacks_ = nullptr;
  size_t stack_count_ = 0;
  std::vector<unsigned> free_stacks_;
};

inline Fiber& self() { return *static_cast<Fiber*>(here.thread); }

// The block that this OS thread runs. (A function, since -fno-extern-tls-init lets no other file's
// thread-local variable have a constructor: kernels then reach theirs without a check.)
Block& block();
}  // namespace emu
