// SPDX-License-Identifier: MIT
#include "storage/record_layout.hpp"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <utility>

#include "storage/region.hpp"

namespace fastreplay {

namespace {

constexpr std::size_t kRecordAlignment = 16;

// Where the frames beside a record take so much, they lie in pages of their own, to be given back: a page for each
// trajectory's beginning costs less than keeping the room of every record, where trajectories have 16 steps or more.
constexpr std::size_t kLeastDropped = Region::kPageBytes / 16;

// Records that start on a cache line touch the fewest lines (cheetah, 165 bytes: 192 beats 176 by
// 5-10 %); where that would cost more than an eighth of the memory, 16 bytes serve as well.
std::size_t record_stride(std::size_t used_bytes, std::size_t alignment) {
  const std::size_t compact = round_up(used_bytes, std::max(kRecordAlignment, alignment));
  const std::size_t whole_lines = round_up(compact, kCacheLine);
  return whole_lines - compact <= compact / 8 ? whole_lines : compact;
}

// How many frames a row of each field consists of; 0 of what is no stack.
std::vector<std::size_t> frames_of_rows(const std::vector<FieldSize>& fields, const std::vector<FrameGroup>& groups) {
  std::vector<std::size_t> num_frames(fields.size());
  for (const FrameGroup& group : groups) {
    if (group.fields.empty()) throw std::invalid_argument{"a group of no fields"};
    for (const std::size_t field : group.fields) {
      if (field >= fields.size() || num_frames[field] != 0) throw std::invalid_argument{"a group of other fields"};
      const std::size_t row_bytes = fields[field].row_bytes;
      if (group.num_frames == 0 || row_bytes % group.num_frames != 0 ||
          row_bytes != fields[group.fields.front()].row_bytes) {
        throw std::invalid_argument{"rows that do not consist of the group's frames"};
      }
      num_frames[field] = group.num_frames;
    }
  }
  return num_frames;
}

}  // namespace

RecordLayout::RecordLayout(const std::vector<FieldSize>& fields, std::vector<FrameGroup> groups,
                           std::size_t margin_bytes)
    : num_fields_{fields.size()} {
  if (fields.empty()) throw std::invalid_argument{"a record needs at least one field"};
  const std::vector<std::size_t> num_frames = frames_of_rows(fields, groups);
  columns_.reserve(2 * fields.size() + groups.size());
  const auto add_margin = [&] {
    if (margin_bytes > 0 && margin_offset_ == kNone) margin_offset_ = place(margin_bytes, kMarginAlignment);
  };
  for (std::size_t f = 0; f < fields.size(); ++f) {
    const Column column{.offset = 0, .row_bytes = fields[f].row_bytes, .num_frames = num_frames[f]};
    const std::size_t alignment = column.num_frames == 0 ? fields[f].alignment : sizeof(FramePlace);
    if (column.row_bytes > kMaxBytes) throw std::invalid_argument{"the record is too large"};
    add_column(column.stored_bytes(), alignment, column);
    if (column.num_frames == 0 && column.row_bytes <= sizeof(double)) add_margin();
  }
  add_margin();
  add_frames(fields, std::move(groups));
  stride_ = record_stride(used_bytes_, alignment_);
}

// Where so many bytes come next.
std::size_t RecordLayout::place(std::size_t num_bytes, std::size_t alignment) {
  if (num_bytes == 0) throw std::invalid_argument{"a row has at least one byte"};
  if (!std::has_single_bit(alignment)) throw std::invalid_argument{"alignment is no power of two"};
  const std::size_t offset = round_up(used_bytes_, alignment);
  if (offset > kMaxBytes || num_bytes > kMaxBytes - offset) throw std::invalid_argument{"the record is too large"};
  used_bytes_ = offset + num_bytes;
  alignment_ = std::max(alignment_, alignment);
  return offset;
}

void RecordLayout::add_column(std::size_t num_bytes, std::size_t alignment, Column column) {
  column.offset = place(num_bytes, alignment);
  columns_.push_back(column);
}

void RecordLayout::add_frames(const std::vector<FieldSize>& fields, std::vector<FrameGroup> groups) {
  std::vector<Column> places;
  for (FrameGroup& group : groups) {
    const auto& [row_bytes, alignment] = fields[group.fields.front()];
    const std::size_t frame_bytes = row_bytes / group.num_frames;
    for (const std::size_t field : group.fields) {
      const Column& column = columns_[field];
      places.push_back({.offset = column.offset, .row_bytes = column.stored_bytes()});
    }
    add_column(frame_bytes, alignment, {.offset = 0, .row_bytes = frame_bytes});
    const std::size_t num_extra = group.fields.size() * group.num_frames - 1;
    const std::size_t extra_offset = round_up(extra_bytes_, alignment);
    if (frame_bytes > (kMaxBytes - extra_offset) / (num_extra + 1))
      throw std::invalid_argument{"the record is too large"};
    extra_bytes_ = extra_offset + num_extra * frame_bytes;
    frames_.push_back({.group = std::move(group),
                       .frame_bytes = frame_bytes,
                       .column = columns_.size() - 1,
                       .extra_offset = extra_offset});
  }
  columns_.insert(columns_.end(), places.begin(), places.end());
  extra_bytes_ = round_up(extra_bytes_, extra_bytes_ >= kLeastDropped ? Region::kPageBytes : kRecordAlignment);
}

}  // namespace fastreplay
