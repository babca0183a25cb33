// SPDX-License-Identifier: MIT
// A state of all threads and their memory, and the steps that it allows: one for each thread and each value that its
// access may meet there. Knows nothing of how states are searched.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>

#include "config.hpp"
#include "memory.hpp"
#include "table.hpp"

namespace model {

struct State {
  Memory memory;
  std::array<std::uint32_t, kMaxThreads> threads{};  // their states in the table
  std::array<std::uint8_t, kMaxThreads> names{};     // equal threads trade places; for traces, not packed

  State(const Config& config, const Table& table) : memory{config.num_locations(), config.num_threads()} {
    for (std::size_t i = 0; i < config.num_threads(); ++i) {
      names[i] = static_cast<std::uint8_t>(i);
      threads[i] = table.start(i);
      memory.set_fences(i, config.role_of(i) == Role::kReader ? Fences::kAcquire : Fences::kRelease);
    }
  }

  // Brings states that differ in names only into one form.
  void normalise(const Config& config) {
    memory.prune();
    for (std::size_t last = config.num_threads(); last > 1; --last) {
      for (std::size_t i = 0; i + 1 < last; ++i) {
        if (config.role_of(i) == config.role_of(i + 1) && less(i + 1, i)) swap(i, i + 1);
      }
    }
  }

  template <class Packer>
  void pack(Packer& packer, const Config& config) {
    for (std::size_t i = 0; i < config.num_threads(); ++i) {
      auto low = static_cast<std::uint8_t>(threads[i]);
      auto high = static_cast<std::uint8_t>(threads[i] >> 8);
      if (threads[i] >> 16 != 0) throw std::length_error{"more states of one thread than 16 bits number"};
      packer.byte(low);
      packer.byte(high);
      threads[i] = static_cast<std::uint32_t>(low | high << 8);
    }
    memory.pack(packer);
  }

 private:
  [[nodiscard]] bool less(std::size_t a, std::size_t b) const {
    return threads[a] != threads[b] ? threads[a] < threads[b] : memory.less(a, b);
  }
  void swap(std::size_t a, std::size_t b) {
    std::swap(threads[a], threads[b]);
    std::swap(names[a], names[b]);
    memory.swap_threads(a, b);
  }
};

// What a step did, for traces.
struct Event {
  std::uint8_t thread = 0;
  const char* function = "";
  const char* verb = "";
  std::size_t location = kNoLocation;
  std::uint64_t value = 0;
  std::size_t num_newer = 0;  // messages after the one that was read or written
  bool accepts = false;       // a row, or the mass of a leaf
  Violation violation = Violation::kNone;
};

// All steps that a state allows. Emit is called with each successor and its event.
template <class Emit>
class Stepper {
 public:
  Stepper(const Table& table, const Config& config, Emit emit)
      : table_{table}, config_{config}, emit_{std::move(emit)} {}

  void all_steps(const State& state) {
    state_ = &state;
    for (self_ = 0; self_ < config_.num_threads(); ++self_) {
      if (state.threads[self_] != Table::kEnd) step(table_.access(state.threads[self_]));
    }
  }

 private:
  void step(const Access& access) {
    switch (access.kind) {
      case Kind::kLoad:
        return load(access, access.order);
      case Kind::kStore:
        return store(access);
      case Kind::kUpdate:
        return update(access);
      case Kind::kFetchOr:
      case Kind::kExchange:
        return change(access);
      case Kind::kJoin:
        return join();
      default:
        for (std::uint64_t option = 0; option < access.value; ++option) {
          State next = *state_;
          make(next, {.verb = "chooses", .value = option}, narrow(option));
        }
    }
  }

  void load(const Access& access, Order order) {
    for (std::size_t at = oldest(access); at < size(access); ++at) load_at(access, order, at);
  }

  void load_at(const Access& access, Order order, std::size_t at) {
    State next = *state_;
    const unsigned value = next.memory.load(self_, access.location, at, order);
    make(next, {.verb = "reads", .value = value, .num_newer = size(access) - 1 - at}, narrow(value));
  }

  void store(const Access& access) {
    for (std::size_t at = oldest(access) + 1; at <= size(access); ++at) {
      if (!state_->memory.has_room(access.location, at)) continue;
      State next = *state_;
      next.memory.store(self_, access.location, at, narrow(access.value), access.order);
      make(next, {.verb = "writes", .value = access.value, .num_newer = size(access) - at}, kDone);
    }
  }

  // Weak: it may fail although it read what it expected.
  void update(const Access& access) {
    load(access, access.failure);
    for (std::size_t at = oldest(access); at < size(access); ++at) {
      if (state_->memory.value(access.location, at) == access.expected) update_at(access, at, access.value, kDone);
    }
  }

  // Cannot fail, and answers what was there.
  void change(const Access& access) {
    for (std::size_t at = oldest(access); at < size(access); ++at) {
      const unsigned before = state_->memory.value(access.location, at);
      update_at(access, at, access.kind == Kind::kFetchOr ? before | access.value : access.value, narrow(before));
    }
  }

  void update_at(const Access& access, std::size_t at, std::uint64_t value, Answer answer) {
    if (!state_->memory.has_room(access.location, at + 1)) return;
    State next = *state_;
    next.memory.update(self_, access.location, at, narrow(value), access.order);
    make(next, {.verb = "updates", .value = value, .num_newer = size(access) - 1 - at}, answer);
  }

  void join() {
    for (std::size_t i = 0; i < config_.num_threads(); ++i) {
      if (i != self_ && state_->threads[i] != Table::kEnd) return;
    }
    State next = *state_;
    next.memory.join(self_);
    make(next, {.verb = "goes on, others left:"}, kDone);
  }

  // Goes on to the thread's next access, and checks what the step did to the others.
  void make(State& next, Event event, Answer answer) {
    const Access& access = table_.access(state_->threads[self_]);
    const auto [state, effects] = table_.step(state_->threads[self_], answer);
    next.threads[self_] = state;
    apply(next.memory, effects, state);
    if (is_at_rest(state)) next.memory.retire(self_);
    event.thread = state_->names[self_];
    event.function = access.function;
    event.location = access.location;
    event.accepts = effects.accepts;
    event.violation = effects.violation;
    if (access.kind == Kind::kUpdate && answer == kDone) check_update(next, access.location, event);
    if (access.place == Place::kLeaf && access.kind != Kind::kLoad) check_leaf(next, access.location, event);
    if (event.violation == Violation::kNone) next.normalise(config_);
    emit_(next, event);
  }

  void apply(Memory& memory, const Effects& effects, std::uint32_t state) const {
    const bool reads = config_.role_of(self_) == Role::kReader;
    if (reads ? effects.releases : effects.acquires) throw std::logic_error{"a kind of thread with both fences"};
    if (effects.acquires) memory.fence_acquire(self_);
    if (effects.releases) memory.fence_release(self_);
    if (!reads && !table_.uses_release_fence(state)) memory.forget_release_fence(self_);
  }

  void check_update(const State& next, std::size_t location, Event& event) const {
    if (location == kHead) check_owners(next, event);
    if (location == kCommit) check_commit(next, event);
  }

  // Laps never go back, and in each the owner's mass comes first.
  void check_leaf(const State& next, std::size_t location, Event& event) const {
    for (std::size_t at = 1; at < next.memory.num_messages(location); ++at) {
      const unsigned before = next.memory.value(location, at - 1);
      const unsigned leaf = next.memory.value(location, at);
      if (before == 0 || before <= leaf) continue;
      if (leaf == 0 || lap_of_leaf(leaf) < lap_of_leaf(before))
        event.violation = Violation::kOldLeaf;
      else if (mass_of_leaf(leaf) == kOwnersMass)
        event.violation = Violation::kLostUpdate;
    }
  }

  // What was reserved is nobody else's.
  void check_owners(const State& next, Event& event) const {
    const Holding& held = table_.holding(next.threads[self_]);
    for (std::uint64_t ticket = held.first; ticket < held.first + std::uint64_t{held.rows}; ++ticket) {
      for (std::uint64_t earlier = ticket; earlier >= config_.capacity;) {
        earlier -= config_.capacity;
        for (std::size_t i = 0; i < config_.num_threads(); ++i) {
          if (i != self_ && table_.holding(next.threads[i]).owns(earlier)) event.violation = Violation::kTwoOwners;
        }
      }
    }
  }

  void check_commit(const State& next, Event& event) const {
    const unsigned commit = next.memory.newest(kCommit);
    if (commit > next.memory.newest(kHead)) event.violation = Violation::kCommitPastHead;
    for (std::uint64_t ticket = 0; ticket < commit; ++ticket) {
      for (std::size_t i = 0; i < config_.num_threads(); ++i) {
        if (table_.holding(state_->threads[i]).is_unwritten(ticket)) event.violation = Violation::kCommitUnwritten;
      }
    }
  }

  // Makes no step before all others are at their ends.
  [[nodiscard]] bool is_at_rest(std::uint32_t state) const {
    return state == Table::kEnd || table_.access(state).kind == Kind::kJoin;
  }
  [[nodiscard]] std::size_t oldest(const Access& access) const {
    return state_->memory.oldest_readable(self_, access.location);
  }
  [[nodiscard]] std::size_t size(const Access& access) const { return state_->memory.num_messages(access.location); }

  const Table& table_;
  const Config& config_;
  Emit emit_;
  const State* state_ = nullptr;
  std::size_t self_ = 0;
};

// Whether a ticket of the last lap says that its successor comes next where that is there, and else that none is.
inline bool is_linked(const State& state, const Config& config, std::uint64_t ticket) {
  const auto newest = [&](std::size_t location) { return state.memory.newest(location); };
  const std::uint64_t next = ticket + 1;
  const std::uint64_t head = newest(kHead);
  const unsigned after = newest(config.after(ticket % config.capacity));
  const bool has_next = next < head && newest(config.lane(next % config.capacity)) == ticket + 1;
  const bool says_next = after % kAfters == static_cast<unsigned>(AfterIt::kNext);
  // A successor that is more than one ticket away finds its predecessor's slot its own or another's.
  return after / kAfters == ticket / config.capacity && says_next == has_next;
}

// What must hold when every thread is done.
inline Violation check_at_rest(const State& state, const Config& config) {
  const auto is_published = [&](std::uint64_t ticket) {
    return state.memory.newest(config.word(ticket % config.capacity)) == lap_word(ticket / config.capacity);
  };
  const std::uint64_t head = state.memory.newest(kHead);
  std::uint64_t commit = state.memory.newest(kCommit);
  while (commit < head && is_published(commit)) ++commit;
  if (commit != head) return Violation::kStuckCommit;
  for (std::uint64_t ticket = config.oldest(head); ticket < head; ++ticket) {
    if (config.has_links) {
      if (!is_linked(state, config, ticket)) return Violation::kLostLink;
      continue;
    }
    if (config.has_leaves()) {
      const unsigned leaf = state.memory.newest(config.leaf(ticket % config.capacity));
      if (leaf == 0 || lap_of_leaf(leaf) != ticket / config.capacity) return Violation::kWrongLeaf;
      continue;
    }
    for (std::size_t w = 0; w < kWordsPerRecord; ++w) {
      if (state.memory.newest(config.data(ticket % config.capacity, w)) != content(ticket)) return Violation::kLostRow;
    }
  }
  return Violation::kNone;
}

}  // namespace model
