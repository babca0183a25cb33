// SPDX-License-Identifier: MIT
// What the threads do, as a table: which access each of their states makes next, and which state each answer leads to.
// It holds every answer that a location might ever give, so that states which nothing can tell apart, because what
// differs in them is never used again, are one.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <unordered_map>
#include <vector>

#include "config.hpp"
#include "threads.hpp"

namespace model {

class Table {
 public:
  Table(const Config& config, const Faults& faults) : config_{config}, threads_{config_, faults} {
    for (std::size_t i = 0; i < config.num_threads(); ++i) {
      starts_.push_back(threads_.start(config.role_of(i), config.num_operations_of(i)));
    }
    for (std::uint32_t state = 1; state < threads_.size(); ++state) {
      for (const Answer answer : answers(threads_.access(state))) threads_.step(state, answer);
    }
    merge();
    find_live_fences();
  }

  static constexpr std::uint32_t kEnd = 0;

  [[nodiscard]] std::size_t size() const { return entries_.size(); }
  [[nodiscard]] std::uint32_t start(std::size_t thread) const { return class_of_[starts_[thread]]; }
  [[nodiscard]] const Access& access(std::uint32_t state) const { return entries_[state].access; }
  [[nodiscard]] const Holding& holding(std::uint32_t state) const { return entries_[state].holding; }
  // Whether what the last release fence showed may still be handed on.
  [[nodiscard]] bool uses_release_fence(std::uint32_t state) const { return entries_[state].uses_release_fence; }

  [[nodiscard]] const Step& step(std::uint32_t state, Answer answer) const {
    const Entry& entry = entries_[state];
    const std::size_t at = answer == kDone ? kMaxNumber + 1 : answer;
    if (!entry.is_known[at]) throw std::logic_error{"an answer that was not foreseen"};
    return entry.steps[at];
  }

 private:
  struct Entry {
    Access access;
    Holding holding;
    bool uses_release_fence = false;
    std::array<bool, kMaxNumber + 2> is_known{};
    std::array<Step, kMaxNumber + 2> steps{};  // by answer; the last is kDone
  };

  [[nodiscard]] std::vector<Answer> answers(const Access& access) const {
    std::vector<Answer> all;
    if (access.kind == Kind::kStore || access.kind == Kind::kJoin) return {kDone};
    const auto add = [&all](std::uint64_t number) { all.push_back(narrow(number)); };
    const std::uint64_t num_tickets = config_.num_tickets();
    const std::uint64_t num_laps = (num_tickets + config_.capacity - 1) / config_.capacity;
    if (access.kind == Kind::kChoice) {
      for (std::uint64_t option = 0; option < access.value; ++option) add(option);
    } else if (access.place == Place::kHeaderHead || access.place == Place::kHeaderBase) {
      for (std::uint64_t head = 0; head <= num_tickets; head += config_.rows) add(head);
    } else if (access.place == Place::kWord) {
      add(0);
      for (std::uint64_t lap = 0; lap < num_laps; ++lap) add(lap_word(lap));
    } else if (access.place == Place::kLeaf) {
      for (std::uint64_t leaf = 0; leaf <= num_laps * kMasses; ++leaf) add(leaf);
    } else if (access.place == Place::kMark || access.place == Place::kSummary) {
      for (const std::uint64_t bits : {0U, 1U}) add(bits);
    } else if (access.place == Place::kAfter) {
      for (std::uint64_t after = 0; after < num_laps * kAfters; ++after) add(after);
    } else if (access.place == Place::kBefore) {
      for (const BeforeIt before : {BeforeIt::kFirst, BeforeIt::kPrevious, BeforeIt::kLost}) {
        add(static_cast<std::uint64_t>(before));
      }
    } else {  // commit, contents, and who comes before
      for (std::uint64_t ticket = 0; ticket <= num_tickets; ++ticket) add(ticket);
    }
    if (access.kind == Kind::kUpdate) all.push_back(kDone);
    return all;
  }

  // Splits states by what they do and where that leads, until no more differ (Moore 1956).
  void merge() {
    class_of_.assign(threads_.size(), 0);
    std::size_t num_classes = 1;
    for (;;) {
      std::unordered_map<std::vector<std::uint64_t>, std::uint32_t, HashOfWords> classes;
      std::vector<std::uint32_t> next(threads_.size());
      for (std::uint32_t state = 0; state < threads_.size(); ++state) {
        next[state] = classes.try_emplace(look(state), static_cast<std::uint32_t>(classes.size())).first->second;
      }
      class_of_ = std::move(next);
      if (classes.size() == num_classes) break;
      num_classes = classes.size();
    }
    entries_.resize(num_classes);
    for (std::uint32_t state = 0; state < threads_.size(); ++state) fill(entries_[class_of_[state]], state);
  }

  // Everything by which a state may be told from others, as far as they were told apart.
  [[nodiscard]] std::vector<std::uint64_t> look(std::uint32_t state) const {
    const Access& access = threads_.access(state);
    std::vector<std::uint64_t> key{class_of_[state],
                                   static_cast<std::uint64_t>(access.kind),
                                   static_cast<std::uint64_t>(access.order),
                                   static_cast<std::uint64_t>(access.failure),
                                   access.location,
                                   access.value,
                                   access.expected};
    threads_.holding(state).add_to(key);
    for (const auto& [answer, step] : threads_.steps(state)) {
      const Effects& effects = step.effects;
      key.push_back(answer);
      key.push_back(class_of_[step.next]);
      key.push_back(static_cast<std::uint64_t>(effects.violation) << 3 |
                    static_cast<std::uint64_t>(effects.releases) << 2 |
                    static_cast<std::uint64_t>(effects.acquires) << 1 | static_cast<std::uint64_t>(effects.accepts));
    }
    return key;
  }

  void fill(Entry& entry, std::uint32_t state) {
    entry.access = threads_.access(state);
    entry.holding = threads_.holding(state);
    for (const auto& [answer, step] : threads_.steps(state)) {
      const std::size_t at = answer == kDone ? kMaxNumber + 1 : answer;
      entry.is_known[at] = true;
      entry.steps[at] = {.next = class_of_[step.next], .effects = step.effects};
    }
  }

  // A store that releases hands on more than the fence did; the next fence replaces it.
  void find_live_fences() {
    for (bool changed = true; changed;) {
      changed = false;
      for (Entry& entry : entries_) {
        const Kind kind = entry.access.kind;
        const bool stores =
            kind == Kind::kStore || kind == Kind::kUpdate || kind == Kind::kFetchOr || kind == Kind::kExchange;
        bool uses = stores && !releases(entry.access.order);
        for (std::size_t at = 0; at < entry.steps.size(); ++at) {
          if (!entry.is_known[at] || entry.steps[at].effects.releases) continue;
          uses = uses || entries_[entry.steps[at].next].uses_release_fence;
        }
        changed = changed || uses != entry.uses_release_fence;
        entry.uses_release_fence = uses;
      }
    }
  }

  Config config_;
  Threads threads_;
  std::vector<std::uint32_t> starts_;
  std::vector<std::uint32_t> class_of_;  // of each state of threads_
  std::vector<Entry> entries_;
};

}  // namespace model
