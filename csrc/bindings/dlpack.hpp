// SPDX-License-Identifier: MIT
// The C structures by which libraries hand tensors to each other (DLPack 0.x, dmlc.github.io/dlpack: an ABI, its
// names are the standard's). Must not know Python.
#pragma once

#include <cstdint>

namespace fastreplay::dlpack {

inline constexpr char kCapsule[] = "dltensor";  // of a capsule that nobody has taken the tensor out of

struct DLDevice {
  std::int32_t device_type;
  std::int32_t device_id;
};
inline constexpr DLDevice kCpu{1, 0};

inline constexpr std::uint8_t kBFloat = 4;

struct DLDataType {
  std::uint8_t code;  // 0 int, 1 unsigned, 2 float, 4 bfloat, 5 complex, 6 bool
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  std::int32_t ndim;
  DLDataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements
  std::uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor*);
};

}  // namespace fastreplay::dlpack
