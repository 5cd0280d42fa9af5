// The emulated driver's modules, functions and launches. What a module is loaded from does not
// matter: every kernel is compiled in already, and found by its name.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>

#include "cuda_emu.h"
#include "fake_cuda.h"

namespace {
std::mutex lock;
auto& dynamic_shared = *new std::map<const emu::Entry*, int>;  // what cuFuncSetAttribute allowed

constexpr int MAX_THREADS_PER_BLOCK = 0, BINARY_VERSION = 6, MAX_DYNAMIC_SHARED = 8;

int allowed_shared(const emu::Entry* kernel) {
  std::lock_guard<std::mutex> held(lock);
  const auto found = dynamic_shared.find(kernel);
  return found == dynamic_shared.end() ? SHARED_DEFAULT : found->second;
}

CUresult bad(const emu::Entry* kernel, CUresult code, const std::string& why) {
  return refuse(code, std::string(kernel->name) + ": " + why);
}
}  // namespace

// ---- modules

API cuModuleLoadData(void** out, const void*) {
  *out = new char;
  return SUCCESS;
}
API cuModuleLoadDataEx(void** out, const void* image, unsigned, int*, void**) {
  return cuModuleLoadData(out, image);
}
API cuModuleLoad(void** out, const char*) { return cuModuleLoadData(out, nullptr); }
API cuModuleUnload(void* module) {
  delete static_cast<char*>(module);
  return SUCCESS;
}
API cuModuleGetFunction(const emu::Entry** out, void*, const char* name) {
  for (const emu::Entry* e = emu_table(); e->name; e++) {
    if (std::strcmp(e->name, name)) continue;
    *out = e;
    return SUCCESS;
  }
  return refuse(NOT_FOUND, std::string("the emulation has no kernel ") + name);
}
API cuModuleGetGlobal_v2(CUdeviceptr*, size_t*, void*, const char* name) {
  return refuse(NOT_FOUND, std::string("the emulation does not list variables: ") + name);
}

// ---- functions

API cuFuncSetAttribute(const emu::Entry* kernel, int attribute, int value) {
  if (attribute != MAX_DYNAMIC_SHARED) return SUCCESS;
  if (value < 0 || value > SHARED_OPT_IN)
    return bad(kernel, INVALID_VALUE, "at most 227 KiB of shared memory can be asked for");
  std::lock_guard<std::mutex> held(lock);
  dynamic_shared[kernel] = value;
  return SUCCESS;
}
API cuFuncGetAttribute(int* out, int attribute, const emu::Entry* kernel) {
  switch (attribute) {
    case MAX_THREADS_PER_BLOCK: *out = int(kernel->max_threads); break;
    case BINARY_VERSION: *out = 90; break;
    case MAX_DYNAMIC_SHARED: *out = allowed_shared(kernel); break;
    default: *out = 0;  // registers and static memory are not known here
  }
  return SUCCESS;
}
API cuFuncSetCacheConfig(const emu::Entry*, int) { return SUCCESS; }

// By threads and dynamic shared memory alone.
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* out, const emu::Entry* kernel, int threads,
                                                size_t shared) {
  if (threads <= 0) return bad(kernel, INVALID_VALUE, "occupancy of a block without threads");
  if (unsigned(threads) > kernel->max_threads || shared > size_t(allowed_shared(kernel))) *out = 0;
  else *out = int(std::min<size_t>({32, 2048 / size_t(threads), 228 * 1024 / (shared + 1024)}));
  return SUCCESS;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* out, const emu::Entry* kernel,
                                                         int threads, size_t shared, unsigned) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessor(out, kernel, threads, shared);
}

// ---- launches

API cuLaunchKernel(const emu::Entry* kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                   unsigned by, unsigned bz, unsigned shared, void* stream, void** params,
                   void** extra) {
  if (!is_stream(stream)) return refuse(INVALID_HANDLE, "not a live stream");
  if (extra) return bad(kernel, NOT_SUPPORTED, "parameters in one buffer");
  if (int(shared) > allowed_shared(kernel)) {
    return bad(kernel, INVALID_VALUE,
               std::to_string(shared) + " bytes of dynamic shared memory, allowed are " +
                   std::to_string(allowed_shared(kernel)) + " (cuFuncSetAttribute)");
  }
  if (uint64_t(bx) * by * bz > kernel->max_threads && uint64_t(bx) * by * bz <= 1024) {
    return bad(kernel, LAUNCH_OUT_OF_RESOURCES,
               "more threads than __launch_bounds__(" + std::to_string(kernel->max_threads) + ")");
  }
  const emu::Shape shape{{gx, gy, gz}, {bx, by, bz}, shared, 0, ~uint64_t(0)};
  // One kernel at a time, whatever threads of the host launch: kernels of one stream never overlap.
  static std::mutex running;
  std::lock_guard<std::mutex> held(running);
  const emu::Status status = kernel->run(shape, params);
  if (status == emu::OK) return SUCCESS;
  if (status == emu::BAD_SHAPE) return bad(kernel, INVALID_VALUE, emu_last_error());
  fprintf(stderr, "emulated kernel %s: %s\n", kernel->name, emu_last_error());
  return bad(kernel, LAUNCH_FAILED, emu_last_error());
}
API cuLaunchCooperativeKernel(const emu::Entry* kernel, unsigned gx, unsigned gy, unsigned gz,
                              unsigned bx, unsigned by, unsigned bz, unsigned shared, void* stream,
                              void** params) {
  return cuLaunchKernel(kernel, gx, gy, gz, bx, by, bz, shared, stream, params, nullptr);
}
