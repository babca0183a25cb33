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

// The draws of one call: published tickets of one window, which holds one at the beginning.
class UniformDraw {
 public:
  UniformDraw(Ring& ring, WordStream& words, const Window& window, std::span<Ticket> tickets) noexcept
      : ring_{ring}, words_{words}, tickets_{tickets}, oldest_{window.first} {
    take(window);
  }

  // Draws rows first_row, first_row + 1, ..., the later chunks of a minibatch from the window of then.
  void fill(std::size_t first_row, std::size_t num_rows) noexcept;

  // Draws a row anew, from everything.
  void again(std::size_t row, std::uint64_t& attempt) noexcept;

  // Where a drawn ticket lies. Only one drawn before the latest refresh() takes a division.
  [[nodiscard]] std::size_t slot(Ticket ticket) const noexcept {
    const std::uint64_t position = ticket - window_.first;
    if (position >= ring_.capacity()) [[unlikely]]
      return ring_.slot(ticket);
    const std::size_t slot = first_slot_ + position;
    return slot < ring_.capacity() ? slot : slot - ring_.capacity();
  }

 private:
  // Takes the window of now; where nothing is left in it, what clear() took out since the beginning, and what came
  // and went since.
  void refresh() noexcept;
  void take(const Window& window) noexcept;
  [[nodiscard]] Window uncleared(Window window) const noexcept;
  void draw(std::span<Ticket> tickets) noexcept;
  [[nodiscard]] Ticket another() noexcept;

  Ring& ring_;
  WordStream& words_;
  std::span<Ticket> tickets_;
  Ticket oldest_;
  Window window_{};
  std::size_t first_slot_ = 0;
};

}  // namespace fastreplay
