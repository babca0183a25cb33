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

// Bit i for lane i.
inline std::uint32_t bits(Truths truths) noexcept {
#if defined(__SSE2__)
  return static_cast<std::uint32_t>(_mm_movemask_ps(__builtin_bit_cast(__m128, truths)));
#else
  return (truths[0] & 1) | (truths[1] & 2) | (truths[2] & 4) | (truths[3] & 8);
#endif
}

}  // namespace detail

// Writes the kCount prefix sums of masses, and returns the last. A multiple of 4, here and below.
template <std::size_t kCount>
float make_prefixes(const float* masses, float* prefixes) noexcept {
  using detail::Lanes;
  Lanes carry{};
  for (std::size_t i = 0; i < kCount / 4; ++i) {
    Lanes lanes = detail::load(masses + 4 * i);
    lanes += __builtin_shufflevector(Lanes{}, lanes, 0, 4, 5, 6);
    lanes += __builtin_shufflevector(Lanes{}, lanes, 0, 1, 4, 5);
    lanes += carry;
    std::memcpy(prefixes + 4 * i, &lanes, sizeof lanes);
    carry = __builtin_shufflevector(lanes, lanes, 3, 3, 3, 3);
  }
  return carry[0];
}

// The child that a target in [0, sum) falls on, and what is left of the target in it: the first whose prefix is beyond.
template <std::size_t kCount>
std::size_t find_child(const float* prefixes, double& target) noexcept {
  using detail::Lanes;
  // Below the sum: what is left of a target may lie beyond it by rounding.
  const float largest = std::bit_cast<float>(std::bit_cast<std::uint32_t>(prefixes[kCount - 1]) - 1);
  const float at = std::min(static_cast<float>(target), largest);
  const Lanes targets{at, at, at, at};
  std::uint32_t beyond = 1U << (kCount - 1);
  for (std::size_t i = 0; i < kCount / 4; ++i) {
    beyond |= detail::bits(detail::load(prefixes + 4 * i) > targets) << 4 * i;
  }
  const auto child = static_cast<std::size_t>(std::countr_zero(beyond));
  // Without a branch: which child it is cannot be foreseen.
  const double before = static_cast<double>(prefixes[child - (child > 0 ? 1 : 0)]) * (child > 0 ? 1 : 0);
  target = std::max(0.0, target - before);
  return child;
}

// How many have mass.
template <std::size_t kCount>
unsigned count_mass(const float* masses) noexcept {
  std::uint32_t with_mass = 0;
  for (std::size_t i = 0; i < kCount / 4; ++i) {
    with_mass |= detail::bits(detail::load(masses + 4 * i) > detail::Lanes{}) << 4 * i;
  }
  return static_cast<unsigned>(std::popcount(with_mass));
}

}  // namespace fastreplay
