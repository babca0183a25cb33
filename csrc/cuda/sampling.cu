// SPDX-License-Identifier: MIT
#include <cuda_runtime.h>

#include <cstdint>
#include <limits>

#include "current_device.hpp"
#include "sampling.h"
#include "sampling_kernel.hpp"

namespace {

// One block: the draws of a call are counted once all are made.
__global__ void __launch_bounds__(fastreplay::kDrawThreads) draw(const fastreplay_cuda_sampling sampling) {
  if (sampling.window->size == 0) return;
  const bool are_drawn = fastreplay::draw_share(sampling, threadIdx.x);
  const bool are_all_drawn = __syncthreads_and(are_drawn) != 0;
  if (threadIdx.x != 0) return;
  if (!are_all_drawn) fastreplay::draw_in_order(sampling);
  fastreplay::count_draws(sampling);
}

__global__ void __launch_bounds__(fastreplay::kGatherThreads) gather(const fastreplay_cuda_sampling sampling) {
  if (sampling.window->size == 0) return;
  const std::uint64_t thread = std::uint64_t{blockIdx.x} * fastreplay::kGatherThreads + threadIdx.x;
  const std::uint64_t unit = thread / fastreplay::kLanes;
  if (unit >= sampling.batch_size * sampling.num_pieces) return;
  fastreplay::gather_share(sampling, unit, threadIdx.x % fastreplay::kLanes);
}

__global__ void set_window(fastreplay_cuda_window* window, std::uint64_t first, std::uint64_t size) {
  *window = {first, size};
}

}  // namespace

extern "C" {

int fastreplay_cuda_prepare_sampling(int device) {
  const fastreplay::CurrentDevice current{device};
  if (current.error() != cudaSuccess) return current.error();
  cudaFuncAttributes attributes;
  if (const auto error = cudaFuncGetAttributes(&attributes, draw)) return error;
  if (const auto error = cudaFuncGetAttributes(&attributes, gather)) return error;
  return cudaFuncGetAttributes(&attributes, set_window);
}

int fastreplay_cuda_set_window(int device, void* stream, fastreplay_cuda_window* window, uint64_t first,
                               uint64_t size) {
  const fastreplay::CurrentDevice current{device};
  if (current.error() != cudaSuccess) return current.error();
  set_window<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(window, first, size);
  return cudaGetLastError();
}

int fastreplay_cuda_sample(int device, void* stream, const fastreplay_cuda_sampling* sampling) {
  constexpr std::uint64_t kUnitsPerBlock = fastreplay::kGatherThreads / fastreplay::kLanes;
  const std::uint64_t num_units = sampling->batch_size * sampling->num_pieces;
  const std::uint64_t num_blocks = (num_units + kUnitsPerBlock - 1) / kUnitsPerBlock;
  if (num_blocks == 0) return cudaSuccess;
  if (num_blocks > std::numeric_limits<std::int32_t>::max()) return cudaErrorInvalidConfiguration;
  const fastreplay::CurrentDevice current{device};
  if (current.error() != cudaSuccess) return current.error();
  const auto queue = static_cast<cudaStream_t>(stream);
  draw<<<1, fastreplay::kDrawThreads, 0, queue>>>(*sampling);
  if (const auto error = cudaGetLastError()) return error;
  gather<<<static_cast<unsigned>(num_blocks), fastreplay::kGatherThreads, 0, queue>>>(*sampling);
  return cudaGetLastError();
}

}  // extern "C"
