// SPDX-License-Identifier: MIT
#include <cuda_runtime.h>

#include <cstdint>

#include "block_steps.hpp"
#include "current_device.hpp"
#include "launch.hpp"
#include "mass_tree.hpp"
#include "masses.h"
#include "masses_kernel.hpp"

extern "C" {

uint64_t fastreplay_cuda_masses_bytes(uint64_t capacity) { return fastreplay::MassTree::num_bytes(capacity); }

int fastreplay_cuda_prepare_masses(int device) {
  using namespace fastreplay;
  const CurrentDevice current{device};
  if (current.error() != cudaSuccess) return current.error();
  cudaFuncAttributes attributes;
  if (const auto error = cudaFuncGetAttributes(&attributes, in_steps<MassUpdate>)) return error;
  return cudaFuncGetAttributes(&attributes, in_steps<MassSettling>);
}

int fastreplay_cuda_begin_masses(int device, void* stream, const fastreplay_cuda_masses* masses) {
  const fastreplay::CurrentDevice current{device};
  if (current.error() != cudaSuccess) return current.error();
  const auto num_bytes = static_cast<std::size_t>(fastreplay_cuda_masses_bytes(masses->capacity));
  return cudaMemsetAsync(masses->memory, 0, num_bytes, static_cast<cudaStream_t>(stream));
}

int fastreplay_cuda_settle_masses(int device, void* stream, const fastreplay_cuda_settling* settling) {
  using namespace fastreplay;
  const CurrentDevice current{device};
  if (current.error() != cudaSuccess) return current.error();
  return launch(in_steps<MassSettling>, dim3{1}, MassSettling::kThreads, stream, MassSettling::of(*settling));
}

int fastreplay_cuda_update_masses(int device, void* stream, const fastreplay_cuda_update* update) {
  using namespace fastreplay;
  if (update->count >> 31 != 0) return cudaErrorInvalidValue;
  const CurrentDevice current{device};
  if (current.error() != cudaSuccess) return current.error();
  return launch(in_steps<MassUpdate>, dim3{1}, MassUpdate::kThreads, stream, MassUpdate::of(*update));
}

}  // extern "C"
