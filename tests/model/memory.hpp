// SPDX-License-Identifier: MIT
// Shared memory as C++20 promises it and no better: a load may return any value that the orders and
// fences do not forbid. Knows nothing of rings.
//
// This is the operational, view-based form of RC11 without load buffering (Kang et al., "A promising
// semantics for relaxed-memory concurrency", POPL 2017, without promises; Lahav et al., "Repairing
// sequential consistency in C/C++11", PLDI 2017). Every location keeps its modification order as a
// list of messages. A view says, for every location, the oldest message that may still be read. Each
// thread has a view; each message carries the view that an acquire load of it brings. A load may read
// any message not older than the thread's view; a store may enter the modification order anywhere
// after it; an update follows the message that it read with nothing between. So it reads one that no
// other update has followed (where only updates write, that is the newest), and a store enters the
// order before no update.
// Release sequences are those of C++20: updates hand on the view of the message that they read,
// later plain stores of the same thread do not.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>

namespace model {

enum class Order : std::uint8_t { kRelaxed, kAcquire, kRelease, kAcqRel };

constexpr bool acquires(Order order) { return order == Order::kAcquire || order == Order::kAcqRel; }
constexpr bool releases(Order order) { return order == Order::kRelease || order == Order::kAcqRel; }

// What one kind of thread uses fences for. No thread here needs both, which keeps states small.
enum class Fences : std::uint8_t { kRelease, kAcquire };

constexpr std::size_t kMaxLocations = 12;
constexpr std::size_t kMaxThreads = 5;
constexpr std::size_t kMaxMessages = 64;
constexpr unsigned kMaxNumber = 15;  // values and positions are packed into four bits

constexpr std::uint8_t narrow(std::size_t number) {
  if (number > kMaxNumber) throw std::length_error{"a configuration too large for its states' encoding"};
  return static_cast<std::uint8_t>(number);
}

// For each location the position, in its modification order, of the oldest message still readable: four bits
// each, so that a view is compared, joined and packed as one number.
class View {
 public:
  [[nodiscard]] std::size_t at(std::size_t location) const { return positions_ >> shift(location) & kMaxNumber; }
  void set(std::size_t location, std::size_t position) {
    positions_ &= ~(std::uint64_t{kMaxNumber} << shift(location));
    positions_ |= std::uint64_t{narrow(position)} << shift(location);
  }

  // The larger position of each location. The smaller one is what the sum leaves over, without a borrow between
  // locations.
  void join(View other) { positions_ = larger(positions_, other.positions_); }
  void meet(View other) { positions_ += other.positions_ - larger(positions_, other.positions_); }
  // Counts positions from `first` on; those before become 0.
  void subtract(View first) { positions_ = larger(positions_, first.positions_) - first.positions_; }

  auto operator<=>(const View&) const = default;

  template <class Packer>
  void pack(Packer& packer, std::size_t num_locations) {
    packer.bits(positions_, shift(num_locations));
  }

 private:
  static constexpr unsigned shift(std::size_t location) { return 4 * static_cast<unsigned>(location); }

  static constexpr std::uint64_t larger(std::uint64_t a, std::uint64_t b) {
    constexpr std::uint64_t kEven = 0x0F0F0F0F0F0F0F0F;  // every other position, in a byte of its own
    return larger_bytes(a & kEven, b & kEven) | larger_bytes(a >> 4 & kEven, b >> 4 & kEven) << 4;
  }
  // Of bytes below 16.
  static constexpr std::uint64_t larger_bytes(std::uint64_t a, std::uint64_t b) {
    constexpr std::uint64_t kTop = 0x8080808080808080;
    const std::uint64_t at_least = ((a | kTop) - b) & kTop;  // the top bit of each byte of `a` that is not below b's
    const std::uint64_t from_a = (at_least >> 3) - (at_least >> 7);  // and 15 in its place
    return (a & from_a) | (b & ~from_a);
  }

  std::uint64_t positions_ = 0;
};

class Memory {
 public:
  Memory(std::size_t num_locations, std::size_t num_threads)
      : num_locations_{num_locations}, num_threads_{num_threads} {
    for (std::size_t l = 0; l <= num_locations; ++l) start_[l] = static_cast<std::uint8_t>(l);  // one zero each
  }

  [[nodiscard]] std::size_t num_messages(std::size_t location) const {
    return static_cast<std::size_t>(start_[location + 1] - start_[location]);
  }
  [[nodiscard]] std::size_t oldest_readable(std::size_t thread, std::size_t location) const {
    return threads_[thread].current.at(location);
  }
  [[nodiscard]] unsigned value(std::size_t location, std::size_t at) const {
    return messages_[start_[location] + at].value;
  }
  // Whether a message may enter at position `at`: not where the one that is there must follow the one before.
  [[nodiscard]] bool has_room(std::size_t location, std::size_t at) const {
    return at == num_messages(location) || !messages_[start_[location] + at].is_update;
  }
  [[nodiscard]] unsigned newest(std::size_t location) const { return messages_[start_[location + 1] - 1U].value; }

  unsigned load(std::size_t thread, std::size_t location, std::size_t at, Order order) {
    const Message& message = messages_[start_[location] + at];
    see(thread, location, at);
    if (threads_[thread].fences == Fences::kAcquire) threads_[thread].at_fence.join(message.view);
    if (acquires(order)) threads_[thread].current.join(message.view);
    return message.value;
  }

  // Makes the new message the one at position `at`, which is after the thread's view.
  void store(std::size_t thread, std::size_t location, std::size_t at, unsigned value, Order order) {
    if (!has_room(location, at)) throw std::logic_error{"a store between an update and what it read"};
    make_room(location, at);
    see(thread, location, at);
    put(thread, location, at, value, order, {});
  }

  // Reads the message at position `at`, behind which there is room, and follows it.
  void update(std::size_t thread, std::size_t location, std::size_t at, unsigned value, Order order) {
    if (!has_room(location, at + 1)) throw std::logic_error{"two updates that read one message"};
    load(thread, location, at, order);
    const View read = messages_[start_[location] + at].view;
    make_room(location, at + 1);
    see(thread, location, at + 1);
    put(thread, location, at + 1, value, order, read);
    messages_[start_[location] + at + 1].is_update = true;
  }

  // The thread was waiting for all others (retire()), and sees all that they did.
  void join(std::size_t thread) {
    threads_[thread].live = true;
    for (std::size_t l = 0; l < num_locations_; ++l) threads_[thread].current.set(l, num_messages(l) - 1);
  }

  void fence_acquire(std::size_t thread) { threads_[thread].current.join(threads_[thread].at_fence); }
  void fence_release(std::size_t thread) { threads_[thread].at_fence = threads_[thread].current; }

  // The thread's next relaxed store comes after another release fence, so the last one is no matter.
  void forget_release_fence(std::size_t thread) { threads_[thread].at_fence = View{}; }
  void set_fences(std::size_t thread, Fences fences) { threads_[thread].fences = fences; }

  // The thread makes no more steps, or none before all others have made theirs.
  void retire(std::size_t thread) {
    threads_[thread].current = View{};
    threads_[thread].at_fence = View{};
    threads_[thread].live = false;
  }

  void swap_threads(std::size_t a, std::size_t b) { std::swap(threads_[a], threads_[b]); }
  [[nodiscard]] bool less(std::size_t a, std::size_t b) const {
    return std::pair{threads_[a].current, threads_[a].at_fence} < std::pair{threads_[b].current, threads_[b].at_fence};
  }

  // Drops the messages that no thread can read any more and counts positions from those left, so
  // that states that differ in nothing but their past become one.
  void prune() {
    View dropped;
    for (std::size_t l = 0; l < num_locations_; ++l) dropped.set(l, num_messages(l) - 1);
    for (std::size_t t = 0; t < num_threads_; ++t) {
      if (threads_[t].live) dropped.meet(threads_[t].current);
    }
    if (dropped != View{}) drop(dropped);
  }

  // Writes or reads everything that makes one memory differ from another.
  template <class Packer>
  void pack(Packer& packer) {
    for (std::size_t l = 0; l < num_locations_; ++l) {
      auto count = static_cast<std::uint8_t>(start_[l + 1] - start_[l]);
      packer.number(count);
      start_[l + 1] = static_cast<std::uint8_t>(start_[l] + count);
      for (std::size_t m = start_[l]; m < start_[l + 1]; ++m) {
        packer.number(messages_[m].value);
        packer.bit(messages_[m].is_update);
        messages_[m].view.pack(packer, num_locations_);
      }
    }
    for (std::size_t t = 0; t < num_threads_; ++t) {
      packer.flag(threads_[t].live);
      if (!threads_[t].live) continue;
      threads_[t].current.pack(packer, num_locations_);
      threads_[t].at_fence.pack(packer, num_locations_);
    }
  }

 private:
  struct Message {
    View view{};
    std::uint8_t value = 0;
    bool is_update = false;  // of the message before; of no matter in the oldest one, where it is false
  };

  struct Thread {
    View current{};
    // Fences::kAcquire: what an acquire fence would make current. Fences::kRelease: what the last
    // release fence makes relaxed stores carry.
    View at_fence{};
    Fences fences = Fences::kRelease;
    bool live = true;
  };

  void see(std::size_t thread, std::size_t location, std::size_t at) {
    Thread& self = threads_[thread];
    self.current.set(location, at);
    if (self.fences == Fences::kAcquire) self.at_fence.set(location, std::max(self.at_fence.at(location), at));
  }

  void put(std::size_t thread, std::size_t location, std::size_t at, unsigned value, Order order, View read) {
    Message& message = messages_[start_[location] + at];
    message.value = narrow(value);
    message.is_update = false;
    message.view = read;
    if (releases(order)) {
      message.view.join(threads_[thread].current);
    } else if (threads_[thread].fences == Fences::kRelease) {
      message.view.join(threads_[thread].at_fence);
    }
    message.view.set(location, at);
  }

  // The messages from `at` on move by one.
  void move_positions(std::size_t location, std::size_t at) {
    const auto move = [location, at](View& view) {
      const std::size_t position = view.at(location);
      if (position >= at) view.set(location, position + 1);
    };
    for (std::size_t m = 0; m < start_[num_locations_]; ++m) move(messages_[m].view);
    for (std::size_t t = 0; t < num_threads_; ++t) {
      move(threads_[t].current);
      move(threads_[t].at_fence);
    }
  }

  void make_room(std::size_t location, std::size_t at) {
    if (start_[num_locations_] == kMaxMessages) throw std::length_error{"too many messages"};
    if (at < num_messages(location)) move_positions(location, at);
    const auto where = messages_.begin() + static_cast<std::ptrdiff_t>(start_[location] + at);
    std::move_backward(where, messages_.begin() + start_[num_locations_],
                       messages_.begin() + start_[num_locations_] + 1);
    for (std::size_t l = location + 1; l <= num_locations_; ++l) ++start_[l];
  }

  void drop(View dropped) {
    std::size_t kept = 0;
    std::size_t begin = 0;
    for (std::size_t l = 0; l < num_locations_; ++l) {
      const std::size_t end = start_[l + 1];
      messages_[begin + dropped.at(l)].is_update = false;
      for (std::size_t m = begin + dropped.at(l); m < end; ++m) messages_[kept++] = messages_[m];
      begin = end;
      start_[l + 1] = static_cast<std::uint8_t>(kept);
    }
    for (std::size_t m = 0; m < kept; ++m) messages_[m].view.subtract(dropped);
    for (std::size_t t = 0; t < num_threads_; ++t) {
      threads_[t].current.subtract(dropped);
      threads_[t].at_fence.subtract(dropped);
    }
  }

  std::size_t num_locations_;
  std::size_t num_threads_;
  std::array<std::uint8_t, kMaxLocations + 1> start_{};  // of each location in messages_; then the end
  std::array<Message, kMaxMessages> messages_{};
  std::array<Thread, kMaxThreads> threads_{};
};

}  // namespace model
