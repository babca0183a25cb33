// SPDX-License-Identifier: MIT
// The CUDA part's library as the CPU runs it: its own sources, on what stands in for CUDA.
#include "../../../csrc/cuda/device.cu"
#include "../../../csrc/cuda/following.cu"
#include "../../../csrc/cuda/masses.cu"
#include "../../../csrc/cuda/sampling.cu"
#include "../../../csrc/cuda/stream.cu"
#include "../../../csrc/cuda/target.cu"
