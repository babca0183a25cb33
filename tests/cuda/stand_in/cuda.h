// SPDX-License-Identifier: MIT
// What stands in for CUDA's driver where there is none, as far as the library and its driver ask it: two devices, each
// with the one context that run-times share, and what is current on each thread.
#pragma once

#include <dlfcn.h>

#include <array>
#include <string_view>

namespace stand_in {

struct Context {
  int device;
};
inline std::array<Context, 2> contexts{{{0}, {1}}};
inline thread_local Context* current = nullptr;

}  // namespace stand_in

using CUresult = int;
using CUdevice = int;
using CUcontext = stand_in::Context*;
inline constexpr CUresult CUDA_SUCCESS = 0;
inline constexpr CUresult CUDA_ERROR_INVALID_CONTEXT = 201;

inline CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
inline CUresult cuCtxGetDevice(CUdevice* device) {
  if (stand_in::current == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  *device = stand_in::current->device;
  return CUDA_SUCCESS;
}
inline CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = stand_in::current;
  return CUDA_SUCCESS;
}
inline CUresult cuCtxSetCurrent(CUcontext context) {
  stand_in::current = context;
  return CUDA_SUCCESS;
}
inline CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  *context = &stand_in::contexts.at(static_cast<std::size_t>(device));
  return CUDA_SUCCESS;
}
inline CUresult cuDevicePrimaryCtxRelease(CUdevice) { return CUDA_SUCCESS; }

namespace stand_in {

inline void* find(std::string_view name) {
  if (name == "cuInit") return reinterpret_cast<void*>(&cuInit);
  if (name == "cuCtxGetDevice") return reinterpret_cast<void*>(&cuCtxGetDevice);
  if (name == "cuCtxGetCurrent") return reinterpret_cast<void*>(&cuCtxGetCurrent);
  if (name == "cuCtxSetCurrent") return reinterpret_cast<void*>(&cuCtxSetCurrent);
  if (name == "cuDevicePrimaryCtxRetain") return reinterpret_cast<void*>(&cuDevicePrimaryCtxRetain);
  if (name == "cuDevicePrimaryCtxRelease_v2") return reinterpret_cast<void*>(&cuDevicePrimaryCtxRelease);
  return nullptr;
}

}  // namespace stand_in

// The driver is loaded by name: here, whatever is asked for by name is the one above.
#define dlopen(name, mode) (static_cast<void*>(&stand_in::contexts))
#define dlsym(library, name) stand_in::find(name)
