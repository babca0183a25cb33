// SPDX-License-Identifier: MIT
// How a function is declared that the CPU and CUDA kernels share.
#pragma once

#if defined(__CUDACC__)
#define FASTREPLAY_INLINE __host__ __device__ inline
#else
#define FASTREPLAY_INLINE [[gnu::always_inline]] inline
#endif
