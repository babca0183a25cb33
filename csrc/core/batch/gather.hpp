// SPDX-License-Identifier: MIT
// The one way of rows out of records that lie anywhere in memory into the parts of a block. Knows nothing of tickets,
// of which rows, or of whether what it copied is whole.
//
// Records are asked for some way ahead, into the second cache level: the first has too few miss buffers to overlap
// this many (ARCHITECTURE.md, Sampling, has the figures). They are copied in groups, field by field, so that a field's
// size is looked at once a group.
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
  static constexpr std::size_t kMaxAheadBytes = 16384;
  // Of a longer one: the rest comes by itself once it is copied. (All of images of 12 KiB takes a tenth longer.)
  static constexpr std::size_t kMostAskedBytes = 4096;

  std::size_t begin = ~std::size_t{0};
  std::size_t end = 0;

  void add(const Column& column) noexcept {
    begin = std::min(begin, column.offset);
    end = std::max(end, column.offset + column.stored_bytes());
  }

  [[nodiscard]] std::size_t num_bytes() const noexcept { return end - begin; }

  // Inlined by force: GCC takes a function that only prefetches for one without effect and drops its calls.
  [[gnu::always_inline]] void prefetch(const std::byte* record) const noexcept {
    if (end == 0) return;  // of no column
    const std::byte* const last = record + begin + std::min(num_bytes(), kMostAskedBytes) - 1;
    // From where the first line begins, so that none is asked for twice, which costs as much as another.
    const std::byte* line = record + begin;
    line -= reinterpret_cast<std::uintptr_t>(line) % kCacheLine;
    for (; line <= last; line += kCacheLine) __builtin_prefetch(line, 0, 2);
  }
};

// How far ahead of its copy a record is asked for, and how many are copied together.
struct Reach {
  static constexpr std::size_t kGroupBytes = 4096;
  static constexpr std::size_t kMaxAheadRows = 64;
  static constexpr std::size_t kMaxGroupRows = 16;

  explicit Reach(std::size_t record_bytes) noexcept
      : ahead_rows{std::clamp<std::size_t>(Extent::kMaxAheadBytes / record_bytes, 1, kMaxAheadRows)},
        group_rows{std::clamp<std::size_t>(std::bit_floor(kGroupBytes / record_bytes), 1, kMaxGroupRows)} {}

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

// Where records go: lines of rows, counted in rows of a part.
struct Lines {
  std::size_t first_row;  // of the first line
  std::size_t num_rows;   // of a line
  std::size_t num_lines = 1;
  std::size_t num_apart = 1;        // from a row of a line to its next
  std::size_t num_lines_apart = 0;  // from a line's first row to that of the next
};

// Copies fields of the records that next() points to, one after another, into lines of their parts in the block at
// `data`. Images are shifted by the words that `shifts` says.
template <Distance kDistance, class Next>
void gather_fields(std::span<const Column> columns, const FrameMemory& frames, std::span<const Copied> fields,
                   std::byte* data, const Lines& lines, const ShiftDraw& shifts, Next next) noexcept {
  if (fields.empty()) return;
  Extent extent;
  std::size_t frames_bytes = 0;
  for (const Copied& each : fields) {
    extent.add(columns[each.field]);
    if (columns[each.field].num_frames > 0) frames_bytes += columns[each.field].row_bytes;
  }
  const Reach reach{extent.num_bytes() + frames_bytes};
  std::array<const std::byte*, 2 * Reach::kMaxAheadRows> records;  // those fetched and not yet copied
  const std::size_t num_records = lines.num_lines * lines.num_rows;
  std::size_t fetched = 0;
  std::size_t copied = 0;
  const std::size_t share = (reach.group_rows + fields.size() - 1) / fields.size();
  compiler_barrier();
  for (std::size_t line = 0; line < lines.num_lines; ++line) {
    for (std::size_t row = 0; row < lines.num_rows;) {
      const std::size_t place = copied % records.size();
      const std::span<const std::byte* const> group{
          records.data() + place, std::min({reach.group_rows, lines.num_rows - row, records.size() - place})};
      const std::size_t first = lines.first_row + line * lines.num_lines_apart + row * lines.num_apart;
      const std::size_t most = std::min(num_records, copied + reach.ahead_rows + group.size());
      std::size_t end = copied + reach.ahead_rows;
      for (const Copied& each : fields) {
        // A few at a time: more than there are miss buffers would wait for each other, and the copies for them.
        for (end = std::min(most, end + share); fetched < end; ++fetched) {
          const std::byte* record = next();
          records[fetched % records.size()] = record;
          if constexpr (kDistance == Distance::kFar) extent.prefetch(record);
        }
        load_field({data + each.offset, first, lines.num_apart}, each, group, columns[each.field], frames, shifts);
        at_stop_point(StopPoint::kFieldCopied);
      }
      row += group.size();
      copied += group.size();
    }
  }
}

// The same out of the records in the slots that next_slot() names, one after another.
template <Distance kDistance = Distance::kFar, class NextSlot>
void gather(const Records& records, std::span<const Copied> fields, const Block& block, std::size_t first_row,
            std::size_t num_rows, NextSlot next_slot, const ShiftDraw& shifts = {}) noexcept {
  gather_fields<kDistance>(records.layout().columns(), records.frames(), fields, block.data(),
                           {.first_row = first_row, .num_rows = num_rows}, shifts,
                           [&] { return records.at(next_slot()); });
}

}  // namespace fastreplay
