// SPDX-License-Identifier: MIT
// Which rows: each published transition as likely as every other, with replacement. Knows nothing of what is copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "batch/random.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

// The window to draw from. It is empty where no row is published, even after writers got time to finish one.
[[nodiscard]] Window window_of_published(Ring& ring) noexcept;

// Draws published tickets of one window, which holds one at the beginning.
class UniformDraw {
 public:
  UniformDraw(Ring& ring, WordStream& words, const Window& window) noexcept
      : ring_{ring}, words_{words}, oldest_{window.first} {
    take(window);
  }

  // Takes the window of now; where nothing is left in it, what clear() took out since the beginning, and what came
  // and went since.
  void refresh() noexcept;

  // Draws one ticket after the other.
  void fill(std::span<Ticket> tickets) noexcept;

  // Where a drawn ticket lies. Only one drawn before the latest refresh() takes a division.
  [[nodiscard]] std::size_t slot(Ticket ticket) const noexcept {
    const std::uint64_t position = ticket - window_.first;
    if (position >= ring_.capacity()) [[unlikely]]
      return ring_.slot(ticket);
    const std::size_t slot = first_slot_ + position;
    return slot < ring_.capacity() ? slot : slot - ring_.capacity();
  }

 private:
  void take(const Window& window) noexcept;
  [[nodiscard]] Window uncleared(Window window) const noexcept;
  [[nodiscard]] Ticket another() noexcept;

  Ring& ring_;
  WordStream& words_;
  Ticket oldest_;
  Window window_{};
  std::size_t first_slot_ = 0;
};

}  // namespace fastreplay
