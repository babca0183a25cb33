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
// after it; an update reads the newest message and follows it with nothing between (the locations
// that are updated here are written by nothing but updates, so no other message is free to be read).
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

// For each location the position, in its modification order, of the oldest message still readable.
using View = std::array<std::uint8_t, kMaxLocations>;

inline void join(View& view, const View& other) {
  for (std::size_t i = 0; i < kMaxLocations; ++i) view[i] = std::max(view[i], other[i]);
}

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
    return threads_[thread].current[location];
  }
  [[nodiscard]] unsigned value(std::size_t location, std::size_t at) const {
    return messages_[start_[location] + at].value;
  }
  [[nodiscard]] unsigned newest(std::size_t location) const { return messages_[start_[location + 1] - 1U].value; }

  unsigned load(std::size_t thread, std::size_t location, std::size_t at, Order order) {
    const Message& message = messages_[start_[location] + at];
    see(thread, location, at);
    if (threads_[thread].fences == Fences::kAcquire) join(threads_[thread].at_fence, message.view);
    if (acquires(order)) join(threads_[thread].current, message.view);
    return message.value;
  }

  // Makes the new message the one at position `at`, which is after the thread's view.
  void store(std::size_t thread, std::size_t location, std::size_t at, unsigned value, Order order) {
    make_room(location, at);
    see(thread, location, at);
    put(thread, location, at, value, order, {});
  }

  // Reads the newest message and follows it.
  void update(std::size_t thread, std::size_t location, unsigned value, Order order) {
    const std::size_t last = num_messages(location) - 1;
    load(thread, location, last, order);
    const View read = messages_[start_[location] + last].view;
    make_room(location, last + 1);
    see(thread, location, last + 1);
    put(thread, location, last + 1, value, order, read);
  }

  void fence_acquire(std::size_t thread) { join(threads_[thread].current, threads_[thread].at_fence); }
  void fence_release(std::size_t thread) { threads_[thread].at_fence = threads_[thread].current; }

  // The thread's next relaxed store comes after another release fence, so the last one is no matter.
  void forget_release_fence(std::size_t thread) { threads_[thread].at_fence = View{}; }
  void set_fences(std::size_t thread, Fences fences) { threads_[thread].fences = fences; }

  // The thread makes no more steps.
  void retire(std::size_t thread) {
    threads_[thread].current.fill(0);
    threads_[thread].at_fence.fill(0);
    threads_[thread].live = false;
  }

  void swap_threads(std::size_t a, std::size_t b) { std::swap(threads_[a], threads_[b]); }
  [[nodiscard]] bool less(std::size_t a, std::size_t b) const {
    return std::pair{threads_[a].current, threads_[a].at_fence} < std::pair{threads_[b].current, threads_[b].at_fence};
  }

  // Drops the messages that no thread can read any more and counts positions from those left, so
  // that states that differ in nothing but their past become one.
  void prune() {
    View dropped{};
    bool any = false;
    for (std::size_t l = 0; l < num_locations_; ++l) {
      dropped[l] = static_cast<std::uint8_t>(num_messages(l) - 1);
      for (std::size_t t = 0; t < num_threads_; ++t) {
        if (threads_[t].live) dropped[l] = std::min(dropped[l], threads_[t].current[l]);
      }
      any = any || dropped[l] > 0;
    }
    if (any) drop(dropped);
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
        pack(packer, messages_[m].view);
      }
    }
    for (std::size_t t = 0; t < num_threads_; ++t) {
      packer.flag(threads_[t].live);
      if (!threads_[t].live) continue;
      pack(packer, threads_[t].current);
      pack(packer, threads_[t].at_fence);
    }
  }

 private:
  struct Message {
    View view{};
    std::uint8_t value = 0;
  };

  struct Thread {
    View current{};
    // Fences::kAcquire: what an acquire fence would make current. Fences::kRelease: what the last
    // release fence makes relaxed stores carry.
    View at_fence{};
    Fences fences = Fences::kRelease;
    bool live = true;
  };

  template <class Packer>
  void pack(Packer& packer, View& view) {
    for (std::size_t l = 0; l < num_locations_; ++l) packer.number(view[l]);
  }

  void see(std::size_t thread, std::size_t location, std::size_t at) {
    threads_[thread].current[location] = narrow(at);
    if (threads_[thread].fences == Fences::kAcquire) {
      threads_[thread].at_fence[location] = std::max(threads_[thread].at_fence[location], narrow(at));
    }
  }

  void put(std::size_t thread, std::size_t location, std::size_t at, unsigned value, Order order, const View& read) {
    Message& message = messages_[start_[location] + at];
    message.value = narrow(value);
    message.view = read;
    if (releases(order)) {
      join(message.view, threads_[thread].current);
    } else if (threads_[thread].fences == Fences::kRelease) {
      join(message.view, threads_[thread].at_fence);
    }
    message.view[location] = narrow(at);
  }

  template <class Change>
  void change_positions(std::size_t location, Change change) {
    for (std::size_t m = 0; m < start_[num_locations_]; ++m) change(messages_[m].view[location]);
    for (std::size_t t = 0; t < num_threads_; ++t) {
      change(threads_[t].current[location]);
      change(threads_[t].at_fence[location]);
    }
  }

  void make_room(std::size_t location, std::size_t at) {
    if (start_[num_locations_] == kMaxMessages) throw std::length_error{"too many messages"};
    if (at < num_messages(location)) {
      change_positions(location, [at](std::uint8_t& position) { position = narrow(position + (position >= at)); });
    }
    const auto where = messages_.begin() + static_cast<std::ptrdiff_t>(start_[location] + at);
    std::move_backward(where, messages_.begin() + start_[num_locations_],
                       messages_.begin() + start_[num_locations_] + 1);
    for (std::size_t l = location + 1; l <= num_locations_; ++l) ++start_[l];
  }

  void drop(const View& dropped) {
    std::size_t kept = 0;
    std::size_t begin = 0;
    for (std::size_t l = 0; l < num_locations_; ++l) {
      const std::size_t end = start_[l + 1];
      for (std::size_t m = begin + dropped[l]; m < end; ++m) messages_[kept++] = messages_[m];
      begin = end;
      start_[l + 1] = static_cast<std::uint8_t>(kept);
    }
    const auto subtract = [&dropped](View& view) {
      for (std::size_t l = 0; l < kMaxLocations; ++l) {
        view[l] = static_cast<std::uint8_t>(view[l] - std::min(view[l], dropped[l]));
      }
    };
    for (std::size_t m = 0; m < kept; ++m) subtract(messages_[m].view);
    for (std::size_t t = 0; t < num_threads_; ++t) {
      subtract(threads_[t].current);
      subtract(threads_[t].at_fence);
    }
  }

  std::size_t num_locations_;
  std::size_t num_threads_;
  std::array<std::uint8_t, kMaxLocations + 1> start_{};  // of each location in messages_; then the end
  std::array<Message, kMaxMessages> messages_{};
  std::array<Thread, kMaxThreads> threads_{};
};

}  // namespace model
