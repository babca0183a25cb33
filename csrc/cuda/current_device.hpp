// SPDX-License-Identifier: MIT
// Which CUDA device this thread's calls go to. This library's run-time is another one than torch's; what both share is
// the driver, whose current context is looked at and put back here.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

namespace fastreplay {

// Functions of the driver, which is there only where there is a device.
struct Driver {
  static const Driver& loaded() {
    static const Driver driver;
    return driver;
  }

  decltype(&cuInit) init = nullptr;
  decltype(&cuCtxGetDevice) device = nullptr;
  decltype(&cuCtxGetCurrent) current = nullptr;
  decltype(&cuCtxSetCurrent) make_current = nullptr;
  decltype(&cuDevicePrimaryCtxRetain) retain = nullptr;
  decltype(&cuDevicePrimaryCtxRelease) release = nullptr;
  bool is_ready = false;

 private:
  Driver() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == nullptr) return;
    const auto find = [library]<class Function>(Function& function, const char* name) {
      function = reinterpret_cast<Function>(dlsym(library, name));
      return function != nullptr;
    };
    is_ready = find(init, "cuInit") && find(device, "cuCtxGetDevice") && find(current, "cuCtxGetCurrent") &&
               find(make_current, "cuCtxSetCurrent") && find(retain, "cuDevicePrimaryCtxRetain") &&
               find(release, "cuDevicePrimaryCtxRelease_v2") && init(0) == CUDA_SUCCESS;
  }
};

// Makes a device current for as long as it lives, and nothing else: where it is current already, it is asked for and no
// more; else the context that was current, or none, is put back. cudaSetDevice() would make one on a device without.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) : driver_{Driver::loaded()}, device_{device} {
    CUdevice current = 0;
    if (!driver_.is_ready) {
      error_ = cudaErrorInsufficientDriver;
    } else if (driver_.device(&current) != CUDA_SUCCESS || current != device) {
      error_ = change();
    }
  }
  ~CurrentDevice() {
    if (!is_changed_) return;
    (void)driver_.make_current(previous_);
    (void)driver_.release(device_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

  [[nodiscard]] cudaError_t error() const { return error_; }

 private:
  // The driver's errors have the run-time's numbers.
  cudaError_t change() {
    if (const auto error = driver_.current(&previous_)) return static_cast<cudaError_t>(error);
    CUcontext primary = nullptr;
    if (const auto error = driver_.retain(&primary, device_)) return static_cast<cudaError_t>(error);
    is_changed_ = true;
    return static_cast<cudaError_t>(driver_.make_current(primary));
  }

  const Driver& driver_;
  CUdevice device_;
  CUcontext previous_ = nullptr;
  bool is_changed_ = false;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace fastreplay
