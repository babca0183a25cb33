// SPDX-License-Identifier: MIT
// How far rows got in their trajectories, as it is kept in a block, on the CPU and in CUDA kernels. Knows nothing of
// rings, links or what is copied.
#pragma once

#include <cstddef>
#include <cstdint>

#include "inline.hpp"

namespace fastreplay {

// What there is of the steps around a row. The drawn record is step 0.
struct Way {
  std::uint64_t oldest;      // of them: what follows it is newer
  std::uint32_t num_before;  // how many there are before step 0
  std::uint32_t num_after;
  std::uint32_t first_slot;  // of step -num_before
  std::uint32_t last_slot;   // of step num_after
  bool begins;               // whether its trajectory begins with the first of them
  bool is_complete;  // whether its trajectory has no more than what is there, where less is there than was asked for
};

// The ways of a block's rows, and with each the slots of its first steps: row_bytes a row.
class Ways {
 public:
  [[nodiscard]] static constexpr std::size_t row_bytes(std::size_t num_slots) noexcept {
    return sizeof(Way) + (num_slots + 1) / 2 * 2 * sizeof(std::uint32_t);  // so that each Way is aligned
  }

  FASTREPLAY_INLINE Ways(std::byte* data, std::size_t row_bytes, std::size_t most_before) noexcept
      : data_{data}, row_bytes_{row_bytes}, most_before_{most_before} {}

  [[nodiscard]] FASTREPLAY_INLINE Way& operator[](std::size_t row) const noexcept {
    return *reinterpret_cast<Way*>(data_ + row * row_bytes_);
  }
  // How many steps have their slots kept, step 0 among them: all before it.
  [[nodiscard]] FASTREPLAY_INLINE std::size_t num_kept() const noexcept {
    return (row_bytes_ - sizeof(Way)) / sizeof(std::uint32_t) - most_before_;
  }
  // From a row's slots to those of the next, in slots.
  [[nodiscard]] FASTREPLAY_INLINE std::size_t num_apart() const noexcept { return row_bytes_ / sizeof(std::uint32_t); }
  // Of steps 0 and later, as far as they are kept.
  [[nodiscard]] FASTREPLAY_INLINE std::uint32_t* slots(std::size_t row) const noexcept {
    return reinterpret_cast<std::uint32_t*>(data_ + row * row_bytes_ + sizeof(Way)) + most_before_;
  }

 private:
  std::byte* data_;
  std::size_t row_bytes_;
  std::size_t most_before_;
};

}  // namespace fastreplay
