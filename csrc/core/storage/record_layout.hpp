// SPDX-License-Identifier: MIT
// Where the fields of a transition lie in a packed record. Knows sizes and alignments in bytes; dtypes and shapes are
// the bindings' business.
#pragma once

#include <cstddef>
#include <cstdint>
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

// Where a frame lies: bytes from the first record.
using FramePlace = std::uint64_t;

// Fields whose rows are stacks of frames, the oldest first, of which records have most in common: a row of a field goes
// on where that of the field before it ended, and that of the first where the last one's ended in the record before.
struct FrameGroup {
  std::vector<std::size_t> fields;
  std::size_t num_frames;  // of a row
};

// A field's place in the record.
struct Column {
  std::size_t offset;          // bytes from the start of the record
  std::size_t row_bytes;       // bytes of one row
  std::size_t num_frames = 0;  // where the record has the places of so many frames in place of the row; else 0

  [[nodiscard]] std::size_t stored_bytes() const noexcept {
    return num_frames == 0 ? row_bytes : num_frames * sizeof(FramePlace);
  }
};

// The packed record: [field 0][field 1]...[newest frame of group 0]..., each at its dtype's alignment. Beside it is
// room for the frames that no record before has: all of its groups' but the newest of each. Among the fields may be a
// margin, for what somebody else says of the record.
class RecordLayout {
 public:
  struct Frames {
    FrameGroup group;
    std::size_t frame_bytes;
    std::size_t column;        // of the newest frame
    std::size_t extra_offset;  // of the first frame beside the record
  };

  // Throws std::invalid_argument on no fields, a row of no bytes, an alignment that is no power of two, sizes whose sum
  // does not fit, or groups that are not of different fields with rows of as many bytes, a multiple of their frames.
  // The margin lies after the first field of one number, mostly the reward: who looks at it looks at that, too.
  explicit RecordLayout(const std::vector<FieldSize>& fields, std::vector<FrameGroup> groups = {},
                        std::size_t margin_bytes = 0);

  // Of the fields; then of each group's newest frame; then of the places that grouped fields have, as they are.
  [[nodiscard]] const std::vector<Column>& columns() const noexcept { return columns_; }
  [[nodiscard]] std::size_t num_fields() const noexcept { return num_fields_; }
  [[nodiscard]] const std::vector<Frames>& frames() const noexcept { return frames_; }
  // Bytes from the start of the record, a multiple of kMarginAlignment; kNone where it has no margin.
  static constexpr std::size_t kMarginAlignment = 8;
  static constexpr std::size_t kNone = ~std::size_t{0};
  [[nodiscard]] std::size_t margin_offset() const noexcept { return margin_offset_; }
  [[nodiscard]] std::size_t used_bytes() const noexcept { return used_bytes_; }
  [[nodiscard]] std::size_t stride() const noexcept { return stride_; }
  // Of the room beside a record: whole pages, where it is worth giving them back.
  [[nodiscard]] std::size_t extra_bytes() const noexcept { return extra_bytes_; }

 private:
  [[nodiscard]] std::size_t place(std::size_t num_bytes, std::size_t alignment);
  void add_column(std::size_t num_bytes, std::size_t alignment, Column column);
  void add_frames(const std::vector<FieldSize>& fields, std::vector<FrameGroup> groups);

  std::vector<Column> columns_;
  std::size_t num_fields_;
  std::vector<Frames> frames_;
  std::size_t used_bytes_ = 0;  // of a record, without the padding at its end
  std::size_t stride_ = 0;      // bytes from one record to the next
  std::size_t alignment_ = 1;
  std::size_t extra_bytes_ = 0;
  std::size_t margin_offset_ = kNone;
};

}  // namespace fastreplay
