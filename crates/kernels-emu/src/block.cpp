// Runs the fibers of a block round by round until all have ended; see block.h.
#include "block.h"

#include <sys/mman.h>

// Dynamic shared memory, and 16 bytes behind it that tell whether a kernel wrote past its end.
extern thread_local unsigned char shared_memory[] __asm__("emu_shared");
__attribute__((aligned(128))) thread_local unsigned char shared_memory[emu::SHARED_MAX + 16];

#if defined(__x86_64__)
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch,@function
emu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size emu_switch,.-emu_switch
)");
#endif

namespace emu {
thread_local Here here{};  // without a constructor that runs, see block()

Block& block() {
  static thread_local Block of_this_thread;
  return of_this_thread;
}

namespace {
constexpr size_t PAGE = 4096, STRIDE = STACK + PAGE;
constexpr unsigned char CANARY = 0xa5;

void entry() { self().block->live(); }
}  // namespace

Block::~Block() {
  if (stacks_) munmap(stacks_, stack_count_ * STRIDE);
}

void Block::reserve(size_t count) {
  if (count > stack_count_) {
    if (stacks_) munmap(stacks_, stack_count_ * STRIDE);
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* at = mmap(nullptr, count * STRIDE, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (at == MAP_FAILED) {
      perror("emulator: no memory for the threads' stacks");
      abort();
    }
    stacks_ = static_cast<char*>(at);
    stack_count_ = count;
    for (size_t i = 0; i < count; i++) mprotect(stacks_ + i * STRIDE, PAGE, PROT_NONE);
  }
  free_stacks_.resize(stack_count_);
  for (size_t i = 0; i < stack_count_; i++) free_stacks_[i] = unsigned(stack_count_ - 1 - i);
}

void Block::start(size_t threads, size_t shared, const std::vector<unsigned>& order) {
  reserve(threads);
  fibers_.resize(threads);
  warps_.resize((threads + 31) / 32);
  for (Warp& w : warps_) {
    w.arrived = w.alive = 0;
    std::memset(w.readers, 0, sizeof w.readers);
  }
  waiting_ = votes_ = 0;
  alive_ = unsigned(threads);
  vote_ = NONE;
  order_ = order.data();
  turn_ = 0;
  error.clear();
  // Shared memory starts undefined: NaN, so that a missed store shows.
  std::memset(shared_memory, 0xff, shared);
  std::memset(shared_memory + shared, CANARY, 16);
  const dim3 dim = here.block_dim;
  uint3 tid{0, 0, 0};
  for (unsigned i = 0; i < threads; i++) {
    Fiber& f = fibers_[i];
    f.tid = tid;
    f.lane = i % 32;
    f.warp = i / 32;
    f.block = this;
    f.state = State::NEW;
    f.reads = -1;
    warps_[f.warp].alive |= 1u << f.lane;
    if (++tid.x == dim.x) tid.x = 0, tid.y++;
    if (tid.y == dim.y) tid.y = 0, tid.z++;
  }
}

bool Block::run(size_t threads, size_t shared, const std::vector<unsigned>& order) {
  start(threads, shared, order);
  // Fibers hand over to each other; at the end of a round, or after a fault, they come back here.
  bool idle = false;
  while (error.empty() && alive_) {
    if (Fiber* f = next()) {
      idle = false;
      resume(scheduler_, *f);
    } else if (idle) {
      report_deadlock();
    } else {
      idle = true;
      turn_ = 0;
    }
  }
  for (int i = 0; i < 16 && error.empty(); i++) {
    if (shared_memory[shared + i] != CANARY) record("write past the end of dynamic shared memory");
  }
  if (!error.empty())
    for (size_t i = 0; i < stack_count_; i++) forget_frames(stacks_ + i * STRIDE + PAGE, STACK);
  return error.empty();
}

// ---- turns

// The next thread of this round that has something to do.
Fiber* Block::next() {
  if (!error.empty()) return nullptr;
  while (turn_ < fibers_.size()) {
    Fiber& f = fibers_[order_[turn_++]];
    if (f.state == State::READY || f.state == State::NEW) return &f;
  }
  return nullptr;
}

void Block::resume(Context& from, Fiber& f) {
  if (f.state == State::NEW) {
    f.stack = free_stacks_.back();
    free_stacks_.pop_back();
    // Tops at different offsets, so that the stacks do not compete for the same lines of the cache.
    prepare(f.context, stacks_ + (f.stack + 1) * STRIDE - f.stack % 32 * 128, entry);
    f.state = State::READY;
  }
  here.thread = &f;
  void* kept = nullptr;
  leave_stack(&kept, {stacks_ + f.stack * STRIDE + PAGE, STACK});
  switch_to(from, f.context);
  enter_stack(kept);
}

void Block::leave(Context& from, void** kept) {
  leave_stack(kept, scheduler_stack_);
  switch_to(from, scheduler_);
}

void Block::yield(Fiber& f, State state) {
  f.state = state;
  if (Fiber* other = next()) return resume(f.context, *other);
  void* kept = nullptr;
  leave(f.context, &kept);
  enter_stack(kept);
}

// A fiber's life. When its thread ends it goes on as the next one that has not started: a kernel
// without barriers runs on one stack, without a switch.
void Block::live() {
  StackBounds from;
  enter_stack(nullptr, &from);
  if (!scheduler_stack_.size) scheduler_stack_ = from;
  Fiber* f = &self();
  do {
    body(context);
    f = take_over(*f);
  } while (f);
  Context gone;
  leave(gone, nullptr);
}

// Ends a thread; the new one that its fiber is now, or null: then the fiber's stack is free.
Fiber* Block::take_over(Fiber& f) {
  end(f);
  Fiber* other = next();
  if (!other || other->state != State::NEW) {
    if (other) turn_--;  // it has a stack of its own, the scheduler switches to it
    free_stacks_.push_back(f.stack);
    return nullptr;
  }
  other->stack = f.stack;
  other->state = State::READY;
  here.thread = other;
  return other;
}

void Block::end(Fiber& f) {
  f.state = State::DONE;
  alive_--;
  warps_[f.warp].alive &= ~(1u << f.lane);
  if (waiting_ && waiting_ == alive_) release_barrier();  // threads that ended do not count
}

// ---- faults

void Block::report_deadlock() {
  for (Fiber& f : fibers_) {
    if (f.state == State::DONE) continue;
    here.thread = &f;
    if (f.state == State::AT_BARRIER)
      return record("deadlock: this thread waits at __syncthreads that others never reach");
    if ((warps_[f.warp].arrived & f.mask) == f.mask)
      return record("deadlock: lanes wait at warp collectives with different masks");
    return record("deadlock: this thread waits at a warp collective that others never reach");
  }
}

void Block::record(const char* what) {
  const uint3 b = here.block, t = here.thread->tid;
  char text[320];
  snprintf(text, sizeof text, "%s (block %u,%u,%u thread %u,%u,%u)", what, b.x, b.y, b.z, t.x, t.y,
           t.z);
  error = text;
}

void Block::fail(Fiber& f, const char* what) {
  record(what);
  yield(f, State::DONE);
  __builtin_unreachable();
}
}  // namespace emu
