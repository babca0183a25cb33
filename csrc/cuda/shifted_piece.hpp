// SPDX-License-Identifier: MIT
// A piece of images that are shifted (core/batch/conversion.hpp), as one CUDA thread copies or converts its share.
// Knows no CUDA: a test runs all threads by turns on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "batch/conversion.hpp"
#include "gathered_piece.hpp"
#include "inline.hpp"
#include "memory_access.hpp"
#include "sampling.h"

namespace fastreplay {

// In a kernel's parameters. A unit is a number; of those that are copied, some units of their own each.
struct ShiftedPiece : GatheredPiece {
  static constexpr unsigned kMostGathered = 48;
  static constexpr unsigned kMostFollowed = 36;

  Shift shift;
  std::uint32_t field;
  std::uint32_t first_number;  // of the row, or of the frame

  [[nodiscard]] static bool takes(const fastreplay_cuda_piece& piece) { return piece.shift != 0; }

  [[nodiscard]] static ShiftedPiece of(const fastreplay_cuda_piece& piece, const std::byte* records,
                                       std::uint64_t stride, const std::byte* block) {
    ShiftedPiece of{GatheredPiece::of(piece, records, stride, block),
                    {.most = static_cast<std::uint16_t>(piece.shift),
                     .number_bytes = static_cast<std::uint16_t>(piece.number_bytes),
                     .height = static_cast<std::uint32_t>(piece.height),
                     .width = static_cast<std::uint32_t>(piece.width)},
                    static_cast<std::uint32_t>(piece.field),
                    static_cast<std::uint32_t>(piece.first_number)};
    const std::uint64_t alignment = places_of(piece, records, stride, block) | piece.number_bytes | 16;
    of.unit_bytes = static_cast<std::uint8_t>(alignment & -alignment);
    of.set_units(piece.num_bytes / piece.number_bytes);
    return of;
  }

  [[nodiscard]] FASTREPLAY_INLINE std::uint32_t given_bytes() const {
    return num_units * (from == Numbers::kAsGiven ? shift.number_bytes : std::uint32_t{sizeof(float)});
  }
};

// As by edges that are repeated.
FASTREPLAY_INLINE std::int32_t clamped(std::int32_t at, std::int32_t length) {
  return at < 0 ? 0 : at < length ? at : length - 1;
}

// Calls of(i, number) for each number i of a lane's share: which of the row's, or the frame's, it is.
template <class Of>
FASTREPLAY_INLINE void each_shifted(const ShiftedPiece& piece, Offset offset, std::uint32_t lane, Of of) {
  const auto height = static_cast<std::int32_t>(piece.shift.height);
  const auto width = static_cast<std::int32_t>(piece.shift.width);
  for (std::uint32_t i = lane; i < piece.num_units; i += kMaxLanes) {
    const std::uint32_t line = (piece.first_number + i) / piece.shift.width;
    const std::uint32_t first_line = line / piece.shift.height * piece.shift.height;  // of the image
    const auto x = static_cast<std::int32_t>(piece.first_number + i - line * piece.shift.width) + offset.across;
    const std::int32_t y = static_cast<std::int32_t>(line - first_line) + offset.down;
    of(i, std::size_t{first_line + static_cast<std::uint32_t>(clamped(y, height))} * piece.shift.width +
              static_cast<std::uint32_t>(clamped(x, width)));
  }
}

template <class Unit>
FASTREPLAY_INLINE void copy_shifted(const ShiftedPiece& piece, std::byte* to, const std::byte* from, Offset offset,
                                    std::uint32_t lane) {
  auto* FASTREPLAY_RESTRICT given = reinterpret_cast<Unit*>(to);
  const auto* FASTREPLAY_RESTRICT stored = reinterpret_cast<const Unit*>(from);
  const std::uint32_t num_units = piece.shift.number_bytes / std::uint32_t{sizeof(Unit)};
  each_shifted(piece, offset, lane, [&](std::uint32_t i, std::size_t number) {
    for (std::uint32_t k = 0; k < num_units; ++k) given[i * num_units + k] = stored[number * num_units + k];
  });
}

FASTREPLAY_INLINE void convert_shifted(const ShiftedPiece& piece, std::byte* to, const std::byte* from, Offset offset,
                                       std::uint32_t lane) {
  with_types({.from = piece.from, .then = piece.then}, [&](auto of, auto then) {
    using Number = decltype(of);
    auto* FASTREPLAY_RESTRICT given = reinterpret_cast<float*>(to);
    const auto* FASTREPLAY_RESTRICT stored = reinterpret_cast<const Number*>(from);
    each_shifted(piece, offset, lane, [&](std::uint32_t i, std::size_t number) {
      given[i] = converted<decltype(then)::value>(stored[number], piece.factor);
    });
  });
}

// Copies or converts a lane's share, of a row of a minibatch that has been drawn: by the words of the last call.
FASTREPLAY_INLINE void give_share(const ShiftedPiece& piece, std::byte* to, const std::byte* from, std::uint32_t lane,
                                  const fastreplay_cuda_generator& generator, std::uint64_t row) {
  const ShiftDraw draw{.key = key_of(generator), .call = generator.calls - 1};
  const Offset offset = draw.of(row, piece.field, piece.shift);
  if (piece.from != Numbers::kAsGiven) {
    convert_shifted(piece, to, from, offset, lane);
  } else if (piece.unit_bytes == 16) {
    copy_shifted<SixteenBytes>(piece, to, from, offset, lane);
  } else if (piece.unit_bytes == 8) {
    copy_shifted<std::uint64_t>(piece, to, from, offset, lane);
  } else if (piece.unit_bytes == 4) {
    copy_shifted<std::uint32_t>(piece, to, from, offset, lane);
  } else if (piece.unit_bytes == 2) {
    copy_shifted<std::uint16_t>(piece, to, from, offset, lane);
  } else {
    copy_shifted<std::uint8_t>(piece, to, from, offset, lane);
  }
}

}  // namespace fastreplay
