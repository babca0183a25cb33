// SPDX-License-Identifier: MIT
// Which CUDA device this thread's calls go to. This library's run-time has a current device of its own, apart
// from torch's.
#pragma once

#include <cuda_runtime_api.h>

namespace fastreplay {

// Makes a device current for as long as it lives.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) : error_{cudaGetDevice(&previous_)} {
    if (error_ == cudaSuccess && previous_ != device) error_ = cudaSetDevice(device);
  }
  ~CurrentDevice() { (void)cudaSetDevice(previous_); }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

  [[nodiscard]] cudaError_t error() const { return error_; }

 private:
  int previous_ = 0;
  cudaError_t error_;
};

}  // namespace fastreplay
