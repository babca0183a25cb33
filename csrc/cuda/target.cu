// SPDX-License-Identifier: MIT
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include "current_device.hpp"
#include "launch.hpp"
#include "target.h"
#include "target_kernel.hpp"

namespace {

using namespace fastreplay;

inline constexpr unsigned kThreads = kThreadsPerChunk * kChunksPerBlock;

// The chunk's number is one of the thread's own registers, not of the warp's: NVCC would search the table by uniform
// ones else, which took 0.4 us a step more where all blocks of a launch were at it (60 tensors, H200).
template <class Kind, class Updates>
__global__ void __launch_bounds__(kThreads) update_targets(const __grid_constant__ Updates updates) {
  const std::uint32_t chunk = blockIdx.x * kChunksPerBlock + threadIdx.x / kThreadsPerChunk;
  if (chunk < updates.num_chunks) update_share<Kind>(updates, chunk, threadIdx.x % kThreadsPerChunk);
}

constexpr bool kTakesMany = CUDART_VERSION >= 12010;
using Largest = std::conditional_t<kTakesMany, ManyUpdates, Updates>;

// Whether the driver takes as many parameters as the compiler.
bool takes_many() {
  static const bool takes = [] {
    int version = 0;
    return kTakesMany && cudaDriverGetVersion(&version) == cudaSuccess && version >= 12010;
  }();
  return takes;
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

// As many launches as the pairs need.
template <class Updates>
cudaError_t update_all(std::span<const Pair> pairs, const Share& share, void* stream) {
  Updates updates;
  updates.share = share;
  while (!pairs.empty()) {
    const Chunk& first = pairs.front().chunk;
    const std::uint32_t num_blocks = take_launch(pairs, updates);
    if (num_blocks == 0) continue;
    const cudaError_t error = visit_kind(first, [&](auto kind) {
      return launch(update_targets<decltype(kind), Updates>, dim3{num_blocks}, kThreads, stream, updates);
    });
    if (error != cudaSuccess) return error;
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
    const cudaError_t error = cudaFuncGetAttributes(&attributes, update_targets<decltype(kind), Updates>);
    if (error != cudaSuccess || !takes_many()) return error;
    return cudaFuncGetAttributes(&attributes, update_targets<decltype(kind), Largest>);
  });
}

int fastreplay_cuda_update_targets(int device, void* stream, const void* pairs, int64_t num_pairs, double tau,
                                   const void* tau_on_device, int tau_is_double) {
  const CurrentDevice current{device};
  if (current.error() != cudaSuccess) return current.error();
  const std::span all{static_cast<const Pair*>(pairs), static_cast<std::size_t>(num_pairs)};
  const Share share = Share::of(tau, tau_on_device, tau_is_double != 0);
  return all.size() > Updates::kMaxEntries && takes_many() ? update_all<Largest>(all, share, stream)
                                                           : update_all<Updates>(all, share, stream);
}

}  // extern "C"
