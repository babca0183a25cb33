// SPDX-License-Identifier: MIT
// Where the fields of a transition lie in a packed record. Knows sizes and alignments in bytes; dtypes and shapes are
// the bindings' business.
#pragma once

#include <cstddef>
#include <limits>
#include <vector>

namespace fastreplay {

// Of a record or a minibatch: sums of two such sizes fit.
inline constexpr std::size_t kMaxBytes = std::numeric_limits<std::ptrdiff_t>::max() / 4;

[[nodiscard]] constexpr std::size_t round_up(std::size_t value, std::size_t alignment) noexcept {
  return (value + alignment - 1) / alignment * alignment;
}

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

}  // namespace fastreplay
