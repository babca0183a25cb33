// SPDX-License-Identifier: MIT
// What each kind of thread does with the ring, and the states that it passes through: found by running the code
// (run.hpp) from one access to the next.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "atomics.hpp"
#include "config.hpp"
#include "run.hpp"

namespace model {

// One step of a thread: from an access, by its answer, to the next one.
struct Step {
  std::uint32_t next = 0;
  Effects effects{};
};

class Threads {
 public:
  Threads(const Config& config, const Faults& faults)
      : config_{config},
        faults_{faults},
        run_{config_, faults},
        ring_{fastreplay::RecordLayout{{{.row_bytes = 8, .alignment = 8}, {.row_bytes = 8, .alignment = 8}}},
              config.capacity} {
    for (std::size_t f = 0; f < kWordsPerRecord; ++f) {
      fields_[f] = {.data = reinterpret_cast<const std::byte*>(&rows_[f * kMaxRows]), .stride_bytes = 8};
    }
    places_ = {.header = ring_.header(),
               .words = ring_.words(),
               .records = ring_.records().data(),
               .stride = ring_.records().layout().stride(),
               .rows = rows_.data(),
               .config = &config_};
    states_.emplace_back();  // the end
  }

  static constexpr std::uint32_t kEnd = 0;

  // Of a thread that has `left` operations to do.
  std::uint32_t start(Role role, unsigned left) { return go(role, left, {}, {}).next; }

  [[nodiscard]] std::size_t size() const { return states_.size(); }
  [[nodiscard]] const Access& access(std::uint32_t state) const { return states_[state].access; }
  [[nodiscard]] const Holding& holding(std::uint32_t state) const { return states_[state].holding; }

  // Those that were made.
  [[nodiscard]] const std::map<Answer, Step>& steps(std::uint32_t state) const { return states_[state].steps; }

  void step(std::uint32_t state, Answer answer) {
    State& from = states_[state];
    std::vector<Answer> script = from.script;
    script.push_back(answer);
    from.steps[answer] = go(from.role, from.left, std::move(script), {});
  }

 private:
  struct State {
    Role role = Role::kWriter;
    unsigned left = 0;           // operations, with the one at hand
    std::vector<Answer> script;  // some answers that lead here from the operation's beginning
    Access access;
    Holding holding;
    std::map<Answer, Step> steps;
  };

  // Runs on from the last answer of the script, into the next operation where this one ends.
  Step go(Role role, unsigned left, std::vector<Answer> script, Effects effects) {
    Places::current = &places_;
    const bool stopped = run_.until_next_access(script, [&] { operate(role); });
    const Effects more = run_.effects;
    effects = {.releases = effects.releases || more.releases,
               .acquires = effects.acquires || more.acquires,
               .accepts = effects.accepts || more.accepts,
               .violation = effects.violation == Violation::kNone ? more.violation : effects.violation};
    if (stopped) return {number(role, left, std::move(script)), effects};
    if (!run_.holding.is_empty()) effects.violation = Violation::kUnfinishedInsert;
    if (left == 1) return {kEnd, effects};
    return go(role, left - 1, {}, effects);
  }

  std::uint32_t number(Role role, unsigned left, std::vector<Answer> script) {
    std::vector<std::uint64_t> key = std::move(run_.locals);
    key.push_back(static_cast<std::uint64_t>(role));
    key.push_back(left);
    run_.holding.add_to(key);
    const auto [place, is_new] = numbers_.try_emplace(std::move(key), static_cast<std::uint32_t>(states_.size()));
    if (is_new) {
      states_.push_back({.role = role,
                         .left = left,
                         .script = std::move(script),
                         .access = run_.pending,
                         .holding = run_.holding,
                         .steps = {}});
    }
    return place->second;
  }

  void operate(Role role) {
    switch (role) {
      case Role::kWriter:
        return static_cast<void>(ring_.insert(fields_, 0, config_.rows, std::chrono::nanoseconds{0}));
      case Role::kReader:
        return read();
      case Role::kClearer:
        return ring_.clear();
    }
  }

  // A published ticket, or none: what would be drawn in its place is another run. Apart, so that the window goes.
  [[gnu::noinline]] std::optional<fastreplay::Ticket> draw() {
    const fastreplay::Window window = ring_.window_to_draw_from();
    if (window.first > window.end || window.committed > window.end) {
      run_.effects.violation = Violation::kBadWindow;
      return {};
    }
    if (window.first == window.end) return {};
    const fastreplay::Ticket ticket = window.first + Atomics::choose(window.reserved());
    if (faults_.checks_word && !ring_.is_published(ticket, window)) return {};
    return ticket;
  }

  // As Sampler::sample() does, of one row.
  void read() {
    const std::optional<fastreplay::Ticket> drawn = draw();
    if (!drawn.has_value()) return;
    const fastreplay::Ticket ticket = *drawn;
    const bool is_early = faults_.validation == Validation::kBeforeCopy;
    fastreplay::Ticket oldest_whole = is_early ? ring_.oldest_whole() : 0;
    std::array<std::uint64_t, kWordsPerRecord> copy{};
    for (std::size_t w = 0; w < kWordsPerRecord; ++w) {
      copy[w] = Atomics::load_row(ring_.record(ticket) + ring_.records().layout().columns()[w].offset);
    }
    if (faults_.validation == Validation::kAfterCopy) oldest_whole = ring_.oldest_whole();
    if (ticket >= oldest_whole) accept(ticket, copy);
  }

  void accept(fastreplay::Ticket ticket, const std::array<std::uint64_t, kWordsPerRecord>& copy) {
    run_.effects.accepts = true;
    const bool is_torn = copy[0] != copy[1];
    if (copy[0] == content(ticket) && !is_torn) return;
    const bool is_uninitialised = copy[0] == 0 || copy[1] == 0;
    run_.effects.violation = is_uninitialised ? Violation::kUninitialised
                             : is_torn        ? Violation::kTorn
                                              : Violation::kOtherTicket;
  }

  const Config& config_;
  const Faults& faults_;
  Run run_;
  Ring ring_;
  std::array<std::uint64_t, kWordsPerRecord * kMaxRows> rows_{};
  std::array<fastreplay::Rows, kWordsPerRecord> fields_{};
  Places places_{};
  std::deque<State> states_;
  std::map<std::vector<std::uint64_t>, std::uint32_t> numbers_;
};

}  // namespace model
