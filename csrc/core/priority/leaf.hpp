// SPDX-License-Identifier: MIT
// What one transition weighs: a word of the lap that it is of and its mass, so that both change at once. Knows nothing
// of sums or of who draws.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fastreplay {

// Leaves that are summed together.
inline constexpr std::size_t kGroupLeaves = 16;

// The word of a slot is of one transition: in the next lap it is another's. 0 is of none.
struct Leaf {
  static constexpr std::uint64_t word(std::uint64_t lap, float mass) noexcept {
    return std::uint64_t{tag(lap)} << 32 | std::bit_cast<std::uint32_t>(mass);
  }

  // The lap modulo 2^32, from 1 on in a new ring: the ring's gate keeps a slot at this lap or the one before, so a
  // number that wraps is never taken for another.
  static constexpr std::uint32_t tag(std::uint64_t lap) noexcept { return static_cast<std::uint32_t>(lap + 1); }

  static constexpr bool is_of(std::uint64_t word, std::uint64_t lap) noexcept {
    return static_cast<std::uint32_t>(word >> 32) == tag(lap);
  }

  // Without a branch: 0 where the word is of another lap.
  static constexpr float mass_in(std::uint64_t word, std::uint64_t lap) noexcept {
    const std::uint32_t mask = is_of(word, lap) ? ~std::uint32_t{0} : 0;
    return std::bit_cast<float>(static_cast<std::uint32_t>(word) & mask);
  }

  // The same of a group's words, four at a time.
  static void masses_in(const std::array<std::uint64_t, kGroupLeaves>& words, std::uint64_t lap,
                        float* masses) noexcept {
    using Quad = std::uint32_t __attribute__((vector_size(16)));
    const Quad expected = Quad{} + tag(lap);
    for (std::size_t i = 0; i < words.size(); i += 4) {
      Quad first;
      Quad second;
      std::memcpy(&first, &words[i], sizeof first);
      std::memcpy(&second, &words[i + 2], sizeof second);
      const Quad low = __builtin_shufflevector(first, second, kLow, kLow + 2, kLow + 4, kLow + 6);
      const Quad high = __builtin_shufflevector(first, second, kHigh, kHigh + 2, kHigh + 4, kHigh + 6);
      const Quad found = low & reinterpret_cast<Quad>(high == expected);
      std::memcpy(masses + i, &found, sizeof found);
    }
  }

 private:
  // Where the halves of a word lie in memory.
  static constexpr int kLow = std::endian::native == std::endian::little ? 0 : 1;
  static constexpr int kHigh = 1 - kLow;
};

}  // namespace fastreplay
