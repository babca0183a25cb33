// SPDX-License-Identifier: MIT
// Bytes, and whose they are: anonymous memory of this process. What else bytes may lie in (shared memory, a file) is
// decided here and nowhere above. Knows nothing of what lies in it.
#pragma once

#include <cstddef>

namespace fastreplay {

inline constexpr std::size_t kCacheLine = 64;

// Zero-filled memory, aligned to at least a cache line. Regions of a huge page and more are mapped
// at a huge-page boundary and advised so (5-30 % on random rows); pages are touched lazily.
//
// Behind it there may be a sparse part, from the next page on: of it only those pages are paid for that were written
// since they were last dropped.
class Region {
 public:
  Region() noexcept = default;
  explicit Region(std::size_t num_bytes, std::size_t num_sparse_bytes = 0);  // throws std::bad_alloc
  ~Region();
  Region(Region&& other) noexcept;
  Region& operator=(Region&& other) noexcept;
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t num_bytes() const noexcept { return num_bytes_; }  // without the sparse part
  [[nodiscard]] std::byte* sparse() const noexcept;

  // Gives back what are whole pages among bytes of the sparse part, all of which are then as they were or zero.
  void drop(std::byte* begin, std::size_t num_bytes) const noexcept;

  static constexpr std::size_t kPageBytes = 4096;

 private:
  void release() noexcept;

  std::byte* data_ = nullptr;
  std::size_t num_bytes_ = 0;
  void* mapping_ = nullptr;  // start of the mapping, null when data_ came from the allocator
  std::size_t mapping_bytes_ = 0;
};

}  // namespace fastreplay
