// A residual stack times one token, without forming the weight:
//
//   y = sum_l rowsum(u_l o (S_l Z_l)),  Z_l[j, c] = v_l[c, j] x[j]
//   signs [L, m, ceil(n / 8)] u8, packed    u [L, m, k], v [L, k, n] f16, k <= 64
//   x [n], y [m] f32                        scratch [parts, m] f32, null if parts = 1
//
// S Z is a product on the tensor cores, Z in f16 (2^-12 relative) and sums in f32. A sign becomes
// an operand in one operation: a word of 32 signs and a mask that leaves one bit of either half is
// a pair of f16, each 0 or a power of two that depends on the bit only; Z is divided by that power.
// With b the bits, S Z = 2 b Z - 1 Z; the last term comes from the same rounded Z. The error of y
// is 2e-4 of the root of the sum of squares of all (u v x).
//
// 256 threads; a block takes 512 rows by 512 columns and some of the L ceil(k / 16) passes, each 16
// columns of a level's Z. grid.x = ceil(m / 512) parts exactly, parts = ceil(n / 512) groups, with
// groups <= passes; m <= 2^25. 17 KB of static shared memory. A block's sums over its columns and
// passes go to scratch; the last block of 512 rows to finish adds them, in order.
//
// 2 m n L k flops on the tensor cores (k rounded up to 8), one other operation for two signs of a
// pass, and L (m n / 8 + 2 k m + 2 k n ceil(m / 512)) bytes, of v all but the first read from L2.
// Bound by the tensor cores for k >= 8. Launches must not overlap: blocks count themselves, and
// leave the counters at zero.
#include "opaque.cuh"
#include "stack.cuh"

constexpr int MT = 4;            // 16-row tiles of a warp
constexpr int ROWS = 512;        // of a block: 8 warps' 16 MT
constexpr int RANGE = 512;       // columns of a block
constexpr int PASS = 16;         // columns of Z at a time
constexpr int STEPS = 32;        // of 16 columns of S
constexpr int STRIDE = 128 + 4;  // words of Z in shared memory per step, and some against conflicts
constexpr int TICKETS = 1 << 16;

__device__ unsigned stack_matvec_finished[TICKETS];

// Of a word of signs, and of the word rotated left by 8, bits FIRST_BIT to FIRST_BIT + 7 of both
// halves are used: together all 32. Two bits make one step, the pairs (2 t, 2 t + 1) and (2 t + 8,
// 2 t + 9) of mma's inner dimension.
constexpr int FIRST_BIT = 6;
__device__ __forceinline__ constexpr unsigned sign_mask(int bit) { return 0x00010001u << bit; }
// The exponent of the f16 of which only this bit is set.
__device__ __forceinline__ int bit_exponent(int bit) {
  return bit < 10 ? bit - 24 : (1 << (bit - 10)) - 15;
}

// The block's Z and the sums of its columns over a range, both times 1 / (16 unit), unit the power
// of two below the largest.
struct pass_data {
  unsigned z[STEPS * STRIDE];  // of each step, lane's words b0, b1 for columns 0-7, then for 8-15
  float ones[8][PASS];         // a warp's part of 1 Z
};

// Forms Z from 16 rows of v, `width` of them there; returns the unit.
__device__ __forceinline__ float form_pass(
    pass_data& pass, const __half* v, const float (&x)[2], i64 n, i64 column, int width) {
  // This thread's word of 32 columns, and of these its columns `bit` of byte 0 or 1 and 16 after.
  const int word = threadIdx.x / 16, place = threadIdx.x % 16;
  const __half zero = __ushort_as_half(0);
  __half own[PASS][2];
  float peak = 0.f;
#pragma unroll
  for (int c = 0; c < PASS; c++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const bool there = c < width && column + 16 * i < n;
      own[c][i] = there ? v[c * n + column + 16 * i] : zero;
      peak = fmaxf(peak, fabsf(__half2float(own[c][i]) * x[i]));
    }
  peak = block_max(peak);  // its barriers also end the last pass
  const unsigned exponent = __float_as_uint(peak) & 0x7f800000u;
  const float unit = exponent ? __uint_as_float(exponent) : 1.f;
  const float inverse = __uint_as_float(0x7f000000u - __float_as_uint(unit));

  // Where the word keeps the first column's sign, and the bit it has in the right rotation.
  const int origin = place / 8 * 8 + 7 - place % 8;
  const bool rotated = origin < FIRST_BIT || origin >= FIRST_BIT + 8;
  const int bit = origin < FIRST_BIT ? origin + 8 : rotated ? origin - 8 : origin;
  const bool swapped = origin >= FIRST_BIT + 8;  // carried over into the upper half
  const float factor = __uint_as_float(unsigned(127 - 4 - bit_exponent(bit)) << 23);
  const int step = word % 4 * 8 + rotated * 4 + (bit - FIRST_BIT) / 2;
  unsigned* to = pass.z + step * STRIDE + word / 4 * 4 + (bit - FIRST_BIT) % 2;
#pragma unroll
  for (int c = 0; c < PASS; c++) {
    const float a = __half2float(own[c][0]) * x[0] * inverse * factor;
    const float b = __half2float(own[c][1]) * x[1] * inverse * factor;
    const __half2 both = __floats2half2_rn(swapped ? b : a, swapped ? a : b);
    unsigned packed;
    memcpy(&packed, &both, sizeof packed);
    to[c % 8 * 16 + c / 8 * 2] = packed;
  }
  __syncthreads();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float sum[2][4] = {};
#pragma unroll
  for (int p = 0; p < 4; p++) {
    const uint4 b = *reinterpret_cast<const uint4*>(pass.z + (4 * warp + p) * STRIDE + 4 * lane);
    const unsigned low = sign_mask(FIRST_BIT + 2 * p), high = sign_mask(FIRST_BIT + 2 * p + 1);
    const unsigned a[4] = {low, low, high, high}, left[2] = {b.x, b.y}, right[2] = {b.z, b.w};
    mma_f16_16x8x16(sum[0], a, left);
    mma_f16_16x8x16(sum[1], a, right);
  }
  if (lane < 4) {
#pragma unroll
    for (int i = 0; i < 4; i++) pass.ones[warp][i / 2 * 8 + 2 * lane + i % 2] = sum[i / 2][i % 2];
  }
  __syncthreads();
  return unit;
}

// sum[i][j] = b Z over the range, for 8 NT columns of Z; the signs' words are used up.
template <int NT>
__device__ __forceinline__ void multiply_signs(
    float (&sum)[MT][2][4], unsigned (&signs)[MT][2][4], const unsigned* z) {
  z += threadIdx.x % 32 * 4;
#pragma unroll
  for (int i = 0; i < MT; i++)
#pragma unroll
    for (int w = 0; w < 8; w++) sum[i][w / 4][w % 4] = 0.f;
#pragma unroll
  for (int step = 0; step < STEPS; step++) {
    const int word = step / 8, bit = FIRST_BIT + step % 4 * 2;
    const uint4 b = *reinterpret_cast<const uint4*>(z + step * STRIDE);
    const unsigned left[2] = {b.x, b.y}, right[2] = {b.z, b.w};
#pragma unroll
    for (int i = 0; i < MT; i++) {
      if (step % 8 == 4) {
#pragma unroll
        for (int h = 0; h < 2; h++)
          signs[i][h][word] = signs[i][h][word] << 8 | signs[i][h][word] >> 24;
      }
      const unsigned above = signs[i][0][word], below = signs[i][1][word];
      const unsigned a[4] = {above & sign_mask(bit), below & sign_mask(bit),
                             above & sign_mask(bit + 1), below & sign_mask(bit + 1)};
      mma_f16_16x8x16(sum[i][0], a, left);
      if constexpr (NT == 2) mma_f16_16x8x16(sum[i][1], a, right);
    }
  }
}

extern "C" __global__ void __launch_bounds__(256, 2) stack_matvec(
    const float* __restrict__ x, const unsigned char* __restrict__ signs,
    const __half* __restrict__ u, const __half* __restrict__ v, float* y, float* scratch,
    i64 levels, i64 m, i64 n, i64 k) {
  __shared__ __align__(16) pass_data pass;
  __shared__ bool is_last;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const unsigned tiles = unsigned((m + ROWS - 1) / ROWS), parts = gridDim.x / tiles;
  const unsigned tile = blockIdx.x % tiles, part = blockIdx.x / tiles;
  const unsigned ranges = unsigned((n + RANGE - 1) / RANGE), groups = parts / ranges;
  const i64 range = i64(part % ranges) * RANGE;
  const unsigned chunks = unsigned((k + PASS - 1) / PASS), passes = unsigned(levels) * chunks;
  const unsigned group = part / ranges, end = (group + 1) * passes / groups;
  const i64 first = i64(tile) * ROWS + warp * 16 * MT, bytes = (n + 7) / 8;
  const i64 from = range / 8 + 16 * t;  // this lane's bytes of every row
  const bool fit = bytes % 16 == 0 && starts_at(signs, 16);
  const bool whole = k % 2 == 0 && starts_at(u, 4);
  // The first of the thread's two columns in form_pass.
  const i64 column = range + threadIdx.x / 16 * 32 + threadIdx.x % 16;
  const float own_x[2] = {column < n ? x[column] : 0.f, column + 16 < n ? x[column + 16] : 0.f};

  float total[MT][2] = {};
#pragma unroll 1
  for (unsigned at_pass = group * passes / groups; at_pass < end; at_pass++) {
    const i64 level = at_pass / chunks;
    const int chunk = int(at_pass % chunks) * PASS, width = min(int(k) - chunk, PASS);
    // Rows' offsets are made where they are used: kept, they would take too many registers.
    const i64 start = opaque(level * m + first + g), stride = opaque(bytes);
    const int valid = int(min(m - first - g, i64(16 * MT)));
    unsigned words[MT][2][4];
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int row = 16 * i + 8 * h;
        const unsigned char* at = signs + (start + row) * stride + from;
        uint4 four = make_uint4(0, 0, 0, 0);
        if (fit) {
          if (row < valid && from < stride) four = *reinterpret_cast<const uint4*>(at);
        } else if (row < valid) {
          unsigned each[4] = {};
#pragma unroll
          for (int b = 0; b < 16; b++)
            if (from + b < stride) each[b / 4] |= unsigned(at[b]) << b % 4 * 8;
          four = make_uint4(each[0], each[1], each[2], each[3]);
        }
        words[i][h][0] = four.x, words[i][h][1] = four.y;
        words[i][h][2] = four.z, words[i][h][3] = four.w;
      }

    const float unit = form_pass(pass, v + (level * k + chunk) * n, own_x, n, column, width);
    if (first >= m) continue;
    float sum[MT][2][4];
    if (width > 8) {
      multiply_signs<2>(sum, words, pass.z);
    } else {
      multiply_signs<1>(sum, words, pass.z);
    }

    float ones[2][2] = {};
#pragma unroll
    for (int w = 0; w < 8; w++)
#pragma unroll
      for (int i = 0; i < 4; i++) ones[i / 2][i % 2] += pass.ones[w][i / 2 * 8 + 2 * t + i % 2];
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int row = 16 * i + 8 * h;
        const __half* own = u + (opaque(start) + row) * k + chunk + 2 * t;
        float answer = 0.f;
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const unsigned both =
              load_halves(own + 8 * j, row < valid ? width - 8 * j - 2 * t : 0, whole);
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const __half factor = __ushort_as_half((unsigned short)(both >> 16 * e));
            const float product = 2.f * sum[i][j][2 * h + e] - ones[j][e];
            answer = fmaf(__half2float(factor), product, answer);
          }
        }
        total[i][h] = fmaf(16.f * answer, unit, total[i][h]);
      }
  }

  float* to = parts == 1 ? y : scratch + part * m;
#pragma unroll
  for (int i = 0; i < MT; i++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float answer = total[i][h];
      answer += __shfl_xor_sync(ALL_LANES, answer, 1);
      answer += __shfl_xor_sync(ALL_LANES, answer, 2);
      const i64 row = first + 16 * i + 8 * h + g;
      if (t == 0 && row < m) to[row] = answer;
    }
  if (parts == 1) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(&stack_matvec_finished[tile], 1u) == parts - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  // This tail is latency: both rows of a thread, and 16 parts of each, are under way at once.
  const i64 row = i64(tile) * ROWS + threadIdx.x;
  float answer[2] = {};
#pragma unroll 16
  for (unsigned i = 0; i < parts; i++) {
    const float* from = scratch + i * m + row;
    answer[0] += row < m ? from[0] : 0.f;
    answer[1] += row + 256 < m ? from[256] : 0.f;
  }
  if (row < m) y[row] = answer[0];
  if (row + 256 < m) y[row + 256] = answer[1];
  if (threadIdx.x == 0) stack_matvec_finished[tile] = 0;
}
