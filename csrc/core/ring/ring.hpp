// SPDX-License-Identifier: MIT
// The ring of packed records: lock-free inserts, and reads that know whether they are whole. Must
// not know Python, torch, CUDA, random draws or minibatches.
//
// Tickets are 64-bit insert numbers, never reused; ticket t lives in slot t % capacity, in lap
// t / capacity. A slot goes
//
//   empty -> reserved (head > t) -> published (lap word) -> reserved by t + capacity -> ...
//
// The only place that can wait is the lap gate: a writer may not reserve a slot whose last ticket
// is unfinished. Readers never wait: they copy first and check afterwards.
//
// Shared are the header (header.hpp), of which each member says whose it is, and
//   words_[s] lap word of slot s: lap_word(t) once ticket t is published. Written by the ticket's
//             writer alone (the gate makes writers of one slot follow each other), read by all.
//   records_  the records' bytes. Written by the owner of the reserved ticket, read by all.
//
// The proof that a row accepted by a reader is whole stands in docs/design/concurrency.md.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>

#include "ring/atomics.hpp"
#include "ring/header.hpp"
#include "storage/records.hpp"

namespace fastreplay {

// The tickets that a reader may draw from, as they were at one moment.
struct Window {
  Ticket first;      // oldest ticket that is not overwritten or cleared
  Ticket end;        // one past the newest reserved ticket
  Ticket committed;  // tickets in [first, committed) are published; later ones have a lap word to ask

  [[nodiscard]] std::uint64_t reserved() const noexcept { return end - first; }
  [[nodiscard]] std::uint64_t published() const noexcept { return committed > first ? committed - first : 0; }
};

template <class Atomics>
class BasicRing {
 public:
  // Of the slots, the `num_spare` whose records are the oldest are kept for who was there first to look up, and not
  // given to readers. Throws std::invalid_argument on no slots but these and on sizes that do not fit, std::bad_alloc,
  // and what the memory throws. Where an earlier ring lay in it, this one goes on from there, once is_sound().
  BasicRing(RecordLayout layout, std::size_t capacity, std::size_t num_spare = 0, Memory& memory = Memory::own());

  // For views of whole columns, too, unchecked while writers run.
  [[nodiscard]] Records& records() noexcept { return records_; }
  [[nodiscard]] const Records& records() const noexcept { return records_; }
  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }  // slots
  [[nodiscard]] std::size_t num_spare() const noexcept { return capacity_ - window_capacity_; }
  // Tickets that a window holds at most.
  [[nodiscard]] std::size_t window_capacity() const noexcept { return window_capacity_; }
  [[nodiscard]] std::size_t num_bytes() const noexcept { return records_.num_bytes() + words_.num_bytes(); }

  // Rows that one reservation may take. A larger one would empty the readers' window while it is
  // copied.
  [[nodiscard]] std::size_t max_rows_per_insert() const noexcept { return max_rows_per_insert_; }

  // Inserts num_rows transitions, fields[f] being the rows of column f from first_row on, or nothing, where what lies
  // there is stored otherwise. Returns false, with nothing taken, when the lap gate stayed shut for `patience`.
  // num_rows is in [1, max_rows_per_insert()]. Any number of threads may insert.
  [[nodiscard]] bool insert(std::span<const Rows> fields, std::size_t first_row, std::size_t num_rows,
                            std::chrono::nanoseconds patience) noexcept;

  // The three steps of an insert, for who stores more than records: reserve, make a Claim of the tickets, write; the
  // claim's end publishes. What lies beside the records is stored between write() and that end.
  [[nodiscard]] bool reserve(std::size_t num_rows, std::chrono::nanoseconds patience, Ticket& first) noexcept;
  // Tickets [first, first + num_rows), reserved for one writer; the destructor publishes them.
  class Claim {
   public:
    Claim(BasicRing& ring, Ticket first, std::size_t num_rows) noexcept
        : ring_{ring},
          first_{first},
          slot_{first % ring.capacity_},
          lap_{first / ring.capacity_},
          num_rows_{num_rows} {}
    ~Claim() { ring_.publish(first_, slot_, lap_, num_rows_); }
    Claim(const Claim&) = delete;
    Claim& operator=(const Claim&) = delete;

    [[nodiscard]] std::size_t slot() const noexcept { return slot_; }

   private:
    BasicRing& ring_;
    Ticket first_;
    std::size_t slot_;
    std::uint64_t lap_;
    std::size_t num_rows_;
  };
  void write(std::span<const Rows> fields, std::size_t first_row, std::size_t slot, std::size_t num_rows) noexcept;

  // Reading: take a window, copy records of tickets in it, then ask which copies are whole.
  [[nodiscard]] Window window() noexcept { return window_within(0); }
  // The same for who asks is_published() anyway: `committed` may lie some rows further back, which beside
  // writers saves moving it.
  [[nodiscard]] Window window_to_draw_from() noexcept { return window_within(2 * commit_interval_); }
  [[nodiscard]] bool is_published(Ticket ticket, const Window& window) const noexcept;
  [[nodiscard]] const std::byte* record(Ticket ticket) const noexcept { return records_.at(slot(ticket)); }
  [[nodiscard]] std::size_t slot(Ticket ticket) const noexcept { return ticket % capacity_; }

  // The oldest ticket whose copy, finished before this call, is whole. To be called after the copy.
  [[nodiscard]] Ticket oldest_whole() const noexcept;

  // Keeps writers, at the lap gate, from overwriting tickets from `first` on until the copier is done with them: false
  // where another does so. Then `first` may be moved on, and the gate be left to itself. Writers who had passed the
  // gate before are not kept: the check after a copy finds out.
  [[nodiscard]] bool try_hold(Ticket first) noexcept;
  void hold_on_from(Ticket first) noexcept;
  void let_go() noexcept;
  // The oldest ticket that no writer may overwrite yet, and whether it is a copier's.
  [[nodiscard]] std::pair<Ticket, bool> gate() noexcept;

  // A header for the place of this one's, by which all that is there is overwritten, nothing there to be read, and the
  // lap gate shut for good. Whoever is in the midst of a call is told so by what it would ask anyway.
  [[nodiscard]] RingHeader closed_header() const noexcept;
  [[nodiscard]] bool is_closed() const noexcept;
  [[nodiscard]] const Region& header_memory() const noexcept { return header_memory_; }
  // Whether all is published that had been reserved as a header says that stood there before.
  [[nodiscard]] bool has_finished(const RingHeader& before) const noexcept;

  // Makes every ticket reserved so far invisible. Tickets go on.
  void clear() noexcept;

  // Whether what the header says can be, where the ring lies in what somebody else may have written.
  [[nodiscard]] bool is_sound() const noexcept;
  // Drops every unfinished ticket and closes the gaps, later transitions moving to earlier tickets, of which
  // moved(from, to) is told one by one, before they count. For a ring whose writers are gone, as in the child after a
  // fork: nobody else may use it meanwhile. Where it is killed, the next one does the rest.
  void discard_unfinished(const std::function<void(Ticket, Ticket)>& moved) noexcept;

  // Lets an empty, unshared ring go on from `ticket`. For restoring a saved one.
  void start_at(Ticket ticket) noexcept;
  // Publishes the next tickets of an unshared ring, at most as many as it has slots, whose records lie there already;
  // and lets one begin with what comes next, what lies in it being kept to be looked up.
  void restore(std::size_t num_rows) noexcept;
  void begin_here() noexcept;
  // Lets the counters of such a ring say what they said of another.
  void count(std::uint64_t num_inserted, std::uint64_t num_overwritten) noexcept;

  [[nodiscard]] std::uint64_t num_inserted() const noexcept;     // transitions reserved so far
  [[nodiscard]] Ticket num_reserved() const noexcept;            // the next ticket
  [[nodiscard]] std::uint64_t num_overwritten() const noexcept;  // lost because the ring was full

 protected:  // for a model, which tells accesses by their addresses
  [[nodiscard]] std::uint32_t& word_at(std::size_t slot) const noexcept {
    return reinterpret_cast<std::uint32_t*>(words_.data())[slot];
  }

 private:
  Region header_memory_;

 protected:  // as above
  RingHeader& header_;

 private:
  [[nodiscard]] bool try_reserve(std::size_t num_rows, Ticket& first) noexcept;
  // Of what is written: the next stack is compared with the frames of the last (lanes/frames.cpp).
  [[nodiscard]] Reading reading() const noexcept {
    return records_.layout().frames().empty() ? Reading::kLate : Reading::kSoon;
  }
  void write_one(std::span<const Rows> fields, std::size_t row, std::size_t slot) noexcept;
  // This and ask_ahead() are not inlined, lest an insert of one row saves the registers that they need.
  [[gnu::noinline]] void write_groups(std::span<const Rows> fields, std::size_t first_row, std::size_t slot,
                                      std::size_t num_rows) noexcept;
  void prefetch(std::size_t slot, std::size_t num_rows) const noexcept;
  [[gnu::noinline]] void ask_ahead(std::size_t slot, std::size_t num_rows) const noexcept;
  void publish(Ticket first, std::size_t slot, std::uint64_t lap, std::size_t num_rows) noexcept;
  Ticket advance() noexcept;
  [[nodiscard]] Window window_within(std::size_t slack) noexcept;
  void set_words(Ticket first, Ticket end, std::uint64_t laps_before) noexcept;
  void finish_move() noexcept;

  // 2 * (lap + 1) modulo 2^32: the gate keeps a slot's word at this lap or the one before, so a word
  // that wraps is never taken for another. Bit 0 is kept for tombstones.
  [[nodiscard]] static std::uint32_t lap_word(std::uint64_t lap) noexcept {
    return static_cast<std::uint32_t>(2 * (lap + 1));
  }

  Records records_;
  std::size_t capacity_;
  std::size_t window_capacity_;
  std::size_t max_rows_per_insert_;
  std::size_t commit_interval_;  // a power of two
  std::size_t prefetch_rows_;    // how far ahead of a store the ring's memory is asked for
  Region words_;
};

extern template class BasicRing<StdAtomics>;
using Ring = BasicRing<StdAtomics>;

}  // namespace fastreplay
