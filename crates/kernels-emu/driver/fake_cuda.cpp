// The emulated driver's device, contexts, streams, events and errors.
#include "fake_cuda.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>

namespace {
std::mutex lock;
// What has a destructor lives for ever: threads may still call while the process exits.

// ---- errors

auto& reasons = *new std::map<int, std::string>;
auto& given_out = *new std::set<std::string>;  // as the driver's own strings, valid for ever

const char* name_of(int code) {
  switch (code) {
    case SUCCESS: return "CUDA_SUCCESS";
    case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
    case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
    case INVALID_DEVICE: return "CUDA_ERROR_INVALID_DEVICE";
    case INVALID_HANDLE: return "CUDA_ERROR_INVALID_HANDLE";
    case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
    case LAUNCH_OUT_OF_RESOURCES: return "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES";
    case LAUNCH_FAILED: return "CUDA_ERROR_LAUNCH_FAILED";
    case NOT_SUPPORTED: return "CUDA_ERROR_NOT_SUPPORTED";
    default: return "CUDA_ERROR_UNKNOWN";
  }
}

// ---- streams and events

struct Stream { unsigned flags; int priority; };
struct Event { unsigned flags; bool recorded; std::chrono::steady_clock::time_point at; };
auto& streams = *new std::set<Stream*>;
auto& events = *new std::set<Event*>;
constexpr unsigned DISABLE_TIMING = 2;

CUresult new_stream(void** out, unsigned flags, int priority) {
  std::lock_guard<std::mutex> held(lock);
  Stream* s = new Stream{flags, priority};
  streams.insert(s);
  *out = s;
  return SUCCESS;
}
bool is_event(void* event) {
  std::lock_guard<std::mutex> held(lock);
  return events.count(static_cast<Event*>(event));
}
CUresult no_stream() { return refuse(INVALID_HANDLE, "not a live stream"); }
CUresult no_event() { return refuse(INVALID_HANDLE, "not a live event"); }

// There is one context; its handle is the address of this.
int context;
}  // namespace

CUresult refuse(CUresult code, const std::string& reason) {
  std::lock_guard<std::mutex> held(lock);
  reasons[code] = reason;
  return code;
}

bool is_stream(void* stream) {
  // The default stream, and the handles of the legacy and the per-thread one.
  if (reinterpret_cast<uintptr_t>(stream) <= 2) return true;
  std::lock_guard<std::mutex> held(lock);
  return streams.count(static_cast<Stream*>(stream));
}

API cuGetErrorName(int code, const char** out) {
  *out = name_of(code);
  return SUCCESS;
}
API cuGetErrorString(int code, const char** out) {
  std::lock_guard<std::mutex> held(lock);
  const auto found = reasons.find(code);
  *out = given_out.insert(found == reasons.end() ? name_of(code) : found->second).first->c_str();
  return SUCCESS;
}

// ---- device

// As with the real driver, an empty CUDA_VISIBLE_DEVICES hides what there is.
API cuInit(unsigned) {
  const char* visible = getenv("CUDA_VISIBLE_DEVICES");
  return visible && !*visible ? NO_DEVICE : SUCCESS;
}
API cuDriverGetVersion(int* version) {
  *version = 13000;
  return SUCCESS;
}
API cuDeviceGetCount(int* n) {
  *n = 1;
  return SUCCESS;
}
API cuDeviceGet(int* device, int ordinal) {
  if (ordinal != 0) return refuse(INVALID_DEVICE, "the emulation has one device");
  *device = 0;
  return SUCCESS;
}
API cuDeviceGetName(char* out, int size, int) {
  snprintf(out, size_t(size), "CPU emulation");
  return SUCCESS;
}
API cuDeviceGetUuid_v2(char* out, int) {
  std::memcpy(out, "CPU emulation  0", 16);
  return SUCCESS;
}
API cuDeviceGetUuid(char* out, int device) { return cuDeviceGetUuid_v2(out, device); }
API cuDeviceGetAttribute(int* out, int attribute, int) {
  switch (attribute) {
    case 1: case 2: case 3: *out = 1024; break;        // threads per block, block's x, y
    case 4: *out = 64; break;                          // block's z
    case 5: *out = 0x7fffffff; break;                  // grid's x
    case 6: case 7: *out = 65535; break;               // grid's y, z
    case 8: *out = SHARED_DEFAULT; break;              // shared memory per block
    case 10: *out = 32; break;                         // warp size
    case 12: case 82: *out = 65536; break;             // registers per block, per multiprocessor
    case 13: *out = 1000000; break;                    // clock, kHz
    case 16: *out = MULTIPROCESSORS; break;
    case 36: *out = 1000000; break;                    // memory clock, kHz
    case 37: *out = 64; break;                         // memory bus, bits
    case 38: *out = 1 << 20; break;                    // L2 cache
    case 39: *out = 2048; break;                       // threads per multiprocessor
    case 75: *out = 9; break;                          // compute capability
    case 76: *out = 0; break;
    case 81: *out = 228 * 1024; break;                 // shared memory per multiprocessor
    case 97: *out = SHARED_OPT_IN; break;              // shared memory per block, asked for
    case 106: *out = 32; break;                        // blocks per multiprocessor
    case 111: *out = 1024; break;                      // shared memory kept by the system
    case 19: case 31: case 40: case 41: case 78: case 95: case 99: case 115: *out = 1; break;
    default: *out = 0;
  }
  return SUCCESS;
}

// ---- contexts

API cuDevicePrimaryCtxRetain(void** out, int) {
  *out = &context;
  return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
API cuCtxGetCurrent(void** out) {
  *out = &context;
  return SUCCESS;
}
API cuCtxSetCurrent(void*) { return SUCCESS; }
API cuCtxDestroy_v2(void*) { return SUCCESS; }
API cuCtxGetDevice(int* device) {
  *device = 0;
  return SUCCESS;
}
API cuCtxSynchronize() { return SUCCESS; }
API cuCtxSetFlags(unsigned) { return SUCCESS; }
API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return SUCCESS;
}

// ---- streams

API cuStreamCreate(void** out, unsigned flags) { return new_stream(out, flags, 0); }
API cuStreamCreateWithPriority(void** out, unsigned flags, int priority) {
  return new_stream(out, flags, priority);
}
API cuStreamDestroy_v2(void* stream) {
  std::unique_lock<std::mutex> held(lock);
  const bool known = streams.erase(static_cast<Stream*>(stream));
  held.unlock();
  if (!known) return no_stream();
  delete static_cast<Stream*>(stream);
  return SUCCESS;
}
API cuStreamSynchronize(void* stream) { return is_stream(stream) ? SUCCESS : no_stream(); }
API cuStreamQuery(void* stream) { return is_stream(stream) ? SUCCESS : no_stream(); }
API cuStreamWaitEvent(void* stream, void* event, unsigned) {
  if (!is_stream(stream)) return no_stream();
  return is_event(event) ? SUCCESS : no_event();
}
API cuStreamIsCapturing(void* stream, int* status) {
  *status = 0;
  return is_stream(stream) ? SUCCESS : no_stream();
}
API cuLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
  if (!is_stream(stream)) return no_stream();
  function(data);
  return SUCCESS;
}

// ---- events

API cuEventCreate(void** out, unsigned flags) {
  std::lock_guard<std::mutex> held(lock);
  Event* e = new Event{flags, false, {}};
  events.insert(e);
  *out = e;
  return SUCCESS;
}
API cuEventDestroy_v2(void* event) {
  std::unique_lock<std::mutex> held(lock);
  const bool known = events.erase(static_cast<Event*>(event));
  held.unlock();
  if (!known) return no_event();
  delete static_cast<Event*>(event);
  return SUCCESS;
}
API cuEventRecord(void* event, void* stream) {
  if (!is_stream(stream)) return no_stream();
  if (!is_event(event)) return no_event();
  Event* e = static_cast<Event*>(event);
  e->recorded = true;
  e->at = std::chrono::steady_clock::now();
  return SUCCESS;
}
API cuEventSynchronize(void* event) { return is_event(event) ? SUCCESS : no_event(); }
API cuEventQuery(void* event) { return is_event(event) ? SUCCESS : no_event(); }
API cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
  if (!is_event(start) || !is_event(end)) return no_event();
  const Event *a = static_cast<Event*>(start), *b = static_cast<Event*>(end);
  if (!a->recorded || !b->recorded || ((a->flags | b->flags) & DISABLE_TIMING))
    return refuse(INVALID_HANDLE, "events that were not recorded with timing");
  *milliseconds = std::chrono::duration<float, std::milli>(b->at - a->at).count();
  return SUCCESS;
}
API cuEventElapsedTime(float* milliseconds, void* start, void* end) {
  return cuEventElapsedTime_v2(milliseconds, start, end);
}
