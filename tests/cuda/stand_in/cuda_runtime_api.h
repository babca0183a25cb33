// SPDX-License-Identifier: MIT
// What stands in for CUDA's run-time where there is none: memory of the heap, work that is done when it is queued, and
// graphs that do it again. Of the run-time, what the library and its driver call; its errors, what they rest on.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "cuda.h"

#define CUDART_VERSION 13000

using cudaError_t = int;
inline constexpr cudaError_t cudaSuccess = 0;
inline constexpr cudaError_t cudaErrorInvalidValue = 1;
inline constexpr cudaError_t cudaErrorMemoryAllocation = 2;
inline constexpr cudaError_t cudaErrorInvalidConfiguration = 9;
inline constexpr cudaError_t cudaErrorInsufficientDriver = 35;
inline constexpr cudaError_t cudaErrorInvalidDeviceFunction = 98;
inline constexpr cudaError_t cudaErrorInvalidResourceHandle = 400;
inline constexpr cudaError_t cudaErrorNotReady = 600;
inline constexpr cudaError_t cudaErrorStreamCaptureUnsupported = 900;
inline constexpr cudaError_t cudaErrorStreamCaptureInvalidated = 901;
inline constexpr cudaError_t cudaErrorStreamCaptureImplicit = 906;
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
inline constexpr unsigned cudaStreamNonBlocking = 1;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace stand_in {

using Work = std::vector<std::function<void()>>;
struct Stream {
  int device;
  Work* captured = nullptr;
};
struct Event {};

// Copies a kernel's parameters, and returns its run over all blocks and threads.
using Launch = std::function<std::function<void()>(dim3 blocks, dim3 threads, const void* parameters)>;
inline std::map<const void*, Launch> loaded;  // kernels, by their address on the host

inline int num_captures = 0;  // each of them in global mode
inline bool is_capture_ended = false;
inline thread_local cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
inline thread_local cudaError_t last_error = cudaSuccess;

inline cudaError_t noted(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

// A thread without a context gets one where it calls the run-time.
inline int current_device() {
  if (current == nullptr) current = contexts.data();
  return current->device;
}

// Does what is queued, or notes it where the stream is being captured.
inline cudaError_t queue(Stream* stream, std::function<void()> work) {
  if (stream->device != current_device()) return noted(cudaErrorInvalidResourceHandle);
  if (stream->captured != nullptr) {
    stream->captured->push_back(std::move(work));
  } else {
    work();
  }
  return cudaSuccess;
}

// Of calls that end every thread's captures.
inline cudaError_t ask(const Event* event) {
  if (event == nullptr) return noted(cudaErrorInvalidResourceHandle);
  if (num_captures == 0 || mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  is_capture_ended = true;
  return noted(cudaErrorStreamCaptureUnsupported);
}

}  // namespace stand_in

using cudaStream_t = stand_in::Stream*;
using cudaEvent_t = stand_in::Event*;
using cudaGraph_t = stand_in::Work*;
using cudaGraphExec_t = stand_in::Work*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = static_cast<int>(stand_in::contexts.size());
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) { return cuDevicePrimaryCtxRetain(&stand_in::current, device); }
inline const char* cudaGetErrorString(cudaError_t) { return "an error"; }
inline cudaError_t cudaGetLastError() { return std::exchange(stand_in::last_error, cudaSuccess); }

inline cudaError_t cudaMalloc(void** data, std::size_t num_bytes) {
  (void)stand_in::current_device();
  *data = std::malloc(num_bytes);
  return *data == nullptr ? stand_in::noted(cudaErrorMemoryAllocation) : cudaSuccess;
}
inline cudaError_t cudaFree(void* data) {
  std::free(data);
  return cudaSuccess;
}
inline cudaError_t cudaMallocHost(void** data, std::size_t num_bytes) { return cudaMalloc(data, num_bytes); }
inline cudaError_t cudaFreeHost(void* data) { return cudaFree(data); }
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t num_bytes, cudaMemcpyKind) {
  std::memcpy(to, from, num_bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t num_bytes, cudaMemcpyKind,
                                   cudaStream_t stream) {
  return stand_in::queue(stream, [=] { std::memcpy(to, from, num_bytes); });
}
inline cudaError_t cudaMemsetAsync(void* data, int value, std::size_t num_bytes, cudaStream_t stream) {
  return stand_in::queue(stream, [=] { std::memset(data, value, num_bytes); });
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new stand_in::Stream{stand_in::current_device()};
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  stream->captured = new stand_in::Work;
  stand_in::is_capture_ended = false;
  ++stand_in::num_captures;
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = std::exchange(stream->captured, nullptr);
  --stand_in::num_captures;
  return stand_in::is_capture_ended ? stand_in::noted(cudaErrorStreamCaptureInvalidated) : cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  if (stream == nullptr && stand_in::num_captures != 0) return stand_in::noted(cudaErrorStreamCaptureImplicit);
  const bool is_captured = stream != nullptr && stream->captured != nullptr;
  *status = is_captured ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, stand_in::mode);
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* run, cudaGraph_t graph, unsigned long long) {
  *run = new stand_in::Work{*graph};
  return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t run, cudaStream_t) {
  for (const auto& work : *run) work();
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t run) {
  delete run;
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new stand_in::Event;
  return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) { return stand_in::ask(event); }
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) { return stand_in::ask(event); }
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t stream) {
  return stand_in::queue(stream, [] {});
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t, unsigned) {
  return stand_in::queue(stream, [] {});
}

inline cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** parameters) {
  const auto found = stand_in::loaded.find(kernel);
  if (found == stand_in::loaded.end()) return stand_in::noted(cudaErrorInvalidDeviceFunction);
  return stand_in::queue(config->stream, found->second(config->gridDim, config->blockDim, parameters[0]));
}
