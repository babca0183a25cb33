// SPDX-License-Identifier: MIT
// An insert with what lies beside the ring, and what becomes of those that nobody is left to finish.
#pragma once

#include <chrono>
#include <cstddef>
#include <span>

#include "ring/ring.hpp"

namespace fastreplay {

// Inserts as Ring::insert does. Each of `beside` stores its part of the rows before they are published, by
// begin(ticket of the first, number of the first, how many), and hears of it afterwards, by end() of the same.
template <class... Beside>
[[nodiscard]] bool insert_beside(Ring& ring, std::span<const Rows> fields, std::size_t first_row, std::size_t num_rows,
                                 std::chrono::nanoseconds patience, Beside... beside) noexcept {
  Ticket first = 0;
  if (!ring.reserve(num_rows, patience, first)) return false;
  {
    const Ring::Claim claim{ring, first, num_rows};
    ring.write(fields, first_row, claim.slot(), num_rows);
    (beside.begin(first, first_row, num_rows), ...);
  }
  (beside.end(first, num_rows), ...);
  return true;
}

// Drops the unfinished inserts of who is gone, and whom it copied for. Of `beside`, null where there is none, each
// moves its part of a later transition to an earlier ticket, by move(from, to), as Ring::discard_unfinished() tells it.
template <class... Beside>
void discard_unfinished(Ring& ring, Beside*... beside) noexcept {
  ring.let_go();
  ring.discard_unfinished(
      [=](Ticket from, Ticket to) { ((beside == nullptr ? void() : beside->move(from, to)), ...); });
}

}  // namespace fastreplay
