// SPDX-License-Identifier: MIT
// Fields of records in pieces that a device's threads copy: fastreplay/gpu/pieces.py.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "batch/conversion.hpp"
#include "sampling.h"
#include "storage/record_layout.hpp"

namespace pieces_there {

// As it lies, of a record.
inline fastreplay_cuda_piece piece(std::uint64_t record_offset, std::uint64_t block_offset, std::uint64_t row_bytes,
                                   std::uint64_t num_bytes) {
  fastreplay_cuda_piece made{};
  made.record_offset = record_offset;
  made.block_offset = block_offset;
  made.row_bytes = row_bytes;
  made.num_bytes = num_bytes;
  return made;
}

// Of a field whose rows a block has from an offset on, in pieces of at most so many bytes, or of one number.
inline std::vector<fastreplay_cuda_piece> pieces_of(const fastreplay::RecordLayout& layout, std::size_t field,
                                                    std::size_t block_offset, std::size_t piece_bytes,
                                                    const fastreplay::Conversion& conversion = {}) {
  const std::uint64_t converting = static_cast<std::uint64_t>(conversion.from) |
                                   static_cast<std::uint64_t>(conversion.then) << 8 |
                                   std::uint64_t{std::bit_cast<std::uint32_t>(conversion.factor)} << 16;
  if (conversion.from != fastreplay::Numbers::kAsGiven) piece_bytes += piece_bytes % conversion.number_bytes();
  const auto [offset, row_bytes, num_frames] = layout.columns()[field];
  std::uint64_t alignment = 0;
  for (const auto& [group, frame_bytes, newest, extra_offset] : layout.frames()) {
    if (std::ranges::find(group.fields, field) == group.fields.end()) continue;
    alignment = std::uint64_t{1} << std::countr_zero(layout.columns()[newest].offset | frame_bytes | 16);
  }
  const std::size_t num_parts = std::max<std::size_t>(num_frames, 1);
  const std::size_t part_bytes = row_bytes / num_parts;
  const fastreplay::Shift& shift = conversion.shift;
  if (shift.most > 0) piece_bytes = fastreplay::round_up(piece_bytes, shift.number_bytes);
  std::vector<fastreplay_cuda_piece> pieces;
  for (std::size_t part = 0; part < num_parts; ++part) {
    for (std::size_t start = 0; start < part_bytes; start += piece_bytes) {
      const std::size_t from = shift.most > 0 ? 0 : start;
      pieces.push_back({.record_offset = num_frames == 0 ? offset + from : from,
                        .block_offset = block_offset + conversion.given_bytes(part * part_bytes + start),
                        .row_bytes = conversion.given_bytes(row_bytes),
                        .num_bytes = std::min(piece_bytes, part_bytes - start),
                        .place_offset = offset + part * sizeof(fastreplay::FramePlace),
                        .frame_alignment = alignment,
                        .converting = conversion.from == fastreplay::Numbers::kAsGiven ? 0 : converting,
                        .shift = shift.most,
                        .first_number = shift.most > 0 ? start / shift.number_bytes : 0,
                        .number_bytes = shift.number_bytes,
                        .height = shift.height,
                        .width = shift.width,
                        .field = field});
    }
  }
  return pieces;
}

}  // namespace pieces_there
