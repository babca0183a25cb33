// SPDX-License-Identifier: MIT
// What stands in for CUDA's run-time where there is none: memory of the heap, work that is done when it is queued, and
// graphs that do it again. Of the run-time, what the driver calls.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

using cudaError_t = int;
inline constexpr cudaError_t cudaSuccess = 0;
inline constexpr cudaError_t cudaErrorMemoryAllocation = 2;
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal };
inline constexpr unsigned cudaStreamNonBlocking = 1;

namespace stand_in {

using Work = std::vector<std::function<void()>>;
struct Stream {
  Work* captured = nullptr;
};
struct Event {};

// Does what is queued, or notes it where the stream is being captured.
inline void queue(Stream* stream, std::function<void()> work) {
  if (stream->captured != nullptr) {
    stream->captured->push_back(std::move(work));
  } else {
    work();
  }
}

}  // namespace stand_in

using cudaStream_t = stand_in::Stream*;
using cudaEvent_t = stand_in::Event*;
using cudaGraph_t = stand_in::Work*;
using cudaGraphExec_t = stand_in::Work*;

inline cudaError_t cudaMalloc(void** data, std::size_t num_bytes) {
  *data = std::malloc(num_bytes);
  return *data == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
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
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new stand_in::Stream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  stream->captured = new stand_in::Work;
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = std::exchange(stream->captured, nullptr);
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
