// SPDX-License-Identifier: MIT
#include <cuda_runtime_api.h>

#include "device.h"

extern "C" {

int fastreplay_cuda_runtime_version() { return CUDART_VERSION; }

int fastreplay_cuda_driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

int fastreplay_cuda_device_count() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  return error == cudaSuccess ? count : -static_cast<int>(error);
}

const char* fastreplay_cuda_error_string(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // extern "C"
