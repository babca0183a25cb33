// SPDX-License-Identifier: MIT
// What becomes of rows that are given out otherwise than they are stored, the slow way.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "batch/conversion.hpp"

namespace check {

// What becomes of row `place` of a field whose bytes these are, number by number.
inline std::vector<std::byte> converted(const fastreplay::Conversion& conversion, std::span<const std::byte> row,
                                        const fastreplay::ShiftDraw& shifts, std::size_t place, std::size_t field) {
  using fastreplay::Numbers, fastreplay::Offset, fastreplay::Shift;
  const Shift& shift = conversion.shift;
  const std::size_t stored = shift.most > 0 ? shift.number_bytes : conversion.number_bytes();
  const std::size_t given = conversion.given_bytes(stored);
  const Offset offset = shift.most > 0 ? shifts.of(place, field, shift) : Offset{};
  std::vector<std::byte> made(conversion.given_bytes(row.size()));
  for (std::size_t i = 0; i < row.size() / stored; ++i) {
    std::size_t from = i;
    if (shift.most > 0) {
      const auto clamped = [](std::size_t at, std::int32_t by, std::uint32_t length) {
        return std::clamp<std::int64_t>(static_cast<std::int64_t>(at) + by, 0, std::int64_t{length} - 1);
      };
      const auto y = static_cast<std::size_t>(clamped(i / shift.width % shift.height, offset.down, shift.height));
      const auto x = static_cast<std::size_t>(clamped(i % shift.width, offset.across, shift.width));
      from = (i / (shift.width * shift.height) * shift.height + y) * shift.width + x;
    }
    if (conversion.from == Numbers::kAsGiven) {
      std::memcpy(made.data() + i * given, row.data() + from * stored, stored);
      continue;
    }
    fastreplay::with_types(conversion, [&](auto number, auto then) {
      std::memcpy(&number, row.data() + from * stored, stored);
      const float value = fastreplay::converted<decltype(then)::value>(number, conversion.factor);
      std::memcpy(made.data() + i * given, &value, given);
    });
  }
  return made;
}

}  // namespace check
