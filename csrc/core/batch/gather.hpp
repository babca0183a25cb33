// SPDX-License-Identifier: MIT
// The one way of rows out of records that lie anywhere in memory into the parts of a block. Knows nothing of tickets,
// of which rows, or of whether what it copied is whole.
//
// Records are asked for some way ahead, into the second cache level: the first has too few miss buffers to overlap
// this many (docs/design/sampling.md has the figures). Short ones are copied in groups, field by field, so that a
// field's size is looked at once a group; long ones by themselves.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "batch/block.hpp"
#include "batch/convert.hpp"
#include "ring/atomics.hpp"
#include "ring/stop_points.hpp"
#include "storage/copy.hpp"
#include "storage/records.hpp"

namespace fastreplay {

// The part of a record that some of its columns span.
struct Extent {
  static constexpr std::size_t kMaxAheadBytes = 65536;  // the second cache level has room for several times as many
  // Of a longer one: the rest comes by itself once it is copied. (All of images of 12 KiB takes a tenth longer.)
  static constexpr std::size_t kMostAskedBytes = 4096;
  // Up to here it is not left to the processor to guess whether a record reaches into one more line, where it is wrong
  // for every other one: one more is asked for always, what is there already where there is none. (256 records of 36
  // bytes take 0.75 of the time so; where more is copied meanwhile, wrong guesses cost less than that.)
  static constexpr std::size_t kGuessedBytes = 128;
  static constexpr std::byte kThere{};

  std::size_t begin = ~std::size_t{0};
  std::size_t end = 0;

  void add(const Column& column) noexcept {
    begin = std::min(begin, column.offset);
    end = std::max(end, column.offset + column.stored_bytes());
  }

  [[nodiscard]] std::size_t num_bytes() const noexcept { return end - begin; }

  // Asks for a record's lines, from where the first begins, so that none is asked for twice, which costs as much as
  // another. Inlined by force: GCC takes a function that only prefetches for one without effect and drops its calls.
  [[gnu::always_inline]] void prefetch(const std::byte* record) const noexcept {
    if (end == 0) return;  // of no column
    const std::byte* const asked = record + begin;
    const std::size_t before = reinterpret_cast<std::uintptr_t>(asked) % kCacheLine;
    const std::byte* const first = asked - before;
    if (num_bytes() > kGuessedBytes) {
      const std::byte* const last = asked + std::min(num_bytes(), kMostAskedBytes) - 1;
      for (const std::byte* line = first; line <= last; line += kCacheLine) __builtin_prefetch(line, 0, 2);
      return;
    }
    std::size_t at = 0;
    for (; at < num_bytes(); at += kCacheLine) __builtin_prefetch(first + at, 0, 2);
    __builtin_prefetch(at < before + num_bytes() ? first + at : &kThere, 0, 2);
  }
};

// How records are gone through whose fields are copied: how far ahead of its copy one is asked for, and how many are
// copied together.
struct Reach {
  static constexpr std::size_t kGroupBytes = 4096;
  static constexpr std::size_t kMaxAheadRows = 256;
  static constexpr std::size_t kMaxGroupRows = 16;
  // From here on a record is copied by itself: what then counts is that as few instructions and guesses as can be lie
  // between two that ask for lines, so that the processor sees the next before the last have come.
  static constexpr std::size_t kLongBytes = 512;
  // Unless its fields are shorter than this, one with another: a call of the C library for each takes longer then.
  static constexpr std::size_t kLongFieldBytes = 64;

  Reach(std::span<const Column> columns, std::span<const Copied> fields) noexcept {
    std::size_t frames_bytes = 0, copied_bytes = 0;
    bool are_plain = true;
    for (const Copied& each : fields) {
      const Column& column = columns[each.field];
      extent.add(column);
      copied_bytes += each.row_bytes;
      if (column.num_frames > 0) frames_bytes += column.row_bytes;
      are_plain = are_plain && column.num_frames == 0 && each.conversion.is_none();
    }
    const std::size_t record_bytes = extent.num_bytes() + frames_bytes;
    is_long = record_bytes >= kLongBytes && are_plain && copied_bytes >= kLongFieldBytes * fields.size();
    ahead_rows = std::clamp<std::size_t>(Extent::kMaxAheadBytes / record_bytes, 1, kMaxAheadRows);
    group_rows = std::clamp<std::size_t>(std::bit_floor(kGroupBytes / record_bytes), 1, kMaxGroupRows);
  }

  Extent extent;
  bool is_long;
  std::size_t ahead_rows;
  std::size_t group_rows;  // a power of two
};

// Copies a field that is frames of these records to rows so far apart.
inline void load_frames(std::byte* rows, std::size_t rows_stride, std::span<const std::byte* const> records,
                        const Column& column, const FrameMemory& frames) noexcept {
  const std::size_t frame_bytes = column.row_bytes / column.num_frames;
  for (const std::byte* record : records) {
    const auto* places = reinterpret_cast<const FramePlace*>(record + column.offset);
    for (std::size_t frame = 0; frame < column.num_frames; ++frame) {
      // relaxed: as the bytes of a record (storage/copy.hpp).
      load_row(rows + frame * frame_bytes,
               frames.at(StdAtomics::load(places[frame], std::memory_order_relaxed), frame_bytes), frame_bytes);
    }
    rows += rows_stride;
  }
}

// Copies a field of these records to rows of its part.
inline void load_field(const RowsOfPart& rows, const Copied& field, std::span<const std::byte* const> records,
                       const Column& column, const FrameMemory& frames, const ShiftDraw& shifts) noexcept {
  if (!field.conversion.is_none()) [[unlikely]]
    return load_converted(rows, field, records, column, frames, shifts);
  std::byte* const first = rows.part + rows.first * column.row_bytes;
  const std::size_t rows_stride = rows.num_apart * column.row_bytes;
  if (column.num_frames > 0) [[unlikely]]
    return load_frames(first, rows_stride, records, column, frames);
  if (rows.num_apart == 1) [[likely]]
    return load_rows(first, records, column.offset, column.row_bytes);
  load_rows_apart(first, rows_stride, records, column.offset, column.row_bytes);
}

// Whether records are in the second cache level already, or are to be asked for.
enum class Distance { kFar, kNear };

// Rows that records go to, of each of their parts.
struct RowsOfParts {
  std::size_t first;
  std::size_t num;
  std::size_t num_apart = 1;  // from one to the next
};

// The records that next() points to, one after another, asked for before they are copied.
template <Distance kDistance, class Next>
class Coming {
 public:
  // Those asked for and not yet copied. Apart, so that the rest stays in registers where these are handed on.
  using Asked = std::array<const std::byte*, 2 * Reach::kMaxAheadRows>;

  Coming(const Extent& extent, std::size_t num_records, Asked& asked, Next next) noexcept
      : num_records_{num_records}, extent_{extent}, asked_{asked}, next_{next} {}

  [[nodiscard]] std::size_t num_records() const noexcept { return num_records_; }

  // Inlined by force: each loop of a gather has its own guesses.
  [[gnu::always_inline]] void ask_to(std::size_t end) noexcept {
    for (; num_asked_ < end; ++num_asked_) {
      const std::byte* record = next_();
      asked_[num_asked_ % asked_.size()] = record;
      if constexpr (kDistance == Distance::kFar) extent_.prefetch(record);
    }
  }

  // Of those from `first` on that were asked for, so many, or less.
  [[nodiscard]] std::span<const std::byte* const> group(std::size_t first, std::size_t most) const noexcept {
    const std::size_t place = first % asked_.size();
    return {asked_.data() + place, std::min(most, asked_.size() - place)};
  }

 private:
  const std::size_t num_records_;
  const Extent extent_;
  Asked& asked_;
  Next next_;
  std::size_t num_asked_ = 0;
};

// Copies fields of long records, all of a record's before the next. This and the next are inlined by force, so that
// what is coming stays in registers.
template <class Coming>
[[gnu::always_inline]] inline void gather_long(Coming& coming, const Reach& reach, std::span<const Column> columns,
                                               std::span<const Copied> fields, std::byte* data,
                                               const RowsOfParts& rows) noexcept {
  for (std::size_t copied = 0; copied < coming.num_records(); ++copied) {
    coming.ask_to(std::min(coming.num_records(), copied + reach.ahead_rows + 1));
    const std::byte* record = coming.group(copied, 1).front();
    const std::size_t row = rows.first + copied * rows.num_apart;
    for (const Copied& each : fields) {
      load_long_row(data + each.offset + row * each.row_bytes, record + columns[each.field].offset, each.row_bytes);
      at_stop_point(StopPoint::kFieldCopied);
    }
  }
}

// Copies fields of short records, or otherwise than they are stored: in groups, a field of all of a group before the
// next.
template <class Coming>
[[gnu::always_inline]] inline void gather_groups(Coming& coming, const Reach& reach, std::span<const Column> columns,
                                                 const FrameMemory& frames, std::span<const Copied> fields,
                                                 std::byte* data, const RowsOfParts& rows,
                                                 const ShiftDraw& shifts) noexcept {
  const std::size_t share = (reach.group_rows + fields.size() - 1) / fields.size();
  for (std::size_t copied = 0; copied < coming.num_records();) {
    const auto group = coming.group(copied, std::min(reach.group_rows, coming.num_records() - copied));
    const std::size_t most = std::min(coming.num_records(), copied + reach.ahead_rows + group.size());
    const std::size_t first = rows.first + copied * rows.num_apart;
    std::size_t end = copied + reach.ahead_rows;
    for (const Copied& each : fields) {
      // A few at a time: more than there are miss buffers would wait for each other, and the copies for them.
      end = std::min(most, end + share);
      coming.ask_to(end);
      load_field({data + each.offset, first, rows.num_apart}, each, group, columns[each.field], frames, shifts);
      at_stop_point(StopPoint::kFieldCopied);
    }
    copied += group.size();
  }
}

// Copies fields of the records that next() points to, one after another, to rows of their parts in the block at `data`.
// Images are shifted by the words that `shifts` says.
template <Distance kDistance, class Next>
void gather_fields(std::span<const Column> columns, const FrameMemory& frames, std::span<const Copied> fields,
                   std::byte* data, const RowsOfParts& rows, const ShiftDraw& shifts, Next next) noexcept {
  if (fields.empty()) return;
  const Reach reach{columns, fields};
  typename Coming<kDistance, Next>::Asked asked;
  Coming<kDistance, Next> coming{reach.extent, rows.num, asked, next};
  compiler_barrier();
  if (reach.is_long) {
    gather_long(coming, reach, columns, fields, data, rows);
  } else {
    gather_groups(coming, reach, columns, frames, fields, data, rows, shifts);
  }
  compiler_barrier();
}

// The same out of the records in the slots that next_slot() names, one after another.
template <Distance kDistance = Distance::kFar, class NextSlot>
void gather(const Records& records, std::span<const Copied> fields, const Block& block, std::size_t first_row,
            std::size_t num_rows, NextSlot next_slot, const ShiftDraw& shifts = {}) noexcept {
  gather_fields<kDistance>(records.layout().columns(), records.frames(), fields, block.data(),
                           {.first = first_row, .num = num_rows}, shifts, [&] { return records.at(next_slot()); });
}

}  // namespace fastreplay
