// SPDX-License-Identifier: MIT
// Bytes, and whose they are: memory of this process, or of whoever maps it (mapped_file.hpp). What bytes lie in is
// decided here and nowhere above. Knows nothing of what lies in it.
#pragma once

#include <cstddef>
#include <memory>

namespace fastreplay {

class Paging;

inline constexpr std::size_t kCacheLine = 64;

// Zero-filled memory, aligned to at least a cache line. Regions of a huge page and more are mapped
// at a huge-page boundary and advised so (5-30 % on random rows); pages are touched lazily.
//
// Behind it there may be a sparse part, from the next page on: of it only those pages are paid for that were written
// since they were last dropped. Of a keeper's memory all is paid for, and nothing dropped.
class Region {
 public:
  Region() noexcept = default;
  explicit Region(std::size_t num_bytes, std::size_t num_sparse_bytes = 0);  // throws std::bad_alloc
  // Of memory that is the keeper's, for as long as it has a region of it.
  Region(std::shared_ptr<const void> keeper, std::byte* data, std::size_t num_bytes) noexcept;
  ~Region();
  Region(Region&& other) noexcept;
  Region& operator=(Region&& other) noexcept;
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t num_bytes() const noexcept { return num_bytes_; }  // without the sparse part
  [[nodiscard]] std::byte* sparse() const noexcept;

  // Whether it is of a keeper's memory.
  [[nodiscard]] bool is_lent() const noexcept { return keeper_ != nullptr; }

  // Gives back what are whole pages among bytes of the sparse part, all of which are then as they were or zero.
  void drop(std::byte* begin, std::size_t num_bytes) const noexcept;

  static constexpr std::size_t kPageBytes = 4096;
  static constexpr std::size_t kHugePageBytes = 512 * kPageBytes;

 private:
  void release() noexcept;

  std::byte* data_ = nullptr;
  std::size_t num_bytes_ = 0;
  void* mapping_ = nullptr;  // start of the mapping, null when data_ came from the allocator
  std::size_t mapping_bytes_ = 0;
  std::shared_ptr<const void> keeper_;  // null where the memory is the region's
};

// Where regions are taken from, one after another.
class Memory {
 public:
  virtual ~Memory() = default;
  // Zero-filled where nobody took it before, as Region's constructor makes it; throws what it throws, and more.
  [[nodiscard]] virtual Region take(std::size_t num_bytes, std::size_t num_sparse_bytes = 0) = 0;
  // Null unless it is larger than what fits: then who copies at random asks for pages first.
  [[nodiscard]] virtual std::shared_ptr<Paging> paging() const { return nullptr; }

  // That of this process.
  [[nodiscard]] static Memory& own() noexcept;

 protected:
  Memory() = default;
  Memory(const Memory&) = default;
  Memory& operator=(const Memory&) = default;
};

}  // namespace fastreplay
