// SPDX-License-Identifier: MIT
#include <cuda_runtime_api.h>

#include "current_device.hpp"
#include "transfer.h"

extern "C" int fastreplay_cuda_send(void* transfer) {
  const auto& copy = *static_cast<const fastreplay_cuda_transfer*>(transfer);
  const fastreplay::CurrentDevice current{copy.device};
  if (current.error() != cudaSuccess) return current.error();
  const auto stream = static_cast<cudaStream_t>(copy.stream);
  if (const auto error = cudaStreamWaitEvent(stream, static_cast<cudaEvent_t>(copy.release), 0)) return error;
  if (const auto error = cudaMemcpyAsync(copy.target, copy.host, copy.num_bytes, cudaMemcpyHostToDevice, stream)) {
    return error;
  }
  return cudaEventRecord(static_cast<cudaEvent_t>(copy.copied), stream);
}
