// SPDX-License-Identifier: MIT
// What the threads of a ring share beside its records and lap words: plain data, for whoever accesses it by an
// atomics policy (atomics.hpp), wherever it lies.
#pragma once

#include <cstddef>
#include <cstdint>

#include "storage/region.hpp"

namespace fastreplay {

using Ticket = std::uint64_t;

struct RingHeader {
  // Tickets below it were cleared. Written by clear(), read by all; only grows, and changes about never.
  Ticket base = 0;
  // Transitions that were overwritten before they were cleared. As base.
  std::uint64_t overwritten_before_clear = 0;
  // One past the oldest ticket that a copier is not done with, which no writer overwrites; 0 where there is none. Set
  // by the copier alone, read by writers.
  Ticket held = 0;
  // First ticket of this ring; read-only once shared.
  Ticket start = 0;
  // While a record moves: one past the ticket that it comes from, and the one that it goes to. Then 0. Of who has the
  // ring alone, for whoever finds it where that one was killed.
  Ticket moving_from_end = 0;
  Ticket moving_to = 0;
  // 1 where it stands in the place of another, for good: nobody inserts or reads any more. Else 0.
  std::uint64_t is_closed = 0;
  // Next ticket to reserve. Written by writers (CAS), read by all; only grows. The two that writers change lie two
  // lines apart: adjacent-line prefetchers pull pairs.
  alignas(2 * kCacheLine) Ticket head = 0;
  // Every ticket below it is published; a lower bound. Written by anybody who helps (CAS), read by all; only grows,
  // never passes head.
  alignas(2 * kCacheLine) Ticket commit = 0;
};

}  // namespace fastreplay
