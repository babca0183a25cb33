// SPDX-License-Identifier: MIT
// Rows whose every byte tells which transition, field and place it belongs to.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "check.hpp"
#include "minibatch.hpp"
#include "ring.hpp"

namespace rows {

using fastreplay::Block;
using fastreplay::FieldSize;
using fastreplay::RecordLayout;
using fastreplay::Ring;
using fastreplay::Rows;
using fastreplay::Ticket;

inline std::byte byte_of(std::uint64_t id, std::size_t field, std::size_t place) {
  return static_cast<std::byte>(check::Random{id * 1000003 + field * 8191 + place}.next());
}

inline std::vector<FieldSize> fields_of(std::span<const std::size_t> row_bytes) {
  std::vector<FieldSize> fields;
  for (const std::size_t bytes : row_bytes) {
    const std::size_t alignment = bytes % 8 == 0 ? 8 : bytes % 4 == 0 ? 4 : bytes % 2 == 0 ? 2 : 1;
    fields.push_back({.row_bytes = bytes, .alignment = alignment});
  }
  return fields;
}

// The rows of transitions id, id + 1, ..., contiguous field by field.
class Batch {
 public:
  Batch(const RecordLayout& layout, std::uint64_t first_id, std::size_t num_rows) {
    for (std::size_t f = 0; f < layout.columns().size(); ++f) {
      const std::size_t row_bytes = layout.columns()[f].row_bytes;
      auto& bytes = bytes_.emplace_back(num_rows * row_bytes);
      for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = byte_of(first_id + i / row_bytes, f, i % row_bytes);
    }
    for (std::size_t f = 0; f < bytes_.size(); ++f) {
      rows_.push_back({.data = bytes_[f].data(), .stride_bytes = layout.columns()[f].row_bytes});
    }
  }

  [[nodiscard]] std::span<const Rows> rows() const { return rows_; }

 private:
  std::vector<std::vector<std::byte>> bytes_;
  std::vector<Rows> rows_;
};

// Inserts transitions id, id + 1, ... in chunks that the ring takes.
inline void insert(Ring& ring, std::uint64_t first_id, std::size_t num_rows) {
  const Batch batch{ring.layout(), first_id, num_rows};
  for (std::size_t done = 0; done < num_rows;) {
    const std::size_t chunk = std::min(num_rows - done, ring.max_rows_per_insert());
    CHECK(ring.insert(batch.rows(), done, chunk, std::chrono::seconds{10}));
    done += chunk;
  }
}

inline bool is_record_of(const Ring& ring, const std::byte* record, std::uint64_t id) {
  for (std::size_t f = 0; f < ring.layout().columns().size(); ++f) {
    const auto [offset, row_bytes] = ring.layout().columns()[f];
    for (std::size_t i = 0; i < row_bytes; ++i) {
      if (record[offset + i] != byte_of(id, f, i)) return false;
    }
  }
  return true;
}

inline bool is_row_of(const Ring& ring, const Block& block, std::size_t row, std::uint64_t id) {
  for (std::size_t f = 0; f < ring.layout().columns().size(); ++f) {
    const std::size_t row_bytes = ring.layout().columns()[f].row_bytes;
    const std::byte* bytes = block.data() + block.layout().offsets()[f] + row * row_bytes;
    for (std::size_t i = 0; i < row_bytes; ++i) {
      if (bytes[i] != byte_of(id, f, i)) return false;
    }
  }
  return true;
}

}  // namespace rows
