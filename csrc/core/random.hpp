// SPDX-License-Identifier: MIT
// Counter-based random words and unbiased bounded draws. Knows nothing of the ring.
#pragma once

#include <array>
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

// The words of one sample call, in order: block 1, 2, ... of counter (block, call, 0, 0). It is the
// sequence of numpy.random.Philox(key=key, counter=[0, call, 0, 0]).
class WordStream {
 public:
  WordStream(Philox::Key key, std::uint64_t call) noexcept : key_{key}, call_{call} {}

  [[nodiscard]] std::uint64_t next() noexcept {
    if (position_ == words_.size()) {
      words_ = Philox::words({++block_, call_, 0, 0}, key_);
      position_ = 0;
    }
    return words_[position_++];
  }

  // A uniform draw from [0, bound), bound > 0, without bias (Lemire 2019, arXiv:1805.10941).
  [[nodiscard]] std::uint64_t below(std::uint64_t bound) noexcept {
    for (;;) {
      const Uint128 product = Uint128{next()} * bound;
      const auto low = static_cast<std::uint64_t>(product);
      // low >= bound decides nearly always and saves the division.
      if (low >= bound || low >= (0 - bound) % bound) return static_cast<std::uint64_t>(product >> 64);
    }
  }

 private:
  Philox::Key key_;
  std::uint64_t call_;
  std::uint64_t block_ = 0;
  Philox::Counter words_{};
  std::size_t position_ = 4;
};

}  // namespace fastreplay
