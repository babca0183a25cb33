// SPDX-License-Identifier: MIT
// What is searched: how many threads do what to a ring of which size, which locations of memory they share, and what
// must not happen. Knows nothing of the protocol's steps.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "memory.hpp"

namespace model {

constexpr std::size_t kHead = 0;
constexpr std::size_t kCommit = 1;
constexpr std::size_t kBase = 2;
constexpr std::size_t kFirstWord = 3;  // lap words, then the records
constexpr std::size_t kNoLocation = kMaxLocations;
constexpr std::size_t kWordsPerRecord = 2;  // one for each of two fields
constexpr std::size_t kMaxRows = 2;

// What a record of a ticket holds in each word. 0 is memory that never was written.
constexpr unsigned content(std::uint64_t ticket) { return static_cast<unsigned>(ticket) + 1; }

// Of the slot of a ticket that is published in that lap; 0 if none was.
constexpr std::uint64_t lap_word(std::uint64_t lap) { return 2 * (lap + 1); }

enum class Role : std::uint8_t { kWriter, kReader, kClearer };

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
  [[nodiscard]] std::size_t num_tickets() const { return num_writers * inserts * rows; }
  [[nodiscard]] Role role_of(std::size_t thread) const {
    if (thread < num_writers) return Role::kWriter;
    return thread < num_writers + num_readers ? Role::kReader : Role::kClearer;
  }
  [[nodiscard]] unsigned num_operations_of(std::size_t thread) const {
    const Role role = role_of(thread);
    return role == Role::kWriter ? inserts : role == Role::kReader ? reads : 1;
  }
  [[nodiscard]] std::size_t num_locations() const { return kFirstWord + capacity * (1 + kWordsPerRecord); }
  [[nodiscard]] std::size_t word(std::uint64_t slot) const { return kFirstWord + slot; }
  [[nodiscard]] std::size_t data(std::uint64_t slot, std::size_t w) const {
    return kFirstWord + capacity + slot * kWordsPerRecord + w;
  }
  [[nodiscard]] std::uint64_t oldest(std::uint64_t head) const { return head > capacity ? head - capacity : 0; }
};

enum class Violation : std::uint8_t {
  kNone,
  kTwoOwners,
  kCommitPastHead,
  kCommitUnwritten,
  kBadWindow,
  kGatedHolder,
  kUnfinishedInsert,
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
                              "an insert returns before its rows are published",
                              "a row accepted that was never written",
                              "a torn row accepted",
                              "a row of another ticket accepted",
                              "at rest a slot does not hold its last ticket",
                              "at rest commit cannot reach head",
                              "no thread can go on",
                              "a state from which the threads cannot finish"};
  return kTexts[static_cast<std::size_t>(violation)];
}

}  // namespace model
