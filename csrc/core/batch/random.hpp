// SPDX-License-Identifier: MIT
// Counter-based random words and unbiased bounded draws, on the CPU and in CUDA kernels. Knows nothing of the ring.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace fastreplay {

__extension__ using Uint128 = unsigned __int128;

// Philox4x64-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3").
// One 256-bit counter and a 128-bit key give four 64-bit words; there is no other state.
struct Philox {
  using Key = std::array<std::uint64_t, 2>;
  using Counter = std::array<std::uint64_t, 4>;

  [[nodiscard]] static constexpr Counter words(Counter counter, Key key) noexcept {
    for (int round = 0; round < 10; ++round) {
      const Uint128 left = Uint128{0xD2E7470EE14C6C93} * counter[0];
      const Uint128 right = Uint128{0xCA5A826395121157} * counter[2];
      counter = {static_cast<std::uint64_t>(right >> 64) ^ counter[1] ^ key[0], static_cast<std::uint64_t>(right),
                 static_cast<std::uint64_t>(left >> 64) ^ counter[3] ^ key[1], static_cast<std::uint64_t>(left)};
      key[0] += 0x9E3779B97F4A7C15;
      key[1] += 0xBB67AE8584CAA73B;
    }
    return counter;
  }
};

// Draws from [0, bound), bound > 0, by a random word, without bias (Lemire 2019, arXiv:1805.10941). Returns false
// where the word is to be thrown away and the next one taken.
[[nodiscard]] constexpr bool draw_below(std::uint64_t bound, std::uint64_t word, std::uint64_t& drawn) noexcept {
  const Uint128 product = Uint128{word} * bound;
  const auto low = static_cast<std::uint64_t>(product);
  drawn = static_cast<std::uint64_t>(product >> 64);
  // low >= bound decides nearly always and saves the division.
  return low >= bound || low >= (0 - bound) % bound;
}

// Attempts of a row: its first one takes a word of the call's stream, later ones, k >= 1, a word of their own, so that
// no row depends on another's. Those in place of what was overwritten while it was copied are numbered from here on.
inline constexpr std::uint64_t kRedraws = std::uint64_t{1} << 32;

// After so many attempts what suits is counted, and the draw made among that.
inline constexpr std::uint64_t kMostAttempts = 64;

// The same where rows of so many steps are to be complete: once attempts, whose steps lie anywhere, take about as long
// as to go along all transitions.
[[nodiscard]] constexpr std::uint64_t attempts_to_be_complete(std::uint64_t num_transitions,
                                                              std::uint64_t num_steps) noexcept {
  constexpr std::uint64_t kCountedMeanwhile = 16;
  const std::uint64_t most = num_transitions / (kCountedMeanwhile * num_steps);
  return most > kMostAttempts ? most : kMostAttempts;
}

[[nodiscard]] constexpr std::uint64_t word_of_attempt(Philox::Key key, std::uint64_t call, std::uint64_t row,
                                                      std::uint64_t attempt) noexcept {
  return Philox::words({row + 1, call, attempt, 0}, key)[0];
}

// In [0, 1), with 53 bits.
[[nodiscard]] constexpr double fraction(std::uint64_t word) noexcept {
  return static_cast<double>(word >> 11) * 0x1p-53;
}

// The words of one sample call, in order: block 1, 2, ... of counter (block, call, 0, 0). It is the
// sequence of numpy.random.Philox(key=key, counter=[0, call, 0, 0]).
class WordStream {
 public:
  // Words of one block of the counter.
  static constexpr std::size_t kBlockWords = 4;

  constexpr WordStream(Philox::Key key, std::uint64_t call) noexcept : key_{key}, call_{call} {}

  // Block i of the words, i from 0 on.
  [[nodiscard]] static constexpr Philox::Counter block(Philox::Key key, std::uint64_t call, std::uint64_t i) noexcept {
    return Philox::words({i + 1, call, 0, 0}, key);
  }

  [[nodiscard]] constexpr std::uint64_t next() noexcept {
    if (position_ == kBlockWords) {
      words_ = block(key_, call_, block_++);
      position_ = 0;
    }
    return words_[position_++];
  }

  // A uniform draw from [0, bound), bound > 0.
  [[nodiscard]] constexpr std::uint64_t below(std::uint64_t bound) noexcept {
    std::uint64_t drawn = 0;
    while (!draw_below(bound, next(), drawn)) {
    }
    return drawn;
  }

 private:
  Philox::Key key_;
  std::uint64_t call_;
  std::uint64_t block_ = 0;
  Philox::Counter words_{};
  std::size_t position_ = kBlockWords;
};

}  // namespace fastreplay
