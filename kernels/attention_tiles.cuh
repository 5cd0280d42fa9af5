#pragma once
// Tiles of vectors in shared memory and their products in f32, for attention and its gradients.
//
// A block is 8 groups of 16 lanes. A tile has 8 R rows and 16 C columns: group g works on rows
// g, g + 8, .., its lane l on columns l, l + 16, .., so a row of scores stays within half a warp. A
// tile of `rows` vectors takes rows (D + 4) floats: neighbouring rows are four banks apart and
// quads of eight of them are read without conflict. Components d .. D are zero.
#include "common.cuh"
#include "quad.cuh"

constexpr int ATTENTION_THREADS = 128;
constexpr int GROUPS = 8, LANES = 16;

// Copies `valid` vectors of x to `tile` and fills it up to ROWS with zeros; vectors are `stride`
// elements apart.
template <int D, int ROWS, bool FIT>
__device__ __forceinline__ void load_tile(
    float* tile, const float* __restrict__ x, i64 valid, i64 stride, i64 d) {
#pragma unroll 8
  for (int l = 0; l < ROWS * (D / 4) / ATTENTION_THREADS; l++) {
    const int e = threadIdx.x + ATTENTION_THREADS * l, row = e / (D / 4), column = e % (D / 4) * 4;
    *reinterpret_cast<float4*>(tile + row * (D + 4) + column) =
        load_quad<FIT>(x + row * stride + column, row < valid ? int(d) - column : 0);
  }
}
template <int D, int ROWS>
__device__ __forceinline__ void load_tile(
    float* tile, const float* __restrict__ x, i64 valid, i64 stride, i64 d) {
  if (quads_fit(x, d) && stride % 4 == 0) {
    load_tile<D, ROWS, true>(tile, x, valid, stride, d);
  } else {
    load_tile<D, ROWS, false>(tile, x, valid, stride, d);
  }
}

// s = this thread's products of rows of a and rows of b.
template <int D, int R, int C>
__device__ __forceinline__ void dot_rows(float (&s)[R][C], const float* a, const float* b) {
  const int group = threadIdx.x / LANES, lane = threadIdx.x % LANES;
#pragma unroll
  for (int i = 0; i < R; i++)
#pragma unroll
    for (int j = 0; j < C; j++) s[i][j] = 0.f;
#pragma unroll 2
  for (int k = 0; k < D; k += 4) {
    float4 v[C];
#pragma unroll
    for (int j = 0; j < C; j++)
      v[j] = *reinterpret_cast<const float4*>(b + (lane + LANES * j) * (D + 4) + k);
#pragma unroll
    for (int i = 0; i < R; i++) {
      const float4 u = *reinterpret_cast<const float4*>(a + (group + GROUPS * i) * (D + 4) + k);
#pragma unroll
      for (int j = 0; j < C; j++) {
        s[i][j] = fmaf(u.x, v[j].x, s[i][j]);
        s[i][j] = fmaf(u.y, v[j].y, s[i][j]);
        s[i][j] = fmaf(u.z, v[j].z, s[i][j]);
        s[i][j] = fmaf(u.w, v[j].w, s[i][j]);
      }
    }
  }
}

// Which component of a vector is a lane's n-th, of D / 16: quads of it, pairs where D is 32.
template <int D>
__device__ __forceinline__ int component(int n) {
  constexpr int W = D / LANES < 4 ? D / LANES : 4;
  return threadIdx.x % LANES * W + n % W + n / W * (LANES * W);
}

// o += p b, where p is 8 R rows of COLUMNS weights (COLUMNS + 4 apart) and b is COLUMNS vectors.
template <int D, int R, int COLUMNS>
__device__ __forceinline__ void add_weighted(
    float (&o)[R][D / LANES], const float* p, const float* b) {
  constexpr int N = D / LANES, W = N < 4 ? N : 4;
  const int group = threadIdx.x / LANES;
#pragma unroll 1
  for (int k = 0; k < COLUMNS; k += 4) {
    float4 w[R];
#pragma unroll
    for (int i = 0; i < R; i++)
      w[i] = *reinterpret_cast<const float4*>(p + (group + GROUPS * i) * (COLUMNS + 4) + k);
#pragma unroll
    for (int x = 0; x < 4; x++) {
      float v[N];
#pragma unroll
      for (int n = 0; n < N; n += W) {
        const float* from = b + (k + x) * (D + 4) + component<D>(n);
        if constexpr (W == 4) {
          *reinterpret_cast<float4*>(v + n) = *reinterpret_cast<const float4*>(from);
        } else {
          *reinterpret_cast<float2*>(v + n) = *reinterpret_cast<const float2*>(from);
        }
      }
#pragma unroll
      for (int i = 0; i < R; i++) {
        const float weight = x == 0 ? w[i].x : x == 1 ? w[i].y : x == 2 ? w[i].z : w[i].w;
#pragma unroll
        for (int n = 0; n < N; n++) o[i][n] = fmaf(weight, v[n], o[i][n]);
      }
    }
  }
}

// p = this thread's weights, for add_weighted to read within the half warp that wrote them.
template <int R, int C>
__device__ __forceinline__ void put_weights(float* p, const float (&s)[R][C]) {
  const int group = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  __syncwarp();  // the last weights have been read
#pragma unroll
  for (int i = 0; i < R; i++)
#pragma unroll
    for (int j = 0; j < C; j++)
      p[(group + GROUPS * i) * (LANES * C + 4) + lane + LANES * j] = s[i][j];
  __syncwarp();
}

// Writes `valid` rows of o times `by`; rows are `stride` elements apart.
template <int D, int R>
__device__ __forceinline__ void store_rows(
    float* y, const float (&o)[R][D / LANES], const float (&by)[R], i64 valid, i64 stride, i64 d) {
#pragma unroll
  for (int i = 0; i < R; i++) {
    const int row = threadIdx.x / LANES + GROUPS * i;
#pragma unroll
    for (int n = 0; n < D / LANES; n++)
      if (row < valid && component<D>(n) < d) y[row * stride + component<D>(n)] = o[i][n] * by[i];
  }
}

// Over the 16 lanes of a row.
__device__ __forceinline__ float lanes_max(float v) {
#pragma unroll
  for (int o = LANES / 2; o > 0; o >>= 1) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, o));
  return v;
}
__device__ __forceinline__ float lanes_sum(float v) {
#pragma unroll
  for (int o = LANES / 2; o > 0; o >>= 1) v += __shfl_xor_sync(ALL_LANES, v, o);
  return v;
}
