// SPDX-License-Identifier: MIT
// The ring's protocol, access by access. Included by ring.cpp, which makes Ring of it, and by tests/model, which runs
// it on a weak memory.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "ring/ring.hpp"
#include "ring/stop_points.hpp"
#include "storage/copy.hpp"

namespace fastreplay {

namespace detail {

// How far ahead of a store the ring's memory is prefetched.
inline constexpr std::size_t kPrefetchBytes = 8192;
inline constexpr std::size_t kAskedBytes = std::size_t{1} << 18;
// Rows that are copied together, field by field, so that a field's size is looked at once a group.
inline constexpr std::size_t kGroupRows = 16;
// Rows after which a writer moves commit: as many as a reader walks over in the time of one miss.
inline constexpr std::size_t kMaxCommitInterval = 64;

inline std::size_t without_spare(std::size_t capacity, std::size_t num_spare) {
  if (num_spare >= capacity) throw std::invalid_argument{"slots beside the spare ones"};
  return capacity - num_spare;
}

}  // namespace detail

template <class Atomics>
BasicRing<Atomics>::BasicRing(RecordLayout layout, std::size_t capacity, std::size_t num_spare, Memory& memory)
    : header_memory_{memory.take(sizeof(RingHeader))},
      header_{*reinterpret_cast<RingHeader*>(header_memory_.data())},
      records_{std::move(layout), capacity, memory},
      capacity_{capacity},
      window_capacity_{detail::without_spare(capacity, num_spare)},
      max_rows_per_insert_{std::max<std::size_t>(1, window_capacity_ / 8)},
      commit_interval_{std::bit_floor(std::clamp<std::size_t>(window_capacity_ / 16, 1, detail::kMaxCommitInterval))},
      prefetch_rows_{detail::kPrefetchBytes / records_.layout().stride()},
      words_{memory.take(capacity * sizeof(std::uint32_t))} {}

template <class Atomics>
bool BasicRing<Atomics>::insert(std::span<const Rows> fields, std::size_t first_row, std::size_t num_rows,
                                std::chrono::nanoseconds patience) noexcept {
  Ticket first = 0;
  if (!reserve(num_rows, patience, first)) return false;
  const Claim claim{*this, first, num_rows};
  write(fields, first_row, claim.slot(), num_rows);
  return true;
}

template <class Atomics>
bool BasicRing<Atomics>::reserve(std::size_t num_rows, std::chrono::nanoseconds patience, Ticket& first) noexcept {
  if (try_reserve(num_rows, first)) return true;
  typename Atomics::Wait wait{patience};
  do {
    advance();
    if (try_reserve(num_rows, first)) return true;
  } while (wait.goes_on());
  return false;
}

// False when the lap gate is shut: the ticket that one of the rows would overwrite is unfinished.
template <class Atomics>
bool BasicRing<Atomics>::try_reserve(std::size_t num_rows, Ticket& first) noexcept {
  // relaxed: a stale head only makes the CAS fail and bring the fresh one.
  Ticket head = Atomics::load(header_.head, std::memory_order_relaxed);
  for (;;) {
    // acquire: the earlier writer of each slot finished before we overwrite it; pairs with the
    // release CAS on commit in advance().
    const Ticket finished = Atomics::load(header_.commit, std::memory_order_acquire);
    // acquire: a copier is done with what lies below; pairs with the release stores in hold_on_from() and let_go().
    const Ticket held = Atomics::load(header_.held, std::memory_order_acquire);
    const Ticket free = held == 0 ? finished : std::min(finished, held - 1);
    if (head + num_rows > free + capacity_) return false;
    at_stop_point(StopPoint::kGatePassed);
    // acq_rel on success: more than is needed, at no cost on x86; the gate's acquire orders the writers
    // of a slot, R1 in write() shows the reservation. relaxed on failure: we only try again.
    if (Atomics::compare_exchange_weak(header_.head, head, head + num_rows, std::memory_order_acq_rel,
                                       std::memory_order_relaxed)) {
      first = head;
      return true;
    }
  }
}

template <class Atomics>
void BasicRing<Atomics>::write(std::span<const Rows> fields, std::size_t first_row, std::size_t slot,
                               std::size_t num_rows) noexcept {
  // R1, release: the reservation is visible to every reader that sees one of the bytes below; pairs
  // with the acquire fence in oldest_whole().
  Atomics::fence(std::memory_order_release);
  at_stop_point(StopPoint::kReserved);
  compiler_barrier();
  if (num_rows == 1) {  // the step of one environment, where choosing loops costs more than it saves
    write_one(fields, first_row, slot);
  } else {
    write_groups(fields, first_row, slot, num_rows);
  }
  compiler_barrier();
  at_stop_point(StopPoint::kRowsWritten);
}

template <class Atomics>
void BasicRing<Atomics>::write_one(std::span<const Rows> fields, std::size_t row, std::size_t slot) noexcept {
  std::byte* const record = records_.at(slot);
  prefetch(slot, 1);
  const Column* column = records_.layout().columns().data();
  const Reading reading = this->reading();
  for (const auto& [data, stride_bytes] : fields) {
    if (data != nullptr) {
      Atomics::store_row(record + column->offset, data + row * stride_bytes, column->row_bytes, reading);
      at_stop_point(StopPoint::kFieldWritten);
    }
    ++column;
  }
}

template <class Atomics>
void BasicRing<Atomics>::write_groups(std::span<const Rows> fields, std::size_t first_row, std::size_t slot,
                                      std::size_t num_rows) noexcept {
  const std::span<const Column> columns{records_.layout().columns()};
  for (std::size_t row = first_row, left = num_rows; left > 0;) {
    const std::size_t group_rows = std::min(std::min(detail::kGroupRows, left), capacity_ - slot);
    std::byte* records = records_.at(slot);
    prefetch(slot, group_rows);
    for (std::size_t f = 0; f < fields.size(); ++f) {
      const auto [data, stride_bytes] = fields[f];
      if (data == nullptr) continue;
      const auto& [offset, row_bytes, num_frames] = columns[f];
      Atomics::store_rows(records + offset, records_.layout().stride(), data + row * stride_bytes, stride_bytes,
                          row_bytes, group_rows, reading());
      at_stop_point(StopPoint::kFieldWritten);
    }
    row += group_rows;
    left -= group_rows;
    slot = slot + group_rows == capacity_ ? 0 : slot + group_rows;
  }
}

// Asks a disk, now and then, for the pages that come after the next ones: they are read before they are written to.
template <class Atomics>
void BasicRing<Atomics>::ask_ahead(std::size_t slot, std::size_t num_rows) const noexcept {
  const std::size_t stride = records_.layout().stride();
  const std::size_t before = slot * stride / detail::kAskedBytes;
  const std::size_t after = (slot + num_rows) * stride / detail::kAskedBytes;
  const std::size_t begin = (after + 1) * detail::kAskedBytes;
  if (before == after || begin >= records_.num_bytes()) return;
  Paging::ask(records_.at(0) + begin, std::min(detail::kAskedBytes, records_.num_bytes() - begin));
}

// Asks for the slots that lie some way after [slot, slot + num_rows), for this insert or the next.
template <class Atomics>
void BasicRing<Atomics>::prefetch(std::size_t slot, std::size_t num_rows) const noexcept {
  if (records_.paging() != nullptr) ask_ahead(slot, num_rows);
  if (prefetch_rows_ == 0 || slot + num_rows + prefetch_rows_ > capacity_) return;
  const std::byte* begin = records_.at(slot + prefetch_rows_);
  const std::byte* end = begin + num_rows * records_.layout().stride();
  for (const std::byte* line = begin; line < end; line += kCacheLine) __builtin_prefetch(line, 1, 2);
}

template <class Atomics>
void BasicRing<Atomics>::publish(Ticket first, std::size_t slot, std::uint64_t lap, std::size_t num_rows) noexcept {
  for (std::size_t i = 0; i < num_rows; ++i) {
    // release: the record's bytes happen-before a reader that sees this word; pairs with the acquire
    // loads in is_published() and advance().
    Atomics::store(word_at(slot), lap_word(lap), std::memory_order_release);
    at_stop_point(StopPoint::kRowPublished);
    if (++slot == capacity_) {
      slot = 0;
      ++lap;
    }
  }
  at_stop_point(StopPoint::kAllPublished);
  // Now and then: readers and gated writers move commit themselves, and here each move costs an atomic update
  // of a line that all share.
  if (Atomics::prefers(((first + num_rows) ^ first) >= commit_interval_)) advance();
}

// Moves commit_ over every published ticket and returns it. Anybody may call it at any time.
template <class Atomics>
Ticket BasicRing<Atomics>::advance() noexcept {
  // acquire: what lies below is published for us too; pairs with the CAS below.
  Ticket seen = Atomics::load(header_.commit, std::memory_order_acquire);
  // acquire: spare; the commit just read already makes head no older, so that the loop ends at a real
  // ticket.
  const Ticket end = Atomics::load(header_.head, std::memory_order_acquire);
  Ticket finished = seen;
  std::size_t at = slot(finished);
  std::uint64_t lap = finished / capacity_;
  // acquire: the record's bytes are visible to whoever sees the commit we publish; pairs with the
  // release store of the word in publish().
  while (finished < end && Atomics::load(word_at(at), std::memory_order_acquire) == lap_word(lap)) {
    ++finished;
    if (++at == capacity_) {
      at = 0;
      ++lap;
    }
  }
  if (seen < finished) at_stop_point(StopPoint::kHelping);
  while (seen < finished) {
    // release: passes on what the words above showed us; pairs with the acquire loads of commit_.
    // acquire on both: seen becomes another helper's commit, which we return in place of ours.
    if (Atomics::compare_exchange_weak(header_.commit, seen, finished, std::memory_order_acq_rel,
                                       std::memory_order_acquire)) {
      return finished;
    }
  }
  return seen;
}

// A window whose `committed` is at most `slack` tickets behind its end, or else as new as can be.
template <class Atomics>
Window BasicRing<Atomics>::window_within(std::size_t slack) noexcept {
  // acquire: head is read at least as new as the base that clear() took from it; pairs with the
  // release CAS in clear().
  const Ticket base = Atomics::load(header_.base, std::memory_order_acquire);
  // acquire: rows below are published for us; pairs with the release CAS in advance().
  Ticket committed = Atomics::load(header_.commit, std::memory_order_acquire);
  at_stop_point(StopPoint::kCommitRead);
  // acquire: spare, as in advance(); the loads of base_ and commit_ make it no older than they are.
  Ticket end = Atomics::load(header_.head, std::memory_order_acquire);
  if (end > committed && Atomics::prefers(end - committed > slack)) {
    committed = advance();
    // acquire: spare, as above.
    end = Atomics::load(header_.head, std::memory_order_acquire);
  }
  const Ticket oldest = end > window_capacity_ ? end - window_capacity_ : 0;
  return {.first = std::max(base, oldest), .end = end, .committed = committed};
}

template <class Atomics>
bool BasicRing<Atomics>::is_published(Ticket ticket, const Window& window) const noexcept {
  if (ticket < window.committed) return true;
  // acquire: the record's bytes happen-before our copy; pairs with the release store in publish().
  return Atomics::load(word_at(slot(ticket)), std::memory_order_acquire) == lap_word(ticket / capacity_);
}

template <class Atomics>
Ticket BasicRing<Atomics>::oldest_whole() const noexcept {
  at_stop_point(StopPoint::kRowsCopied);
  compiler_barrier();
  // R2, acquire: if the copy saw a byte of a later lap, the reservation of that lap happens-before
  // the load below; pairs with fence R1 in write().
  Atomics::fence(std::memory_order_acquire);
  // relaxed: the fence orders it.
  const Ticket head = Atomics::load(header_.head, std::memory_order_relaxed);
  return head > window_capacity_ ? head - window_capacity_ : 0;
}

template <class Atomics>
void BasicRing<Atomics>::clear() noexcept {
  // acquire: spare; the release of base_ below hands on the head that was read, so that base never
  // passes a head that readers see.
  const Ticket head = Atomics::load(header_.head, std::memory_order_acquire);
  // relaxed: re-read by the CAS.
  Ticket base = Atomics::load(header_.base, std::memory_order_relaxed);
  while (base < head) {
    // release: readers that see this base see a head at least as new; pairs with window().
    // relaxed on failure: another clear() came first; we only raise its base to ours.
    if (Atomics::compare_exchange_weak(header_.base, base, head, std::memory_order_release,
                                       std::memory_order_relaxed)) {
      const std::uint64_t lost = head - base > window_capacity_ ? head - base - window_capacity_ : 0;
      // relaxed: a statistic; only the sum matters.
      Atomics::fetch_add(header_.overwritten_before_clear, lost, std::memory_order_relaxed);
      return;
    }
  }
}

template <class Atomics>
bool BasicRing<Atomics>::try_hold(Ticket first) noexcept {
  Ticket none = 0;
  // acquire on success: the copier before is done; pairs with the release in let_go(). relaxed on failure: nothing
  // follows from it.
  while (!Atomics::compare_exchange_weak(header_.held, none, first + 1, std::memory_order_acquire,
                                         std::memory_order_relaxed)) {
    if (none != 0) return false;
  }
  return true;
}

template <class Atomics>
void BasicRing<Atomics>::hold_on_from(Ticket first) noexcept {
  // release: the copies of what lies below are finished; pairs with the acquire load in try_reserve().
  Atomics::store(header_.held, first + 1, std::memory_order_release);
}

template <class Atomics>
void BasicRing<Atomics>::let_go() noexcept {
  // release: as above, for all that was copied; pairs with the acquire load in try_reserve() and that in try_hold().
  Atomics::store(header_.held, Ticket{0}, std::memory_order_release);
}

template <class Atomics>
std::pair<Ticket, bool> BasicRing<Atomics>::gate() noexcept {
  const Ticket finished = advance();
  // relaxed: to be told.
  const Ticket held = Atomics::load(header_.held, std::memory_order_relaxed);
  const bool is_held = held != 0 && held - 1 < finished;
  return {is_held ? held - 1 : finished, is_held};
}

template <class Atomics>
RingHeader BasicRing<Atomics>::closed_header() const noexcept {
  constexpr std::uint64_t kLaps = std::uint64_t{1} << 20;  // that nobody comes to before it stands there
  // relaxed: see kLaps.
  std::uint64_t lap = Atomics::load(header_.head, std::memory_order_relaxed) / capacity_ + kLaps;
  if (lap_word(lap) == 0) ++lap;  // what lies in a word that nobody wrote to
  const Ticket unfinished = lap * capacity_;
  RingHeader header;
  header.commit = unfinished;
  header.base = header.start = header.head = unfinished + capacity_;
  header.is_closed = 1;
  return header;
}

template <class Atomics>
bool BasicRing<Atomics>::is_closed() const noexcept {
  // relaxed: asked by who was refused by this header, or copied what that makes invalid, before fence R2.
  return Atomics::load(header_.is_closed, std::memory_order_relaxed) != 0;
}

template <class Atomics>
bool BasicRing<Atomics>::has_finished(const RingHeader& before) const noexcept {
  const Window window{.first = before.commit, .end = before.head, .committed = before.commit};
  for (Ticket ticket = window.first; ticket < window.end; ++ticket) {
    if (!is_published(ticket, window)) return false;
  }
  return true;
}

template <class Atomics>
std::uint64_t BasicRing<Atomics>::num_inserted() const noexcept {
  // relaxed: a statistic.
  return Atomics::load(header_.head, std::memory_order_relaxed) - header_.start;
}

template <class Atomics>
Ticket BasicRing<Atomics>::num_reserved() const noexcept {
  // relaxed: whoever holds a ticket has seen a head beyond it.
  return Atomics::load(header_.head, std::memory_order_relaxed);
}

template <class Atomics>
std::uint64_t BasicRing<Atomics>::num_overwritten() const noexcept {
  // acquire: as in window(), head must not be older than base.
  const Ticket base = Atomics::load(header_.base, std::memory_order_acquire);
  // relaxed: ordered after base by the acquire above.
  const std::uint64_t since_clear = Atomics::load(header_.head, std::memory_order_relaxed) - base;
  // relaxed: a statistic.
  const std::uint64_t before = Atomics::load(header_.overwritten_before_clear, std::memory_order_relaxed);
  return before + (since_clear > window_capacity_ ? since_clear - window_capacity_ : 0);
}

}  // namespace fastreplay
