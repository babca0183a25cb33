// SPDX-License-Identifier: MIT
// A permutation of [0, size) in constant memory: one of very many, chosen by a key. Knows nothing of rows.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "batch/random.hpp"

namespace fastreplay {

// A small one is shuffled (Fisher & Yates), which gives each of all permutations equally often. A large one is a
// Feistel network on a table of at least `size` places (Black & Rogaway 2002, "Ciphers with arbitrary finite domains"):
// each round moves a place along its row or its column, by a keyed function of the other. What comes out too large goes
// in again, which is once in about sqrt(size) times.
class Permutation {
 public:
  Permutation() = default;
  // Permutation `number` of this key.
  Permutation(Philox::Key key, std::uint64_t number, std::uint64_t size) noexcept : size_{size} {
    if (size <= shuffled_.size()) {
      shuffle(key, number);
      return;
    }
    column_bits_ = static_cast<unsigned>(std::bit_width(size - 1) + 1) / 2;
    num_rows_ = (size + (std::uint64_t{1} << column_bits_) - 1) >> column_bits_;
    for (std::size_t i = 0; i < kRounds; ++i) {
      const Philox::Counter words = words_of(key, number, i);
      keys_[i] = {.added = words[0], .factor = words[1] | 1};
    }
  }

  // For position < size.
  [[nodiscard]] std::uint64_t at(std::uint64_t position) const noexcept {
    if (size_ <= shuffled_.size()) return shuffled_[position];
    do {
      position = moved(position);
    } while (position >= size_);
    return position;
  }

 private:
  static constexpr std::size_t kRounds = 6;

  struct RoundKey {
    std::uint64_t added;
    std::uint64_t factor;

    // A word of which the upper bits are as good as random.
    [[nodiscard]] std::uint64_t hash(std::uint64_t value) const noexcept {
      const std::uint64_t mixed = (value ^ added) * factor;
      return (mixed ^ mixed >> 32) * 0x9E3779B97F4A7C15;
    }
  };

  // No draw's counter begins with 0.
  [[nodiscard]] static Philox::Counter words_of(Philox::Key key, std::uint64_t number, std::uint64_t i) noexcept {
    return Philox::words({0, number, i, 0}, key);
  }

  void shuffle(Philox::Key key, std::uint64_t number) noexcept {
    for (std::uint64_t i = 0; i < size_; ++i) {
      std::uint64_t other = 0;
      for (const std::uint64_t word : words_of(key, number, i)) {  // one in 2^52 is thrown away
        if (draw_below(i + 1, word, other)) break;
      }
      shuffled_[i] = shuffled_[other];
      shuffled_[other] = static_cast<std::uint16_t>(i);
    }
  }

  [[nodiscard]] std::uint64_t moved(std::uint64_t position) const noexcept {
    const std::uint64_t mask = (std::uint64_t{1} << column_bits_) - 1;
    std::uint64_t row = position >> column_bits_;
    std::uint64_t column = position & mask;
    for (std::size_t i = 0; i < kRounds; i += 2) {
      row += static_cast<std::uint64_t>((Uint128{keys_[i].hash(column)} * num_rows_) >> 64);
      row -= row >= num_rows_ ? num_rows_ : 0;
      column = (column + (keys_[i + 1].hash(row) >> (64 - column_bits_))) & mask;
    }
    return row << column_bits_ | column;
  }

  std::uint64_t size_ = 0;
  unsigned column_bits_ = 0;
  std::uint64_t num_rows_ = 0;
  std::array<RoundKey, kRounds> keys_{};
  std::array<std::uint16_t, 4096> shuffled_{};
};

}  // namespace fastreplay
