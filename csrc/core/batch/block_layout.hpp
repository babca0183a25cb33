// SPDX-License-Identifier: MIT
// Where the fields of a minibatch lie in its block. Knows sizes in bytes; dtypes and shapes are the bindings' business.
#pragma once

#include <cstddef>
#include <vector>

#include "storage/record_layout.hpp"

namespace fastreplay {

// A minibatch block: every field contiguous (batch_size, row_bytes), then the tickets, each part at
// a multiple of kPartAlignment, so that one transfer moves them all.
class BlockLayout {
 public:
  static constexpr std::size_t kPartAlignment = 256;

  BlockLayout(const RecordLayout& record, std::size_t batch_size);  // throws std::invalid_argument

  // Whether it was made for records with rows of these sizes.
  [[nodiscard]] bool fits(const RecordLayout& record) const noexcept;
  [[nodiscard]] std::size_t batch_size() const noexcept { return batch_size_; }
  [[nodiscard]] const std::vector<std::size_t>& offsets() const noexcept { return offsets_; }
  [[nodiscard]] std::size_t tickets_offset() const noexcept { return tickets_offset_; }
  [[nodiscard]] std::size_t num_bytes() const noexcept { return num_bytes_; }

 private:
  std::size_t batch_size_;
  std::vector<std::size_t> offsets_;    // of each field, bytes from the start of the block
  std::vector<std::size_t> row_bytes_;  // of each field
  std::size_t tickets_offset_ = 0;
  std::size_t num_bytes_ = 0;
};

}  // namespace fastreplay
