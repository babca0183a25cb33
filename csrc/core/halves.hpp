// SPDX-License-Identifier: MIT
// The 16-bit floats, for the CPU and for CUDA: what they are as float32, and back. Knows nothing of what they are for.
#pragma once

#include <bit>
#include <cstdint>

#include "inline.hpp"

namespace fastreplay {

// Storage of the 16-bit floats. Arithmetic on them is done in float, as torch does.
struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

FASTREPLAY_INLINE float widen(BFloat16 value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

FASTREPLAY_INLINE float widen(Float16 value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000) << 16;
  const std::uint32_t magnitude = value.bits & 0x7FFF;
  // Subnormal numbers count 2^-24; the exponent of others is moved from bias 15 to 127, or to the one
  // of infinities and NaN.
  const std::uint32_t small = std::bit_cast<std::uint32_t>(static_cast<float>(static_cast<int>(magnitude)) * 0x1p-24F);
  const std::uint32_t large = (magnitude << 13) + (magnitude < 0x7C00 ? 112U << 23 : 224U << 23);
  // By a mask: where it is a choice, a compiler makes a branch of it, as what it could leave out may raise a flag, and
  // no vectors then.
  const std::uint32_t is_small = 0U - static_cast<std::uint32_t>(magnitude < 0x0400);
  return std::bit_cast<float>(sign | (small & is_small) | (large & ~is_small));
}

// Rounds to nearest, ties to even.
FASTREPLAY_INLINE void narrow(float value, BFloat16& result) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const bool is_nan = (bits & 0x7FFFFFFF) > 0x7F800000;  // adding to a NaN could carry it to an infinity
  result.bits = static_cast<std::uint16_t>(is_nan ? 0x7FC0 : rounded);
}

FASTREPLAY_INLINE void narrow(float value, Float16& result) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7FFFFFFF;
  // Below 2^-14 the result counts 2^-24, the last place of a float32 near one half: adding rounds to it.
  const std::uint32_t small = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - (126U << 23);
  const std::uint32_t normal = (magnitude - (112U << 23) + 0x0FFF + ((magnitude >> 13) & 1)) >> 13;
  std::uint32_t half = magnitude < (113U << 23) ? small : normal;
  half = magnitude >= 0x477FF000 ? 0x7C00 : half;  // from 65520 on, the nearest is infinity
  half = magnitude > 0x7F800000 ? 0x7E00 : half;   // NaN
  result.bits = static_cast<std::uint16_t>(half | ((bits >> 16) & 0x8000));
}

}  // namespace fastreplay
