// Where fibers wait for each other: barriers of a block and collectives of a warp; see block.h.
#include "block.h"

namespace emu {
void Block::release_barrier() {
  outcome_ = vote_ == COUNT ? int(votes_) : vote_ == AND ? votes_ == waiting_ : votes_ != 0;
  waiting_ = votes_ = 0;
  vote_ = NONE;
  for (Fiber& f : fibers_)
    if (f.state == State::AT_BARRIER) f.state = State::READY;
}

int Block::barrier(Fiber& f, Vote vote, int predicate) {
  if (waiting_ && vote_ != vote)
    fail(f, "threads of a block meet at different kinds of __syncthreads");
  vote_ = vote;
  waiting_++;
  votes_ += predicate != 0;
  if (waiting_ == alive_) release_barrier();
  else yield(f, State::AT_BARRIER);
  return outcome_;
}

const uint64_t* Block::exchange(Fiber& f, unsigned mask, uint64_t value) {
  Warp& w = warps_[f.warp];
  const unsigned first = f.warp * 32;
  if (f.reads >= 0) w.readers[f.reads]--;
  f.reads = -1;
  if (!(mask >> f.lane & 1)) fail(f, "warp collective whose mask leaves out the calling lane");
  if (mask & ~w.alive) {
    const size_t lanes = fibers_.size() - first;  // of a last warp that is not whole
    const unsigned present = lanes >= 32 ? ~0u : (1u << lanes) - 1;
    if (mask & present & ~w.alive) fail(f, "warp collective names a lane that has exited");
    mask &= present;
  }
  f.mask = mask;
  f.value = value;
  w.arrived |= 1u << f.lane;
  if (all_wait(w, first, mask)) complete(w, first, mask);
  else yield(f, State::AT_WARP);
  return w.slots[f.reads];
}

// Whether every lane of the mask has come to a collective with this mask. (Lanes that have come to
// one with another mask may end it, and come to this one later.)
bool Block::all_wait(const Warp& w, unsigned first_thread, unsigned mask) const {
  if ((w.arrived & mask) != mask) return false;
  for (unsigned rest = mask; rest; rest &= rest - 1)
    if (fibers_[first_thread + __builtin_ctz(rest)].mask != mask) return false;
  return true;
}

// The last lane has come: hands every lane the values of all.
void Block::complete(Warp& w, unsigned first_thread, unsigned mask) {
  int set = 0;
  while (w.readers[set]) set++;
  for (unsigned rest = mask; rest; rest &= rest - 1) {
    const unsigned lane = __builtin_ctz(rest);
    Fiber& f = fibers_[first_thread + lane];
    w.slots[set][lane] = f.value;
    f.reads = set;
    f.state = State::READY;
  }
  w.readers[set] = (unsigned char)__builtin_popcount(mask);
  w.arrived &= ~mask;
}

// ---- what kernels call

void fail(const char* what) { self().block->fail(self(), what); }
int barrier(Vote vote, int predicate) {
  Fiber& f = self();
  return f.block->barrier(f, vote, predicate);
}
const uint64_t* exchange(unsigned mask, uint64_t value) {
  Fiber& f = self();
  return f.block->exchange(f, mask, value);
}
}  // namespace emu
