// SPDX-License-Identifier: MIT
// Fields on their way out of records into a block, where they are not given as they are stored, by the CPU. Knows
// nothing of tickets, or of whether what it read is whole.
#pragma once

#include <cstddef>
#include <span>

#include "batch/conversion.hpp"
#include "batch/layout.hpp"
#include "storage/records.hpp"

namespace fastreplay {

// Rows of a part, in a block at `part`: the first, and how many from one to the next.
struct RowsOfPart {
  std::byte* part;
  std::size_t first;
  std::size_t num_apart;
};

// Converts a field of these records to as many rows.
void load_converted(const RowsOfPart& rows, const Copied& field, std::span<const std::byte* const> records,
                    const Column& column, const FrameMemory& frames, const ShiftDraw& shifts) noexcept;

}  // namespace fastreplay
