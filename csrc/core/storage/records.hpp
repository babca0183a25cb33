// SPDX-License-Identifier: MIT
// Storage without a protocol: packed records in slots 0, 1, ... of one region. Knows nothing of tickets, of who may
// read or write when, or of whose memory it is.
#pragma once

#include <cstddef>

#include "storage/record_layout.hpp"
#include "storage/region.hpp"

namespace fastreplay {

// n rows of one field: row i starts at data + i * stride_bytes.
struct Rows {
  const std::byte* data;
  std::size_t stride_bytes;
};

class Records {
 public:
  // Throws std::invalid_argument on capacity 0, std::bad_alloc on sizes that do not fit.
  Records(RecordLayout layout, std::size_t capacity);

  [[nodiscard]] const RecordLayout& layout() const noexcept { return layout_; }
  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
  [[nodiscard]] std::size_t num_bytes() const noexcept { return region_.num_bytes(); }
  [[nodiscard]] std::byte* data() noexcept { return region_.data(); }
  [[nodiscard]] std::byte* at(std::size_t slot) noexcept { return region_.data() + slot * layout_.stride(); }
  [[nodiscard]] const std::byte* at(std::size_t slot) const noexcept {
    return region_.data() + slot * layout_.stride();
  }

 private:
  RecordLayout layout_;
  std::size_t capacity_;
  Region region_;
};

}  // namespace fastreplay
