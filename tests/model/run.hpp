// SPDX-License-Identifier: MIT
// Runs an operation of the real code up to its next access to shared memory, and tells what it has in hand there.
//
// The operation is run from its beginning, on a stack of its own; each of its accesses is answered from a script, and
// at the first one that the script has no answer for it stops for ever. What it would do next depends on nothing but
// what its registers and its stack then hold (the code has no other memory of its own): two runs that stop with the
// same there are in the same state, whatever they were answered before. Words that are dead may tell states apart that
// are one, never the reverse.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <span>
#include <vector>

#include "config.hpp"
#include "faults.hpp"

namespace model {

// Tickets that an insert has reserved, until their lap words and all their data are stored.
struct Holding {
  std::uint8_t first = 0;
  std::uint8_t rows = 0;
  std::array<std::uint8_t, kMaxRows> data_left{};
  std::array<std::uint8_t, kMaxRows> words_left{};

  bool operator==(const Holding&) const = default;

  [[nodiscard]] bool is_of(std::uint64_t ticket) const {
    return ticket >= first && ticket < first + std::uint64_t{rows};
  }
  [[nodiscard]] bool is_unwritten(std::uint64_t ticket) const { return is_of(ticket) && data_left[ticket - first] > 0; }
  [[nodiscard]] bool owns(std::uint64_t ticket) const {
    return is_of(ticket) && data_left[ticket - first] + words_left[ticket - first] > 0;
  }
  void add_to(std::vector<std::uint64_t>& key) const {
    key.insert(key.end(), {first, rows, data_left[0], data_left[1], words_left[0], words_left[1]});
  }
  [[nodiscard]] bool is_empty() const {
    for (std::size_t i = 0; i < rows; ++i) {
      if (owns(first + i)) return false;
    }
    return true;
  }
};

// What an access returned: a load's value, whether and with what an update failed, the option that was chosen.
using Answer = std::uint8_t;
constexpr Answer kDone = 0x80;  // a store, an update that succeeded

// What a thread does between two accesses that touches nothing but itself, or is only watched.
struct Effects {
  bool releases = false;  // a fence
  bool acquires = false;
  bool accepts = false;  // a row, or the mass of a leaf
  Violation violation = Violation::kNone;
};

class Run {
 public:
  Run(const Config& config, const Faults& faults) : config_{config}, faults_{faults}, stack_(kStackWords) {
    if (getcontext(&fresh_) != 0) std::abort();
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  // True if it stopped at an access; false if the operation ended before.
  bool until_next_access(std::span<const Answer> script, std::function<void()> operation) {
    script_ = script;
    operation_ = std::move(operation);
    num_answered_ = 0;
    effects = {};
    holding = {};
    marks_early = false;
    postponed_.clear();
    stopped_ = false;
    std::fill(stack_.begin(), stack_.end(), 0);
    context_ = fresh_;
    context_.uc_stack.ss_sp = stack_.data();
    context_.uc_stack.ss_size = stack_.size() * sizeof(std::uint64_t);
    context_.uc_link = &caller_;
    current = this;
    makecontext(&context_, [] { current->operation_(); }, 0);
    if (swapcontext(&caller_, &context_) != 0) std::abort();
    return stopped_;
  }

  // Of the run that stopped.
  Access pending;
  Effects effects;  // since the last answer
  Holding holding;
  std::vector<std::uint64_t> locals;

  // What a thread's operation hands on to its next one.
  std::uint64_t carried = 0;

  // Set by an operation at its beginning: whether an update of a leaf comes after its marks.
  bool marks_early = false;

  // ---- called by the code that runs ----

  [[gnu::noinline]] Answer access(Access access) {
    __builtin_unwind_init();  // registers that hold the callers' variables go onto the stack
    access.place = config_.place_of(access.location);
    faults_.weaken(access);
    if (num_answered_ == script_.size()) stop(access);
    effects = {};
    return script_[num_answered_++];
  }

  void join() { access({.kind = Kind::kJoin, .function = "join"}); }

  void fence(Access fence) {
    faults_.weaken(fence);
    if (faults_.leaves_out(fence)) return;
    effects.acquires |= acquires(fence.order);
    effects.releases |= releases(fence.order);
  }

  void wait() {
    if (!holding.is_empty()) effects.violation = Violation::kGatedHolder;
  }

  std::uint64_t load(Access load) {
    load.place = config_.place_of(load.location);
    return access(load) + faults_.lie(load);
  }

  void store_word(const Access& store) {
    access(store);
    for (std::size_t row = 0; row < holding.rows; ++row) {
      if (store.location == config_.word((holding.first + row) % config_.capacity)) holding.words_left[row] = 0;
    }
    if (!holds_words()) store_postponed();
  }

  // Of the row-th transition of the insert.
  void store_data(Access store, std::size_t row) {
    store.value = row < holding.rows ? content(holding.first + row) : kMaxNumber;
    if (faults_.data_last && holds_words()) return postponed_.push_back({store, row});
    access(store);
    if (row < holding.rows) --holding.data_left[row];
  }

  // What was there.
  std::uint64_t change(Access change) {
    change.place = config_.place_of(change.location);
    if (marks_early && change.place != Place::kLeaf) return 0;  // they were set
    const bool is_above = change.place == Place::kSummary;
    if (faults_.summary_first && change.kind == Kind::kFetchOr) {
      if (is_above) return 0;  // was set
      access(at_summary(change));
    }
    if (faults_.summary_taken_last && change.kind == Kind::kExchange) {
      if (is_above) return look(change);
      const std::uint64_t taken = access(change);
      access(at_summary(change));
      return taken;
    }
    if (faults_.looks_first(change)) {
      const std::uint64_t there = look(change);
      if ((there & change.value) == change.value) return there;
    }
    return access(change);
  }

  // True if it succeeded; or else `expected` is what was there.
  bool update(const Access& update, std::uint64_t& expected) {
    if (marks_early && config_.place_of(update.location) == Place::kLeaf) set_marks();
    if (faults_.any_lap && config_.place_of(update.location) == Place::kAfter) return update_any_lap(update, expected);
    const Answer answer = access(update);
    if (answer != kDone) {
      expected = answer;
    } else if (update.location == kHead) {
      holding.first = narrow(update.expected);
      holding.rows = narrow(update.value - update.expected);
      for (std::size_t row = 0; row < holding.rows; ++row) {
        holding.data_left.at(row) = config_.has_records() ? kWordsPerRecord : 0;
        holding.words_left.at(row) = 1;
      }
    }
    return answer == kDone;
  }

  // Whose operation runs.
  static inline Run* current = nullptr;

 private:
  static constexpr std::size_t kStackWords = 4096;

  struct Postponed {
    Access store;
    std::size_t row;
  };

  [[nodiscard]] bool holds_words() const {
    for (const std::uint8_t left : holding.words_left) {
      if (left > 0) return true;
    }
    return false;
  }

  // As though the word had no lap: whatever is there of which nothing is known is taken for it.
  bool update_any_lap(Access update, std::uint64_t& expected) {
    const std::uint64_t own = update.expected;
    const std::uint64_t there = look(update);
    if (there % kAfters == update.expected % kAfters) {
      update.expected = there;
      update.value = there / kAfters * kAfters + update.value % kAfters;
    }
    const Answer answer = access(update);
    if (answer != kDone) expected = answer % kAfters == own % kAfters ? own : answer;
    return answer == kDone;
  }

  std::uint64_t look(Access change) {
    change.kind = Kind::kLoad;
    change.order = Order::kAcquire;
    return access(change);
  }

  [[nodiscard]] Access at_summary(Access mark) const {
    mark.location = narrow(config_.summary());
    return mark;
  }

  void set_marks() {
    const Access mark{.kind = Kind::kFetchOr,
                      .order = Order::kAcqRel,
                      .location = narrow(config_.mark()),
                      .value = 1,
                      .function = "mark"};
    access(mark);
    access(at_summary(mark));
  }

  void store_postponed() {
    while (!postponed_.empty()) {
      const Postponed next = postponed_.front();
      postponed_.erase(postponed_.begin());
      store_data(next.store, next.row);
    }
  }

  [[gnu::noinline]] void stop(const Access& access) {
    pending = access;
    stopped_ = true;
    const auto* end = stack_.data() + stack_.size();
    const auto* begin = static_cast<const std::uint64_t*>(__builtin_frame_address(0));
    if (begin < stack_.data() || begin >= end) std::abort();  // its frames lie elsewhere
    locals.assign(begin, end);
    for (const Postponed& store : postponed_) locals.push_back(store.store.location);
    setcontext(&caller_);
  }

  const Config& config_;
  const Faults& faults_;
  std::span<const Answer> script_;
  std::size_t num_answered_ = 0;
  std::function<void()> operation_;
  std::vector<Postponed> postponed_;
  bool stopped_ = false;
  std::vector<std::uint64_t> stack_;
  ucontext_t fresh_{};
  ucontext_t context_{};
  ucontext_t caller_{};
};

}  // namespace model
