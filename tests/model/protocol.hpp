// SPDX-License-Identifier: MIT
// The protocol of csrc/core/ring.cpp as step machines over the weak memory of memory.hpp: one step
// for each access to shared memory, in the same order and with the same memory orders. Knows nothing
// of how states are searched.
//
// What is left out cannot change what threads see: bytes are two words a record, a fence is part of
// the step before it (it touches its own thread only), a writer that finds the gate shut tries for
// ever, and a reader that could draw another row of the same window gives up instead, because the
// draw of that other row is explored in its own right.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "memory.hpp"

namespace model {

constexpr std::size_t kHead = 0;
constexpr std::size_t kCommit = 1;
constexpr std::size_t kBase = 2;
constexpr std::size_t kFirstWord = 3;  // lap words, then the records
constexpr std::size_t kWordsPerRecord = 2;

enum class Validation : std::uint8_t { kAfterCopy, kBeforeCopy, kNever };

// Everything that a mutant may change. The defaults are what ring.cpp does.
struct Protocol {
  bool lap_gate = true;
  int gate_slack = 0;
  Order gate_commit = Order::kAcquire;
  Order reserve = Order::kAcqRel;
  bool fence_r1 = true;
  bool words_last = true;
  Order word_store = Order::kRelease;
  Order advance_commit = Order::kAcquire;
  Order advance_head = Order::kAcquire;
  Order advance_word = Order::kAcquire;
  Order advance_update = Order::kAcqRel;
  Order advance_failure = Order::kAcquire;
  Order window_base = Order::kAcquire;
  Order window_commit = Order::kAcquire;
  Order window_head = Order::kAcquire;
  bool checks_word = true;
  Order is_published = Order::kAcquire;
  bool fence_r2 = true;
  Validation validation = Validation::kAfterCopy;
  unsigned validation_slack = 0;
  Order clear_head = Order::kAcquire;
  Order clear_base = Order::kRelease;
};

struct Config {
  const char* name;
  std::size_t capacity;
  std::size_t num_writers;
  unsigned inserts;  // of each writer
  unsigned rows;     // of each insert
  std::size_t num_readers;
  unsigned reads;  // of each reader
  std::size_t num_clearers = 0;

  [[nodiscard]] std::size_t num_threads() const { return num_writers + num_readers + num_clearers; }
  [[nodiscard]] std::size_t num_locations() const { return kFirstWord + capacity * (1 + kWordsPerRecord); }
  [[nodiscard]] std::size_t word(unsigned ticket) const { return kFirstWord + ticket % capacity; }
  [[nodiscard]] std::size_t data(unsigned ticket, std::size_t w) const {
    return kFirstWord + capacity + ticket % capacity * kWordsPerRecord + w;
  }
  // 0 is the word of a slot that never was published.
  [[nodiscard]] unsigned lap_word(unsigned ticket) const { return ticket / static_cast<unsigned>(capacity) + 1; }
  [[nodiscard]] unsigned oldest(unsigned head) const {
    return head > capacity ? head - static_cast<unsigned>(capacity) : 0;
  }
};

// What a record of a ticket holds in each word. 0 is memory that never was written.
constexpr unsigned content(unsigned ticket) { return ticket + 1; }

enum class Role : std::uint8_t { kWriter, kReader, kClearer };

enum class At : std::uint8_t {
  kLoadHead,  // try_reserve
  kGate,
  kReserve,
  kStoreData,  // write
  kStoreWord,  // publish
  kPublished,
  kAdvanceCommit,  // advance, by a gated writer, one that published, or a reader
  kAdvanceHead,
  kAdvanceWord,
  kAdvanceUpdate,
  kWindowBase,  // window
  kWindowCommit,
  kWindowHead,
  kWindowSlack,
  kWindowHeadAgain,
  kDraw,
  kIsPublished,
  kCopy,
  kValidate,
  kClearHead,  // clear
  kClearBase,
  kClearUpdate,
  kDone,
};

// A thread's place in the protocol and its local variables; those out of use are 0.
struct Thread {
  Role role = Role::kWriter;
  At at = At::kDone;
  std::uint8_t left = 0;      // inserts or reads to go
  std::uint8_t expected = 0;  // head or base that a CAS replaces
  std::uint8_t first = 0;     // of the reserved tickets
  std::uint8_t row = 0;       // being stored
  std::uint8_t word = 0;      // being stored or copied
  std::uint8_t seen = 0;      // commit in advance()
  std::uint8_t finished = 0;
  std::uint8_t base = 0;
  std::uint8_t committed = 0;
  std::uint8_t end = 0;
  std::uint8_t ticket = 0;   // drawn
  std::uint8_t checked = 0;  // head that a validation before the copy read
  std::array<std::uint8_t, kWordsPerRecord> copy{};

  template <class Packer>
  void pack(Packer& packer) {
    auto place = static_cast<std::uint8_t>(at);
    packer.byte(place);
    at = static_cast<At>(place);
    if (at == At::kDone) return;
    for (std::uint8_t* local : {&left, &expected, &first, &row, &word, &seen, &finished, &base, &committed, &end,
                                &ticket, &checked, &copy[0], &copy[1]}) {
      packer.number(*local);
    }
  }
};
static_assert(sizeof(Thread) == 14 + kWordsPerRecord, "compared as bytes");

enum class Violation : std::uint8_t {
  kNone,
  kTwoOwners,
  kCommitPastHead,
  kCommitUnwritten,
  kBadWindow,
  kGatedHolder,
  kUninitialised,
  kTorn,
  kOtherTicket,
  kLostRow,
  kStuckCommit,
  kDeadlock,
  kNoWayOut,
};

constexpr const char* describe(Violation violation) {
  constexpr std::array kTexts{"nothing",
                              "two writers own one slot",
                              "commit passes head",
                              "commit passes a ticket that is not written",
                              "a window whose base or commit is past its end",
                              "a gated writer holds a ticket",
                              "a row accepted that was never written",
                              "a torn row accepted",
                              "a row of another ticket accepted",
                              "at rest a slot does not hold its last ticket",
                              "at rest commit cannot reach head",
                              "no thread can go on",
                              "a state from which the threads cannot finish"};
  return kTexts[static_cast<std::size_t>(violation)];
}

struct State {
  Memory memory;
  std::array<Thread, kMaxThreads> threads{};
  std::array<std::uint8_t, kMaxThreads> names{};  // equal threads trade places; for traces, not packed

  explicit State(const Config& config) : memory{config.num_locations(), config.num_threads()} {
    for (std::size_t i = 0; i < config.num_threads(); ++i) {
      const bool writes = i < config.num_writers;
      const bool reads = !writes && i < config.num_writers + config.num_readers;
      names[i] = static_cast<std::uint8_t>(i);
      threads[i].role = writes ? Role::kWriter : reads ? Role::kReader : Role::kClearer;
      threads[i].at = writes ? At::kLoadHead : reads ? window_start(config) : At::kClearHead;
      threads[i].left = narrow(writes ? config.inserts : reads ? config.reads : 1);
      memory.set_fences(i, reads ? Fences::kAcquire : Fences::kRelease);
    }
  }

  // base is 0 for ever where nobody clears, and need not be read.
  static At window_start(const Config& config) { return config.num_clearers > 0 ? At::kWindowBase : At::kWindowCommit; }

  // Brings states that differ in names only into one form.
  void normalise(const Config& config) {
    memory.prune();
    for (std::size_t last = config.num_threads(); last > 1; --last) {
      for (std::size_t i = 0; i + 1 < last; ++i) {
        if (threads[i].role == threads[i + 1].role && less(i + 1, i)) swap(i, i + 1);
      }
    }
  }

  template <class Packer>
  void pack(Packer& packer, const Config& config) {
    for (std::size_t i = 0; i < config.num_threads(); ++i) threads[i].pack(packer);
    memory.pack(packer);
  }

 private:
  [[nodiscard]] bool less(std::size_t a, std::size_t b) const {
    const int order = std::memcmp(&threads[a], &threads[b], sizeof(Thread));
    return order != 0 ? order < 0 : memory.less(a, b);
  }
  void swap(std::size_t a, std::size_t b) {
    std::swap(threads[a], threads[b]);
    std::swap(names[a], names[b]);
    memory.swap_threads(a, b);
  }
};

constexpr std::size_t kNoLocation = kMaxLocations;

// What a step did, for traces.
struct Event {
  std::uint8_t thread = 0;
  const char* step = "";
  const char* access = "";
  std::size_t location = kNoLocation;
  unsigned value = 0;
  std::size_t num_newer = 0;  // messages after the one that was read or written
  bool accepted = false;      // a row
  Violation violation = Violation::kNone;
};

// All steps that a state allows. Emit is called with each successor and its event.
template <class Emit>
class Stepper {
 public:
  Stepper(const Protocol& protocol, const Config& config, Emit emit)
      : protocol_{protocol}, config_{config}, emit_{std::move(emit)} {}

  void all_steps(const State& state) {
    for (std::size_t i = 0; i < config_.num_threads(); ++i) {
      if (state.threads[i].at == At::kDone) continue;
      state_ = &state;
      self_ = i;
      step(state.threads[i]);
    }
  }

 private:
  void step(const Thread& self) {
    switch (self.role) {
      case Role::kWriter:
        return self.at >= At::kAdvanceCommit ? advance_step(self) : writer_step(self);
      case Role::kReader:
        return self.at <= At::kAdvanceUpdate ? advance_step(self) : reader_step(self);
      case Role::kClearer:
        return clear_step(self);
    }
  }

  // ---- Ring::try_reserve, write, publish ----

  void writer_step(const Thread& self) {
    switch (self.at) {
      case At::kLoadHead:
        return load("try_reserve", kHead, Order::kRelaxed, [](Thread& thread, unsigned head) {
          thread.expected = narrow(head);
          thread.at = At::kGate;
        });
      case At::kGate:
        return load("lap gate", kCommit, protocol_.gate_commit,
                    [this](Thread& thread, unsigned finished) { pass_gate(thread, finished); });
      case At::kReserve:
        return compare_exchange(
            "reserve", kHead, self.expected, self.expected + config_.rows, protocol_.reserve, Order::kRelaxed,
            [this](Thread& thread) { own(thread); },
            [](Thread& thread, unsigned head) {
              thread.expected = narrow(head);
              thread.at = At::kGate;
            });
      case At::kStoreData:
        return store("write", config_.data(self.first + self.row, self.word), content(self.first + self.row),
                     Order::kRelaxed, [this](Thread& thread) { data_stored(thread); });
      case At::kStoreWord:
        return store("publish", config_.word(self.first + self.row), config_.lap_word(self.first + self.row),
                     protocol_.word_store, [this](Thread& thread) { word_stored(thread); });
      default:
        choose("publish", 0, [this](Thread& thread) { end_operation(thread, At::kLoadHead); });
        return choose("publish", 1, [](Thread& thread) {
          --thread.left;
          thread.at = At::kAdvanceCommit;
        });
    }
  }

  void pass_gate(Thread& thread, unsigned finished) {
    const int reserved = static_cast<int>(thread.expected + config_.rows);
    const int allowed = static_cast<int>(finished + config_.capacity) + protocol_.gate_slack;
    const bool open = !protocol_.lap_gate || reserved <= allowed;
    thread.at = open ? At::kReserve : At::kAdvanceCommit;
    if (open) return;
    thread.expected = 0;
    for (unsigned ticket = 0; ticket < next_->memory.newest(kHead); ++ticket) {
      if (owns(thread, ticket)) fail(Violation::kGatedHolder);
    }
  }

  void own(Thread& thread) {
    for (unsigned row = 0; row < config_.rows; ++row) {
      for (unsigned ticket = thread.expected + row; ticket >= config_.capacity;) {
        ticket -= static_cast<unsigned>(config_.capacity);
        for (std::size_t i = 0; i < config_.num_threads(); ++i) {
          if (owns(next_->threads[i], ticket)) fail(Violation::kTwoOwners);
        }
      }
    }
    thread.first = thread.expected;
    thread.expected = 0;
    thread.at = protocol_.words_last ? At::kStoreData : At::kStoreWord;
    if (protocol_.fence_r1) next_->memory.fence_release(self_);
  }

  // Field by field over all rows, as write() does.
  void data_stored(Thread& thread) {
    if (++thread.row < config_.rows) return;
    thread.row = 0;
    if (++thread.word < kWordsPerRecord) return;
    thread.word = 0;
    if (!protocol_.words_last) return published(thread);
    thread.at = At::kStoreWord;
  }

  void word_stored(Thread& thread) {
    if (++thread.row < config_.rows) return;
    thread.row = 0;
    if (protocol_.words_last) return published(thread);
    thread.at = At::kStoreData;
  }

  // Whether a writer then moves commit depends on its tickets and the capacity; here it may always.
  void published(Thread& thread) {
    thread.first = 0;
    thread.at = At::kPublished;
    // With these orders every relaxed store comes after another fence R1.
    if (releases(protocol_.advance_update) && protocol_.fence_r1) next_->memory.forget_release_fence(self_);
  }

  // From the reservation to the last store to its slot.
  [[nodiscard]] bool owns(const Thread& thread, unsigned ticket) const {
    if (thread.role != Role::kWriter || ticket < thread.first || ticket >= thread.first + config_.rows) return false;
    if (thread.at == At::kStoreWord && protocol_.words_last) {
      return ticket >= static_cast<unsigned>(thread.first + thread.row);
    }
    return thread.at == At::kStoreData || thread.at == At::kStoreWord;
  }

  [[nodiscard]] bool unwritten(const Thread& thread, unsigned ticket) const {
    return owns(thread, ticket) && (thread.at == At::kStoreData || !protocol_.words_last);
  }

  // After a successful CAS on commit.
  void check_commit() {
    const unsigned commit = next_->memory.newest(kCommit);
    if (commit > next_->memory.newest(kHead)) fail(Violation::kCommitPastHead);
    for (unsigned ticket = 0; ticket < commit; ++ticket) {
      for (std::size_t i = 0; i < config_.num_threads(); ++i) {
        if (unwritten(state_->threads[i], ticket)) fail(Violation::kCommitUnwritten);
      }
    }
  }

  // ---- Ring::advance ----

  void advance_step(const Thread& self) {
    switch (self.at) {
      case At::kAdvanceCommit:
        return load("advance", kCommit, protocol_.advance_commit, [](Thread& thread, unsigned commit) {
          thread.seen = thread.finished = narrow(commit);
          thread.at = At::kAdvanceHead;
        });
      case At::kAdvanceHead:
        return load("advance", kHead, protocol_.advance_head, [this](Thread& thread, unsigned head) {
          thread.end = narrow(head);
          scan_on(thread);
        });
      case At::kAdvanceWord:
        return load("advance", config_.word(self.finished), protocol_.advance_word,
                    [this](Thread& thread, unsigned word) {
                      if (word != config_.lap_word(thread.finished)) return end_scan(thread);
                      ++thread.finished;
                      scan_on(thread);
                    });
      default:
        return compare_exchange(
            "advance", kCommit, self.seen, self.finished, protocol_.advance_update, protocol_.advance_failure,
            [this](Thread& thread) {
              check_commit();
              end_advance(thread, thread.finished);
            },
            [this](Thread& thread, unsigned commit) {
              thread.seen = narrow(commit);
              end_scan(thread);
            });
    }
  }

  void scan_on(Thread& thread) {
    if (thread.finished >= thread.end) return end_scan(thread);
    thread.at = At::kAdvanceWord;
  }

  void end_scan(Thread& thread) {
    thread.end = 0;
    if (thread.seen >= thread.finished) return end_advance(thread, thread.seen);
    thread.at = At::kAdvanceUpdate;
  }

  void end_advance(Thread& thread, unsigned commit) {
    thread.seen = thread.finished = thread.end = 0;
    if (thread.role == Role::kWriter) return go_on(thread, At::kLoadHead);
    thread.committed = narrow(commit);
    thread.at = At::kWindowHeadAgain;
  }

  // ---- Ring::window, is_published, oldest_whole; Sampler::sample ----

  void reader_step(const Thread& self) {
    switch (self.at) {
      case At::kWindowBase:
        return load("window", kBase, protocol_.window_base, [](Thread& thread, unsigned base) {
          thread.base = narrow(base);
          thread.at = At::kWindowCommit;
        });
      case At::kWindowCommit:
        return load("window", kCommit, protocol_.window_commit, [](Thread& thread, unsigned commit) {
          thread.committed = narrow(commit);
          thread.at = At::kWindowHead;
        });
      case At::kWindowHead:
        return load("window", kHead, protocol_.window_head, [this](Thread& thread, unsigned head) {
          if (head == thread.committed) return take_window(thread, head);
          thread.end = narrow(head);
          thread.at = At::kWindowSlack;
        });
      case At::kWindowSlack:  // how far commit may lie behind is a matter of speed
        choose("window", 0, [this](Thread& thread) { take_window(thread, thread.end); });
        return choose("window", 1, [](Thread& thread) {
          thread.committed = thread.end = 0;
          thread.at = At::kAdvanceCommit;
        });
      case At::kWindowHeadAgain:
        return load("window", kHead, protocol_.window_head,
                    [this](Thread& thread, unsigned head) { take_window(thread, head); });
      case At::kDraw:
        return draw(self);
      case At::kIsPublished:
        return load("is_published", config_.word(self.ticket), protocol_.is_published,
                    [this](Thread& thread, unsigned word) {
                      if (word != config_.lap_word(thread.ticket)) return end_read(thread);
                      start_copy(thread);
                    });
      case At::kCopy:
        return load("copy", config_.data(self.ticket, self.word), Order::kRelaxed,
                    [this](Thread& thread, unsigned word) { word_copied(thread, word); });
      default:
        return load("validate", kHead, Order::kRelaxed, [this](Thread& thread, unsigned head) {
          if (protocol_.validation == Validation::kAfterCopy) return judge(thread, head);
          thread.checked = narrow(head);
          thread.at = At::kCopy;
        });
    }
  }

  void take_window(Thread& thread, unsigned head) {
    const unsigned first = std::max<unsigned>(thread.base, config_.oldest(head));
    if (first > head || thread.committed > head) fail(Violation::kBadWindow);
    thread.base = narrow(first);
    thread.end = narrow(head);
    thread.at = At::kDraw;
    if (first == head) end_read(thread);
  }

  void draw(const Thread& self) {
    for (unsigned ticket = self.base; ticket < self.end; ++ticket) {
      choose("draw", ticket, [this, ticket](Thread& thread) {
        thread.ticket = narrow(ticket);
        const bool asks_word = protocol_.checks_word && ticket >= thread.committed;
        thread.base = thread.end = thread.committed = 0;
        thread.at = At::kIsPublished;
        if (!asks_word) start_copy(thread);
      });
    }
  }

  void start_copy(Thread& thread) {
    const bool validates_first = protocol_.validation == Validation::kBeforeCopy;
    if (validates_first) next_->memory.fence_acquire(self_);
    thread.at = validates_first ? At::kValidate : At::kCopy;
  }

  void word_copied(Thread& thread, unsigned word) {
    thread.copy[thread.word] = narrow(word);
    if (++thread.word < kWordsPerRecord) return;
    thread.word = 0;
    if (protocol_.validation == Validation::kNever) return judge(thread, 0);
    if (protocol_.validation == Validation::kBeforeCopy) return judge(thread, thread.checked);
    if (protocol_.fence_r2) next_->memory.fence_acquire(self_);
    thread.at = At::kValidate;
  }

  void judge(Thread& thread, unsigned head) {
    if (head <= thread.ticket + config_.capacity + protocol_.validation_slack) accept(thread);
    end_read(thread);
  }

  void accept(const Thread& thread) {
    event_.accepted = true;
    const bool torn = thread.copy[0] != thread.copy[1];
    if (thread.copy[0] == content(thread.ticket) && !torn) return;
    const bool uninitialised = thread.copy[0] == 0 || thread.copy[1] == 0;
    fail(uninitialised ? Violation::kUninitialised : torn ? Violation::kTorn : Violation::kOtherTicket);
  }

  void end_read(Thread& thread) {
    thread.base = thread.end = thread.committed = thread.ticket = thread.checked = 0;
    thread.copy.fill(0);
    end_operation(thread, State::window_start(config_));
  }

  // ---- Ring::clear ----

  void clear_step(const Thread& self) {
    switch (self.at) {
      case At::kClearHead:
        return load("clear", kHead, protocol_.clear_head, [](Thread& thread, unsigned head) {
          thread.end = narrow(head);
          thread.at = At::kClearBase;
        });
      case At::kClearBase:
        return load("clear", kBase, Order::kRelaxed, [this](Thread& thread, unsigned base) { clear_on(thread, base); });
      default:
        return compare_exchange(
            "clear", kBase, self.expected, self.end, protocol_.clear_base, Order::kRelaxed,
            [this](Thread& thread) { clear_on(thread, thread.end); },
            [this](Thread& thread, unsigned base) { clear_on(thread, base); });
    }
  }

  void clear_on(Thread& thread, unsigned base) {
    thread.expected = narrow(base);
    thread.at = At::kClearUpdate;
    if (base < thread.end) return;
    thread.expected = thread.end = 0;
    end_operation(thread, At::kClearHead);
  }

  // ---- steps of any thread ----

  void end_operation(Thread& thread, At next_operation) {
    --thread.left;
    go_on(thread, next_operation);
  }

  void go_on(Thread& thread, At next_operation) {
    thread.at = thread.left > 0 ? next_operation : At::kDone;
    if (thread.at == At::kDone) next_->memory.retire(self_);
  }

  template <class Then>
  void choose(const char* step, unsigned choice, Then then) {
    State next = *state_;
    next_ = &next;
    event_ = {.step = step, .access = "chooses", .value = choice};
    then(next.threads[self_]);
    emit();
  }

  template <class Then>
  void load(const char* step, std::size_t location, Order order, Then then) {
    for (std::size_t at = oldest(location); at < size(location); ++at) load_at(step, location, at, order, then);
  }

  template <class Then>
  void load_at(const char* step, std::size_t location, std::size_t at, Order order, Then then) {
    State next = *state_;
    next_ = &next;
    const unsigned value = next.memory.load(self_, location, at, order);
    event_ = {
        .step = step, .access = "reads", .location = location, .value = value, .num_newer = size(location) - 1 - at};
    then(next.threads[self_], value);
    emit();
  }

  template <class Then>
  void store(const char* step, std::size_t location, unsigned value, Order order, Then then) {
    for (std::size_t at = oldest(location) + 1; at <= size(location); ++at) {
      State next = *state_;
      next_ = &next;
      next.memory.store(self_, location, at, value, order);
      event_ = {
          .step = step, .access = "writes", .location = location, .value = value, .num_newer = size(location) - at};
      then(next.threads[self_]);
      emit();
    }
  }

  // Weak: it may fail although it read what it expected.
  template <class Success, class Failure>
  void compare_exchange(const char* step, std::size_t location, unsigned expected, unsigned desired, Order success,
                        Order failure, Success succeeded, Failure failed) {
    for (std::size_t at = oldest(location); at < size(location); ++at) {
      const bool equal = state_->memory.value(location, at) == expected;
      load_at(step, location, at, failure, failed);
      if (!equal || at + 1 < size(location)) continue;
      State next = *state_;
      next_ = &next;
      next.memory.update(self_, location, desired, success);
      event_ = {.step = step, .access = "updates", .location = location, .value = desired};
      succeeded(next.threads[self_]);
      emit();
    }
  }

  [[nodiscard]] std::size_t oldest(std::size_t location) const {
    return state_->memory.oldest_readable(self_, location);
  }
  [[nodiscard]] std::size_t size(std::size_t location) const { return state_->memory.num_messages(location); }

  void fail(Violation violation) { event_.violation = violation; }

  void emit() {
    event_.thread = state_->names[self_];
    if (event_.violation == Violation::kNone) next_->normalise(config_);
    emit_(*next_, event_);
  }

  const Protocol& protocol_;
  const Config& config_;
  Emit emit_;
  const State* state_ = nullptr;
  State* next_ = nullptr;
  Event event_;
  std::size_t self_ = 0;
};

// What must hold when every thread is done.
inline Violation check_at_rest(const State& state, const Config& config) {
  const unsigned head = state.memory.newest(kHead);
  unsigned commit = state.memory.newest(kCommit);
  while (commit < head && state.memory.newest(config.word(commit)) == config.lap_word(commit)) ++commit;
  if (commit != head) return Violation::kStuckCommit;
  for (unsigned ticket = config.oldest(head); ticket < head; ++ticket) {
    for (std::size_t w = 0; w < kWordsPerRecord; ++w) {
      if (state.memory.newest(config.data(ticket, w)) != content(ticket)) return Violation::kLostRow;
    }
  }
  return Violation::kNone;
}

}  // namespace model
