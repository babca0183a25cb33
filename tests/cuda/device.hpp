// SPDX-License-Identifier: MIT
// What a driver of the CUDA part does on a device: memory, streams, graphs. Each array is an allocation of its own, so
// that compute-sanitizer sees what goes beyond it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "device.h"

namespace cuda {

using Bytes = std::vector<std::byte>;

// Throws where a cudaError_t is not 0, or the launch before went wrong.
inline void ok(int error, const char* what) {
  if (error != 0) throw std::runtime_error(std::string{what} + ": " + fastreplay_cuda_error_string(error));
}

// Waits until all that was queued is done.
inline void finish() { ok(cudaDeviceSynchronize(), "what was queued"); }

template <class T>
Bytes bytes_of(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span{values});
  return {bytes.begin(), bytes.end()};
}

class Array {
 public:
  // Holds nothing that was written, as initcheck wants it.
  explicit Array(std::size_t num_bytes) : num_bytes_{num_bytes} { ok(cudaMalloc(&data_, num_bytes), "cudaMalloc"); }
  explicit Array(const Bytes& bytes) : Array(bytes.size()) { set(bytes); }
  Array(Array&& other) noexcept : data_{other.data_}, num_bytes_{other.num_bytes_} { other.data_ = nullptr; }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  Array& operator=(Array&&) = delete;
  ~Array() { (void)cudaFree(data_); }

  void set(const Bytes& bytes) const {
    ok(cudaMemcpy(data_, bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "cudaMemcpy to the device");
  }
  [[nodiscard]] Bytes get(std::size_t offset, std::size_t num_bytes) const {
    Bytes bytes(num_bytes);
    ok(cudaMemcpy(bytes.data(), at(offset), num_bytes, cudaMemcpyDeviceToHost), "cudaMemcpy from the device");
    return bytes;
  }
  [[nodiscard]] Bytes get() const { return get(0, num_bytes_); }

  template <class T = std::byte>
  [[nodiscard]] T* at(std::size_t offset = 0) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(data_) + offset);
  }

 private:
  void* data_ = nullptr;
  std::size_t num_bytes_;
};

// A stream that waits for no other.
class Stream {
 public:
  Stream() { ok(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate"); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { (void)cudaStreamDestroy(stream_); }

  [[nodiscard]] cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// What `queue` queues on the stream, captured.
class Graph {
 public:
  Graph(const Stream& stream, const std::function<void()>& queue) {
    ok(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
    queue();
    ok(cudaStreamEndCapture(stream.get(), &graph_), "cudaStreamEndCapture");
    ok(cudaGraphInstantiate(&run_, graph_, 0), "cudaGraphInstantiate");
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph() {
    (void)cudaGraphExecDestroy(run_);
    (void)cudaGraphDestroy(graph_);
  }

  void replay(const Stream& stream) const { ok(cudaGraphLaunch(run_, stream.get()), "cudaGraphLaunch"); }

 private:
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t run_ = nullptr;
};

}  // namespace cuda
