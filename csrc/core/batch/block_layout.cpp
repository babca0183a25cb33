// SPDX-License-Identifier: MIT
#include "batch/block_layout.hpp"

#include <algorithm>
#include <cstdint>
#include <stdexcept>

namespace fastreplay {

BlockLayout::BlockLayout(const RecordLayout& record, std::size_t batch_size) : batch_size_{batch_size} {
  const std::size_t row_bytes = record.used_bytes() + sizeof(std::uint64_t);
  if (batch_size > kMaxBytes / row_bytes) throw std::invalid_argument{"the minibatch is too large"};
  offsets_.reserve(record.columns().size());
  row_bytes_.reserve(record.columns().size());
  for (const Column& column : record.columns()) {
    offsets_.push_back(num_bytes_);
    row_bytes_.push_back(column.row_bytes);
    num_bytes_ += round_up(column.row_bytes * batch_size, kPartAlignment);
  }
  tickets_offset_ = num_bytes_;
  num_bytes_ += round_up(sizeof(std::uint64_t) * batch_size, kPartAlignment);
}

bool BlockLayout::fits(const RecordLayout& record) const noexcept {
  return std::equal(row_bytes_.begin(), row_bytes_.end(), record.columns().begin(), record.columns().end(),
                    [](std::size_t row_bytes, const Column& column) { return row_bytes == column.row_bytes; });
}

}  // namespace fastreplay
