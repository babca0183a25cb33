// SPDX-License-Identifier: MIT
#include <cuda_runtime_api.h>

#include "current_device.hpp"
#include "stream.h"
#include "transfer.h"

namespace {

// Lets this thread do, for as long as it lives, what could disturb a capture in general and does not here: the events
// asked for are never recorded within one.
class RelaxedCapture {
 public:
  RelaxedCapture() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { (void)cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace

extern "C" {

int fastreplay_cuda_is_done(int device, void* event) {
  const fastreplay::CurrentDevice current{device};
  if (current.error() != cudaSuccess) return -static_cast<int>(current.error());
  const RelaxedCapture relaxed;
  const cudaError_t error = cudaEventQuery(static_cast<cudaEvent_t>(event));
  if (error == cudaErrorNotReady) return 0;
  return error == cudaSuccess ? 1 : -static_cast<int>(error);
}

int fastreplay_cuda_wait_for(int device, void* event) {
  const fastreplay::CurrentDevice current{device};
  if (current.error() != cudaSuccess) return current.error();
  const RelaxedCapture relaxed;
  return cudaEventSynchronize(static_cast<cudaEvent_t>(event));
}

int fastreplay_cuda_is_captured(int device, void* stream) {
  const fastreplay::CurrentDevice current{device};
  if (current.error() != cudaSuccess) return -static_cast<int>(current.error());
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status);
  // Another stream is, and this is the legacy one, which cannot be.
  if (error == cudaErrorStreamCaptureImplicit) return 0;
  if (error != cudaSuccess) return -static_cast<int>(error);
  return status == cudaStreamCaptureStatusNone ? 0 : 1;
}

int fastreplay_cuda_send(void* transfer) {
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

}  // extern "C"
