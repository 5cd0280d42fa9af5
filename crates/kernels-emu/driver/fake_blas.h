// Matrix multiplication for the emulated cuBLAS: any of four element types, sums in f32 or f64.
#pragma once
#include <cstdint>
#include <vector>

// cudaDataType's numbers.
enum Type : int { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };

struct Matrix {
  const void* data;
  Type type;
  int64_t ld;
  bool transposed;
};

template <class T>
struct Product {
  int64_t m, n, k;
  T alpha;
  Matrix a, b;
  T beta;
  void* c;
  Type c_type;
  int64_t ldc;
};

// c = alpha·op(a)·op(b) + beta·c, column-major; c is not read where beta is 0.
template <class T>
void multiply(const Product<T>&);
