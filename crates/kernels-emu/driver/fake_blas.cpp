// An emulated cuBLAS: what candle and the project's linear algebra call, computed on the CPU before
// the call returns. Reduced-precision compute types (TF32, BF16) are computed in f32.
#include "fake_blas.h"

#include <cstdio>

#include "cuda_fp16.h"

#define API extern "C" __attribute__((visibility("default"))) int

namespace {
constexpr int SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15;
constexpr int OP_N = 0;

struct Handle {
  void* stream = nullptr;
  int math_mode = 0, pointer_mode = 0;
};
Handle* of(void* handle) { return static_cast<Handle*>(handle); }

// cublasComputeType_t
bool in_f16(int compute) { return compute == 64 || compute == 65; }
bool in_f64(int compute) { return compute == 70 || compute == 71; }
bool in_f32(int compute) {
  return compute == 68 || compute == 69 || (compute >= 74 && compute <= 77);
}

size_t size_of(Type type) { return type == F64 ? 8 : type == F32 ? 4 : 2; }
bool known(int type) { return type == F32 || type == F64 || type == F16 || type == BF16; }
}  // namespace

// Of the emulated driver, where it is loaded: whether an operand lies within one allocation.
extern "C" __attribute__((weak)) int emu_within_allocation(const void*, size_t, const char*);

namespace {
bool fits(const void* data, Type type, int64_t rows, int64_t columns, int64_t ld, int64_t stride,
          int batch, const char* call) {
  if (ld < (rows > 1 ? rows : 1)) {
    fprintf(stderr, "%s: leading dimension %lld below %lld\n", call, (long long)ld,
            (long long)rows);
    return false;
  }
  if (rows == 0 || columns == 0 || batch == 0 || !emu_within_allocation) return true;
  const int64_t elements = (columns - 1) * ld + rows + (batch - 1) * stride;
  if (emu_within_allocation(data, size_t(elements) * size_of(type), call)) return true;
  fprintf(stderr, "%s: an operand leaves its allocation\n", call);
  return false;
}

struct Batch {
  int count;
  int64_t a, b, c;  // elements from one matrix to the next
};

template <class T>
int gemm(Product<T> p, const Batch& batch, const char* call) {
  if (p.m < 0 || p.n < 0 || p.k < 0 || batch.count < 0) return INVALID_VALUE;
  const int64_t a_rows = p.a.transposed ? p.k : p.m, a_columns = p.a.transposed ? p.m : p.k;
  const int64_t b_rows = p.b.transposed ? p.n : p.k, b_columns = p.b.transposed ? p.k : p.n;
  const int q = batch.count;
  if (!fits(p.a.data, p.a.type, a_rows, a_columns, p.a.ld, batch.a, q, call) ||
      !fits(p.b.data, p.b.type, b_rows, b_columns, p.b.ld, batch.b, q, call) ||
      !fits(p.c, p.c_type, p.m, p.n, p.ldc, batch.c, q, call))
    return INVALID_VALUE;
  for (int i = 0; i < q; i++) {
    Product<T> one = p;
    one.a.data = static_cast<const char*>(p.a.data) + i * batch.a * int64_t(size_of(p.a.type));
    one.b.data = static_cast<const char*>(p.b.data) + i * batch.b * int64_t(size_of(p.b.type));
    one.c = static_cast<char*>(p.c) + i * batch.c * int64_t(size_of(p.c_type));
    multiply(one);
  }
  return SUCCESS;
}

template <class T>
int gemm_of(int op_a, int op_b, int m, int n, int k, const T* alpha, const T* a, int lda,
            const T* b, int ldb, const T* beta, T* c, int ldc, const Batch& batch,
            const char* call) {
  const Type type = sizeof(T) == 8 ? F64 : F32;
  return gemm<T>({m, n, k, *alpha, {a, type, lda, op_a != OP_N}, {b, type, ldb, op_b != OP_N},
                  *beta, c, type, ldc}, batch, call);
}

// Solves op(a)·x = alpha·b, or x·op(a) = alpha·b, in b's place.
template <class T>
int trsm(int side, int uplo, int op, int diagonal, int m, int n, const T* alpha, const T* a,
         int lda, T* b, int ldb, const char* call) {
  const bool right = side == 1, unit = diagonal == 1;
  const int order = right ? n : m;
  const Type type = sizeof(T) == 8 ? F64 : F32;
  if (m < 0 || n < 0) return INVALID_VALUE;
  if (!fits(a, type, order, order, lda, 0, 1, call) || !fits(b, type, m, n, ldb, 0, 1, call))
    return INVALID_VALUE;
  // x·op(a) = b is op(a)^T·x^T = b^T: the right side is the left one with rows for columns.
  const int64_t row_step = right ? ldb : 1, column_step = right ? 1 : ldb;
  const bool transposed = (op != OP_N) != right;
  const bool upper = (uplo == 1) != transposed;  // of the matrix that is solved with
  auto at = [&](int64_t i, int64_t j) { return transposed ? a[j + i * lda] : a[i + j * lda]; };
  for (int64_t column = 0; column < (right ? m : n); column++) {
    T* x = b + column * column_step;
    for (int64_t step = 0; step < order; step++) {
      const int64_t i = upper ? order - 1 - step : step;
      T sum = *alpha * x[i * row_step];
      for (int64_t j = upper ? i + 1 : 0; j < (upper ? order : i); j++)
        sum -= at(i, j) * x[j * row_step];
      x[i * row_step] = unit ? sum : sum / at(i, i);
    }
  }
  return SUCCESS;
}
}  // namespace

// ---- handles and their settings

API cublasCreate_v2(void** handle) {
  *handle = new Handle;
  return SUCCESS;
}
API cublasDestroy_v2(void* handle) {
  delete of(handle);
  return SUCCESS;
}
API cublasGetVersion_v2(void*, int* version) {
  *version = 130000;
  return SUCCESS;
}
API cublasSetStream_v2(void* handle, void* stream) {
  of(handle)->stream = stream;
  return SUCCESS;
}
API cublasGetStream_v2(void* handle, void** stream) {
  *stream = of(handle)->stream;
  return SUCCESS;
}
API cublasSetWorkspace_v2(void*, void*, size_t) { return SUCCESS; }
API cublasSetMathMode(void* handle, int mode) {
  of(handle)->math_mode = mode;
  return SUCCESS;
}
API cublasGetMathMode(void* handle, int* mode) {
  *mode = of(handle)->math_mode;
  return SUCCESS;
}
API cublasSetPointerMode_v2(void* handle, int mode) {
  of(handle)->pointer_mode = mode;
  return SUCCESS;
}
API cublasGetPointerMode_v2(void* handle, int* mode) {
  *mode = of(handle)->pointer_mode;
  return SUCCESS;
}
API cublasSetAtomicsMode(void*, int) { return SUCCESS; }

// ---- products

API cublasGemmStridedBatchedEx(void*, int op_a, int op_b, int m, int n, int k, const void* alpha,
                               const void* a, int a_type, int lda, long long stride_a,
                               const void* b, int b_type, int ldb, long long stride_b,
                               const void* beta, void* c, int c_type, int ldc, long long stride_c,
                               int count, int compute, int) {
  const char* call = "cublasGemmStridedBatchedEx";
  if (!known(a_type) || !known(b_type) || !known(c_type)) return NOT_SUPPORTED;
  const Matrix left{a, Type(a_type), lda, op_a != OP_N}, right{b, Type(b_type), ldb, op_b != OP_N};
  const Batch batch{count, stride_a, stride_b, stride_c};
  if (in_f64(compute)) {
    const double scale = *static_cast<const double*>(alpha);
    const double keep = *static_cast<const double*>(beta);
    return gemm<double>({m, n, k, scale, left, right, keep, c, Type(c_type), ldc}, batch, call);
  }
  if (!in_f32(compute) && !in_f16(compute)) return NOT_SUPPORTED;
  // The scalars have the type that is computed in.
  auto scalar = [&](const void* p) {
    return in_f16(compute) ? float(*static_cast<const __half*>(p)) : *static_cast<const float*>(p);
  };
  return gemm<float>(
      {m, n, k, scalar(alpha), left, right, scalar(beta), c, Type(c_type), ldc}, batch, call);
}
API cublasGemmEx(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha,
                 const void* a, int a_type, int lda, const void* b, int b_type, int ldb,
                 const void* beta, void* c, int c_type, int ldc, int compute, int algorithm) {
  return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, a_type, lda, 0, b,
                                    b_type, ldb, 0, beta, c, c_type, ldc, 0, 1, compute, algorithm);
}
API cublasSgemm_v2(void*, int op_a, int op_b, int m, int n, int k, const float* alpha,
                   const float* a, int lda, const float* b, int ldb, const float* beta, float* c,
                   int ldc) {
  return gemm_of(op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, {1, 0, 0, 0},
                 "cublasSgemm");
}
API cublasDgemm_v2(void*, int op_a, int op_b, int m, int n, int k, const double* alpha,
                   const double* a, int lda, const double* b, int ldb, const double* beta,
                   double* c, int ldc) {
  return gemm_of(op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, {1, 0, 0, 0},
                 "cublasDgemm");
}
API cublasSgemmStridedBatched(void*, int op_a, int op_b, int m, int n, int k, const float* alpha,
                              const float* a, int lda, long long stride_a, const float* b, int ldb,
                              long long stride_b, const float* beta, float* c, int ldc,
                              long long stride_c, int count) {
  return gemm_of(op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc,
                 {count, stride_a, stride_b, stride_c}, "cublasSgemmStridedBatched");
}
API cublasDgemmStridedBatched(void*, int op_a, int op_b, int m, int n, int k, const double* alpha,
                              const double* a, int lda, long long stride_a, const double* b,
                              int ldb, long long stride_b, const double* beta, double* c, int ldc,
                              long long stride_c, int count) {
  return gemm_of(op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc,
                 {count, stride_a, stride_b, stride_c}, "cublasDgemmStridedBatched");
}

// ---- triangular systems

API cublasStrsm_v2(void*, int side, int uplo, int op, int diagonal, int m, int n,
                   const float* alpha, const float* a, int lda, float* b, int ldb) {
  return trsm(side, uplo, op, diagonal, m, n, alpha, a, lda, b, ldb, "cublasStrsm");
}
API cublasDtrsm_v2(void*, int side, int uplo, int op, int diagonal, int m, int n,
                   const double* alpha, const double* a, int lda, double* b, int ldb) {
  return trsm(side, uplo, op, diagonal, m, n, alpha, a, lda, b, ldb, "cublasDtrsm");
}
