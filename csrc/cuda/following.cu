// SPDX-License-Identifier: MIT
#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

#include "current_device.hpp"
#include "following.h"
#include "launch.hpp"
#include "linking_kernel.hpp"

namespace {

__global__ void __launch_bounds__(fastreplay::kLinkThreads)
    link_transitions(const __grid_constant__ fastreplay_cuda_linking linking) {
  fastreplay::link_share(linking, std::uint64_t{blockIdx.x} * fastreplay::kLinkThreads + threadIdx.x);
}

}  // namespace

extern "C" {

int fastreplay_cuda_prepare_following(int device) {
  const fastreplay::CurrentDevice current{device};
  if (current.error() != cudaSuccess) return current.error();
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, link_transitions);
}

int fastreplay_cuda_complete_links(int device, void* stream, const fastreplay_cuda_linking* linking) {
  using namespace fastreplay;
  const CurrentDevice current{device};
  if (current.error() != cudaSuccess) return current.error();
  const std::uint64_t num_blocks = (num_link_threads(*linking) + kLinkThreads - 1) / kLinkThreads;
  if (num_blocks == 0) return cudaSuccess;
  if (num_blocks > std::numeric_limits<std::int32_t>::max()) return cudaErrorInvalidConfiguration;
  return launch(link_transitions, dim3{static_cast<unsigned>(num_blocks)}, kLinkThreads, stream, *linking);
}

}  // extern "C"
