// SPDX-License-Identifier: MIT
// Breadth-first search of every state that a protocol can reach, so that the first counterexample is
// a shortest one. Knows nothing of what a step means.
//
// A visited state is kept as 128 bits of hash: among 10^8 states two share one with probability
// 10^-23, which is the chance that a state is missed. States yet to be expanded are kept whole,
// packed into half bytes, and a trace is found again by repeating the choices that led to its end.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "state.hpp"
#include "table.hpp"

namespace model {

// Packs numbers of a few bits into 64-bit words.
class PackWriter {
 public:
  // Less than 64; the bits above them are 0.
  void bits(std::uint64_t value, unsigned count) {
    word_ |= value << filled_;
    filled_ += count;
    if (filled_ < 64) return;
    flush();
    filled_ -= 64;
    if (filled_ > 0) word_ = value >> (count - filled_);
  }
  void number(std::uint8_t number) { bits(number, 4); }
  void bit(bool bit) { bits(bit ? 1 : 0, 1); }
  void byte(std::uint8_t byte) { bits(byte, 8); }
  void flag(bool flag) { bits(flag ? 1 : 0, 4); }
  // To be called once, at the end.
  [[nodiscard]] std::span<const std::uint64_t> words() {
    flush();
    return {words_.data(), num_words_};
  }

 private:
  void flush() {
    words_.at(num_words_++) = word_;
    word_ = 0;
  }

  std::array<std::uint64_t, 128> words_;
  std::size_t num_words_ = 0;
  std::uint64_t word_ = 0;
  unsigned filled_ = 0;
};

class PackReader {
 public:
  explicit PackReader(const std::uint64_t* words) : next_{words} {}

  void bits(std::uint64_t& value, unsigned count) {
    value = word_ & ((std::uint64_t{1} << count) - 1);
    if (count <= left_) {
      word_ >>= count;
      left_ -= count;
      return;
    }
    const unsigned missing = count - left_;
    word_ = *next_++;
    value |= (word_ & ((std::uint64_t{1} << missing) - 1)) << left_;
    word_ >>= missing;
    left_ = 64 - missing;
  }
  void number(std::uint8_t& number) { number = take(4); }
  void bit(bool& bit) { bit = take(1) != 0; }
  void byte(std::uint8_t& byte) { byte = take(8); }
  void flag(bool& flag) { flag = take(4) != 0; }

 private:
  std::uint8_t take(unsigned count) {
    std::uint64_t value = 0;
    bits(value, count);
    return static_cast<std::uint8_t>(value);
  }

  const std::uint64_t* next_;
  std::uint64_t word_ = 0;
  unsigned left_ = 0;
};

// Packed states in a row, each after its length.
class PackedStates {
 public:
  void add(std::span<const std::uint64_t> state) {
    words_.push_back(state.size());
    words_.insert(words_.end(), state.begin(), state.end());
  }
  // Until visit returns false.
  template <class Visit>
  void for_each(Visit visit) const {
    for (std::size_t at = 0; at < words_.size(); at += 1 + words_[at]) {
      if (!visit(words_.data() + at + 1)) return;
    }
  }
  void clear() { words_.clear(); }
  [[nodiscard]] bool empty() const { return words_.empty(); }

 private:
  std::vector<std::uint64_t> words_;
};

struct Fingerprint {
  std::uint64_t low = 0x9E3779B97F4A7C15;
  std::uint64_t high = 0xC2B2AE3D27D4EB4F;

  explicit Fingerprint(std::span<const std::uint64_t> words) {
    for (const std::uint64_t word : words) {
      low = mix(low ^ word);
      high = mix((high + word) * 0xD6E8FEB86659FD93);
    }
  }
  bool operator==(const Fingerprint&) const = default;

 private:
  // The end of SplitMix64 (Steele, Lea, Flood 2014).
  static std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
};

// Numbers states in the order in which they were first seen.
class StateSet {
 public:
  StateSet() : table_(1 << 12, kFree) {}

  [[nodiscard]] std::size_t size() const { return prints_.size(); }

  // The state's number, and whether it is new.
  std::pair<std::uint32_t, bool> insert(const Fingerprint& print) {
    if (2 * prints_.size() >= table_.size()) grow();
    std::uint32_t& entry = table_[find(print)];
    if (entry != kFree) return {entry, false};
    if (prints_.size() >= kFree) throw std::length_error{"more states than 32 bits number"};
    entry = static_cast<std::uint32_t>(prints_.size());
    prints_.push_back(print);
    return {entry, true};
  }

 private:
  static constexpr std::uint32_t kFree = ~std::uint32_t{0};

  [[nodiscard]] std::size_t find(const Fingerprint& print) const {
    std::size_t at = print.low & (table_.size() - 1);
    while (table_[at] != kFree && !(prints_[table_[at]] == print)) at = (at + 1) & (table_.size() - 1);
    return at;
  }

  void grow() {
    table_.assign(2 * table_.size(), kFree);
    for (std::size_t i = 0; i < prints_.size(); ++i) table_[find(prints_[i])] = static_cast<std::uint32_t>(i);
  }

  std::vector<Fingerprint> prints_;
  std::vector<std::uint32_t> table_;
};

struct Result {
  Violation violation = Violation::kNone;
  std::size_t num_states = 0;
  std::size_t num_thread_states = 0;
  std::size_t num_rows = 0;  // accepted, each compared with what its ticket's writer stored; of leaves, masses
  double seconds = 0;
  std::vector<Event> trace;  // to the violation
};

class Search {
 public:
  Search(const Faults& faults, const Config& config) : config_{config}, table_{config, faults} {}

  // With `liveness`, also that the threads can finish from every state.
  Result run(bool liveness) {
    const auto start = std::chrono::steady_clock::now();
    keeps_edges_ = liveness;
    start_search();
    while (!frontier_.empty() && result_.violation == Violation::kNone) expand_level();
    if (result_.violation == Violation::kNone && liveness) check_way_out();
    result_.num_states = states_.size();
    result_.num_thread_states = table_.size();
    if (result_.violation != Violation::kNone) result_.trace = trace();
    result_.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return std::move(result_);
  }

 private:
  struct Origin {
    std::uint32_t parent;
    std::uint16_t choice;  // which of its steps
  };

  void start_search() {
    State state{config_, table_};
    state.normalise(config_);
    visit(state, {0, 0});
    frontier_.clear();
    std::swap(frontier_, next_frontier_);
  }

  std::uint32_t visit(State& state, Origin origin) {
    PackWriter writer;
    state.pack(writer, config_);
    const std::span<const std::uint64_t> packed = writer.words();
    const auto [number, is_new] = states_.insert(Fingerprint{packed});
    if (is_new) {
      origins_.push_back(origin);
      next_frontier_.add(packed);
    }
    return number;
  }

  void expand_level() {
    frontier_.for_each([this](const std::uint64_t* words) {
      State state{config_, table_};
      PackReader reader{words};
      state.pack(reader, config_);
      expand(state);
      ++expanded_;
      return result_.violation == Violation::kNone;
    });
    frontier_.clear();
    std::swap(frontier_, next_frontier_);
  }

  void expand(const State& state) {
    std::uint16_t choice = 0;
    const auto step = [&](State& next, const Event& event) {
      const Origin origin{static_cast<std::uint32_t>(expanded_), choice++};
      if (result_.violation != Violation::kNone) return;
      result_.num_rows += event.accepts ? 1 : 0;
      if (event.violation != Violation::kNone) return fail(event.violation, origin.parent, choice);
      const std::uint32_t number = visit(next, origin);
      if (keeps_edges_) edges_.push_back(number);
    };
    Stepper stepper{table_, config_, step};
    stepper.all_steps(state);
    if (keeps_edges_) edges_end_.push_back(edges_.size());
    if (choice == 0) end(state);
  }

  // No thread can make a step.
  void end(const State& state) {
    for (std::size_t i = 0; i < config_.num_threads(); ++i) {
      if (state.threads[i] != Table::kEnd) return fail(Violation::kDeadlock, expanded_, 0);
    }
    const Violation violation = check_at_rest(state, config_);
    if (violation != Violation::kNone) fail(violation, expanded_, 0);
  }

  // The violation lies in the step `num_choices` - 1 of the state, or in the state if there is none.
  void fail(Violation violation, std::size_t state, std::uint16_t num_choices) {
    result_.violation = violation;
    failed_ = state;
    failed_choices_ = num_choices;
  }

  // Goes back from the states that are final until nothing is added. Most edges lead to later states.
  void check_way_out() {
    std::vector<bool> finishes(states_.size());
    for (bool changed = true; changed;) {
      changed = false;
      for (std::size_t s = states_.size(); s-- > 0;) {
        if (finishes[s] || !leads_out(s, finishes)) continue;
        finishes[s] = true;
        changed = true;
      }
    }
    for (std::size_t s = 0; s < states_.size(); ++s) {
      if (!finishes[s]) return fail(Violation::kNoWayOut, s, 0);
    }
  }

  [[nodiscard]] bool leads_out(std::size_t state, const std::vector<bool>& finishes) const {
    const std::size_t begin = state == 0 ? 0 : edges_end_[state - 1];
    if (begin == edges_end_[state]) return true;
    for (std::size_t e = begin; e < edges_end_[state]; ++e) {
      if (finishes[edges_[e]]) return true;
    }
    return false;
  }

  [[nodiscard]] std::vector<Event> trace() {
    std::vector<std::uint16_t> choices;
    if (failed_choices_ > 0) choices.push_back(static_cast<std::uint16_t>(failed_choices_ - 1));
    for (std::size_t s = failed_; s != 0; s = origins_[s].parent) choices.push_back(origins_[s].choice);
    State state{config_, table_};
    state.normalise(config_);
    std::vector<Event> events;
    for (; !choices.empty(); choices.pop_back()) events.push_back(repeat(state, choices.back()));
    return events;
  }

  // Makes the state's step of that number.
  Event repeat(State& state, std::uint16_t wanted) {
    const State from = state;
    Event made;
    std::uint16_t choice = 0;
    const auto step = [&](const State& next, const Event& event) {
      if (choice++ != wanted) return;
      state = next;
      made = event;
    };
    Stepper stepper{table_, config_, step};
    stepper.all_steps(from);
    return made;
  }

  Config config_;
  Table table_;
  StateSet states_;
  std::vector<Origin> origins_;
  PackedStates frontier_;
  PackedStates next_frontier_;
  std::size_t expanded_ = 0;  // states are expanded in the order of their numbers
  bool keeps_edges_ = false;
  std::vector<std::uint32_t> edges_;
  std::vector<std::size_t> edges_end_;
  std::size_t failed_ = 0;
  std::uint16_t failed_choices_ = 0;
  Result result_;
};

}  // namespace model
