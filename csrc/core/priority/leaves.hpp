// SPDX-License-Identifier: MIT
// What each slot's transition weighs, beside a ring: stored by who inserts, changed by who updates, read by who draws.
// Knows nothing of sums. Nobody waits here.
//
// A leaf belongs to the ticket of its lap. Its owner stores it after the reservation and before the ring's word, so
// that whoever sees the ticket published sees its leaf, too; from then on updates replace it by compare-and-swap, which
// fails once the slot's next owner has stored its own. (A check followed by a store would put an old lap back.)
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "priority/leaf.hpp"
#include "priority/marks.hpp"
#include "priority/node.hpp"
#include "ring/header.hpp"
#include "ring/stop_points.hpp"
#include "storage/region.hpp"

namespace fastreplay {

template <class Atomics>
class BasicLeaves {
 public:
  explicit BasicLeaves(std::size_t capacity, Memory& memory = Memory::own())
      : capacity_{capacity},
        words_{memory.take(num_groups(capacity) * kGroupLeaves * sizeof(std::uint64_t))},
        marks_{num_groups(capacity)} {}

  [[nodiscard]] static constexpr std::size_t num_groups(std::size_t capacity) noexcept {
    return (capacity + kGroupLeaves - 1) / kGroupLeaves;
  }
  [[nodiscard]] std::size_t num_bytes() const noexcept { return words_.num_bytes() + marks_.num_bytes(); }

  // Makes the leaf of a ticket that is reserved and not yet published, by its owner.
  void begin(Ticket ticket, float mass) noexcept { begin(ticket % capacity_, ticket / capacity_, mass); }
  void begin(std::size_t slot, std::uint64_t lap, float mass) noexcept {
    // relaxed: the release of the ring's word orders it; partner: the loads in replace() and word(), after an acquire
    // of that word or of a mark.
    Atomics::store(at(slot), Leaf::word(lap, mass), std::memory_order_relaxed);
    at_stop_point(StopPoint::kLeafStored);
  }

  // Lets samplers look again at num_tickets tickets whose leaves have changed, once they are published.
  void mark(Ticket first, std::size_t num_tickets) noexcept { mark_from(first % capacity_, num_tickets); }
  void mark_from(std::size_t slot, std::size_t num_tickets) noexcept {
    const std::size_t before_end = capacity_ - slot;
    if (num_tickets > before_end) {
      mark_slots(slot, before_end);
      mark_slots(0, num_tickets - before_end);
    } else {
      mark_slots(slot, num_tickets);
    }
  }

  // Gives published tickets other masses, and lets samplers look, once this is gone at the latest.
  class Update {
   public:
    explicit Update(BasicLeaves& leaves) noexcept : leaves_{leaves}, marking_{leaves.marks_} {}

    // Of the ticket that its slot has in this lap. False where the slot is another's by now.
    [[nodiscard]] bool replace(std::size_t slot, std::uint64_t lap, float mass) noexcept {
      std::uint64_t& place = leaves_.at(slot);
      // relaxed: who names a published ticket has its leaf by the acquire that told so; only a newer one can be there.
      std::uint64_t word = Atomics::load(place, std::memory_order_relaxed);
      do {
        if (!Leaf::is_of(word, lap)) return false;
        at_stop_point(StopPoint::kLeafRead);
        // relaxed on both: the mark orders it for samplers; other updates only ask for the lap.
      } while (!Atomics::compare_exchange_weak(place, word, Leaf::word(lap, mass), std::memory_order_relaxed,
                                               std::memory_order_relaxed));
      marking_.add(slot / kGroupLeaves);
      return true;
    }

   private:
    BasicLeaves& leaves_;
    typename BasicMarks<Atomics>::Marking marking_;
  };

  // As it is at the moment.
  [[nodiscard]] std::uint64_t word(std::size_t slot) const noexcept {
    // relaxed: what a mark promised is ordered by its exchange; what comes later is marked again.
    return Atomics::load(at(slot), std::memory_order_relaxed);
  }

  // The masses of a group's sixteen leaves, 0 of those of another lap.
  void masses_in(std::size_t group, std::uint64_t lap, float* masses) const noexcept {
    std::array<std::uint64_t, kGroupLeaves> words;
    // relaxed: as word().
    Atomics::template load_words<kGroupLeaves>(&at(group * kGroupLeaves), words.data());
    Leaf::masses_in(words, lap, masses);
  }
  void prefetch(std::size_t group) const noexcept {
    for (std::size_t i = 0; i < kGroupLeaves; i += kCacheLine / sizeof(std::uint64_t)) {
      __builtin_prefetch(&at(group * kGroupLeaves + i), 0, 2);  // the first level has too few miss buffers
    }
  }

  void prefetch_for_update(std::size_t slot) const noexcept { __builtin_prefetch(&at(slot), 1); }

  [[nodiscard]] BasicMarks<Atomics>& marks() noexcept { return marks_; }

 protected:  // for a model, which tells accesses by their addresses
  [[nodiscard]] std::uint64_t& at(std::size_t slot) const noexcept {
    return reinterpret_cast<std::uint64_t*>(words_.data())[slot];
  }

 private:
  void mark_slots(std::size_t slot, std::size_t num_slots) noexcept {
    marks_.mark(slot / kGroupLeaves, (slot + num_slots - 1) / kGroupLeaves);
  }

  std::size_t capacity_;
  Region words_;
  BasicMarks<Atomics> marks_;
};

using Leaves = BasicLeaves<StdAtomics>;

}  // namespace fastreplay
