// SPDX-License-Identifier: MIT
// What comes before and after each slot's transition in its lane, beside a ring or in its records' margins. Nobody
// waits here.
//
// A link belongs to the ticket of its lap. Its owner stores all of it after the reservation and before the ring's word,
// so that whoever sees the ticket published sees its link, too. From then on only `after` changes, once: whoever
// published the successor puts the distance to it in place of kOpen, or a cut puts kCut there, by compare-and-swap,
// which fails once the slot's next owner has stored its own link.
//
// `after` is a hint. What counts is the successor's own `before`, stored before it was published: a reader that follows
// a hint asks for both, and so never comes to another lane, across an end, or to a record that is not there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "lanes/gaps.hpp"
#include "ring/header.hpp"
#include "storage/region.hpp"

namespace fastreplay {

template <class Atomics>
class BasicLinks {
 public:
  static constexpr std::size_t kLinkBytes = 16;

  // Throws std::invalid_argument on a capacity that distances do not reach, std::bad_alloc, and what the memory throws.
  explicit BasicLinks(std::size_t capacity, Memory& memory = Memory::own())
      : capacity_{capacity}, own_{memory.take(checked(capacity) * kLinkBytes)}, first_{own_.data()} {}
  // The same of memory that is somebody else's, is zero, and has room for one at every `stride` bytes.
  BasicLinks(std::size_t capacity, std::byte* first, std::size_t stride)
      : capacity_{checked(capacity)}, first_{first}, stride_{stride} {}

  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
  [[nodiscard]] std::size_t num_bytes() const noexcept { return own_.num_bytes(); }  // beside other memory

  // Where a ticket's link is, for who goes from one to the next: a division is as much work as a step.
  struct Place {
    std::size_t slot;
    std::uint64_t lap;
  };
  [[nodiscard]] Place place(Ticket ticket) const noexcept { return {ticket % capacity_, ticket / capacity_}; }
  [[nodiscard]] Place later(Place place, std::size_t tickets) const noexcept {  // at most capacity() of them
    const std::size_t slot = place.slot + tickets;
    return slot < capacity_ ? Place{slot, place.lap} : Place{slot - capacity_, place.lap + 1};
  }
  [[nodiscard]] Place earlier(Place place, std::size_t tickets) const noexcept {
    return place.slot >= tickets ? Place{place.slot - tickets, place.lap}
                                 : Place{place.slot + capacity_ - tickets, place.lap - 1};
  }

  // Makes the link of a ticket that is reserved and not yet published, by its owner. `after` is kOpen or kEnded.
  void begin(Place place, std::uint32_t lane, Gap before, Gap after) noexcept {
    Link& link = in(place.slot);
    // relaxed, all three: the release of the ring's word orders them; partner: the loads below, after an acquire of
    // that word.
    Atomics::store(link.lane, lane, std::memory_order_relaxed);
    Atomics::store(link.before, before, std::memory_order_relaxed);
    Atomics::store(link.after, word(place, after), std::memory_order_relaxed);
  }
  void begin(Ticket ticket, std::uint32_t lane, Gap before, Gap after) noexcept {
    begin(place(ticket), lane, before, after);
  }

  // Says what comes after a published ticket of which nothing is known yet: by who published the successor, or who
  // cuts.
  void join(Place place, Gap after) noexcept {
    std::uint64_t expected = word(place, After::kOpen);
    const std::uint64_t desired = word(place, after);
    // release: who follows the link sees the successor published, and a `before` no older than the one that this was
    // made of; partner: the acquire load in after(). relaxed on failure: the slot is another ticket's, and nobody asks
    // any more.
    while (!Atomics::compare_exchange_weak(in(place.slot).after, expected, desired, std::memory_order_release,
                                           std::memory_order_relaxed)) {
      if (expected != word(place, After::kOpen)) return;
    }
  }
  void join(Ticket ticket, Gap after) noexcept { join(place(ticket), after); }

  [[nodiscard]] std::size_t wrapped(std::size_t slot) const noexcept {  // of less than twice as many
    return slot < capacity_ ? slot : slot - capacity_;
  }

  // Of a published ticket; After::kUnknown where the slot is another's by now.
  [[nodiscard]] Gap after(Place place) const noexcept {
    // acquire: the successor is published for us, too; partner: the release in join().
    const std::uint64_t found = Atomics::load(in(place.slot).after, std::memory_order_acquire);
    return found >> 32 == (place.lap & 0xFFFF'FFFF) ? static_cast<Gap>(found) : After::kUnknown;
  }

  // Of a published ticket; of whatever ticket has its slot where that is another by now, which whoever copies rows
  // finds out afterwards.
  [[nodiscard]] Gap before(std::size_t slot) const noexcept {
    // relaxed: ordered by the acquire of the ring's word; partner: the store in begin().
    return Atomics::load(in(slot).before, std::memory_order_relaxed);
  }
  [[nodiscard]] std::uint32_t lane(std::size_t slot) const noexcept {
    // relaxed: as before().
    return Atomics::load(in(slot).lane, std::memory_order_relaxed);
  }

  // That lie in one line.
  [[nodiscard]] std::size_t num_in_line() const noexcept { return stride_ == kLinkBytes ? kCacheLine / kLinkBytes : 1; }

  // Inlined by force: GCC drops calls of a function that only prefetches.
  [[gnu::always_inline]] void prefetch(std::size_t slot) const noexcept { __builtin_prefetch(&in(slot), 0, 2); }

 protected:  // for a model, which tells accesses by their addresses
  struct Link {
    std::uint64_t after;   // the lap modulo 2^32, and a distance
    std::uint32_t before;  // a distance
    std::uint32_t lane;
  };
  static_assert(sizeof(Link) == kLinkBytes);
  [[nodiscard]] Link& in(std::size_t slot) const noexcept { return *reinterpret_cast<Link*>(first_ + slot * stride_); }

 private:
  [[nodiscard]] static std::size_t checked(std::size_t capacity) {
    if (capacity > kMostGap) throw std::invalid_argument{"links reach over fewer transitions"};
    return capacity;
  }
  [[nodiscard]] static std::uint64_t word(Place place, Gap after) noexcept { return place.lap << 32 | after; }

  std::size_t capacity_;
  Region own_;  // of no bytes where they lie in somebody else's memory
  std::byte* first_;
  std::size_t stride_ = kLinkBytes;
};

}  // namespace fastreplay
