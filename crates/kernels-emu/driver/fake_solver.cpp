// libcusolver.so.12 for machines without a GPU: the routines that bantam calls, really computed, by
// textbook methods in plain loops over column-major matrices.
//
//   cusolverDnXsyevd   Householder tridiagonalisation, then implicit QL
//   cusolverDnXgesvd   one-sided Jacobi rotations of the columns
//   cusolverDnXgeqrf   Householder reflections, one column at a time
//   cusolverDn?orgqr   their product, from the last to the first
//   cusolverDnXpotrf   column by column
//
// Arguments, jobs, status and info are those of NVIDIA's documentation; "device" memory is host
// memory here and every call is finished when it returns. What the documentation leaves undefined
// is spoiled on purpose, so that a caller who relies on it fails here too: workspace is
// overwritten, and a matrix that is not part of the result is filled with NaN.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) int

namespace {

enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 3, NOT_SUPPORTED = 9 };
enum Type { F32 = 0, F64 = 1 };
enum Job { NO_VECTORS = 0, VECTORS = 1 };
enum Fill { LOWER = 0, UPPER = 1 };

struct Handle {
  void* stream;
};
struct Params {};

// Every workspace is this much larger than nothing, and more for larger matrices, so that a caller
// who mixes up two sizes, or asks before it knows its dimensions, is refused.
size_t device_bytes(int64_t m, int64_t n) { return 256 + 8 * size_t(m + 3 * n); }
constexpr size_t HOST_BYTES = 200;

bool is_type(int type) { return type == F32 || type == F64; }

// Whether the workspace is as large as was asked for; it then holds rubbish, as after real use.
bool takes(void* device, size_t device_size, void* host, size_t host_size, int64_t m, int64_t n) {
  if (!device || device_size < device_bytes(m, n) || !host || host_size < HOST_BYTES) return false;
  memset(device, 0xff, device_bytes(m, n));
  memset(host, 0xff, HOST_BYTES);
  return true;
}

// A view of a column-major matrix.
template <typename T> struct Matrix {
  T* data;
  int64_t lead;
  T& operator()(int64_t i, int64_t j) const { return data[i + j * lead]; }
  T* column(int64_t j) const { return data + j * lead; }
};

template <typename T> T dot(const T* x, const T* y, int64_t n) {
  T sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
  return sum;
}

template <typename T> void add(T* y, T factor, const T* x, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] += factor * x[i];
}

// The norm of x, for entries of any magnitude.
template <typename T> T norm(const T* x, int64_t n) {
  T largest = 0;
  for (int64_t i = 0; i < n; i++) largest = std::max(largest, std::abs(x[i]));
  if (largest == 0) return 0;
  T sum = 0;
  for (int64_t i = 0; i < n; i++) sum += (x[i] / largest) * (x[i] / largest);
  return largest * std::sqrt(sum);
}

template <typename T> void spoil(Matrix<T> a, int64_t m, int64_t n) {
  for (int64_t j = 0; j < n; j++) std::fill_n(a.column(j), m, std::numeric_limits<T>::quiet_NaN());
}

// Makes x the reflection H = I - tau v v^T with v[0] = 1 for which H x = (beta, 0, ..., 0): v[1..]
// and beta replace x. Returns tau.
template <typename T> T reflect(T* x, int64_t n) {
  T rest = norm(x + 1, n - 1);
  if (rest == 0) return 0;
  T beta = -std::copysign(std::hypot(x[0], rest), x[0]), pivot = x[0] - beta;
  T tau = (beta - x[0]) / beta;
  for (int64_t i = 1; i < n; i++) x[i] /= pivot;
  x[0] = beta;
  return tau;
}

// y = H y for the reflection whose v[1..] is at v + 1.
template <typename T> void apply(const T* v, T tau, T* y, int64_t n) {
  T along = tau * (y[0] + dot(v + 1, y + 1, n - 1));
  y[0] -= along;
  add(y + 1, -along, v + 1, n - 1);
}

template <typename T> void geqrf(Matrix<T> a, int64_t m, int64_t n, T* tau) {
  for (int64_t j = 0; j < std::min(m, n); j++) {
    tau[j] = reflect(&a(j, j), m - j);
    for (int64_t k = j + 1; k < n; k++) apply(&a(j, j), tau[j], &a(j, k), m - j);
  }
}

// The first n columns of the product of the first k reflections.
template <typename T> void orgqr(Matrix<T> a, int64_t m, int64_t n, int64_t k, const T* tau) {
  for (int64_t j = k; j < n; j++) {
    std::fill_n(a.column(j), m, T(0));
    a(j, j) = 1;
  }
  std::vector<T> v(m);
  for (int64_t j = k - 1; j >= 0; j--) {
    std::copy_n(&a(j, j), m - j, v.data());
    std::fill_n(a.column(j), m, T(0));
    a(j, j) = 1;
    for (int64_t c = j; c < n; c++) apply(v.data(), tau[j], &a(j, c), m - j);
  }
}

template <typename T> int potrf(Matrix<T> a, int64_t n, bool upper) {
  auto l = [&](int64_t i, int64_t j) -> T& { return upper ? a(j, i) : a(i, j); };
  for (int64_t j = 0; j < n; j++) {
    for (int64_t i = j; i < n; i++) {
      T sum = l(i, j);
      for (int64_t k = 0; k < j; k++) sum -= l(i, k) * l(j, k);
      if (i > j) {
        l(i, j) = sum / l(j, j);
      } else if (sum > 0) {
        l(j, j) = std::sqrt(sum);
      } else {
        return int(j + 1);
      }
    }
  }
  return 0;
}

// Reduces the symmetric a to the tridiagonal Q^T a Q with diagonal d and off-diagonal e[0 .. n-2].
// Q replaces a.
template <typename T> void tridiagonalise(Matrix<T> a, int64_t n, T* d, T* e) {
  std::vector<T> tau(n), p(n), v(n);
  for (int64_t j = 0; j + 1 < n; j++) {
    int64_t size = n - j - 1;
    T* x = &a(j + 1, j);
    tau[j] = reflect(x, size);
    d[j] = a(j, j);
    e[j] = x[0];
    if (tau[j] == 0) continue;
    std::copy_n(x, size, v.data());
    v[0] = 1;
    // A = H A H = A - v w^T - w v^T with w = tau (A v - tau/2 (v^T A v) v), all of A kept.
    std::fill_n(p.data(), size, T(0));
    for (int64_t k = 0; k < size; k++) add(p.data(), tau[j] * v[k], &a(j + 1, j + 1 + k), size);
    add(p.data(), T(-0.5) * tau[j] * dot(p.data(), v.data(), size), v.data(), size);
    for (int64_t k = 0; k < size; k++) {
      add(&a(j + 1, j + 1 + k), -p[k], v.data(), size);
      add(&a(j + 1, j + 1 + k), -v[k], p.data(), size);
    }
  }
  d[n - 1] = a(n - 1, n - 1);
  // The reflections lie one row below the diagonal: shift them right, so that Q = diag(1, Q').
  for (int64_t j = n - 1; j > 0; j--) {
    std::copy_n(&a(j, j - 1), n - j, &a(j, j));
    a(0, j) = 0;
  }
  std::fill_n(a.column(0), n, T(0));
  a(0, 0) = 1;
  if (n > 1) orgqr(Matrix<T>{&a(1, 1), a.lead}, n - 1, n - 1, n - 1, tau.data());
}

// Diagonalises a tridiagonal matrix by QL with implicit shifts; q's columns are rotated along where
// there is a q. Returns the number of off-diagonal entries that did not vanish.
template <typename T> int ql(T* d, T* e, Matrix<T>* q, int64_t n) {
  // Against the whole matrix, not the neighbours: a cluster of zeros has only rounding errors.
  T negligible = 0;
  for (int64_t i = 0; i < n; i++)
    negligible = std::max(negligible, std::abs(d[i]) + (i + 1 < n ? std::abs(e[i]) : 0));
  negligible *= std::numeric_limits<T>::epsilon() / 2;
  for (int64_t l = 0; l < n; l++) {
    for (int step = 0;; step++) {
      int64_t m = l;
      while (m + 1 < n && std::abs(e[m]) > negligible) m++;
      if (m == l) break;
      if (step == 60) return int(n - l);
      T g = (d[l + 1] - d[l]) / (2 * e[l]), r = std::hypot(g, T(1));
      g = d[m] - d[l] + e[l] / (g + std::copysign(r, g));
      T s = 1, c = 1, p = 0;
      int64_t i = m - 1;
      for (; i >= l; i--) {
        T f = s * e[i], b = c * e[i];
        r = std::hypot(f, g);
        e[i + 1] = r;
        if (r == 0) {
          d[i + 1] -= p;
          e[m] = 0;
          break;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1] - p;
        r = (d[i] - g) * s + 2 * c * b;
        p = s * r;
        d[i + 1] = g + p;
        g = c * r - b;
        if (!q) continue;
        T *x = q->column(i), *y = q->column(i + 1);
        for (int64_t k = 0; k < n; k++) {
          T t = y[k];
          y[k] = s * x[k] + c * t;
          x[k] = c * x[k] - s * t;
        }
      }
      if (r == 0 && i >= l) continue;
      d[l] -= p;
      e[l] = g;
      e[m] = 0;
    }
  }
  return 0;
}

template <typename T> int syevd(Matrix<T> a, int64_t n, bool vectors, bool upper, T* w) {
  for (int64_t j = 0; j < n; j++)
    for (int64_t i = j + 1; i < n; i++) upper ? a(i, j) = a(j, i) : a(j, i) = a(i, j);
  std::vector<T> e(n + 1);
  tridiagonalise(a, n, w, e.data());
  if (int left = ql(w, e.data(), vectors ? &a : nullptr, n)) return left;
  if (!vectors) {
    std::sort(w, w + n);
    spoil(a, n, n);
    return 0;
  }
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return w[i] < w[j]; });
  std::vector<T> values(w, w + n), columns(n * n);
  for (int64_t j = 0; j < n; j++) std::copy_n(a.column(j), n, &columns[j * n]);
  for (int64_t j = 0; j < n; j++) {
    w[j] = values[order[j]];
    std::copy_n(&columns[order[j] * n], n, a.column(j));
  }
  return 0;
}

// Fills columns from .. to of q [m, to] so that all are orthonormal, given that the first are.
template <typename T> void complete(Matrix<T> q, int64_t m, int64_t from, int64_t to) {
  int64_t axis = 0;
  for (int64_t j = from; j < to; axis++) {
    T* x = q.column(j);
    std::fill_n(x, m, T(0));
    x[axis % m] = 1;
    // Twice is enough for orthogonality to rounding.
    for (int pass = 0; pass < 2; pass++)
      for (int64_t k = 0; k < j; k++) add(x, -dot(q.column(k), x, m), q.column(k), m);
    T length = norm(x, m);
    // Of m axes at least one lies this far outside the span of fewer than m vectors.
    if (length < T(0.5) / std::sqrt(T(m))) continue;
    for (int64_t i = 0; i < m; i++) x[i] /= length;
    j++;
  }
}

// A = U diag(s) V^T with m >= n. The columns of a copy of A are rotated until they are orthogonal;
// their lengths are the singular values. u gets `left` columns, vt `right` rows.
template <typename T> int gesvd(Matrix<T> a, int64_t m, int64_t n, T* s, Matrix<T> u, int64_t left,
                                Matrix<T> vt, int64_t right) {
  const T tolerance = std::numeric_limits<T>::epsilon() * std::sqrt(T(m));
  T largest = 0;
  for (int64_t j = 0; j < n; j++) largest = std::max(largest, norm(a.column(j), m));
  std::vector<T> work(m * n), rotations(n * n), squares(n);
  Matrix<T> b{work.data(), m}, v{rotations.data(), n};
  for (int64_t j = 0; j < n; j++) {
    for (int64_t i = 0; i < m; i++) b(i, j) = largest > 0 ? a(i, j) / largest : 0;
    v(j, j) = 1;
  }
  int turned = 1;
  for (int sweep = 0; turned && sweep < 60; sweep++) {
    turned = 0;
    for (int64_t j = 0; j < n; j++) squares[j] = dot(b.column(j), b.column(j), m);
    for (int64_t p = 0; p < n; p++) {
      for (int64_t q = p + 1; q < n; q++) {
        T *x = b.column(p), *y = b.column(q);
        T xy = dot(x, y, m), xx = squares[p], yy = squares[q];
        if (std::abs(xy) <= tolerance * std::sqrt(xx) * std::sqrt(yy)) continue;
        turned++;
        T zeta = (yy - xx) / (2 * xy);
        T t = std::copysign(T(1), zeta) / (std::abs(zeta) + std::hypot(T(1), zeta));
        T c = 1 / std::sqrt(1 + t * t), sn = c * t;
        auto turn = [&](T* x, T* y, int64_t n) {
          for (int64_t i = 0; i < n; i++) {
            T left = x[i];
            x[i] = c * left - sn * y[i];
            y[i] = sn * left + c * y[i];
          }
        };
        turn(x, y, m);
        turn(v.column(p), v.column(q), n);
        squares[p] = dot(x, x, m);
        squares[q] = dot(y, y, m);
      }
    }
  }
  if (turned) return turned;
  std::vector<T> lengths(n);
  for (int64_t j = 0; j < n; j++) lengths[j] = norm(b.column(j), m);
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t i, int64_t j) { return lengths[i] > lengths[j]; });
  spoil(a, m, n);
  int64_t rank = 0;
  for (int64_t j = 0; j < n; j++) {
    T length = lengths[order[j]];
    s[j] = length * largest;
    if (length > std::numeric_limits<T>::min()) rank = j + 1;
    for (int64_t i = 0; left && i < m; i++) u(i, j) = b(i, order[j]) / length;
    for (int64_t i = 0; right && i < n; i++) vt(j, i) = v(i, order[j]);
  }
  if (left) complete(u, m, rank, left);
  return 0;
}

template <typename T> Matrix<T> matrix(void* data, int64_t lead) {
  return {static_cast<T*>(data), lead};
}

// Runs `work` with a null pointer of the element type as its argument.
template <typename F> int typed(int type, F work) {
  return type == F64 ? work((double*)nullptr) : work((float*)nullptr);
}

template <typename T> int orgqr_call(void* handle, int m, int n, int k, T* a, int lda, const T* tau,
                                     T* work, int lwork, int* info) {
  if (!handle) return NOT_INITIALIZED;
  if (m < 0 || n < 0 || n > m || k < 0 || k > n || lda < std::max(1, m) || !a || !tau || !work ||
      lwork < n || !info)
    return INVALID_VALUE;
  std::fill_n(work, n, std::numeric_limits<T>::quiet_NaN());
  orgqr(Matrix<T>{a, lda}, m, n, k, tau);
  *info = 0;
  return SUCCESS;
}

}  // namespace

API cusolverDnCreate(void** handle) {
  if (!handle) return INVALID_VALUE;
  *handle = new Handle{nullptr};
  return SUCCESS;
}

API cusolverDnDestroy(void* handle) {
  delete static_cast<Handle*>(handle);
  return SUCCESS;
}

API cusolverDnSetStream(void* handle, void* stream) {
  if (!handle) return NOT_INITIALIZED;
  static_cast<Handle*>(handle)->stream = stream;
  return SUCCESS;
}

API cusolverDnCreateParams(void** params) {
  if (!params) return INVALID_VALUE;
  *params = new Params;
  return SUCCESS;
}

API cusolverDnDestroyParams(void* params) {
  delete static_cast<Params*>(params);
  return SUCCESS;
}

static int check_syevd(void* handle, void* params, int job, int uplo, int64_t n, int type,
                       int64_t lda, int type_w, int compute) {
  if (!handle || !params) return NOT_INITIALIZED;
  if (!is_type(type) || type_w != type || compute != type) return NOT_SUPPORTED;
  bool ok = (job == NO_VECTORS || job == VECTORS) && (uplo == LOWER || uplo == UPPER) && n >= 0 &&
            lda >= std::max<int64_t>(1, n);
  return ok ? SUCCESS : INVALID_VALUE;
}

API cusolverDnXsyevd_bufferSize(void* handle, void* params, int job, int uplo, int64_t n, int type,
                                const void*, int64_t lda, int type_w, const void*, int compute,
                                size_t* device, size_t* host) {
  *device = device_bytes(n, n);
  *host = HOST_BYTES;
  return check_syevd(handle, params, job, uplo, n, type, lda, type_w, compute);
}

API cusolverDnXsyevd(void* handle, void* params, int job, int uplo, int64_t n, int type, void* a,
                     int64_t lda, int type_w, void* w, int compute, void* device,
                     size_t device_size, void* host, size_t host_size, int* info) {
  if (int status = check_syevd(handle, params, job, uplo, n, type, lda, type_w, compute))
    return status;
  if (!a || !w || !info || !takes(device, device_size, host, host_size, n, n)) return INVALID_VALUE;
  *info = n == 0 ? 0 : typed(type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    return syevd(matrix<T>(a, lda), n, job == VECTORS, uplo == UPPER, static_cast<T*>(w));
  });
  return SUCCESS;
}

// Jobs: A all columns, S the first n, N none. O, over A, is not offered here.
static int check_gesvd(void* handle, void* params, signed char job_u, signed char job_vt, int64_t m,
                       int64_t n, int type, int64_t lda, int type_s, int type_u, int64_t ldu,
                       int type_vt, int64_t ldvt, int compute) {
  if (!handle || !params) return NOT_INITIALIZED;
  if (!is_type(type) || type_s != type || type_u != type || type_vt != type || compute != type)
    return NOT_SUPPORTED;
  auto is_job = [](signed char job) { return job == 'A' || job == 'S' || job == 'N'; };
  bool ok = is_job(job_u) && is_job(job_vt) && n >= 0 && m >= n && lda >= std::max<int64_t>(1, m);
  ok = ok && (job_u == 'N' || ldu >= m) && (job_vt == 'N' || ldvt >= n);
  return ok ? SUCCESS : INVALID_VALUE;
}

API cusolverDnXgesvd_bufferSize(void* handle, void* params, signed char job_u, signed char job_vt,
                                int64_t m, int64_t n, int type, const void*, int64_t lda,
                                int type_s, const void*, int type_u, const void*, int64_t ldu,
                                int type_vt, const void*, int64_t ldvt, int compute, size_t* device,
                                size_t* host) {
  *device = device_bytes(m, n);
  *host = HOST_BYTES;
  return check_gesvd(handle, params, job_u, job_vt, m, n, type, lda, type_s, type_u, ldu, type_vt,
                     ldvt, compute);
}

API cusolverDnXgesvd(void* handle, void* params, signed char job_u, signed char job_vt, int64_t m,
                     int64_t n, int type, void* a, int64_t lda, int type_s, void* s, int type_u,
                     void* u, int64_t ldu, int type_vt, void* vt, int64_t ldvt, int compute,
                     void* device, size_t device_size, void* host, size_t host_size, int* info) {
  if (int status = check_gesvd(handle, params, job_u, job_vt, m, n, type, lda, type_s, type_u, ldu,
                               type_vt, ldvt, compute))
    return status;
  if (!a || !s || !info || !takes(device, device_size, host, host_size, m, n)) return INVALID_VALUE;
  if ((job_u != 'N' && !u) || (job_vt != 'N' && !vt)) return INVALID_VALUE;
  int64_t left = job_u == 'A' ? m : job_u == 'S' ? n : 0, right = job_vt == 'N' ? 0 : n;
  *info = typed(type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    return gesvd(matrix<T>(a, lda), m, n, static_cast<T*>(s), matrix<T>(u, ldu), left,
                 matrix<T>(vt, ldvt), right);
  });
  return SUCCESS;
}

static int check_geqrf(void* handle, void* params, int64_t m, int64_t n, int type, int64_t lda,
                       int type_tau, int compute) {
  if (!handle || !params) return NOT_INITIALIZED;
  if (!is_type(type) || type_tau != type || compute != type) return NOT_SUPPORTED;
  return m >= 0 && n >= 0 && lda >= std::max<int64_t>(1, m) ? SUCCESS : INVALID_VALUE;
}

API cusolverDnXgeqrf_bufferSize(void* handle, void* params, int64_t m, int64_t n, int type,
                                const void*, int64_t lda, int type_tau, const void*, int compute,
                                size_t* device, size_t* host) {
  *device = device_bytes(m, n);
  *host = HOST_BYTES;
  return check_geqrf(handle, params, m, n, type, lda, type_tau, compute);
}

API cusolverDnXgeqrf(void* handle, void* params, int64_t m, int64_t n, int type, void* a,
                     int64_t lda, int type_tau, void* tau, int compute, void* device,
                     size_t device_size, void* host, size_t host_size, int* info) {
  if (int status = check_geqrf(handle, params, m, n, type, lda, type_tau, compute)) return status;
  if (!a || !tau || !info || !takes(device, device_size, host, host_size, m, n))
    return INVALID_VALUE;
  typed(type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    geqrf(matrix<T>(a, lda), m, n, static_cast<T*>(tau));
    return 0;
  });
  *info = 0;
  return SUCCESS;
}

API cusolverDnDorgqr_bufferSize(void* handle, int, int n, int, const double*, int, const double*,
                                int* lwork) {
  *lwork = 32 * n;
  return handle ? SUCCESS : NOT_INITIALIZED;
}

API cusolverDnSorgqr_bufferSize(void* handle, int, int n, int, const float*, int, const float*,
                                int* lwork) {
  *lwork = 32 * n;
  return handle ? SUCCESS : NOT_INITIALIZED;
}

API cusolverDnDorgqr(void* handle, int m, int n, int k, double* a, int lda, const double* tau,
                     double* work, int lwork, int* info) {
  return orgqr_call(handle, m, n, k, a, lda, tau, work, lwork, info);
}

API cusolverDnSorgqr(void* handle, int m, int n, int k, float* a, int lda, const float* tau,
                     float* work, int lwork, int* info) {
  return orgqr_call(handle, m, n, k, a, lda, tau, work, lwork, info);
}

static int check_potrf(void* handle, void* params, int uplo, int64_t n, int type, int64_t lda,
                       int compute) {
  if (!handle || !params) return NOT_INITIALIZED;
  if (!is_type(type) || compute != type) return NOT_SUPPORTED;
  return (uplo == LOWER || uplo == UPPER) && n >= 0 && lda >= std::max<int64_t>(1, n)
             ? SUCCESS
             : INVALID_VALUE;
}

API cusolverDnXpotrf_bufferSize(void* handle, void* params, int uplo, int64_t n, int type,
                                const void*, int64_t lda, int compute, size_t* device,
                                size_t* host) {
  *device = device_bytes(n, n);
  *host = HOST_BYTES;
  return check_potrf(handle, params, uplo, n, type, lda, compute);
}

API cusolverDnXpotrf(void* handle, void* params, int uplo, int64_t n, int type, void* a,
                     int64_t lda, int compute, void* device, size_t device_size, void* host,
                     size_t host_size, int* info) {
  if (int status = check_potrf(handle, params, uplo, n, type, lda, compute)) return status;
  if (!a || !info || !takes(device, device_size, host, host_size, n, n)) return INVALID_VALUE;
  *info = typed(type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    return potrf(matrix<T>(a, lda), n, uplo == UPPER);
  });
  return SUCCESS;
}
