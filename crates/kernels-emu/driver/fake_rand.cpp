// An emulated cuRAND: candle makes a generator for every device. Uniform numbers in (0, 1], normal
// ones by Box and Muller; not NVIDIA's sequences.
#include <cmath>
#include <cstddef>
#include <random>

#define API extern "C" __attribute__((visibility("default"))) int

namespace {
using Generator = std::mt19937_64;
Generator& of(void* generator) { return *static_cast<Generator*>(generator); }
double uniform(Generator& g) { return double((g() >> 11) + 1) * 0x1p-53; }

template <class T>
int fill_uniform(void* generator, T* out, size_t n) {
  for (size_t i = 0; i < n; i++) out[i] = T(uniform(of(generator)));
  return 0;
}
template <class T>
int fill_normal(void* generator, T* out, size_t n, T mean, T deviation) {
  for (size_t i = 0; i < n; i++) {
    const double radius = std::sqrt(-2 * std::log(uniform(of(generator))));
    out[i] = mean + deviation * T(radius * std::cos(2 * M_PI * uniform(of(generator))));
  }
  return 0;
}
}  // namespace

API curandCreateGenerator(void** generator, int) {
  *generator = new Generator;
  return 0;
}
API curandDestroyGenerator(void* generator) {
  delete static_cast<Generator*>(generator);
  return 0;
}
API curandSetStream(void*, void*) { return 0; }
API curandSetPseudoRandomGeneratorSeed(void* generator, unsigned long long seed) {
  of(generator).seed(seed);
  return 0;
}
API curandGenerateUniform(void* g, float* out, size_t n) { return fill_uniform(g, out, n); }
API curandGenerateUniformDouble(void* g, double* out, size_t n) { return fill_uniform(g, out, n); }
API curandGenerateNormal(void* g, float* out, size_t n, float mean, float deviation) {
  return fill_normal(g, out, n, mean, deviation);
}
API curandGenerateNormalDouble(void* g, double* out, size_t n, double mean, double deviation) {
  return fill_normal(g, out, n, mean, deviation);
}
