// An emulated NVRTC. The emulated driver's kernels are compiled in already: it accepts any program.
#include <cstddef>
#include <cstring>

#define API extern "C" __attribute__((visibility("default"))) int

namespace {
const char ptx[] = "// emulated";
}  // namespace

API nvrtcVersion(int* major, int* minor) {
  *major = 13;
  *minor = 0;
  return 0;
}
API nvrtcCreateProgram(void** program, const char*, const char*, int, const char* const*,
                       const char* const*) {
  *program = new char;
  return 0;
}
API nvrtcDestroyProgram(void** program) {
  delete static_cast<char*>(*program);
  *program = nullptr;
  return 0;
}
API nvrtcCompileProgram(void*, int, const char* const*) { return 0; }
API nvrtcGetPTXSize(void*, size_t* size) {
  *size = sizeof ptx;
  return 0;
}
API nvrtcGetPTX(void*, char* out) {
  std::memcpy(out, ptx, sizeof ptx);
  return 0;
}
API nvrtcGetCUBINSize(void*, size_t* size) { return nvrtcGetPTXSize(nullptr, size); }
API nvrtcGetCUBIN(void*, char* out) { return nvrtcGetPTX(nullptr, out); }
API nvrtcGetProgramLogSize(void*, size_t* size) {
  *size = 1;
  return 0;
}
API nvrtcGetProgramLog(void*, char* out) {
  *out = 0;
  return 0;
}
