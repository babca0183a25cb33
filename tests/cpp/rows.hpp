// SPDX-License-Identifier: MIT
// Rows whose every byte tells which transition, field and place it belongs to, and inserts of them,
// also such that stop half-way.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "batch/block.hpp"
#include "check.hpp"
#include "pages.hpp"
#include "ring/ring.hpp"

namespace rows {

using fastreplay::Block;
using fastreplay::FieldSize;
using fastreplay::RecordLayout;
using fastreplay::Ring;
using fastreplay::Rows;
using fastreplay::Ticket;

inline std::byte byte_of(std::uint64_t id, std::size_t field, std::size_t place) {
  return static_cast<std::byte>(
      check::Random{id * 0xD6E8FEB86659FD93 + field * 0xC2B2AE3D27D4EB4F + place * 0x165667B19E3779F9}.next());
}

inline bool are_bytes_of(const std::byte* row, std::size_t row_bytes, std::uint64_t id, std::size_t field) {
  for (std::size_t i = 0; i < row_bytes; ++i) {
    if (row[i] != byte_of(id, field, i)) return false;
  }
  return true;
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

// Inserts prepared transitions without allocating, so that it may be done in the middle of a copy.
class Writer {
 public:
  Writer(Ring& ring, std::uint64_t first_id, std::size_t num_rows)
      : ring_{ring}, batch_{ring.records().layout(), first_id, num_rows} {}

  // True if the next num_rows transitions went in.
  bool insert(std::size_t num_rows = 1, std::chrono::nanoseconds patience = {}) {
    if (!ring_.insert(batch_.rows(), done_, num_rows, patience)) return false;
    done_ += num_rows;
    return true;
  }

  // True if the next num_rows transitions went in, one at a time.
  bool insert_each(std::size_t num_rows) {
    for (; num_rows > 0 && insert(); --num_rows) {
    }
    return num_rows == 0;
  }

 private:
  Ring& ring_;
  Batch batch_;
  std::size_t done_ = 0;
};

// Inserts transitions id, id + 1, ... in chunks that the ring takes.
inline void insert(Ring& ring, std::uint64_t first_id, std::size_t num_rows) {
  Writer writer{ring, first_id, num_rows};
  for (std::size_t done = 0; done < num_rows;) {
    const std::size_t chunk = std::min(num_rows - done, ring.max_rows_per_insert());
    CHECK(writer.insert(chunk, std::chrono::seconds{10}));
    done += chunk;
  }
}

// A layout for insert_half(): field 1 takes a page.
inline RecordLayout page_layout() {
  return RecordLayout{fields_of(std::vector<std::size_t>{8, pages::page_bytes(), 3})};
}

// Inserts transitions id, id + 1, ... at once into a ring of page_layout(), and runs `half_way` when
// they are reserved, field 0 is copied, and of field 1 all but the last row at most.
inline void insert_half(Ring& ring, std::uint64_t first_id, std::size_t num_rows, std::function<void()> half_way) {
  const Batch batch{ring.records().layout(), first_id, num_rows};
  const pages::Guarded source{num_rows * pages::page_bytes()};
  std::memcpy(source.bytes().data(), batch.rows()[1].data, source.bytes().size());
  std::vector<Rows> fields{batch.rows().begin(), batch.rows().end()};
  fields[1].data = source.bytes().data();
  pages::Trap trap{source.bytes().last(pages::page_bytes()), std::move(half_way)};
  trap.close();
  CHECK(ring.insert(fields, 0, num_rows, std::chrono::seconds{10}));
  CHECK_EQ(trap.num_touches(), 1);
}

inline bool is_record_of(const Ring& ring, const std::byte* record, std::uint64_t id) {
  for (std::size_t f = 0; f < ring.records().layout().columns().size(); ++f) {
    const auto [offset, row_bytes, num_frames] = ring.records().layout().columns()[f];
    if (!are_bytes_of(record + offset, row_bytes, id, f)) return false;
  }
  return true;
}

inline bool is_row_of(const Ring& ring, const Block& block, std::size_t row, std::uint64_t id) {
  for (std::size_t f = 0; f < ring.records().layout().columns().size(); ++f) {
    const std::size_t row_bytes = ring.records().layout().columns()[f].row_bytes;
    const std::byte* bytes = block.data() + block.layout().offsets()[f] + row * row_bytes;
    if (!are_bytes_of(bytes, row_bytes, id, f)) return false;
  }
  return true;
}

}  // namespace rows
