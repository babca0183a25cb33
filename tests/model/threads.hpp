// SPDX-License-Identifier: MIT
// The states that each kind of thread passes through: found by running what it does (operations.hpp) from one access
// to the next (run.hpp).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

#include "config.hpp"
#include "operations.hpp"
#include "run.hpp"

namespace model {

// One step of a thread: from an access, by its answer, to the next one.
struct Step {
  std::uint32_t next = 0;
  Effects effects{};
};

struct HashOfWords {
  std::size_t operator()(const std::vector<std::uint64_t>& words) const {  // not noexcept: so that maps keep it
    std::uint64_t hash = words.size();
    for (const std::uint64_t word : words) hash = std::rotl(hash ^ word, 29) * 0x9E3779B97F4A7C15;
    return hash;
  }
};

class Threads {
 public:
  Threads(const Config& config, const Faults& faults)
      : config_{config}, run_{config_, faults}, operations_{config_, faults, run_} {
    states_.emplace_back();  // the end
  }

  static constexpr std::uint32_t kEnd = 0;

  // Of a thread that has `left` operations to do.
  std::uint32_t start(Role role, unsigned left) { return go(role, left, 0, {}, {}).next; }

  [[nodiscard]] std::size_t size() const { return states_.size(); }
  [[nodiscard]] const Access& access(std::uint32_t state) const { return states_[state].access; }
  [[nodiscard]] const Holding& holding(std::uint32_t state) const { return states_[state].holding; }

  // Those that were made.
  [[nodiscard]] const std::map<Answer, Step>& steps(std::uint32_t state) const { return states_[state].steps; }

  void step(std::uint32_t state, Answer answer) {
    State& from = states_[state];
    std::vector<Answer> script = from.script;
    script.push_back(answer);
    from.steps[answer] = go(from.role, from.left, from.carried, std::move(script), {});
  }

 private:
  struct State {
    Role role = Role::kWriter;
    unsigned left = 0;           // operations, with the one at hand
    std::uint64_t carried = 0;   // from one to the next
    std::vector<Answer> script;  // some answers that lead here from the operation's beginning
    Access access;
    Holding holding;
    std::map<Answer, Step> steps;
  };

  // Runs on from the last answer of the script, into the next operation where this one ends.
  Step go(Role role, unsigned left, std::uint64_t carried, std::vector<Answer> script, Effects effects) {
    run_.carried = carried;
    const bool stopped = run_.until_next_access(script, [&] { operations_.operate(role, left); });
    const Effects more = run_.effects;
    effects = {.releases = effects.releases || more.releases,
               .acquires = effects.acquires || more.acquires,
               .accepts = effects.accepts || more.accepts,
               .violation = effects.violation == Violation::kNone ? more.violation : effects.violation};
    if (stopped) return {number(role, left, carried, std::move(script)), effects};
    if (!run_.holding.is_empty()) effects.violation = Violation::kUnfinishedInsert;
    if (left == 1) return {kEnd, effects};
    return go(role, left - 1, run_.carried, {}, effects);
  }

  std::uint32_t number(Role role, unsigned left, std::uint64_t carried, std::vector<Answer> script) {
    std::vector<std::uint64_t> key = std::move(run_.locals);
    key.push_back(static_cast<std::uint64_t>(role));
    key.push_back(left);
    key.push_back(carried);
    run_.holding.add_to(key);
    const auto [place, is_new] = numbers_.try_emplace(std::move(key), static_cast<std::uint32_t>(states_.size()));
    if (is_new) {
      states_.push_back({.role = role,
                         .left = left,
                         .carried = carried,
                         .script = std::move(script),
                         .access = run_.pending,
                         .holding = run_.holding,
                         .steps = {}});
    }
    return place->second;
  }

  const Config& config_;
  Run run_;
  Operations operations_;
  std::deque<State> states_;
  std::unordered_map<std::vector<std::uint64_t>, std::uint32_t, HashOfWords> numbers_;
};

}  // namespace model
