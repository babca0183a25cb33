// SPDX-License-Identifier: MIT
// Which rows: each published transition, or each of the newest, as likely as every other, with replacement. Knows
// nothing of what is copied.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "batch/random.hpp"
#include "ring/ring.hpp"

namespace fastreplay {

// The window to draw from. It is empty where no row is published, even after writers got time to finish one.
[[nodiscard]] Window window_of_published(Ring& ring) noexcept;

// The window as it would be, had nothing been cleared since `oldest` was the first that could be drawn: what a draw
// that was begun goes on with where all was cleared meanwhile.
[[nodiscard]] Window uncleared(const Ring& ring, Window window, Ticket oldest) noexcept;

// Which published transitions may be drawn: all, or those that suit what is to surround them.
class Suitable {
 public:
  Suitable() = default;  // all
  // `follow` has bool suits_all(), bool suits(ticket, window) as to what can be drawn from, and num_steps() of a row.
  // It outlives this.
  template <class Follow>
  explicit Suitable(const Follow& follow) noexcept
      : follow_{follow.suits_all() ? nullptr : &follow},
        suits_{[](const void* asked, Ticket ticket, const Window& window) {
          return static_cast<const Follow*>(asked)->suits(ticket, window);
        }},
        num_steps_{follow.num_steps()} {}

  [[nodiscard]] bool are_all() const noexcept { return follow_ == nullptr; }
  [[nodiscard]] bool has(Ticket ticket, const Window& window) const noexcept {
    return are_all() || suits_(follow_, ticket, window);
  }

  // After so many attempts they are counted.
  [[nodiscard]] std::uint64_t max_attempts(const Window& window) const noexcept {
    return are_all() ? kMostAttempts : attempts_to_be_complete(window.reserved(), num_steps_);
  }

 private:
  const void* follow_ = nullptr;
  bool (*suits_)(const void*, Ticket, const Window&) = nullptr;
  std::size_t num_steps_ = 1;
};

// One of the window's published tickets in proportion to mass(ticket), to 53 bits; its end where none has a mass. In
// one pass, so that each ticket is looked at once (Chao 1982, "A general purpose unequal probability sampling plan").
template <class Mass>
[[nodiscard]] Ticket draw_counted(const Ring& ring, const Window& window, Philox::Key key, Philox::Counter counter,
                                  Mass mass) noexcept {
  Ticket drawn = window.end;
  double total = 0;
  for (Ticket ticket = window.first; ticket < window.end; ++ticket) {
    if (!ring.is_published(ticket, window)) continue;
    const double share = mass(ticket);
    if (share == 0) continue;
    total += share;
    if (drawn == window.end || fraction(Philox::words(counter, key)[0]) * total < share) drawn = ticket;
    ++counter[3];
  }
  return drawn;
}

// Which transitions count by their age; 0 says nothing of it. The newest are those of the newest ticket up to the
// oldest unfinished insert.
struct Recency {
  std::uint64_t newest_of = 0;  // only so many are drawn from
  std::uint64_t newest = 0;     // so many are the first rows of every minibatch (Zhang & Sutton 2017)
};

// The draws of one call: published tickets of one window, which holds one at the beginning.
class UniformDraw {
 public:
  UniformDraw(Ring& ring, Philox::Key key, std::uint64_t call, const Recency& recency, const Window& window,
              std::span<Ticket> tickets) noexcept;

  // Draws rows first_row, first_row + 1, ..., the later chunks of a minibatch from the window of then.
  void fill(std::size_t first_row, std::size_t num_rows) noexcept;

  // Draws a row anew, from everything. `attempt` is the number of its latest attempt. Returns false where nothing is
  // suitable, which it asks only after many attempts.
  [[nodiscard]] bool again(std::size_t row, std::uint64_t& attempt, const Suitable& suitable) noexcept;

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
  void finish(std::size_t row, bool is_drawn) noexcept;
  [[nodiscard]] bool draw(std::uint64_t word, Ticket& ticket) const noexcept;
  [[nodiscard]] bool another(std::size_t row, std::uint64_t& attempt, const Suitable& suitable) noexcept;

  Ring& ring_;
  Philox::Key key_;
  std::uint64_t call_;
  Recency recency_;
  std::span<Ticket> tickets_;
  Ticket oldest_;
  Window whole_{};   // what surrounds a row may be of,
  Window window_{};  // and the row itself
  std::size_t first_slot_ = 0;
  std::size_t num_newest_ = 0;  // rows at the beginning that are the newest transitions
  Ticket first_newest_ = 0;
};

}  // namespace fastreplay
