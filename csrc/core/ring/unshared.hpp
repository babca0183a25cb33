// SPDX-License-Identifier: MIT
// A ring that nobody else uses: what is found of it is taken up, what was saved is restored. Included as protocol.hpp
// is.
#pragma once

#include <algorithm>
#include <cstring>

#include "ring/ring.hpp"

namespace fastreplay {

template <class Atomics>
bool BasicRing<Atomics>::is_sound() const noexcept {
  constexpr Ticket kMostTickets = Ticket{1} << 62;
  // relaxed, here and below: nobody else uses the ring.
  const Ticket head = Atomics::load(header_.head, std::memory_order_relaxed);
  const Ticket commit = Atomics::load(header_.commit, std::memory_order_relaxed);
  const Ticket base = Atomics::load(header_.base, std::memory_order_relaxed);
  const std::uint64_t overwritten = Atomics::load(header_.overwritten_before_clear, std::memory_order_relaxed);
  return head <= kMostTickets && base <= head && commit <= head && head - commit <= capacity_ &&
         header_.start <= head && overwritten <= head && header_.is_closed == 0;
}

template <class Atomics>
void BasicRing<Atomics>::discard_unfinished(const std::function<void(Ticket, Ticket)>& moved) noexcept {
  finish_move();
  // relaxed, here and below: nobody else uses the ring.
  const Ticket end = Atomics::load(header_.head, std::memory_order_relaxed);
  const Ticket base = Atomics::load(header_.base, std::memory_order_relaxed);
  const Ticket finished = advance();
  if (finished == end) return;
  const Ticket first = std::max(finished, base);                           // what was cleared is not to come back
  const Window nothing{.first = first, .end = first, .committed = first};  // so that every word is looked at
  Ticket next = first;
  for (Ticket ticket = first; ticket < end; ++ticket) {
    if (!is_published(ticket, nothing)) continue;
    if (ticket != next) {
      std::memcpy(records_.at(slot(next)), record(ticket), records_.layout().stride());
      moved(ticket, next);
      // relaxed: as above; the release below orders it.
      Atomics::store(header_.moving_to, next, std::memory_order_relaxed);
      // release: all of it is there; partner: the acquire in finish_move(), of who finds it.
      Atomics::store(header_.moving_from_end, ticket + 1, std::memory_order_release);
      finish_move();
    }
    ++next;
  }
  set_words(finished, next, 0);
  set_words(next, end, 1);
  // The slots of [next, end) held the oldest transitions of the window, and hold none any more; nor is there one of the
  // window, where more was unfinished than it holds.
  const std::uint64_t overwritten =
      std::min(end - base > window_capacity_ ? end - base - window_capacity_ : 0, next - base);
  // In this order: whoever is killed between leaves a ring of which the next one finds as much to do, or less.
  // release, here and below: what comes before is there; partner: the loads of who finds the ring.
  Atomics::store(header_.base, base + overwritten, std::memory_order_release);
  // release: as above.
  Atomics::store(header_.head, next, std::memory_order_release);
  // release: as above.
  Atomics::store(header_.commit, next, std::memory_order_release);
  // relaxed: as above.
  Atomics::fetch_add(header_.overwritten_before_clear, overwritten, std::memory_order_relaxed);
}

// Lets the ticket that a record moved to count, and not the one that it came from.
template <class Atomics>
void BasicRing<Atomics>::finish_move() noexcept {
  // acquire: the record is there; partner: the release in discard_unfinished().
  const Ticket from_end = Atomics::load(header_.moving_from_end, std::memory_order_acquire);
  if (from_end == 0) return;
  // relaxed: the acquire above orders it.
  const Ticket to = Atomics::load(header_.moving_to, std::memory_order_relaxed);
  set_words(to, to + 1, 0);
  set_words(from_end - 1, from_end, 1);
  // release: both words are set; partner: the acquire above.
  Atomics::store(header_.moving_from_end, Ticket{0}, std::memory_order_release);
}

template <class Atomics>
void BasicRing<Atomics>::start_at(Ticket ticket) noexcept {
  header_.start = ticket;
  // A word that was never set must not pass for a later lap.
  set_words(ticket, ticket + capacity_, 1);
  // relaxed: the ring is not shared yet; handing it over orders these.
  Atomics::store(header_.head, ticket, std::memory_order_relaxed);
  // relaxed: as above.
  Atomics::store(header_.commit, ticket, std::memory_order_relaxed);
  // relaxed: as above.
  Atomics::store(header_.base, ticket, std::memory_order_relaxed);
}

template <class Atomics>
void BasicRing<Atomics>::restore(std::size_t num_rows) noexcept {
  // relaxed, all: the ring is not shared.
  const Ticket head = Atomics::load(header_.head, std::memory_order_relaxed);
  set_words(head, head + num_rows, 0);
  Atomics::store(header_.head, head + num_rows, std::memory_order_relaxed);
  Atomics::store(header_.commit, head + num_rows, std::memory_order_relaxed);
}

template <class Atomics>
void BasicRing<Atomics>::begin_here() noexcept {
  // relaxed, both: the ring is not shared.
  header_.start = Atomics::load(header_.head, std::memory_order_relaxed);
  Atomics::store(header_.base, header_.start, std::memory_order_relaxed);
}

template <class Atomics>
void BasicRing<Atomics>::count(std::uint64_t num_inserted, std::uint64_t num_overwritten) noexcept {
  // relaxed, both: the ring is not shared.
  header_.start = Atomics::load(header_.head, std::memory_order_relaxed) - num_inserted;
  Atomics::store(header_.overwritten_before_clear, num_overwritten, std::memory_order_relaxed);
}

// Marks the slots of [first, end) as published in the tickets' own lap, or some laps before it.
template <class Atomics>
void BasicRing<Atomics>::set_words(Ticket first, Ticket end, std::uint64_t laps_before) noexcept {
  for (Ticket ticket = first; ticket < end; ++ticket) {
    // relaxed: the ring is not shared; handing it over orders this.
    Atomics::store(word_at(slot(ticket)), lap_word(ticket / capacity_ - laps_before), std::memory_order_relaxed);
  }
}

}  // namespace fastreplay
