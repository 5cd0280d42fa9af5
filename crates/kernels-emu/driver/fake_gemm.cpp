// The multiplication itself: both operands are packed into panels of a tile's height, and each tile
// of the result is summed in registers over the whole of k, in order.
#include <algorithm>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "fake_blas.h"

namespace {
constexpr int64_t TILE_M = 16, TILE_N = 4;

template <class T>
T load(const void* data, Type type, int64_t i) {
  switch (type) {
    case F32: return T(static_cast<const float*>(data)[i]);
    case F64: return T(static_cast<const double*>(data)[i]);
    case F16: return T(float(static_cast<const __half*>(data)[i]));
    default: return T(float(static_cast<const __nv_bfloat16*>(data)[i]));
  }
}
template <class T>
void store(void* data, Type type, int64_t i, T v) {
  switch (type) {
    case F32: static_cast<float*>(data)[i] = float(v); break;
    case F64: static_cast<double*>(data)[i] = double(v); break;
    case F16: static_cast<__half*>(data)[i] = __half(v); break;
    default: static_cast<__nv_bfloat16*>(data)[i] = __nv_bfloat16(v);
  }
}

// Panels of `height` rows, each [k][height]; the last is filled up with zeros. Row r, place l of
// the operand is at r*row_step + l*k_step.
template <class T>
std::vector<T> pack(const void* data, Type type, int64_t rows, int64_t k, int64_t row_step,
                    int64_t k_step, int64_t height) {
  const int64_t panels = (rows + height - 1) / height;
  std::vector<T> packed(size_t(panels * height * k));
  for (int64_t panel = 0; panel < panels; panel++) {
    T* to = packed.data() + panel * height * k;
    const int64_t first = panel * height, count = std::min(height, rows - first);
    for (int64_t l = 0; l < k; l++)
      for (int64_t r = 0; r < count; r++)
        to[l * height + r] = load<T>(data, type, (first + r) * row_step + l * k_step);
  }
  return packed;
}

template <class T>
void tile(const T* a, const T* b, int64_t k, T (&sum)[TILE_N][TILE_M]) {
  T s[TILE_N][TILE_M] = {};
  for (int64_t l = 0; l < k; l++, a += TILE_M, b += TILE_N)
    for (int j = 0; j < TILE_N; j++)
      for (int i = 0; i < TILE_M; i++) s[j][i] += a[i] * b[j];
  std::copy(&s[0][0], &s[0][0] + TILE_N * TILE_M, &sum[0][0]);
}
}  // namespace

template <class T>
void multiply(const Product<T>& p) {
  const Matrix &a = p.a, &b = p.b;
  const auto left = pack<T>(a.data, a.type, p.m, p.k, a.transposed ? a.ld : 1,
                            a.transposed ? 1 : a.ld, TILE_M);
  const auto right = pack<T>(b.data, b.type, p.n, p.k, b.transposed ? 1 : b.ld,
                             b.transposed ? b.ld : 1, TILE_N);
  T sum[TILE_N][TILE_M];
  for (int64_t j0 = 0; j0 < p.n; j0 += TILE_N) {
    for (int64_t i0 = 0; i0 < p.m; i0 += TILE_M) {
      tile(left.data() + i0 * p.k, right.data() + j0 * p.k, p.k, sum);
      for (int64_t j = j0; j < std::min(j0 + TILE_N, p.n); j++) {
        for (int64_t i = i0; i < std::min(i0 + TILE_M, p.m); i++) {
          const int64_t at = i + j * p.ldc;
          const T old = p.beta == 0 ? 0 : p.beta * load<T>(p.c, p.c_type, at);
          store(p.c, p.c_type, at, p.alpha * sum[j - j0][i - i0] + old);
        }
      }
    }
  }
}
template void multiply(const Product<float>&);
template void multiply(const Product<double>&);
