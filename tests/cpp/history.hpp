// SPDX-License-Identifier: MIT
// Recorded operations on a ring, and whether they could have happened one after the other, each between
// its call and its return. Knows nothing of threads; times are those of one counter that all share.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ring/ring.hpp"

namespace history {

using fastreplay::Ticket;
using Time = std::uint64_t;

struct Span {
  Time called;
  Time returned;
};

struct Insert {
  Span span;
  std::uint64_t num_rows;
};

// Row `row` of inserts[insert] was read as `ticket`.
struct Seen {
  Ticket ticket;
  std::uint64_t insert;
  std::uint64_t row;
};

// A sample or a read; it saw nothing if there was nothing.
struct Sample {
  Span span;
  std::vector<Seen> seen;
};

struct Count {
  Span span;
  std::uint64_t num_inserted;
};

struct History {
  std::size_t capacity = 0;
  bool is_complete = false;  // every inserted row was seen by some sample
  std::vector<Insert> inserts;
  std::vector<Sample> samples;
  std::vector<Count> counts;
  std::vector<Span> clears;

  [[nodiscard]] std::size_t num_events() const {
    return inserts.size() + samples.size() + counts.size() + clears.size();
  }
};

// How often something happened that no order of the operations explains.
struct Faults {
  std::uint64_t ambiguous = 0;     // a ticket that held two rows, or a row with two tickets
  std::uint64_t scattered = 0;     // rows of one insert whose tickets do not follow each other
  std::uint64_t unknown = 0;       // in a complete history, an insert that nobody saw
  std::uint64_t out_of_order = 0;  // a ticket below one that was taken before the insert was called
  std::uint64_t gaps = 0;          // a ticket beyond the rows of all inserts that were called
  std::uint64_t early = 0;         // a row was seen before its insert was called
  std::uint64_t overwritten = 0;   // a row was seen by a call after its slot had been taken again
  std::uint64_t cleared = 0;       // a row was seen by a call after it had been cleared
  std::uint64_t missed = 0;        // nothing was seen though a row was there
  std::uint64_t miscounted = 0;    // a count below what had been inserted, or beyond what was called

  [[nodiscard]] std::uint64_t total() const {
    return ambiguous + scattered + unknown + out_of_order + gaps + early + overwritten + cleared + missed + miscounted;
  }
  bool operator==(const Faults&) const = default;
};

// The largest of (or the sum of) the values noted before a time.
class Timeline {
 public:
  enum class Kind { kLargest, kSum };

  explicit Timeline(Kind kind) : kind_{kind} {}

  void note(Time time, std::uint64_t value) { entries_.emplace_back(time, value); }

  // To be called between the last note() and the first before().
  void settle() {
    std::sort(entries_.begin(), entries_.end());
    std::uint64_t so_far = 0;
    for (auto& [time, value] : entries_) {
      so_far = kind_ == Kind::kSum ? so_far + value : std::max(so_far, value);
      value = so_far;
    }
  }

  [[nodiscard]] std::uint64_t before(Time time) const {
    const auto next = std::lower_bound(entries_.begin(), entries_.end(), std::pair{time, std::uint64_t{0}});
    return next == entries_.begin() ? 0 : std::prev(next)->second;
  }

 private:
  Kind kind_;
  std::vector<std::pair<Time, std::uint64_t>> entries_;
};

class Checker {
 public:
  explicit Checker(const History& history) : history_{history}, first_tickets_(history.inserts.size()) {}

  [[nodiscard]] Faults check() {
    find_tickets();
    find_bounds();
    check_inserts();
    for (const Sample& sample : history_.samples) check_sample(sample);
    for (const Count& count : history_.counts) {
      const bool right = count.num_inserted >= head_at_least(count.span.called) &&
                         count.num_inserted <= called_.before(count.span.returned);
      faults_.miscounted += right ? 0 : 1;
    }
    return faults_;
  }

 private:
  // The first ticket of every insert of which a row was seen; tickets that belong to two.
  void find_tickets() {
    for (const Sample& sample : history_.samples) {
      for (const Seen& seen : sample.seen) {
        std::optional<Ticket>& first = first_tickets_[seen.insert];
        if (seen.ticket < seen.row) {
          ++faults_.scattered;
        } else if (!first) {
          first = seen.ticket - seen.row;
        } else if (*first != seen.ticket - seen.row) {
          // The same row under two tickets, or two rows that are not where they should be.
          ++(history_.inserts[seen.insert].num_rows == 1 ? faults_.ambiguous : faults_.scattered);
        }
      }
    }
    std::vector<std::pair<Ticket, Ticket>> ranges;
    for (std::size_t i = 0; i < first_tickets_.size(); ++i) {
      if (first_tickets_[i]) ranges.emplace_back(*first_tickets_[i], *first_tickets_[i] + history_.inserts[i].num_rows);
      faults_.unknown += history_.is_complete && !first_tickets_[i] ? 1 : 0;
    }
    std::sort(ranges.begin(), ranges.end());
    for (std::size_t i = 1; i < ranges.size(); ++i) faults_.ambiguous += ranges[i].first < ranges[i - 1].second ? 1 : 0;
  }

  void find_bounds() {
    for (std::size_t i = 0; i < history_.inserts.size(); ++i) {
      const auto& [span, num_rows] = history_.inserts[i];
      returned_.note(span.returned, num_rows);
      called_.note(span.called, num_rows);
      last_call_.note(span.returned, span.called + 1);
      if (first_tickets_[i]) taken_.note(span.returned, *first_tickets_[i] + num_rows);
    }
    for (const Sample& sample : history_.samples) {
      for (const Seen& seen : sample.seen) taken_.note(sample.span.returned, seen.ticket + 1);
    }
    for (const Count& count : history_.counts) taken_.note(count.span.returned, count.num_inserted);
    for (Timeline* timeline : {&returned_, &called_, &taken_, &last_call_}) timeline->settle();
    for (const Span& clear : history_.clears) {
      cleared_.note(clear.returned, head_at_least(clear.called));
      clear_return_.note(clear.called, clear.returned);
    }
    for (Timeline* timeline : {&cleared_, &clear_return_}) timeline->settle();
  }

  // Every ticket below it was taken before `time`: as many as rows whose inserts had returned, and all
  // below one that was known.
  [[nodiscard]] Ticket head_at_least(Time time) const { return std::max(returned_.before(time), taken_.before(time)); }

  void check_inserts() {
    for (std::size_t i = 0; i < history_.inserts.size(); ++i) {
      if (!first_tickets_[i]) continue;
      const auto& [span, num_rows] = history_.inserts[i];
      faults_.out_of_order += *first_tickets_[i] < head_at_least(span.called) ? 1 : 0;
      faults_.gaps += *first_tickets_[i] + num_rows > called_.before(span.returned) ? 1 : 0;
    }
  }

  void check_sample(const Sample& sample) {
    const auto& [called, returned] = sample.span;
    const Ticket head = head_at_least(called);
    const Ticket oldest = head > history_.capacity ? head - history_.capacity : 0;
    const Ticket cleared = cleared_.before(called);
    for (const Seen& seen : sample.seen) {
      faults_.early += history_.inserts[seen.insert].span.called > returned ? 1 : 0;
      faults_.overwritten += seen.ticket < oldest ? 1 : 0;
      faults_.cleared += seen.ticket < cleared ? 1 : 0;
    }
    // An insert that returned before this call, and was called when all clears that may have come before
    // had returned, left something to see.
    const bool was_there = last_call_.before(called) > clear_return_.before(returned);
    faults_.missed += sample.seen.empty() && was_there ? 1 : 0;
  }

  const History& history_;
  std::vector<std::optional<Ticket>> first_tickets_;
  Timeline returned_{Timeline::Kind::kSum};          // rows of inserts, when they returned
  Timeline called_{Timeline::Kind::kSum};            // rows of inserts, when they were called
  Timeline taken_{Timeline::Kind::kLargest};         // ends of tickets that were known, when they were
  Timeline last_call_{Timeline::Kind::kLargest};     // calls + 1 of inserts, when they returned
  Timeline cleared_{Timeline::Kind::kLargest};       // tickets that were cleared for certain, when they were
  Timeline clear_return_{Timeline::Kind::kLargest};  // returns of clears, when they were called
  Faults faults_;
};

[[nodiscard]] inline Faults check(const History& history) { return Checker{history}.check(); }

[[nodiscard]] inline std::string to_string(const Faults& faults) {
  const std::vector<std::pair<const char*, std::uint64_t>> named{
      {"ambiguous", faults.ambiguous},       {"scattered", faults.scattered}, {"unknown", faults.unknown},
      {"out of order", faults.out_of_order}, {"gaps", faults.gaps},           {"early", faults.early},
      {"overwritten", faults.overwritten},   {"cleared", faults.cleared},     {"missed", faults.missed},
      {"miscounted", faults.miscounted}};
  std::string text;
  for (const auto& [name, number] : named) {
    if (number > 0) text += (text.empty() ? "" : ", ") + std::to_string(number) + ' ' + name;
  }
  return text.empty() ? "no faults" : text;
}

}  // namespace history
