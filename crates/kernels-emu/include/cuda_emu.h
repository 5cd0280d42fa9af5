// Stands in for the CUDA headers, so that kernel sources compile as C++ and run on the CPU.
//
// Each CUDA thread of a block is a fiber; blocks run one after another, or on several OS threads.
// A fiber runs until it meets a barrier or a warp collective and then yields, so that every
// __syncthreads and __shfl_sync is honoured exactly.
//
// Found: wrong indexing and arithmetic, accesses out of bounds (built with -fsanitize=address),
// divergent barriers (reported, not hung), wrong masks of warp collectives, and missing barriers
// (the result changes with EMU_ORDER, see src/launch.cpp).
// Not found: slowness, effects of the memory model, misaligned vector accesses, registers. Inline
// PTX is not read: it goes into a wrapper with an #ifdef CUDA_EMU.
#pragma once
#include <math.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#define CUDA_EMU 1
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

// build/scan.rs looks for these words in the preprocessed source: they stay in that pass.
#ifndef EMU_SCAN
#define __global__
#define __launch_bounds__(...)
// A block runs on one OS thread from its first to its last step. A thread_local of block scope is
// implicitly static, and `extern thread_local T x[]` is a declaration: both kinds of shared memory
// map onto thread-local storage. All dynamic shared memory is one symbol, emu_shared.
#define __shared__ thread_local
#endif

#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

#include "emu/vectors.h"

#include "emu/threads.h"

#include "emu/warp.h"

#include "emu/atomics.h"

#include "emu/math.h"

#include "emu/mma.h"
