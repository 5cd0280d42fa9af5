// What the files of the emulated driver share. The emulated device is the CPU: device memory is
// malloc's, work is done before a call returns, and kernels are those compiled with cuda_emu.h.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#define API extern "C" __attribute__((visibility("default"))) CUresult

enum CUresult : int {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  LAUNCH_OUT_OF_RESOURCES = 701,
  LAUNCH_FAILED = 719,
  NOT_SUPPORTED = 801,
};
using CUdeviceptr = uint64_t;

// Remembers why a call fails, for cuGetErrorString; returns the code.
CUresult refuse(CUresult code, const std::string& reason);

// Throws nothing: false and a remembered reason if [p, p+bytes) is not within one live allocation.
bool within_allocation(CUdeviceptr p, size_t bytes, const char* call);
bool is_stream(void* stream);

constexpr int MULTIPROCESSORS = 4;
constexpr int SHARED_DEFAULT = 48 * 1024, SHARED_OPT_IN = 227 * 1024;
