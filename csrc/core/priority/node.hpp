// SPDX-License-Identifier: MIT
// A few masses: their prefix sums, and which of them a target falls on. Knows nothing of trees.
//
// The sum is the last of the prefixes, so that a node's sum and a search in it round alike. Prefixes are made four
// lanes at a time, each vector by itself and then added to the last lane of those before. Where masses differ much they
// are not quite monotone: a target may fall on a child without mass, which is for the caller to see and to draw again.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "inline.hpp"

namespace fastreplay {

inline constexpr std::size_t kFanout = 16;

namespace detail {

using Lanes = float __attribute__((vector_size(16)));
using Truths = std::int32_t __attribute__((vector_size(16)));

inline Lanes load(const float* values) noexcept {
  Lanes lanes;
  std::memcpy(&lanes, values, sizeof lanes);
  return lanes;
}

// Bit i for lane i of all sixteen.
inline std::uint32_t bits(Truths first, Truths second, Truths third, Truths fourth) noexcept {
#if defined(__SSE2__)
  const auto narrow = [](Truths left, Truths right) {
    return _mm_packs_epi32(__builtin_bit_cast(__m128i, left), __builtin_bit_cast(__m128i, right));
  };
  const __m128i bytes = _mm_packs_epi16(narrow(first, second), narrow(third, fourth));
  return static_cast<std::uint32_t>(_mm_movemask_epi8(bytes));
#else
  const auto of = [](Truths truths) -> std::uint32_t {
    return (truths[0] & 1) | (truths[1] & 2) | (truths[2] & 4) | (truths[3] & 8);
  };
  return of(first) | of(second) << 4 | of(third) << 8 | of(fourth) << 12;
#endif
}

}  // namespace detail

// Writes the prefix sums of kFanout masses, and returns the last.
FASTREPLAY_INLINE float make_prefixes(const float* masses, float* prefixes) noexcept {
  using detail::Lanes;
  Lanes carry{};
  for (std::size_t i = 0; i < kFanout / 4; ++i) {
    Lanes lanes = detail::load(masses + 4 * i);
    lanes += __builtin_shufflevector(Lanes{}, lanes, 0, 4, 5, 6);
    lanes += __builtin_shufflevector(Lanes{}, lanes, 0, 1, 4, 5);
    lanes += carry;
    std::memcpy(prefixes + 4 * i, &lanes, sizeof lanes);
    carry = __builtin_shufflevector(lanes, lanes, 3, 3, 3, 3);
  }
  return carry[0];
}

// The last of the same prefixes alone, by the same additions.
FASTREPLAY_INLINE float sum_of(const float* masses) noexcept {
  using detail::Lanes;
  using detail::load;
  const auto pairs = [](Lanes left, Lanes right) {
    return __builtin_shufflevector(left, right, 1, 3, 5, 7) + __builtin_shufflevector(left, right, 0, 2, 4, 6);
  };
  const Lanes fours = pairs(pairs(load(masses), load(masses + 4)), pairs(load(masses + 8), load(masses + 12)));
  return fours[3] + (fours[2] + (fours[1] + fours[0]));
}

// The child that a target in [0, sum) falls on, and what is left of the target in it: the first whose prefix is beyond.
// Without a branch: which child it is cannot be foreseen.
FASTREPLAY_INLINE std::size_t find_child(const float* prefixes, double& target) noexcept {
  using detail::Lanes;
  using detail::load;
  // Below the sum: what is left of a target may lie beyond it by rounding.
  const float largest = std::bit_cast<float>(std::bit_cast<std::uint32_t>(prefixes[kFanout - 1]) - 1);
  const float at = std::min(static_cast<float>(target), largest);
  const Lanes targets{at, at, at, at};
  const std::uint32_t beyond = detail::bits(load(prefixes) > targets, load(prefixes + 4) > targets,
                                            load(prefixes + 8) > targets, load(prefixes + 12) > targets);
  const auto child = static_cast<std::uint32_t>(std::countr_zero(beyond | 1U << (kFanout - 1)));
  const std::uint32_t has_before = child > 0 ? 1 : 0;
  const auto before = std::bit_cast<std::uint32_t>(prefixes[child - has_before]) & (0U - has_before);
  const double left = target - static_cast<double>(std::bit_cast<float>(before));
  target = left > 0 ? left : 0;
  return child;
}

// How many of kFanout have mass.
FASTREPLAY_INLINE unsigned count_mass(const float* masses) noexcept {
  using detail::load;
  detail::Truths minus{};
  for (std::size_t i = 0; i < kFanout / 4; ++i) minus += load(masses + 4 * i) > detail::Lanes{};
  return static_cast<unsigned>(-(minus[0] + minus[1] + minus[2] + minus[3]));
}

}  // namespace fastreplay
