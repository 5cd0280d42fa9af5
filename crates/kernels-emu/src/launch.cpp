// Runs the blocks of a launch.
//
// EMU_ORDER    the order in which the threads of a block take their turns: "reverse", or a number
//              that seeds a shuffle; forward if unset. A result that depends on it lacks a barrier.
// EMU_THREADS  how many OS threads share the blocks; 1 if unset, so that blocks run in order.
#include <algorithm>
#include <atomic>
#include <mutex>
#include <random>
#include <thread>

#include "block.h"

namespace emu {
namespace {
thread_local std::string last_error;

std::vector<unsigned> turns(size_t threads) {
  std::vector<unsigned> order(threads);
  for (unsigned i = 0; i < threads; i++) order[i] = i;
  const char* wanted = getenv("EMU_ORDER");
  if (wanted && std::string(wanted) == "reverse") {
    std::reverse(order.begin(), order.end());
  } else if (wanted && *wanted >= '0' && *wanted <= '9') {
    std::mt19937 random(unsigned(strtoul(wanted, nullptr, 10)));
    std::shuffle(order.begin(), order.end(), random);
  }
  return order;
}

// What the hardware refuses to start; null if it starts.
const char* refusal(const Shape& s) {
  const unsigned *g = s.grid, *b = s.block;
  const uint64_t threads = uint64_t(b[0]) * b[1] * b[2];
  if (threads == 0 || threads > 1024 || b[2] > 64) return "a block has 1 to 1024 threads, z <= 64";
  if (g[0] == 0 || g[1] == 0 || g[2] == 0) return "a grid has at least one block";
  if (g[0] > 0x7fffffffu || g[1] > 65535 || g[2] > 65535)
    return "a grid has at most 2147483647 x 65535 x 65535 blocks";
  if (s.shared > SHARED_MAX) return "a block has at most 227 KiB of shared memory";
  return nullptr;
}
}  // namespace

Status launch(const Shape& shape, void (*body)(void*), void* context) {
  last_error.clear();
  if (const char* why = refusal(shape)) {
    last_error = why;
    return BAD_SHAPE;
  }
  const unsigned *g = shape.grid, *b = shape.block;
  const size_t threads = size_t(b[0]) * b[1] * b[2];
  const uint64_t last = std::min(shape.last, uint64_t(g[0]) * g[1] * g[2]);
  const std::vector<unsigned> order = turns(threads);
  std::atomic<uint64_t> next{shape.first};
  std::mutex lock;
  std::string error;

  auto work = [&] {
    Block& own = block();
    own.body = body;
    own.context = context;
    here.grid_dim = dim3(g[0], g[1], g[2]);
    here.block_dim = dim3(b[0], b[1], b[2]);
    for (uint64_t i; (i = next++) < last;) {
      here.block = {unsigned(i % g[0]), unsigned(i / g[0] % g[1]), unsigned(i / g[0] / g[1])};
      if (own.run(threads, shape.shared, order)) continue;
      std::lock_guard<std::mutex> held(lock);
      error = own.error;
      next = last;
    }
    here.thread = nullptr;
  };
  const char* wanted = getenv("EMU_THREADS");
  const uint64_t blocks = last > shape.first ? last - shape.first : 0;
  const int workers = wanted ? int(std::min<uint64_t>(blocks, std::max(1, atoi(wanted)))) : 1;
  if (workers <= 1) {
    work();
  } else {
    std::vector<std::thread> pool;
    for (int i = 0; i < workers; i++) pool.emplace_back(work);
    for (std::thread& t : pool) t.join();
  }
  last_error = error;
  return error.empty() ? OK : FAILED;
}
}  // namespace emu

const char* emu_last_error() { return emu::last_error.c_str(); }
