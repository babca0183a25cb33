// SPDX-License-Identifier: MIT
// A kernel of one block that works in steps: each thread does its share of a step once all have done theirs of the one
// before.
#pragma once

#include <cuda_runtime.h>

namespace fastreplay {

template <class Work>
__global__ void __launch_bounds__(Work::kThreads) in_steps(const __grid_constant__ Work work) {
  __shared__ typename Work::Shared shared;
#if defined(__CUDACC__)
  for (unsigned step = 0; step < work.num_steps(); ++step) {
    work.share(step, threadIdx.x, shared);
    __syncthreads();  // what was written is seen by the whole block
  }
#else  // one thread does it for all, by turns
  for (unsigned step = 0; threadIdx.x == 0 && step < work.num_steps(); ++step) {
    for (unsigned thread = 0; thread < Work::kThreads; ++thread) work.share(step, thread, shared);
  }
#endif
}

}  // namespace fastreplay
