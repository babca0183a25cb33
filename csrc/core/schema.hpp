// SPDX-License-Identifier: MIT
// Where the fields of a transition lie: in a packed record of the ring, and in a minibatch block.
// Knows sizes and alignments in bytes; dtypes and shapes are the bindings' business.
#pragma once

#include <cstddef>
#include <vector>

namespace fastreplay {

// The bytes that one field takes in one transition.
struct FieldSize {
  std::size_t row_bytes;
  std::size_t alignment;  // of the field's dtype, a power of two
};

// A field's place in the record.
struct Column {
  std::size_t offset;     // bytes from the start of the record
  std::size_t row_bytes;  // bytes of one row
};

// The packed record: [header][field 0][field 1]..., each field at its dtype's alignment.
class RecordLayout {
 public:
  // header_bytes is room before the first field, for links between records of one stream.
  // Throws std::invalid_argument on no fields, a row of no bytes, an alignment that is no power of
  // two, or sizes whose sum does not fit.
  explicit RecordLayout(const std::vector<FieldSize>& fields, std::size_t header_bytes = 0);

  [[nodiscard]] const std::vector<Column>& columns() const noexcept { return columns_; }
  [[nodiscard]] std::size_t used_bytes() const noexcept { return used_bytes_; }
  [[nodiscard]] std::size_t stride() const noexcept { return stride_; }

 private:
  std::vector<Column> columns_;
  std::size_t used_bytes_ = 0;  // of a record, without the padding at its end
  std::size_t stride_ = 0;      // bytes from one record to the next
};

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
