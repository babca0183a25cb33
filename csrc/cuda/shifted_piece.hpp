// SPDX-License-Identifier: MIT
// A piece of images that are shifted (core/batch/conversion.hpp), as one CUDA thread copies or converts its share.
// Knows no CUDA: a test runs all threads by turns on the CPU.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "batch/conversion.hpp"
#include "gathered_piece.hpp"
#include "inline.hpp"
#include "memory_access.hpp"
#include "sampling.h"

namespace fastreplay {

// In a kernel's parameters.
struct ShiftedPiece : GatheredPiece {
  static constexpr unsigned kMostGathered = 48;
  static constexpr unsigned kMostFollowed = 36;

  Shift shift;
  std::uint32_t field;
  std::uint32_t first_number;  // of the row, or of the frame
  std::uint32_t number_log2;   // a number has two units to the power of it, one where it is converted

  [[nodiscard]] static bool takes(const fastreplay_cuda_piece& piece) { return piece.shift != 0; }

  [[nodiscard]] static ShiftedPiece of(const fastreplay_cuda_piece& piece, const std::byte* records,
                                       std::uint64_t stride, const std::byte* block) {
    ShiftedPiece of{GatheredPiece::of(piece, records, stride, block),
                    {.most = static_cast<std::uint16_t>(piece.shift),
                     .number_bytes = static_cast<std::uint16_t>(piece.number_bytes),
                     .height = static_cast<std::uint32_t>(piece.height),
                     .width = static_cast<std::uint32_t>(piece.width)},
                    static_cast<std::uint32_t>(piece.field),
                    static_cast<std::uint32_t>(piece.first_number),
                    0};
    if (of.from != Numbers::kAsGiven) return of;
    const int unit_log2 =
        std::countr_zero(places_of(piece, records, stride, block) | piece.number_bytes | sizeof(SixteenBytes));
    of.unit_bytes = static_cast<std::uint8_t>(1U << unit_log2);
    of.number_log2 = static_cast<std::uint32_t>(std::countr_zero(piece.number_bytes) - unit_log2);
    of.set_units(piece.num_bytes >> unit_log2);
    return of;
  }

  // Which of the units of the row, or of the frame, is given in the place of one of the piece.
  [[nodiscard]] FASTREPLAY_INLINE std::size_t source_of(std::uint32_t unit, Offset offset) const {
    const std::uint32_t number = first_number + (unit >> number_log2);
    const std::uint32_t line = number / shift.width;
    const std::uint32_t first_line = line / shift.height * shift.height;  // of the image
    const std::uint32_t y = clamped(line - first_line, offset.down, shift.height);
    const std::uint32_t x = clamped(number - line * shift.width, offset.across, shift.width);
    const std::size_t source = std::size_t{first_line + y} * shift.width + x;
    return (source << number_log2) + (unit & ((1U << number_log2) - 1));
  }

 private:
  // As by edges that are repeated.
  [[nodiscard]] FASTREPLAY_INLINE static std::uint32_t clamped(std::uint32_t at, std::int32_t by,
                                                               std::uint32_t length) {
    const std::int32_t moved = static_cast<std::int32_t>(at) + by;
    const auto last = static_cast<std::int32_t>(length) - 1;
    return static_cast<std::uint32_t>(moved < 0 ? 0 : moved < last ? moved : last);
  }
};

// Gives a lane's share of units, of each what is made of it: reads several before it writes the first, so that they are
// on their way together.
template <class Unit, class Make>
FASTREPLAY_INLINE void give_units(const ShiftedPiece& piece, std::byte* to, const std::byte* from, std::uint32_t lane,
                                  Offset offset, Make made_of) {
  constexpr unsigned kInFlight = 8;
  auto* FASTREPLAY_RESTRICT given = reinterpret_cast<decltype(made_of(Unit{}))*>(to);
  const auto* FASTREPLAY_RESTRICT stored = reinterpret_cast<const Unit*>(from);
  for (std::uint32_t i = lane; i < piece.num_units; i += kInFlight * kMaxLanes) {
    Unit held[kInFlight];
    FASTREPLAY_UNROLL
    for (unsigned k = 0; k < kInFlight; ++k) {
      const std::uint32_t unit = i + k * kMaxLanes;
      if (unit < piece.num_units) held[k] = stored[piece.source_of(unit, offset)];
    }
    FASTREPLAY_UNROLL
    for (unsigned k = 0; k < kInFlight; ++k) {
      const std::uint32_t unit = i + k * kMaxLanes;
      if (unit < piece.num_units) given[unit] = made_of(held[k]);
    }
  }
}

// Copies or converts a lane's share, of a row of a minibatch that has been drawn: by the words of the last call.
FASTREPLAY_INLINE void give_share(const ShiftedPiece& piece, std::byte* to, const std::byte* from, std::uint32_t lane,
                                  const fastreplay_cuda_generator& generator, std::uint64_t row) {
  const ShiftDraw draw{.key = key_of(generator), .call = generator.calls - 1};
  const Offset offset = draw.of(row, piece.field, piece.shift);
  const auto copy = [&](auto unit) {
    give_units<decltype(unit)>(piece, to, from, lane, offset, [](auto held) { return held; });
  };
  if (piece.from != Numbers::kAsGiven) {
    with_types({.from = piece.from, .then = piece.then}, [&](auto number, auto then) {
      give_units<decltype(number)>(piece, to, from, lane, offset,
                                   [&](auto held) { return converted<decltype(then)::value>(held, piece.factor); });
    });
  } else if (piece.unit_bytes == 16) {
    copy(SixteenBytes{});
  } else if (piece.unit_bytes == 8) {
    copy(std::uint64_t{});
  } else if (piece.unit_bytes == 4) {
    copy(std::uint32_t{});
  } else if (piece.unit_bytes == 2) {
    copy(std::uint16_t{});
  } else {
    copy(std::uint8_t{});
  }
}

}  // namespace fastreplay
