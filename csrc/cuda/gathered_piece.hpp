// SPDX-License-Identifier: MIT
// A piece of a part that is gathered, as one CUDA thread copies or converts its share. Knows no CUDA: a test runs all
// threads by turns on the CPU.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "batch/conversion.hpp"
#include "batch/random.hpp"
#include "inline.hpp"
#include "memory_access.hpp"
#include "sampling.h"

namespace fastreplay {

// At most so many threads copy one piece of one row.
inline constexpr unsigned kMaxLanes = 32;

FASTREPLAY_INLINE Philox::Key key_of(const fastreplay_cuda_generator& generator) {
  return {generator.key[0], generator.key[1]};
}

// A piece in a kernel's parameters.
struct GatheredPiece {
  static constexpr unsigned kMostGathered = 80;  // by one launch
  static constexpr unsigned kMostFollowed = 48;

  std::uint64_t record_offset;
  std::uint64_t block_offset;
  std::uint64_t row_bytes;
  std::uint64_t place_offset;  // where is_of_frame
  std::uint32_t num_units;
  std::uint8_t unit_bytes;  // 16, 8, 4 or 1: as many as lie aligned in every row on both sides
  std::uint8_t lanes_log2;  // a small piece's rows share a warp
  bool is_of_frame;
  Numbers from;  // kAsGiven: it is copied. Else a unit is a number
  Then then;
  float factor;

  [[nodiscard]] static bool takes(const fastreplay_cuda_piece& piece) { return piece.shift == 0; }

  [[nodiscard]] static GatheredPiece of(const fastreplay_cuda_piece& piece, const std::byte* records,
                                        std::uint64_t stride, const std::byte* block) {
    const std::uint64_t places = places_of(piece, records, stride, block) | piece.num_bytes;
    const Conversion conversion{.from = static_cast<Numbers>(piece.converting & 0xFF),
                                .then = static_cast<Then>(piece.converting >> 8 & 0xFF),
                                .factor = std::bit_cast<float>(static_cast<std::uint32_t>(piece.converting >> 16))};
    const std::uint8_t unit_bytes = conversion.from != Numbers::kAsGiven
                                        ? static_cast<std::uint8_t>(conversion.number_bytes())
                                    : places % 16 == 0 ? 16
                                    : places % 8 == 0  ? 8
                                    : places % 4 == 0  ? 4
                                                       : 1;
    GatheredPiece of{.record_offset = piece.record_offset,
                     .block_offset = piece.block_offset,
                     .row_bytes = piece.row_bytes,
                     .place_offset = piece.place_offset,
                     .num_units = 0,
                     .unit_bytes = unit_bytes,
                     .lanes_log2 = 0,
                     .is_of_frame = piece.frame_alignment != 0,
                     .from = conversion.from,
                     .then = conversion.then,
                     .factor = conversion.factor};
    of.set_units(piece.num_bytes / unit_bytes);
    return of;
  }

  // Of a row, as it is given.
  [[nodiscard]] FASTREPLAY_INLINE std::uint32_t given_bytes() const {
    return num_units * (from == Numbers::kAsGiven ? unit_bytes : std::uint32_t{sizeof(float)});
  }

  // Where it is copied from, of the record that begins so many bytes after the first. Where no piece of a launch is of
  // frames, its kernel has none of it (48 registers in place of 32).
  template <bool kHasFrames>
  [[nodiscard]] FASTREPLAY_INLINE const std::byte* source(const std::byte* records, std::uint64_t offset) const {
    if constexpr (!kHasFrames) return records + offset + record_offset;
    if (is_of_frame) offset = *reinterpret_cast<const std::uint64_t*>(records + offset + place_offset);
    // By numbers: a frame may lie in other memory than the records, before it, too.
    return as_global(reinterpret_cast<const std::byte*>(reinterpret_cast<std::uintptr_t>(records) + offset)) +
           record_offset;
  }

 protected:
  // Of which all are multiples that is a multiple of how every row lies on both sides.
  [[nodiscard]] static std::uint64_t places_of(const fastreplay_cuda_piece& piece, const std::byte* records,
                                               std::uint64_t stride, const std::byte* block) {
    return reinterpret_cast<std::uintptr_t>(records) | reinterpret_cast<std::uintptr_t>(block) | stride |
           piece.record_offset | piece.block_offset | piece.row_bytes | piece.frame_alignment;
  }

  void set_units(std::uint64_t count) {
    num_units = static_cast<std::uint32_t>(count);
    lanes_log2 = static_cast<std::uint8_t>(std::countr_zero(std::min(std::bit_ceil(num_units), kMaxLanes)));
  }
};

// Copies a lane's share of a piece, which is one unit where there are fewer than a warp's lanes.
template <class Unit>
FASTREPLAY_INLINE void copy_piece(std::byte* to, const std::byte* from, std::uint32_t lane, std::uint32_t num_units) {
  if (num_units > kMaxLanes) {
    copy_units<Unit, std::min<unsigned>(64 / sizeof(Unit), 16), kMaxLanes>(to, from, lane, num_units);
  } else if (lane < num_units) {
    reinterpret_cast<Unit*>(to)[lane] = reinterpret_cast<const Unit*>(from)[lane];
  }
}

// Converts a lane's share of a piece, of which a unit is a number.
FASTREPLAY_INLINE void convert_share(const GatheredPiece& piece, std::byte* to, const std::byte* from,
                                     std::uint32_t lane) {
  with_types({.from = piece.from, .then = piece.then}, [&](auto number, auto then) {
    using Number = decltype(number);
    auto* FASTREPLAY_RESTRICT given = reinterpret_cast<float*>(to);
    const auto* FASTREPLAY_RESTRICT stored = reinterpret_cast<const Number*>(from);
    for (std::uint32_t i = lane; i < piece.num_units; i += kMaxLanes) {
      given[i] = converted<decltype(then)::value>(stored[i], piece.factor);
    }
  });
}

// Copies or converts a lane's share of a piece.
FASTREPLAY_INLINE void give_share(const GatheredPiece& piece, std::byte* to, const std::byte* from, std::uint32_t lane,
                                  const fastreplay_cuda_generator& /*generator*/, std::uint64_t /*row*/) {
  if (piece.from != Numbers::kAsGiven) {
    convert_share(piece, to, from, lane);
  } else if (piece.unit_bytes == 16) {
    copy_piece<SixteenBytes>(to, from, lane, piece.num_units);
  } else if (piece.unit_bytes == 8) {
    copy_piece<std::uint64_t>(to, from, lane, piece.num_units);
  } else if (piece.unit_bytes == 4) {
    copy_piece<std::uint32_t>(to, from, lane, piece.num_units);
  } else {
    copy_piece<std::uint8_t>(to, from, lane, piece.num_units);
  }
}

}  // namespace fastreplay
