// SPDX-License-Identifier: MIT
#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

#include "current_device.hpp"
#include "target.h"
#include "target_kernel.hpp"

namespace {

// One block a chunk, however many tensors there are.
__global__ void __launch_bounds__(fastreplay::kThreadsPerChunk)
    update_targets(const fastreplay::Chunk* __restrict__ chunks, double tau, const void* __restrict__ tau_on_device,
                   bool tau_is_double) {
  if (tau_on_device != nullptr) {
    tau = tau_is_double ? *static_cast<const double*>(tau_on_device) : *static_cast<const float*>(tau_on_device);
  }
  const fastreplay::Chunk chunk = chunks[blockIdx.x];
  fastreplay::update_share(chunk, threadIdx.x, tau);
}

}  // namespace

extern "C" {

int fastreplay_cuda_prepare_updates(int device) {
  const fastreplay::CurrentDevice current{device};
  if (current.error() != cudaSuccess) return current.error();
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, update_targets);
}

int fastreplay_cuda_update_targets(int device, void* stream, const void* chunks, int64_t num_chunks, double tau,
                                   const void* tau_on_device, int tau_is_double) {
  if (num_chunks == 0) return cudaSuccess;
  if (num_chunks > std::numeric_limits<std::int32_t>::max()) return cudaErrorInvalidConfiguration;
  const fastreplay::CurrentDevice current{device};
  if (current.error() != cudaSuccess) return current.error();
  update_targets<<<static_cast<unsigned>(num_chunks), fastreplay::kThreadsPerChunk, 0,
                   static_cast<cudaStream_t>(stream)>>>(static_cast<const fastreplay::Chunk*>(chunks), tau,
                                                        tau_on_device, tau_is_double != 0);
  return cudaGetLastError();
}

}  // extern "C"
