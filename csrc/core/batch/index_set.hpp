// SPDX-License-Identifier: MIT
// A set of the integers below a bound that tells its k-th smallest member, and draws some. Knows neither rings nor
// episodes.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "batch/random.hpp"

namespace fastreplay {

// One bit an integer, and over blocks of 512 bits a tree of their counts (Fenwick 1994, A new data structure for
// cumulative frequency tables): for a million integers the tree takes 16 kB. For one thread.
class IndexSet {
 public:
  // The empty set of integers below `bound`.
  explicit IndexSet(std::size_t bound)
      : bound_{bound},
        words_((bound + kBlockBits - 1) / kBlockBits * kBlockWords),
        counts_(std::bit_ceil(words_.size() / kBlockWords + 1)) {}

  [[nodiscard]] std::size_t bound() const noexcept { return bound_; }

  // Number of members.
  [[nodiscard]] std::size_t size() const noexcept { return size_; }

  [[nodiscard]] bool contains(std::size_t index) const noexcept {
    return ((words_[index / 64] >> index % 64) & 1) != 0;
  }

  // Makes first, first + stride, ... (`count` of them, all below the bound) members, or no members.
  void fill(std::size_t first, std::size_t count, std::size_t stride, bool is_member) noexcept {
    std::size_t block = first / kBlockBits;
    std::ptrdiff_t change = 0;
    for (std::size_t i = 0, index = first; i < count; ++i, index += stride) {
      if (index / kBlockBits != block) {
        add(block, change);
        block = index / kBlockBits;
        change = 0;
      }
      std::uint64_t& word = words_[index / 64];
      const std::uint64_t bit = std::uint64_t{1} << index % 64;
      if (((word & bit) != 0) == is_member) continue;
      word ^= bit;
      change += is_member ? 1 : -1;
    }
    add(block, change);
  }

  // Replaces each rank, below size(), by the member with that many smaller ones. One level of the tree after the
  // other for a group of ranks, whose reads of memory so overlap.
  void select(std::span<std::int64_t> ranks) const noexcept {
    constexpr std::size_t kGroup = 32;
    std::array<std::size_t, kGroup> blocks{};
    for (std::size_t first = 0; first < ranks.size(); first += kGroup) {
      const auto group = ranks.subspan(first, std::min(kGroup, ranks.size() - first));
      blocks.fill(0);
      // Node i counts the blocks from i - (its lowest bit) up to i - 1.
      for (std::size_t step = counts_.size() / 2; step > 0; step /= 2) {
        for (std::size_t i = 0; i < group.size(); ++i) {
          const std::int64_t count = counts_[blocks[i] + step];
          const std::int64_t is_beyond = -static_cast<std::int64_t>(count <= group[i]);  // a mask: no branch to guess
          blocks[i] += step & static_cast<std::size_t>(is_beyond);
          group[i] -= count & is_beyond;
        }
      }
      for (std::size_t i = 0; i < group.size(); ++i) group[i] = select_in_block(blocks[i], group[i]);
    }
  }

  // Fills with members, with replacement and each as likely as every other; there is at least one. Where most integers
  // are members, those that are not are thrown away, which takes a look at a bit in place of a walk through the tree.
  void draw(WordStream& words, std::span<std::int64_t> drawn) const noexcept {
    const bool are_most = size_ >= bound_ / 2;
    for (std::int64_t& each : drawn) {
      do {
        each = static_cast<std::int64_t>(words.below(are_most ? bound_ : size_));
      } while (are_most && !contains(static_cast<std::size_t>(each)));
    }
    if (!are_most) select(drawn);
  }

 private:
  static constexpr std::size_t kBlockWords = 8, kBlockBits = 64 * kBlockWords;
  static constexpr std::uint64_t kOnes = 0x0101010101010101, kTops = 0x8080808080808080;

  [[nodiscard]] std::int64_t select_in_block(std::size_t block, std::int64_t rank) const noexcept {
    std::size_t word = block * kBlockWords;
    for (;; ++word) {
      const auto count = static_cast<std::int64_t>(byte_sums(words_[word]) >> 56);
      if (rank < count) break;
      rank -= count;
    }
    return static_cast<std::int64_t>(word * 64 + select_bit(words_[word], static_cast<std::uint64_t>(rank)));
  }

  // Byte i: the set bits in bytes 0 to i. By hand, since popcnt is not in every x86-64.
  [[nodiscard]] static std::uint64_t byte_sums(std::uint64_t word) noexcept {
    std::uint64_t sums = word - ((word >> 1) & 0x5555555555555555);
    sums = (sums & 0x3333333333333333) + ((sums >> 2) & 0x3333333333333333);
    return ((sums + (sums >> 4)) & 0x0F0F0F0F0F0F0F0F) * kOnes;
  }

  // The place of the set bit with `rank` lower ones: Vigna 2008, Broadword implementation of rank/select queries,
  // https://vigna.di.unimi.it/ftp/papers/Broadword.pdf, down to the byte.
  [[nodiscard]] static std::size_t select_bit(std::uint64_t word, std::uint64_t rank) noexcept {
    const std::uint64_t sums = byte_sums(word);
    const std::uint64_t is_before = (((rank * kOnes) | kTops) - sums) & kTops;
    const std::uint64_t place = ((is_before >> 7) * kOnes >> 56) * 8;
    rank -= ((sums << 8) >> place) & 0xFF;
    std::uint64_t byte = (word >> place) & 0xFF;
    for (; rank > 0; --rank) byte &= byte - 1;
    return place + static_cast<std::size_t>(std::countr_zero(byte));
  }

  void add(std::size_t block, std::ptrdiff_t change) noexcept {
    if (change == 0) return;
    size_ += static_cast<std::size_t>(change);  // unsigned arithmetic subtracts as well
    for (std::size_t node = block + 1; node < counts_.size(); node += node & (~node + 1)) counts_[node] += change;
  }

  std::size_t bound_;
  std::size_t size_ = 0;
  std::vector<std::uint64_t> words_;
  std::vector<std::int64_t> counts_;  // a power of two above the blocks; the first is not used
};

}  // namespace fastreplay
