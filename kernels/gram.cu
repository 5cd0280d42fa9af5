// Second moments of activations: what src/ops/gram.rs defines.
//
//   gram:        master[i, j] += sum_t x[t, i] x[t, j]  for j <= i
//   symmetrise:  master[j, i]  = master[i, j]           for j < i
//   x [t, n] f32    master [n, n] f64
//
// gram. One block of 256 threads owns one 128x128 tile on or below the diagonal for the whole of x;
// grid.x = T (T + 1) / 2 with T = ceil(n / 128). A chunk of 1024 rows is summed in f32 (8x8
// elements a thread, IEEE f32: no tensor cores) and then added to the tile of the master in f64.
// Static shared memory 16 KB: two slabs of 8 rows, one being multiplied while the next is on its
// way through registers. t n (n + 1) flops; reads 4 t n (T + 1) bytes of x, most of them from L2,
// and moves 8 n (n + 1) bytes of the master per chunk.
//
// symmetrise. One block of 256 threads per 32x32 tile on or below the diagonal; grid.x =
// S (S + 1) / 2 with S = ceil(n / 32). 8 n^2 bytes.
#include "common.cuh"
#include "opaque.cuh"
#include "quad.cuh"

constexpr int TILE = 128;    // columns of x on either side of a block's tile
constexpr int SLAB = 8;      // rows of x in shared memory at a time
constexpr int CHUNK = 1024;  // rows that are summed in f32, a multiple of SLAB
constexpr int SQUARE = 32;   // side of symmetrise's tiles

// Tiles on and below the diagonal are counted row by row: tile (row, column) is number
// row (row + 1) / 2 + column. The search is exact where a square root would not be.
__device__ __forceinline__ void lower_tile(i64 tile, i64& row, i64& column) {
  row = 0;
  for (i64 step = i64(1) << 30; step > 0; step >>= 1) {
    const i64 next = row + step;
    if (next * (next + 1) / 2 <= tile) row = next;
  }
  column = tile - row * (row + 1) / 2;
}

extern "C" __global__ void __launch_bounds__(256, 2) gram(
    const float* __restrict__ x, double* __restrict__ master, i64 t, i64 n) {
  __shared__ __align__(16) float left[2][SLAB][TILE], right[2][SLAB][TILE];
  i64 tile_row, tile_column;
  lower_tile(blockIdx.x, tile_row, tile_column);
  tile_row *= TILE;
  tile_column *= TILE;
  const bool fit = quads_fit(x, n);

  // A warp brings in one row of the slab, a lane four elements of it for either side.
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int left_valid = int(min(n - tile_row - 4 * lane, i64(4)));
  const int right_valid = int(min(n - tile_column - 4 * lane, i64(4)));
  const float* from = x + warp * n + 4 * lane;
  float4 a, b;
  const auto fetch = [&](i64 first) {
    const bool inside = first + warp < t;
    if (fit) {
      a = load_quad<true>(from + tile_row, inside ? left_valid : 0);
      b = load_quad<true>(from + tile_column, inside ? right_valid : 0);
    } else {
      a = load_quad<false>(from + tile_row, inside ? left_valid : 0);
      b = load_quad<false>(from + tile_column, inside ? right_valid : 0);
    }
    from += SLAB * n;
  };
  const auto store = [&](int slab) {
    *reinterpret_cast<float4*>(&left[slab][warp][4 * lane]) = a;
    *reinterpret_cast<float4*>(&right[slab][warp][4 * lane]) = b;
  };

  // A warp computes 32x64 elements, its lanes 4x8; a lane has two quads each way, so that the eight
  // lanes of a row read 128 consecutive bytes of shared memory.
  const int row = warp / 2 * 32 + lane / 8 * 4, column = warp % 2 * 64 + lane % 8 * 4;
  float sum[8][8] = {};
  int slab = 0;
  fetch(0);
  store(0);
  __syncthreads();
  for (i64 first = 0; first < t; first += SLAB, slab ^= 1) {
    const bool more = first + SLAB < t;
    if (more) fetch(first + SLAB);
#pragma unroll
    for (int k = 0; k < SLAB; k++) {
      float u[8], v[8];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        *reinterpret_cast<float4*>(u + 4 * h) =
            *reinterpret_cast<const float4*>(&left[slab][k][row + 16 * h]);
        *reinterpret_cast<float4*>(v + 4 * h) =
            *reinterpret_cast<const float4*>(&right[slab][k][column + 32 * h]);
      }
#pragma unroll
      for (int i = 0; i < 8; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) sum[i][j] = fmaf(u[i], v[j], sum[i][j]);
    }
    if (more) store(slab ^ 1);  // last read before the barrier at the end of the round before
    __syncthreads();

    if (more && (first + SLAB) % CHUNK != 0) continue;
    const i64 width = opaque(n);
    const int rows = int(min(width - tile_row - row, i64(TILE)));
    // How far right of this thread's first element its row i = 0 reaches.
    const int reach = int(min(tile_row - tile_column, i64(TILE))) + row - column;
    double* to = master + (tile_row + row) * width + tile_column + column;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int below = i % 4 + i / 4 * 16;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const int beside = j % 4 + j / 4 * 32;
        if (below < rows && beside <= reach + below) to[beside] += double(sum[i][j]);
        sum[i][j] = 0.f;
      }
      to += i == 3 ? 13 * width : width;  // to the row that i + 1 stands for
    }
  }
}

extern "C" __global__ void __launch_bounds__(256) symmetrise(double* master, i64 n) {
  __shared__ double tile[SQUARE][SQUARE + 1];
  i64 row, column;
  lower_tile(blockIdx.x, row, column);
  row *= SQUARE;
  column *= SQUARE;
  const int tx = threadIdx.x % SQUARE, ty = threadIdx.x / SQUARE;
  for (int r = ty; r < SQUARE; r += 256 / SQUARE)
    if (row + r < n && column + tx < n) tile[r][tx] = master[(row + r) * n + column + tx];
  __syncthreads();
  // Rows of the upper tile are columns of the lower one; on the diagonal the lower half stays.
  for (int r = ty; r < SQUARE; r += 256 / SQUARE)
    if (column + r < row + tx && row + tx < n) master[(column + r) * n + row + tx] = tile[tx][r];
}
