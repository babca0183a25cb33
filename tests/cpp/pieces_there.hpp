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

// Of a field whose rows a block has from an offset on, in pieces of at most so many bytes, or of one number.
inline std::vector<fastreplay_cuda_piece> pieces_of(const fastreplay::RecordLayout& layout, std::size_t field,
                                                    std::size_t block_offset, std::size_t piece_bytes,
                                                    const fastreplay::Conversion& conversion = {}) {
  const std::uint64_t converting = static_cast<std::uint64_t>(conversion.from) |
                                   static_cast<std::uint64_t>(conversion.then) << 8 |
                                   std::uint64_t{std::bit_cast<std::uint32_t>(conversion.factor)} << 16;
  if (!conversion.is_none()) piece_bytes += piece_bytes % conversion.number_bytes();
  const auto [offset, row_bytes, num_frames] = layout.columns()[field];
  std::uint64_t alignment = 0;
  for (const auto& [group, frame_bytes, newest, extra_offset] : layout.frames()) {
    if (std::ranges::find(group.fields, field) == group.fields.end()) continue;
    alignment = std::uint64_t{1} << std::countr_zero(layout.columns()[newest].offset | frame_bytes | 16);
  }
  const std::size_t num_parts = std::max<std::size_t>(num_frames, 1);
  const std::size_t part_bytes = row_bytes / num_parts;
  std::vector<fastreplay_cuda_piece> pieces;
  for (std::size_t part = 0; part < num_parts; ++part) {
    for (std::size_t start = 0; start < part_bytes; start += piece_bytes) {
      pieces.push_back({.record_offset = num_frames == 0 ? offset + start : start,
                        .block_offset = block_offset + conversion.given_bytes(part * part_bytes + start),
                        .row_bytes = conversion.given_bytes(row_bytes),
                        .num_bytes = std::min(piece_bytes, part_bytes - start),
                        .place_offset = offset + part * sizeof(fastreplay::FramePlace),
                        .frame_alignment = alignment,
                        .converting = conversion.is_none() ? 0 : converting});
    }
  }
  return pieces;
}

}  // namespace pieces_there
