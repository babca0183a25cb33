// SPDX-License-Identifier: MIT
// What each transition of a ring was when it was confirmed: a number of its bytes, its ticket and its link, and of all
// frames that it is made of, by which it is known again wherever only some of what was written later has reached a
// disk.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lanes/lanes.hpp"
#include "ring/ring.hpp"
#include "storage/region.hpp"

namespace fastreplay {

class Checksums {
 public:
  // The ring, and its lanes if it has some, outlive this. Throws what the memory throws.
  Checksums(const Ring& ring, const Lanes* lanes, Memory& memory);

  // Takes down published tickets [first, end) beside whoever inserts. Returns the oldest of them that is as it was.
  Ticket confirm(Ticket first, Ticket end) noexcept;

  // The oldest of tickets [first, end), at most as many as there are slots, from which on all are as they were
  // confirmed; `end` if the newest is not. Nobody else uses the ring, whose own word is not asked.
  [[nodiscard]] Ticket oldest_intact(Ticket first, Ticket end) const noexcept;

  // That are read of so many tickets.
  [[nodiscard]] std::size_t num_bytes(Ticket first, Ticket end) const noexcept {
    return first < end ? (end - first) * ring_.records().layout().stride() : 0;
  }

 private:
  [[nodiscard]] std::uint64_t of(Ticket ticket) const noexcept;
  [[nodiscard]] std::uint64_t& at(Ticket ticket) const noexcept {
    return reinterpret_cast<std::uint64_t*>(region_.data())[ring_.slot(ticket)];
  }

  const Ring& ring_;
  const Lanes* lanes_;
  Region region_;
};

}  // namespace fastreplay
