// SPDX-License-Identifier: MIT
// Owns one zero-filled, aligned region of memory. Knows nothing of what lies in it.
#pragma once

#include <cstddef>
#include <span>

namespace fastreplay {

inline constexpr std::size_t kCacheLine = 64;

// Zero-filled memory, aligned to at least a cache line. Regions of a huge page and more are mapped
// at a huge-page boundary and advised so (5-30 % on random rows); pages are touched lazily.
class Memory {
 public:
  Memory() noexcept = default;
  explicit Memory(std::size_t num_bytes);  // throws std::bad_alloc
  ~Memory();
  Memory(Memory&& other) noexcept;
  Memory& operator=(Memory&& other) noexcept;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t num_bytes() const noexcept { return num_bytes_; }

 private:
  void release() noexcept;

  std::byte* data_ = nullptr;
  std::size_t num_bytes_ = 0;
  void* mapping_ = nullptr;  // start of the mapping, null when data_ came from the allocator
  std::size_t mapping_bytes_ = 0;
};

}  // namespace fastreplay
