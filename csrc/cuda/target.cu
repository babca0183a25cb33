// SPDX-License-Identifier: MIT
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "current_device.hpp"
#include "launch.hpp"
#include "target.h"
#include "target_kernel.hpp"

namespace {

using namespace fastreplay;

// One block a chunk, however many tensors there are.
template <class Kind>
__global__ void __launch_bounds__(kThreadsPerChunk) update_targets(const __grid_constant__ Updates updates) {
  update_share<Kind>(updates, blockIdx.x, threadIdx.x);
}

// Calls the visitor with each kernel's kind, with some of them more than once.
template <class Visitor>
cudaError_t visit_kinds(Visitor visitor) {
  float master = 0;
  for (const Dtype target : {Dtype::kFloat32, Dtype::kFloat64, Dtype::kFloat16, Dtype::kBFloat16}) {
    for (const Dtype online : {Dtype::kFloat32, Dtype::kFloat64, Dtype::kFloat16, Dtype::kBFloat16}) {
      for (float* const each : {static_cast<float*>(nullptr), &master}) {
        const Chunk pair{nullptr, nullptr, each, 0, target, online, false};
        if (const cudaError_t error = visit_kind(pair, visitor)) return error;
      }
    }
  }
  return cudaSuccess;
}

}  // namespace

extern "C" {

int fastreplay_cuda_prepare_updates(int device) {
  const CurrentDevice current{device};
  if (current.error() != cudaSuccess) return current.error();
  return visit_kinds([](auto kind) {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, update_targets<decltype(kind)>);
  });
}

int fastreplay_cuda_update_targets(int device, void* stream, const void* pairs, int64_t num_pairs, double tau,
                                   const void* tau_on_device, int tau_is_double) {
  const CurrentDevice current{device};
  if (current.error() != cudaSuccess) return current.error();
  Updates updates;
  updates.tau_of_host = tau;
  updates.tau_on_device = tau_on_device;
  updates.tau_is_double = tau_is_double != 0;
  std::span<const Pair> rest{static_cast<const Pair*>(pairs), static_cast<std::size_t>(num_pairs)};
  while (!rest.empty()) {
    const Chunk& first = rest.front().chunk;
    const std::uint32_t num_chunks = take_launch(rest, updates);
    if (num_chunks == 0) continue;
    const cudaError_t error = visit_kind(first, [&](auto kind) {
      return launch(update_targets<decltype(kind)>, dim3{num_chunks}, kThreadsPerChunk, stream, updates);
    });
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // extern "C"
