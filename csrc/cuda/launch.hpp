// SPDX-License-Identifier: MIT
// How kernels are launched: their parameters are one struct, which a launch, and so a captured graph, has a copy of.
#pragma once

#include <cuda_runtime_api.h>

namespace fastreplay {

// What any CUDA takes as parameters; from 12.1 on, devices of generation 70 and later take more.
inline constexpr unsigned kParameterBytes = CUDART_VERSION >= 12010 ? 32764 : 4096;

// Unlike <<<>>> and cudaGetLastError(), says what went wrong with this launch, and nothing of calls before it.
template <class Parameters>
cudaError_t launch(void (*kernel)(Parameters), dim3 blocks, unsigned threads, void* stream,
                   const Parameters& parameters) {
  static_assert(sizeof(Parameters) <= kParameterBytes);
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3{threads};
  config.stream = static_cast<cudaStream_t>(stream);
  void* arguments[] = {const_cast<Parameters*>(&parameters)};
  return cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments);
}

}  // namespace fastreplay
