// The emulated driver's memory.
//
// EMU_MEMORY_MIB  how much the device has; 16384 if unset. More is refused, as on a GPU.
// EMU_MEMORY_LOG  a file that is told the peak: the most bytes allocated at once so far.
//
// Each allocation is one of malloc's, so that AddressSanitizer sees a kernel leave it. Fresh and
// freed memory is filled with 0xFF (NaN), so that reading it before a store or after a free shows.
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "fake_cuda.h"

namespace {
std::mutex lock;
// Live allocations: address and bytes; pinned host memory: address and flags. Never destroyed,
// since threads may still call while the process exits.
auto& device_memory = *new std::map<CUdeviceptr, size_t>;
auto& pinned_memory = *new std::map<void*, unsigned>;
size_t used = 0, peak = 0;
constexpr size_t ALIGNMENT = 256;  // of every allocation, as the driver promises

size_t total() {
  static const size_t bytes = [] {
    const char* mib = getenv("EMU_MEMORY_MIB");
    return (mib ? size_t(strtoull(mib, nullptr, 10)) : 16384) << 20;
  }();
  return bytes;
}

// Rewrites the log: a process may end in any way.
void log_peak() {
  static const int file = [] {
    const char* path = getenv("EMU_MEMORY_LOG");
    return path ? open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644) : -1;
  }();
  if (file < 0) return;
  const std::string line = std::to_string(peak) + "\n";
  if (pwrite(file, line.data(), line.size(), 0) < 0) perror("EMU_MEMORY_LOG");
}

void* aligned(size_t bytes) {
  void* p = nullptr;
  return posix_memalign(&p, ALIGNMENT, bytes ? bytes : 1) ? nullptr : p;
}

std::string range(CUdeviceptr p, size_t bytes) {
  char text[80];
  snprintf(text, sizeof text, "%zu bytes at 0x%llx", bytes, (unsigned long long)p);
  return text;
}
CUresult no_stream() { return refuse(INVALID_HANDLE, "not a live stream"); }
}  // namespace

bool within_allocation(CUdeviceptr p, size_t bytes, const char* call) {
  if (bytes == 0) return true;
  std::unique_lock<std::mutex> held(lock);
  auto next = device_memory.upper_bound(p);
  bool inside = false;
  std::string what = "no allocation is there";
  if (next != device_memory.begin()) {
    const auto [start, size] = *std::prev(next);
    inside = p - start <= size && bytes <= size - (p - start);
    if (p - start < size) what = "the allocation has " + range(start, size);
  }
  held.unlock();
  if (!inside) refuse(INVALID_VALUE, std::string(call) + " of " + range(p, bytes) + ": " + what);
  return inside;
}
// For the other emulated libraries.
extern "C" __attribute__((visibility("default"))) int emu_within_allocation(
    const void* p, size_t bytes, const char* call) {
  return within_allocation(reinterpret_cast<CUdeviceptr>(p), bytes, call);
}

// ---- device memory

API cuDeviceTotalMem_v2(size_t* bytes, int) {
  *bytes = total();
  return SUCCESS;
}
API cuMemGetInfo_v2(size_t* free, size_t* all) {
  std::lock_guard<std::mutex> held(lock);
  *all = total();
  *free = total() - used;
  return SUCCESS;
}
API cuMemAlloc_v2(CUdeviceptr* out, size_t bytes) {
  if (bytes == 0) return refuse(INVALID_VALUE, "an allocation of no bytes");
  std::unique_lock<std::mutex> held(lock);
  void* p = bytes <= total() - used ? aligned(bytes) : nullptr;
  if (!p) {
    const std::string room = std::to_string(total() - used) + " of " + std::to_string(total());
    held.unlock();
    return refuse(OUT_OF_MEMORY, "out of memory: " + std::to_string(bytes) +
                                     " bytes wanted, free are " + room);
  }
  *out = reinterpret_cast<CUdeviceptr>(p);
  device_memory[*out] = bytes;
  used += bytes;
  if (used > peak) {
    peak = used;
    log_peak();
  }
  held.unlock();
  std::memset(p, 0xff, bytes);
  return SUCCESS;
}
API cuMemFree_v2(CUdeviceptr p) {
  if (p == 0) return SUCCESS;
  std::unique_lock<std::mutex> held(lock);
  const auto found = device_memory.find(p);
  if (found == device_memory.end()) {
    held.unlock();
    return refuse(INVALID_VALUE, "free of memory that is not allocated (freed twice?)");
  }
  const size_t bytes = found->second;
  used -= bytes;
  device_memory.erase(found);
  held.unlock();
  std::memset(reinterpret_cast<void*>(p), 0xff, bytes);
  free(reinterpret_cast<void*>(p));
  return SUCCESS;
}
API cuMemAllocAsync(CUdeviceptr* out, size_t bytes, void* stream) {
  if (!is_stream(stream)) return no_stream();
  *out = 0;
  return bytes ? cuMemAlloc_v2(out, bytes) : SUCCESS;
}
API cuMemFreeAsync(CUdeviceptr p, void* stream) {
  return is_stream(stream) ? cuMemFree_v2(p) : no_stream();
}

// ---- the pool that cuMemAllocAsync allocates from; it gives freed memory back at once

namespace {
int pool;  // its handle is the address of this
uint64_t release_threshold = 0;
enum PoolAttribute { RELEASE_THRESHOLD = 4, RESERVED, RESERVED_HIGH, USED, USED_HIGH };
}  // namespace
API cuDeviceGetDefaultMemPool(void** out, int) {
  *out = &pool;
  return SUCCESS;
}
API cuDeviceGetMemPool(void** out, int device) { return cuDeviceGetDefaultMemPool(out, device); }
API cuMemPoolSetAttribute(void*, int attribute, void* value) {
  if (attribute == RELEASE_THRESHOLD) release_threshold = *static_cast<uint64_t*>(value);
  return SUCCESS;
}
API cuMemPoolGetAttribute(void*, int attribute, void* value) {
  std::lock_guard<std::mutex> held(lock);
  uint64_t* out = static_cast<uint64_t*>(value);
  switch (attribute) {
    case RELEASE_THRESHOLD: *out = release_threshold; break;
    case RESERVED: case USED: *out = used; break;
    case RESERVED_HIGH: case USED_HIGH: *out = peak; break;
    default: *static_cast<int*>(value) = 1;  // the ways to reuse memory: all allowed
  }
  return SUCCESS;
}
API cuMemPoolTrimTo(void*, size_t) { return SUCCESS; }

// ---- copies

API cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
  if (!within_allocation(to, bytes, "copy to the device")) return INVALID_VALUE;
  std::memcpy(reinterpret_cast<void*>(to), from, bytes);
  return SUCCESS;
}
API cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
  if (!within_allocation(from, bytes, "copy from the device")) return INVALID_VALUE;
  std::memcpy(to, reinterpret_cast<void*>(from), bytes);
  return SUCCESS;
}
API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  if (!within_allocation(from, bytes, "copy on the device from")) return INVALID_VALUE;
  if (!within_allocation(to, bytes, "copy on the device to")) return INVALID_VALUE;
  std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
  return SUCCESS;
}
API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, void* stream) {
  return is_stream(stream) ? cuMemcpyHtoD_v2(to, from, bytes) : no_stream();
}
API cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, void* stream) {
  return is_stream(stream) ? cuMemcpyDtoH_v2(to, from, bytes) : no_stream();
}
API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void* stream) {
  return is_stream(stream) ? cuMemcpyDtoD_v2(to, from, bytes) : no_stream();
}
API cuMemcpyPeerAsync(CUdeviceptr to, void*, CUdeviceptr from, void*, size_t bytes, void* stream) {
  return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}

// ---- fills

namespace {
template <class T>
CUresult fill(CUdeviceptr to, T value, size_t count) {
  if (!within_allocation(to, count * sizeof value, "fill")) return INVALID_VALUE;
  T* p = reinterpret_cast<T*>(to);
  for (size_t i = 0; i < count; i++) p[i] = value;
  return SUCCESS;
}
}  // namespace
API cuMemsetD8_v2(CUdeviceptr to, uint8_t value, size_t count) { return fill(to, value, count); }
API cuMemsetD16_v2(CUdeviceptr to, uint16_t value, size_t count) { return fill(to, value, count); }
API cuMemsetD32_v2(CUdeviceptr to, uint32_t value, size_t count) { return fill(to, value, count); }
API cuMemsetD8Async(CUdeviceptr to, uint8_t value, size_t count, void* stream) {
  return is_stream(stream) ? fill(to, value, count) : no_stream();
}
API cuMemsetD16Async(CUdeviceptr to, uint16_t value, size_t count, void* stream) {
  return is_stream(stream) ? fill(to, value, count) : no_stream();
}
API cuMemsetD32Async(CUdeviceptr to, uint32_t value, size_t count, void* stream) {
  return is_stream(stream) ? fill(to, value, count) : no_stream();
}

// ---- pinned host memory

API cuMemHostAlloc(void** out, size_t bytes, unsigned flags) {
  void* p = aligned(bytes);
  if (!p) return refuse(OUT_OF_MEMORY, "the host has no memory to pin");
  std::memset(p, 0xff, bytes);
  std::lock_guard<std::mutex> held(lock);
  pinned_memory[p] = flags;
  *out = p;
  return SUCCESS;
}
API cuMemAllocHost_v2(void** out, size_t bytes) { return cuMemHostAlloc(out, bytes, 0); }
API cuMemFreeHost(void* p) {
  std::unique_lock<std::mutex> held(lock);
  const bool known = pinned_memory.erase(p);
  held.unlock();
  if (!known) return refuse(INVALID_VALUE, "free of memory that is not pinned");
  free(p);
  return SUCCESS;
}
API cuMemHostGetFlags(unsigned* flags, void* p) {
  std::unique_lock<std::mutex> held(lock);
  const auto found = pinned_memory.find(p);
  const bool known = found != pinned_memory.end();
  if (known) *flags = found->second;
  held.unlock();
  return known ? SUCCESS : refuse(INVALID_VALUE, "not pinned memory");
}
